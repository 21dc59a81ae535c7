"""TextWorld: interactive fiction of rooms, doors and things (Cote et al., 2018).

Prompt styles:

* ``engine``, with hidden context: every room's description with its variants, what lies where in
  the engine's words and order, and what wins or loses, so that going somewhere is copying.
* ``nomap``, without: the first observation, as the player sees it.
* ``recall``, for the embedded model: the quest alone. What is known, hidden context included,
  stands behind each command that names it (`gym_llmworld.worlds.textworld_recall`), and names are
  numbered kinds (`gym_llmworld.worlds.textworld_names`).
* ``recall-nomap``, for the embedded model, as ``nomap``, with what was shown so far behind each
  command; see `gym_llmworld.worlds.textworld_walked`.
* ``word2world``, byte for byte the context of the published checkpoints (Word2World, appendix A.4):
  the first observation with the interpreter's banner and status line, and the admissible commands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.protocol import Placed
from gym_llmworld.worlds.base import World
from gym_llmworld.worlds.textworld_agents import TEXTWORLD_AGENTS
from gym_llmworld.worlds.textworld_names import numbered_kinds
from gym_llmworld.worlds.textworld_recall import RecallWording
from gym_llmworld.worlds.textworld_text import (
    FIXTURES,
    LOCK_STATES,
    TOLD_STATES,
    VARIANTS,
    Thing,
    endings,
    first_looks,
    held_by,
    here,
    listing,
    place_of,
    room_look,
    shown,
    states_of,
    ways,
)
from gym_llmworld.worlds.textworld_walked import WalkedWording


def engine_context(scenario: Scenario) -> str:
    """Words a scenario for the embedded models: map, rooms, doors, things, what counts, the quest.

    A room stands as it shows at first, so that going there is copying; below it, what can take the
    place of its sentences, and what its containers hold. Of the map there is one line for each way.
    """
    hidden = scenario.hidden
    states = states_of(hidden)
    carried = [t for t in hidden["things"] if t["where"] == ["in", "I"]]
    rooms = zip(first_looks(scenario), hidden["rooms"], strict=True)
    blocks = [
        "\n".join(way for room in hidden["rooms"] for way in ways(room)),
        *("\n".join((look, *_room_lines(room, hidden["things"], states))) for look, room in rooms),
        "\n".join(_belongings(hidden, carried, states)),
        "\n".join(endings(hidden["quests"])),
        f"You are in the {hidden['player']}. {scenario.instruction}".strip(),
    ]
    return "\n\n".join(block for block in blocks if block)


def is_lost(observation: str) -> bool:
    """Returns whether an observation ends the game without a win."""
    return "*** You lost! ***" in observation.splitlines()


def _room_lines(
    room: Mapping[str, Any], things: Sequence[Thing], states: Mapping[str, str]
) -> Iterator[str]:
    """Yields what stands below a room's first look."""
    yield from room_look(room, things, states)[1]
    for holder in here(room, things):
        if holder["type"] in FIXTURES:
            locks = [state for state in holder["states"] if state in LOCK_STATES]
            contents = listing(held_by(holder, things))
            yield f"{', '.join([holder['name'], *locks])}: {contents}"


def _belongings(
    hidden: Mapping[str, Any], carried: Sequence[Thing], states: Mapping[str, str]
) -> Iterator[str]:
    yield f"carried: {listing(carried)}"
    for noun in (*hidden["doors"], *hidden["things"]):
        told = [state for state in noun.get("states", ()) if state in TOLD_STATES]
        told = [noun["state"]] if "state" in noun else told
        others: list[str] = []
        name = noun["name"]
        text = VARIANTS.sub(lambda match: shown(match[1], name, states, others), noun["text"])  # noqa: B023
        yield f"{', '.join([name, *told])}: {text}"
        yield from others
    for key, locked in hidden["keys"].items():
        yield f"{key} opens {locked}"


def recall_context(scenario: Scenario) -> str:
    """Words a scenario for `RecallWording`: the quest."""
    return scenario.instruction


def nomap_context(scenario: Scenario) -> str:
    """Words a scenario without hidden context: the first observation."""
    return scenario.observation


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
        "recall": recall_context,
        "recall-nomap": nomap_context,
        "word2world": word2world_context,
    },
    ends=is_lost,
    wordings={
        **dict.fromkeys(("engine", "nomap"), partial(Placed, place=place_of)),
        "recall": RecallWording,
        "recall-nomap": WalkedWording,
    },
    namings={"recall": numbered_kinds},
    agents=TEXTWORLD_AGENTS,
    real_entry_point="gym_llmworld.real.textworld_env:TextWorldEnv",
    games_module="gym_llmworld.real.textworld_scenarios",
    extra="textworld",
    splits=("train", "valid", "test"),
    embedded=True,
)
