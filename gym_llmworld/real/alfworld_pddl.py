"""Reading PDDL problems: what there is, what is true at first, what is to be reached."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Union

from gym_llmworld.errors import EngineError

Fact = tuple[str, tuple[str, ...]]
"""Predicate and ids, in lower case: ``("inreceptacle", ("mug_bar_1", "desk_bar_2"))``."""

Tree = Union[str, "list[Tree]"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A PDDL problem.

    Attributes:
        types: Type of each thing, by its id.
        facts: What is true at first, without duplicates and without numeric fluents.
        goal: What is to be reached, as nested lists.
    """

    types: Mapping[str, str]
    facts: tuple[Fact, ...]
    goal: Tree

    def of(self, predicate: str) -> list[tuple[str, ...]]:
        """Returns the sorted arguments of the facts of a predicate."""
        return sorted(arguments for name, arguments in self.facts if name == predicate)


@lru_cache(maxsize=64)
def read_problem(text: str) -> Problem:
    """Reads a PDDL problem.

    Raises:
        EngineError: The text is no PDDL problem.
    """
    tree = parse_tree(text)
    sections = {part[0]: part[1:] for part in tree if isinstance(part, list) and part}
    if tree[:1] != ["define"] or not {":objects", ":init", ":goal"} <= sections.keys():
        raise EngineError(
            "not a PDDL problem: expected (define (problem ...) (:objects ...) (:init ...) "
            f"(:goal ...)), got {text.strip()[:60]!r}"
        )
    facts = dict.fromkeys(_facts(sections[":init"]))
    return Problem(dict(_typed(sections[":objects"])), tuple(facts), sections[":goal"][0])


def parse_tree(text: str) -> list[Tree]:
    """Parses one parenthesised expression into nested lists of lower-case words.

    Raises:
        EngineError: The parentheses do not match.
    """
    root: list[Tree] = []
    stack = [root]
    for token in _TOKEN.findall(re.sub(r";[^\n]*", "", text).lower()):
        if token == "(":
            branch: list[Tree] = []
            stack[-1].append(branch)
            stack.append(branch)
        elif token != ")":
            stack[-1].append(token)
        elif len(stack) > 1:
            stack.pop()
        else:
            raise EngineError("the PDDL text has a ) too many")
    if len(stack) > 1 or len(root) != 1 or not isinstance(root[0], list):
        raise EngineError("the PDDL text is not one expression in parentheses; is it cut off?")
    return root[0]


_TOKEN = re.compile(r"[()]|[^\s()]+")


def _typed(words: Sequence[Tree]) -> Iterator[tuple[str, str]]:
    """Reads ``a b - type c - other``; things without a type are objects."""
    waiting: list[str] = []
    rest = iter(words)
    for word in rest:
        if not isinstance(word, str):
            raise EngineError(f"expected a name in a list of typed names, got {word!r}")
        if word == "-":
            kind = next(rest, None)
            if not isinstance(kind, str):
                raise EngineError("a - in a list of typed names is not followed by a type")
            yield from ((name, kind) for name in waiting)
            waiting = []
        else:
            waiting.append(word)
    yield from ((name, "object") for name in waiting)


def _facts(entries: Sequence[Tree]) -> Iterator[Fact]:
    for entry in entries:
        if not isinstance(entry, list) or not entry:
            raise EngineError(f"expected a fact in (:init), got {entry!r}")
        predicate, *arguments = entry
        if predicate == "=":
            continue
        if not all(isinstance(word, str) for word in entry):
            raise EngineError(f"expected a fact of plain names in (:init), got {entry!r}")
        yield str(predicate), tuple(str(argument) for argument in arguments)
