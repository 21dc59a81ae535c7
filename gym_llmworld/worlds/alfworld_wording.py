"""ALFWorld's decisive commands as an embedded model reads them: with all that they hang on.

Whether ``move`` and ``use`` are carried out hangs on where the agent stands and what it holds, and
whether they solve the task on what the task asks for. All of it was told, some of it long ago, and
a task says ``egg`` where a list says ``egg 2``. A small model compares tokens well if they are the
same and near. So these commands are followed by what was told, by the kinds that they are about and
by the task, and then, for what is copied from them, by themselves::

    move egg 2 to shelf 1
    at shelf 1, with hot egg 2: hot egg, shelf; put a hot egg in shelf.
    move egg 2 to shelf 1

All of it stands in the observations and in the task; nothing here knows what a command does.
"""

from __future__ import annotations

import re

from gym_llmworld.core import Scenario

_TOLD = re.compile(
    r"You (?:arrive at (?P<place>[\w ]{1,64}?)\.|pick up the (?P<taken>[\w ]{1,64}?) from the "
    r"|move the (?P<moved>[\w ]{1,64}?) to the (?P<target>[\w ]{1,64}?)\."
    r"|(?P<how>heat|cool|clean) the (?P<thing>[\w ]{1,64}?) using the )"
)
_TREATED = {"heat": "hot", "cool": "cool", "clean": "clean"}
_OPPOSITE = {"hot": "cool", "cool": "hot"}
_DECISIVE = re.compile(r"(?:move (?P<thing>.+) to|use) (?P<at>.+)")


class ToldWording:
    """The wording of one episode; observations stay as they are.

    Args:
        scenario: Where it starts.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._task = scenario.instruction
        self._place = ""
        self._held = ""
        self._treated: dict[str, list[str]] = {}
        self._moved: dict[str, str] = {}

    def cue(self, action: str) -> str:
        """Returns what a decisive command hangs on, and the command again; nothing for others."""
        decisive = _DECISIVE.fullmatch(action)
        if decisive is None:
            return ""
        told = [f"at {self._place}"] if self._place else []
        if self._held:
            told.append(f"with {self._called(self._held)}")
        thing = decisive["thing"] or self._held
        about = [_kind(self._called(thing))] if thing else []
        about.append(_kind(decisive["at"]))
        # What was put down before counts where two are asked for.
        for other, target in self._moved.items():
            if _kind(other) == _kind(thing) and other != thing:
                about += [_kind(self._called(other)), _kind(target)]
        return f"\n{', '.join(told)}: {', '.join(about)}; {self._task}\n{action}"

    def write(self, action: str, observation: str) -> str:
        """Returns the observation as it is, and notes what it tells."""
        found = _TOLD.match(observation)
        if found is None:
            return observation
        if found["place"]:
            self._place = found["place"]
        elif found["taken"]:
            self._held = found["taken"]
            self._moved.pop(self._held, None)
        elif found["moved"]:
            self._moved[found["moved"]] = found["target"]
            self._held = ""
        elif found["thing"]:
            state = _TREATED[found["how"]]
            before = self._treated.get(found["thing"], [])
            kept = [s for s in before if s not in (state, _OPPOSITE.get(state))]
            self._treated[found["thing"]] = [*kept, state]
        return observation

    def read(self, text: str) -> str:
        """Returns the text as it is."""
        return text

    def _called(self, name: str) -> str:
        return " ".join([*self._treated.get(name, ()), name])


def _kind(name: str) -> str:
    """Returns what a numbered thing is: ``"hot apple"`` for ``"hot apple 1"``."""
    return re.sub(r" \d+$", "", name)
