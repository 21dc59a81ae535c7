"""Episodes in which objects changed names, against the real engine with objects of those names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from gym_llmworld.core import Episode, Step
from gym_llmworld.episodes import EpisodeWriter, read_episodes
from gym_llmworld.errors import DataError
from gym_llmworld.real.alfworld_engine import LoadedGame, Play
from gym_llmworld.real.alfworld_games import Game, build_game
from gym_llmworld.real.alfworld_scenarios import game_scenario
from gym_llmworld.real.alfworld_tasks import sample_specs
from gym_llmworld.worlds.alfworld_agents import AlfworldExpert
from gym_llmworld.worlds.alfworld_belief import AlfworldGoal
from training.renamed import LAMPS, kinds_of, main, renamed, with_names

GAMES = [build_game(spec) for spec in sample_specs("train", 6, seed=5)]
OBJECT = re.compile(r"([A-Za-z]+)(?= - object\b|_bar_|Type\b)")


def searched(game: Game) -> Episode:
    """An episode of a player who looks into many places: lists of all lengths."""
    scenario = game_scenario(game)
    play, steps = Play(LoadedGame(game.game_data())), list[Step]()
    agent = AlfworldExpert(privileged=False)
    agent.reset(scenario, 0)
    observation = scenario.observation
    while not play.turn.won and len(steps) < 40:
        action = agent.act(observation, {})
        observation = play.step(action).observation
        steps.append(Step(action, observation, float(play.turn.won), play.turn.won))
    return Episode(scenario, tuple(steps), "real", "search")


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [searched(game) for game in GAMES]


def in_the_engine(game: Game, names: Mapping[str, str]) -> Play:
    """Starts a game in whose problem file kinds of object have changed names."""
    data = game.game_data()
    spelled = {word.lower(): word for word in OBJECT.findall(data["pddl_problem"])}

    def change(found: re.Match[str]) -> str:
        new = names.get(found[1].lower(), "")
        return spelled.get(new, new.capitalize()) or found[1]

    data["pddl_problem"] = OBJECT.sub(change, data["pddl_problem"])
    return Play(LoadedGame(data))


def test_the_engine_says_the_same_of_objects_with_those_names(episodes: list[Episode]) -> None:
    kinds = kinds_of(episodes)
    names = dict(zip(kinds, [*kinds[7:], *kinds[:7]], strict=True))
    lists = 0
    for game, episode in zip(GAMES, episodes, strict=True):
        copy = with_names(episode, names, 0)
        play = in_the_engine(game, names)
        for step in copy.steps:
            turn = play.step(step.action)
            assert (turn.observation, turn.won) == (step.observation, step.terminated)
            lists += ", and a" in turn.observation
        assert copy.success is episode.success
        assert names[AlfworldGoal.of(episode.scenario).target] in copy.scenario.instruction
    assert lists > 10


def test_every_copy_has_names_of_its_own(episodes: list[Episode]) -> None:
    copies = list(renamed(episodes, copies=3, seed=0))
    assert len(copies) == 3 * len(episodes)
    assert len({copy.scenario.id for copy in copies}) == len(copies)
    tasks = {copy.scenario.instruction for copy in copies[:3]}
    assert len(tasks) == 3
    assert all(copy.scenario.real == {} for copy in copies)
    assert list(renamed(episodes, 3, 0)) == copies
    assert list(renamed(episodes, 3, 1)) != copies


def test_lamps_and_receptacles_keep_their_names(episodes: list[Episode]) -> None:
    kinds = set(kinds_of(episodes))
    assert not kinds & (LAMPS | {"countertop", "drawer", "fridge"})
    for copy, episode in zip(renamed(episodes, 1, 0), episodes, strict=True):
        places = [place["name"] for place in episode.scenario.hidden["receptacles"]]
        assert [place["name"] for place in copy.scenario.hidden["receptacles"]] == places
        assert [s.action for s in copy.steps if s.action.startswith(("go", "open"))] == [
            s.action for s in episode.steps if s.action.startswith(("go", "open"))
        ]


def test_only_real_episodes_of_alfworld(episodes: list[Episode]) -> None:
    imagined = replace(episodes[0], source="model")
    with pytest.raises(DataError, match="expected real episodes of alfworld, got 'model'"):
        kinds_of([imagined])


def test_as_a_program(
    episodes: list[Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "real.jsonl", tmp_path / "renamed.jsonl"
    with EpisodeWriter(source) as writer:
        for episode in episodes:
            writer.write(episode)
    order = ["--data", str(source), "--output", str(target), "--copies"]
    assert main([*order, "2"]) == 0
    assert list(read_episodes(target)) == list(renamed(episodes, 2, 0))
    assert f"copies of {len(episodes)}" in capsys.readouterr().out
    assert main([*order, "0"]) == 2
    assert "--copies must be >= 1, got 0" in capsys.readouterr().err
    assert main(["--data", str(tmp_path / "none.jsonl"), "--output", str(target)]) == 2
    assert list(read_episodes(target)) == list(renamed(episodes, 2, 0))
