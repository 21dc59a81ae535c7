"""Actions with what is known about them: looked up by words, nothing lost, nothing made up."""

from __future__ import annotations

import re

from gym_llmworld.core import Completion, Scenario, Step
from gym_llmworld.protocol import Protocol
from gym_llmworld.worlds.changes import Pieces
from gym_llmworld.worlds.recall import Lookup, RecallWording, arguments, words_of

HALL = (
    "Hall:\n\ta lamp, which is off\n\ta red box. It is closed.\n\ta blue box\n\ta door to the shed"
)
SHED = "Shed:\n\ta rake"
BAG = "Bag:\n\tan orange"
SCENARIO = Scenario("x", "scienceworld", "train", "find it.", f"Find it!\n{HALL}")
PIECES = Pieces(
    head=re.compile(r"^(Hall|Shed|Bag):", re.MULTILINE),
    between=re.compile(r"\n\t?"),
    joint="\n\t",
)


def place_of(action: str, answer: str) -> str | None:
    return None if answer == BAG else PIECES.described(answer)


LOOKUP = Lookup(
    place=place_of,
    pieces=PIECES,
    known=lambda s: (s.observation, SHED, BAG),
    opened=lambda s: {"hall": ["\ta red box. It is open. In it is: a key."]},
    asked=lambda action, here: here if action == "look" else action.removeprefix("see "),
    idle=lambda action, answer: action.startswith(("smell", "go")) or answer == "No.",
    void=lambda answer: answer == "What?",
    carried="bag",
    goals=lambda s: ("polish a lamp", "", "polish a lamp", "Polish the rake."),
)


def wording() -> RecallWording:
    return RecallWording(SCENARIO, LOOKUP)


def test_words_and_what_an_action_names() -> None:
    assert words_of("A door to the Red-box 2 (that is open)") == {"red", "box", "2", "open"}
    assert arguments("move red box to shed") == [{"red", "box"}, {"shed"}]
    assert arguments("look") == arguments("look around") == []


def test_lines_are_those_with_most_words_in_common() -> None:
    episode = wording()
    assert episode.cue("take lamp") == " @hall\n- a lamp, which is off"
    assert episode.cue("take box") == " @hall\n- a red box. It is closed.\n- a blue box\n" + (
        "+ a red box. It is open. In it is: a key."
    )
    assert episode.cue("take blue box") == " @hall\n- a blue box"
    assert episode.cue("peel orange with rake") == " @hall\n- an orange"
    assert episode.cue("take moon") == " @hall"


def test_what_has_happened_is_known_where_it_matters() -> None:
    episode = wording()
    episode.write("open red box", "It is open.")
    episode.write("open red box", "It is open.")
    episode.write("smell lamp", "Oil.")
    episode.write("take moon", "What?")
    episode.write("kick lamp", "No.")
    assert episode.cue("take red box").endswith("\n* open red box")
    assert episode.cue("light lamp") == (
        " @hall\n- a lamp, which is off\n* smell lamp: Oil.\n* kick lamp: No."
    )
    episode.write("weigh lamp", "It weighs 2 pounds.")
    assert episode.cue("light lamp").endswith(
        "\n* kick lamp: No.\n* weigh lamp: It weighs 2 pounds. (1 ago)"
    )
    assert episode.cue("take moon") == " @hall"


def test_what_is_measured_again_is_told_by_the_difference() -> None:
    episode = wording()
    told = [
        episode.write("weigh lamp 7", text)
        for text in (
            "Lamp 7 weighs 2 pounds.",
            "Lamp 7 weighs 12 pounds.",
            "Lamp 7 weighs 9 pounds.",
            "Lamp 7 weighs -0 pounds.",
            "Lamp 7 is gone.",
        )
    ]
    assert told == [
        "Lamp 7 weighs 2 pounds.",
        "Lamp 7 weighs 2 +10 pounds.",
        "Lamp 7 weighs 12 -3 pounds.",
        # No sum is written so.
        "Lamp 7 weighs -0 pounds.",
        "Lamp 7 is gone.",
    ]
    assert episode.read(told[1]) == "Lamp 7 weighs 12 pounds."
    assert episode.read(told[2]) == "Lamp 7 weighs 9 pounds."
    # Another action, and numbers that are too long to be measured.
    assert episode.write("weigh rake", "Lamp 7 weighs 3 pounds.") == "Lamp 7 weighs 3 pounds."
    endless = f"It weighs {'9' * 5000} +1 pounds."
    assert episode.read(endless) == endless
    assert "Lamp 7 weighs -0 pounds. (3 ago)" in episode.cue("light lamp")


def test_a_look_is_told_with_all_that_may_have_changed() -> None:
    episode = wording()
    episode.write("open red box", "It is open.")
    episode.write("open red box", "It is open.")
    episode.write("kick lamp", "No.")
    # The first one: everything, what is inside what was opened, what was done.
    assert episode.cue("look") == (
        " @hall\n- a lamp, which is off\n- a red box. It is closed.\n- a blue box\n"
        "- a door to the shed\n+ a red box. It is open. In it is: a key.\n"
        "* open red box (2 times)"
    )
    now = HALL.replace("It is closed.", "It is open. In it is: a key.").replace("off", "on")
    assert episode.write("look", now) == (
        "In @hall\n- a lamp, which is off\n+ a lamp, which is on\n"
        "- a red box. It is closed.\n+ a red box. It is open. In it is: a key."
    )
    # Nothing is older than the last look; what was otherwise then may be again.
    assert episode.cue("look") == (
        " @hall\n- a lamp, which is on\n- a red box. It is open. In it is: a key."
    )
    episode.write("look", now + "\n\t3 rats")
    assert episode.cue("look") == " @hall\n- 3 rats"
    episode.write("take blue box", "Taken.")
    assert episode.cue("look") == " @hall\n- a red box. It is open. In it is: a key." + (
        "\n- a blue box\n- 3 rats\n* take blue box"
    )


def test_other_places_are_known_from_afar() -> None:
    episode = wording()
    assert episode.write("see shed", SHED) == "In @shed"
    assert episode.cue("see bag") == " @shed\n- an orange"
    episode.write("take rake", "Taken.")
    # What is there now was known where it was.
    assert episode.cue("see bag") == " @shed\n- an orange\n~ a rake\n* take rake @shed"
    assert episode.write("see bag", f"{BAG}\n\ta rake") == "In @bag\n+ a rake"
    episode.write("see hall", HALL)
    assert episode.cue("take rake") == " @hall\n- a rake\n* take rake @shed"
    episode.write("nail door to shed", "Done.")
    assert episode.cue("see shed").endswith("\n* nail door to shed @hall")


def test_how_a_number_has_changed_stands_behind_it() -> None:
    episode = wording()
    episode.write("weigh lamp", "It weighs 12 pounds.")
    episode.write("look", HALL)
    episode.write("weigh lamp", "It weighs 9 pounds.")
    assert episode.cue("weigh lamp").endswith(
        "\n* weigh lamp: It weighs 12 pounds. (3 ago)\n* weigh lamp: It weighs 9 pounds. -3 (1 ago)"
    )


def test_what_is_to_be_done_stands_behind_its_verb() -> None:
    episode, goals = wording(), "= polish a lamp\n= Polish the rake."
    assert episode.cue("polish lamp") == f" @hall\n- a lamp, which is off\n{goals}"
    episode.write("polish moon", "No.")
    assert episode.cue("polish lamp").endswith(f"\n* polish moon: No.\n{goals}")
    assert episode.cue("kick lamp") == " @hall\n- a lamp, which is off"


def test_a_long_stutter_is_not_told_again() -> None:
    episode = wording()
    episode.write("look", HALL + "\n\ta rat" * 1000)
    assert episode.cue("look") == " @hall"
    episode.write("take lamp", "x" * 1000)
    assert len(episode.cue("drop lamp")) < 200


def test_it_is_the_chat_that_the_protocol_asks_with() -> None:
    protocol = Protocol(
        "recall", lambda s: s.instruction, wording=lambda s: RecallWording(s, LOOKUP)
    )
    now = HALL.replace("off", "on")
    steps: list[Step] = []
    for action, answer, told in (
        ("light lamp", "It is on.", "It is on."),
        ("look", now, "In @hall\n- a lamp, which is off\n+ a lamp, which is on"),
        ("look", now, "In @hall"),
    ):
        # One step more each time, a fork, and a chat from nothing say the same.
        chats = [protocol.encode(SCENARIO, steps, action), protocol.encode(SCENARIO, steps, action)]
        protocol.encode(SCENARIO, [*steps, Step("kick lamp", "Ouch.")], action)
        chats.append(protocol.encode(SCENARIO, steps, action))
        assert chats[0] == chats[1] == chats[2]
        assert protocol.decode(SCENARIO, Completion(told, "stop"), steps).observation == answer
        steps.append(Step(action, answer))
    assert "".join(m.content for m in chats[0] if m.role == "user").count("* light lamp") == 1
