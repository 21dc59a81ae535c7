"""Other names for rooms and things in real TextWorld episodes; see `training.renamed`.

A few hundred games have a few dozen names of rooms, and a world model that has met each of them
often tells rooms by heart: in new games it invents the exits of known rooms. In a copy, every room,
door and thing has another name of its kind, a third of them names that no game has. Food keeps
what was done to it, and what a command is about (ovens, knives) its name.

The engine's text depends on names in two ways, which copies follow: titles of rooms are
capitalised, and the article of a name is ``an`` before a vowel.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from gym_llmworld.core import Episode, Scenario
from gym_llmworld.worlds.textworld_names import named
from training.relabelled import check_source
from training.rewritten import rewritten

_FIXED = frozenset({"meal", "cookbook", "knife", "bbq", "BBQ", "refrigerator", "fridge"})
_INVENTED = 0.35
_ATTRIBUTES = (
    "messy", "tidy", "cold", "dim", "grey", "broken", "wide", "odd", "noisy", "roomy", "plain",
    "shiny", "tall", "old", "tiny", "hollow",
)  # fmt: skip

Names = dict[str, str]


def names_of(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yields type and name of everything in a scenario that may be called something else."""
    return named(scenario, _FIXED)


def renamed(episodes: Sequence[Episode], copies: int, seed: int) -> Iterator[Episode]:
    """Yields copies of every episode, each with names of its own.

    Args:
        episodes: Real ones of TextWorld.
        copies: Of each.
        seed: Of the names.

    Raises:
        DataError: An episode is of another world, or imagined.
    """
    known: dict[str, set[str]] = {}
    for episode in episodes:
        check_source(episode, "textworld")
        for kind, name in names_of(episode.scenario):
            known.setdefault(kind, set()).add(name)
    pools = {kind: sorted(names) for kind, names in known.items()}
    for number, episode in enumerate(episodes):
        for copy in range(copies):
            rng = random.Random(f"{seed}/{number}/{copy}")
            yield with_names(episode, _draw(episode.scenario, pools, rng), copy)


def _draw(scenario: Scenario, pools: Mapping[str, Sequence[str]], rng: random.Random) -> Names:
    names: Names = {}
    for kind, name in names_of(scenario):
        while name not in names:
            new = rng.choice(pools[kind])
            if rng.random() < _INVENTED:
                new = f"{rng.choice(_ATTRIBUTES)} {new.split(' ')[-1]}"
            if new not in names.values():
                names[name] = new
    return names


def with_names(episode: Episode, names: Mapping[str, str], copy: int) -> Episode:
    """Returns an episode in which rooms and things are called something else.

    Args:
        episode: A real one of TextWorld.
        names: Old name -> new name.
        copy: Number that the new scenario's id ends in.
    """
    return rewritten(episode, _changing(names), copy)


def _changing(names: Mapping[str, str]) -> Callable[[str], str]:
    spelled = {name.title(): new.title() for name, new in names.items()} | dict(names)
    any_of = "|".join(map(re.escape, sorted(spelled, key=len, reverse=True)))
    words = re.compile(rf"(?:\b([Aa])n? )?(?<![\w-])({any_of})(?![\w-])")

    def new(found: re.Match[str]) -> str:
        name = spelled[found[2]]
        if not found[1]:
            return name
        return f"{found[1]}{'n' if name[0].lower() in 'aeiou' else ''} {name}"

    return lambda text: words.sub(new, text)
