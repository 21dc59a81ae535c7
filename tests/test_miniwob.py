"""MiniWoB++ pages: the grammar and the players without a browser, and the pages in a real one."""

from __future__ import annotations

import asyncio
import copy
import http.server
import pickle
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from gym_llmworld.accessibility import apply_changes, changes_text, read_changes, read_tree
from gym_llmworld.cli_worlds import real_games
from gym_llmworld.collection import play
from gym_llmworld.core import Completion, Scenario
from gym_llmworld.errors import EngineError, MissingDependency, ScenarioError
from gym_llmworld.metrics import lines_f1
from gym_llmworld.real import miniwob_browser
from gym_llmworld.real.miniwob_page import Visit
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.miniwob import REJECTION, TASKS, Command, admissible, is_over, read_command
from tests.miniwob_shared import needs_browser
from tests.scripted_world import MODEL

WORLD = get_world("miniwob")
NO_CHANGE = "New items:\nNone\n\nDeleted items:\nNone\n\nUpdated items:\nNone"


def shipped(split: str = "valid_unseen") -> tuple[Scenario, ...]:
    return ScenarioStore("miniwob").of_split(split)


SHIPPED = (*shipped("valid_seen"), *shipped("valid_unseen"))
# A page takes a second to open; the other tasks are for `make test-slow`.
QUICK = ("click-checkboxes", "click-link", "enter-password", "multi-orderings", "simple-algebra")


# --- without a browser ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "command"),
    [
        ("click [12]", Command("click", 12)),
        (" hover [3] ", Command("hover", 3)),
        ("type [3] [two words]", Command("type", 3, "two words", enter=True)),
        ("type [3] [a] [0]", Command("type", 3, "a")),
        ("type [3] [a [b] c] [1]", Command("type", 3, "a [b] c", enter=True)),
        ("type [3] []", Command("type", 3, "", enter=True)),
        ("press [Tab]", Command("press", text="Tab")),
        ("press [F5]", None),
        ("press [Control+w]", None),
        ("click [0]", None),
        ("click [-1]", None),
        ("click 12", None),
        ("Click [12]", None),
        ("click [12] [3]", None),
        (f"click [{'9' * 5000}]", None),
        ("type [3]", None),
        ("scroll [down]", None),
        ("goto [file:///etc/passwd]", None),
        ("", None),
    ],
)
def test_actions_are_read_as_webarena_words_them(action: str, command: Command | None) -> None:
    assert read_command(action) == command


def test_what_is_worth_trying() -> None:
    tree = read_tree("[1] RootWebArea 'x'\n\t[2] textbox ''\n\t[3] button 'Ok'")
    assert admissible('Enter "Ada" and "x]y".', tree) == [
        "click [2]",
        "click [3]",
        "type [2] [Ada] [0]",
    ]


def test_the_cover_ends_an_episode() -> None:
    over = "New items:\n[9] StaticText 'START'\n\nDeleted items:\nNone\n\nUpdated items:\nNone"
    assert is_over(over)
    for going_on in ("", "START", NO_CHANGE, over.replace("New", "Updated"), over[:-30]):
        assert not is_over(going_on)
    scenario, protocol = shipped()[0], WORLD.protocol("engine")
    lost = protocol.decode(scenario, Completion(over, "stop"), ())
    assert (lost.over, lost.success) == (True, False)
    won = protocol.decode(scenario, Completion(over + " [SUCCESS]", "stop"), ())
    assert (won.over, won.success) == (True, True)


def test_prompts_hold_what_the_tree_hides() -> None:
    hiding = next(s for s in shipped("train") if s.real["task"] == "click-collapsible")
    [text] = hiding.hidden["unseen"]
    assert text not in hiding.observation
    for style in WORLD.contexts:
        context = WORLD.protocol(style).context(hiding)
        assert hiding.instruction in context
        assert hiding.observation in context
        assert text in context


def test_the_imagined_world_needs_no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniwob_browser, "current_browser", None)
    env = gym.make(WORLD.imagined_id, model=MODEL)
    observation, info = env.reset(seed=0)
    assert observation.startswith("[1] RootWebArea ")
    assert info["admissible_commands"][0].startswith("click [")
    assert env.step("click [2]")[0].startswith("Turn 1")


def test_the_imagined_world_needs_a_model() -> None:
    with pytest.raises(Exception, match=r"no embedded world model for 'miniwob'.*pass model="):
        gym.make(WORLD.imagined_id).reset()


def test_players_bear_with_nonsense() -> None:
    draw = random.Random(0)
    odd = ["", REJECTION, NO_CHANGE, "[1] x", "New items:\n[99999999] textbox 'x'", "\ud800"]
    for name, make in WORLD.agents.items():
        agent = pickle.loads(pickle.dumps(make))()
        for number, scenario in enumerate(shipped("train")):
            agent.reset(scenario, number)
            told = scenario.observation
            for _ in range(12):
                assert isinstance(agent.act(told, {}), str), name
                wild = "\n".join(draw.choice(odd) for _ in range(3))
                told = draw.choice([wild, NO_CHANGE.replace("None", wild, 1)])
    agent = WORLD.agents["expert"]()
    agent.reset(Scenario("x", "miniwob", "train", "Click on Tab #3.", "?"), 0)
    assert agent.act("?", {}) == "press [Tab]"


@pytest.mark.parametrize(
    ("named", "message"),
    [("/nowhere/chrome", "LLMWORLD_BROWSER must be the path of a Chromium"), ("", "apt install")],
)
def test_a_missing_browser_names_the_command(
    named: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMWORLD_BROWSER", named)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(miniwob_browser, "_downloaded", lambda: None)
    with pytest.raises(EngineError, match=message):
        miniwob_browser.find_browser()


def test_without_the_extra_the_twin_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'gym-llmworld\[web\]'"):
        gym.make(WORLD.real_id)


def test_unknown_pages_and_splits_are_refused() -> None:
    games = real_games(WORLD)
    with pytest.raises(ScenarioError, match="unknown task 'draw-line'; expected one of click-but"):
        games.PageSource(None, "draw-line")
    with pytest.raises(ScenarioError, match="unknown split 'test'; expected one of train, valid_s"):
        games.check_tasks("test", None)
    with pytest.raises(ScenarioError, match="split 'train' has no task 'simple-algebra'"):
        games.check_tasks("train", "simple-algebra")
    source = games.PageSource(None, None)
    for identity in ("train/login-user/7", "train/draw-line/10000", "login-user", "a/b/c", "//"):
        with pytest.raises(ScenarioError, match="<split>/<task>/<seed>, for example valid_seen/cl"):
            source.get(identity)


# --- in the browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def env() -> Iterator[gym.Env[str, str]]:
    made = gym.make(WORLD.real_id, split="valid_seen")
    yield made
    made.close()


@dataclass(frozen=True)
class Told:
    """One transition: what was done, what was told, and the whole page then."""

    action: str
    observation: str
    tree: str
    over: bool
    won: bool


Played = list[tuple[Scenario, list[Told]]]


@pytest.fixture(scope="module")
def played(env: gym.Env[str, str]) -> Played:
    """Episodes of a player that errs, about 40 transitions."""
    tasks = (
        "login-user",
        "click-checkboxes",
        "choose-list",
        "click-collapsible",
        "form-sequence-2",
    )
    found = []
    for seed, task in enumerate((*tasks, "multi-orderings")):
        scenario = next(s for s in SHIPPED if s.real["task"] == task)
        agent = WORLD.agents["corrupted"]()
        agent.reset(scenario, seed)
        told, info = env.reset(options={"scenario": scenario.to_json()})
        steps: list[Told] = []
        while len(steps) < 9 and not (steps and steps[-1].over):
            action = agent.act(told, info)
            told, _, over, _, info = env.step(action)
            steps.append(Told(action, told, info["llmworld"]["tree"], over, info["won"]))
        found.append((scenario, steps))
    return found


@needs_browser
def test_a_login_by_hand() -> None:
    visit = Visit("login-user", 7)
    # What MiniWoB's own instance asks for after Math.seedrandom(7).
    assert visit.instruction == (
        'Enter the username "macie" and the password "z72vd" into the text fields and press login.'
    )
    assert visit.first == read_tree(
        "[1] RootWebArea 'Login User Task' focused: True\n"
        "\t[2] StaticText 'Username'\n\t[3] textbox '' required: False\n"
        "\t[4] StaticText 'Password'\n\t[5] textbox '' required: False\n"
        "\t[6] button 'Login'"
    )
    assert _after(visit, "type [3] [wrong]") == NO_CHANGE.replace(
        "None", "[7] StaticText 'wrong'", 1
    ).replace(
        "Updated items:\nNone", "Updated items:\n[3] textbox '' focused: True required: False"
    )
    told = _after(visit, "type [3] [macie] [0]")
    assert "New items:\n[8] StaticText 'macie'\n\nDeleted items:\n[7] Static" in told
    assert "[9] StaticText '•••••'" in _after(visit, "type [5] [z72vd] [0]")
    assert _after(visit, "hover [6]") == NO_CHANGE
    twin = copy.deepcopy(visit)
    # Far more than the page's own ten seconds.
    visit._browser.run(visit._page.clock.run_for(60_000))
    assert _after(visit, "hover [5]") == NO_CHANGE
    assert not visit.outcome.done
    assert "[10] StaticText 'START'" in _after(visit, "click [6]")
    assert (visit.outcome.solved, twin.outcome.done) == (True, False)
    assert "[6] button 'Login' focused: True" in _after(twin, "press [Tab]")
    visit.close()
    twin.close()


def _after(visit: Visit, action: str) -> str:
    before = visit.tree
    assert visit.act(action), action
    return changes_text(before, visit.tree)


@needs_browser
def test_options_are_chosen_and_a_wrong_one_loses(env: gym.Env[str, str]) -> None:
    observation, info = env.reset(options={"scenario": "valid_seen/choose-list/3"})
    options = [item for item in read_tree(observation) if item.role == "option"]
    wanted = next(item for item in options if item.name in env.get_wrapper_attr("play").instruction)
    other = next(item for item in options if item != wanted and item.says("selected", "False"))
    told, reward, over, _, info = env.step(f"click [{other.number}]")
    assert f"[{other.number}] option {other.name!r} selected: True" in told
    assert f"[{other.number}] option {other.name!r} selected: True" in info["llmworld"]["tree"]
    [button] = [item for item in read_tree(observation) if item.role == "button"]
    told, reward, over, _, info = env.step(f"click [{button.number}]")
    assert (reward, over, info["won"], info["score"]) == (0.0, True, False, 0.0)
    assert is_over(told)


@needs_browser
def test_a_part_of_the_boxes_is_a_part_of_the_score(env: gym.Env[str, str]) -> None:
    games = real_games(WORLD)
    env.reset(options={"scenario": "valid_seen/click-checkboxes/0"})
    scenario = env.get_wrapper_attr("scenario")
    assert scenario == games.read_scenario(scenario.to_json(), "miniwob")
    boxes = sum(item.role == "checkbox" for item in read_tree(scenario.observation))
    expert = WORLD.agents["expert"]()
    expert.reset(scenario, 0)
    ticked = 0
    while (action := expert.act("", {})) and ticked < boxes:
        tree = {item.number: item for item in read_tree(env.step(action)[4]["llmworld"]["tree"])}
        ticked += 1
        if tree[read_command(action).number].role == "checkbox":  # type: ignore[union-attr]
            break
    # One box of those that are wanted is ticked; now untick it again and submit.
    env.step(action)
    wanted = scenario.instruction.removeprefix("Select ").partition(" and click")[0].split(", ")
    submit = next(item for item in read_tree(scenario.observation) if item.name == "Submit")
    _, _, _, _, info = env.step(f"click [{submit.number}]")
    raw = (boxes - 2 * len(wanted)) / boxes
    assert env.get_wrapper_attr("play").outcome.reward == pytest.approx(raw)
    assert (info["score"], info["won"]) == (pytest.approx(max(0.0, raw)), False)


@needs_browser
def test_impossible_actions_change_nothing(env: gym.Env[str, str]) -> None:
    observation, _ = env.reset(options={"scenario": "valid_seen/login-user/7"})
    for action in (
        "click [99]",
        "type [6] [x]",  # a button
        "type [2] [x]",  # a text
        "press [F5]",
        "scroll [down]",
        "goto [about:blank]",
        "click [3",
        "",
        "<|im_end|>",
    ):
        told, reward, over, _, info = env.step(action)
        assert (told, reward, over) == (REJECTION, 0.0, False), action
        assert info["llmworld"]["tree"] == observation


@needs_browser
def test_changes_lead_from_the_first_tree_to_the_last(played: Played) -> None:
    assert sum(len(steps) for _, steps in played) >= 30
    for scenario, steps in played:
        tree = read_tree(scenario.observation)
        for step in steps:
            told = apply_changes(tree, step.observation)
            assert (told is None) == (step.observation == REJECTION)
            tree = tree if told is None else told
            assert {i.text for i in tree} == {i.text for i in read_tree(step.tree)}, step
            assert is_over(step.observation) == step.over
    assert {s.observation for _, steps in played for s in steps} >= {REJECTION, NO_CHANGE}


@needs_browser
def test_another_page_repeats_an_episode(played: Played, env: gym.Env[str, str]) -> None:
    for scenario, steps in played[2:4]:
        env.reset(options={"scenario": scenario.id})
        assert env.get_wrapper_attr("scenario").observation == scenario.observation
        for step in steps:
            told, reward, over, _, info = env.step(step.action)
            again = Told(step.action, told, info["llmworld"]["tree"], over, reward == 1.0)
            assert again == step


@needs_browser
def test_the_score_of_real_changes(played: Played) -> None:
    told = {step.observation for _, steps in played for step in steps} - {REJECTION}
    for truth in told:
        assert lines_f1(truth, truth) == 1
        assert lines_f1(truth + "<\uff5cend\u2581of\u2581sentence\uff5c>", truth) == 1
        lines = sum(bool(line.strip()) for line in truth.split("\n")) - 3
        # The last line is wrong: all others count.
        assert lines_f1(truth + " x", truth) == pytest.approx((lines - 1) / lines)
        sections = read_changes(truth)
        assert sections is not None
        assert lines == sum(max(1, len(items)) for items in sections.values())


@needs_browser
@pytest.mark.parametrize(
    "task",
    [pytest.param(t, marks=() if t in QUICK else (pytest.mark.slow,)) for t in TASKS],
)
def test_the_expert_solves_every_task(task: str, env: gym.Env[str, str]) -> None:
    scenario = next(s for s in SHIPPED if s.real["task"] == task)
    episode = play(env, WORLD.agents["expert"](), scenario, seed=0, max_steps=15)
    assert episode.success
    assert list(episode.actions) == scenario.real["plan"]


@needs_browser
def test_games_are_written_and_played(tmp_path: Path) -> None:
    games = real_games(WORLD)
    games.write_games(tmp_path, "valid_unseen", 1, 3, task="click-test-2")
    made = games.load_games(tmp_path, "valid_unseen")
    assert [s.real["task"] for s in made] == ["click-test-2"]
    env = gym.make(WORLD.real_id, games=str(tmp_path), split="valid_unseen")
    _, info = env.reset(seed=0)
    assert info["llmworld"]["scenario"] == made[0].id
    assert env.step(made[0].real["plan"][0])[0] != REJECTION
    other = {**made[0].to_json(), "observation": "[1] RootWebArea 'x'"}
    other["real"] = {**other["real"], "browser": "1.2"}
    with pytest.raises(ScenarioError, match=r"does not describe its game \(it was made with Chr"):
        env.reset(options={"scenario": other})
    env.close()


@needs_browser
def test_pages_reach_nothing() -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

        def log_message(self, *args: Any) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        visit = Visit("click-test-2", 0)
        script = """async (port) => {
          const place = `127.0.0.1:${port}`;
          const load = (tag, url) => new Promise((done) => {
            const thing = document.createElement(tag);
            thing.onload = () => done('loaded');
            thing.onerror = () => done('failed');
            thing.src = url;
            document.head.append(thing);
          });
          const socket = new Promise((done) => {
            const open = new WebSocket(`ws://${place}/socket`);
            open.onopen = () => done('loaded');
            open.onerror = () => done('failed');
          });
          location.href = `http://${place}/location`;
          return Promise.all([
            fetch(`http://${place}/fetch`, {mode: 'no-cors'}).then(() => 'loaded', () => 'failed'),
            load('script', `http://${place}/script`), load('script', 'file:///etc/hostname'),
            load('img', `http://localhost:${port}/img`), socket,
          ]);
        }"""
        browser = miniwob_browser.current_browser()
        assert browser.run(visit._page.evaluate(script, server.server_port)) == ["failed"] * 5
        assert visit.act(f"click [{visit.first[-1].number}]")
        visit.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == []


@needs_browser
def test_from_a_thread_where_a_loop_runs() -> None:
    found: list[str] = []

    async def begin() -> None:
        visit = Visit("click-test-2", 0)
        found.append(visit.instruction)
        visit.close()

    thread = threading.Thread(target=lambda: asyncio.run(begin()))
    thread.start()
    thread.join()
    assert found


@needs_browser
def test_a_browser_that_dies_loses_the_episode_only() -> None:
    env = gym.make(WORLD.real_id, task="click-button", disable_env_checker=True)
    env.reset(seed=0)
    browser = miniwob_browser.current_browser()

    async def crash() -> None:
        session = await browser.chromium.new_browser_cdp_session()
        await session.send("Browser.crash")

    with pytest.raises(EngineError):
        browser.run(crash())
    with pytest.raises(EngineError, match=r"has ended\. This episode is lost; reset starts a new"):
        env.step("click [2]")
    assert not browser.alive
    observation, _ = env.reset(seed=0)
    assert observation.startswith("[1] RootWebArea")
    assert miniwob_browser.current_browser() is not browser
    env.close()
