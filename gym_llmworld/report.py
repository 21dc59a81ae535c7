"""Results for people, as one self-contained HTML file.

It needs no network and no script. Observations come from a model, so every text is escaped
and a content-security policy forbids whatever might slip through.
"""

from __future__ import annotations

import difflib
import html
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RATE_LABELS = {"real": "Real", "wm": "WM", "w2r": "W2R"}
COMPARISON_LABELS = {
    **_RATE_LABELS,
    "cr": "CR",
    "cr_paired": "CR paired",
    "false_success": "claimed, not real",
}
EM_LABELS = {
    "all": "all turns",
    "as_sets": "all turns, lists as sets",
    "changed": "changed observations",
    "unchanged": "unchanged observations",
    "copy_baseline": "baseline: copy the last observation",
    "majority_baseline": "baseline: majority per verb",
}
SUCCESS_LABELS = {
    "confirmed": "claimed successes that are real",
    "found": "real successes that are claimed",
}


@dataclass(frozen=True, slots=True)
class Transcript:
    """An imagined episode beside its replay in the real world.

    Attributes:
        title: Which game and agent.
        outcome: How both ended, in words.
        opening: The first observation, the same in both.
        turns: ``(action, imagined, real)``; an observation is None where that world had ended.
    """

    title: str
    outcome: str
    opening: str
    turns: tuple[tuple[str, str | None, str | None], ...]


def number(value: float | None, digits: int = 3) -> str:
    """Returns a figure for people; undefined ones are a dash."""
    return "\u2013" if value is None else f"{value:.{digits}f}"


def em_rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of an evaluation's table: which turns, exact match, how many."""
    em, counts = evaluation["em"], evaluation["counts"]
    return [
        [label, number(em[key], 4), str(counts[key]["n"])]
        for key, label in EM_LABELS.items()
        if key in em
    ] + [
        [label, number(rate["value"], 4), str(rate["n"])]
        for key, label in SUCCESS_LABELS.items()
        if (rate := evaluation.get("success", {}).get(key))
    ] + [
        [f"{evaluation['credit']['name']}{whose}", number(evaluation["credit"][key], 4),
         str(evaluation["credit"]["n"])]
        for key, whose in (("model", ""), ("copy_baseline", " of the last observation"))
        if "credit" in evaluation
    ]  # fmt: skip


def agent_rows(comparison: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the rows of a comparison's table: the agents, then their average if it says more."""
    rows = list(comparison["agents"].items())
    if len(rows) > 1 and "average" in comparison:
        rows.append(("average", comparison["average"]))
    return rows


def pass_labels(comparison: Mapping[str, Any]) -> list[str]:
    """Returns the headings of the pass@k columns; none where each game was played once.

    pass@1 has no column: it is the mean over all attempts, which Real and WM are.
    """
    k = comparison.get("attempts", 1)
    return [f"{label} pass@{k}" for label in _RATE_LABELS.values()] if k > 1 else []


def pass_figures(comparison: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Returns an agent's figures for the columns of `pass_labels`; the average row has none."""
    if not pass_labels(comparison):
        return []
    figures = row.get("pass_at", {}).get(str(comparison["attempts"]), {})
    return [number(figures.get(way)) for way in _RATE_LABELS]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    comparison: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    transcripts: Sequence[Transcript] = (),
    note: str = "",
) -> Path:
    """Writes the HTML report; a reader never sees half a file.

    Args:
        path: Replaced if it exists; folders are made.
        title: Heading of the page.
        comparison: What ``llmworld compare`` writes as JSON.
        evaluation: What ``llmworld evaluate`` writes as JSON.
        transcripts: Episodes to show side by side.
        note: A line under the heading, for example the command that was run.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    page = html_report(
        title=title,
        comparison=comparison,
        evaluation=evaluation,
        transcripts=transcripts,
        note=note,
    )
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        draft.write_text(page, encoding="utf-8", errors="replace")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def html_report(
    *,
    title: str,
    comparison: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    transcripts: Sequence[Transcript] = (),
    note: str = "",
) -> str:
    """Returns the page that `write_report` writes."""
    parts = [f"<h1>{_text(title)}</h1>"]
    if note:
        parts.append(f'<p class="note">{_text(note)}</p>')
    if comparison is not None:
        parts += _comparison_sections(comparison)
    if evaluation is not None:
        parts += _evaluation_sections(evaluation)
    if transcripts:
        parts.append("<h2>Imagined and real, side by side</h2>")
        parts.append(
            "<p>The same actions in both worlds. The first answer that differs is marked; after it "
            "the two worlds may have moved apart.</p>"
        )
        parts += [_transcript(transcript) for transcript in transcripts]
    return _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(parts))


def _comparison_sections(comparison: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            name,
            *(number(row[key]) for key in COMPARISON_LABELS),
            *pass_figures(comparison, row),
            str(row["n"]),
        ]
        for name, row in agent_rows(comparison)
    ]
    parts = [
        _facts(
            {
                "environment": comparison["env_id"],
                **_model_facts(comparison),
                "most steps": limits_text(comparison),
            }
        ),
        "<h2>Does success carry over?</h2>",
        _html_table(["agent", *COMPARISON_LABELS.values(), *pass_labels(comparison), "n"], rows),
        "<p>Real: success in the mirrored environment. WM: success that the model claims. W2R: "
        "success when the imagined episode's actions are replayed for real. CR = W2R / Real. "
        "CR paired: share of the really solved games that the replay solves, too. Claimed, not "
        "real: share of all games whose imagined success the replay does not confirm. pass@k: "
        "the chance to solve a game at least once in k attempts. A dash is an undefined ratio.</p>",
    ]
    for name, row in comparison["agents"].items():
        bars = [(label, row[key]) for key, label in _RATE_LABELS.items()]
        caption = f"{name} · CR {number(row['cr'], 2)}"
        parts.append(f"<h3>{_text(caption)}</h3>{_bars(bars)}")
    drift = comparison.get("agreement_by_step", [])
    if drift:
        parts.append("<h2>Agreement along the replay</h2>")
        parts.append(_line_chart("same observation", _points(drift)))
    return parts + _divergence_section(comparison["agents"])


def _divergence_section(agents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    kinds: dict[str, int] = {}
    for row in agents.values():
        for kind, count in row.get("divergences", {}).get("by_kind", {}).items():
            kinds[kind] = kinds.get(kind, 0) + count
    if not kinds:
        return []
    total = sum(kinds.values())
    bars = [
        (f"{kind} ({n})", n / total) for kind, n in sorted(kinds.items(), key=lambda kv: -kv[1])
    ]
    return [f"<h2>What differs first</h2><p>{total} imagined episodes diverge.</p>", _bars(bars)]


def _evaluation_sections(evaluation: Mapping[str, Any]) -> list[str]:
    verbs = [[r["key"], number(r["value"], 4), str(r["n"])] for r in evaluation["by_verb"]]
    return [
        "<h2>Exact match, turn by turn</h2>",
        _facts({**_model_facts(evaluation), "episodes": str(evaluation["episodes"])}),
        _html_table(["turns", "EM", "n"], em_rows(evaluation)),
        _line_chart("exact match", _points(evaluation["by_step"])),
        _html_table(["verb", "EM", "n"], verbs),
    ]


def _model_facts(data: Mapping[str, Any]) -> dict[str, str]:
    style = data.get("prompt_style")
    return {"model": data["model"], **({} if style is None else {"prompt style": style})}


def limits_text(comparison: Mapping[str, Any]) -> str:
    """Returns the step limits of a comparison's games in words."""
    limits = comparison.get("step_limits", {})
    if len(limits) == 1:
        return f"{next(iter(limits))} of each game"
    return ", ".join(f"{limit} ({n} games)" for limit, n in limits.items())


def _points(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, int]]:
    return [(int(r["key"]), float(r["value"]), int(r["n"])) for r in rows if r["n"]]


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items())
    return f"<dl>{items}</dl>"


def _html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{_text(c)}</td>" for c in r) + "</tr>" for r in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _bars(rows: Sequence[tuple[str, float | None]]) -> str:
    """Returns horizontal bars of values in [0, 1]."""
    bars = (
        f"<span>{_text(label)}</span>"
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" fill="currentColor" role="img">'
        '<rect width="100" height="10" fill-opacity="0.12"/>'
        f'<rect width="{100 * min(value or 0.0, 1.0):.2f}" height="10"/></svg>'
        f"<b>{number(value, 2)}</b>"
        for label, value in rows
    )
    return f'<div class="bars">{"".join(bars)}</div>'


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where ``(step, value)`` lies in a chart; values run from ``low`` to 1."""

    last: int
    low: float
    left: int = 44
    top: int = 12
    width: int = 420
    height: int = 180

    def x(self, step: int) -> float:
        return self.left + (step - 1) / max(self.last - 1, 1) * self.width

    def y(self, value: float) -> float:
        return self.top + (1 - (value - self.low) / (1 - self.low)) * self.height

    def axes(self) -> str:
        right, bottom = self.left + self.width, self.top + self.height
        lines = []
        for value in (self.low + (1 - self.low) * i / 4 for i in range(5)):
            y = self.y(value)
            lines.append(
                f'<line stroke="currentColor" opacity="0.2" x1="{self.left}" x2="{right}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>'
            )
        lines += [
            f'<text x="{self.x(step):.1f}" y="{bottom + 18}" text-anchor="middle">{step}</text>'
            for step in sorted({1, (self.last + 1) // 2, self.last})
        ]
        return "".join(lines)


def _line_chart(name: str, points: Sequence[tuple[int, float, int]]) -> str:
    """Returns an SVG of ``(step, value in [0, 1], n)`` points, in the order of the steps."""
    if not points:
        return ""
    low = min(0.9, int(min(value for _, value, _ in points) * 10) / 10)
    frame = _Frame(last=points[-1][0], low=low)
    most = max(n for _, _, n in points)
    path = " ".join(f"{frame.x(step):.1f},{frame.y(value):.1f}" for step, value, _ in points)
    dots = "".join(
        f'<circle cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" r="3" '
        f'opacity="{0.3 + 0.7 * n / most:.2f}">'
        f"<title>step {step}: {value:.4f} (n = {n})</title></circle>"
        for step, value, n in points
    )
    caption = f"{name} by step; the axis starts at {low:.2f}, pale points rest on few episodes"
    box = f"0 0 {frame.left + frame.width + 12} {frame.top + frame.height + 26}"
    return (
        f'<figure><svg class="chart" viewBox="{box}" fill="currentColor" font-size="12" role="img">'
        f'{frame.axes()}<polyline fill="none" stroke="currentColor" points="{path}"/>{dots}</svg>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _transcript(transcript: Transcript) -> str:
    differs = next(
        (i for i, (_, ours, true) in enumerate(transcript.turns) if not _same(ours, true)), None
    )
    rows = "".join(
        _turn(i, turn, marked=i == differs) for i, turn in enumerate(transcript.turns, start=0)
    )
    where = "no difference" if differs is None else f"first difference at step {differs + 1}"
    return (
        f"<details><summary>{_text(transcript.title)} · {_text(transcript.outcome)} · {where}"
        f'</summary><pre class="opening">{_text(transcript.opening)}</pre>'
        f'<div class="pair head"><div>imagined</div><div>real</div></div>{rows}</details>'
    )


def _same(ours: str | None, true: str | None) -> bool:
    return ours is not None and true is not None and ours.strip() == true.strip()


def _turn(index: int, turn: tuple[str, str | None, str | None], *, marked: bool) -> str:
    action, ours, true = turn
    if marked and ours is not None and true is not None:
        left, right = _marked_difference(ours, true)
    else:
        left, right = _observation(ours), _observation(true)
    return (
        f'<div class="action{" differs" if marked else ""}">{index + 1} &gt; {_text(action)}</div>'
        f'<div class="pair{" differs" if marked else ""}"><div>{left}</div><div>{right}</div></div>'
    )


def _observation(text: str | None) -> str:
    return "<i>(ended)</i>" if text is None else _text(text)


def _marked_difference(ours: str, true: str) -> tuple[str, str]:
    """Returns both texts with the words that only one of them has in ``<mark>``."""
    a, b = re.findall(r"\s+|[^\s]+", ours), re.findall(r"\s+|[^\s]+", true)
    left, right = [], []
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        ours_part, true_part = _text("".join(a[a0:a1])), _text("".join(b[b0:b1]))
        same = tag == "equal"
        left.append(ours_part if same or not ours_part else f"<mark>{ours_part}</mark>")
        right.append(true_part if same or not true_part else f"<mark>{true_part}</mark>")
    return "".join(left), "".join(right)


def _text(value: str) -> str:
    # Control characters other than newline and tab are no valid HTML, even escaped.
    return html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", value))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1f24; --soft: #5b6570; --paper: #fff; --panel: #f4f6f8; --line: #d5dbe1;
  --accent: #1f6feb; --warn: #fff1c2; --mark: #ffc9c0; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6e9ed; --soft: #9aa5b1; --paper: #14171b; --panel: #1e2329; --line: #363d46;
  --accent: #6ea8ff; --warn: #3d3415; --mark: #7a2e24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
.note, figcaption, dt { color: var(--soft); }
.note { overflow-wrap: anywhere; font: .85rem/1.45 ui-monospace, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; }
table, .bars b { font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .2rem .7rem;
  align-items: center; }
.bars svg { width: 100%; height: .9rem; color: var(--accent); }
.bars b { font-weight: 600; }
figure { margin: 1rem 0; }
.chart { width: 100%; max-width: 40rem; height: auto; }
.chart { color: var(--accent); }
.chart text, .chart line { color: var(--soft); }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .6rem 0;
  padding: .5rem .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre, .pair, .action { font: .85rem/1.45 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.opening, .pair > div { background: var(--panel); border-radius: .4rem; padding: .4rem .6rem; }
.action { margin-top: .6rem; font-weight: 600; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; }
.pair.head > div { background: none; color: var(--soft); padding: 0 .6rem; }
.pair.differs > div { background: var(--warn); }
mark { background: var(--mark); color: inherit; border-radius: .2rem; }
@media (max-width: 36rem) {
  .pair { grid-template-columns: 1fr; gap: .2rem; }
  .pair.head { display: none; }
  .pair > div::before { color: var(--soft); }
  .pair > div:first-child::before { content: "imagined: "; }
  .pair > div:last-child::before { content: "real: "; }
  th, td { padding: .3rem .25rem; font-size: .9rem; }
}
"""
