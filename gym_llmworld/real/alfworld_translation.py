"""From PDDL to what the planner library reads, once per game."""

from __future__ import annotations

import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from gym_llmworld.errors import EngineError, MissingDependency
from gym_llmworld.real.alfworld_pddl import Fact



@dataclass(frozen=True, slots=True)
class CompiledProblem:
    """A PDDL problem, ready to be played.

    Attributes:
        facts: What is true at first, as predicate and ids.
        types: Type of each thing, by its id.
        parameters: Names and types of each action's parameters.
        changing_predicates: Those that an action can make true or false.
    """

    facts: tuple[Fact, ...]
    types: Mapping[str, str]
    parameters: Mapping[str, tuple[tuple[str, str], ...]]
    changing_predicates: frozenset[str]
    _packed: bytes = field(repr=False)

    @property
    def action_names(self) -> frozenset[str]:
        """Names of the actions, in lower case."""
        return frozenset(self.parameters)

    def sas(self) -> bytes:
        """Returns the problem in Fast Downward's translator output format, version 3."""
        return zlib.decompress(self._packed)


_lock = threading.Lock()


@contextmanager
def _as_translator() -> Iterator[None]:
    # The translator reads and overwrites sys.argv, and redirects stdout.
    with _lock:
        argv, stdout = sys.argv, sys.stdout
        sys.argv = ["translate.py", "domain", "task"]
        try:
            yield
        finally:
            sys.argv, sys.stdout = argv, stdout


@lru_cache(maxsize=256)
def compile_problem(domain: str, problem: str) -> CompiledProblem:
    """Translates a problem; the last 256 are kept.

    Raises:
        EngineError: The texts are not PDDL that the translator accepts.
        MissingDependency: The planner is not installed.
    """
    try:
        import fast_downward
    except ImportError as error:
        raise MissingDependency("alfworld", "alfworld") from error
    with _as_translator():
        task, sas = fast_downward.pddl2sas(domain, problem)
    return _compiled(task, sas)


def _compiled(task: Any, sas: str) -> CompiledProblem:
    facts = {
        (fact.predicate, tuple(fact.args))
        for fact in task.init
        if hasattr(fact, "predicate") and fact.predicate != "="
    }
    return CompiledProblem(
        facts=tuple(sorted(facts)),
        types={thing.name: thing.type_name for thing in task.objects},
        parameters={
            action.name: tuple((p.name.strip("?"), p.type_name) for p in action.parameters)
            for action in task.actions
        },
        changing_predicates=frozenset(
            effect.literal.predicate for action in task.actions for effect in action.effects
        ),
        _packed=zlib.compress(sas.encode(), 1),
    )
