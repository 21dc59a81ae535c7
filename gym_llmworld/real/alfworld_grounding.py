"""Grounds a normalised PDDL task, much faster than Fast Downward's translator does.

An ALFWorld problem has thousands of ground actions, and the translator takes half a second to find
them. Here the conditions of each action are compiled to a chain of index look-ups. The result is
the same: exactly the actions that can apply when nothing ever became false again (delete
relaxation; Helmert, "Concise finite-domain representations for PDDL planning tasks", 2009,
section 6).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from gym_llmworld.real.alfworld_pddl import Fact, Problem

Values = list[str]
"""What fills the slots of a schema: its variables, then the constants that it mentions."""


class UnusualDomain(Exception):
    """A domain uses PDDL that is left to the translator."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A condition or an effect of a schema.

    Attributes:
        predicate: Of the fact.
        slots: What its arguments are.
        negated: It is about the fact being false.
    """

    predicate: str
    slots: tuple[int, ...]
    negated: bool

    def arguments(self, values: Values) -> tuple[str, ...]:
        """Returns the fact's arguments in an instance."""
        return tuple([values[slot] for slot in self.slots])


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes true or false, where the condition holds."""

    condition: tuple[Literal, ...]
    literal: Literal


@dataclass(frozen=True, slots=True)
class Schema:
    """An action, or an axiom, whose only effect is what it derives.

    Attributes:
        name: Of the action or of the derived predicate.
        types: Of the variables.
        constants: Fill the slots behind the variables.
        named: How many variables are part of a ground action's name.
        precondition: What must hold.
        effects: What it changes.
        derives: It is an axiom.
    """

    name: str
    types: tuple[str, ...]
    constants: tuple[str, ...]
    named: int
    precondition: tuple[Literal, ...]
    effects: tuple[Effect, ...]
    derives: bool


class _Slots:
    """Numbers the variables and constants of a schema."""

    def __init__(self, variables: Sequence[str]) -> None:
        self.variables = len(variables)
        self.numbers = {name: number for number, name in enumerate(variables)}

    def literals(self, condition: Any) -> tuple[Literal, ...]:
        kind = type(condition).__name__
        if kind == "Truth":
            return ()
        if kind == "Conjunction":
            return tuple(literal for part in condition.parts for literal in self.literals(part))
        if kind not in ("Atom", "NegatedAtom"):
            raise UnusualDomain(kind)
        slots = tuple(self.numbers.setdefault(a, len(self.numbers)) for a in condition.args)
        return (Literal(condition.predicate, slots, condition.negated),)

    def constants(self) -> tuple[str, ...]:
        return tuple(self.numbers)[self.variables :]


def read_goal(goal: Any) -> list[tuple[str, bool]]:
    """Reads a normalised goal: predicates without arguments, and whether they must be false.

    Raises:
        UnusualDomain: The goal names objects.
    """
    literals = _Slots(()).literals(goal)
    if any(literal.slots for literal in literals):
        raise UnusualDomain("a goal with objects")
    return [(literal.predicate, literal.negated) for literal in literals]


def read_schema(owner: Any) -> Schema:
    """Reads a normalised action or axiom of Fast Downward's translator.

    Raises:
        UnusualDomain: A derived predicate with parameters, or a universal effect.
    """
    slots = _Slots([parameter.name for parameter in owner.parameters])
    derives = not hasattr(owner, "effects")
    if owner.num_external_parameters and derives:
        raise UnusualDomain("a derived predicate with parameters")
    precondition = slots.literals(owner.condition if derives else owner.precondition)
    if derives:
        effects: tuple[Effect, ...] = (Effect((), Literal(owner.name, (), negated=False)),)
    else:
        if any(effect.parameters for effect in owner.effects):
            raise UnusualDomain("a universal effect")
        effects = tuple(
            Effect(slots.literals(effect.condition), slots.literals(effect.literal)[0])
            for effect in owner.effects
        )
    return Schema(
        name=owner.name,
        types=tuple(parameter.type_name for parameter in owner.parameters),
        constants=slots.constants(),
        named=owner.num_external_parameters,
        precondition=precondition,
        effects=effects,
        derives=derives,
    )


Key = Callable[[Sequence[str]], object]


def _key(places: Sequence[int]) -> Key:
    return itemgetter(*places) if places else lambda _: ()


class _Index:
    """The facts of one predicate by some of their arguments."""

    def __init__(self, places: Sequence[int]) -> None:
        self.found: defaultdict[object, list[tuple[str, ...]]] = defaultdict(list)
        self._key = _key(places)

    def add(self, arguments: tuple[str, ...]) -> None:
        self.found[self._key(arguments)].append(arguments)


@dataclass(frozen=True, slots=True)
class _Look:
    """One look-up of a chain: facts that agree with the filled slots, and which slots they fill."""

    index: _Index
    key: Key
    fills: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Chain:
    """How a schema is instantiated, beginning with a fact that matches one of its conditions."""

    place: int
    seed: Literal | None
    looks: tuple[_Look, ...]
    unbound: tuple[int, ...]


class Grounding:
    """All instances of the schemas that can ever apply.

    Facts are taken in one by one; each is joined with those before through every condition that it
    matches, so that an instance appears when the last of its conditions becomes possible.

    Attributes:
        schemas: Those that have instances at all.
        instances: The filled slots of each instance, by the schema's place.
        fluents: Predicates that change.
        reached: Facts of those predicates that can become true, in order of appearance.
        first: What is true at first.
    """

    def __init__(self, problem: Problem, schemas: Sequence[Schema]) -> None:
        self.fluents = {e.literal.predicate for schema in schemas for e in schema.effects}
        things: defaultdict[str, set[str]] = defaultdict(set)
        for thing, kind in problem.types.items():
            things[kind].add(thing)
            things["object"].add(thing)
        # ALFWorld's domain has a misspelt type ("location,"), which no thing is of.
        self.schemas = [s for s in schemas if all(things[kind] for kind in s.types)]
        self.instances: list[dict[tuple[str, ...], None]] = [{} for _ in self.schemas]
        self.reached: dict[Fact, None] = {}
        self._things = things
        self.first = frozenset(problem.facts)
        self._indexes: defaultdict[str, dict[tuple[int, ...], _Index]] = defaultdict(dict)
        self._chains: defaultdict[str, list[_Chain]] = defaultdict(list)
        unseeded = [c for place in range(len(self.schemas)) for c in self._compile(place)]
        self._explore(problem.facts, unseeded)

    def _compile(self, place: int) -> list[_Chain]:
        """Compiles a schema; returns its chain when no changing fact can start one."""
        schema = self.schemas[place]
        positive = [literal for literal in schema.precondition if not literal.negated]
        seeds = [literal for literal in positive if literal.predicate in self.fluents]
        for seed in seeds:
            rest = list(positive)
            rest.remove(seed)
            self._chains[seed.predicate].append(self._chain(place, seed, rest))
        return [] if seeds else [self._chain(place, None, positive)]

    def _chain(self, place: int, seed: Literal | None, rest: list[Literal]) -> _Chain:
        schema = self.schemas[place]
        variables = len(schema.types)
        filled = set(range(variables, variables + len(schema.constants)))
        if seed is not None:
            filled.update(seed.slots)
        looks = []
        while rest:
            # What leaves the fewest slots open comes first; what never changes before what does.
            literal = min(
                rest, key=lambda x: (len(set(x.slots) - filled), x.predicate in self.fluents)
            )
            rest.remove(literal)
            looks.append(self._look(literal, filled))
            filled.update(literal.slots)
        unbound = tuple(slot for slot in range(variables) if slot not in filled)
        return _Chain(place, seed, tuple(looks), unbound)

    def _look(self, literal: Literal, filled: set[int]) -> _Look:
        known = tuple(i for i, slot in enumerate(literal.slots) if slot in filled)
        fills = tuple((i, slot) for i, slot in enumerate(literal.slots) if slot not in filled)
        if len({slot for _, slot in fills}) < len(fills):
            raise UnusualDomain("a variable twice in one condition")
        indexes = self._indexes[literal.predicate]
        index = indexes.setdefault(known, _Index(known))
        return _Look(index, _key([literal.slots[i] for i in known]), fills)

    def _explore(self, facts: Iterable[Fact], unseeded: Sequence[_Chain]) -> None:
        waiting: list[Fact] = []
        for fact in facts:
            if fact[0] in self.fluents:
                self.reached[fact] = None
                waiting.append(fact)
            else:
                self._add(fact)
        for chain in unseeded:
            self._fire(chain, self._start(chain), waiting)
        while waiting:
            fact = waiting.pop()
            self._add(fact)
            for chain in self._chains[fact[0]]:
                values = self._start(chain)
                if _fill(values, chain, fact[1]):
                    self._fire(chain, values, waiting)

    def _add(self, fact: Fact) -> None:
        for index in self._indexes[fact[0]].values():
            index.add(fact[1])

    def _start(self, chain: _Chain) -> Values:
        schema = self.schemas[chain.place]
        return [""] * len(schema.types) + list(schema.constants)

    def _fire(self, chain: _Chain, values: Values, waiting: list[Fact]) -> None:
        """Notes the instances of a chain, and what they make true for the first time."""
        schema, known = self.schemas[chain.place], self.instances[chain.place]
        made = [e.literal for e in schema.effects if not e.literal.negated]
        for filled in self._complete(chain, values):
            instance = tuple(filled)
            if instance in known or not self._admits(schema, filled):
                continue
            known[instance] = None
            for literal in made:
                fact = (literal.predicate, literal.arguments(filled))
                if fact not in self.reached:
                    self.reached[fact] = None
                    waiting.append(fact)

    def _complete(self, chain: _Chain, values: Values) -> list[Values]:
        rows = [values]
        for look in chain.looks:
            found, key, fills = look.index.found, look.key, look.fills
            if not fills:
                rows = [row for row in rows if key(row) in found]
            else:
                rows = [_extended(row, fills, x) for row in rows for x in found.get(key(row), ())]
            if not rows:
                return rows
        for slot in chain.unbound:
            things = sorted(self._things[self.schemas[chain.place].types[slot]])
            rows = [_extended(row, ((0, slot),), (thing,)) for row in rows for thing in things]
        return rows

    def _admits(self, schema: Schema, values: Values) -> bool:
        """Returns whether types, inequalities and negated conditions on fixed facts hold."""
        for thing, kind in zip(values, schema.types, strict=False):
            if thing not in self._things[kind]:
                return False
        for literal in schema.precondition:
            if literal.negated and literal.predicate not in self.fluents:
                arguments = literal.arguments(values)
                if literal.predicate == "=":
                    if arguments[0] == arguments[1]:
                        return False
                elif (literal.predicate, arguments) in self.first:
                    return False
        return True


def _fill(values: Values, chain: _Chain, arguments: Sequence[str]) -> bool:
    """Puts a fact's arguments into the slots of a chain's first condition, if they fit."""
    assert chain.seed is not None
    for slot, argument in zip(chain.seed.slots, arguments, strict=True):
        if values[slot] not in ("", argument):
            return False
        values[slot] = argument
    return True


def _extended(row: Values, fills: tuple[tuple[int, int], ...], arguments: Sequence[str]) -> Values:
    row = row.copy()
    for place, slot in fills:
        row[slot] = arguments[place]
    return row
