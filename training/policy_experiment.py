r"""The headline experiment: an agent that learns in imagination and is better in reality.

    python -m training.policy_experiment --output runs/policy-experiment --seeds 0 1 2 --workers 2

Three agents per seed, on ALFWorld. *sft*: supervised on solved real episodes of a rule-based agent
that reads nothing but text and strays in one step of five (its strays are context, not labels), and
on copies of them with other names for objects; or an agent that exists (--agent). *imagined*: the
same, then GRPO in the embedded world model, without a further real step to learn from. *real*: the
same start, then as many updates of GRPO in the real engine. What counts is the share of held-out
games, in seen and in unseen rooms, that each solves in the real engine, every game once, with
answers sampled at temperature 1 (as they learn) and, at the end, greedily. Real and imagined steps
are counted.

A killed run goes on with the same command. --results gets a row per evaluated agent as soon as it
is there, and the learning curves as a plot beside it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from gym_llmworld import collection
from gym_llmworld.agents import Agent, NoisyAgent, derive_seeds
from gym_llmworld.backends import load_backend
from gym_llmworld.checkpoints import agent_style, embedded_model
from gym_llmworld.cli_worlds import games_of
from gym_llmworld.core import Sampling
from gym_llmworld.episodes import read_episodes, write_episodes
from gym_llmworld.errors import WorldModelError
from gym_llmworld.llm_agent import LLMAgent, LLMPolicy
from gym_llmworld.playing import Game, play_games
from gym_llmworld.policy_prompt import REMINDED, PolicyPrompt
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.alfworld_agents import AlfworldExpert
from gym_llmworld.worlds.alfworld_explorer import AlfworldExplorer
from training import policy
from training.card import write_atomically
from training.config import AGENT, Config
from training.credit import COMMAND, EPISODE
from training.data import Conversations
from training.guard import OFF, ROLLBACK, STOP
from training.policy_config import PolicyConfig
from training.policy_results import (
    ENVIRONMENTS,
    GREEDY,
    IMAGINED,
    SAMPLED,
    SFT,
    publish,
    row_file,
    summarise,
    table,
)
from training.renamed import renamed
from training.rollouts import real_worlds
from training.sft import train
from training.success import Exam
from training.success import summary as success_of

SEARCH, TEACHER = "search", "noisy-search"
_WORLD = get_world("alfworld")
_SECONDS = 20.0
_TEACHER_STEPS = 40
_ANSWER = 16
"""Longest action in tokens."""


@dataclass(frozen=True)
class Settings:
    """What all seeds have in common.

    Attributes:
        output: Folder of all runs.
        agent: Where all seeds start; None to supervise an agent per seed.
        games: Folder of games to train on; None for those that ship.
        teacher_episodes: Real episodes of the teacher.
        renamed: Copies of each of them with other names for objects (`training.renamed`).
        sft: Supervised run; its seed and output are replaced.
        rl: Reinforcement learning; its environment, agent, seed and output are replaced.
        every: Updates between evaluations.
        exam: Held-out games.
        command: As typed.
    """

    output: Path
    agent: Path | None
    games: str | None
    teacher_episodes: int
    renamed: int
    sft: Config
    rl: PolicyConfig
    every: int
    exam: Exam
    command: str

    def folder(self, arm: str, seed: int) -> Path:
        """Returns where an arm of a seed lies."""
        return self.output / f"{arm}-seed{seed}"

    @property
    def marks(self) -> list[int]:
        """Updates after which agents are evaluated."""
        last = self.rl.updates
        return sorted({*range(self.every, last, self.every), last})


def teacher() -> Agent:
    """Returns the agent to imitate: it reads nothing but text, and strays in one step of five.

    Without the strays its episodes never show how to go on after a refused command.
    """
    return NoisyAgent(AlfworldExpert(privileged=False), 0.2, AlfworldExplorer(), name=TEACHER)


def supervised(settings: Settings, seed: int) -> None:
    """Collects the teacher's episodes, trains on them, evaluates; whatever is missing of it."""
    folder = settings.folder(SFT, seed)
    if row_file(folder, 0).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    agent = settings.agent
    about = {"agent": str(agent)} if agent else _imitate(settings, seed, folder)
    write_atomically(
        row_file(folder, 0),
        {
            "arm": SFT,
            "seed": seed,
            "update": 0,
            GREEDY: settings.exam.take(agent or folder),
            SAMPLED: sampled(settings.exam, agent or folder, seed),
            **about,
        },
    )


def _imitate(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    report = collection.collect(
        _WORLD.real_id,
        {TEACHER: 1.0},
        games_of(_WORLD, settings.games, "train"),
        policies={TEACHER: teacher},
        episodes=settings.teacher_episodes,
        out=folder / "teacher.jsonl",
        env_kwargs={"max_episode_steps": _TEACHER_STEPS},
        seed=seed,
        workers=0,
        max_steps=_TEACHER_STEPS,
    )
    config = replace(settings.sft, seed=seed, output=folder)
    files = [folder / "teacher.jsonl"]
    if settings.renamed:
        files.append(folder / "renamed.jsonl")
        taught = list(read_episodes(files[0]))
        write_episodes(files[1], renamed(taught, settings.renamed, seed))
    trained = train(config, config.read(files), Conversations(), settings.command)
    return {
        "teacher_episodes": report.total.episodes,
        "teacher_steps": report.total.steps,
        "parameters": trained.parameters,
        "minutes": round(trained.minutes, 2),
    }


def reinforced(settings: Settings, arm: str, seed: int) -> None:
    """Learns on, in imagination or in reality, and evaluates on the way; whatever is missing."""
    folder = settings.folder(arm, seed)
    config = replace(
        settings.rl,
        env=ENVIRONMENTS[arm],
        world_model=settings.rl.world_model if arm == IMAGINED else "",
        model=str(settings.agent or settings.folder(SFT, seed)),
        output=folder,
        seed=seed,
    )
    for mark in settings.marks:
        if row_file(folder, mark).is_file():
            continue
        learned = policy.run(replace(config, updates=mark), settings.command)
        write_atomically(
            row_file(folder, mark),
            {
                "arm": arm,
                "seed": seed,
                "update": mark,
                SAMPLED: sampled(settings.exam, folder, seed),
                **({GREEDY: settings.exam.take(folder)} if mark == settings.rl.updates else {}),
                "refused_by_guard": learned.refused,
                "guard": [row["guard"] for row in learned.rows if row.get("guard")],
                **learned.progress.counts(),
            },
        )


def sampled(exam: Exam, agent: Path, seed: int) -> dict[str, Any]:
    """Lets an agent play the held-out games as it learned: answers sampled at temperature 1.

    Returns:
        As `Exam.take`, which plays greedily.
    """
    prompt = PolicyPrompt(agent_style(str(agent)), exam.world.key)
    seeds = derive_seeds(seed, len(exam.scenarios))
    games = [
        Game(scenario, own, exam.max_steps)
        for scenario, own in zip(exam.scenarios, seeds, strict=True)
    ]
    with (
        closing(load_backend(str(agent))) as backend,
        closing(real_worlds(exam.world.real_id, exam.lanes, exam.max_steps)) as worlds,
    ):
        player = LLMPolicy(backend, prompt, Sampling(temperature=1.0, max_tokens=_ANSWER))
        played = play_games(worlds, lambda: LLMAgent(player), games, name="exam")
        return success_of([one.episode for _, one in played])


def end_with_the_parent() -> None:
    """Has this process end when the one that started it does.

    A killed experiment would otherwise go on in the background, and write into the folders of the
    one that is started to continue it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_the_end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_the_end, daemon=True).start()


def run(
    settings: Settings, arms: Sequence[str], seeds: Sequence[int], workers: int
) -> Iterable[None]:
    """Runs what is missing, supervised agents first; yields now and then.

    Args:
        settings: Of all runs.
        arms: Some of ``ENVIRONMENTS``.
        seeds: Of everything random.
        workers: Processes.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=end_with_the_parent) as pool:
        starts = {pool.submit(supervised, settings, seed): seed for seed in seeds}
        waiting: set[Future[None]] = set(starts)
        while waiting:
            done, waiting = wait(waiting, timeout=_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                if future in starts:
                    jobs = [(settings, arm, starts[future]) for arm in arms]
                    waiting |= {pool.submit(reinforced, *job) for job in jobs}
            yield


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.policy_experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = built.add_argument
    add("--output", type=Path, default=Path("runs/policy-experiment"), help="folder of all runs")
    add(
        "--results", type=Path, default=Path("training/results/policy.json"),
        help="rows; the plot gets the same name (default: %(default)s)",
    )  # fmt: skip
    add("--games", help="folder of 'llmworld games' to train on (default: the games that ship)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add(
        "--arms", nargs="+", choices=list(ENVIRONMENTS), default=list(ENVIRONMENTS),
        help="where to learn on (default: both)",
    )  # fmt: skip
    add("--workers", type=int, default=1, help="processes, one CPU thread each (default: 1)")
    add(
        "--agent", type=Path, default=None, metavar="FOLDER",
        help="start all seeds from this agent, without a supervised run of their own",
    )  # fmt: skip
    add(
        "--start-episodes", type=Path, default=None, metavar="FILE",
        help="recorded real episodes: some groups start in the middle of one",
    )  # fmt: skip
    add("--middle", type=float, default=0.5, help="share of those groups (default: %(default)s)")
    add("--world-model", default="", help="to imagine with (default: the embedded one)")
    add("--teacher-episodes", type=int, default=1500, help="default: %(default)s")
    add(
        "--renamed", type=int, default=4,
        help="copies of each in which objects have other names, see training.renamed "
        "(default: %(default)s)",
    )  # fmt: skip
    add("--sft-model", default="", help="start of SFT (default: the embedded world model)")
    add("--sft-epochs", type=float, default=3.0, help="default: %(default)s")
    add("--sft-learning-rate", type=float, default=5e-4, help="default: %(default)s")
    add("--updates", type=int, default=24, help="of GRPO (default: %(default)s)")
    add("--evaluate-every", type=int, default=8, help="updates (default: %(default)s)")
    add("--groups", type=int, default=8, help="per update (default: %(default)s)")
    add("--group-size", type=int, default=8, help="default: %(default)s")
    add("--minibatches", type=int, default=2, help="per update (default: %(default)s)")
    add("--learning-rate", type=float, default=2e-4, help="of GRPO (default: %(default)s)")
    add(
        "--decay",
        action="store_true",
        help="the learning rate falls to 0 over --updates; otherwise it is constant",
    )
    add(
        "--negative", type=float, default=0.0,
        help="weight of episodes that earn less than their group (default: %(default)s)",
    )  # fmt: skip
    add(
        "--credit", choices=(EPISODE, COMMAND), default=EPISODE,
        help="what GRPO compares, see training.policy (default: %(default)s)",
    )  # fmt: skip
    add("--discount", type=float, default=1.0, help="with --credit command (default: 1)")
    add(
        "--refusal-penalty", type=float, default=0.5,
        help="held against each refused command, see training.policy (default: %(default)s)",
    )  # fmt: skip
    add("--min-confidence", type=float, default=0.5, help="of imagined steps (default: 0.5)")
    add(
        "--guard-action", choices=(STOP, ROLLBACK, OFF), default=STOP,
        help="what follows when imagined successes are not real (default: %(default)s)",
    )  # fmt: skip
    add("--guard-threshold", type=float, default=0.5, help="default: %(default)s")
    add("--max-steps", type=int, default=25, help="step limit everywhere (default: %(default)s)")
    add("--exam-games", type=int, default=60, help="per held-out split (default: %(default)s)")
    return built


def settings_of(options: argparse.Namespace, command: str) -> Settings:
    """Returns what the options describe.

    Raises:
        ValueError: A run could not end well.
    """
    sft = Config(
        role=AGENT, only_success=True, model=options.sft_model or embedded_model(_WORLD.key),
        epochs=options.sft_epochs, learning_rate=options.sft_learning_rate, batch_size=8,
        context=1024, checkpoint_minutes=2.0, threads=1, agent_style=REMINDED,
        teacher=SEARCH, kinds_init=not options.sft_model,
    )  # fmt: skip
    rl = PolicyConfig(
        model="runs/agent", games=options.games or "", updates=options.updates,
        groups=options.groups, group_size=options.group_size, minibatches=options.minibatches,
        learning_rate=options.learning_rate, decay=options.updates if options.decay else 0,
        negative=options.negative, refusal_penalty=options.refusal_penalty,
        credit=options.credit, discount=options.discount,
        max_steps=options.max_steps,
        start_episodes=options.start_episodes, middle=options.middle,
        world_model=options.world_model, min_confidence=options.min_confidence,
        guard_action=options.guard_action, guard_threshold=options.guard_threshold, threads=1,
    )  # fmt: skip
    exam = Exam.of(_WORLD, None, options.exam_games, options.max_steps, lanes=32)
    return Settings(
        options.output, options.agent, options.games, options.teacher_episodes, options.renamed,
        sft, rl, options.evaluate_every, exam, command,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    command = " ".join(["python -m training.policy_experiment", *arguments])
    try:
        settings = settings_of(options, command)
        for _ in run(settings, options.arms, options.seeds, options.workers):
            publish(settings.output, options.results, options.seeds, command)
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = publish(settings.output, options.results, options.seeds, command)
    for way in (SAMPLED, GREEDY):
        Console().print(table(summarise(rows, way), way))
    print(f"finished: {options.results}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
