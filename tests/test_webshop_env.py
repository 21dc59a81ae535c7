"""``RealWorld-WebShop-v0`` and its three engines against the package's contract."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import gymnasium as gym
import pytest

pytest.importorskip("bm25s", reason="needs the webshop extra")

from gym_llmworld.collection import collect
from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_episodes
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.real import webshop_http
from gym_llmworld.real.webshop_engine import Visit
from gym_llmworld.real.webshop_env import WebShopEnv
from gym_llmworld.real.webshop_generator import generated_catalogue
from gym_llmworld.real.webshop_scenarios import load_games
from gym_llmworld.real.webshop_sources import ScenarioSource
from gym_llmworld.testing import check_text_env
from gym_llmworld.worlds.webshop import WORLD
from gym_llmworld.worlds.webshop_text import read_page
from tests.webshop_shared import ATTRIBUTES, RECORDS

VALID = "valid/0/7"


def valid_scenario() -> Scenario:
    return ScenarioSource(None).get(VALID)


class Server:
    """A WebShop server that speaks AgentGym's protocol, and can be made to fail.

    Attributes:
        url: Where it is.
        failures: Ways to fail, one for each of the next requests to ``/step``.
        down: Fail every request to ``/create``, too.
        asked: Paths, as asked.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.down: str | None = None
        self.asked: list[str] = []
        self._visits: list[Visit | None] = []
        self._shop = generated_catalogue(0)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.answer(self, json.loads(body or b"null"))

            def do_GET(self) -> None:
                server.answer(self, None)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        url = urlparse(handler.path)
        self.asked.append(url.path)
        failure = self.down
        if url.path == "/step" and self.failures:
            failure = self.failures.pop(0)
        status, content = 200, json.dumps(self._reply(url.path, parse_qs(url.query), body))
        if failure == "slow":
            time.sleep(2.5)
        elif failure == "error":
            content = '{"error": "env not found"}'
        elif failure == "html":
            content = "<html>502</html>"
        elif failure == "shape":
            content = '{"observation": 3}'
        elif failure == "status":
            status = 500
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(content.encode())))
            handler.end_headers()
            handler.wfile.write(content.encode())
        except OSError:
            pass  # the client did not wait

    def _reply(self, path: str, query: dict[str, list[str]], body: Any) -> Any:
        if path == "/create":
            self._visits.append(None)
            return len(self._visits) - 1
        if path == "/reset":
            begun = Visit(self._shop, self._shop.goals[body["session_id"]])
            self._visits[body["env_idx"]] = begun
            return [begun.view.text, None]
        visit = self._visits[body["env_idx"] if body else int(query["env_idx"][0])]
        assert visit is not None
        if path == "/step":
            view = visit.act(body["action"])
            return {"state": view.text, "reward": view.score, "done": view.done, "info": None}
        view = visit.view
        return {"has_search_bar": view.search_bar, "clickables": list(view.clickables)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(webshop_http, "_PAUSE", 0.01)
    made = Server()
    yield made
    made.close()


@pytest.fixture
def impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the wait where the server is to be slow; elsewhere a busy machine is given time."""
    if request.node.callspec.params["failure"] == "slow":
        monkeypatch.setattr(webshop_http, "TIMEOUT", 1.0)


@pytest.fixture
def checkout(tmp_path: Path) -> str:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "items_shuffle_1000.json").write_text(json.dumps(RECORDS))
    (tmp_path / "data" / "items_ins_v2_1000.json").write_text(json.dumps(ATTRIBUTES))
    return str(tmp_path)


@pytest.mark.parametrize("separator", "-/")
def test_the_ids_are_registered(separator: str) -> None:
    for made_by in ("RealWorld", "LLMWorld"):
        assert gym.spec(f"{made_by}{separator}WebShop-v0").max_episode_steps == 20


@pytest.mark.parametrize("raw", [False, True])
def test_the_contract_of_text_worlds_holds(raw: bool) -> None:
    check_text_env(gym.make("RealWorld-WebShop-v0", raw=raw))


def test_the_contract_holds_for_the_other_engines(server: Server, checkout: str) -> None:
    check_text_env(gym.make("RealWorld-WebShop-v0", engine="http", url=server.url))
    check_text_env(
        gym.make("RealWorld-WebShop-v0", engine="checkout", checkout=checkout, split="test")
    )


def test_the_plan_is_rewarded_once_and_a_wrong_purchase_is_not() -> None:
    env = WebShopEnv()
    _, info = env.reset(options={"scenario": VALID})
    assert info["admissible_commands"] == ["search[<your query>]", "click[search]"]
    assert (info["won"], info["score"]) == (False, 0.0)
    plan = env.scenario.real["plan"]
    for action in plan[:-1]:
        _, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated, info["score"]) == (0.0, False, False, 0.0)
    observation, reward, terminated, _, info = env.step(plan[-1])
    assert (reward, terminated, info["won"], info["score"]) == (1.0, True, True, 1.0)
    assert " [SEP] 1.0 [SEP] " in observation
    assert info["admissible_commands"] == []
    env.reset(options={"scenario": VALID})
    for action in (plan[0], plan[1], "click[buy now]"):
        observation, reward, terminated, _, info = env.step(action)
    assert (reward, terminated, info["won"]) == (0.0, True, False)
    assert 0 < info["score"] < 1
    assert f" [SEP] {info['score']} [SEP] " in observation


def test_raw_observations_list_the_actions() -> None:
    plain, raw = WebShopEnv(), WebShopEnv(raw=True)
    plan = valid_scenario().real["plan"]
    first, _ = raw.reset(options={"scenario": VALID})
    assert first == WORLD.contexts["word2world"](raw.scenario)
    plain.reset(options={"scenario": VALID})
    assert first == WORLD.contexts["word2world"](plain.scenario)
    block = "\n\nYour admissible actions of the current situation are: \n[\n"
    for action in plan:
        (text, *_), (bare, *_, info) = raw.step(action), plain.step(action)
        listed = info["admissible_commands"] or ["search[<your query>]", "click[search]"]
        assert text == bare + block + "".join(f"'{a}',\n" for a in listed) + "]."


def test_actions_are_stripped_as_the_imagined_twin_does() -> None:
    env = WebShopEnv()
    env.reset(options={"scenario": VALID})
    assert env.step("  search[lamp]\n")[0] == env.step("search[lamp]")[0]


@pytest.mark.parametrize(
    "action",
    ["", "click[buy now]\nThought: done", "click[buy now] <|im_end|>", "search[\ud800]", "x" * 999],
)
def test_what_may_not_enter_a_chat_is_answered_as_the_imagined_twin_does(action: str) -> None:
    env = WebShopEnv()
    env.reset(options={"scenario": VALID})
    for step in env.scenario.real["plan"][:-1]:
        page = env.step(step)[0]
    observation, reward, terminated, truncated, info = env.step(action)
    assert (observation, reward, terminated, truncated) == ("Invalid Action.", 0.0, False, False)
    assert "click[buy now]" in info["admissible_commands"]
    assert env.step("look")[0] == page


def test_copies_are_independent() -> None:
    env = WebShopEnv()
    env.reset(options={"scenario": VALID})
    plan = env.scenario.real["plan"]
    for action in plan[:-1]:
        env.step(action)
    twin = copy.deepcopy(env)
    twin.step("click[back to search]")
    assert env.step(plan[-1])[1] == 1.0
    assert twin.step("look")[0].endswith("[SEP] Search")


def test_a_server_gives_what_the_bundled_engine_gives(server: Server) -> None:
    here, there = WebShopEnv(), WebShopEnv(engine="http", url=server.url + "/")
    here.reset(options={"scenario": VALID})
    plan = here.scenario.real["plan"]
    actions = [*plan[:2], "click[features]", "nonsense", "click[< prev]", *plan[2:]]
    there.reset(options={"scenario": "valid/http/7"})
    assert there.scenario.instruction == here.scenario.instruction
    for action in actions:
        ours, theirs = here.step(action), there.step(action)
        assert ours[:4] == theirs[:4]
        ours[4].pop("llmworld"), theirs[4].pop("llmworld")
        assert ours[4] == theirs[4]
    assert ours[1] == 1.0
    again, _ = there.reset(options={"scenario": there.scenario.to_json()})
    assert again == there.scenario.observation
    # What generic code does: the scenario alone says which server.
    assert here.reset(options={"scenario": there.scenario.to_json()})[0] == again
    here.close()
    with pytest.raises(ScenarioError, match="not the one of this environment"):
        there.reset(options={"scenario": valid_scenario().to_json()})
    there.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("failure", ["slow", "error", "html", "shape", "status"])
def test_a_server_that_fails_once_is_asked_again_from_the_start(
    server: Server, failure: str
) -> None:
    env = WebShopEnv(engine="http", url=server.url)
    env.reset(options={"scenario": "valid/http/7"})
    first = env.step("search[lamp]")
    server.failures = [failure]
    server.asked.clear()
    observation, _, _, truncated, _ = env.step("click[next >]")
    assert "Page 2 " in observation
    assert not truncated
    # Both steps again in a new session: the failed one may have been carried out.
    assert server.asked.count("/create") == 1
    assert server.asked.count("/step") == 3
    assert env.step("click[< prev]")[0] == first[0]
    env.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("failure", ["slow", "error", "html", "shape", "status"])
def test_a_server_that_goes_on_failing_truncates_the_episode(server: Server, failure: str) -> None:
    env = WebShopEnv(engine="http", url=server.url)
    env.reset(options={"scenario": "valid/http/7"})
    before = env.step("search[lamp]")[0]
    server.failures, server.down = [failure] * 9, failure
    observation, reward, terminated, truncated, info = env.step("click[next >]")
    assert (observation, reward, terminated, truncated) == (before, 0.0, False, True)
    assert "failed 3 times in a row" in info["llmworld"]["error"]
    with pytest.raises(EngineError, match="Is the server running"):
        env.reset(options={"scenario": "valid/http/8"})
    server.failures, server.down = [], None
    _, info = env.reset(options={"scenario": "valid/http/8"})
    assert "error" not in info["llmworld"]
    env.close()


def test_the_truncated_episode_is_kept(server: Server, tmp_path: Path) -> None:
    scenario = valid_scenario()
    there = Scenario.from_json(
        {**scenario.to_json(), "id": "valid/http/7", "real": {"shop": "http", "goal": 7}}
    )
    server.failures = ["", "", *["html"] * 3]
    report = collect(
        "RealWorld-WebShop-v0",
        {"expert": 1},
        [there],
        policies=WORLD.agents,
        episodes=1,
        out=tmp_path / "real.jsonl",
        env_kwargs={"engine": "http", "url": server.url},
        workers=0,
    )
    assert report.total.episodes == 1
    (episode,) = read_episodes(tmp_path / "real.jsonl")
    # The third action was never answered; the page that stood there is not its outcome.
    assert [read_page(step.observation).kind for step in episode.steps] == ["results", "item"]
    assert [step.truncated for step in episode.steps] == [False, True]


def test_no_server_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webshop_http, "_PAUSE", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    env = WebShopEnv(engine="http", url=url)
    with pytest.raises(EngineError, match=r"server at http://127.*failed 3 times .*ConnectError"):
        env.reset(seed=0)
    env = WebShopEnv(engine="http", url="no address")
    with pytest.raises(EngineError, match="no address"):
        env.reset(seed=0)


def test_a_shop_of_ones_own(checkout: str) -> None:
    env = WebShopEnv(engine="checkout", checkout=checkout, split="test")
    observation, info = env.reset(seed=1)
    assert "energy efficient desk lamp" in observation
    assert info["llmworld"]["scenario"].startswith("test/checkout/")
    for action in env.scenario.real["plan"]:
        _, reward, *_ = env.step(action)
    assert reward == 1.0
    (scenario, *_) = load_games(checkout, "test")
    assert WebShopEnv().reset(options={"scenario": scenario.to_json()})[0] == scenario.observation
    with pytest.raises(ScenarioError, match="has 4 goals, none of them in split 'valid'"):
        WebShopEnv(engine="checkout", checkout=checkout, split="valid")
    with pytest.raises(ScenarioError, match="expected <split>/checkout/<goal>"):
        env.reset(options={"scenario": VALID})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "real"}, "unknown engine 'real'; expected one of bundled, checkout, http"),
        ({"engine": "http"}, "engine='http' needs url="),
        ({"engine": "checkout"}, "engine='checkout' needs checkout="),
        ({"url": "http://x"}, "engine='bundled' does not take url"),
        ({"engine": "http", "url": "http://x", "games": "g"}, "does not take games"),
        ({"split": "valid_seen"}, "unknown split 'valid_seen'; expected one of train, valid, test"),
        ({"games": "nowhere"}, "no scenario file or folder"),
    ],
)
def test_what_cannot_be_made_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        WebShopEnv(**options)


@pytest.mark.parametrize(
    ("real", "message"),
    [
        ({}, "does not say which goal"),
        ({"shop": "0", "goal": 7, "generator": 99}, "made by generator version 99"),
        ({"shop": "checkout", "goal": 7}, "not the one of this environment"),
        ({"shop": "checkout", "goal": 7, "place": "nowhere"}, "no folder at nowhere"),
        ({"shop": "nonsense", "goal": 7}, "not the one of this environment"),
        ({"shop": "0", "goal": 10**6}, "no goal 1000000"),
        ({"shop": "0", "goal": 8}, "does not describe its game"),
    ],
)
def test_scenarios_that_do_not_fit_are_refused(real: dict[str, Any], message: str) -> None:
    env = WebShopEnv()
    scenario = valid_scenario()
    with pytest.raises(ScenarioError, match=message):
        env.reset(options={"scenario": {**scenario.to_json(), "real": real}})
    for unknown in ("valid/0/999999", "train/0/7", "test/0/7", "valid/1000/7", "nonsense"):
        with pytest.raises(ScenarioError):
            env.reset(options={"scenario": unknown})
