"""Writes a grounded task in the output format of Fast Downward's translator, version 3.

One two-valued variable per fact: 0 is true, 1 is false.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gym_llmworld.real.alfworld_grounding import (
    Effect,
    Grounding,
    Literal,
    Schema,
    UnusualDomain,
    Values,
)
from gym_llmworld.real.alfworld_pddl import Fact

_TRUE, _FALSE = 0, 1

Conditions = dict[int, int]
"""Number of a variable -> the value it must have."""


def write_sas(grounding: Grounding, goal: Sequence[tuple[str, bool]]) -> str:
    """Returns the whole file.

    Args:
        grounding: What there is.
        goal: Derived predicates without arguments, and whether they must be false.

    Raises:
        UnusualDomain: Effects that depend on several conditions, or on what never changes.
    """
    return _Writer(grounding, goal).text()


class _Writer:
    """Numbers the facts, then writes section by section."""

    def __init__(self, grounding: Grounding, goal: Sequence[tuple[str, bool]]) -> None:
        self._first = grounding.first
        self._grounding = grounding
        self._goal = goal
        self._derived = sorted(s.name for s in grounding.schemas if s.derives)
        derived = ((name, ()) for name in dict.fromkeys(self._derived))
        facts: dict[Fact, None] = {**grounding.reached, **dict.fromkeys(derived)}
        self._facts = list(facts)
        self._numbers: defaultdict[str, dict[tuple[str, ...], int]] = defaultdict(dict)
        for number, (predicate, arguments) in enumerate(facts):
            self._numbers[predicate][arguments] = number

    def text(self) -> str:
        """Returns the whole file."""
        operators = list(self._operators())
        rules = list(dict.fromkeys(self._rules()))
        goal = [
            f"{self._numbers[predicate][()]} {_FALSE if negated else _TRUE}"
            for predicate, negated in self._goal
        ]
        lines = ["begin_version", "3", "end_version", "begin_metric", "0", "end_metric"]
        lines.append(str(len(self._facts)))
        lines += (self._variable(number, fact) for number, fact in enumerate(self._facts))
        lines += ["0", "begin_state"]
        lines += (str(_TRUE if fact in self._first else _FALSE) for fact in self._facts)
        lines += ["end_state", "begin_goal", str(len(goal)), *goal, "end_goal"]
        lines += [str(len(operators)), *operators, str(len(rules)), *rules, ""]
        return "\n".join(lines)

    def _variable(self, number: int, fact: Fact) -> str:
        predicate, arguments = fact
        layer = 0 if predicate in self._derived else -1
        atom = f"Atom {predicate}({', '.join(arguments)})"
        return f"begin_variable\nvar{number}\n{layer}\n2\n{atom}\nNegated{atom}\nend_variable"

    def _conditions(self, literals: Iterable[Literal], values: Values) -> Conditions | None:
        """Returns what must hold among the variables; None when it can never hold.

        Conditions on facts that never change are left out: the grounding has checked them. Facts
        that never become true have no variable, and only their negation is asked for here.
        """
        conditions: Conditions = {}
        for literal in literals:
            number = self._numbers[literal.predicate].get(literal.arguments(values))
            value = _FALSE if literal.negated else _TRUE
            if number is not None and conditions.setdefault(number, value) != value:
                return None
        return conditions

    def _operators(self) -> Iterator[str]:
        fluents = self._grounding.fluents
        for schema, instances in zip(
            self._grounding.schemas, self._grounding.instances, strict=True
        ):
            if schema.derives:
                continue
            changing = [x for x in schema.precondition if x.predicate in fluents]
            for instance in instances:
                values = list(instance)
                required = self._conditions(changing, values)
                effects = [] if required is None else self._effects(schema, values, required)
                if required is not None and effects:
                    name = " ".join((schema.name, *values[: schema.named]))
                    yield _operator(name, required, effects)

    def _effects(
        self, schema: Schema, values: Values, required: Conditions
    ) -> list[tuple[int, int, Conditions]]:
        """Returns (variable, new value, condition); what becomes true wins over what ceases."""
        made: dict[int, list[Conditions]] = {}
        ended: dict[int, list[Conditions]] = {}
        for effect in schema.effects:
            literal = effect.literal
            number = self._numbers[literal.predicate].get(literal.arguments(values))
            condition = self._effect_condition(effect, values)
            if number is not None and condition is not None:
                (ended if literal.negated else made).setdefault(number, []).append(condition)
        effects = [(v, _TRUE, condition) for v, found in made.items() for condition in found]
        for variable, found in ended.items():
            for condition in found:
                unless = _unless(made.get(variable, ()), variable, condition)
                effects += [] if unless is None else [(variable, _FALSE, unless)]
        return [
            (variable, value, {v: x for v, x in condition.items() if v not in required})
            for variable, value, condition in effects
            if required.get(variable) != value
            and all(required.get(v, x) == x for v, x in condition.items())
        ]

    def _effect_condition(self, effect: Effect, values: Values) -> Conditions | None:
        for literal in effect.condition:
            if literal.predicate not in self._grounding.fluents:
                raise UnusualDomain("an effect that depends on what never changes")
        return self._conditions(effect.condition, values)

    def _rules(self) -> Iterator[str]:
        fluents = self._grounding.fluents
        for schema, instances in zip(
            self._grounding.schemas, self._grounding.instances, strict=True
        ):
            if not schema.derives:
                continue
            changing = [x for x in schema.precondition if x.predicate in fluents]
            head = f"{self._numbers[schema.name][()]} {_FALSE} {_TRUE}"
            for instance in instances:
                body = self._conditions(changing, list(instance))
                if body is not None:
                    lines = [f"{variable} {value}" for variable, value in sorted(body.items())]
                    yield "\n".join(["begin_rule", str(len(lines)), *lines, head, "end_rule"])


def _operator(
    name: str, required: Conditions, effects: Sequence[tuple[int, int, Conditions]]
) -> str:
    changed = {variable for variable, _, _ in effects}
    prevail = [f"{v} {x}" for v, x in required.items() if v not in changed]
    lines = ["begin_operator", name, str(len(prevail)), *prevail, str(len(effects))]
    for variable, value, condition in effects:
        when = "".join(f" {v} {x}" for v, x in condition.items())
        lines.append(f"{len(condition)}{when} {variable} {required.get(variable, -1)} {value}")
    return "\n".join([*lines, "1", "end_operator"])


def _unless(
    made: Sequence[Conditions], variable: int, condition: Mapping[int, int]
) -> Conditions | None:
    """Returns when a fact ceases: the condition holds and nothing makes the fact true."""
    if {} in made:
        return None
    unless = dict(condition)
    if made and unless.setdefault(variable, _TRUE) != _TRUE:
        return None
    for other in made:
        if len(other) != 1:
            raise UnusualDomain("an effect that depends on several conditions")
        [(number, value)] = other.items()
        if unless.setdefault(number, 1 - value) != 1 - value:
            return None
    return unless
