"""TextWorld: interactive fiction of rooms, doors and things (Cote et al., 2018).

Prompt styles:

* ``engine``, for the embedded models, with hidden context: every room's description with its
  variants, what lies where in the engine's words and order, and what wins or loses, so that going
  somewhere or opening something is copying.
* ``nomap``, for the embedded models, without: the first observation, as the player sees it.
* ``numbered`` and ``numbered_nomap``: the same with numbered sentences, see
  `gym_llmworld.worlds.numbered`. The embedded model does not know them yet.
* ``word2world``, byte for byte the context of the published checkpoints (Word2World, appendix A.4):
  the first observation with the interpreter's banner and status line, and the admissible commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.protocol import Placed
from gym_llmworld.worlds.base import World
from gym_llmworld.worlds.numbered import NumberedWording, Pieces, number_all
from gym_llmworld.worlds.textworld_agents import TEXTWORLD_AGENTS

FIXTURES = frozenset({"c", "s", "oven", "stove", "toaster"})
"""Types of things that hold others and cannot be moved."""

_CUTS = ("sliced", "chopped", "diced")
_COOKED = ("fried", "roasted", "grilled")
_LOCK_STATES = ("open", "closed", "locked")
# Where things are shows in the rooms, how food is prepared in its name; this shows nowhere else.
_TOLD_STATES = ("edible", "sharp", "drinkable")
# Facts that no command changes.
_FIXED = re.compile(r"link|free|match|base|out|cooking_location|ingredient_\d|\w+_of")

# ``[box open, empty: It is empty!]``, ``[gate open:an open|a closed]``; ``<box>``: what it holds.
_VARIANTS = re.compile(r"\[([^\]]*)\]")
_CONDITION = re.compile(
    r"(?:(.+?) )?((?:open|closed|locked)(?:, (?:full|empty))?|full|empty):(.*)", re.DOTALL
)
# Where the wording of a variant is the same everywhere, there is nothing to look up.
_STATE = re.compile(
    r"an? (?:open|opened|closed|locked)|It is (?:open|closed|locked)\.|You can see inside it\.|"
    r"You can't see inside it because the lid's in your way\.|There is a lock on it\."
)
_TITLE = re.compile(r"^-= (.+) =-$", re.MULTILINE)
_SLOT = re.compile(r"<([^>]*)>")

Thing = Mapping[str, Any]


def printed_name(thing: Thing) -> str:
    """Returns what the engine calls a thing in its lists: ``diced fried carrot``."""
    states = set(thing["states"])
    words = [cut for cut in _CUTS if cut in states]
    if "needs_cooking" in states:
        words.append("raw")
    elif "burned" in states:
        words.append("burned")
    else:
        words += [way for way in _COOKED if way in states]
    return " ".join([*words, thing["name"]])


def listing(things: Sequence[Thing]) -> str:
    """Words a list of things as the engine does: ``a fork, an egg and a raw pork chop``."""
    if not things:
        return "nothing"
    names = [_with_article(printed_name(thing)) for thing in things]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def numbered_context(scenario: Scenario) -> str:
    """Words a scenario as `engine_context` does, with numbers in the rooms' first looks."""
    return _context(scenario, number_all(SENTENCES, first_looks(scenario)))


def engine_context(scenario: Scenario) -> str:
    """Words a scenario for the embedded models: map, rooms, doors, things, what counts, the quest.

    A room stands as it shows at first, so that going there is copying; below it, what can take the
    place of its sentences, and what its containers hold. Of the map there is one line for each way.
    """
    return _context(scenario, [look for _, look in first_looks(scenario)])


def _context(scenario: Scenario, looks: Sequence[str]) -> str:
    hidden = scenario.hidden
    states = _states(hidden)
    carried = [t for t in hidden["things"] if t["where"] == ["in", "I"]]
    rooms = [(room, hidden["things"], states) for room in hidden["rooms"]]
    blocks = [
        "\n".join(way for room in hidden["rooms"] for way in _ways(room)),
        *("\n".join((look, *_room_lines(*room))) for look, room in zip(looks, rooms, strict=True)),
        "\n".join(_belongings(hidden, carried, states)),
        "\n".join(_endings(hidden["quests"])),
        f"You are in the {hidden['player']}. {scenario.instruction}".strip(),
    ]
    return "\n\n".join(block for block in blocks if block)


def _ways(room: Mapping[str, Any]) -> Iterator[str]:
    """Words the map in the words of the chat: the action with its place, then the title there."""
    for way, other in room["exits"].items():
        yield f"go {way} @{room['name'].lower()}"
        yield f"-= {other.title()} =- {room['doors'].get(way, '.')}"


def place_of(observation: str) -> str | None:
    """Returns the room whose title an observation shows, in lower case; None without a title."""
    titles = _TITLE.findall(observation)
    return titles[-1].lower() if titles else None


SENTENCES = Pieces(
    head=_TITLE,
    joint=" ",
    begins=re.compile(r"(?<=[.!?]) (?=\S)|\n+"),
    tail=re.compile(r"\n+(?:Your score has |\*\*\* )"),
)


def is_lost(observation: str) -> bool:
    """Returns whether an observation ends the game without a win."""
    return "*** You lost! ***" in observation.splitlines()


def _states(hidden: Mapping[str, Any]) -> dict[str, str]:
    """Returns of each door and thing what conditions may ask: ``open full``."""
    states = {door["name"]: door["state"] for door in hidden["doors"]}
    for thing in hidden["things"]:
        shown = [state for state in thing["states"] if state in _LOCK_STATES]
        filled = "full" if _held(thing, hidden["things"]) else "empty"
        states[thing["name"]] = " ".join([*shown, filled])
    return states


def _held(holder: Thing, things: Sequence[Thing]) -> list[Thing]:
    return [thing for thing in things if thing["where"] and thing["where"][1] == holder["name"]]


def first_looks(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yields of each room its name, in lower case, and what looking around shows at first."""
    hidden = scenario.hidden
    if "rooms" in hidden:
        states = _states(hidden)
        for room in hidden["rooms"]:
            yield room["name"].lower(), _look(room, hidden["things"], states)[0]


def _look(
    room: Mapping[str, Any], things: Sequence[Thing], states: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Returns what a room shows at first, and what can take the place of its sentences."""
    others: list[str] = []
    held = {thing["name"]: listing(_held(thing, things)) for thing in things}
    text = _VARIANTS.sub(lambda match: _shown(match[1], "", states, others), room["text"])
    lines = [f"-= {room['name'].title()} =-"]
    lines.append(_SLOT.sub(lambda match: held.get(match[1], match[0]), text).strip())
    floor = [thing for thing in _here(room, things) if thing["type"] not in FIXTURES]
    if floor:
        lines.append(f"\nThere is {listing(floor)} on the floor.")
    return "\n".join(lines), others


def _here(room: Mapping[str, Any], things: Sequence[Thing]) -> list[Thing]:
    return [thing for thing in things if thing["where"] == ["at", room["name"]]]


def _room_lines(
    room: Mapping[str, Any], things: Sequence[Thing], states: Mapping[str, str]
) -> Iterator[str]:
    """Yields what stands below a room's first look."""
    yield from _look(room, things, states)[1]
    for holder in _here(room, things):
        if holder["type"] in FIXTURES:
            locks = [state for state in holder["states"] if state in _LOCK_STATES]
            contents = listing(_held(holder, things))
            yield f"{', '.join([holder['name'], *locks])}: {contents}"


def _shown(variants: str, noun: str, states: Mapping[str, str], others: list[str]) -> str:
    """Returns the variant of a sentence that shows at first; notes the others.

    Conditions that name nothing are about ``noun``.
    """
    shown = None
    for variant in variants.split("|"):
        match = _CONDITION.fullmatch(variant)
        subject, wanted, text = match.groups() if match else (None, "", variant)
        subject = subject or noun
        true = set(wanted.replace(",", "").split()) <= set(states.get(subject, "").split())
        if shown is None and true:
            shown = text
        elif text.strip() and not _STATE.fullmatch(text.strip()):
            others.append(
                f"{subject} {wanted}: {text.strip()}" if match else f"else: {text.strip()}"
            )
    return shown or ""


def _belongings(
    hidden: Mapping[str, Any], carried: Sequence[Thing], states: Mapping[str, str]
) -> Iterator[str]:
    yield f"carried: {listing(carried)}"
    for noun in (*hidden["doors"], *hidden["things"]):
        told = [state for state in noun.get("states", ()) if state in _TOLD_STATES]
        told = [noun["state"]] if "state" in noun else told
        others: list[str] = []
        name = noun["name"]
        text = _VARIANTS.sub(lambda match: _shown(match[1], name, states, others), noun["text"])  # noqa: B023
        yield f"{', '.join([name, *told])}: {text}"
        yield from others
    for key, locked in hidden["keys"].items():
        yield f"{key} opens {locked}"


def _endings(quests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for quest in quests:
        for event in quest["win"]:
            yield f"+{quest['points']}: {_conditions(event)}"
    # One line for all that must not happen to a thing: ``lost: carrot burned, fried, chopped``.
    lost: dict[str, list[str]] = {}
    for event in (event for quest in quests for event in quest["lose"]):
        subject, _, state = _conditions(event).rpartition(" ")
        lost.setdefault(subject, []).append(state)
    for subject, states in lost.items():
        yield f"lost: {subject} {', '.join(dict.fromkeys(states))}"


def _conditions(event: Sequence[Sequence[str]]) -> str:
    return " and ".join(_condition(fact) for fact in event if not _FIXED.fullmatch(fact[0]))


def _condition(fact: Sequence[str]) -> str:
    predicate, *names = fact
    if predicate == "at" and names[0] == "P":
        return f"you in {names[1]}"
    if predicate == "in" and names[1:] == ["I"]:
        return f"{names[0]} carried"
    return f"{names[0]} {predicate} {' '.join(names[1:])}".strip()


def nomap_context(scenario: Scenario) -> str:
    """Words a scenario without hidden context: the first observation."""
    return scenario.observation


def numbered_nomap_context(scenario: Scenario) -> str:
    """Words a scenario without hidden context: the first observation, with numbers."""
    numbered = number_all(SENTENCES, first_observation(scenario))
    return numbered[0] if numbered else scenario.observation


def first_observation(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yields the first room's name, in lower case, and the first observation."""
    place = place_of(scenario.observation)
    if place is not None:
        yield place, scenario.observation


def word2world_context(scenario: Scenario) -> str:
    """Words a scenario as Word2World's TextWorld checkpoints were trained to read it.

    Source: the released context files; AgentGym's client joins the commands with comma and blank.
    """
    raw = scenario.hidden.get("raw", scenario.observation)
    return f"{raw}\nAVAILABLE ACTIONS: {', '.join(scenario.admissible or ())}"


WORLD = World(
    key="textworld",
    title="TextWorld",
    rejection="That's not a verb I recognise.",
    contexts={
        "engine": engine_context,
        "nomap": nomap_context,
        "numbered": numbered_context,
        "numbered_nomap": numbered_nomap_context,
        "word2world": word2world_context,
    },
    ends=is_lost,
    wordings={
        **dict.fromkeys(("engine", "nomap"), partial(Placed, place=place_of)),
        "numbered": partial(NumberedWording, place=place_of, pieces=SENTENCES, known=first_looks),
        "numbered_nomap": partial(
            NumberedWording, place=place_of, pieces=SENTENCES, known=first_observation
        ),
    },
    agents=TEXTWORLD_AGENTS,
    real_entry_point="gym_llmworld.real.textworld_env:TextWorldEnv",
    games_module="gym_llmworld.real.textworld_scenarios",
    extra="textworld",
    splits=("train", "valid", "test"),
    embedded=True,
)
