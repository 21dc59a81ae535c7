r"""Thins out the transitions that are easy to predict (RWML, arXiv 2602.05842, section 2.2).

    python -m training.difficulty --data episodes.jsonl --reward exact --output runs/easy \
        --model gym_llmworld/data/alfworld/model --max-steps 50
    python -m training.grpo --data episodes.jsonl --keep runs/easy/transitions.jsonl ...

A filter model is fitted on a tenth of the scenarios (--max-steps, --minutes and the other options
are its training's, as of training.sft), or given with --filter-model. It predicts every other
transition --samples times. Easy is one whose mean reward is above --easy-above: with 0, one that
was predicted rightly at least once. Easy ones are kept with probability --keep-easy, all others
always; the tenth itself is left out. The paper's ">= 0" would make everything easy; its numbers fit
"> 0".

Writes transitions.jsonl (what is kept, for training.grpo), samples.jsonl (all predictions, for
training.embedders) and summary.json (the histogram) into --output. Started again after a kill, it
goes on with the transition in flight.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gym_llmworld.backends.base import Backend
from gym_llmworld.backends.hf import HFBackend, stop_tokens
from gym_llmworld.backends.hf_chat import ChatEncoder
from gym_llmworld.backends.hf_sampling import Draw
from gym_llmworld.core import Completion, Sampling
from gym_llmworld.errors import DataError, WorldModelError
from gym_llmworld.worlds import get_world
from training.card import claim, write_atomically
from training.config import SCRATCH, Config, config_of
from training.data import Conversations, read_conversations
from training.embedders import DEFAULT_EMBEDDER, Embedder, SentenceEmbedder
from training.groups import Sample, prompt_tokens, sample_groups, sharing_works
from training.grpo_config import add_run_options, plain_files
from training.rewards import Weighted, make_rewards, weighted_sum
from training.sft import train
from training.transitions import Transition, longest_answer, read_transitions

SAMPLES_FILE = "samples.jsonl"
DECISIONS_FILE = "transitions.jsonl"
SUMMARY_FILE = "summary.json"
_SETTINGS_FILE = "settings.json"
_FILTER_FOLDER = "filter"
_BINS = 10
_BAR = 40


@dataclass(frozen=True)
class Filter:
    """How easy transitions are told from others.

    Attributes:
        rewards: Terms of the reward that judges a prediction.
        tau: Threshold of the embedding rewards: 0.1 in RWML, below that of the training.
        embedder: Their model.
        samples: Predictions of each transition.
        easy_above: A transition is easy if its mean reward is greater.
        keep_easy: Probability to keep an easy one.
        temperature: Of the predictions.
        seed: Of predictions, split and choice.
    """

    rewards: tuple[Weighted, ...] = (Weighted("embedding"),)
    tau: float = 0.1
    embedder: str = DEFAULT_EMBEDDER
    samples: int = 10
    easy_above: float = 0.0
    keep_easy: float = 0.1
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses filters that could not choose."""
        if self.samples < 1 or not 0 <= self.keep_easy <= 1 or self.temperature <= 0:
            raise ValueError(
                "expected samples >= 1, keep-easy in 0 to 1 and temperature > 0, got "
                f"{self.samples}, {self.keep_easy} and {self.temperature}"
            )

    def is_easy(self, mean: float | None) -> bool:
        """Returns whether a mean reward makes a transition easy; one without rewards is not."""
        return mean is not None and mean > self.easy_above

    def keeps(self, transition: str, easy: bool) -> bool:
        """Decides on a transition; always the same for the same seed."""
        return not easy or random.Random(f"{self.seed}/{transition}").random() < self.keep_easy


@dataclass(frozen=True)
class Difficulty:
    """What the filter found.

    Attributes:
        n: Transitions that were judged.
        easy: How many of them are easy.
        kept: How many of them are kept.
        unscored: How many have no reward at all.
        histogram: Rows ``{"from", "to", "n"}`` over the mean reward; the last one is closed.
    """

    n: int
    easy: int
    kept: int
    unscored: int
    histogram: tuple[Mapping[str, float], ...]

    @property
    def removed_share(self) -> float:
        """Share of the judged transitions that is left out."""
        return 1 - self.kept / self.n

    def __str__(self) -> str:
        """Returns the histogram as text."""
        most = max(row["n"] for row in self.histogram)
        rows = [
            f"{row['from']:5.2f} to {row['to']:5.2f} {row['n']:7.0f} "
            + "#" * round(_BAR * row["n"] / max(1, most))
            for row in self.histogram
        ]
        told = (
            f"{self.easy} of {self.n} transitions are easy ({self.easy / self.n:.1%}); "
            f"{self.kept} are kept, {self.removed_share:.1%} left out"
        )
        return "\n".join(["mean reward          n", *rows, told])


def in_tenth(scenario: str, seed: int) -> bool:
    """Returns whether a scenario belongs to the tenth that the filter model is fitted on."""
    return random.Random(f"{seed}/{scenario}").random() < 0.1


def split(
    data: Conversations, transitions: Sequence[Transition], seed: int
) -> tuple[Conversations, list[Transition]]:
    """Returns the episodes of a tenth of the scenarios, and the transitions of the others.

    Raises:
        DataError: There are too few scenarios for both.
    """
    tenth = [item for item in data.items if in_tenth(f"{item.group}/{item.scenario}", seed)]
    rest = [one for one in transitions if not in_tenth(f"{one.world}/{one.scenario}", seed)]
    if not tenth or not rest:
        raise DataError(
            f"a tenth of {data.scenarios} scenarios has {len(tenth)} episodes and leaves "
            f"{len(rest)} transitions; expected some of both. Collect more, try another --seed, or "
            "pass --filter-model"
        )
    return Conversations(tuple(tenth)), rest


def judge(
    transitions: Sequence[Transition],
    predict: Predict,
    chosen: Filter,
    output: Path,
    *,
    embedder: Embedder | None = None,
    batch: int = 16,
) -> Iterator[tuple[int, int]]:
    """Lets the filter model predict all transitions, and writes what it said to ``output``.

    Args:
        transitions: Which.
        predict: Asks the filter model.
        chosen: How to judge.
        output: Folder; transitions that are in it already are not predicted again.
        embedder: Instead of the one that ``chosen`` names.
        batch: Transitions per call of the model.

    Yields:
        How many are done, and how many there are.
    """
    file = output / SAMPLES_FILE
    done = {row["id"] for row in _samples(file)}
    rewards = make_rewards(
        chosen.rewards, embedder=embedder or SentenceEmbedder(chosen.embedder), tau=chosen.tau
    )
    waiting = [one for one in transitions if one.id not in done]
    yield len(transitions) - len(waiting), len(transitions)
    with file.open("a", encoding="utf-8") as log:
        for start in range(0, len(waiting), batch):
            some = waiting[start : start + batch]
            told = predict(some, chosen)
            rows = [one.row() for one in some for _ in range(chosen.samples)]
            columns = {k: [row[k] for row in rows] for k in ("truth", "previous", "state")}
            scores = weighted_sum(chosen.rewards, rewards, told, columns)
            for i, one in enumerate(some):
                part = slice(i * chosen.samples, (i + 1) * chosen.samples)
                row: dict[str, Any] = {"id": one.id, "world": one.world, "truth": one.truth}
                row |= {"predictions": told[part], "rewards": scores[part]}
                log.write(json.dumps(row, ensure_ascii=False) + "\n")
            log.flush()
            yield len(transitions) - len(waiting) + start + len(some), len(transitions)


Predict = Callable[[Sequence[Transition], Filter], list[str]]
"""``predict(transitions, filter)``: `Filter.samples` predictions of each in turn; cut-off ones are
empty. What is drawn follows from the filter's seed, the transition and the number of the prediction
alone, so that a run which was killed goes on as if it had not been."""


def by_backend(backend: Backend) -> Predict:
    """Returns predictions of any backend, each a request of its own."""

    def predict(some: Sequence[Transition], chosen: Filter) -> list[str]:
        chats = [one.prompt for one in some for _ in range(chosen.samples)]
        samplings = [
            Sampling(
                chosen.temperature,
                max_tokens=get_world(one.world).max_tokens,
                seed=int(hashlib.sha256(name.encode()).hexdigest()[:8], 16),
            )
            for one in some
            for name in _names(one, chosen)
        ]
        return [
            done.text if isinstance(done, Completion) and done.finish_reason == "stop" else ""
            for done in backend.generate(chats, samplings)
        ]

    return predict


def by_groups(model: Any, encoder: ChatEncoder, stops: frozenset[int], longest: int) -> Predict:
    """Returns predictions that share their prompt; see `training.groups.sharing_works`.

    Args:
        model: Whose they are.
        encoder: Of its tokenizer.
        stops: Tokens that end a turn.
        longest: Most tokens of a prediction.
    """

    def predict(some: Sequence[Transition], chosen: Filter) -> list[str]:
        ids = prompt_tokens(encoder, [one.prompt for one in some])
        groups = [
            [Sample(Draw(chosen.temperature, 1.0, Random(name))) for name in _names(one, chosen)]
            for one in some
        ]
        sample_groups(model.eval(), ids, groups, stops, longest)
        return [
            encoder.decode([token for token in sample.tokens if token not in stops])
            if sample.finished
            else ""
            for group in groups
            for sample in group
        ]

    return predict


def _names(one: Transition, chosen: Filter) -> list[str]:
    return [f"{chosen.seed}/{one.id}/{i}" for i in range(chosen.samples)]


def _samples(file: Path) -> list[dict[str, Any]]:
    """Reads what was predicted so far; a line that a kill left half-written is cut away."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.write_bytes(whole)
    try:
        return [json.loads(line) for line in whole.decode().splitlines()]
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}; delete it to begin again") from error


def decide(transitions: Sequence[Transition], chosen: Filter, output: Path) -> Difficulty:
    """Writes which transitions are kept; all of them have to be judged already.

    Raises:
        DataError: One is not.
    """
    means = {row["id"]: _mean(row["rewards"]) for row in _samples(output / SAMPLES_FILE)}
    missing = [one.id for one in transitions if one.id not in means]
    if missing:
        raise DataError(f"{len(missing)} of {len(transitions)} transitions are not judged yet")
    rows = []
    for one in transitions:
        easy = chosen.is_easy(means[one.id])
        rows.append(
            {
                "id": one.id,
                "mean": means[one.id],
                "easy": easy,
                "kept": chosen.keeps(one.id, easy),
            }
        )
    draft = output / f"{DECISIONS_FILE}.part"
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    draft.replace(output / DECISIONS_FILE)
    found = Difficulty(
        n=len(rows),
        easy=sum(row["easy"] is True for row in rows),
        kept=sum(row["kept"] is True for row in rows),
        unscored=sum(row["mean"] is None for row in rows),
        histogram=_histogram([means[one.id] for one in transitions]),
    )
    write_atomically(output / SUMMARY_FILE, {**asdict(found), "removed": found.removed_share})
    return found


def _mean(rewards: Sequence[float | None]) -> float | None:
    defined = [reward for reward in rewards if reward is not None]
    return sum(defined) / len(defined) if defined else None


def _histogram(means: Sequence[float | None]) -> tuple[dict[str, float], ...]:
    defined = [mean for mean in means if mean is not None]
    low, high = min([0.0, *defined]), max([1.0, *defined])
    width = (high - low) / _BINS
    counts = [0] * _BINS
    for mean in defined:
        counts[min(_BINS - 1, int((mean - low) / width + 1e-9))] += 1
    return tuple(
        {"from": round(low + i * width, 4), "to": round(low + (i + 1) * width, 4), "n": count}
        for i, count in enumerate(counts)
    )


def run(config: Config, chosen: Filter, filter_model: str | None, command: str) -> Difficulty:
    """Fits the filter model unless one is given, judges all transitions, and decides.

    Args:
        config: Data and output; beyond that, the training of the filter model.
        chosen: How to judge.
        filter_model: Folder or hub id of one that is fitted already; then all transitions count.
        command: As typed.

    Raises:
        WorldModelError: Data or checkpoint cannot be used, or ``config.output`` holds other work.
    """
    files = plain_files(config)
    transitions = read_transitions(files, config.prompt_style)
    config.output.mkdir(parents=True, exist_ok=True)
    identity = {
        **{k: v for k, v in asdict(chosen).items() if k not in ("easy_above", "keep_easy")},
        "rewards": [asdict(term) for term in chosen.rewards],
        "filter_model": filter_model,
    }
    claim(config.output / _SETTINGS_FILE, identity, holds="samples")
    if filter_model is None:
        data = read_conversations(files, config.prompt_style)
        tenth, transitions = split(data, transitions, chosen.seed)
        filter_model = str(config.output / _FILTER_FOLDER)
        if not (Path(filter_model) / "README.md").is_file():
            print(f"fitting the filter model on {len(tenth.items)} episodes ...")
            fit = replace(config, output=Path(filter_model), eval_data=())
            train(fit, tenth, Conversations(), command)
    shown = -1
    predict = _predictions(filter_model, config, transitions)
    for done, n in judge(transitions, predict, chosen, config.output):
        if 20 * done // n > shown:
            shown = 20 * done // n
            print(f"{done} of {n} transitions judged", flush=True)
    return decide(transitions, chosen, config.output)


def _predictions(filter_model: str, config: Config, transitions: Sequence[Transition]) -> Predict:
    if config.threads:
        torch.set_num_threads(config.threads)
    model = AutoModelForCausalLM.from_pretrained(filter_model, dtype=torch.float32)
    if sharing_works(model, config.context) is not None:
        return by_backend(HFBackend(filter_model, threads=config.threads or None))
    tokenizer = AutoTokenizer.from_pretrained(filter_model)
    encoder = ChatEncoder(tokenizer, filter_model)
    stops = stop_tokens(model, tokenizer, encoder.turn_end)
    return by_groups(model, encoder, stops, longest_answer(transitions, encoder))


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.difficulty",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    base, group = Filter(), built.add_argument_group("the easy filter")
    group.add_argument("--filter-model", help="folder or hub id; default: fit one on a tenth")
    group.add_argument(
        "--reward", nargs="+", default=["embedding"], metavar="NAME[:WEIGHT]",
        help="as of training.grpo (default: embedding)",
    )  # fmt: skip
    group.add_argument("--tau", type=float, default=base.tau, help="of the embedding rewards")
    group.add_argument("--embedder", default=base.embedder, help="(default: %(default)s)")
    group.add_argument("--samples", type=int, default=base.samples, help="of each transition")
    group.add_argument("--easy-above", type=float, default=base.easy_above, help="mean reward")
    group.add_argument("--keep-easy", type=float, default=base.keep_easy, help="probability")
    group.add_argument("--temperature", type=float, default=base.temperature)
    add_run_options(built, {"eval_data"}, output=Path("runs/easy"))
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    try:
        chosen = Filter(
            tuple(Weighted.parse(text) for text in options.reward), options.tau, options.embedder,
            options.samples, options.easy_above, options.keep_easy, options.temperature,
            options.seed,
        )  # fmt: skip
        config = config_of(options)
        if (
            options.filter_model is None
            and config.model == SCRATCH
            and not (config.max_steps or config.minutes)
        ):
            raise ValueError(
                "a filter model from scratch needs --max-steps or --minutes; or start from a "
                "checkpoint with --model, or pass a fitted one with --filter-model"
            )
        command = " ".join([parser().prog, *arguments])
        print(run(config, chosen, options.filter_model, command))
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"finished: {options.output / DECISIONS_FILE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
