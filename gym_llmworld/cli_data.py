"""``llmworld games``, ``scenarios`` and ``collect``: where episodes start, and real ones."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from gym_llmworld.cli_options import AgentStyle, AgentTemperature, Games, Seed, WorldKey
from gym_llmworld.cli_output import console, progress_bar, say

INSTRUCTION_WIDTH = 100

OneSplit = Annotated[
    str | None, typer.Option(help="Only these games. Default: all.", show_default=False)
]


def games(
    world_key: WorldKey,
    out: Annotated[Path, typer.Option(help="Folder; continued if it exists.")],
    split: Annotated[
        str | None, typer.Option(help="Default: the world's last one.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 40,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    boards: Annotated[
        str | None,
        typer.Option(
            help="Of grid puzzles: kinds of boards that take turns, such as 4x4,4x4-firm.",
            show_default="SPA's",
        ),
    ] = None,
) -> None:
    """Make new games for the real engine, each proven solvable, and the scenarios that start them.

    Example: `llmworld games alfworld --out games --split valid_unseen --n 40 --seed 1`
    """
    from gym_llmworld.cli_worlds import real_games
    from gym_llmworld.episodes import read_scenarios
    from gym_llmworld.errors import ScenarioError
    from gym_llmworld.worlds import get_world

    world = get_world(world_key)
    chosen = world.splits[-1] if split is None else split
    if chosen not in world.splits:
        raise ScenarioError(f"no split {chosen!r}; expected one of {', '.join(world.splits)}")
    twin = real_games(world)
    kinds = {}
    if boards is not None:
        if not hasattr(twin, "LEVELS"):
            raise ScenarioError(f"{world.title} has no kinds of boards; leave out --boards")
        kinds = {"boards": [kind.strip() for kind in boards.split(",")]}
    with progress_bar("games") as progress:
        written = twin.write_games(
            out, chosen, n, seed, workers=workers, progress=progress, **kinds
        )
    say(f"{len(read_scenarios(written))} {world.title} games of split {chosen!r}: {written}")
    say(f"next: llmworld collect {world_key} --games {out} --episodes 200 --out real.jsonl", "dim")


def scenarios(
    world_key: WorldKey,
    split: OneSplit = None,
    games: Games = None,
) -> None:
    """List the ids of scenarios, each with what the agent is asked to do.

    An id starts that very game: `llmworld play ... --scenario ID`, or
    `env.reset(options={"scenario": ID})`.

    Example: `llmworld scenarios alfworld --split valid_unseen`
    """
    from gym_llmworld.cli_worlds import games_of
    from gym_llmworld.worlds import get_world

    found = games_of(get_world(world_key), games, split)
    width = max(len(scenario.id) for scenario in found)
    for scenario in found:
        task = textwrap.shorten(
            scenario.instruction.strip().partition("\n")[0], INSTRUCTION_WIDTH, placeholder=" ..."
        )
        say(f"{scenario.id:{width}}  {task}")


def collect(
    world_key: WorldKey,
    out: Annotated[Path, typer.Option(help="JSON Lines; appended to, a killed run resumes.")],
    episodes: Annotated[int, typer.Option(min=1, help="How many to play.")],
    games: Games = None,
    split: OneSplit = None,
    policy: Annotated[
        str,
        typer.Option(help="Agent, llm:MODEL, or a mixture such as 'expert:1,noisy:3'."),
    ] = "noisy",
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 plays in this one.")] = 1,
    agent_style: AgentStyle = None,
    agent_temperature: AgentTemperature = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Episodes in a row from one game, which then loads once.")
    ] = 1,
    max_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Step limit of every episode. Default: the world's.", show_default=False
        ),
    ] = None,
) -> None:
    """Play the *real* world with agents and keep the episodes, as data for training and evaluation.

    Example: `llmworld collect alfworld --games games --policy expert:1,noisy:3 --episodes 1000
    --seed 1 --workers 4 --out real.jsonl`
    """
    from gym_llmworld import collection
    from gym_llmworld.cli_tables import collection_table
    from gym_llmworld.cli_worlds import LLMOptions, agent_makers, games_of
    from gym_llmworld.worlds import get_world

    world = get_world(world_key)
    mixture = collection.parse_mixture(policy)
    limit = max_steps or world.max_episode_steps
    with progress_bar("episodes") as progress:
        result = collection.collect(
            world.real_id,
            mixture,
            games_of(world, games, split),
            policies=agent_makers(
                world,
                ",".join(mixture),
                real=True,
                llm=LLMOptions.of(agent_style, agent_temperature, again=True),
            ),
            repeats=repeats,
            episodes=episodes,
            out=out,
            env_kwargs={"max_episode_steps": limit},
            seed=seed,
            workers=workers,
            max_steps=limit,
            progress=lambda done, total, _: progress(done, total),
        )
    console.print(collection_table(result.by_policy))
    say(f"episodes: {out} ({result.resumed} of an earlier run), {result.seconds:.0f} s", "dim")
