"""Results as tables for the terminal, from the same JSON that the commands write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from gym_llmworld.collection import Tally
from gym_llmworld.doctor import Finding
from gym_llmworld.report import (
    COMPARISON_LABELS,
    agent_rows,
    em_rows,
    limits_text,
    number,
    pass_figures,
    pass_labels,
)

_FINDING_STYLES = {"ok": "green", "optional": "dim", "missing": "bold red", "broken": "bold red"}


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def comparison_table(data: Mapping[str, Any]) -> Table:
    """Returns the table of a ``llmworld compare`` report."""
    headings = (*COMPARISON_LABELS.values(), "n", "errors")
    table = _table(f"{data['env_id']} against the real world", "agent", *headings)
    for name, row in agent_rows(data):
        figures = [number(row[key]) for key in COMPARISON_LABELS]
        table.add_row(name, *figures, str(row["n"]), str(row.get("errors", "")))
    table.caption = f"most steps: {limits_text(data)}"
    unanswered = sum(row["unanswered"] for row in data["agents"].values())
    if unanswered:
        table.caption += f"; {unanswered} imagined episodes ended without a usable answer"
    stopped = sum(row["stopped"] for row in data["agents"].values())
    if stopped:
        table.caption += f"; {stopped} because the agent's context was full"
    return table


def pass_table(data: Mapping[str, Any]) -> Table:
    """Returns the pass@k table of a ``llmworld compare`` report with several attempts."""
    title = f"Solved at least once in {data['attempts']} attempts"
    table = _table(title, "agent", *pass_labels(data), "games")
    for name, row in data["agents"].items():
        table.add_row(name, *pass_figures(data, row), str(row["n"] // data["attempts"]))
    return table


def evaluation_table(data: Mapping[str, Any]) -> Table:
    """Returns the table of a ``llmworld evaluate`` report."""
    title = f"Exact match of {data['model']} (prompt style {data['prompt_style']})"
    table = _table(title, "turns", "EM", "n")
    for row in em_rows(data):
        table.add_row(*row)
    wrong = ", ".join(f"{n} {reason}" for reason, n in data["errors"].items())
    table.caption = f"without a complete answer: {wrong or 'none'}"
    return table


def collection_table(by_policy: Mapping[str, Tally]) -> Table:
    """Returns the table of a collection, one row per policy."""
    table = _table(
        "Collected episodes", "policy", "episodes", "steps", "solved", "duplicates dropped"
    )
    for name, tally in by_policy.items():
        counts = (tally.episodes, tally.steps)
        table.add_row(name, *map(str, counts), number(tally.success_rate, 2), str(tally.duplicates))
    return table


def bench_table(data: Mapping[str, Any], speed_up: float | None) -> Table:
    """Returns the table of a ``llmworld bench`` report."""
    table = _table(f"Speed of {data['model']}", "worlds", "steps/s", "tokens/s")
    for row in data["rows"]:
        table.add_row(
            str(row["num_envs"]),
            number(row["steps_per_second"], 1),
            number(row["tokens_per_second"], 0),
        )
    costs: Sequence[float] = data["step_cost"]
    notes = [f"most worlds over one: {number(speed_up, 1)}x"]
    if len(costs) >= 40:
        notes.append(f"step 40 over step 5: {costs[39] / costs[4]:.2f}x")
    table.caption = "; ".join(notes)
    return table


def finding_lines(findings: Sequence[Finding]) -> Iterator[Text]:
    """Yields the lines of ``llmworld doctor``; a fix stands on its own line, to be copied."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        status = (f"{finding.status:9}", _FINDING_STYLES[finding.status])
        yield Text.assemble(status, f"{finding.name:{width}}  ", (finding.detail, "dim"))
        if finding.fix:
            yield Text.assemble(" " * (9 + width + 2), (finding.fix, "cyan"))
