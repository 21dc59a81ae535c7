"""How much reality an imagined world needs: consistency against the share of real steps.

The same games are played imagined, real and replayed (`gym_llmworld.comparison`), once for every
way of choosing the steps that the real twin answers (`gym_llmworld.anchoring`): never, at certain
actions, every k-th, at random, and where the model is least sure. Exact match is taken on the real
episodes of those games, where an anchored turn is right by construction.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gym_llmworld import metrics
from gym_llmworld.agents import Agent
from gym_llmworld.anchoring import Anchoring, Prediction, Question
from gym_llmworld.comparison import Comparison, compare, step_limits
from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.errors import DataError
from gym_llmworld.imagination import Imagination, Stats
from gym_llmworld.metrics import Progress, Rate
from gym_llmworld.protocol import ParseStatus
from gym_llmworld.worlds import World

NONE, ACTION, EVERY, RANDOM, CONFIDENCE = "none", "action", "every", "random", "confidence"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """A way of choosing the steps that the twin answers.

    Attributes:
        family: Which curve it is a point of.
        anchor: The rule; None for no anchoring.
    """

    family: str
    anchor: str | None


@dataclass(frozen=True, slots=True)
class Guess:
    """What the model answered at one turn of a real episode.

    Attributes:
        action: What the agent did.
        number: Of the step, 1 for the episode's first action.
        right: The model wrote what the world answered, success included.
        usable: It wrote a complete observation.
        confidence: Probability that it is right; None when the backend cannot tell.
    """

    action: str
    number: int
    right: bool
    usable: bool
    confidence: float | None


@dataclass(frozen=True)
class Study:
    """What is measured.

    Attributes:
        world: Which world.
        agents: Name -> maker of a fresh agent.
        scenarios: The games; each is one trial per agent and way.
        options: Of ``gym.make`` for the imagined world; its model, above all.
        actions: Beginnings of actions, each of them one way.
        shares: Shares of real steps at which the other families are measured.
        seed: Of the agents and of random anchoring.
        num_envs: Imagined worlds per batch.
        max_steps: Step limit of all games; None for `gym_llmworld.comparison.step_limits`.
        real_options: Further arguments of ``gym.make`` for the real world.
    """

    world: World
    agents: Mapping[str, Callable[[], Agent]]
    scenarios: Sequence[Scenario]
    options: Mapping[str, Any]
    actions: Sequence[str] = ()
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.3333, 0.5)
    seed: int = 0
    num_envs: int = 16
    max_steps: int | None = None
    real_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def settings(self) -> Row:
        """Returns what a file of results has to agree with to be continued, as JSON."""
        return {
            "env_id": self.world.imagined_id,
            "agents": list(self.agents),
            "games": [scenario.id for scenario in self.scenarios],
            "options": dict(self.options),
            "real_options": dict(self.real_options),
            "actions": list(self.actions),
            "shares": list(self.shares),
            "seed": self.seed,
            "max_steps": self.max_steps,
        }


def trace(
    study: Study,
    done: Mapping[str, Any] | None = None,
    *,
    save: Callable[[Row], None],
    progress: Callable[[str], AbstractContextManager[Progress]],
) -> Row:
    """Measures every way; what ``done`` holds is not measured again.

    Args:
        study: What to measure.
        done: What an earlier, unfinished run saved.
        save: Given the results so far after each way.
        progress: Given the name of a way, returns who is told about its progress.

    Returns:
        ``settings``, ``guesses`` (the model's one-step predictions on the real episodes), and
        ``points``: one row per way, with shares and rates as fractions.

    Raises:
        DataError: ``done`` was measured with other settings.
        BackendError: The model could not be asked.
        MissingDependency: The real engine is not installed.
    """
    data: Row = {"settings": study.settings(), "guesses": [], "points": []}
    if done is not None:
        _check_same(done["settings"], data["settings"])
        data = {key: done[key] for key in data}
    tracer = _Tracer(study, data, save, progress)
    tracer.measure([Way(NONE, None), *(Way(ACTION, action) for action in study.actions)])
    # These need to know how sure the model is, and how many real steps the actions take.
    tracer.measure(_matched(study, data))
    return data


def exact_match(guesses: Sequence[Guess], anchor: str | None, seed: int = 0) -> Row:
    """Returns the exact match of one-step predictions when some turns are answered by the twin.

    Args:
        guesses: The model's predictions on real episodes.
        anchor: Which turns the twin answers; those are right. None for no turn.
        seed: Of random anchoring.
    """
    anchoring = None if anchor is None else Anchoring.parse(anchor)
    real = [
        anchoring is not None
        and anchoring.first(
            Question(g.action, g.number, seed + i, Prediction(g.usable, g.confidence))
        )
        is not None
        for i, g in enumerate(guesses)
    ]
    rate = Rate.of(anchored or g.right for anchored, g in zip(real, guesses, strict=True))
    return {"value": rate.value, "n": rate.n, "real_share": Rate.of(real).value}


def share_for(points: Sequence[Mapping[str, Any]], family: str, target: float) -> float | None:
    """Returns the least share of real steps at which a family reaches a paired CR.

    Linear between neighbouring points, from no anchoring to the all-real one; None when the target
    is not reached, the paired CR is undefined, or the family was not measured.
    """
    own = [p for p in points if p["family"] == family]
    ends = [p for p in points if p["family"] == NONE or p["anchor"] == "every:1"]
    curve = sorted(
        (p["real_share"], p["pooled"]["cr_paired"])
        for p in [*ends, *(p for p in own if p not in ends)]
        if own and p["pooled"]["cr_paired"] is not None
    )
    before: tuple[float, float] | None = None
    for share, ratio in curve:
        if ratio >= target:
            if before is None or ratio == before[1]:
                return float(share)
            return float(
                before[0] + (share - before[0]) * (target - before[1]) / (ratio - before[1])
            )
        before = share, ratio
    return None


@dataclass
class _Tracer:
    study: Study
    data: Row
    save: Callable[[Row], None]
    progress: Callable[[str], AbstractContextManager[Progress]]

    def measure(self, ways: Sequence[Way]) -> None:
        """Measures the ways that are not among the results yet."""
        known = {point["anchor"] for point in self.data["points"]}
        for number, way in enumerate(ways, start=1):
            if way.anchor in known:
                continue
            with self.progress(f"{way.anchor or 'no anchoring'} ({number}/{len(ways)})") as told:
                point, comparison = _play(self.study, way, told)
            if way.anchor is None:
                guesses = _guesses(self.study, comparison)
                self.data["guesses"] = [dataclasses.asdict(guess) for guess in guesses]
            guesses = [Guess(**guess) for guess in self.data["guesses"]]
            point["em"] = exact_match(guesses, way.anchor, self.study.seed)
            self.data["points"].append(point)
            self.save(self.data)


def _check_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    # Through JSON, in which there are no tuples.
    wanted = json.loads(json.dumps(wanted))
    for key, value in wanted.items():
        if found.get(key) != value:
            raise DataError(
                f"the results to continue were measured with {key}={found.get(key)!r:.120}, now it "
                f"is {value!r:.120}; write to another file, or repeat the former command"
            )


def _matched(study: Study, data: Row) -> list[Way]:
    """Returns the ways at the wanted shares, and at those that the actions turned out to take."""
    taken = [p["real_share"] for p in data["points"] if p["family"] == ACTION]
    shares = sorted({round(s, 4) for s in (*study.shares, *taken) if 0 < s < 1})
    strides = sorted({round(1 / share) for share in study.shares} | {1}, reverse=True)
    ways = [Way(EVERY, f"every:{k}") for k in strides]
    ways += [Way(RANDOM, f"random:{share:g}") for share in shares]
    # Only what the model is asked about has a confidence; unusable answers are always replaced.
    sure = [g["confidence"] for g in data["guesses"] if g["usable"]]
    if sure and None not in sure:
        limits = sorted({round(float(np.quantile(sure, share)), 4) for share in shares})
        ways += [Way(CONFIDENCE, f"confidence<{limit:g}") for limit in limits if 0 < limit <= 1]
    return ways


def _play(study: Study, way: Way, progress: Progress) -> tuple[Row, Comparison]:
    stats = Stats()
    anchor: Row = {} if way.anchor is None else {"anchor": way.anchor}
    if anchor and study.real_options:
        anchor["anchor_options"] = study.real_options
    world = study.world
    comparison = compare(
        world.imagined_id,
        study.agents,
        study.scenarios,
        real_id=world.real_id,
        seed=study.seed,
        num_envs=study.num_envs,
        max_steps=study.max_steps or step_limits(study.scenarios, world.max_episode_steps),
        rejection=world.rejection,
        imagined_options={**study.options, **anchor, "stats": stats},
        real_options=study.real_options,
        progress=progress,
    )
    trials = [trial for rows in comparison.trials.values() for trial in rows]
    steps = sum(len(trial.imagined.steps) for trial in trials)
    real_steps = sum(trial.real_steps for trial in trials)
    agreed = metrics.agreement_by_step(
        (
            [step.observation for step in trial.imagined.steps],
            [step.observation for step in trial.replay.steps],
        )
        for trial in trials
        if trial.replay is not None
    ).values()
    point = {
        "family": way.family,
        "anchor": way.anchor,
        "steps": steps,
        "real_steps": real_steps,
        "replayed_steps": stats.anchor_replayed_steps,
        "real_share": Rate(real_steps, steps).value or 0.0,
        "agents": {name: dataclasses.asdict(comparison.consistency(name)) for name in study.agents},
        "pooled": dataclasses.asdict(
            metrics.consistency(
                real=[t.real is not None and t.real.success for t in trials],
                wm=[t.imagined.success for t in trials],
                w2r=[t.replay is not None and t.replay.success for t in trials],
            )
        ),
        "agreement": Rate(sum(r.hits for r in agreed), sum(r.n for r in agreed)).value,
        "errors": sum(trial.error is not None for trial in trials),
    }
    return point, comparison


def _guesses(study: Study, comparison: Comparison, batch_size: int = 64) -> list[Guess]:
    """Predicts the real episodes turn by turn, from the real turns before."""
    trials = [trial for rows in comparison.trials.values() for trial in rows]
    episodes = [trial.real for trial in trials if trial.real is not None]
    imagination = Imagination.open(study.world.key, **study.options)
    groups = [episodes[i : i + batch_size] for i in range(0, len(episodes), batch_size)]
    guesses = [guess for group in groups for guess in _guesses_of(imagination, group)]
    imagination.backend.close()
    return guesses


def _guesses_of(imagination: Imagination, episodes: Sequence[Episode]) -> Iterator[Guess]:
    # Side by side, turn by turn: a backend that keeps prefixes computes each turn once.
    for number in range(1, 1 + max(len(episode.steps) for episode in episodes)):
        going = [episode for episode in episodes if len(episode.steps) >= number]
        requests = [
            (
                imagination.session(e.scenario, e.steps[: number - 1]),
                e.actions[number - 1],
                # Where chance decides, one seed for all would draw the same luck every time.
                zlib.crc32(f"{e.scenario.id} {number}".encode()),
            )
            for e in going
        ]
        for episode, outcome in zip(going, imagination.ask(requests), strict=True):
            if outcome.status is ParseStatus.REJECTED:
                continue
            usable = outcome.status is ParseStatus.OK
            right = usable and _same(outcome.step, episode.steps[number - 1])
            yield Guess(outcome.step.action, number, right, usable, outcome.confidence)


def _same(imagined: Step, real: Step) -> bool:
    return metrics.exact_match(imagined.observation, real.observation) and (
        (imagined.terminated and imagined.reward > 0) == (real.terminated and real.reward > 0)
    )
