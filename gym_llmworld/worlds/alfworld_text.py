"""How ALFWorld's engine words lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

TASK_PREFIX = "Your task is to: "


def listing(names: Sequence[str]) -> str:
    """Words a list of things as the engine does: ``a mug 1``, ``a book 2, and a pen 1``."""
    if not names:
        return "nothing"
    phrases = [f"a {name}" for name in names]
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + f", and {phrases[-1]}"


def in_engine_order(names: Iterable[str]) -> list[str]:
    """Sorts things as the engine lists them: by kind, the highest number of a kind first."""
    return sorted(names, key=_place_in_list)


def _place_in_list(name: str) -> tuple[str, int]:
    kind, _, number = name.rpartition(" ")
    return kind, -int(number)
