"""Muon in float32: momentum, orthogonalised by Newton-Schulz, for the matrices of a transformer's layers.

Method: Keller Jordan et al., https://kellerjordan.github.io/posts/muon/ (Nesterov momentum, quintic iteration with
coefficients 3.4445, -4.7750, 2.0315); scaled by 0.2 sqrt(max(rows, columns)) so that AdamW's learning rates fit
(arXiv 2502.16982, eq. 4). torch.optim.Muon iterates in bfloat16, which CPUs without bf16 units run some 30 times
slower, hence this one; matrices of one shape are iterated as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Muon(Optimizer):
    """For 2-D parameters only; weight decay is decoupled."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                update = orthogonal(torch.stack([self._nesterov(p, group["momentum"]) for p in parameters]))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, direction in zip(parameters, update, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=scale)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        state: dict[str, Any] = self.state[parameter]
        buffer = state.setdefault("momentum", torch.zeros_like(parameter))
        gradient = parameter.grad
        assert gradient is not None
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def orthogonal(batch: Tensor, steps: int = 5) -> Tensor:
    """Approximately U V^T of each matrix of (n, rows, columns): all singular values pulled towards 1."""
    tall = batch.shape[-2] > batch.shape[-1]
    x = batch.mT if tall else batch
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
