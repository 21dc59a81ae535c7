"""Confidence that means something: the probability that a predicted step is right.

A model's own probability of what it wrote is not that: it depends on the length, and on how sharply
the model was trained. Here a logistic regression turns a few features of the tokens'
log-probabilities into the probability that teacher-forced one-step predictions of held-out real
episodes were exactly right. It is fitted once (``llmworld calibrate``), lies beside the weights as
``calibration.json``, and is applied with numpy alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gym_llmworld.core import Completion
from gym_llmworld.errors import CheckpointError
from gym_llmworld.protocol import Protocol, rounded, sequence_probability

CALIBRATION_FILE = "calibration.json"
FORMAT = 1
FEATURES = ("lowest", "second_lowest", "sum", "length")

_IMPOSSIBLE = 1e4
"""Surprise of a token that a server calls impossible: unbounded, features would be no numbers."""

Vector = NDArray[np.float64]


def features(logprobs: Sequence[float]) -> Vector:
    """Returns what a calibration looks at, in the order of `FEATURES`.

    The probabilities of the two least probable tokens, of the whole completion, and its length in
    tokens; with length and sum, the mean is in it, too. What matters lies close to probability 1,
    so each surprise ``x`` (``-log p``, in nats) enters as ``log(x + 1e-4)``, and the length as its
    logarithm.

    Args:
        logprobs: Of the tokens of a completion; at least one.
    """
    surprise = np.clip(-np.asarray(logprobs, dtype=np.float64), 0.0, _IMPOSSIBLE)
    falling = np.sort(surprise)[::-1]
    second = falling[1] if len(falling) > 1 else 0.0
    lowest, second, total = np.log(np.array([falling[0], second, surprise.sum()]) + 1e-4)
    return np.array([lowest, second, total, np.log(len(surprise))])


@dataclass(frozen=True)
class Calibration:
    """A fitted judge of completions.

    Attributes:
        center: Mean of each of `FEATURES` where it was fitted.
        scale: Standard deviation of each.
        weights: Of the standardised features, in log-odds.
        bias: Log-odds of an average completion.
    """

    center: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def confidence(self, completion: Completion) -> float | None:
        """Returns the probability that the completion is what the real world answers.

        None without log-probabilities, and where one of them is no number.
        """
        if sequence_probability(completion) is None:
            return None
        standard = (features(completion.logprobs) - self.center) / np.asarray(self.scale)
        return rounded(float(sigmoid(standard @ np.asarray(self.weights) + self.bias)))

    def to_json(self) -> dict[str, Any]:
        """Returns a dict that ``json.dumps`` accepts."""
        return {"features": list(FEATURES), **dataclasses.asdict(self)}


def sigmoid(log_odds: Any) -> Any:
    """Returns probabilities from log-odds, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * log_odds))


def calibrated(protocol: Protocol, model: str) -> Protocol:
    """Returns the protocol with the confidence that ships with a checkpoint, if one does.

    Args:
        protocol: Of the checkpoint.
        model: Checkpoint folder, or anything else, for which nothing is known locally.

    Raises:
        CheckpointError: The calibration cannot be read.
    """
    calibration = read_calibration(model, protocol.style)
    if calibration is None:
        return protocol
    return dataclasses.replace(protocol, confidence=calibration.confidence)


def read_calibration(model: str, style: str) -> Calibration | None:
    """Returns the calibration beside a checkpoint's weights, None where there is none.

    One that was fitted to other weights is left aside, with a warning.

    Args:
        model: Checkpoint folder, or anything else, for which nothing is known locally.
        style: Prompt style; what the model can know, and so how sure it is, differs between them.

    Raises:
        CheckpointError: The file is no calibration of this version.
    """
    file = Path(model) / CALIBRATION_FILE
    if not file.is_file():
        return None
    try:
        data = _read(file)
        fit = data["styles"].get(style)
        calibration = None if fit is None else _from_json(fit)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is no calibration of format {FORMAT} ({type(error).__name__}: {error}); "
            "delete it, or make one with: llmworld calibrate --help"
        ) from error
    if data["checkpoint"] == fingerprint(model):
        return calibration
    warnings.warn(
        f"{file} was fitted to other weights; confidence is the plain sequence probability. Fit it "
        "again with: llmworld calibrate --help",
        stacklevel=2,
    )
    return None


def with_calibration(
    model: str, style: str, calibration: Calibration, fitted: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the content of a checkpoint's calibration file, with one more calibration in it.

    Args:
        model: Checkpoint folder. What stands in its file for other prompt styles is kept, unless it
            was fitted to other weights.
        style: Prompt style that it was fitted with.
        calibration: What was fitted.
        fitted: On what, and how good it is; for people.
    """
    file, checkpoint = Path(model) / CALIBRATION_FILE, fingerprint(model)
    try:
        data = _read(file)
        styles = data["styles"] if data["checkpoint"] == checkpoint else {}
    except (OSError, ValueError, KeyError, TypeError):
        styles = {}
    entry = {**calibration.to_json(), "fitted": dict(fitted)}
    return {"format": FORMAT, "checkpoint": checkpoint, "styles": {**styles, style: entry}}


def _read(file: Path) -> Any:
    data = json.loads(file.read_text(encoding="utf-8"))
    if data["format"] != FORMAT or not isinstance(data["checkpoint"], str):
        raise ValueError(f"expected format {FORMAT} and the fingerprint of a checkpoint")
    return data


def _from_json(data: Mapping[str, Any]) -> Calibration:
    if tuple(data["features"]) != FEATURES:
        raise ValueError(f"expected the features {', '.join(FEATURES)}")
    center, scale, weights = (tuple(map(float, data[k])) for k in ("center", "scale", "weights"))
    if {len(center), len(scale), len(weights)} != {len(FEATURES)}:
        raise ValueError(f"expected {len(FEATURES)} numbers in center, scale and weights")
    return Calibration(center, scale, weights, float(data["bias"]))


def fingerprint(model: str, size: int = 2**16) -> str:
    """Returns a short hash that tells a checkpoint's weights apart; cheap at any size.

    Args:
        model: Checkpoint folder.
        size: How many bytes at the end of each weights file are read.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(model).glob("*.safetensors")):
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - size))
            digest.update(stream.read())
    return digest.hexdigest()[:16]
