"""Muon for hidden matrices, AdamW for everything else, in one optimiser.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) steps along the momentum made
orthogonal by a few Newton-Schulz iterations. `torch.optim.Muon` takes matrices only and treats them
one by one; `transformers.Trainer` wants a single optimiser, and a small model on a CPU wants its
many equal shapes in one batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration, from the publication.
_QUINTIC = (3.4445, -4.7750, 2.0315)


class MuonAdamW(torch.optim.Optimizer):
    """Steps parameter groups with ``orthogonal=True`` by Muon, the others by AdamW.

    Args:
        groups: Parameter groups; each has ``params``, ``orthogonal`` and optionally the options
            below. Orthogonal groups hold matrices only.
        lr: Step size. Orthogonal updates are scaled by ``0.2 sqrt(max(rows, columns))``, the size of
            AdamW's (Liu et al., arXiv 2502.16982, section 2.2), so that one value suits both.
        betas: Of AdamW.
        momentum: Of Muon, with Nesterov's look-ahead.
        weight_decay: Decoupled, of both.
        eps: Of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eps": eps,
        }
        super().__init__(groups, defaults)
        for group in self.param_groups:
            shapes = [tuple(p.shape) for p in group["params"] if p.ndim != 2]
            if group["orthogonal"] and shapes:
                raise ValueError(f"Muon steps matrices only, got shapes {shapes}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Does one step with the gradients at hand."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
            if group["orthogonal"]:
                self._muon(params, group)
            else:
                self._adam(params, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for p in params:
            by_shape.setdefault(tuple(p.shape), []).append(p)
        for shape, alike in by_shape.items():
            momenta = [self._state(p, "momentum") for p in alike]
            gradients = [p.grad for p in alike if p.grad is not None]
            torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
            looked_ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
            update = orthogonalised(torch.stack(list(looked_ahead)))
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            torch._foreach_sub_(alike, list((update * size).unbind()))

    def _adam(self, params: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for p in params:
            state = self.state[p]
            first, second = self._state(p, "first"), self._state(p, "second")
            state["step"] = state.get("step", 0) + 1
            gradient = p.grad
            assert gradient is not None
            first.lerp_(gradient, 1.0 - beta1)
            second.lerp_(gradient.square(), 1.0 - beta2)
            spread = (second / (1.0 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
            p.addcdiv_(first, spread, value=-group["lr"] / (1.0 - beta1 ** state["step"]))

    def _state(self, p: Tensor, name: str) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        found: Tensor = state[name]
        return found


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Returns the nearly orthogonal factor of each matrix, singular values about 0.7 to 1.2.

    Args:
        matrices: ``[n, rows, columns]``.
        iterations: Of the quintic Newton-Schulz iteration.
    """
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x
