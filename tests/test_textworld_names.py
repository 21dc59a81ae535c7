"""Numbered kinds for TextWorld's names: there and back, and none that a player makes up."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

pytest.importorskip("textworld", reason="needs the textworld extra")

from gym_llmworld.core import Completion, Step
from gym_llmworld.worlds.textworld import WORLD
from gym_llmworld.worlds.textworld_names import numbered_kinds
from tests.test_textworld_wording import FIRST, SCENARIO
from tests.textworld_shared import SPECS, scenario, walk


def test_every_name_gets_its_kind_and_a_number() -> None:
    renamed = numbered_kinds(SCENARIO)
    told = renamed("insert egg into box @hall\n- key opens gate, desk; the eggs, a big-box")
    assert re.fullmatch(
        r"insert food \d+ into box \d+ @place \d+\n- key \d+ opens door \d+, top \d+; "
        r"the eggs, a big-box",
        told,
    )
    assert renamed(told).startswith("insert egg into box @hall")
    # Whoever is told of the same scenario is told the same.
    assert numbered_kinds(replace(SCENARIO))(told) == renamed(told)
    others = {numbered_kinds(replace(SCENARIO, id=f"x/{i}"))("egg") for i in range(20)}
    assert len(others) > 5


def test_without_hidden_context_names_stay() -> None:
    assert numbered_kinds(replace(SCENARIO, hidden={}))("open box in hall") == "open box in hall"


def test_a_player_who_says_a_number_does_not_name_the_thing() -> None:
    protocol, number = WORLD.protocol("recall"), numbered_kinds(SCENARIO)("key")
    asked = protocol.encode(SCENARIO, (), f"drop {number}")[-1].content
    assert asked.splitlines()[0].startswith("drop key @")
    assert number not in asked.splitlines()[0]
    answer = "I only understood you as far as wanting to drop the key."
    heard = protocol.decode(SCENARIO, Completion(answer, "stop"), ())
    # The engine quotes what it was told.
    assert heard.observation == answer.replace("key", number)


def test_what_a_model_writes_is_read_in_the_names_of_the_world() -> None:
    protocol, renamed = WORLD.protocol("recall"), numbered_kinds(SCENARIO)
    told = renamed("You drop the key on the ground.")
    prediction = protocol.decode(SCENARIO, Completion(told, "stop"), ())
    assert prediction.observation == "You drop the key on the ground."
    room = protocol.decode(SCENARIO, Completion(renamed("At @hall; box open"), "stop"), ())
    assert room.observation == FIRST.replace("closed box", "open box").replace(
        " box.", " box. It holds an egg."
    )
    # Nothing that a name stands for may become a token of the chat.
    hidden = {**SCENARIO.hidden, "rooms": [], "doors": [], "things": [
        {"name": "end|>", "type": "k", "where": ["in", "I"], "states": [], "text": "A key."}
    ]}  # fmt: skip
    odd = replace(SCENARIO, hidden=hidden)
    number = numbered_kinds(odd)("end|>")
    heard = protocol.decode(odd, Completion(f"<|{number}", "stop"), ())
    assert "<|end|>" not in heard.observation
    assert "<|end|>" not in protocol.encode(odd, (), f"drop <|{number}")[-1].content


@pytest.mark.parametrize("kind", SPECS)
def test_episodes_of_the_engine_come_back(kind: str) -> None:
    protocol, start = WORLD.protocol("recall"), scenario(kind)
    things = start.hidden["things"]
    renamed = numbered_kinds(start)
    own = [thing["name"] for thing in things if renamed(thing["name"]) != thing["name"]]
    steps: list[Step] = []
    for command, observation, _ in walk(kind, 1):
        _, label = protocol.lesson(start, steps, Step(command, observation))
        heard = protocol.decode(start, Completion(label, "stop"), tuple(steps))
        assert heard.observation == observation
        assert not any(re.search(rf"(?<![\w-]){re.escape(name)}(?! \d)\b", label) for name in own)
        steps.append(Step(command, observation))
