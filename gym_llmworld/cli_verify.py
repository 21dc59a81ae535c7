"""``llmworld verify``: does looking before an irreversible action help an agent.

Word2World's experiment (arXiv 2512.18832, section 7.1 and table 4), paired: every agent plays the
same real games with the same seeds without checks and with each budget of checks. Turns count
alike, also those on which an action was withheld.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium as gym
import typer

from gym_llmworld.agents import Agent, derive_seeds
from gym_llmworld.cli_options import (
    BackendName,
    EnvId,
    Games,
    JsonFile,
    ModelName,
    PromptStyle,
    Seed,
    Split,
)
from gym_llmworld.cli_output import console, progress_bar, say, write_json
from gym_llmworld.core import Scenario
from gym_llmworld.metrics import Progress
from gym_llmworld.verification import Verdict, Verification, VerifiedEnv

IRREVERSIBLE: Mapping[str, str] = {"webshop": "click[buy now]"}
"""World -> the actions that cannot be undone, and end the episode for better or worse."""


@dataclass(frozen=True, slots=True)
class Check:
    """An irreversible action, as far as it is known how it ended.

    Attributes:
        turn: Number of the agent's turn, 1 first.
        verdict: What the simulation predicted; None when nothing was simulated.
        solved: It solved the task; False also when it was withheld.
    """

    turn: int
    verdict: Verdict | None
    solved: bool


@dataclass(frozen=True, slots=True)
class Played:
    """A real game, played by an agent.

    Attributes:
        actions: All that the agent wanted to do.
        success: It solved the task.
        score: 0 to 1.
        counts: What the checks led to.
        first: The first irreversible action; None when there was none.
    """

    actions: tuple[str, ...]
    success: bool
    score: float
    counts: Verification
    first: Check | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A game without and with checks, by the same agent with the same seed.

    Attributes:
        scenario: Id of the game.
        seed: Of the agent.
        without: Every irreversible action is carried out.
        checked: Some are simulated first.
    """

    scenario: str
    seed: int
    without: Played
    checked: Played

    @property
    def first_check(self) -> str | None:
        """How the first check compares with what the unchecked agent learned from the world.

        ``"right pass"``, ``"wrong pass"``, ``"right refusal"``, ``"wrong refusal"``, ``"unknown"``;
        None without a check, and where the games differ before it.
        """
        truth, check = self.without.first, self.checked.first
        if truth is None or check is None or check.verdict is None or truth.turn != check.turn:
            return None
        if self.without.actions[: truth.turn] != self.checked.actions[: truth.turn]:
            return None
        if check.verdict == "unknown":
            return "unknown"
        passed = check.verdict == "success"
        quality = "right" if passed == truth.solved else "wrong"
        return f"{quality} {'pass' if passed else 'refusal'}"


def play(env: VerifiedEnv, agent: Agent, scenario: Scenario, seed: int, max_turns: int) -> Played:
    """Plays one game."""
    agent.reset(scenario, seed)
    observation, info = env.reset(seed=seed, options={"scenario": scenario.to_json()})
    actions: list[str] = []
    first, success = None, False
    while len(actions) < max_turns:
        actions.append(agent.act(observation, info))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        success = terminated and float(reward) > 0
        if first is None and env.matches(actions[-1]):
            first = Check(len(actions), info["verification"]["verdict"], success)
        if terminated or truncated:
            break
    score = float(info["score"]) / float(info["max_score"])
    return Played(tuple(actions), success, score, env.counts, first)


def study(
    env: VerifiedEnv,
    agents: Mapping[str, Callable[[], Agent]],
    scenarios: Sequence[Scenario],
    *,
    budgets: Sequence[int],
    seed: int,
    max_turns: int,
    progress: Progress | None = None,
) -> dict[str, dict[int, tuple[Pair, ...]]]:
    """Plays all games of the experiment.

    Args:
        env: The real world, with a world model; its ``max_checks`` is set here.
        agents: Name -> maker of a fresh agent.
        scenarios: The games.
        budgets: Numbers of checks per episode to try.
        seed: Each game derives the seed of its agents from it.
        max_turns: Most turns of an agent, withheld ones included.
        progress: Told about played games.

    Returns:
        Agent -> budget -> one pair per game.
    """
    seeds = derive_seeds(seed, len(scenarios))
    results: dict[str, dict[int, list[Pair]]] = {a: {k: [] for k in budgets} for a in agents}
    total, done = len(scenarios) * len(agents) * (1 + len(budgets)), 0
    for scenario, game_seed in zip(scenarios, seeds, strict=True):
        for name, make in agents.items():
            played = {}
            for checks in (0, *budgets):
                env.max_checks = checks
                played[checks] = play(env, make(), scenario, game_seed, max_turns)
                done += 1
                if progress:
                    progress(done, total)
            for checks in budgets:
                pair = Pair(scenario.id, game_seed, played[0], played[checks])
                results[name][checks].append(pair)
    return {a: {k: tuple(pairs) for k, pairs in rows.items()} for a, rows in results.items()}


def summary(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Returns the figures of one agent with one budget; rates are fractions, None without games."""
    gained = sum(pair.checked.success and not pair.without.success for pair in pairs)
    lost = sum(pair.without.success and not pair.checked.success for pair in pairs)
    counts = Counter[str]()
    for pair in pairs:
        counts.update(dataclasses.asdict(pair.checked.counts))
    return {
        "n": len(pairs),
        "success_without": _mean([pair.without.success for pair in pairs]),
        "success_with": _mean([pair.checked.success for pair in pairs]),
        "score_without": _mean([pair.without.score for pair in pairs]),
        "score_with": _mean([pair.checked.score for pair in pairs]),
        "gained": gained,
        "lost": lost,
        "p": sign_test(gained, lost),
        "turns_without": _mean([len(pair.without.actions) for pair in pairs]),
        "turns_with": _mean([len(pair.checked.actions) for pair in pairs]),
        "counts": dict(counts),
        "first_checks": dict(Counter(p.first_check for p in pairs if p.first_check is not None)),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def sign_test(gained: int, lost: int) -> float:
    """Returns the two-sided exact probability of so uneven a split by chance (McNemar's test)."""
    n, least = gained + lost, min(gained, lost)
    return min(1.0, 2.0 * sum(math.comb(n, i) for i in range(least + 1)) / 2.0**n)


def verify(
    env_id: EnvId,
    model: ModelName = None,
    backend: BackendName = "auto",
    prompt_style: PromptStyle = None,
    irreversible: Annotated[
        str | None,
        typer.Option(
            help="Beginning of the actions to check, for example 'click[buy now]'. "
            "Default: the world's.",
            show_default=False,
        ),
    ] = None,
    checks: Annotated[str, typer.Option(help="Simulations per episode; several to try.")] = "2,10",
    agents: Annotated[str, typer.Option(help="Separated by commas.")] = "expert,noisy,random",
    episodes: Annotated[int, typer.Option(min=1, help="How many games.")] = 100,
    games: Games = None,
    split: Split = None,
    seed: Seed = 0,
    max_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most turns of an agent, refused ones included. Default: the world's step limit.",
            show_default=False,
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Play the *real* world with and without looking before actions that cannot be undone.

    The world model simulates such an action first; it is carried out only when the model predicts
    success, otherwise the agent is told so and goes on.

    Example: `llmworld verify LLMWorld-WebShop-v0 --agents expert,noisy,random --checks 2,10
    --episodes 100 --seed 1 --json verify.json`
    """
    from gym_llmworld.cli_worlds import ModelChoice, agent_makers, held_out, world_of
    from gym_llmworld.imagination import Imagination

    world = world_of(env_id)
    pattern = irreversible or IRREVERSIBLE.get(world.key)
    if pattern is None:
        raise ValueError(
            f"{world.title} has no action that can only be right or wrong; expected "
            "--irreversible with the beginning of one, for example --irreversible 'move '"
        )
    budgets = parse_budgets(checks)
    makers = agent_makers(world, agents)
    scenarios = held_out(world, games, split, episodes, seed)
    if len(scenarios) < episodes:
        say(f"There are only {len(scenarios)} such games; playing each once.", "yellow")
    choice = ModelChoice(model, backend, prompt_style)
    limit = max_steps or world.max_episode_steps
    env = VerifiedEnv(
        gym.make(world.real_id, disable_env_checker=True, max_episode_steps=limit),
        Imagination.open(world.key, **choice.options(games, scenarios)),
        pattern,
        # These agents read the world's own wording only: a page that is still there says enough.
        refusal="",
    )
    with progress_bar("games") as progress:
        pairs = study(
            env,
            makers,
            scenarios,
            budgets=budgets,
            seed=seed,
            max_turns=limit,
            progress=progress,
        )
    env.close()
    data = {
        "env_id": env_id,
        "model": choice.name,
        "irreversible": pattern,
        "seed": seed,
        "max_turns": limit,
        "n": len(scenarios),
        "agents": {
            name: {str(k): summary(rows) for k, rows in budgeted.items()}
            for name, budgeted in pairs.items()
        },
        "games": [
            {"agent": name, "checks": k, **dataclasses.asdict(pair)}
            for name, budgeted in pairs.items()
            for k, rows in budgeted.items()
            for pair in rows
        ],
    }
    console.print(verification_table(data))
    if json_file is not None:
        write_json(json_file, data)
        say(f"figures: {json_file}", "dim")


def parse_budgets(text: str) -> tuple[int, ...]:
    """Reads a list such as ``"2,10"``.

    Raises:
        ValueError: Something else than whole numbers of at least 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise ValueError(f"--checks needs whole numbers of at least 1, such as 2,10; got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def verification_table(data: Mapping[str, Any]) -> Any:
    """Returns the table of a ``llmworld verify`` report."""
    from rich.table import Table
    from rich.text import Text

    from gym_llmworld.report import number

    # As text: an action such as "click[buy now]" would be read as markup.
    title = Text(f"Before {data['irreversible']!r}: {data['model']} simulates")
    table = Table(title=title, title_justify="left")
    table.add_column("agent", no_wrap=True)
    headings = ("checks", "without", "with", "+", "-", "p", "refused", "right", "n")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, budgets in data["agents"].items():
        for checks, row in budgets.items():
            first = row["first_checks"]
            right = first.get("right pass", 0) + first.get("right refusal", 0)
            table.add_row(
                name,
                checks,
                number(row["success_without"]),
                number(row["success_with"]),
                str(row["gained"]),
                str(row["lost"]),
                number(row["p"]),
                f"{row['counts']['refused']}/{row['counts']['checks']}",
                f"{right}/{sum(first.values())}",
                str(row["n"]),
            )
    table.caption = (
        "success without and with checks; games won (+) and lost (-) through them; right: first "
        "checks that agree with what the real world does"
    )
    return table
