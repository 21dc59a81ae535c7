"""How far an imagined world and its real twin agree: pure functions over text and outcomes.

What failed stays in the denominator, as a failure; an undefined ratio is None, never 0; n is always
part of the result. Definitions follow Word2World (arXiv 2512.18832, section 4 and its published
scripts) where it has one, and say so where they go further.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Progress = Callable[[int, int], None]
"""Told, now and then, how much is done and how much there is."""

_Key = TypeVar("_Key", int, str)
_VERB = re.compile(r"[a-z]+")
_WORD = re.compile(r"\w+")
_SECTION = re.compile(r"^\s*(new|deleted|updated) items:\s*$", re.IGNORECASE | re.MULTILINE)
_SPECIAL_TOKEN = re.compile(r"<[|\uff5c][^<>|\uff5c\s]{1,64}[|\uff5c]>|</s>")
# What separates the single statements of an observation.
_STATEMENT = re.compile(r"[\n,;]+|\.(?=\s|$)|\band\b")


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of trials.

    Attributes:
        hits: Trials that came out true.
        n: All trials, failed ones included.
    """

    hits: int
    n: int

    @property
    def value(self) -> float | None:
        """``hits / n`` as a fraction, None without trials."""
        return self.hits / self.n if self.n else None

    def to_json(self) -> dict[str, Any]:
        """Returns ``{"value", "hits", "n"}``."""
        return {"value": self.value, "hits": self.hits, "n": self.n}

    @classmethod
    def of(cls, outcomes: Iterable[bool | None]) -> Rate:
        """Counts outcomes; None (the trial broke) is a failure, not a smaller n."""
        counted = [outcome is True for outcome in outcomes]
        return cls(hits=sum(counted), n=len(counted))


@dataclass(frozen=True, slots=True)
class Turn:
    """One predicted turn of a real episode.

    Attributes:
        step: 1 for the turn that answers the first action.
        action: What the agent did.
        previous: The observation that the agent saw before, without a success marker.
        truth: What the world answered, with the marker when it ended in success.
        prediction: What the model wrote, None when it gave no complete answer.
    """

    step: int
    action: str
    previous: str
    truth: str
    prediction: str | None

    @property
    def correct(self) -> bool:
        """Whether the model wrote exactly what the world answered; no answer is wrong."""
        return self.prediction is not None and exact_match(self.prediction, self.truth)

    @property
    def changed(self) -> bool:
        """Whether the world answered something else than the observation before.

        A repeated text that ends in the success marker counts as changed.
        """
        return not exact_match(self.previous, self.truth)


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Exact match of many turns, whole and in parts, with two baselines that know no world.

    Attributes:
        all: Over all turns; long episodes weigh more (micro mean, as published).
        changed: Over turns whose observation differs from the one before.
        unchanged: Over the others.
        copy_baseline: A predictor that repeats the observation before; by definition the share of
            unchanged turns.
        majority_baseline: A predictor that knows the action's verb and nothing else, and answers
            the most frequent observation of that verb *in these very turns*: no constant answer per
            verb can do better.
        by_step: Per step index, 1 first.
        by_verb: Per verb of the action, most frequent first.
        as_sets: Like ``all``, with lists compared as sets; None where that is not asked for.
    """

    all: Rate
    changed: Rate
    unchanged: Rate
    copy_baseline: Rate
    majority_baseline: Rate
    by_step: Mapping[int, Rate]
    by_verb: Mapping[str, Rate]
    as_sets: Rate | None = None


@dataclass(frozen=True, slots=True)
class SuccessMatch:
    """Whether a model says success where the world does; what a policy that learns in it is paid.

    Exact match hardly shows it: an episode has one such turn, and players who know what they do
    never deliver what nobody asked for.

    Attributes:
        confirmed: Share of the claimed successes that are real (precision).
        found: Share of the real successes that are claimed (recall).
    """

    confirmed: Rate
    found: Rate


@dataclass(frozen=True, slots=True)
class Consistency:
    """Whether success in the imagined world means success in the real one.

    Attributes:
        n: Games, each played in all three ways.
        real: Success of the agent in the real world.
        wm: Success in the imagined world, as the model claims it.
        w2r: Success of the imagined episode's actions, replayed in the real world.
        cr: ``w2r / real``, the published consistency ratio (of rates; it may exceed 1). None when
            the agent never succeeds in the real world.
        cr_paired: Share of the really solved games that the replay solves too, ``|real and w2r| /
            |real|`` (CR_pw of arXiv 2604.13824); None in the same case.
        false_success: Share of the games whose imagined success the replay does not confirm,
            ``|wm and not w2r| / n``. A ratio of successes does not show them.
    """

    n: int
    real: float | None
    wm: float | None
    w2r: float | None
    cr: float | None
    cr_paired: float | None
    false_success: float | None


def exact_match(prediction: str, truth: str) -> bool:
    """Returns whether two observations are the same text.

    Word2World's definition: equality after ``strip()``, the success marker included, nothing else
    normalised.
    """
    return prediction.strip() == truth.strip()


def action_verb(action: str) -> str:
    """Returns the leading lower-case word of an action (``"go"``, ``"search"``), or ``"?"``."""
    match = _VERB.match(action.strip().lower())
    return match.group() if match else "?"


def success_match(told: Sequence[tuple[bool, bool]]) -> SuccessMatch:
    """Compares claimed with real success.

    Args:
        told: For each turn, whether the model says success, and whether the world does.
    """
    return SuccessMatch(
        confirmed=Rate.of(real for claimed, real in told if claimed),
        found=Rate.of(claimed for claimed, real in told if real),
    )


def exact_match_rates(
    turns: Sequence[Turn], canonical: Callable[[str], str] | None = None
) -> ExactMatch:
    """Aggregates predicted turns; every rate of an empty part is undefined.

    Args:
        turns: In any order.
        canonical: Gives texts that list the same things the same text; asks for ``as_sets``.
    """
    return ExactMatch(
        all=Rate.of(turn.correct for turn in turns),
        changed=Rate.of(turn.correct for turn in turns if turn.changed),
        unchanged=Rate.of(turn.correct for turn in turns if not turn.changed),
        copy_baseline=Rate.of(not turn.changed for turn in turns),
        majority_baseline=_majority(turns),
        by_step=dict(sorted(_grouped((turn.step, turn.correct) for turn in turns).items())),
        by_verb=_most_frequent_first(
            _grouped((action_verb(turn.action), turn.correct) for turn in turns)
        ),
        as_sets=None if canonical is None else _as_sets(turns, canonical),
    )


def _as_sets(turns: Sequence[Turn], canonical: Callable[[str], str]) -> Rate:
    return Rate.of(
        turn.prediction is not None
        and exact_match(canonical(turn.prediction.strip()), canonical(turn.truth.strip()))
        for turn in turns
    )


def _majority(turns: Sequence[Turn]) -> Rate:
    truths: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for turn in turns:
        truths[action_verb(turn.action)][turn.truth.strip()] += 1
    return Rate(hits=sum(max(count.values()) for count in truths.values()), n=len(turns))


def _grouped(outcomes: Iterable[tuple[_Key, bool]]) -> dict[_Key, Rate]:
    groups: defaultdict[_Key, list[bool]] = defaultdict(list)
    for key, outcome in outcomes:
        groups[key].append(outcome)
    return {key: Rate.of(group) for key, group in groups.items()}


def _most_frequent_first(rates: Mapping[str, Rate]) -> dict[str, Rate]:
    return dict(sorted(rates.items(), key=lambda item: (-item[1].n, item[0])))


def consistency_ratio(w2r: float | None, real: float | None) -> float | None:
    """Returns ``w2r / real``, or None where it is undefined.

    Both are rates in the same unit; for a table's average row, pass the averaged rates (as
    published: 59.19 / 61.51 = 0.96), not the mean of the ratios.
    """
    if w2r is None or not real:
        return None
    return w2r / real


def consistency(
    real: Sequence[bool | None], wm: Sequence[bool | None], w2r: Sequence[bool | None]
) -> Consistency:
    """Compares the three outcomes of each game.

    Args:
        real: ``N`` outcomes of the agent in the real world; None when the trial broke.
        wm: ``N`` outcomes in the imagined world, same games in the same order.
        w2r: ``N`` outcomes of replaying the imagined actions.

    Returns:
        Rates with all ``N`` games in each denominator.

    Raises:
        ValueError: The three lists do not pair up.
    """
    if not len(real) == len(wm) == len(w2r):
        raise ValueError(
            "consistency needs one outcome per game and way of playing, got "
            f"{len(real)} real, {len(wm)} imagined and {len(w2r)} replayed"
        )
    real_rate, w2r_rate = Rate.of(real), Rate.of(w2r)
    both = sum(a is True and b is True for a, b in zip(real, w2r, strict=True))
    return Consistency(
        n=len(real),
        real=real_rate.value,
        wm=Rate.of(wm).value,
        w2r=w2r_rate.value,
        cr=consistency_ratio(w2r_rate.value, real_rate.value),
        cr_paired=Rate(both, real_rate.hits).value,
        false_success=Rate.of(
            claimed is True and held is not True for claimed, held in zip(wm, w2r, strict=True)
        ).value,
    )


def average_consistency(rows: Sequence[Consistency]) -> Consistency:
    """Returns the unweighted average row of a table, one row per agent.

    As published, its CR is the ratio of the averaged rates. ``cr_paired`` is the mean of the
    defined ones, None without any; ``n`` is the sum. Rows without games are left out.
    """
    rows = [row for row in rows if row.n]
    real, w2r = mean(row.real for row in rows), mean(row.w2r for row in rows)
    return Consistency(
        n=sum(row.n for row in rows),
        real=real,
        wm=mean(row.wm for row in rows),
        w2r=w2r,
        cr=consistency_ratio(w2r, real),
        cr_paired=mean(row.cr_paired for row in rows),
        false_success=mean(row.false_success for row in rows),
    )


def mean(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the defined values; None without any."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def pass_at_k(n: int, c: int, k: int) -> float | None:
    """Returns the unbiased estimate of solving a task at least once in ``k`` tries.

    ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Args:
        n: Tries that were made.
        c: How many of them succeeded.
        k: Tries that the estimate is for.

    Returns:
        A probability, or None when fewer than ``k`` tries were made.

    Raises:
        ValueError: ``k < 1``, or ``c`` is not in ``0..n``.
    """
    if k < 1 or not 0 <= c <= n:
        raise ValueError(f"pass@k needs k >= 1 and 0 <= c <= n, got {n=}, {c=}, {k=}")
    return None if n < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def agreement_by_step(
    pairs: Iterable[tuple[Sequence[str], Sequence[str]]],
) -> dict[int, Rate]:
    """Returns the drift of replayed episodes: how often both worlds say the same at step 1, 2, ...

    Args:
        pairs: Per game, the imagined observations and the real ones of the same actions. Every real
            step counts; after the real end there is no truth to agree with.
    """
    outcomes = (
        (step, step <= len(imagined) and exact_match(imagined[step - 1], true))
        for imagined, real in pairs
        for step, true in enumerate(real, start=1)
    )
    return dict(sorted(_grouped(outcomes).items()))


def rates_to_json(rates: Mapping[Any, Rate]) -> list[dict[str, Any]]:
    """Returns grouped rates as rows ``{"key", "value", "hits", "n"}``, in their order."""
    return [{"key": key, **rate.to_json()} for key, rate in rates.items()]


def rouge_l(prediction: str, truth: str) -> float:
    """Returns ROUGE-L as F1: words, in lower case, of the longest common subsequence (Lin 2004)."""
    told, true = (_WORD.findall(text.lower()) for text in (prediction, truth))
    if not told or not true:
        return 0.0
    row = [0] * (len(true) + 1)
    for word in told:
        before = 0
        for i, other in enumerate(true, start=1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return 2 * row[-1] / (len(told) + len(true))


def lines_f1(prediction: str, truth: str) -> float:
    """Returns the F1 of exact lines, as RLVR-World scores web pages (arXiv 2505.13934, 5.2).

    Under the headings ``New items:``, ``Deleted items:`` and ``Updated items:`` a line counts for
    its section; ``None`` is a line like any other, and equal lines of a section are one. Text
    without headings is one section. Two errors of the published scorer are not repeated: special
    tokens at the end do not spoil the last line, and sections that were mentioned before the last
    block of them do not count.

    Returns:
        0.0 for an empty prediction.
    """
    told, true = _section_lines(prediction), _section_lines(truth)
    hits = len(told & true)
    return 2 * hits / (len(told) + len(true)) if hits else 0.0


def _section_lines(text: str) -> set[tuple[str, str]]:
    text = _SPECIAL_TOKEN.sub("", text)
    headings = list(_SECTION.finditer(text))
    starts = [heading.start() for heading in headings if heading[1].lower() == "new"]
    section, lines = "", set[tuple[str, str]]()
    for line in text[starts[-1] if starts else 0 :].splitlines():
        heading = _SECTION.match(line)
        if heading:
            section = heading[1].lower()
        elif line.strip():
            lines.add((section, line.strip()))
    return lines


def statements(text: str) -> frozenset[str]:
    """Returns the single statements of an observation: clauses and list items, in any order.

    ``"You open the drawer 1. In it, you see a pen 1, and a book 2."`` has four: the first
    sentence, ``"in it"``, ``"you see a pen 1"`` and ``"a book 2"``.
    """
    parts = (part.strip().lower() for part in _STATEMENT.split(text))
    return frozenset(part for part in parts if part)


def statement_credit(prediction: str, truth: str, previous: str) -> float:
    """Returns RLVR-World's task-specific reward, carried over from object states to plain text.

    ``0.1 * all + 0.2 * exact + changed``: statements take the place of properties, and *changed*
    ones are those that the observation before did not make. Where all of them were made before,
    that term is left out. Shares are F1, so that inventions cost.

    Args:
        prediction: What the model wrote.
        truth: What the world answered.
        previous: The observation before.

    Returns:
        0.0 to 1.3.
    """
    told, true, old = (statements(text) for text in (prediction, truth, previous))
    credit = 0.1 * _overlap(told, true) + 0.2 * exact_match(prediction, truth)
    return credit + _overlap(told - old, true - old) if true - old else credit


def _overlap(told: frozenset[str], true: frozenset[str]) -> float:
    return 2 * len(told & true) / (len(told) + len(true)) if told and true else 0.0
