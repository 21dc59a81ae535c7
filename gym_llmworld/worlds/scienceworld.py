"""ScienceWorld: primary-school science in a text world (Wang et al., EMNLP 2022).

Prompt styles that word the hidden state:

* ``word2world``, byte for byte the context of the published checkpoints (Word2World, appendix A.4).
  What it says of the rooms follows from how a scenario was built: see ``compat`` of
  ``gym_llmworld.real.scienceworld_scenarios.game_scenario``.
* ``engine``, for the embedded models: what looking around will show in each room, word for word,
  what closed containers hold, and the goals; without what a model of the world has no use for.
* ``recall``: nothing but the goals and the task. What is known of the rooms and has happened stands
  behind each action, as far as the action is about it, and a description tells what is otherwise
  than at the last look; see `gym_llmworld.worlds.recall`. No embedded model knows it yet: 71
  minutes of a core beside other work made one of 0.739 exact match on 2,167 development turns,
  where the one that ships has 0.755.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.base import World
from gym_llmworld.worlds.changes import Pieces
from gym_llmworld.worlds.recall import Lookup, RecallWording
from gym_llmworld.worlds.scienceworld_agents import SCIENCEWORLD_AGENTS

_DESCRIBED = re.compile(
    r"^This (?:room|outside location) is called the (.+?)\. (?:In it,|Here) you see", re.MULTILINE
)
_MOVED = re.compile(r"You (?:move|teleport) to the ([\w ]+)\.")
_LOOKED_AT = re.compile(r"(?:look (?:at|in|into)|examine) (?P<place>.+)")
_LOOKING = re.compile(r"(?:look|examine|read|focus|go|task)\b")
_FAILED = re.compile(
    r"\bnot\b|already|[Cc]an't|No known|Ambiguous|doesn't|It's unclear|no effect|cancelled"
)
_GOAL = re.compile(r"\d+\t(?:true|false)\t\s*\S+\t(.*)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_OPTIONAL = "Unordered and Optional Subgoals:"

# "In the drawer is: a bowl (containing a fork, a knife)."
_LIST_START = re.compile(r"\((?:containing )?|: ")
_LIST_END = re.compile(r"\.[. ]*(?=[,)\n]|$)")
# "a light bulb, which is off" is one thing.
_QUALIFIER = re.compile(r"(?:which|currently) ")
# Things lie in things in things; deeper nesting is a model's stutter, and left as it is.
_MAX_DEPTH = 20


_CARRIED = "inventory"
LINES = Pieces(
    head=re.compile(
        rf"{_DESCRIBED.pattern}|^In your (?P<carried>{_CARRIED}), you see:", re.MULTILINE
    ),
    between=re.compile(r"\n\t?"),
    joint="\n\t",
)


def place_of(action: str, observation: str) -> str | None:
    """Returns where the agent is after an action, in lower case.

    None when the observation does not say. Rooms can be looked at from elsewhere.
    """
    match = _MOVED.match(observation)
    if match is None and not _LOOKED_AT.match(action):
        match = _DESCRIBED.search(observation)
    return match[1].lower() if match else None


def engine_text(text: str) -> str:
    """Returns a text of the engine as a step would show it: single blanks, none at the ends."""
    return re.sub(" +", " ", text.strip())


def engine_context(scenario: Scenario) -> str:
    """Words a scenario for the embedded models.

    The room where the agent is stands in the first observation, and only there. Optional goals are
    left out: they count for the score, which no world model is asked for.
    """
    hidden, shown = scenario.hidden, scenario.observation
    looks = [engine_text(room["look"]) for room in hidden["rooms"]]
    opened = [line for lines in _opened(scenario).values() for line in lines]
    parts = [
        *(look for look in looks if look not in shown),
        _block("Opened:", opened),
        engine_text(hidden["inventory"]),
        _goals(scenario),
        shown,
    ]
    return "\n".join(part for part in parts if part)


def recall_context(scenario: Scenario) -> str:
    """Words a scenario for `RecallWording`: the goals, and the task."""
    return "\n".join(filter(None, (_goals(scenario), scenario.instruction)))


def _goals(scenario: Scenario) -> str:
    return _block("Goals:", _goal_lines(scenario))


def _goal_lines(scenario: Scenario) -> list[str]:
    return _GOAL.findall(scenario.hidden["goal"].partition(_OPTIONAL)[0])


def _to_do(scenario: Scenario) -> list[str]:
    """Returns what is to be done, in sentences: goals, and the task's own."""
    sentences = _SENTENCE_END.split(scenario.instruction)
    return [line for line in (*_goal_lines(scenario), *sentences) if line.strip()]


def _opened(scenario: Scenario) -> dict[str, list[str]]:
    """Returns what closed containers hold, room by room."""
    return {
        room["name"].lower(): [engine_text(line) for line in room["opened"]]
        for room in scenario.hidden.get("rooms", ())
    }


def _block(title: str, lines: Sequence[str]) -> str:
    return "\n\t".join([title, *lines]) if lines else ""


def _first_looks(scenario: Scenario) -> Iterator[str]:
    """Yields what looking around shows in each room at first, and what is carried."""
    yield from (engine_text(room["look"]) for room in scenario.hidden.get("rooms", ()))
    yield engine_text(scenario.hidden.get("inventory", ""))


def _asked(action: str, here: str | None) -> str | None:
    """Returns whose description an action asks for."""
    if action in ("look around", "look"):
        return here
    if action in (_CARRIED, "i"):
        return _CARRIED
    looked_at = _LOOKED_AT.match(action)
    return looked_at["place"].lower() if looked_at else None


def _idle(action: str, observation: str) -> bool:
    """Tells whether an action only looked, went elsewhere, or failed."""
    return _LOOKING.match(action) is not None or _FAILED.search(observation) is not None


def _void(observation: str) -> bool:
    """Tells whether an action was not understood."""
    return observation == WORLD.rejection


LOOKUP = Lookup(place_of, LINES, _first_looks, _opened, _asked, _idle, _void, _CARRIED, _to_do)


def word2world_context(scenario: Scenario) -> str:
    """Words a scenario as Word2World's ScienceWorld checkpoints were trained to read it.

    Source: the builder of the released context files, described in the package's notes on formats.
    """
    hidden = scenario.hidden
    actions = "".join(f" - {action}\n" for action in hidden["actions"])
    rooms = "".join(
        f"== Room: {room['name']} ==\n{room['look'].strip()}\n"
        f"Possible Objects: {', '.join(room['objects']) or '(none)'}\n\n"
        for room in hidden["rooms"]
    )
    return (
        "# Environment Information (Only visible to Assistant)\n\n"
        f"\n=== Goal Progress ===\n{hidden['goal']}\n"
        f"\n=== Possible Actions ===\n{actions}"
        f"\n=== Per-Room Observations ===\n{rooms}"
        "\n\n# User Environment Information (Displayed to User)\n\n"
        f"{scenario.observation}\n"
    )


def canonical(observation: str) -> str:
    """Sorts the lists of an observation, so that texts that list the same things are equal.

    The engine walks through sets, and in a stock JVM their order differs from run to run: of things
    in a room, in a container and on a plant. Numbered options stay as they are, because the
    numbers are commands.
    """
    lines: list[str] = []
    block: list[str] = []
    for line in [*observation.split("\n"), ""]:
        if line.startswith("\t"):
            block.append("\t" + _sorted_list(line[1:])[0])
        else:
            lines += [*sorted(block), line]
            block = []
    return "\n".join(lines[:-1])


def _sorted_list(text: str, at: int = 0, depth: int = 0) -> tuple[str, int]:
    """Sorts the comma-separated things that begin at ``at``, and the lists in them.

    Returns:
        The sorted text, and where the list ended: at a closing bracket, at the full stop of a list
        within a list, or at the end.
    """
    things: list[str] = [""]
    while at < len(text):
        start = _LIST_START.match(text, at) if depth < _MAX_DEPTH else None
        if start:
            inner, end = _sorted_list(text, start.end(), depth + 1)
            things[-1] += f"{start.group()}{inner}{text[end : end + 1]}"
            at = end + 1
        elif text[at] == ",":
            things.append("")
            at += 1
        elif depth and (text[at] == ")" or _LIST_END.match(text, at)):
            break
        else:
            things[-1] += text[at]
            at += 1
    return ", ".join(sorted(_whole(things))), at


def _whole(things: Sequence[str]) -> list[str]:
    """Joins what a comma has cut off a thing, and drops the blanks around."""
    whole: list[str] = []
    for thing in map(str.strip, things):
        if whole and _QUALIFIER.match(thing):
            whole[-1] += f", {thing}"
        else:
            whole.append(thing)
    return whole


WORLD = World(
    key="scienceworld",
    title="SciWorld",
    rejection="No known action matches that input.",
    contexts={
        "engine": engine_context,
        "recall": recall_context,
        "word2world": word2world_context,
    },
    wordings={"recall": partial(RecallWording, lookup=LOOKUP)},
    agents=SCIENCEWORLD_AGENTS,
    real_entry_point="gym_llmworld.real.scienceworld_env:ScienceWorldEnv",
    games_module="gym_llmworld.real.scienceworld_scenarios",
    extra="scienceworld",
    splits=("train", "dev", "test"),
    embedded=True,
    max_episode_steps=100,
    max_tokens=768,
    canonical=canonical,
)
