"""What comes out of `training.policy_experiment`: rows, their summary over seeds, a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.card import write_atomically
from training.plots import draw_curves
from training.series import plus_minus, spread
from training.success import ALL

SFT, IMAGINED, REAL = "sft", "imagined", "real"
ENVIRONMENTS = {IMAGINED: "LLMWorld-ALFWorld-v0", REAL: "RealWorld-ALFWorld-v0"}
SAMPLED, GREEDY = "sampled", "greedy"


def row_file(folder: Path, update: int) -> Path:
    """Returns where the row of an evaluated agent stands."""
    return folder / f"row-{update:04d}.json"


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Reads the rows of all agents that are evaluated, by arm, seed and update."""
    rows = [
        json.loads(file.read_text(encoding="utf-8")) for file in output.glob("*-seed*/row-*.json")
    ]
    arms = (SFT, IMAGINED, REAL)
    return sorted(rows, key=lambda row: (arms.index(row["arm"]), row["seed"], row["update"]))


def summarise(rows: Sequence[Mapping[str, Any]], way: str) -> dict[str, Any]:
    """Gathers success over seeds.

    Args:
        rows: As of `rows_of`.
        way: `SAMPLED` or `GREEDY`.

    Returns:
        Arm -> points with ``x`` (updates), `spread` of the success on all games, ``splits`` with
        that of each split, and ``gain``, the spread of the success above the same seed's supervised
        agent; and ``kept``, what is left of the real gain.
    """
    start = {row["seed"]: row for row in rows if row["arm"] == SFT}
    summary: dict[str, Any] = {}
    for arm in (SFT, IMAGINED, REAL):
        own = [r for r in rows if r["arm"] == arm and r["seed"] in start and way in r]
        updates = sorted({row["update"] for row in own})
        curve = []
        for update in updates:
            points = [row for row in own if row["update"] == update]
            values = [row[way][ALL]["value"] for row in points]
            gains = [
                row[way][ALL]["value"] - start[row["seed"]][way][ALL]["value"] for row in points
            ]
            curve.append(
                {
                    "x": update,
                    **spread(values),
                    "gain": spread(gains),
                    "seeds": [row["seed"] for row in points],
                    "splits": {
                        split: spread([row[way][split]["value"] for row in points])
                        for split in points[0][way]
                    },
                }
            )
        if curve:
            summary[arm] = curve
    kept = _kept(summary)
    return summary if kept is None else {**summary, "kept": kept}


def _kept(summary: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Compares the gains at the last update that both arms have reached with the same seeds."""
    curves = {arm: {point["x"]: point for point in summary.get(arm, ())} for arm in ENVIRONMENTS}
    shared = [
        x
        for x, point in curves[IMAGINED].items()
        if x in curves[REAL] and curves[REAL][x]["seeds"] == point["seeds"]
    ]
    if not shared:
        return None
    at = max(shared)
    imagined, real = (curves[arm][at]["gain"]["mean"] for arm in (IMAGINED, REAL))
    return {
        "update": at,
        "imagined_gain": imagined,
        "real_gain": real,
        "ratio": imagined / real if real > 0 else None,
    }


def publish(
    output: Path, results: Path, seeds: Sequence[int], command: str
) -> list[dict[str, Any]]:
    """Writes rows and plot of what there is; returns the rows."""
    rows = rows_of(output)
    if not rows:
        return rows
    summary = {way: summarise(rows, way) for way in (SAMPLED, GREEDY)}
    results.parent.mkdir(parents=True, exist_ok=True)
    written = {"command": command, "seeds": list(seeds), "summary": summary}
    write_atomically(results, {**written, "rows": rows})
    if SFT in summary[SAMPLED] and len(summary[SAMPLED]) > 1:
        panels = {
            f"{way}, {split} (n={rows[0][way][split]['n']})": _curves(summary[way], split)
            for way in (SAMPLED, GREEDY)
            for split in rows[0][way]
        }
        title = "Held-out games solved in the real engine"
        draw_curves(panels, results.with_suffix(".png"), title, "updates of GRPO")
    return rows


def _curves(summary: Mapping[str, Any], split: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the learning curve of each arm from the supervised agent on."""
    return {
        arm: [{"x": p["x"], **p["splits"][split]} for p in [*summary[SFT], *summary[arm]]]
        for arm in ENVIRONMENTS
        if arm in summary
    }


def table(summary: Mapping[str, Any], way: str) -> Any:
    """Returns the table of a summary, for people."""
    from rich.table import Table

    table = Table(title=f"held-out games solved in the real engine, {way}")
    for column in ("agent", "updates", "success", "gain", "seeds"):
        table.add_column(column)
    for arm in (SFT, IMAGINED, REAL):
        for point in summary.get(arm, ()):
            table.add_row(
                arm, str(point["x"]), plus_minus(point), plus_minus(point["gain"]),
                str(len(point["seeds"])),
            )  # fmt: skip
    return table
