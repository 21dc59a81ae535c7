"""MiniWoB++ pages as a Gymnasium environment of text, in a real browser: the twin of the imagined.

A game is ``<split>/<task>/<seed>``, such as ``valid_seen/login-user/7``. Splits have seeds of their
own, and ``valid_unseen`` has tasks of its own; a task with few different pages shows some of them
under several seeds.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from gym_llmworld.accessibility import changes_text, tree_text
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.base import RealTextEnv, Reply
from gym_llmworld.real.miniwob_browser import check_packages, current_browser
from gym_llmworld.real.miniwob_page import Visit, check_task
from gym_llmworld.real.scenario_drafts import (
    SCENARIOS_FILE,
    Progress,
    in_random_order,
    read_made_scenarios,
    write_made_scenarios,
)
from gym_llmworld.scenarios import SHIPPED_FILE, ScenarioStore, data_folder, read_scenario
from gym_llmworld.worlds.miniwob import HIDDEN, KEY, SEEN_TASKS, UNSEEN_TASKS, WORLD, admissible
from gym_llmworld.worlds.miniwob_agents import WebPlayer

GENERATOR = 1

SEEDS = {
    "train": range(10_000, 1_000_000),
    "valid_seen": range(1_000),
    "valid_unseen": range(1_000, 10_000),
}
SPLIT_TASKS = {"train": SEEN_TASKS, "valid_seen": SEEN_TASKS, "valid_unseen": UNSEEN_TASKS}


@dataclass(frozen=True, slots=True)
class PageSpec:
    """A page by its name.

    Attributes:
        split: Of `SEEDS`.
        task: Of the split's.
        seed: Of the split's.
    """

    split: str
    task: str
    seed: int

    @property
    def id(self) -> str:
        """Of the scenario."""
        return f"{self.split}/{self.task}/{self.seed}"

    @classmethod
    def parse(cls, text: str) -> PageSpec | None:
        """Reads an id; None when it is none."""
        split, _, rest = text.partition("/")
        task, _, seed = rest.partition("/")
        # int() refuses numbers of thousands of digits.
        if not (seed.isascii() and seed.isdecimal() and len(seed) <= 9):
            return None
        known = int(seed) in SEEDS.get(split, ()) and task in SPLIT_TASKS[split]
        return cls(split, task, int(seed)) if known else None


def check_split(split: str) -> None:
    """Checks the name of a split.

    Raises:
        ScenarioError: There is no such split.
    """
    if split not in SEEDS:
        raise ScenarioError(f"unknown split {split!r}; expected one of {', '.join(SEEDS)}")


def check_tasks(split: str, task: str | None) -> tuple[str, ...]:
    """Returns the tasks to choose from: the named one, or the split's.

    Raises:
        ScenarioError: There is no such split, or the split has no such task.
    """
    check_split(split)
    if task is None:
        return SPLIT_TASKS[split]
    check_task(task)
    if task not in SPLIT_TASKS[split]:
        raise ScenarioError(
            f"split {split!r} has no task {task!r}; expected one of {', '.join(SPLIT_TASKS[split])}"
        )
    return (task,)


def scenario_of(spec: PageSpec, visit: Visit) -> Scenario:
    """Returns the scenario that starts where a page was opened."""
    return Scenario(
        id=spec.id,
        world=KEY,
        split=spec.split,
        instruction=visit.instruction,
        observation=tree_text(visit.first),
        admissible=tuple(admissible(visit.instruction, visit.first)),
        hidden={HIDDEN: list(visit.unseen)} if visit.unseen else {},
        real={
            "task": spec.task,
            "seed": spec.seed,
            "generator": GENERATOR,
            "browser": visit.browser_version,
        },
    )


def make_page(spec: PageSpec) -> Scenario | None:
    """Returns the scenario of a page, with a plan that solves it; None where the expert does not.

    Raises:
        ScenarioError: There is no such task.
        MissingDependency: The ``web`` extra is not installed.
        EngineError: The browser does not start, or fails.
    """
    visit = Visit(spec.task, spec.seed)
    try:
        scenario = scenario_of(spec, visit)
        expert, told, plan = WebPlayer(True, name="expert"), scenario.observation, list[str]()
        expert.reset(scenario, 0)
        while not visit.outcome.done and len(plan) < WORLD.max_episode_steps:
            plan.append(expert.act(told, {}))
            before = visit.tree
            told = changes_text(before, visit.tree) if visit.act(plan[-1]) else WORLD.rejection
    finally:
        visit.close()
    real = {**scenario.real, "plan": plan}
    return dataclasses.replace(scenario, real=real) if visit.outcome.solved else None


def write_games(
    out_dir: str | os.PathLike[str],
    split: str,
    n: int,
    seed: int = 0,
    *,
    task: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Opens pages, solves them, and writes the scenarios that start them.

    Args:
        out_dir: Created if missing; an interrupted call goes on where it was.
        split: ``train``, ``valid_seen`` (the same tasks) or ``valid_unseen`` (other tasks).
        n: How many.
        seed: Of the draw.
        task: Which; None for all of the split's in turn.
        workers: Processes, with a browser each.
        progress: Called with how many are done and ``n``.

    Returns:
        The path of ``<out_dir>/<split>/scenarios.jsonl``.

    Raises:
        ScenarioError: There is no such split or task, or the split has fewer games.
        MissingDependency: The ``web`` extra is not installed.
        EngineError: The browser does not start, or fails.
    """
    tasks = check_tasks(split, task)
    check_packages()
    most = len(tasks) * len(SEEDS[split])
    if n > most:
        raise ScenarioError(f"split {split!r} has {most} games; expected n <= that, got {n}")
    return write_made_scenarios(
        Path(out_dir) / split / SCENARIOS_FILE,
        _specs(split, tasks, random.Random(f"{split}/{seed}")),
        n,
        make=make_page,
        name=attrgetter("id"),
        generator=GENERATOR,
        workers=workers,
        progress=progress,
    )


def _specs(split: str, tasks: Sequence[str], rng: random.Random) -> Iterator[PageSpec]:
    """Yields all pages of a split, each task in turn, in a random order of seeds."""
    for seed in in_random_order(SEEDS[split], rng):
        yield from (PageSpec(split, task, seed) for task in tasks)


def load_games(games: str | os.PathLike[str], split: str) -> list[Scenario]:
    """Reads the scenarios of a split from a folder made by `write_games`.

    Raises:
        ScenarioError: There is no such folder or split.
    """
    check_split(split)
    return read_made_scenarios(games, split)


class PageSource:
    """Where an environment takes its pages from: listed, or opened on demand.

    Args:
        games: A folder made by `write_games` or a ``scenarios.jsonl``. None for the scenarios that
            ship with the package; any other can be named by its id.
        task: To draw; None for what is listed.

    Raises:
        ScenarioError: There is nothing at ``games``, no such task, or both are given.
    """

    def __init__(self, games: str | None, task: str | None) -> None:
        if games is not None and task is not None:
            raise ScenarioError(
                f"games={games!r} says which pages are played; leave out task={task!r}"
            )
        if task is not None:
            check_task(task)
        self._task, self._listed_only = task, games is not None
        listed = games is not None or (data_folder(KEY) / SHIPPED_FILE).is_file()
        self._store = ScenarioStore(KEY, games) if listed else None

    def __deepcopy__(self, memo: dict[int, Any]) -> PageSource:
        """Returns itself: nothing in it changes."""
        return self

    def draw(self, split: str, rng: np.random.Generator) -> Scenario | PageSpec:
        """Returns a page of a split, each as likely as the other.

        Raises:
            ScenarioError: There is no such split, or it has no such task.
        """
        tasks = check_tasks(split, self._task)
        if self._store is not None and self._task is None:
            return self._store.draw(split, rng)
        seeds = SEEDS[split]
        task = tasks[int(rng.integers(len(tasks)))]
        return PageSpec(split, task, seeds[int(rng.integers(len(seeds)))])

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Scenario | PageSpec:
        """Returns a page by its id, or reads the dict that `Scenario.to_json` writes.

        Raises:
            ScenarioError: There is no such page, or it is one of another world.
        """
        if not isinstance(scenario, str):
            return read_scenario(scenario, KEY)
        if self._listed_only:
            assert self._store is not None
            return self._store.get(scenario)
        spec = PageSpec.parse(scenario)
        if spec is None:
            raise ScenarioError(
                f"unknown scenario {scenario!r}; expected <split>/<task>/<seed>, for example "
                f"valid_seen/{SEEN_TASKS[0]}/0, with seeds "
                + ", ".join(f"{s[0]} to {s[-1]} for {name}" for name, s in SEEDS.items())
                + f", and tasks {', '.join(SEEN_TASKS)}, for valid_unseen {', '.join(UNSEEN_TASKS)}"
            )
        return spec


class MiniWoBEnv(RealTextEnv[Scenario | PageSpec, Visit]):
    """MiniWoB++ pages in a browser; see `gym_llmworld.worlds.miniwob` for actions and observations.

    The episode ends when the page says so (``WOB_DONE_GLOBAL``). ``info["score"]`` is the page's
    own reward without its deduction for time (``WOB_RAW_REWARD_GLOBAL``), 0 where that is negative;
    the reward is 1.0 where it is 1, and 0.0 otherwise. There is no time limit, and no page can
    reach anything but the files of ``miniwob``. Beside the keys that all worlds have,
    ``info["llmworld"]`` has ``tree``, the whole page as it is now.

    One browser runs per process, and each environment has a page in a context of its own until
    ``close()``. As root, the browser runs without its sandbox.

    Args:
        split: ``"train"``, ``"valid_seen"`` or ``"valid_unseen"`` (tasks that train does not have).
        games: A folder made by ``llmworld games`` or a ``scenarios.jsonl``; None for the scenarios
            that ship with the package. ``reset`` takes the id of any other.
        task: Of the split's tasks, opened on demand; None for the listed scenarios.
        max_episode_steps: Truncate after as many steps; None leaves that to a wrapper.
        render_mode: None, ``"ansi"`` or ``"human"``.

    Raises:
        ScenarioError: There is no such split, folder or task.
        MissingDependency: The ``web`` extra is not installed.
    """

    def __init__(
        self,
        split: str = "train",
        games: str | None = None,
        task: str | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_tasks(split, task)
        check_packages()
        super().__init__(WORLD, PageSource(games, task), split, max_episode_steps, render_mode)
        self._admit = WORLD.protocol("engine").admit

    def _begin(self, start: Scenario | PageSpec) -> tuple[Visit, Reply]:
        spec = _spec_of(start) if isinstance(start, Scenario) else start
        visit = Visit(spec.task, spec.seed)
        return visit, Reply(tree_text(visit.tree))

    def _answer(self, play: Visit, action: str) -> Reply:
        # What may not enter a model's chat means nothing here either, so that the twins agree.
        admitted, before = self._admit(action), play.tree
        if admitted is None or not play.act(admitted):
            return Reply(WORLD.rejection)
        outcome = play.outcome
        lost = outcome.done and not outcome.solved
        score = max(0.0, outcome.reward) if outcome.done else 0.0
        return Reply(changes_text(before, play.tree), outcome.solved, lost, score)

    def _admissible(self, play: Visit) -> Sequence[str]:
        return admissible(play.instruction, play.tree)

    def _end(self, play: Visit) -> None:
        play.close()

    def _make(self, start: Scenario | PageSpec) -> Scenario:
        assert isinstance(start, PageSpec)
        return scenario_of(start, self.play)

    def _made_with(self, scenario: Scenario) -> str:
        made, here = scenario.real.get("browser"), current_browser().version
        if made in (None, here):
            return ""
        return f" (it was made with Chromium {made}; this is {here}, which may describe pages anew)"

    def _info(self) -> dict[str, Any]:
        info = super()._info()
        info["llmworld"] |= {"tree": tree_text(self.play.tree)}
        return info


def _spec_of(scenario: Scenario) -> PageSpec:
    task, seed = scenario.real.get("task"), scenario.real.get("seed")
    spec = PageSpec.parse(f"{scenario.split}/{task}/{seed}")
    if spec is None:
        raise ScenarioError(
            f"scenario {scenario.id!r} does not say its page: expected split, real['task'] and "
            f"real['seed'] as `llmworld games` writes them, got {scenario.split!r} and "
            f"{dict(scenario.real)!r:.120}"
        )
    return spec
