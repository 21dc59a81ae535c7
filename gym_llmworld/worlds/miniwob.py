"""MiniWoB++: small web tasks on pages that are seen as accessibility trees.

The pages are MiniWoB++'s (Liu et al., arXiv 1802.08802); how a page is written and what an action
changes, see `gym_llmworld.accessibility`. The first observation is the whole tree, each later one
what changed in it. Actions are WebArena's (arXiv 2307.13854): ``click [3]``, ``hover [3]``,
``type [3] [some text] [0]`` (the last bracket: press Enter afterwards, 1 where it is left out),
``press [Tab]``. There is no ``scroll``: a tree is the whole page, not what fits into a window.
Typing replaces what stands in a field, because a tree does not say where in it the cursor is, and
an option of a list is clicked without opening the list.

Styles: ``engine``, task, tree, and the texts that closed tabs and sections hide; ``word2world``,
the same with what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from gym_llmworld.accessibility import Tree, read_changes, sorted_changes
from gym_llmworld.agents import Agent, CorruptedAgent, NoisyAgent, ScriptedAgent
from gym_llmworld.core import Scenario
from gym_llmworld.metrics import lines_f1
from gym_llmworld.worlds.base import World

KEY = "miniwob"
REJECTION = "That action is not possible on this page."
HIDDEN = "unseen"
"""Key of ``Scenario.hidden`` under which the texts stand that the first tree does not show."""

SEEN_TASKS = (
    "click-button",
    "click-checkboxes",
    "click-option",
    "click-dialog",
    "click-link",
    "click-tab",
    "click-collapsible",
    "choose-list",
    "enter-text",
    "enter-password",
    "login-user",
    "simple-arithmetic",
    "read-table",
)
UNSEEN_TASKS = (
    "click-test-2",
    "click-button-sequence",
    "click-dialog-2",
    "click-checkboxes-transfer",
    "enter-text-dynamic",
    "focus-text-2",
    "form-sequence-2",
    "multi-orderings",
    "simple-algebra",
)
TASKS = (*SEEN_TASKS, *UNSEEN_TASKS)
"""Pages that work in trees: no drawing, dragging, colours or pictures."""

KEYS = (
    "Enter",
    "Tab",
    "Escape",
    "Space",
    "Backspace",
    "Delete",
    "Home",
    "End",
    "ArrowUp",
    "ArrowDown",
    "ArrowLeft",
    "ArrowRight",
)
"""What can be pressed: nothing that a browser itself answers."""

_POINT = re.compile(r"(click|hover) \[(\d{1,9})\]")
_TYPE = re.compile(r"type \[(\d{1,9})\] \[(.*?)\](?: \[([01])\])?")
_PRESS = re.compile(rf"press \[({'|'.join(KEYS)})\]")
_QUOTED = re.compile(r'"([^"]+)"')
# What a MiniWoB page shows when an episode is over: the cover that the next one starts from.
_COVER = ("StaticText", "START")


@dataclass(frozen=True, slots=True)
class Command:
    """An action that was understood.

    Attributes:
        verb: ``"click"``, ``"hover"``, ``"type"`` or ``"press"``.
        number: Of the item; 0 for ``"press"``.
        text: What is typed, or the key that is pressed.
        enter: Press Enter after typing.
    """

    verb: str
    number: int = 0
    text: str = ""
    enter: bool = False


def read_command(action: str) -> Command | None:
    """Reads an action; None when it is none of WebArena's that this world has. Never raises."""
    action = action.strip()
    if match := _POINT.fullmatch(action):
        number = int(match[2])
        return Command(match[1], number) if number else None
    if match := _TYPE.fullmatch(action):
        number = int(match[1])
        return Command("type", number, match[2], match[3] != "0") if number else None
    if match := _PRESS.fullmatch(action):
        return Command("press", text=match[1])
    return None


def admissible(instruction: str, tree: Tree) -> list[str]:
    """Lists what is worth trying: clicks on items, and typing what the instruction quotes.

    Anything can be typed, so that no list has all.
    """
    quoted = dict.fromkeys(text for text in _QUOTED.findall(instruction) if "]" not in text)
    return [f"click [{item.number}]" for item in tree if item.role != "RootWebArea"] + [
        f"type [{item.number}] [{text}] [0]"
        for item in tree
        if item.role in ("textbox", "searchbox", "spinbutton")
        for text in quoted
    ]


def is_over(observation: str) -> bool:
    """Returns whether the page shows that the episode is over."""
    changes = read_changes(observation)
    return changes is not None and _COVER in [(i.role, i.name) for i in changes["New"]]


def engine_context(scenario: Scenario) -> str:
    """Words a scenario for models trained on these pages: task, tree, and what it does not show."""
    unseen = [str(text) for text in scenario.hidden.get(HIDDEN, ())]
    lines = [f"Task: {scenario.instruction}", scenario.observation]
    return "\n".join([*lines, *(["Not shown:", *unseen] if unseen else [])])


def told_context(scenario: Scenario) -> str:
    """Words a scenario for models that know nothing of this world."""
    return "\n".join(
        [
            "You simulate a web page for an agent that sees its accessibility tree, one item a "
            "line, as [id] role 'name' property: value.",
            "Rules:",
            "- Actions: click [id], hover [id], type [id] [text] [1 to press Enter, or 0] (which "
            f"replaces what stands in the field), press [key] with one of {', '.join(KEYS)}.",
            "- Answer each action with what changed, in three sections, New items:, Deleted items: "
            "and Updated items:, with a blank line between them, each with its items, one a line, "
            "or None. New items get the next free ids.",
            f"- An action that is not possible is answered: {REJECTION}",
            "- The page itself stays focused: True; beside it, at most one item is.",
            f"- When the task is done or failed, the page adds a {_COVER[0]} '{_COVER[1]}'.",
            engine_context(scenario),
        ]
    )


def _player(expert: bool) -> Agent:
    from gym_llmworld.worlds.miniwob_agents import WebPlayer

    return WebPlayer(expert, name="expert" if expert else "random")


def _noisy() -> Agent:
    return NoisyAgent(_player(True), 0.35, _player(False))


def _corrupted() -> Agent:
    return CorruptedAgent(_noisy(), 0.2)


WORLD = World(
    key=KEY,
    title="MiniWoB",
    rejection=REJECTION,
    contexts={"engine": engine_context, "word2world": told_context},
    ends=is_over,
    agents={
        "expert": partial(_player, True),
        "noisy": _noisy,
        "random": partial(_player, False),
        "corrupted": _corrupted,
        "plan": partial(ScriptedAgent, then="press [Tab]"),
    },
    real_entry_point="gym_llmworld.real.miniwob_env:MiniWoBEnv",
    games_module="gym_llmworld.real.miniwob_env",
    extra="web",
    splits=("train", "valid_seen", "valid_unseen"),
    max_episode_steps=15,
    canonical=sorted_changes,
    credit=lines_f1,
)
