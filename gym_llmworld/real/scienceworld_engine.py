"""ScienceWorld's simulator without its overhead, and with nothing left to chance.

The package's own ``step`` lists every valid command each time, hundreds to thousands of them, which
takes several times as long as the step itself and draws from the simulator's random generator.
Here a step is a step, a reset is a load, and commands are listed when somebody asks.

All plays of a process live in one JVM (`gym_llmworld.real.scienceworld_jvm`). The simulator keeps
some of a game's state once per JVM; a `Play` takes its own along when another one has its turn.
"""

from __future__ import annotations

import contextlib
import copy
import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.real.scienceworld_jvm import Jvm, Statics, current_jvm
from gym_llmworld.worlds.scienceworld import WORLD
from gym_llmworld.worlds.scienceworld_agents import QUESTION

MAX_SCORE = 100

# Variations per task of ScienceWorld 1.2.3.
VARIATIONS = {
    "boil": 30,
    "change-the-state-of-matter-of": 30,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "find-animal": 300,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "freeze": 30,
    "grow-fruit": 126,
    "grow-plant": 126,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162,
    "lifespan-longest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "lifespan-shortest-lived": 125,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "melt": 30,
    "mendelian-genetics-known-plant": 120,
    "mendelian-genetics-unknown-plant": 480,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "use-thermometer": 540,
}
SPLITS = ("train", "dev", "test")

_NO_ELECTRICITY = "noElectricalAction"
_SIMPLIFICATIONS = (
    "easy",
    "teleportAction",
    "openDoors",
    "openContainers",
    "selfWateringFlowerPots",
    _NO_ELECTRICITY,
)
_ELECTRICAL_TASKS = ("power-component", "conductivity")
_ARTICLES = {"a", "an", "the"}


def split_variations(task: str) -> dict[str, range]:
    """Returns the engine's own split of a task's variations: a half, a quarter, the rest.

    Raises:
        ScenarioError: There is no such task.
    """
    count = variation_count(task)
    quarter = count // 4
    return {
        "train": range(2 * quarter),
        "dev": range(2 * quarter, 3 * quarter),
        "test": range(3 * quarter, count),
    }


def variation_count(task: str) -> int:
    """Returns how many variations a task has.

    Raises:
        ScenarioError: There is no such task.
    """
    if task not in VARIATIONS:
        raise ScenarioError(
            f"unknown ScienceWorld task {task!r}; expected one of {', '.join(VARIATIONS)}"
        )
    return VARIATIONS[task]


@dataclass(frozen=True, slots=True)
class Game:
    """What is played.

    Attributes:
        task: For example ``"boil"``.
        variation: 0 to ``variation_count(task) - 1``.
        simplifications: Joined with commas: ``"easy"``, ``"teleportAction,openDoors"``, ...

    Raises:
        ScenarioError: There is no such task, variation or simplification.
    """

    task: str
    variation: int
    simplifications: str = ""

    def __post_init__(self) -> None:
        """Refuses what the simulator would answer with an endless or an unsolvable game."""
        count = variation_count(self.task)
        if not isinstance(self.variation, int) or not 0 <= self.variation < count:
            raise ScenarioError(
                f"unknown variation {self.variation!r} of task {self.task!r}; expected an integer "
                f"from 0 to {count - 1}"
            )
        chosen = self.simplifications.split(",") if self.simplifications else []
        unknown = [name for name in chosen if name not in _SIMPLIFICATIONS]
        if unknown:
            raise ScenarioError(
                f"unknown simplification {unknown[0]!r}; expected some of "
                f"{', '.join(_SIMPLIFICATIONS)}, joined with commas and no blanks"
            )
        if _NO_ELECTRICITY in chosen and any(name in self.task for name in _ELECTRICAL_TASKS):
            raise ScenarioError(
                f"task {self.task!r} needs electrical actions; leave out {_NO_ELECTRICITY!r}"
            )

    @property
    def split(self) -> str:
        """``"train"``, ``"dev"`` or ``"test"``."""
        parts = split_variations(self.task).items()
        return next(name for name, part in parts if self.variation in part)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the simulator answers.

    Attributes:
        observation: As it words it.
        score: 0 to 100; -100 after the one wrong move that fails a task.
        completed: The task is over for the simulator.
    """

    observation: str
    score: int
    completed: bool

    @property
    def won(self) -> bool:
        """True when the task is solved."""
        return self.score >= MAX_SCORE

    @property
    def over(self) -> bool:
        """True when the task is solved or has failed."""
        return self.completed or self.won or self.score < 0


@dataclass(frozen=True, slots=True)
class RoomView:
    """What an agent would see in a room.

    Attributes:
        name: Of the room.
        look: What looking around shows there, as the simulator words it.
        objects: What the simulator would call the things there.
        opened: Lines of the look that would read otherwise if all containers were open, as they
            would read then.
    """

    name: str
    look: str
    objects: tuple[str, ...]
    opened: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything about where a game starts; see `survey`.

    Attributes:
        task: Task description.
        observation: First observation.
        goal: The simulator's table of goals.
        actions: Templates of what can be done.
        inventory: What the agent carries, as the simulator words it.
        rooms: Each room.
        plan: Commands that solve the task.
    """

    task: str
    observation: str
    goal: str
    actions: tuple[str, ...]
    inventory: str
    rooms: tuple[RoomView, ...]
    plan: tuple[str, ...]


def is_task_reset(command: str) -> bool:
    """Tells whether the simulator would read "reset task", which erases the progress made."""
    words = command.lower().split()
    return [word for word in words if word not in _ARTICLES] == ["reset", "task"]


class Play:
    """One play of a game: a state that moves with every command.

    Plays of one process do not disturb each other. A copy (``copy.deepcopy``) goes its own way from
    the same point, and a forked process has copies of all plays; both are brought to that point by
    playing the commands again, when they are first used.

    Args:
        game: What is played.

    Raises:
        EngineError: The simulator cannot be started, or fails.
        MissingDependency: scienceworld is not installed.
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self._commands: list[str] = []
        self._jvm = current_jvm()
        self._pid = os.getpid()
        self._server: Any = None
        self._statics: Statics | None = None
        self.turn: Turn
        with self._turn_to_play() as server:
            self.task: str = server.getTaskDescription()

    def step(self, command: str) -> Turn:
        """Carries out a command.

        When the last observation asked which of several things was meant, the command is the
        answer: a number, or anything else to cancel.

        Raises:
            TypeError: The command is not a string.
            EngineError: The simulator failed, or its JVM died; the play is lost.
        """
        if not isinstance(command, str):
            raise TypeError(f"a command must be a str, got {type(command).__name__}")
        if is_task_reset(command) and not self.turn.observation.startswith(QUESTION):
            self.turn = Turn(WORLD.rejection, self.turn.score, self.turn.completed)
            return self.turn
        with self._turn_to_play() as server:
            self.turn = _step(server, command)
            self._commands.append(command)
        return self.turn

    def admissible(self) -> tuple[str, ...]:
        """Lists the commands that the simulator would carry out now, hundreds to thousands.

        Takes several times as long as a step. Unlike in the simulator, asking changes nothing.

        Raises:
            EngineError: See `step`.
        """
        with self._turn_to_play() as server:
            statics = self._jvm.statics()
            commands = self._jvm.strings(server.getValidActionObjectCombinations())
            self._jvm.restore(statics)
        return _without_reset(commands)

    def close(self) -> None:
        """Frees the simulator's side of the play; using the play again would rebuild it."""
        if self._server is not None:
            self._release()
            self._server = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Play:
        other = copy.copy(self)
        other._commands = list(self._commands)
        other._server = None
        return other

    @contextlib.contextmanager
    def _turn_to_play(self) -> Iterator[Any]:
        """Lends the simulator, in this play's state."""
        if self._pid != os.getpid():
            self._jvm, self._pid, self._server = current_jvm(), os.getpid(), None
        jvm = self._jvm
        with jvm.lock, jvm.guarded():
            _hand_over(jvm, self)
            if self._server is None:
                self._begin()
            yield self._server

    def _begin(self) -> None:
        """Loads the game and plays what was played before."""
        server = self._jvm.take_interface()
        self.turn = _load(server, self.game)
        for command in self._commands:
            self.turn = _step(server, command)
        self._server = server
        self._release = weakref.finalize(self, self._jvm.give_back, server)
        self._release.atexit = False


def _without_reset(commands: Iterable[str]) -> tuple[str, ...]:
    return tuple(command for command in commands if not is_task_reset(command))


def replay(play: Play, commands: Iterable[str]) -> Turn:
    """Carries out several commands; returns the last turn."""
    for command in commands:
        play.step(command)
    return play.turn


def survey(game: Game) -> Survey:
    """Looks at everything a game hides at its start; no time passes in it.

    Raises:
        EngineError: See `Play`.
    """
    with _scratch(game, plan=True) as (jvm, server, first):
        agent_interface = server.agentInterface().get()
        plan = tuple(jvm.strings(server.getGoldActionSequence()))
        return Survey(
            task=server.getTaskDescription(),
            observation=first.observation,
            goal=server.getGoalProgressStr(),
            actions=_without_reset(jvm.strings(server.getPossibleActions())),
            inventory=server.freeActionInventory(),
            rooms=tuple(_view_rooms(jvm, server, agent_interface)),
            plan=plan,
        )


def published_views(
    game: Game, rng: np.random.Generator
) -> tuple[tuple[str, ...], tuple[RoomView, ...]]:
    """Looks at the rooms as Word2World's context builder does, with its defect.

    It teleports to everything at the top of the object tree. The sewer there is no room, and the
    two "terminals" are ambiguous: the simulator asks which was meant and takes the next teleport
    for the answer. Where a teleport fails, the room before is described again. Time passes.

    Args:
        game: What is described; simplifications are replaced by the builder's.
        rng: Draws the order. In a stock JVM it differs from run to run.

    Returns:
        Templates of what can be done, and one view per teleport.

    Raises:
        EngineError: See `Play`.
    """
    with _scratch(Game(game.task, game.variation, "teleportAction")) as (jvm, server, _):
        names = [thing.name() for thing in _children(server.agentInterface().get().universe())]
        names = [names[i] for i in rng.permutation(len(names))]
        actions = tuple(jvm.strings(server.getPossibleActions()))
        views = []
        for name in names:
            server.step(f"teleport {name}")
            look = server.freeActionLook()
            views.append(RoomView(name, look, tuple(jvm.strings(server.getPossibleObjects()))))
    return actions, tuple(views)


@contextlib.contextmanager
def _scratch(game: Game, *, plan: bool = False) -> Iterator[tuple[Jvm, Any, Turn]]:
    """Lends a simulator with a fresh game that may be spoilt."""
    jvm = current_jvm()
    with jvm.lock, jvm.guarded():
        _hand_over(jvm, None)
        server = jvm.take_interface()
        yield jvm, server, _load(server, game, plan=plan)
        jvm.give_back(server)


def _hand_over(jvm: Jvm, play: Play | None) -> None:
    """Makes ``play`` the one whose statics are in place."""
    holder: Play | None = jvm.holder() if jvm.holder is not None else None
    if holder is not None and holder is play:
        return
    if holder is not None:
        holder._statics = jvm.statics()
    jvm.holder = None if play is None else weakref.ref(play)
    # Without statics or server a game is about to be loaded, which sets them.
    if play is not None and play._statics is not None and play._server is not None:
        jvm.restore(play._statics)


def _load(server: Any, game: Game, *, plan: bool = False) -> Turn:
    error = server.load(game.task, game.variation, game.simplifications, plan)
    if error:
        raise EngineError(f"ScienceWorld cannot load {game}: {error}")
    return _step(server, "look around")


def _step(server: Any, command: str) -> Turn:
    observation = server.step(command)
    score = round(MAX_SCORE * server.getScore())
    if score < 0 and server.agentInterface().get().isInErrorState():
        raise EngineError(
            f"ScienceWorld failed inside its simulator, on the command before {command!r}: "
            f"{observation}. This episode is lost; reset begins a new one"
        )
    return Turn(observation, score, bool(server.getCompleted()))


def _children(thing: Any) -> Iterator[Any]:
    iterator = thing.getContainedObjects(True).iterator()
    while iterator.hasNext():
        yield iterator.next()


def _view_rooms(jvm: Jvm, server: Any, agent_interface: Any) -> Iterator[RoomView]:
    """Puts the agent into each room in turn, without letting time pass."""
    agent = agent_interface.agent()
    places = filter(jvm.is_location, _children(agent_interface.universe()))
    rooms = {place.name(): place for place in places}
    for name in sorted(rooms):
        rooms[name].addObject(agent)
        look = server.freeActionLook()
        objects = tuple(jvm.strings(server.getPossibleObjects()))
        for thing in _children(rooms[name]):
            _open(thing)
        seen = set(look.splitlines())
        opened = [line for line in server.freeActionLook().splitlines() if line not in seen]
        yield RoomView(name, look, objects, tuple(opened))


def _open(thing: Any) -> None:
    """Opens a container, or what is closed in it."""
    container = thing.propContainer()
    if not container.isDefined():
        return
    properties = container.get()
    if properties.isClosable() and not properties.isOpen():
        getattr(properties, "isOpen_$eq")(True)
        return
    for inner in _children(thing):
        _open(inner)
