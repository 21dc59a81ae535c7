"""ALFWorld's engine without its overhead: same planner library, same text, 100 times faster.

ALFWorld runs on TextWorld's ``PddlEnv``: a PDDL problem is translated to SAS+, Fast Downward's
library keeps the state and lists what is applicable, a grammar words it. ``PddlEnv`` parses the
grammar anew for every admissible command and translates the problem twice per load and per reset.
Here the library does the same work, and everything around it is computed once per game.

The library holds one state per process. A `Play` therefore remembers the operators it has applied
and takes the library over when another one used it in between.
"""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gym_llmworld.errors import EngineError, MissingDependency
from gym_llmworld.real.alfworld_grammar import Grammar, Placeholder, parse_grammar
from gym_llmworld.real.alfworld_names import names_of
from gym_llmworld.real.alfworld_pddl import Fact
from gym_llmworld.real.alfworld_translation import CompiledProblem, compile_problem

NOTHING_HAPPENS = "Nothing happens."

_KEYS = ("pddl_domain", "pddl_problem", "grammar")


@dataclass(frozen=True, slots=True)
class Turn:
    """What the engine answers.

    Attributes:
        observation: As the engine words it; after a start, with its welcome line.
        admissible: Commands it accepts now, sorted.
        won: The goal holds; the reward is then 1.
    """

    observation: str
    admissible: tuple[str, ...]
    won: bool


@dataclass(frozen=True, slots=True)
class _Operator:
    """A ground action, with what never changes about it."""

    number: int
    effects: int
    action: str
    binding: Mapping[Placeholder, str]


class LoadedGame:
    """A game, translated and parsed; any number of plays share it.

    Args:
        data: What ``game.tw-pddl`` holds: ``pddl_domain``, ``pddl_problem`` and ``grammar``.

    Raises:
        EngineError: A part is missing or cannot be read.
        MissingDependency: The planner library is not installed.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        missing = [key for key in _KEYS if not isinstance(data.get(key), str)]
        if missing:
            raise EngineError(
                f"not a game: expected the texts {', '.join(_KEYS)}, missing {', '.join(missing)}"
            )
        self.problem: CompiledProblem = compile_problem(data["pddl_domain"], data["pddl_problem"])
        self.grammar: Grammar = parse_grammar(data["grammar"])
        self.names = names_of({t for _, arguments in self.problem.facts for t in arguments})
        unworded = self.problem.action_names - self.grammar.templates.keys()
        if unworded:
            names = ", ".join(sorted(unworded))
            raise EngineError(f"the game's grammar does not word these actions: {names}")
        # A command never changes when the grammar asks only what no action can alter.
        self._commands: dict[str, str] = {}
        self._fixed_actions = frozenset(
            action
            for action in self.problem.action_names
            if not self.grammar.query_predicates(self.grammar.templates[action])
            & self.problem.changing_predicates
        )
        self._operators: dict[int, _Operator] = {}

    def operator(self, number: int, name: str, effects: int) -> _Operator:
        """Returns the ground action of this number; ``name`` is its action and arguments."""
        if number not in self._operators:
            action, *arguments = name.split()
            binding = dict(zip(self.problem.parameters[action], arguments, strict=False))
            self._operators[number] = _Operator(number, effects, action, binding)
        return self._operators[number]

    def command(self, name: str, operator: _Operator, facts: Facts) -> str:
        """Words the command of a ground action."""
        known = self._commands.get(name)
        if known is None:
            template = self.grammar.templates[operator.action]
            known = self.grammar.derive(template, facts, operator.binding)
            if operator.action in self._fixed_actions:
                self._commands[name] = known
        return known


class Facts:
    """What is true in the present state.

    Args:
        first: What is true at first.
        types: Type of each thing.
        names: How things are called.
    """

    def __init__(
        self, first: Iterable[Fact], types: Mapping[str, str], names: Mapping[str, str]
    ) -> None:
        self._types = types
        self._names = names
        self._facts: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
        self._sorted: dict[str, list[tuple[str, ...]]] = {}
        for predicate, arguments in first:
            self._facts[predicate].add(arguments)

    def copy(self) -> Facts:
        """Returns an independent copy."""
        other = copy.copy(self)
        other._facts = defaultdict(set, {name: set(found) for name, found in self._facts.items()})
        other._sorted = dict(self._sorted)
        return other

    def assert_effect(self, effect: str) -> None:
        """Makes ``Atom opened(fridge)`` or ``NegatedAtom opened(fridge)`` true.

        TextWorld keeps "is not so" as a fact of its own, ``not_opened``, once it has come about.
        """
        predicate, arguments, negated = _parse_atom(effect)
        made, ended = predicate, f"not_{predicate}"
        if negated:
            made, ended = ended, made
        self._facts[ended].discard(arguments)
        self._facts[made].add(arguments)
        self._sorted.pop(made, None)
        self._sorted.pop(ended, None)

    def matching(self, predicate: str, types: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Returns the argument ids of the true facts of this predicate and types, sorted."""
        found = self._sorted.get(predicate)
        if found is None:
            found = self._sorted[predicate] = sorted(self._facts.get(predicate, ()))
        return [
            arguments
            for arguments in found
            if len(arguments) == len(types)
            and all(
                kind in ("object", self._types[t]) for kind, t in zip(types, arguments, strict=True)
            )
        ]

    def name(self, thing: str) -> str:
        """Returns how a thing is called."""
        return self._names[thing]

    def worded(self) -> list[tuple[str, ...]]:
        """Returns every true fact, ``("inreceptacle", "mug 1", "desk 1")``."""
        return [
            (predicate, *(self._names[thing] for thing in arguments))
            for predicate, found in self._facts.items()
            for arguments in found
        ]


@lru_cache(maxsize=65536)
def _parse_atom(text: str) -> tuple[str, tuple[str, ...], bool]:
    kind, _, rest = text.partition(" ")
    predicate, _, arguments = rest.rstrip(")").partition("(")
    return predicate, tuple(arguments.split(", ")) if arguments else (), kind == "NegatedAtom"


class _Library:
    """Fast Downward's shared library: one per process, with one state."""

    def __init__(self) -> None:
        try:
            import fast_downward
        except ImportError as error:
            raise MissingDependency("alfworld", "alfworld") from error
        self.lock = threading.RLock()
        self.holder: Play | None = None
        self._lib = fast_downward.load_lib()
        self._operator_type = fast_downward.Operator
        self._atom_type = fast_downward.Atom

    def load(self, sas: bytes) -> None:
        self._lib.load_sas(sas)

    def applicable(self) -> list[tuple[int, str, int]]:
        """Returns number, name and count of effects of each applicable operator."""
        found = (self._operator_type * self._lib.get_applicable_operators_count())()
        self._lib.get_applicable_operators(found)
        return [(o.id, o.name, o.nb_effect_atoms) for o in found]

    def apply(self, operator: _Operator) -> list[str]:
        """Carries out an operator; returns what became true or false."""
        effects = (self._atom_type * operator.effects)()
        self._lib.apply_operator(operator.number, effects)
        return [effect.name for effect in effects]

    def won(self) -> bool:
        return bool(self._lib.check_goal())


@lru_cache(maxsize=1)
def _library() -> _Library:
    return _Library()


class Play:
    """One play of a game: a state that moves with every command.

    Plays of one process do not disturb each other; a copy (``copy.deepcopy``) goes its own way from
    the same point.

    Args:
        game: What is played.
    """

    def __init__(self, game: LoadedGame) -> None:
        self.game = game
        self._lib = _library()
        self._facts = Facts(game.problem.facts, game.problem.types, game.names)
        self._applied: list[_Operator] = []
        self._choices: dict[str, _Operator] = {}
        with self._lib.lock:
            self._take_over()
            self.turn = self._turn(game.grammar.intro(self._facts))

    def step(self, command: str) -> Turn:
        """Carries out a command.

        Args:
            command: One of the admissible ones; blanks around it do not matter. Any other text
                leads to "Nothing happens.".

        Raises:
            TypeError: The command is not a string.
        """
        if not isinstance(command, str):
            raise TypeError(f"a command must be a str, got {type(command).__name__}")
        operator = self._choices.get(command.strip())
        if operator is None:
            self.turn = Turn(NOTHING_HAPPENS, self.turn.admissible, self.turn.won)
            return self.turn
        with self._lib.lock:
            self._take_over()
            for effect in self._lib.apply(operator):
                self._facts.assert_effect(effect)
            self._applied.append(operator)
            grammar = self.game.grammar
            feedback = grammar.feedbacks[operator.action]
            self.turn = self._turn(grammar.derive(feedback, self._facts, operator.binding))
        return self.turn

    def facts(self) -> list[tuple[str, ...]]:
        """Returns what is true now, as predicate and names: ``("holds", "agent1 ", "mug 1")``."""
        return self._facts.worded()

    def _take_over(self) -> None:
        """Brings the library to this play's state."""
        if self._lib.holder is self:
            return
        self._lib.load(self.game.problem.sas())
        for operator in self._applied:
            self._lib.apply(operator)
        self._lib.holder = self

    def _turn(self, observation: str) -> Turn:
        choices: dict[str, _Operator] = {}
        for number, name, effects in self._lib.applicable():
            operator = self.game.operator(number, name, effects)
            choices.setdefault(self.game.command(name, operator, self._facts), operator)
        self._choices = choices
        return Turn(observation, tuple(sorted(choices)), self._lib.won())

    def __deepcopy__(self, memo: dict[int, Any]) -> Play:
        other = copy.copy(self)
        other._facts = self._facts.copy()
        other._applied = list(self._applied)
        other._choices = dict(self._choices)
        return other


def replay(play: Play, commands: Iterable[str]) -> Turn:
    """Carries out several commands; returns the last turn."""
    for command in commands:
        play.step(command)
    return play.turn
