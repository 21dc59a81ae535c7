"""The HTML report: complete, self-contained, and safe against what a model writes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gym_llmworld.report import EM_LABELS, Transcript, html_report, number, write_report

VOID = {"meta", "br", "line", "rect"}
ROW = {"real": 0.9, "wm": 0.8, "w2r": 0.7, "cr": 0.7 / 0.9, "cr_paired": 0.75, "n": 10}
ROW["false_success"] = 0.1125
NOTHING = {**dict.fromkeys(ROW, None), "real": 0.0, "wm": 0.25, "w2r": 0.0, "n": 10}
NOTHING["false_success"] = 0.25
COMPARISON: dict[str, Any] = {
    "env_id": "LLMWorld-ALFWorld-v0",
    "model": "embedded",
    "prompt_style": "engine",
    "step_limits": {"100": 9, "240": 1},
    "n": 10,
    "agents": {
        "expert": {**ROW, "divergences": {"by_kind": {"wrong state": 3, "missing object": 1}}},
        "random": {**NOTHING, "divergences": {"by_kind": {"wrong state": 1}}},
    },
    "average": {**ROW, "real": 0.45},
    "agreement_by_step": [
        {"key": 1, "value": 1.0, "hits": 10, "n": 10},
        {"key": 2, "value": 0.5, "hits": 5, "n": 10},
    ],
}
EVALUATION: dict[str, Any] = {
    "model": "embedded",
    "prompt_style": "engine",
    "episodes": 4,
    "em": {part: 0.98765 for part in EM_LABELS},
    "counts": {part: {"hits": 1, "n": 7} for part in EM_LABELS},
    "by_step": [{"key": 1, "value": 0.95, "hits": 19, "n": 20}],
    "by_verb": [{"key": "go", "value": None, "hits": 0, "n": 0}],
}
TURNS = (
    ("go to desk 1", "You see a pen 1.", "You see a pen 1."),
    ("open drawer 1", "You see a cup 1.", "You see a mug 1."),
    ("look", "only imagined", None),
)
TRANSCRIPT = Transcript("expert: put a pen", "real solved", "You are in a room.", TURNS)


class Outline(HTMLParser):
    """Notes elements and checks that they close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(**parts: Any) -> str:
    return html_report(title="A report", **parts)


def test_a_whole_report_is_well_formed_and_says_everything() -> None:
    html = page(
        comparison=COMPARISON, evaluation=EVALUATION, transcripts=[TRANSCRIPT], note="llmworld x"
    )
    outline = Outline(html)
    for text in ("A report", "llmworld x", "expert", "average", "CR 0.78", "wrong state (4)"):
        assert text in outline.text
    assert "5 imagined episodes diverge" in outline.text
    for text in ("claimed, not real", "0.113", "0.250", "100 (9 games), 240 (1 games)", "engine"):
        assert text in outline.text
    assert "lists as sets" in outline.text
    assert "0.9877" in outline.text
    assert "first difference at step 2" in outline.text
    assert outline.elements.count("polyline") == 2


def test_the_page_needs_nothing_from_outside() -> None:
    html = page(comparison=COMPARISON, evaluation=EVALUATION, transcripts=[TRANSCRIPT])
    assert not {"script", "link", "img", "iframe"} & set(Outline(html).elements)
    assert not re.search(r"https?://|@import|url\(", html)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "</div></details><h1>owned</h1>",
        "<img src=x onerror=alert(1)>",
        '" onmouseover="alert(1)',
        "{title}{style}{body} %s \\1",
    ],
)
def test_hostile_text_stays_text(hostile: str) -> None:
    turns = ((hostile, hostile, "You see a mug 1."), (hostile, None, hostile))
    transcript = Transcript(hostile, hostile, hostile, turns)
    agents = {hostile: COMPARISON["agents"]["expert"]}
    comparison = {**COMPARISON, "agents": agents, "model": hostile, "env_id": hostile}
    evaluation = {**EVALUATION, "model": hostile}
    harmless = {**COMPARISON, "agents": {"x": agents[hostile]}}
    attacked = Outline(
        page(comparison=comparison, evaluation=evaluation, transcripts=[transcript], note=hostile)
    )
    clean = Outline(
        page(
            comparison=harmless,
            evaluation=EVALUATION,
            transcripts=[Transcript("", "", "", (("", "a", "You see a mug 1."), ("", None, "")))],
            note="x",
        )
    )
    # However the text is marked up, it adds no elements but highlights.
    strip = [e for e in attacked.elements if e != "mark"]
    assert strip == [e for e in clean.elements if e != "mark"]
    assert hostile in attacked.text


def test_control_characters_are_replaced() -> None:
    html = page(note="a\x00b\x1b[31mc")
    assert "a\ufffdb\ufffd[31mc" in html


def test_only_the_first_difference_is_marked_word_by_word() -> None:
    turns = (*TURNS[:2], ("look", "x y", "x z"))
    html = page(transcripts=[Transcript("t", "o", "s", turns)])
    assert html.count("<mark>") == 2
    assert "You see a <mark>cup</mark> 1." in html
    assert "You see a <mark>mug</mark> 1." in html


def test_an_episode_that_ends_first_differs_there() -> None:
    html = page(transcripts=[Transcript("t", "o", "s", (("a", "x", "x"), ("b", "y", None)))])
    assert "first difference at step 2" in html
    assert "(ended)" in html


def test_equal_episodes_have_no_difference() -> None:
    html = page(transcripts=[Transcript("t", "o", "s", (("a", "x", " x"),))])
    assert "no difference" in html
    assert "<mark>" not in html


def test_lists_as_sets_have_a_row_only_where_they_were_compared() -> None:
    strict = {part: value for part, value in EVALUATION["em"].items() if part != "as_sets"}
    outline = Outline(page(evaluation={**EVALUATION, "em": strict}))
    assert "lists as sets" not in outline.text
    assert "all turns" in outline.text


def test_undefined_figures_are_dashes() -> None:
    assert (number(None), number(0.0), number(2 / 3, 2)) == ("\u2013", "0.000", "0.67")
    assert "\u2013" in Outline(page(comparison=COMPARISON)).text


def test_empty_parts_are_left_out() -> None:
    empty = {**COMPARISON, "agents": {}, "agreement_by_step": []}
    outline = Outline(page(comparison=empty, evaluation={**EVALUATION, "by_step": []}))
    assert "polyline" not in outline.elements


def test_write_report_replaces_whole_files_and_makes_folders(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    assert write_report(target, title="one") == target
    write_report(target, title="two \ud800")
    assert "two ?" in target.read_text(encoding="utf-8")
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
