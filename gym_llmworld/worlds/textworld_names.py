"""TextWorld's names as numbered kinds: a model that has never met ``kiwi`` writes ``food 7``.

The splits of TextWorld's cooking games differ in what there is to eat, and a small model misspells
names that it has not learned. In chats that pass through here every room, door and thing that has a
name of its own is called by its kind and a number of its own (anonymised entities: Hermann et al.,
arXiv 1506.03340, section 2.2)::

    take food 7 from box 2 @place 21

Numbers are drawn for each scenario, so that none of them says anything. What is said of a thing
stands behind commands, see `gym_llmworld.worlds.textworld_recall`; what commands are about (ovens,
knives) keeps its name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator

from gym_llmworld.core import Scenario

_KINDS = {
    "r": "place", "d": "door", "c": "box", "s": "top", "o": "thing", "f": "food", "k": "key",
}  # fmt: skip
"""By the types that have names of their own."""
_DRINK = "drink"
# Every cooking game calls them alike.
_KEPT = frozenset({"bbq", "BBQ", "stove", "oven", "toaster", "cookbook", "knife", "meal"})
_NUMBERS = 30


def numbered_kinds(scenario: Scenario) -> Callable[[str], str]:
    """Returns what exchanges the names of a scenario and their numbered kinds in a text.

    Both ways: what it makes of its own result is the text again.

    Args:
        scenario: With hidden context; without, texts stay as they are.
    """
    if not scenario.hidden:
        return str
    things = scenario.hidden["things"]
    drunk = {thing["name"] for thing in things if "drinkable" in thing.get("states", ())}
    names: dict[str, list[str]] = {}
    for kind, name in dict.fromkeys(named(scenario, _KEPT)):
        names.setdefault(_DRINK if kind == "f" and name in drunk else _KINDS[kind], []).append(name)
    rng = random.Random(scenario.id)
    other: dict[str, str] = {}
    for kind, called in names.items():
        numbers = rng.sample(range(1, max(_NUMBERS, len(called)) + 1), len(called))
        for name, number in zip(called, numbers, strict=True):
            # A text that says ``food 7`` itself must not mean the thing.
            other |= {name: f"{kind} {number}", f"{kind} {number}": name}
    if not other:
        return str
    any_of = "|".join(map(re.escape, sorted(other, key=len, reverse=True)))
    known = re.compile(rf"(?<![\w-])(?:{any_of})(?![\w-])")
    return lambda text: known.sub(lambda found: other[found[0]], text)


def named(scenario: Scenario, kept: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields type and name of everything in a scenario that may be called something else.

    Args:
        scenario: With hidden context.
        kept: Names of things that stay.
    """
    hidden = scenario.hidden
    yield from (("r", room["name"]) for room in hidden["rooms"])
    yield from (("d", door["name"]) for door in hidden["doors"])
    for thing in hidden["things"]:
        if thing["type"] in _KINDS and thing["name"] not in kept:
            yield thing["type"], thing["name"]
