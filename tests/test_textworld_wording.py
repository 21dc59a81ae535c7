"""TextWorld as facts: every room of the real engine is told by what can change, and read back."""

from __future__ import annotations

import itertools
import re

import pytest

pytest.importorskip("textworld", reason="needs the textworld extra")

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.textworld_wording import Fact, Template, TemplateWording
from tests.textworld_shared import SPECS, scenario, walk

HIDDEN = {
    "player": "hall",
    "rooms": [
        {
            "name": "hall",
            "text": "A hall. You see a [box locked:locked|box open:open|closed] box."
            "[box open, full: It holds <box>.][box open, empty: It is empty!] And [desk full:<desk>"
            " on a desk][desk empty:a bare desk].\n\nThere is [gate open:an open|a closed] gate.",
            "exits": {"east": "shed"},
            "doors": {"east": "gate"},
        },
        {"name": "shed", "text": "A shed.", "exits": {"west": "hall"}, "doors": {"west": "gate"}},
    ],
    "doors": [
        {"name": "gate", "state": "locked", "text": "A gate. [open:Open|closed:Shut|Locked]."}
    ],
    "things": [
        {
            "name": "box",
            "type": "c",
            "where": ["at", "hall"],
            "states": ["closed"],
            "text": "A box.",
        },
        {"name": "desk", "type": "s", "where": ["at", "hall"], "states": [], "text": "The <noun>."},
        {"name": "egg", "type": "f", "where": ["in", "box"], "states": ["edible"], "text": "Yum."},
        {"name": "key", "type": "k", "where": ["in", "I"], "states": [], "text": "A key."},
    ],
    "keys": {"key": "gate"},
    "quests": [{"points": 1, "win": [[["on", "egg", "desk"]]], "lose": [[["eaten", "egg"]]]}],
}
FIRST = "-= Hall =-\nA hall. You see a closed box. And a bare desk.\n\nThere is a closed gate."
SCENARIO = Scenario("x", "textworld", "train", "Eat.", f"Eat.\n\n{FIRST}", (), HIDDEN)


def wording() -> TemplateWording:
    return TemplateWording(SCENARIO)


@pytest.mark.parametrize(
    ("action", "observation", "told"),
    [
        ("look", FIRST, "In @hall; box closed; desk: nothing; gate closed; floor: nothing"),
        (
            "look",
            "-= Hall =-\nA hall. You see a open box. It holds an egg and a key. And a cup on a "
            "desk.\n\nThere is an open gate.\n\nThere is a rat on the floor."
            "\n\nYour score has just gone up by one point.",
            "In @hall; box open: an egg and a key; desk: a cup; gate open; floor: a rat"
            "\n\nYour score has just gone up by one point.",
        ),
        ("look", FIRST.replace("closed box", "locked box"),
         "In @hall; box locked; desk: nothing; gate closed; floor: nothing"),
        ("examine gate", "A gate. Locked.", "See gate locked"),
        ("examine desk", "The desk.", "See desk: nothing"),
        (
            "examine desk",
            "The desk.\n\nOn the desk are an egg and a key.",
            "See desk: an egg and a key",
        ),
        ("x box", "A box.\n\nIn the box is an egg.", "See box: an egg"),
        ("examine fried egg", "Yum.", "See egg"),
        ("open can", "You open the can.", "You open the can."),
        # These are no descriptions that the context knows.
        ("examine egg", "You can't see any such thing.", "You can't see any such thing."),
        ("look", "-= Hall =-\nA changed hall.", "-= Hall =-\nA changed hall."),
        ("look", "-= Cave =-\nA cave.", "-= Cave =-\nA cave."),
    ],
)  # fmt: skip
def test_what_can_change_is_told_and_read_back(action: str, observation: str, told: str) -> None:
    assert wording().write(action, observation) == told
    assert wording().read(told) == observation


@pytest.mark.parametrize(
    "made_up",
    [
        "In @cave; floor: nothing",
        "In @hall",
        "In @hall; box",
        "In @hall; chest closed; floor: nothing",
        "In @hall; box ajar; floor: nothing",
        "In @hall; box closed; box open; floor: nothing",
        "In @hall; floor: nothing\nso\nIn @d",
        "See unicorn",
        "See box; desk",
        "See",
        "See ",
        "In @",
    ],
)
def test_facts_that_a_model_made_up_are_read_as_they_stand(made_up: str) -> None:
    if made_up == "In @hall; box":
        # What is left out reads as the template has it without.
        assert wording().read(made_up).startswith("-= Hall =-\nA hall. You see a closed box.")
    elif "\nso\n" in made_up:
        assert wording().read(made_up).endswith("\nso\nIn @d")
    else:
        assert wording().read(made_up) == made_up


def test_a_stutter_does_not_take_long() -> None:
    for text in ("-= Hall =-\n" + "\n" * 8000, FIRST + " on a desk" * 700):
        assert wording().write("look", text) == text
        assert wording().read(text) == text


def test_a_template_without_conditions_about_others() -> None:
    template = Template("It is [open:open|closed:shut|locked].", "box")
    assert template.match("It is shut.") == {"box": Fact("closed")}
    assert template.match("It is locked.") == {"box": Fact("locked")}
    assert template.match("It is gone.") is None
    assert template.render({"box": Fact("open")}) == "It is open."
    assert template.render({}) == "It is locked."


@pytest.mark.parametrize("kind", SPECS)
def test_rooms_of_the_engine_are_told_by_facts(kind: str) -> None:
    rooms = 0
    for seed in range(3):
        episode = TemplateWording(scenario(kind))
        for command, observation, _ in itertools.islice(walk(kind, seed), 25):
            told = episode.write(command, observation)
            assert TemplateWording(scenario(kind)).read(told) == observation
            if observation.startswith("-= "):
                rooms += 1
                assert re.match(r"In @[^;\n]+(?:; [^;\n]+)+", told)
    assert rooms
