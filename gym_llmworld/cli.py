"""The ``llmworld`` command line.

Commands parse, call the library and print; what is heavy is imported inside them, so that help is
quick.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from gym_llmworld import cli_anchor, cli_calibrate, cli_data, cli_serve, cli_verify
from gym_llmworld.cli_options import (
    AgentStyle,
    AgentTemperature,
    BackendName,
    EnvId,
    Games,
    HtmlFile,
    JsonFile,
    MaxSteps,
    ModelName,
    PromptStyle,
    Seed,
    Split,
)
from gym_llmworld.cli_output import Commands, console, progress_bar, say, write_json

EPILOG = """
**Try it**

`llmworld demo` — an imagined episode as it happens, then imagined against real

`llmworld play LLMWorld-ALFWorld-v0` — act; `--agent expert` to watch, `--real` for the real twin

`llmworld scenarios alfworld` — the games that ship, by id

`llmworld doctor` — what is installed, what is missing, the command that fixes it

**Measure a world model**

`llmworld games alfworld --out games --split valid_unseen --n 40 --seed 1`

`llmworld collect alfworld --games games --policy noisy --episodes 200 --out real.jsonl`

`llmworld evaluate LLMWorld-ALFWorld-v0 --episodes real.jsonl --json em.json`

`llmworld compare LLMWorld-ALFWorld-v0 --games games --agents expert,noisy --html cr.html`

`llmworld compare LLMWorld-ALFWorld-v0 --agents llm:runs/agent --attempts 4` — a model that acts

`llmworld calibrate LLMWorld-ALFWorld-v0 --data real.jsonl` — how sure it is, how sure it should be

`llmworld anchor-curve LLMWorld-ALFWorld-v0 --json anchor.json` — how much reality is enough

`llmworld verify LLMWorld-WebShop-v0 --model MODEL` — does looking before buying help an agent
"""

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    epilog=EPILOG,
    help="Learned LLM world models as Gymnasium environments, beside the real ones they mirror.",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
) -> None:
    """Takes the options of all commands; `Commands` reads ``debug`` from the context."""


app.command()(cli_data.games)
app.command()(cli_data.scenarios)
app.command()(cli_data.collect)
app.command()(cli_calibrate.calibrate)
app.command()(cli_anchor.anchor_curve)
app.command()(cli_verify.verify)
app.command()(cli_serve.serve)


@app.command()
def evaluate(
    env_id: EnvId,
    episodes: Annotated[Path, typer.Option(help="Real episodes, made by 'llmworld collect'.")],
    model: ModelName = None,
    backend: BackendName = "auto",
    prompt_style: PromptStyle = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many episodes.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Conversations per model call.")] = 16,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
) -> None:
    """Predict every turn of real episodes, one at a time: exact match, with two baselines.

    Where the engine leaves the order of lists open (ScienceWorld), also with lists as sets.

    Example: `llmworld evaluate LLMWorld-ALFWorld-v0 --episodes real.jsonl --json em.json`
    """
    import itertools

    from gym_llmworld.cli_compare import run_evaluate
    from gym_llmworld.cli_tables import evaluation_table
    from gym_llmworld.cli_worlds import ModelChoice, check_episodes, world_of
    from gym_llmworld.episodes import read_episodes
    from gym_llmworld.report import write_report

    world = world_of(env_id)
    real = list(itertools.islice(read_episodes(episodes), limit))
    check_episodes(real, world, episodes)
    choice = ModelChoice(model, backend, prompt_style)
    data = run_evaluate(world, choice, real, batch_size=batch_size)
    console.print(evaluation_table(data))
    if json_file is not None:
        write_json(json_file, data)
    if html_file is not None:
        title = f"{env_id}: exact match"
        write_report(html_file, title=title, evaluation=data, note=_command_line())


@app.command()
def compare(
    env_id: EnvId,
    games: Games = None,
    agents: Annotated[
        str,
        typer.Option(help="Separated by commas; llm:MODEL is a language model that acts."),
    ] = "expert,noisy,random",
    episodes: Annotated[int, typer.Option(min=1, help="How many games.")] = 40,
    attempts: Annotated[
        int, typer.Option(min=1, help="Times that each game is played, for pass@k.")
    ] = 1,
    agent_style: AgentStyle = None,
    agent_temperature: AgentTemperature = None,
    seed: Seed = 0,
    split: Split = None,
    model: ModelName = None,
    backend: BackendName = "auto",
    prompt_style: PromptStyle = None,
    num_envs: Annotated[int, typer.Option(min=1, help="Imagined worlds per batch.")] = 16,
    max_steps: MaxSteps = None,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
) -> None:
    """Play the same games imagined and real: does success carry over.

    Real: success in the real world. WM: success that the model claims. W2R: the imagined actions,
    replayed for real. CR = W2R / Real. Claimed, not real: imagined success without W2R. With
    several attempts, pass@k: the chance to solve a game at least once in k of them.

    Examples: `llmworld compare LLMWorld-ALFWorld-v0 --agents expert,noisy --episodes 40 --seed 1
    --json cr.json --html cr.html`, the same with `--agents llm:runs/agent --attempts 4`
    """
    from gym_llmworld.cli_compare import publish, run_compare
    from gym_llmworld.cli_worlds import (
        LLMOptions,
        ModelChoice,
        agent_makers,
        held_out,
        world_of,
    )

    world = world_of(env_id)
    llm = LLMOptions.of(agent_style, agent_temperature, again=attempts > 1)
    makers = agent_makers(world, agents, llm=llm)
    scenarios = held_out(world, games, split, episodes, seed)
    if len(scenarios) < episodes:
        say(f"There are only {len(scenarios)} such games; playing each once.", "yellow")
    choice = ModelChoice(model, backend, prompt_style)
    result = run_compare(
        world,
        makers,
        scenarios,
        seed=seed,
        model=choice,
        games=games,
        num_envs=num_envs,
        max_steps=max_steps,
        attempts=attempts,
    )
    publish(
        result,
        model=choice.name,
        prompt_style=choice.style(world),
        json_file=json_file,
        html_file=html_file,
        command=_command_line(),
    )


@app.command()
def play(
    env_id: EnvId,
    agent: Annotated[
        str | None,
        typer.Option(help="Watch this agent, or llm:MODEL, instead.", show_default=False),
    ] = None,
    real: Annotated[bool, typer.Option("--real", help="Play the real twin.")] = False,
    scenario: Annotated[
        str | None,
        typer.Option(help="Id, see 'llmworld scenarios'. Default: drawn.", show_default=False),
    ] = None,
    games: Games = None,
    split: Split = None,
    seed: Seed = 0,
    model: ModelName = None,
    backend: BackendName = "auto",
    prompt_style: PromptStyle = None,
    max_steps: MaxSteps = None,
    agent_style: AgentStyle = None,
    agent_temperature: AgentTemperature = None,
) -> None:
    """Act in an imagined world, or watch an agent act, turn by turn.

    Examples: `llmworld play LLMWorld-ALFWorld-v0`, the same with `--agent expert --seed 3`, the
    same with `--real`
    """
    import gymnasium as gym

    from gym_llmworld.cli_play import Console, read_line, watch
    from gym_llmworld.cli_worlds import (
        LLMOptions,
        ModelChoice,
        agent_maker,
        held_out,
        scenario_of,
        world_of,
    )
    from gym_llmworld.comparison import step_limits

    world = world_of(env_id)
    if scenario is not None:
        start = scenario_of(world, games, scenario)
    else:
        [start] = held_out(world, games, split, 1, seed)
    llm = LLMOptions.of(agent_style, agent_temperature, again=False)
    maker = None if agent is None else agent_maker(world, agent, llm=llm)
    # A scenario says all that the real twin needs.
    choice = ModelChoice(model, backend, prompt_style)
    options = {} if real else choice.options(games, [start])
    limit = max_steps or step_limits([start], world.max_episode_steps)[0]
    env = gym.make(
        world.real_id if real else world.imagined_id,
        disable_env_checker=True,
        max_episode_steps=limit,
        **options,
    )
    try:
        if maker is not None:
            watch(env, maker(), start, seed=seed, max_steps=limit)
        else:
            # Without wrappers: a step limit would not know of /undo.
            Console(env.unwrapped, start, seed=seed, read=read_line).run()
    finally:
        env.close()


@app.command()
def bench(
    env_id: EnvId,
    num_envs: Annotated[str, typer.Option(help="Numbers of worlds.")] = "1,16,64",
    agent: Annotated[str, typer.Option(help="Whose actions.")] = "noisy",
    steps: Annotated[int, typer.Option(min=1, help="Steps of every world.")] = 20,
    cost_steps: Annotated[int, typer.Option(min=1, help="Length of the long episode.")] = 45,
    cost_action: Annotated[str, typer.Option(help="Its action, over and over.")] = "inventory",
    games: Games = None,
    seed: Seed = 0,
    model: ModelName = None,
    backend: BackendName = "auto",
    prompt_style: PromptStyle = None,
    json_file: JsonFile = None,
) -> None:
    """Measure steps per second, alone and many worlds at once, and the cost of a growing history.

    Example: `llmworld bench LLMWorld-ALFWorld-v0 --num-envs 1,16,64 --json bench.json`
    """
    from gym_llmworld import cli_bench
    from gym_llmworld.cli_tables import bench_table
    from gym_llmworld.cli_worlds import ModelChoice, agent_maker, held_out, world_of

    world = world_of(env_id)
    sizes = cli_bench.parse_sizes(num_envs)
    choice = ModelChoice(model, backend, prompt_style)
    with progress_bar("measurements") as progress:
        data = cli_bench.bench(
            env_id,
            sizes=sizes,
            make=agent_maker(world, agent),
            steps=steps,
            cost_steps=cost_steps,
            cost_action=cost_action,
            seed=seed,
            options=choice.options(games, held_out(world, games, None, 1, seed)),
            model=choice.name,
            progress=progress,
        )
    console.print(bench_table(data, cli_bench.speed_up(data["rows"])))
    if json_file is not None:
        write_json(json_file, data)


@app.command()
def doctor(json_file: JsonFile = None) -> None:
    """Say what is installed, what is missing, and the command that fixes it."""
    import dataclasses

    from gym_llmworld import doctor as checks
    from gym_llmworld.cli_tables import finding_lines

    findings = checks.examine()
    for line in finding_lines(findings):
        console.print(line)
    healthy = checks.healthy(findings)
    say("ready" if healthy else "see the commands above", "bold green" if healthy else "bold red")
    if json_file is not None:
        rows = [dataclasses.asdict(finding) for finding in findings]
        write_json(json_file, {"healthy": healthy, "findings": rows})
    raise typer.Exit(0 if healthy else 1)


@app.command()
def demo(
    env_id: Annotated[str, typer.Argument(metavar="[ID]")] = "LLMWorld-ALFWorld-v0",
    games: Annotated[int, typer.Option(min=1, help="How many held-out games.")] = 20,
    seed: Seed = 0,
    model: ModelName = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out"),
) -> None:
    """Show an imagined episode as it happens, then imagined against real, with an HTML report."""
    from gym_llmworld import cli_compare
    from gym_llmworld.cli_worlds import world_of

    cli_compare.demo(world_of(env_id), model=model, games=games, seed=seed, out=out)


def _command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


if __name__ == "__main__":
    app()
