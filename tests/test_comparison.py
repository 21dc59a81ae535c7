"""Real, WM, W2R and CR of a toy world whose outcomes can be written down by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import gym_llmworld  # noqa: F401 - registers the environments
from gym_llmworld.agents import ScriptedAgent
from gym_llmworld.comparison import Comparison, compare, step_limits
from gym_llmworld.core import Message, Scenario
from gym_llmworld.episodes import write_scenarios
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.spaces import FreeText

IMAGINED_ID = "LLMWorld-ALFWorld-v0"
REAL_ID = "ToyBox-v0"
REJECTION = "Nothing happens."


def toy(actions: Sequence[str]) -> tuple[str, bool]:
    """The true rules: a box holds a key, taking it wins."""
    *before, action = actions
    if action == "open box 1":
        return "You open the box 1. In it, you see a key 1.", False
    if action == "take key 1" and "open box 1" in before:
        return "You pick up the key 1.", True
    return REJECTION, False


def answer(chat: Sequence[Message]) -> str:
    """A model of the toy world whose faults are named in its context."""
    fault = chat[0].content
    actions = [message.content for message in chat if message.role == "user"]
    observation, won = toy(actions)
    if fault == "sees two keys":
        observation = observation.replace("a key 1", "a key 1, and a key 2")
    if fault == "wins at once" and actions[-1] == "open box 1":
        won = True
    if fault == "never wins":
        won = False
    if fault == "mute" and len(actions) == 2:
        return ""
    return observation + (" [SUCCESS]" if won else "")


class ToyBox(gym.Env[str, str]):
    """The real toy world; fails where a scenario says so, and stays broken afterwards."""

    opened: int = 0
    closed: int = 0

    def __init__(self, **kwargs: Any) -> None:
        ToyBox.opened += 1
        self.observation_space = FreeText(1000)
        self.action_space = FreeText(1000)
        self._broken = False
        self._real: Mapping[str, Any] = {}
        self._actions: list[str] = []

    def close(self) -> None:
        ToyBox.closed += 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        assert options is not None
        scenario = options["scenario"]
        self._real = scenario["real"]
        self._broken = self._broken or "broken" in scenario["real"]
        if self._broken:
            raise EngineError("the engine died")
        self._actions = []
        return scenario["observation"], {"admissible_commands": ["look"]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._actions.append(action)
        if "silent" in self._real:
            # As a twin behind a server ends: it does not raise.
            info = {"llmworld": {"source": "real", "error": "no answer"}}
            return "A box 1.", 0.0, False, True, info
        observation, won = toy(self._actions)
        return observation, float(won), won, False, {"admissible_commands": ["look"]}


gym.register(REAL_ID, entry_point=ToyBox, disable_env_checker=True)


def game(name: str, fault: str = "none", **real: Any) -> Scenario:
    return Scenario(
        name, "alfworld", "valid_seen", "get the key.", "A box 1.", None, {"context": fault}, real
    )


class Seen(ScriptedAgent):
    """Also notes what it was told."""

    notes: list[tuple[str, int, Any]] = []  # noqa: RUF012 - shared on purpose

    def reset(self, scenario: Scenario, seed: int) -> None:
        super().reset(scenario, seed)
        self._who = (scenario.id, seed)

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        Seen.notes.append((*self._who, info["admissible_commands"]))
        return super().act(observation, info)


SOLVER = ("open box 1", "take key 1")


def run(
    games: Sequence[Scenario], folder: Path, script: Sequence[str] | None = SOLVER, **options: Any
) -> Comparison:
    file = folder / "scenarios.jsonl"
    write_scenarios(file, games)
    return compare(
        IMAGINED_ID,
        {"solver": lambda: ScriptedAgent(script)},
        games,
        real_id=REAL_ID,
        rejection=REJECTION,
        imagined_options={
            "model": "scripted:tests.test_comparison:answer",
            "scenarios": str(file),
            "split": "valid_seen",
        },
        **{"max_steps": 5, **options},
    )


@pytest.mark.parametrize("num_envs", [1, 2, 16])
def test_the_table_by_hand(tmp_path: Path, num_envs: int) -> None:
    games = [
        game("faithful"),
        game("two keys", "sees two keys"),
        game("early", "wins at once"),
        game("never", "never wins"),
        game("mute", "mute"),
    ]
    result = run(games, tmp_path, num_envs=num_envs)
    rows = {trial.scenario.id: trial for trial in result.trials["solver"]}
    assert [trial.scenario.id for trial in result.trials["solver"]] == [g.id for g in games]
    outcomes = {
        name: (t.real and t.real.success, t.imagined.success, t.replay and t.replay.success)
        for name, t in rows.items()
    }
    assert outcomes == {
        "faithful": (True, True, True),
        "two keys": (True, True, True),
        # It believed that opening was enough and stopped there.
        "early": (True, True, False),
        # It went on after the real world was solved: the replay stops at the real end.
        "never": (True, False, True),
        # Its last answer was empty, but the action had been taken.
        "mute": (True, False, True),
    }
    kinds = {
        name: t.divergence and (t.divergence.step, t.divergence.kind) for name, t in rows.items()
    }
    assert {name for name, t in rows.items() if t.unanswered} == {"mute"}
    assert kinds == {
        "faithful": None,
        "two keys": (1, "extra object"),
        "early": (1, "success claimed"),
        "never": (2, "success missed"),
        "mute": (2, "success missed"),
    }
    assert len(rows["never"].imagined.steps) == 5
    assert rows["never"].replay is not None
    assert len(rows["never"].replay.steps) == 2
    data = json.loads(json.dumps(result.to_json(model="toy"), allow_nan=False))
    solver = data["agents"]["solver"]
    assert solver["unanswered"] == 1
    assert data["step_limits"] == {"5": 5}
    figures = ("real", "wm", "w2r", "cr", "cr_paired", "false_success", "n")
    assert {key: solver[key] for key in figures} == {
        "real": 1.0,
        "wm": 3 / 5,
        "w2r": 4 / 5,
        "cr": 4 / 5,
        "cr_paired": 4 / 5,
        # "early" says that opening the box wins.
        "false_success": 1 / 5,
        "n": 5,
    }
    assert (data["env_id"], data["model"], data["n"]) == (IMAGINED_ID, "toy", 5)
    assert solver["divergences"]["by_kind"]["success missed"] == 2
    assert data["agreement_by_step"][0] == {"key": 1, "value": 4 / 5, "hits": 4, "n": 5}


def test_invalid_actions_are_neither_skipped_nor_repaired(tmp_path: Path) -> None:
    script = ("take key 1", "", "open box 1", "take key 1")
    result = run([game("g")], tmp_path, script)
    [trial] = result.trials["solver"]
    assert trial.replay is not None
    assert trial.replay.actions == script
    assert trial.replay.success
    assert trial.divergence is None


def test_an_episode_that_ends_without_the_real_end_has_failed(tmp_path: Path) -> None:
    result = run([game("g")], tmp_path, ("look",))
    row = result.consistency("solver")
    assert (row.real, row.wm, row.w2r, row.cr, row.cr_paired) == (0.0, 0.0, 0.0, None, None)
    [trial] = result.trials["solver"]
    assert trial.real is not None
    assert len(trial.real.steps) == 5
    assert trial.real.steps[-1].truncated


@pytest.mark.parametrize("num_envs", [1, 3])
def test_each_game_ends_at_its_own_limit(tmp_path: Path, num_envs: int) -> None:
    games = [game("short"), game("long"), game("enough")]
    script = ("look", "open box 1", "take key 1")
    result = run(games, tmp_path, script, num_envs=num_envs, max_steps=[2, 7, 3])
    short, long, enough = result.trials["solver"]
    for episode in (short.imagined, short.real, short.replay):
        assert episode is not None
        assert (len(episode.steps), episode.steps[-1].truncated, episode.success) == (
            2,
            True,
            False,
        )
    assert not short.unanswered
    for trial in (long, enough):
        assert trial.real is not None
        assert trial.real.success
        assert trial.imagined.success
        assert not trial.imagined.steps[-1].truncated
    assert result.to_json(model="toy")["step_limits"] == {"2": 1, "3": 1, "7": 1}


def test_limits_must_pair_up_with_games(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 2 for 1 games"):
        run([game("g")], tmp_path, max_steps=[1, 2])


def test_no_game_is_cut_off_before_its_solution_ends() -> None:
    games = [game("none"), game("short", plan=["look"] * 60), game("long", plan=["look"] * 145)]
    assert step_limits(games, 100) == [100, 100, 218]


def test_a_broken_engine_counts_as_failure_and_is_opened_again(tmp_path: Path) -> None:
    opened = ToyBox.opened
    result = run([game("a", broken=True), game("b")], tmp_path)
    broken, whole = result.trials["solver"]
    assert broken.error == "EngineError: the engine died"
    assert (broken.real, broken.replay, broken.divergence) == (None, None, None)
    assert whole.error is None
    row = result.consistency("solver")
    assert (row.n, row.real, row.wm, row.w2r, row.cr) == (2, 0.5, 1.0, 0.5, 1.0)
    assert result.to_json(model="toy")["agents"]["solver"]["errors"] == 1
    assert ToyBox.opened == opened + 2


def test_a_server_that_gave_up_is_an_error_and_no_defeat(tmp_path: Path) -> None:
    result = run([game("a", silent=True), game("b")], tmp_path)
    silent, whole = result.trials["solver"]
    assert silent.error == "EngineError: no answer"
    assert (silent.real, silent.replay, whole.error) == (None, None, None)


def test_an_agent_that_raises_leaves_no_engine_open(tmp_path: Path) -> None:
    class Faulty(ScriptedAgent):
        played = 0

        def reset(self, scenario: Scenario, seed: int) -> None:
            super().reset(scenario, seed)
            Faulty.played += 1
            if Faulty.played > 3:  # both games imagined, one of them real
                raise RuntimeError("a fault of the agent")

    opened, closed = ToyBox.opened, ToyBox.closed
    games = [game("a"), game("b")]
    write_scenarios(tmp_path / "scenarios.jsonl", games)
    with pytest.raises(RuntimeError, match="a fault of the agent"):
        compare(
            IMAGINED_ID,
            {"faulty": lambda: Faulty(SOLVER)},
            games,
            real_id=REAL_ID,
            imagined_options={
                "model": "scripted:tests.test_comparison:answer",
                "scenarios": str(tmp_path),
                "split": "valid_seen",
            },
        )
    assert (ToyBox.opened - opened, ToyBox.closed - closed) == (1, 1)


def test_agents_have_one_seed_per_game_and_see_text_only(tmp_path: Path) -> None:
    games = [game("a"), game("b")]
    write_scenarios(tmp_path / "scenarios.jsonl", games)
    Seen.notes.clear()
    compare(
        IMAGINED_ID,
        {"one": lambda: Seen(SOLVER), "two": lambda: Seen(SOLVER)},
        games,
        real_id=REAL_ID,
        imagined_options={
            "model": "scripted:tests.test_comparison:answer",
            "scenarios": str(tmp_path),
            "split": "valid_seen",
        },
    )
    assert {admissible for _, _, admissible in Seen.notes} == {None}
    seeds = {name: {seed for who, seed, _ in Seen.notes if who == name} for name in ("a", "b")}
    assert all(len(values) == 1 for values in seeds.values())
    assert seeds["a"] != seeds["b"]


def test_no_games_give_an_empty_table(tmp_path: Path) -> None:
    result = compare(IMAGINED_ID, {"solver": ScriptedAgent}, [], real_id=REAL_ID)
    data = result.to_json(model="toy")
    assert (data["n"], data["agents"]["solver"]["cr"]) == (0, None)


def test_an_agent_that_cannot_play_the_game_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="has no plan"):
        run([game("no plan")], tmp_path, None)
