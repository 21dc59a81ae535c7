"""From PDDL to what the planner library reads, once per game.

Fast Downward's own translator parses and normalises here, too, which takes milliseconds. What takes
it long is grounding; `gym_llmworld.real.alfworld_grounding` does that, and leaves a domain that is
not plain enough to the translator.
"""

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
from gym_llmworld.real.alfworld_grounding import (
    Grounding,
    UnusualDomain,
    read_goal,
    read_schema,
)
from gym_llmworld.real.alfworld_pddl import Fact, Problem, parse_tree, read_problem
from gym_llmworld.real.alfworld_sas import write_sas


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


@lru_cache(maxsize=64)
def compile_problem(domain: str, problem: str) -> CompiledProblem:
    """Translates a problem; the last 64 are kept.

    Raises:
        EngineError: The texts are not PDDL that the translator accepts.
        MissingDependency: The planner is not installed.
    """
    read = read_problem(problem)
    task = normalise(domain, read)
    try:
        sas = ground(task, read)
    except UnusualDomain:
        sas = translate(domain, problem)
    return CompiledProblem(
        facts=read.facts,
        types=read.types,
        parameters={
            action.name: tuple((p.name.strip("?"), p.type_name) for p in action.parameters)
            for action in task.actions
        },
        changing_predicates=frozenset(
            effect.literal.predicate for action in task.actions for effect in action.effects
        ),
        _packed=zlib.compress(sas.encode(), 1),
    )


def ground(task: Any, problem: Problem) -> str:
    """Grounds a normalised task; its objects and first facts are those of ``problem``.

    Raises:
        UnusualDomain: The task is not plain enough; `translate` takes any.
    """
    schemas = [read_schema(owner) for owner in (*task.actions, *task.axioms)]
    return write_sas(Grounding(problem, schemas), read_goal(task.goal))


def translate(domain: str, problem: str) -> str:
    """Translates with Fast Downward's translator, as TextWorld does.

    Raises:
        EngineError: The texts are not PDDL that the translator accepts.
        MissingDependency: The planner is not installed.
    """
    with _translator() as fast_downward, _pddl_errors():
        _, sas = fast_downward.pddl2sas(domain, problem)
    return str(sas)


_lock = threading.Lock()


@contextmanager
def _translator() -> Iterator[Any]:
    """Lends the translator, which reads and overwrites ``sys.argv`` and redirects stdout."""
    try:
        import fast_downward
    except ImportError as error:
        raise MissingDependency("alfworld", "alfworld") from error
    with _lock:
        argv, stdout = sys.argv, sys.stdout
        sys.argv = ["translate.py", "domain", "task"]
        try:
            yield fast_downward
        finally:
            sys.argv, sys.stdout = argv, stdout


@contextmanager
def _pddl_errors() -> Iterator[None]:
    # What the translator raises for texts that are not PDDL, or not PDDL it knows.
    try:
        yield
    except (
        SystemExit,
        AssertionError,
        LookupError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        raise EngineError(
            f"the game's PDDL cannot be translated: {type(error).__name__}: {error}"
        ) from error


def normalise(domain: str, problem: Problem) -> Any:
    """Parses and normalises the domain and the goal; objects and facts are left out.

    Raises:
        EngineError: The domain is not PDDL.
        MissingDependency: The planner is not installed.
    """
    with _translator(), _pddl_errors():
        from fast_downward.translate import normalize
        from fast_downward.translate.pddl_parser import parsing_functions

        head = [["problem", "game"], [":domain", "alfred"], [":objects"], [":init"]]
        task = parsing_functions.parse_task(
            parse_tree(domain), ["define", *head, [":goal", problem.goal]]
        )
        normalize.normalize(task)
    return task
