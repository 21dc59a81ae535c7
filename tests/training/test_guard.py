"""The guard against the real engine: what really happened is believed, what did not is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

pytest.importorskip("trl")
pytest.importorskip("alfworld")

import gym_llmworld  # noqa: F401 - registers the ids
from gym_llmworld.core import Episode, Step
from gym_llmworld.scenarios import ScenarioStore
from training.guard import Guard
from training.rollouts import real_worlds

SCENARIOS = ScenarioStore("alfworld").of_split("train")
Make = Callable[..., Guard]


def solved(index: int) -> Episode:
    """An imagined episode that takes the known solution."""
    plan = SCENARIOS[index].real["plan"]
    steps = [Step(action, "Something.", 0.0, False, False) for action in plan]
    steps[-1] = replace(steps[-1], reward=1.0, terminated=True)
    return Episode(SCENARIOS[index], tuple(steps), "model", "policy", index)


def boasted(index: int) -> Episode:
    """An imagined success at once, for looking around."""
    return Episode(
        SCENARIOS[index], (Step("look", "You did it.", 1.0, True, False),), "model", "policy", index
    )


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Guard] = []

    def guard(sample: int = 4, threshold: float = 0.5, least: int = 2) -> Guard:
        worlds = real_worlds("RealWorld-ALFWorld-v0", 1, 60)
        made.append(Guard(worlds, sample=sample, threshold=threshold, least=least, seed=0))
        return made[-1]

    yield guard
    for one in made:
        one.close()


def test_real_successes_are_confirmed(make: Make) -> None:
    episodes = [solved(0), solved(1), boasted(2)]
    verdict = make().check(episodes, 1)
    assert (verdict.n, verdict.confirmed, verdict.errors) == (3, 2, 0)
    assert verdict.precision == pytest.approx(2 / 3)
    assert verdict.trusted
    assert verdict.steps == sum(len(episode.steps) for episode in episodes)
    assert verdict.as_row()["precision"] == verdict.precision


def test_claims_end_the_trust(make: Make) -> None:
    verdict = make().check([boasted(0), boasted(1)], 1)
    assert (verdict.n, verdict.confirmed, verdict.trusted) == (2, 0, False)


def test_few_replays_prove_nothing(make: Make) -> None:
    assert make(least=3).check([boasted(0), boasted(1)], 1).trusted
    nothing = make().check([], 1)
    assert nothing.trusted
    assert nothing.precision is None
    assert nothing.steps == 0


def test_the_threshold_itself_is_good_enough(make: Make) -> None:
    assert make(threshold=0.5).check([solved(0), boasted(1)], 1).trusted
    assert not make(threshold=0.6).check([solved(0), boasted(1)], 1).trusted


def test_a_replay_that_the_engine_fails_in_counts_for_neither_side(make: Make) -> None:
    other = replace(SCENARIOS[1], observation="Somewhere else.")
    broken = replace(solved(1), scenario=other)
    verdict = make().check([solved(0), broken, boasted(2)], 1)
    assert (verdict.n, verdict.confirmed, verdict.errors) == (2, 1, 1)


def test_samples_are_random_and_repeatable(make: Make) -> None:
    episodes = [boasted(i) for i in range(30)]
    guard = make()
    first = guard.choose(episodes, 1)
    assert len({e.scenario.id for e in first}) == 4
    assert first == guard.choose(episodes, 1)
    assert first != guard.choose(episodes, 2)


def test_arguments_that_make_no_sense_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"share in \[0, 1\], got 1.5"):
        make(threshold=1.5)
    with pytest.raises(ValueError, match="sample 4, minimum 5"):
        make(least=5)
