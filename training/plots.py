"""Figures of the training series."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """One world in a panel.

    Attributes:
        name: For the legend.
        points: With ``x``, ``mean``, ``min``, ``max`` and the single ``values``.
        baseline: A level to compare with; None without.
    """

    name: str
    points: Sequence[Mapping[str, Any]]
    baseline: float | None


@dataclass(frozen=True)
class Panel:
    """Exact match against one quantity, on a logarithmic axis."""

    quantity: str
    lines: Sequence[Line]


def draw(panels: Sequence[Panel], file: Path, title: str, subtitle: str) -> None:
    """Draws curves with their spread over seeds; the file's suffix says the format."""
    figure = _figure(5.2 * len(panels), title, subtitle)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, line in enumerate(panel.lines):
            colour = f"C{number}"
            x = [point["x"] for point in line.points]
            mean = [point["mean"] for point in line.points]
            reach = _reach(line.points)
            axes.errorbar(x, mean, reach, color=colour, marker="o", capsize=3, label=line.name)
            for point in line.points:
                values = point["values"]
                axes.plot([point["x"]] * len(values), values, ".", color=colour, alpha=0.5)
            if line.baseline is not None:
                label = f"{line.name}: most frequent answer per verb"
                axes.axhline(line.baseline, color=colour, ls=":", lw=1, label=label)
        axes.set_xscale("log")
        axes.set_xlabel(panel.quantity)
        axes.set_ylabel("exact match")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    _save(figure, file)


def draw_bars(
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
    file: Path,
    title: str,
    subtitle: str,
    quantity: str = "exact match",
) -> None:
    """Draws groups (worlds) of bars (kinds of model) with their spread over seeds.

    Args:
        groups: Group -> bar -> ``mean``, ``min``, ``max``.
        file: Its suffix says the format.
        title: Above the figure.
        subtitle: Below the title.
        quantity: What the bars show, from 0 to 1.
    """
    figure = _figure(2.2 + 2.2 * len(groups), title, subtitle)
    axes = figure.subplots()
    kinds = list(next(iter(groups.values())))
    for number, kind in enumerate(kinds):
        points = [bars[kind] for bars in groups.values()]
        width = 0.78 / len(kinds)
        x = [group + (number - (len(kinds) - 1) / 2) * width for group in range(len(groups))]
        means = [point["mean"] for point in points]
        axes.bar(x, means, 0.92 * width, yerr=_reach(points), capsize=3, label=kind)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(quantity)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3, axis="y")
    figure.legend(fontsize="small", loc="outside lower center", ncols=len(kinds))
    _save(figure, file)


def draw_curves(
    panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    file: Path,
    title: str,
    quantity: str,
) -> None:
    """Draws learning curves: the mean over seeds, and the range of the seeds around it.

    Args:
        panels: Panel -> line -> points with ``x``, ``mean``, ``min`` and ``max``.
        file: Its suffix says the format.
        title: Above the figure.
        quantity: Of the horizontal axis.
    """
    figure = _figure(4.6 * len(panels), title, f"against {quantity}")
    for axes, (name, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (line, points) in enumerate(lines.items()):
            x = [point["x"] for point in points]
            axes.plot(x, [point["mean"] for point in points], color=f"C{number}", label=line)
            low, high = ([point[key] for point in points] for key in ("min", "max"))
            axes.fill_between(x, low, high, color=f"C{number}", alpha=0.15)
        axes.set_title(name, fontsize="small")
        axes.set_xlabel(quantity)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    _save(figure, file)


def _reach(points: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    below = [point["mean"] - point["min"] for point in points]
    return [below, [point["max"] - point["mean"] for point in points]]


def _figure(width: float, title: str, subtitle: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.2, width), 4.4), layout="constrained")
    figure.suptitle(f"{title}\n{subtitle}", fontsize="medium")
    return figure


def _save(figure: Any, file: Path) -> None:
    # In one piece: the plot is drawn again after every point.
    draft = file.with_name(f".{file.name}.part{file.suffix}")
    figure.savefig(draft, dpi=120)
    os.replace(draft, file)
