"""Gives things in real episodes other names, so that models read names instead of knowing them.

    python -m training.renamed --data episodes.jsonl --output renamed.jsonl --copies 4 --seed 0
    python -m training.sft --role agent --data episodes.jsonl renamed.jsonl --output runs/agent

A small agent that sees a few thousand episodes in a hundred rooms of ALFWorld learns by heart what
is taken where, and in rooms that it has not seen it searches well and takes the wrong thing. In a
copy, all kinds of object have changed names with each other, by a permutation of its own: the apple
that was to be cooled is a newspaper from the task to the last command. Nothing but the task says
then what to take. What the engine would answer is the same, apart from what a kind of object can do
(knives cut) and where it is usually found; so a part of the episodes should keep its names.
(Renaming that
leaves the label right is data augmentation as of entities in reading comprehension, Hermann et
al., arXiv 1506.03340, section 2.2.)

So it is with a world model of TextWorld and the rooms of a few hundred games, whose episodes get
other names in `training.renamed_textworld`. The new scenarios cannot be started in the engine.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gym_llmworld.core import Episode
from gym_llmworld.episodes import read_episodes, write_episodes
from gym_llmworld.errors import WorldModelError
from gym_llmworld.worlds.alfworld_belief import AlfworldBelief, kind_of
from gym_llmworld.worlds.alfworld_text import in_engine_order, listing
from training import renamed_textworld
from training.relabelled import check_source
from training.rewritten import rewritten

LAMPS = frozenset({"desklamp", "floorlamp"})
"""What these can do is what a task is about; they keep their names."""

_THING = re.compile(r"\b[a-z]+ \d+")
_LIST = re.compile(r"a [a-z]+ \d+(?:, a [a-z]+ \d+)*, and a [a-z]+ \d+")
"""What the engine enumerates: kinds by the alphabet, the highest number of a kind first."""


def kinds_of(episodes: Iterable[Episode]) -> list[str]:
    """Returns the kinds of object that may change names, sorted: neither lamps nor receptacles.

    Raises:
        DataError: An episode is of another world, or imagined.
    """
    things, places = set[str](), set[str]()
    for episode in episodes:
        check_source(episode)
        belief = AlfworldBelief.from_hidden(episode.scenario.hidden)
        things.update(map(kind_of, belief.things()))
        places.update(map(kind_of, belief.places))
    return sorted(things - places - LAMPS)


def with_names(episode: Episode, names: Mapping[str, str], copy: int) -> Episode:
    """Returns an episode in which kinds of object are called something else.

    Args:
        episode: A real one of ALFWorld.
        names: Old name -> new name, a permutation.
        copy: Number that the new scenario's id ends in.
    """
    words = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b")

    def renamed(text: str) -> str:
        return _LIST.sub(_sorted_list, words.sub(lambda found: names[found[0]], text))

    copied = rewritten(episode, renamed, copy)
    hidden = _sorted_contents(copied.scenario.hidden)
    return replace(copied, scenario=replace(copied.scenario, hidden=hidden))


def _sorted_list(found: re.Match[str]) -> str:
    return listing(in_engine_order(_THING.findall(found[0])))


def _sorted_contents(hidden: Mapping[str, Any]) -> dict[str, Any]:
    places = [
        {**place, "contents": in_engine_order(place["contents"])} for place in hidden["receptacles"]
    ]
    return {**hidden, "receptacles": places}


def renamed(episodes: Sequence[Episode], copies: int, seed: int) -> Iterator[Episode]:
    """Yields copies of every episode, each with names of its own.

    Args:
        episodes: Real ones of ALFWorld.
        copies: Of each.
        seed: Of the names.

    Raises:
        DataError: An episode is of another world, or imagined.
    """
    kinds = kinds_of(episodes)
    for number, episode in enumerate(episodes):
        for copy in range(copies):
            others = random.Random(f"{seed}/{number}/{copy}").sample(kinds, len(kinds))
            yield with_names(episode, dict(zip(kinds, others, strict=True)), copy)


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.renamed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = built.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="FILE", help="real episodes")
    add("--output", type=Path, required=True, metavar="FILE", help="JSON Lines; replaced")
    add("--copies", type=int, default=4, help="of each episode (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the names (default: %(default)s)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = parser().parse_args(argv)
    if options.copies < 1:
        print(f"error: --copies must be >= 1, got {options.copies}", file=sys.stderr)
        return 2
    try:
        episodes = [episode for file in options.data for episode in read_episodes(file)]
        textworld = any(episode.scenario.world == "textworld" for episode in episodes)
        give_names = renamed_textworld.renamed if textworld else renamed
        made = give_names(episodes, options.copies, options.seed)
        count = write_episodes(options.output, made)
    except (WorldModelError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {count} episodes, copies of {len(episodes)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
