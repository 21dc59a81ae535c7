"""``llmworld compare`` and ``llmworld demo``: imagined against real, as numbers and as pages."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from gym_llmworld import report
from gym_llmworld.agents import Agent
from gym_llmworld.cli_output import console, progress_bar, say, write_json
from gym_llmworld.cli_play import watch
from gym_llmworld.cli_tables import comparison_table, evaluation_table, pass_table
from gym_llmworld.cli_worlds import ModelChoice, agent_makers, held_out
from gym_llmworld.comparison import Comparison, Trial, compare, step_limits
from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.evaluation import BATCH_SIZE, evaluate_episodes
from gym_llmworld.protocol import SUCCESS_MARKER
from gym_llmworld.worlds import World

TRANSCRIPTS = 12
DEMO_AGENTS = "expert,noisy"


def transcripts(comparison: Comparison, limit: int = TRANSCRIPTS) -> list[report.Transcript]:
    """Chooses episodes to show side by side: half of them diverging ones, if there are so many."""
    trials = [
        (name, trial)
        for name, rows in comparison.trials.items()
        for trial in rows
        if trial.replay is not None
    ]
    diverging = [row for row in trials if row[1].divergence is not None]
    faithful = [row for row in trials if row[1].divergence is None]
    chosen = diverging[: max(limit // 2, limit - len(faithful))]
    chosen += faithful[: limit - len(chosen)]
    return [_transcript(name, trial) for name, trial in chosen]


def _transcript(agent: str, trial: Trial) -> report.Transcript:
    replayed = trial.replay.steps if trial.replay else ()
    turns = tuple(
        ((ours or true).action, _shown(ours), _shown(true))
        for ours, true in itertools.zip_longest(trial.imagined.steps, replayed)
    )
    ways = {"real": trial.real, "imagined": trial.imagined, "replayed": trial.replay}
    outcome = ", ".join(f"{way} {_verdict(episode)}" for way, episode in ways.items())
    return report.Transcript(
        title=f"{agent}: {trial.scenario.instruction}",
        outcome=outcome,
        opening=trial.scenario.observation,
        turns=turns,
    )


def _shown(step: Step | None) -> str | None:
    if step is None:
        return None
    return step.observation + (SUCCESS_MARKER if step.terminated and step.reward > 0 else "")


def _verdict(episode: Episode | None) -> str:
    if episode is None:
        return "failed"
    return "solved" if episode.success else "unsolved"


def run_compare(
    world: World,
    makers: Mapping[str, Callable[[], Agent]],
    scenarios: list[Scenario],
    *,
    seed: int,
    model: ModelChoice,
    games: str | None,
    num_envs: int = 16,
    max_steps: int | None = None,
    attempts: int = 1,
) -> Comparison:
    """Compares with a progress bar; without ``max_steps`` every game can be solved in time."""
    _say_doubt(world, model)
    with progress_bar("imagined, real, replayed") as progress:
        return compare(
            world.imagined_id,
            makers,
            scenarios,
            real_id=world.real_id,
            seed=seed,
            num_envs=num_envs,
            max_steps=max_steps or step_limits(scenarios, world.max_episode_steps),
            attempts=attempts,
            rejection=world.rejection,
            imagined_options=model.options(games, scenarios),
            progress=progress,
        )


def publish(
    comparison: Comparison,
    *,
    model: str,
    prompt_style: str,
    json_file: Path | None,
    html_file: Path | None,
    command: str,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Prints the tables and writes the files."""
    data = comparison.to_json(model=model, prompt_style=prompt_style)
    console.print(comparison_table(data))
    if data["attempts"] > 1:
        console.print(pass_table(data))
    if evaluation is not None:
        console.print(evaluation_table(evaluation))
    if json_file is not None:
        write_json(json_file, data if evaluation is None else {**data, "evaluation": evaluation})
        say(f"figures: {json_file}", "dim")
    if html_file is not None:
        report.write_report(
            html_file,
            title=f"{comparison.env_id}: imagined against real",
            comparison=data,
            evaluation=evaluation,
            transcripts=transcripts(comparison),
            note=command,
        )
        say(f"report: {html_file}", "dim")


def demo(world: World, *, model: str | None, games: int, seed: int, out: Path) -> None:
    """Shows an imagined episode as it happens, then holds the imagined world against the real one.

    Args:
        world: Which.
        model: None for the embedded one.
        games: How many held-out games.
        seed: Of games and agents.
        out: Folder for ``demo.html`` and ``demo.json``.
    """
    scenarios = held_out(world, None, None, games, seed)
    choice = ModelChoice(model)
    options = choice.options(None, scenarios)
    say(f"An episode in {world.imagined_id}. Every answer is the world model's.\n", "bold")
    [limit] = step_limits(scenarios[:1], world.max_episode_steps)
    env = gym.make(world.imagined_id, disable_env_checker=True, max_episode_steps=limit, **options)
    watch(env, world.agents["expert"](), scenarios[0], seed=seed, max_steps=limit)
    say(f"\nThe same {len(scenarios)} held-out games, imagined and real.\n", "bold")
    comparison = run_compare(
        world,
        agent_makers(world, DEMO_AGENTS),
        scenarios,
        seed=seed,
        model=choice,
        games=None,
    )
    evaluation = _evaluate_real(world, choice, comparison)
    env.close()
    publish(
        comparison,
        model=choice.name,
        prompt_style=choice.style(world),
        json_file=out / "demo.json",
        html_file=out / "demo.html",
        command=f"llmworld demo --games {games} --seed {seed}",
        evaluation=evaluation,
    )


def _evaluate_real(world: World, model: ModelChoice, comparison: Comparison) -> dict[str, Any]:
    """Predicts the turns of the real episodes that the comparison has just played."""
    episodes = [t.real for rows in comparison.trials.values() for t in rows if t.real is not None]
    return run_evaluate(world, model, episodes)


def _say_doubt(world: World, model: ModelChoice) -> None:
    if doubt := model.doubt(world):
        say(doubt, "yellow")


def run_evaluate(
    world: World, model: ModelChoice, episodes: Sequence[Episode], *, batch_size: int = BATCH_SIZE
) -> dict[str, Any]:
    """Predicts the turns of real episodes, with a progress bar; returns the report."""
    _say_doubt(world, model)
    backend, protocol = model.open(world)
    with progress_bar("turns") as progress:
        result = evaluate_episodes(
            backend,
            protocol,
            episodes,
            batch_size=batch_size,
            max_tokens=world.max_tokens,
            canonical=world.canonical,
            credit=world.credit,
            progress=progress,
        )
    backend.close()
    return result.to_json(env_id=world.imagined_id, model=model.name, prompt_style=protocol.style)
