"""TextWorld episodes with other names: all that the engine says follows the names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("textworld", reason="needs the textworld extra")

from gym_llmworld.core import Episode, Step
from gym_llmworld.episodes import read_episodes, write_episodes
from gym_llmworld.errors import DataError
from gym_llmworld.worlds.textworld import WORLD
from tests.textworld_shared import SPECS, scenario, walk
from training import renamed as program
from training.renamed_textworld import names_of, renamed, with_names


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [
        Episode(
            scenario(kind),
            tuple(Step(action, observation) for action, observation, _ in walk(kind, seed=1)),
            "real",
            "random",
        )
        for kind in SPECS
    ]


def test_rooms_are_worded_by_what_the_new_context_says(episodes: list[Episode]) -> None:
    protocol = WORLD.protocol("recall")
    rooms = 0
    for copy in renamed(episodes, copies=3, seed=0):
        told = protocol.conversation(copy)[2::2]
        for step, message in zip(copy.steps, told, strict=True):
            if step.observation.startswith("-= "):
                rooms += 1
                assert "At @" in message.content
                assert "-= " not in message.content
    assert rooms > 30


def test_names_change_everywhere_and_back(episodes: list[Episode]) -> None:
    for episode in episodes:
        names = {name: f"new {name}" for _, name in names_of(episode.scenario)}
        copy = with_names(episode, names, 0)
        assert {name for _, name in names_of(copy.scenario)} == set(names.values())
        back = with_names(copy, {new: old for old, new in names.items()}, 0)
        assert back.steps == episode.steps
        assert back.scenario.hidden == episode.scenario.hidden
        assert back.scenario.observation == episode.scenario.observation


def test_articles_and_titles_follow_the_name(episodes: list[Episode]) -> None:
    made = replace(
        episodes[0],
        scenario=replace(
            episodes[0].scenario,
            hidden={
                "rooms": [{"name": "attic"}],
                "doors": [],
                "things": [{"type": "k", "name": "old key"}, {"type": "f", "name": "meal"}],
            },
        ),
        steps=(Step("take old key", "-= Attic =-\nAn attic. You see an old key and a meal."),),
    )
    copy = with_names(made, {"attic": "shed", "old key": "tiny egg"}, 0)
    assert copy.steps == (
        Step("take tiny egg", "-= Shed =-\nA shed. You see a tiny egg and a meal."),
    )
    assert [name for _, name in names_of(made.scenario)] == ["attic", "old key"]
    copy = with_names(made, {"attic": "igloo", "old key": "apple"}, 0)
    assert copy.steps[0].observation == "-= Igloo =-\nAn igloo. You see an apple and a meal."


def test_every_copy_has_names_of_its_own(episodes: list[Episode]) -> None:
    copies = list(renamed(episodes[:1], copies=4, seed=0))
    assert copies == list(renamed(episodes[:1], copies=4, seed=0))
    assert len({copy.scenario.hidden["player"] for copy in copies}) > 1
    assert len({copy.scenario.id for copy in copies}) == 4
    for copy in copies:
        assert not copy.scenario.real
        names = [name for _, name in names_of(copy.scenario)]
        assert len(set(names)) == len(set(names_of(episodes[0].scenario)))


def test_the_program_sees_which_world_it_is(
    episodes: list[Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_episodes(tmp_path / "real.jsonl", episodes)
    made = tmp_path / "made.jsonl"
    assert program.main(["--data", str(tmp_path / "real.jsonl"), "--output", str(made)]) == 0
    assert len(list(read_episodes(made))) == 4 * len(episodes)
    imagined = [replace(episodes[0], source="model")]
    with pytest.raises(DataError, match="expected real episodes of textworld, got 'model'"):
        list(renamed(imagined, 1, 0))
