"""How TextWorld's generator words rooms and things, read from a scenario's hidden context.

A description has variants and slots: ``[box open, empty: It is empty!]``, ``[gate open:an open|a
closed]``; ``<box>`` stands for what the box holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gym_llmworld.core import Scenario

FIXTURES = frozenset({"c", "s", "oven", "stove", "toaster"})
"""Types of things that hold others and cannot be moved."""

_CUTS = ("sliced", "chopped", "diced")
_COOKED = ("fried", "roasted", "grilled")
LOCK_STATES = ("open", "closed", "locked")
# Where things are shows in the rooms, how food is prepared in its name; this shows nowhere else.
TOLD_STATES = ("edible", "sharp", "drinkable")
# Facts that no command changes.
_FIXED = re.compile(r"link|free|match|base|out|cooking_location|ingredient_\d|\w+_of")

# ``[box open, empty: It is empty!]``, ``[gate open:an open|a closed]``; ``<box>``: what it holds.
VARIANTS = re.compile(r"\[([^\]]*)\]")
CONDITION = re.compile(
    r"(?:(.+?) )?((?:open|closed|locked)(?:, (?:full|empty))?|full|empty):(.*)", re.DOTALL
)
# Where the wording of a variant is the same everywhere, there is nothing to look up.
_STATE = re.compile(
    r"an? (?:open|opened|closed|locked)|It is (?:open|closed|locked)\.|You can see inside it\.|"
    r"You can't see inside it because the lid's in your way\.|There is a lock on it\."
)
TITLE = re.compile(r"^-= (.+) =-$", re.MULTILINE)
TAIL = r"(?<!\n)\n+(?:Your score has |\*\*\* )"
"""Where what follows is no description any more: the score, the end."""
GO = re.compile(r"go (north|east|south|west)")
_MOVED = "take|pick up|put|drop|eat|drink"
_LOCKED = "open|close|lock|unlock"
_DONE = "fry|fried|roast|roasted|grill|grilled|burn|burned|cook|cooked|chop|slice|dice|cut"
DONE = re.compile(
    rf"(?:You (?:(?P<moved>{_MOVED})|(?P<locked>{_LOCKED})(?! the copy)|{_DONE})|"
    r"(?P<made>Adding))\b"
    r"(?:(?!, revealing)[^\n])*"
)
"""What an answer says has happened: where a thing is now, how it stands, or what was done to it."""
_POINTS = re.compile(r"Your score has just gone up by (\w+) points?\.")
_COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
SLOT = re.compile(r"<([^>]*)>")

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


def place_of(observation: str) -> str | None:
    """Returns the room whose title an observation shows, in lower case; None without a title."""
    titles = TITLE.findall(observation)
    return titles[-1].lower() if titles else None


def points_in(observation: str) -> int:
    """Returns how many points an observation says have been won."""
    return sum(_COUNTS.get(count, 0) for count in _POINTS.findall(observation))


def states_of(hidden: Mapping[str, Any]) -> dict[str, str]:
    """Returns of each door and thing what conditions may ask: ``open full``."""
    states = {door["name"]: door["state"] for door in hidden["doors"]}
    for thing in hidden["things"]:
        shown = [state for state in thing["states"] if state in LOCK_STATES]
        filled = "full" if held_by(thing, hidden["things"]) else "empty"
        states[thing["name"]] = " ".join([*shown, filled])
    return states


def held_by(holder: Thing, things: Sequence[Thing]) -> list[Thing]:
    """Returns what lies in or on a thing, in the engine's order."""
    return [thing for thing in things if thing["where"] and thing["where"][1] == holder["name"]]


def first_looks(scenario: Scenario) -> Iterator[str]:
    """Yields of each room what looking around shows at first."""
    hidden = scenario.hidden
    if "rooms" in hidden:
        states = states_of(hidden)
        for room in hidden["rooms"]:
            yield room_look(room, hidden["things"], states)[0]


def room_look(
    room: Mapping[str, Any], things: Sequence[Thing], states: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Returns what a room shows at first, and what can take the place of its sentences."""
    others: list[str] = []
    held = {thing["name"]: listing(held_by(thing, things)) for thing in things}
    text = VARIANTS.sub(lambda match: shown(match[1], "", states, others), room["text"])
    lines = [f"-= {room['name'].title()} =-"]
    lines.append(SLOT.sub(lambda match: held.get(match[1], match[0]), text).strip())
    floor = [thing for thing in here(room, things) if thing["type"] not in FIXTURES]
    if floor:
        lines.append(f"\nThere is {listing(floor)} on the floor.")
    return "\n".join(lines), others


def here(room: Mapping[str, Any], things: Sequence[Thing]) -> list[Thing]:
    """Returns what stands or lies in a room, in nothing else."""
    return [thing for thing in things if thing["where"] == ["at", room["name"]]]


def shown(variants: str, noun: str, states: Mapping[str, str], others: list[str]) -> str:
    """Returns the variant of a sentence that shows at first; notes the others.

    Conditions that name nothing are about ``noun``.
    """
    shown = None
    for variant in variants.split("|"):
        match = CONDITION.fullmatch(variant)
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


def ways(room: Mapping[str, Any]) -> Iterator[str]:
    """Words the map in the words of the chat: the action with its place, then the title there."""
    for way, other in room["exits"].items():
        yield f"go {way} @{room['name'].lower()}"
        yield f"-= {other.title()} =- {room['doors'].get(way, '.')}"


def endings(quests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields what wins, with its points, and what loses."""
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
