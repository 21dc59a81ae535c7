"""What a model's forward passes did and what they must cost, for the benchmark programs.

The least time of a forward pass on a machine (its roofline; Williams, Waterman and Patterson,
"Roofline", CACM 2009) is the larger of bytes over memory bandwidth and FLOPs over matmul rate.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

_BEST_OF = 5
_LEAST_SECONDS = 0.05


@dataclass(frozen=True)
class Forward:
    """One forward pass.

    Attributes:
        start: When it began, as `time.perf_counter` says.
        end: When it ended.
        rows: Conversations that it worked on.
        tokens: New tokens of them, without padding.
        context: Positions that they attend to, new ones included, summed over conversations.
        pairs: Pairs of a new token and a position that it attends to.
        width: New tokens of a row, padding included; 1 for a decoding step.
    """

    start: float
    end: float
    rows: int
    tokens: int
    context: int
    pairs: int
    width: int

    @property
    def seconds(self) -> float:
        """What it took."""
        return self.end - self.start


class ForwardLog:
    """Watches an engine's forward passes; on a GPU it waits for each, which costs a little.

    It stands around the one method through which all of them go, whoever computes them:
    transformers' own forward pass or the engine's.

    Args:
        engine: A `gym_llmworld.backends.hf.HFBackend` that keeps keys and values.

    Raises:
        ValueError: It keeps none, so that its passes cannot be told apart.
    """

    def __init__(self, engine: Any) -> None:
        if not engine.reuses:
            raise ValueError(f"{engine.name} keeps no keys and values; expected a model that does")
        self._runner = engine.runner
        self._device = engine.model.device
        self._raw: list[tuple[float, float, torch.Tensor]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches while the block runs."""
        forward = self._runner._forward

        def watched(
            first: int, ids: torch.Tensor, positions: torch.Tensor, *rest: Any
        ) -> torch.Tensor:
            # A copy: the runner counts them up in place.
            copied = positions.clone()
            self._wait()
            start = time.perf_counter()
            logits: torch.Tensor = forward(first, ids, positions, *rest)
            self._wait()
            self._raw.append((start, time.perf_counter(), copied))
            return logits

        self._runner._forward = watched
        try:
            yield
        finally:
            del self._runner._forward

    @property
    def seconds(self) -> float:
        """Spent in forward passes so far."""
        return sum(end - start for start, end, _ in self._raw)

    def clear(self) -> None:
        """Forgets what was seen."""
        self._raw.clear()

    def forwards(self) -> list[Forward]:
        """Returns what was seen, in order."""
        return [
            Forward(start, end, *work_of(positions), positions.shape[1])
            for start, end, positions in self._raw
        ]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def work_of(positions: torch.Tensor) -> tuple[int, int, int, int]:
    """Returns rows, tokens, context and pairs of a forward pass, see `Forward`.

    Args:
        positions: ``[rows, width]``. Padding and idle rows have position 0, and so has a
            conversation's very first token.
    """
    positions = positions.cpu()
    real = positions > 0
    firsts = (positions == 1).any(1)  # such a row's first token is real, too
    tokens = int(real.sum()) + int(firsts.sum())
    longest = positions.max(1).values
    return (
        int((longest > 0).sum()),
        tokens,
        int((longest + 1)[longest > 0].sum()),
        int((positions + 1)[real].sum()) + int(firsts.sum()),
    )


@dataclass(frozen=True)
class Weights:
    """What a forward pass of a decoder has to read and to multiply.

    Attributes:
        linear: Weights of the layers' matrices.
        head: Weights of the matrix that gives the logits.
        layers: Number of layers.
        attention: Heads times their size.
        cache: Numbers kept per position: keys and values of all layers.
        item: Bytes of a number.
    """

    linear: int
    head: int
    layers: int
    attention: int
    cache: int
    item: int

    @classmethod
    def of(cls, model: Any) -> Weights:
        """Counts those of a transformers causal language model."""
        head = model.get_output_embeddings()
        linear = sum(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        )
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        layers = config.num_hidden_layers
        return cls(
            linear, head.weight.numel(), layers, heads * size, 2 * layers * groups * size,
            head.weight.element_size(),
        )  # fmt: skip

    def bytes(self, forward: Forward) -> int:
        """Returns what must be read or written at least once; activations are not counted."""
        return self.item * (self.linear + self.head + self.cache * forward.context)

    def flops(self, forward: Forward) -> int:
        """Returns the floating-point operations of the matrix products, logits of one per row."""
        products = self.linear * forward.tokens + self.head * forward.rows
        # Queries with keys, and weights with values.
        return 2 * products + 4 * self.layers * self.attention * forward.pairs


@dataclass(frozen=True)
class Roofline:
    """What a machine can do.

    Attributes:
        bandwidth: Bytes per second by size of the working set in bytes, sizes ascending: a small
            one stays in a cache that is faster than memory.
        rate: FLOPs per second of large matrix products.
    """

    bandwidth: tuple[tuple[int, float], ...]
    rate: float

    def bytes_per_second(self, size: int) -> float:
        """Returns the bandwidth for a working set, between the sizes that were measured."""
        points = self.bandwidth
        if size <= points[0][0]:
            return points[0][1]
        for (low, slow), (high, fast) in itertools.pairwise(points):
            if size <= high:
                share = math.log(size / low) / math.log(high / low)
                return slow + share * (fast - slow)
        return points[-1][1]

    def times(self, weights: Weights, forward: Forward) -> tuple[float, float]:
        """Returns the least seconds for the bytes and for the FLOPs of a forward pass."""
        size = weights.bytes(forward)
        return size / self.bytes_per_second(size), weights.flops(forward) / self.rate

    def seconds(self, weights: Weights, forward: Forward) -> float:
        """Returns the least time of a forward pass."""
        return max(self.times(weights, forward))


def best_seconds(function: Callable[[], object], device: str) -> float:
    """Returns the shortest time of a call, the best of several runs."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    function()
    wait()
    calls, best = 1, math.inf
    for _ in range(_BEST_OF):
        while True:
            started = time.perf_counter()
            for _ in range(calls):
                function()
            wait()
            seconds = time.perf_counter() - started
            if seconds >= _LEAST_SECONDS:
                break
            calls *= 2
        best = min(best, seconds / calls)
    return best


def bandwidth(size: int, device: str) -> float:
    """Measures bytes per second of a working set: the best of reading and of copying.

    Reading is a matrix times a vector, which is what decoding one token does, and a sum.
    """
    columns = 1024
    rows = max(1, size // 4 // columns)
    matrix = torch.ones(rows, columns, device=device)
    vector, total = torch.ones(columns, device=device), matrix.numel() * 4
    half = matrix[: max(1, rows // 2)]
    other = torch.empty_like(half)
    with torch.inference_mode():
        return max(
            total / best_seconds(lambda: matrix @ vector, device),
            total / best_seconds(lambda: matrix.sum(), device),
            2 * half.numel() * 4 / best_seconds(lambda: other.copy_(half), device),
        )


def linear_kinds(weight: torch.Tensor, tokens: int) -> dict[str, Callable[[Any], Any]]:
    """Returns the ways in which torch multiplies with a weight: BLAS, and packed for oneDNN.

    Which one is faster depends on the processor, so that a roofline needs the better one.

    Args:
        weight: ``[outputs, inputs]``.
        tokens: Rows of what it will be multiplied with.
    """
    kinds: dict[str, Callable[[Any], Any]] = {
        "BLAS": lambda states: torch.nn.functional.linear(states, weight)
    }
    onednn = weight.device.type == "cpu" and weight.dtype == torch.float32
    if onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), tokens)
        kinds["oneDNN"] = lambda states: torch.ops.mkldnn._linear_pointwise(
            states, packed, None, "none", [], ""
        )
    return kinds


def matmul_rates(size: int, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Measures FLOPs per second of a product of two square matrices, by kind."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with torch.inference_mode():
        return {
            kind: 2 * size**3 / best_seconds(partial(multiply, a), device)
            for kind, multiply in linear_kinds(b, size).items()
        }


def bare_products(model: Any, tokens: int, device: str) -> float:
    """Measures the seconds of nothing but a forward pass's matrix products, with its weights.

    Args:
        model: Whose weights.
        tokens: Rows of the products; so many logits, too.
        device: Where.

    Returns:
        Those of the faster kind, see `linear_kinds`.
    """
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {
        columns: torch.randn(tokens, columns, device=device).to(weights[0].dtype)
        for columns in {weight.shape[1] for weight in weights}
    }
    with torch.inference_mode():
        layers = [(linear_kinds(w, tokens), inputs[w.shape[1]]) for w in weights]

        def multiply_all(kind: str) -> None:
            for kinds, states in layers:
                kinds[kind](states)

        return min(best_seconds(partial(multiply_all, kind), device) for kind in layers[0][0])


def measure_roofline(
    weights: Weights, dtype: torch.dtype, device: str, *, large: int, matmul_sizes: Sequence[int]
) -> tuple[Roofline, dict[str, Any]]:
    """Measures a machine for a model.

    Args:
        weights: Of the model; its size is the smallest working set.
        dtype: In which it computes.
        device: Where it runs.
        large: The largest working set in bytes, far beyond any cache.
        matmul_sizes: Of the square matrices that are multiplied; the best counts.

    Returns:
        The roofline, and what was measured as plain values.
    """
    small = weights.item * (weights.linear + weights.head)
    grid = sorted({min(small, large), min(4 * small, large), large})
    speeds = tuple((size, bandwidth(size, device)) for size in grid)
    rates = {
        f"{size} {kind}": rate
        for size in matmul_sizes
        for kind, rate in matmul_rates(size, dtype, device).items()
    }
    figures = {
        "bandwidth_gb_per_s": {f"{size / 1e6:.0f} MB": speed / 1e9 for size, speed in speeds},
        "matmul_gflop_per_s": {name: rate / 1e9 for name, rate in rates.items()},
        "dtype": str(dtype).removeprefix("torch."),
        "weight_bytes": small,
        "cache_bytes_per_token": weights.item * weights.cache,
    }
    return Roofline(speeds, max(rates.values())), figures
