"""Metrics against cases computed by hand."""

from __future__ import annotations

import itertools

import pytest

from gym_llmworld import divergence, metrics
from gym_llmworld.core import Step
from gym_llmworld.metrics import Rate, Turn


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        pytest.param("You open the drawer 1.", " You open the drawer 1.\n", True, id="strip"),
        pytest.param("done [SUCCESS]", "done", False, id="marker-claimed"),
        pytest.param("done", "done [SUCCESS]", False, id="marker-missed"),
        pytest.param("done [SUCCESS]", "done [SUCCESS]", True, id="marker-right"),
        pytest.param("a  b", "a b", False, id="inner-blanks-count"),
        pytest.param("", "", True, id="empty"),
    ],
)
def test_exact_match(prediction: str, truth: str, expected: bool) -> None:
    assert metrics.exact_match(prediction, truth) is expected


@pytest.mark.parametrize(
    ("action", "verb"),
    [
        ("go to desk 1", "go"),
        (" Take mug 1", "take"),
        ("search[red]", "search"),
        ("7", "?"),
        ("", "?"),
    ],
)
def test_action_verb(action: str, verb: str) -> None:
    assert metrics.action_verb(action) == verb


DESK = "On the desk 1, you see a pen 1."
TURNS = [
    Turn(1, "go to desk 1", "Start.", DESK, DESK),
    Turn(2, "go to desk 1", DESK, "Nothing happens.", "You see nothing."),
    Turn(3, "xyzzy", "Nothing happens.", "Nothing happens.", "Nothing happens."),
    Turn(1, "go to bed 1", "Start.", "Nothing happens.", None),
    Turn(2, "take pen 1", "Nothing happens.", "Nothing happens. [SUCCESS]", "Nothing happens."),
]


def test_exact_match_rates_by_hand() -> None:
    em = metrics.exact_match_rates(TURNS)
    assert em.all == Rate(2, 5)
    # Only the third turn repeats the one before; the success marker makes the fifth a change.
    assert em.unchanged == Rate(1, 1)
    assert em.changed == Rate(1, 4)
    assert em.copy_baseline == Rate(1, 5)
    # go: "Nothing happens." is right in 2 of 3; the other two verbs have one turn each.
    assert em.majority_baseline == Rate(4, 5)
    assert em.by_step == {1: Rate(1, 2), 2: Rate(0, 2), 3: Rate(1, 1)}
    assert list(em.by_verb.items()) == [
        ("go", Rate(1, 3)),
        ("take", Rate(0, 1)),
        ("xyzzy", Rate(1, 1)),
    ]


def test_lists_as_sets_only_where_asked_for() -> None:
    turns = [
        Turn(1, "look", "Start.", "a, b", "b, a"),
        Turn(2, "look", "a, b", "a, b", "a, c"),
        Turn(3, "look", "a, b", "a, b", None),
    ]

    def in_order(text: str) -> str:
        return ", ".join(sorted(text.split(", ")))

    assert metrics.exact_match_rates(turns, in_order).as_sets == Rate(1, 3)
    assert metrics.exact_match_rates(turns, in_order).all == Rate(0, 3)
    assert metrics.exact_match_rates(turns).as_sets is None


def test_no_turns_leave_every_rate_undefined() -> None:
    em = metrics.exact_match_rates([])
    for rate in (em.all, em.changed, em.unchanged, em.copy_baseline, em.majority_baseline):
        assert (rate.value, rate.n) == (None, 0)


def test_broken_trials_stay_in_the_denominator() -> None:
    assert Rate.of([True, None, False, None]) == Rate(1, 4)
    assert Rate(1, 4).value == 0.25


def test_consistency_ratio_of_the_published_average_row() -> None:
    ratio = metrics.consistency_ratio(59.19, 61.51)
    assert ratio is not None
    assert round(ratio, 2) == 0.96


@pytest.mark.parametrize("real", [0, 0.0, None])
def test_consistency_ratio_is_undefined_without_real_success(real: float | None) -> None:
    assert metrics.consistency_ratio(0.5, real) is None


def test_consistency_by_hand() -> None:
    real = [True, True, True, False, None]
    wm = [True, True, False, True, None]
    w2r = [True, None, False, True, True]
    row = metrics.consistency(real, wm, w2r)
    assert (row.n, row.real, row.wm, row.w2r) == (5, 0.6, 0.6, 0.6)
    assert row.cr == 1.0
    assert row.cr_paired == pytest.approx(1 / 3)
    # Games 2 (its replay broke) and 5 would be counted by no ratio of successes.
    assert row.false_success == pytest.approx(1 / 5)


def test_consistency_with_nothing_solved_or_nothing_played() -> None:
    nothing_solved = metrics.consistency([False], [True], [True])
    assert (nothing_solved.cr, nothing_solved.cr_paired, nothing_solved.w2r) == (None, None, 1.0)
    nothing_played = metrics.consistency([], [], [])
    assert (nothing_solved.false_success, nothing_played.false_success) == (0.0, None)
    assert (nothing_played.n, nothing_played.real, nothing_played.cr) == (0, None, None)


def test_consistency_refuses_lists_that_do_not_pair_up() -> None:
    with pytest.raises(ValueError, match="2 real, 1 imagined and 2 replayed"):
        metrics.consistency([True, True], [True], [True, False])


def test_average_row_divides_averaged_rates() -> None:
    rows = [
        metrics.consistency([True, True], [True, True], [True, False]),  # CR 0.5
        metrics.consistency([True, False, False, False], [False] * 4, [True, True, False, False]),
        metrics.consistency([], [], []),
    ]
    average = metrics.average_consistency(rows)
    assert average.n == 6
    assert average.real == pytest.approx((1 + 0.25) / 2)
    assert average.cr == pytest.approx(((0.5 + 0.5) / 2) / ((1 + 0.25) / 2))
    # Game 1 of the second row is solved both ways, so its paired ratio is 1.
    assert average.cr_paired == pytest.approx((0.5 + 1.0) / 2)
    assert average.false_success == pytest.approx((0.5 + 0.0) / 2)


def test_a_ratio_of_successes_hides_claims_that_no_replay_confirms() -> None:
    row = metrics.consistency([True] + [False] * 9, [True] * 4 + [False] * 6, [True] + [False] * 9)
    assert (row.cr, row.cr_paired) == (1.0, 1.0)
    assert row.false_success == 0.3


@pytest.mark.parametrize(("n", "c"), [(n, c) for n in range(1, 7) for c in range(n + 1)])
def test_pass_at_k_equals_the_average_over_all_subsets(n: int, c: int) -> None:
    tries = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(tries, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert metrics.pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_k_outside_its_domain() -> None:
    assert metrics.pass_at_k(3, 1, 4) is None
    with pytest.raises(ValueError, match="k=0"):
        metrics.pass_at_k(3, 1, 0)
    with pytest.raises(ValueError, match="c=4"):
        metrics.pass_at_k(3, 4, 1)


REJECTION = "Nothing happens."
LISTING = "On the desk 1, you see a pen 1, and a book 2."


@pytest.mark.parametrize(
    ("imagined", "real", "kind"),
    [
        pytest.param(LISTING, LISTING + " ", None, id="same"),
        pytest.param("", LISTING, "no answer", id="no-answer"),
        pytest.param(REJECTION, LISTING, "action refused", id="refused"),
        pytest.param(LISTING, REJECTION, "action accepted", id="accepted"),
        pytest.param("On the desk 1, you see a pen 1.", LISTING, "missing object", id="missing"),
        pytest.param(LISTING, "On the desk 1, you see a book 2.", "extra object", id="extra"),
        pytest.param(LISTING.replace("pen 1", "pen 2"), LISTING, "wrong object", id="wrong"),
        pytest.param(
            "The safe 1 is closed.", "The safe 1 is open.", "wrong state", id="wrong-state"
        ),
        pytest.param("You see a pen 1!", "You see a pen 1.", "other wording", id="wording"),
    ],
)
def test_divergence_kind(imagined: str, real: str, kind: str | None) -> None:
    assert divergence.divergence_kind(imagined, real, rejection=REJECTION) == kind


def test_a_wrong_success_outranks_the_text() -> None:
    claimed = divergence.divergence_kind("a", "b", imagined_success=True)
    missed = divergence.divergence_kind("a", "a", real_success=True)
    assert (claimed, missed) == ("success claimed", "success missed")


def steps(*observations: str, success: bool = False) -> list[Step]:
    rows = [Step(f"go to desk {i}", text) for i, text in enumerate(observations, start=1)]
    if success:
        last = rows[-1]
        rows[-1] = Step(last.action, last.observation, reward=1.0, terminated=True)
    return rows


def test_first_divergence_names_step_kind_and_verb() -> None:
    found = divergence.first_divergence(
        steps("a", "You see a pen 1.", "x"), steps("a", "You see.", "y")
    )
    assert found == divergence.Divergence(2, "extra object", "go")


def test_first_divergence_of_equal_episodes_is_none() -> None:
    assert (
        divergence.first_divergence(steps("a", "b", success=True), steps("a", "b", success=True))
        is None
    )


def test_an_episode_that_ends_before_the_other() -> None:
    late = divergence.first_divergence(steps("a", "b"), steps("a"))
    early = divergence.first_divergence(steps("a"), steps("a", "b"))
    assert late == divergence.Divergence(2, "ended late", "go")
    assert early == divergence.Divergence(2, "ended early", "go")


def test_agreement_by_step_counts_every_real_step() -> None:
    pairs = [(["a", "b", "c"], ["a", "x"]), (["a"], ["a", "b", "c"])]
    rates = metrics.agreement_by_step(pairs)
    assert rates == {1: Rate(2, 2), 2: Rate(0, 2), 3: Rate(0, 1)}
    assert metrics.rates_to_json(rates)[0] == {"key": 1, "value": 1.0, "hits": 2, "n": 2}
