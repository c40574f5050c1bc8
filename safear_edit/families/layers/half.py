"""Half precision on a CPU that has no arithmetic for it: weights are kept narrow, products are made in float32.

torch multiplies bfloat16 and float16 there by loops of its own, several times as slow as float32; from some rows on it
pays to widen the matrix each time (`python -m safear_edit.studies benchmark --parts half`). Sums are rounded to the
narrow type once, at the end.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST = 16
"""Rows from which a widened product is the faster one."""
BLOCK = 2**22
"""Numbers of a matrix that are widened together, 16 MiB: larger blocks come from the system page by page."""


@cache
def emulated(kind: torch.dtype) -> bool:
    """Whether this CPU's products of this dtype are torch's own slow loops."""
    native = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return kind in native and not getattr(torch.ops.mkldnn, native[kind])()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for x (…, K), weight (N, K) and bias (N,) of one dtype; with a gradient for x, and for no weight that
    is widened."""
    wanted = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
    here = weight.device.type == "cpu" and x.dtype == weight.dtype and emulated(weight.dtype)
    if wanted or not here or x.numel() < FEWEST * x.shape[-1]:
        return F.linear(x, weight, bias)
    return cast("Tensor", _Widened.apply(x, weight, bias))


class _Widened(torch.autograd.Function):
    """x Wᵀ + b in float32, a block of W's rows at a time; W is all that waits for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        wide = x.float()
        y = torch.cat([F.linear(wide, rows.float()) for rows in _blocks(weight)], -1)
        return (y if bias is None else y.add_(bias)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        blocks = _blocks(weight)
        columns = gradient.split([len(rows) for rows in blocks], -1)
        parts = (own.float() @ rows.float() for own, rows in zip(columns, blocks, strict=True))
        whole = next(parts)
        for part in parts:
            whole.add_(part)
        return whole.to(gradient.dtype), None, None


def _blocks(weight: Tensor) -> tuple[Tensor, ...]:
    return weight.split(max(1, BLOCK // weight.shape[1]))


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Linear has
        return linear(input, self.weight, self.bias)


def widened(net: nn.Module) -> None:
    """Have every linear layer of `net` compute by `linear`."""
    for module in net.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
