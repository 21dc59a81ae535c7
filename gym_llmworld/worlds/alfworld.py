"""ALFWorld: household tasks in text (Shridhar et al., ICLR 2021).

Three prompt styles word the hidden state, one does without:

* ``recall``, for the embedded model: the task alone. What is known, hidden contents included,
  stands behind each command that names it; see `gym_llmworld.worlds.alfworld_wording`.
* ``engine``: the sentences that the engine itself will say, in its order, so that looking into a
  drawer is copying.
* ``word2world``, byte for byte the context of the published checkpoints (Word2World, appendix A.4):
  receptacles and contents sorted as strings, always the article "a".
* ``nocontents``, for the embedded model, without hidden context: the first observation, and behind
  each command what has been told. What lies where has to be invented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.alfworld_agents import ALFWORLD_AGENTS
from gym_llmworld.worlds.alfworld_milestones import milestones
from gym_llmworld.worlds.alfworld_text import TASK_PREFIX, listing
from gym_llmworld.worlds.alfworld_wording import AlfworldWording, without_contents
from gym_llmworld.worlds.base import World


def _engine_line(receptacle: Mapping[str, Any]) -> str:
    name, contents = receptacle["name"], listing(receptacle["contents"])
    if not receptacle["openable"]:
        return f"On the {name}, you see {contents}."
    state = "open" if receptacle["open"] else "closed"
    return f"The {name} is {state}. In it, you see {contents}."


def _all_of(names: Sequence[str]) -> str:
    return ", ".join(f"the {name}" for name in names[:-1]) + f", and the {names[-1]}"


def engine_context(scenario: Scenario) -> str:
    """Words a scenario as the engine will: a sentence per receptacle, then the task."""
    lines = [_engine_line(receptacle) for receptacle in scenario.hidden["receptacles"]]
    # Standing at one of a group, the agent already is at the others: going there does nothing.
    lines += [
        f"You reach {_all_of(group)} from one place."
        for group in scenario.hidden.get("together", ())
    ]
    toggles = scenario.hidden.get("toggles", {})
    lines += [f"The {name} is on." for name, is_on in toggles.items() if is_on]
    return "\n".join([*lines, TASK_PREFIX + scenario.instruction])


def recall_context(scenario: Scenario) -> str:
    """Words a scenario for `AlfworldWording`: the task."""
    return TASK_PREFIX + scenario.instruction


def nocontents_context(scenario: Scenario) -> str:
    """Words a scenario without hidden context: the first observation, which ends with the task."""
    return scenario.observation


def _word2world_line(receptacle: Mapping[str, Any]) -> str | None:
    name, openable = receptacle["name"], receptacle["openable"]
    contents = ", ".join(f"a {item}" for item in sorted(receptacle["contents"]))
    if not openable:
        return f"On the {name}, you see {contents}" if contents else None
    state = "is opened," if receptacle["open"] else "is closed, if opened,"
    return f"{name} {state} " + (
        f"on the {name}, you see {contents}" if contents else "in it, you see nothing."
    )


def word2world_context(scenario: Scenario) -> str:
    """Words a scenario as Word2World's ALFWorld checkpoints were trained to read it.

    Source: the released context files and their builder, described in the package's notes on
    formats; the first observation carries the admissible commands, joined with commas.
    """
    receptacles = sorted(scenario.hidden["receptacles"], key=lambda r: str(r["name"]))
    lines = [line for line in map(_word2world_line, receptacles) if line is not None]
    description = ["=== Objects on Receptacles ===", *(f" - {line}" for line in lines)]
    if not lines:
        description = []
    toggles = scenario.hidden.get("toggles", {})
    if toggles:
        description += [""] if description else []
        states = sorted(f"{name} is {'on' if is_on else 'off'}" for name, is_on in toggles.items())
        description += ["=== Toggle States ===", *(f" - {state}" for state in states)]
    commands = ",".join(scenario.admissible or ())
    return (
        "# Environment Information (Only visible to Assistant)\n\n"
        + "\n".join(description)
        + "\n\n# User Environment Information (Displayed to User)\n\n"
        + f"{scenario.observation}\nAVAILABLE ACTIONS: {commands}\n"
    )


WORLD = World(
    key="alfworld",
    title="ALFWorld",
    rejection="Nothing happens.",
    contexts={
        "engine": engine_context,
        "recall": recall_context,
        "nocontents": nocontents_context,
        "word2world": word2world_context,
    },
    wordings={"recall": AlfworldWording, "nocontents": without_contents},
    agents=ALFWORLD_AGENTS,
    real_entry_point="gym_llmworld.real.alfworld_env:AlfworldEnv",
    real_policies={"handcoded": "gym_llmworld.real.alfworld_expert:HandcodedPolicy"},
    games_module="gym_llmworld.real.alfworld_scenarios",
    embedded=True,
    extra="alfworld",
    max_tokens=256,
    milestones=milestones,
)
