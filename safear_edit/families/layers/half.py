"""Half precision on a CPU that has no arithmetic for it: weights are kept narrow, products are made in float32.

torch multiplies bfloat16 and float16 there by loops of its own, several times as slow as float32; from some rows on it
pays to widen the matrix each time (`python -m safear_edit.studies benchmark --parts half`). Sums are rounded to the
narrow type once, at the end. The gradient of attention has loops of its own too, also several times as slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEWEST = 4
"""Rows from which a widened product is the faster one, where no gradient is asked for: torch's is slow for any."""
BLOCK = 2**19
"""Numbers of a matrix that are widened together, 2 MiB: they are still in the core's cache when they are multiplied,
and a block of 4 MiB would come from the system page by page each time (`keep_no_large_blocks`)."""


@cache
def emulated(kind: torch.dtype) -> bool:
    """Whether this CPU's products of this dtype are torch's own slow loops."""
    native = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return kind in native and not getattr(torch.ops.mkldnn, native[kind])()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for x (…, K), weight (N, K) and bias (N,) of one dtype; with a gradient for x, and for no weight that
    is widened."""
    learning = torch.is_grad_enabled()
    own = learning and (weight.requires_grad or (bias is not None and bias.requires_grad))
    here = weight.device.type == "cpu" and x.dtype == weight.dtype and emulated(weight.dtype)
    few = x.numel() < FEWEST * x.shape[-1] and not (learning and x.requires_grad)
    if own or not here or few:
        return F.linear(x, weight, bias)
    return cast("Tensor", _Widened.apply(x, weight, bias))


class _Widened(torch.autograd.Function):
    """x Wᵀ + b in float32, a block of W's rows at a time; W is all that waits for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        wide = x.float().flatten(0, -2)
        y = wide.new_empty(len(wide), len(weight))
        for first, rows in _widened_rows(weight):
            y[:, first : first + len(rows)] = wide @ rows.T
        y = y if bias is None else y.add_(bias)
        return y.unflatten(0, x.shape[:-1]).to(x.dtype)  # no view: callers may write in it

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        wide = gradient.float().flatten(0, -2)
        whole = wide.new_zeros(len(wide), weight.shape[1])
        for first, rows in _widened_rows(weight):
            whole.addmm_(wide[:, first : first + len(rows)], rows)
        return whole.unflatten(0, gradient.shape[:-1]).to(gradient.dtype), None, None


def _widened_rows(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """W in blocks of rows in float32, each with the number of its first; all in the same place, one after the other."""
    size = max(1, BLOCK // weight.shape[1])
    place = torch.empty(min(size, len(weight)), weight.shape[1])
    for first in range(0, len(weight), size):
        rows = weight[first : first + size]
        yield first, place[: len(rows)].copy_(rows)


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Queries, keys, values and a mask or bias to what is attended."""


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float | None = None, grouped: bool = False
) -> Tensor:
    """F.scaled_dot_product_attention (`bias` is its attn_mask, `grouped` its enable_gqa), by `widely_learned`."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=grouped)

    return widely_learned(attend, q, k, v, bias)


def widely_learned(attend: Attend, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The value of `attend`, and its gradients for q, k and v alone in float32 where the CPU lacks their arithmetic.

    The value is computed again for them, so that nothing wide waits for the backward pass.
    """
    here = q.device.type == "cpu" and torch.is_grad_enabled() and emulated(q.dtype)
    if here and any(x.requires_grad for x in (q, k, v)):
        return cast("Tensor", _Attended.apply(q, k, v, bias, attend))
    return attend(q, k, v, bias)


class _Attended(torch.autograd.Function):
    """Attention whose backward pass widens q, k, v and the bias."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, attend: Attend) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        ctx.attend = attend
        return attend(q, k, v, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *asked, bias = ctx.saved_tensors
        wide = [x.float().requires_grad_(wanted) for x, wanted in zip(asked, ctx.needs_input_grad, strict=False)]
        if bias is not None and bias.is_floating_point():
            bias = bias.float()
        with torch.enable_grad():
            y = ctx.attend(wide[0], wide[1], wide[2], bias)
        found = iter(torch.autograd.grad(y, [x for x in wide if x.requires_grad], gradients[0].float()))
        narrow = (next(found).to(asked[0].dtype) if x.requires_grad else None for x in wide)
        return (*narrow, None, None)


@cache
def _known_to_transformers() -> str:
    """The name under which transformers' models find their own attention, by `widely_learned`.

    https://huggingface.co/docs/transformers/attention_interface
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
    ) -> tuple[Tensor, None]:
        def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            return sdpa_attention_forward(module, q, k, v, bias, **how)[0]

        return widely_learned(attend, query, key, value, attention_mask), None

    AttentionInterface.register(name := "widely_learned", forward)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Linear has
        return linear(input, self.weight, self.bias)


def widened(net: nn.Module) -> None:
    """Have every linear layer of `net` compute by `linear`, and on a CPU transformers' models by `widely_learned`."""
    here = next(net.parameters()).device.type == "cpu"
    for module in net.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif here and hasattr(module, "set_attn_implementation"):
            model = cast("PreTrainedModel", module)
            if model.config._attn_implementation == "sdpa":
                model.set_attn_implementation(_known_to_transformers())
