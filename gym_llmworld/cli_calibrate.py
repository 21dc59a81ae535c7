"""``llmworld calibrate``: fits the confidence of a world model to held-out real steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gym_llmworld.cli_options import BackendName, EnvId, ModelName, PromptStyle
from gym_llmworld.cli_output import console, progress_bar, say, write_json
from gym_llmworld.core import Episode

FIGURE = "reliability.png"


def calibrate(
    env_id: EnvId,
    data: Annotated[Path, typer.Option(help="Held-out real episodes, made by 'llmworld collect'.")],
    model: ModelName = None,
    backend: BackendName = "auto",
    prompt_style: PromptStyle = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Further samples per measured step, for their agreement.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the split by scenario.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for report, diagram and fit.")] = Path(
        "out/calibration"
    ),
    install: Annotated[
        bool, typer.Option("--install", help="Put the fit beside the weights, where it is used.")
    ] = False,
) -> None:
    """Fit the confidence of a world model to held-out real steps: how probably is a step right.

    One half of the scenarios is fitted, the other measured: expected calibration error, AUROC of
    "this step is wrong", and a reliability diagram, beside the plain sequence probability and the
    agreement between samples.

    Example: `llmworld calibrate LLMWorld-ALFWorld-v0 --data real.jsonl --samples 5 --install`
    """
    from gym_llmworld import calibration, reliability
    from gym_llmworld.checkpoints import embedded_model
    from gym_llmworld.cli_worlds import ModelChoice, check_episodes, world_of
    from gym_llmworld.episodes import read_episodes

    world = world_of(env_id)
    choice = ModelChoice(model, backend, prompt_style)
    folder = Path(embedded_model(world.key) if model is None else model)
    _check_folder(folder, install)
    episodes = list(read_episodes(data))
    check_episodes(episodes, world, data)
    fitted_on, measured_on = reliability.split_by_scenario(episodes, seed)
    engine, protocol = choice.open(world)
    halves = []
    for label, half, drawn in (("fit", fitted_on, 0), ("measure", measured_on, samples)):
        with progress_bar(label) as progress:
            halves.append(
                reliability.judge(
                    engine,
                    protocol,
                    half,
                    samples=drawn,
                    max_tokens=world.max_tokens,
                    progress=progress,
                )
            )
    engine.close()
    fit = reliability.fit(halves[0])
    ways = reliability.compare_confidences(fit, halves[1], seed=seed)
    report = {
        "env_id": env_id,
        "model": choice.name,
        "prompt_style": protocol.style,
        "data": data.name,
        "seed": seed,
        "samples": samples,
        "fit": {
            "n": len(halves[0]),
            "wrong": sum(not step.right for step in halves[0]),
            "scenarios": _scenarios(fitted_on),
        },
        "scenarios": _scenarios(measured_on),
        "ways": {way: dataclasses.asdict(result) for way, result in ways.items()},
    }
    shipped = calibration.with_calibration(str(folder), protocol.style, fit, _summary(report))
    console.print(reliability_table(report))
    write_json(out / "report.json", report)
    for target in (out, *((folder,) if install else ())):
        write_json(target / calibration.CALIBRATION_FILE, shipped)
        say(f"calibration: {target / calibration.CALIBRATION_FILE}", "dim")
    draw_reliability(out / FIGURE, report)
    say(f"report: {out / 'report.json'}, diagram: {out / FIGURE}", "dim")


def _scenarios(episodes: Sequence[Episode]) -> int:
    return len({episode.scenario.id for episode in episodes})


def _check_folder(folder: Path, install: bool) -> None:
    if install and not folder.is_dir():
        raise ValueError(
            f"--install puts a file beside the weights, but {str(folder)!r} is no folder; leave it "
            "out, and the file stands in the folder of --out"
        )


def _summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what stands in the calibration itself, for people: where from, and how good."""
    measured = report["ways"]["calibrated"]
    figures = {key: measured[key] for key in ("n", "wrong", "ece", "brier", "auroc", "auroc_95")}
    return {
        **{key: report[key] for key in ("data", "seed")},
        "on": report["fit"],
        "measured": {**figures, "scenarios": report["scenarios"]},
    }


def reliability_table(report: Mapping[str, Any]) -> Any:
    """Returns the table of a ``llmworld calibrate`` report."""
    from rich.table import Table

    from gym_llmworld.report import number

    table = Table(title=f"Confidence of {report['model']}", title_justify="left")
    table.add_column("confidence", no_wrap=True)
    for heading in ("ECE", "Brier", "AUROC", "95 %", "n", "wrong"):
        table.add_column(heading, justify="right", no_wrap=True)
    for way, row in report["ways"].items():
        low, high = row["auroc_95"] or (None, None)
        table.add_row(
            way,
            *(number(row[key], 4) for key in ("ece", "brier", "auroc")),
            f"{number(low, 2)}, {number(high, 2)}",
            str(row["n"]),
            str(row["wrong"]),
        )
    fit = report["fit"]
    table.caption = (
        "AUROC of 'this step is wrong'; "
        f"fitted on {fit['n']} steps ({fit['wrong']} wrong) of {fit['scenarios']} other scenarios; "
        f"measured on {report['scenarios']}"
    )
    return table


def draw_reliability(path: Path, report: Mapping[str, Any]) -> None:
    """Draws the reliability diagram: accuracy against confidence, and how many steps lie where.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    from gym_llmworld.errors import MissingDependency

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "viz") from error
    figure = Figure(figsize=(6, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for way, row in report["ways"].items():
        bins = [b for b in row["bins"] if b["n"]]
        label = f"{way}: ECE {row['ece']:.3f}"
        upper.plot(
            [b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", label=label
        )
        centers = [(b["low"] + b["high"]) / 2 for b in bins]
        lower.plot(centers, [b["n"] for b in bins], marker="o", linestyle="none")
    upper.set(ylabel="share of right steps", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(loc="upper left")
    lower.set(xlabel="confidence", ylabel="steps", yscale="log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
