"""``llmworld anchor-curve``: consistency against the share of real steps, as figures and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gym_llmworld.cli_options import (
    BackendName,
    EnvId,
    Games,
    MaxSteps,
    ModelName,
    PromptStyle,
    Seed,
    Split,
)
from gym_llmworld.cli_output import console, progress_bar, say, write_json

_COLOURS = {
    "none": "black",
    "action": "tab:green",
    "every": "tab:orange",
    "random": "tab:gray",
    "confidence": "tab:blue",
}


def anchor_curve(
    env_id: EnvId,
    json_file: Annotated[
        Path, typer.Option("--json", help="Figures; written as they come, continued if it exists.")
    ],
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curves here (.png, .svg, .pdf).")
    ] = None,
    agents: Annotated[str, typer.Option(help="Separated by commas.")] = "expert,noisy",
    episodes: Annotated[int, typer.Option(min=1, help="How many games.")] = 40,
    seed: Seed = 0,
    action: Annotated[
        list[str] | None,
        typer.Option(help="Let the real world answer actions that begin so, like 'search['."),
    ] = None,
    shares: Annotated[
        str, typer.Option(help="Shares of real steps to try, separated by commas.")
    ] = "0.05,0.1,0.2,0.3333,0.5",
    target: Annotated[float, typer.Option(help="Paired CR to reach.")] = 0.95,
    games: Games = None,
    split: Split = None,
    model: ModelName = None,
    backend: BackendName = "auto",
    prompt_style: PromptStyle = None,
    num_envs: Annotated[int, typer.Option(min=1, help="Imagined worlds per batch.")] = 16,
    max_steps: MaxSteps = None,
) -> None:
    """Measure how much reality an imagined world needs: paired CR and EM against real steps.

    The real world answers never, at chosen actions, at every k-th step, at random, or where the
    model is least sure. Same games, same agents, same seeds for all.

    Example: `llmworld anchor-curve LLMWorld-WebShop-v0 --action 'search[' --json curve.json
    --plot curve.png`
    """
    from gym_llmworld.anchor_curve import Study, trace
    from gym_llmworld.cli_worlds import ModelChoice, agent_makers, held_out, world_of

    world = world_of(env_id)
    choice = ModelChoice(model, backend, prompt_style)
    scenarios = held_out(world, games, split, episodes, seed)
    if len(scenarios) < episodes:
        say(f"There are only {len(scenarios)} such games; playing each once.", "yellow")
    study = Study(
        world,
        agent_makers(world, agents),
        scenarios,
        choice.options(games, scenarios),
        actions=action or (),
        shares=parse_shares(shares),
        seed=seed,
        num_envs=num_envs,
        max_steps=max_steps,
    )
    done = read_results(json_file)
    data = trace(study, done, save=lambda rows: write_json(json_file, rows), progress=progress_bar)
    data["target"] = summary(data["points"], target)
    write_json(json_file, data)
    console.print(curve_table(data, choice.name))
    say(f"figures: {json_file}", "dim")
    if plot is not None:
        draw_curve(plot, data, f"{env_id}, {choice.name}")
        say(f"plot: {plot}", "dim")


def read_results(file: Path) -> dict[str, Any] | None:
    """Returns what an earlier run of the command left in a file; None where there is no file.

    Raises:
        DataError: The file holds something else.
    """
    from gym_llmworld.errors import DataError

    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        data = None
    if not isinstance(data, dict) or not {"settings", "guesses", "points"} <= set(data):
        raise DataError(
            f"{file} exists, and holds no results of anchor-curve that could be continued; pass "
            "another --json, or remove that file"
        )
    return data


def parse_shares(text: str) -> list[float]:
    """Reads ``"0.1,0.5"``.

    Raises:
        ValueError: A share is no number in (0, 1).
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"--shares must be numbers between 0 and 1, like 0.1,0.5; got {text!r}")
    return shares


def summary(points: Sequence[Mapping[str, Any]], target: float) -> dict[str, Any]:
    """Returns the share of real steps at which each family reaches the target."""
    from gym_llmworld.anchor_curve import CONFIDENCE, EVERY, RANDOM, share_for

    families = {family: share_for(points, family, target) for family in (EVERY, RANDOM, CONFIDENCE)}
    return {"cr_paired": target, "real_share": families}


def curve_table(data: Mapping[str, Any], model: str) -> Any:
    """Returns the table of a curve."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from gym_llmworld.report import number

    n = max((point["pooled"]["n"] for point in data["points"]), default=0)
    title = f"Anchoring {data['settings']['env_id']}, {model}"
    # Nine columns, and the longest rule, on a terminal of 80 characters.
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    table.add_column("real answers", no_wrap=True)
    for heading in ("share", "replay", "Real", "WM", "W2R", "CR paired", "agree", "EM"):
        table.add_column(heading, justify="right")
    for point in data["points"]:
        replayed = point["replayed_steps"] / point["steps"] if point["steps"] else None
        pooled = point["pooled"]
        figures = (point["real_share"], replayed, *(pooled[k] for k in ("real", "wm", "w2r")))
        rest = (pooled["cr_paired"], point["agreement"], point["em"]["value"])
        table.add_row(point["anchor"] or "never", *(number(f, 3) for f in (*figures, *rest)))
    reached = ", ".join(
        f"{family} {number(share, 3)}" for family, share in data["target"]["real_share"].items()
    )
    table.caption = (
        f"n = {n}; share of real steps for a paired CR of {data['target']['cr_paired']}: {reached}"
    )
    return table


def draw_curve(path: Path, data: Mapping[str, Any], title: str) -> None:
    """Draws paired CR and exact match against the share of real steps.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    from gym_llmworld.errors import MissingDependency

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "viz") from error
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = [p for p in data["points"] if p["family"] == "none" or p["anchor"] == "every:1"]
    for family, colour in _COLOURS.items():
        points = [point for point in data["points"] if point["family"] == family]
        if not points:
            continue
        curve = family not in ("none", "action")
        # All curves lead from no anchoring to nothing but real steps.
        points += [point for point in ends if curve and point not in points]
        points.sort(key=lambda point: float(point["real_share"]))
        name = {"none": "never", "action": "at " + ", ".join(str(p["anchor"]) for p in points)}
        style = {"color": colour, "marker": "o", "linestyle": "-" if curve else "none"}
        label = name.get(family, family)
        shares = [point["real_share"] for point in points]
        left.plot(shares, [p["pooled"]["cr_paired"] for p in points], label=label, **style)
        on_real = [p["em"]["real_share"] for p in points]
        right.plot(on_real, [p["em"]["value"] for p in points], label=label, **style)
    left.axhline(data["target"]["cr_paired"], color="0.8", linewidth=1, zorder=0)
    left.set(xlabel="share of real steps", ylabel="paired CR")
    right.set(xlabel="share of real turns", ylabel="exact match")
    left.legend(loc="lower right")
    n = max(point["pooled"]["n"] for point in data["points"])
    figure.suptitle(f"{title}, n = {n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
