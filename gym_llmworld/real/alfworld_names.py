"""How ALFWorld names things: PDDL ids on one side, ``cabinet 3`` on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_MANGLED = (
    ("-", "_minus_"),
    ("#", "-"),
    ("|", "_bar_"),
    ("+", "_plus_"),
    (".", "_dot_"),
    (",", "_comma_"),
)


def mangle(text: str) -> str:
    """Writes AI2-THOR ids as PDDL allows, and the ``#`` of type declarations as ``-``."""
    for character, word in _MANGLED:
        text = text.replace(character, word)
    return text


def names_of(ids: Iterable[str]) -> dict[str, str]:
    """Returns the name of each PDDL id, as the engine shows it.

    Things of one kind are numbered downwards in the order of their ids. An id without a position
    (a type, the agent) keeps its name, with a trailing blank, as in ALFWorld.

    Args:
        ids: All ids of a game; numbers depend on every one of them. PDDL knows no capitals.
    """
    kinds = {name: _kind(name) for name in ids}
    left = Counter(kind for name, kind in kinds.items() if "_bar_" in name)
    names = {}
    for name in sorted(kinds, key=str.lower):
        kind = kinds[name]
        if "_bar_" not in name:
            names[name] = f"{kind} "
            continue
        names[name] = f"{kind} {left[kind]}"
        left[kind] -= 1
    return names


def _kind(name: str) -> str:
    kind = name.lower().split("_bar_", 1)[0]
    return f"{kind}basin" if "basin" in name.lower() else kind
