"""Gradients through a network of float16 weights, in which small ones would be lost.

float16 ends at 6e-8: of a loss that is a mean over many tokens much of the gradient lies below. So the loss is
multiplied before the backward pass and the gradients are divided after it, in float32 (loss scaling; Micikevicius et
al. 2018, https://arxiv.org/abs/1710.03740, section 3.2). A factor with which something overflows is given up for the
next one at once, over the same graph: unlike `torch.amp.GradScaler`, no step is lost and nothing has to be kept for
the next step, so a killed run goes on to the same numbers. Other networks are differentiated as ever, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

FACTORS = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)
"""Tried in this order until all gradients are finite; powers of two, which round nothing."""


def in_float16(net: nn.Module) -> bool:
    """Whether any weight is float16, and so what flows back through the network."""
    return any(weight.dtype == torch.float16 for weight in net.parameters())


def gradients(
    net: nn.Module, loss: Tensor, inputs: Sequence[Tensor], agreed: Callable[[bool], bool] = bool
) -> list[Tensor]:
    """d loss / d inputs, shaped as those, for a scalar loss that was computed through `net`; zeros for what it doesn't
    depend on. float32 where net has float16 weights, else each of its input's dtype.

    agreed: whether a factor is kept, given whether this process's gradients are finite with it; processes that can go
    back through `net` only together must all be told the same. Not finite where they aren't by any factor; the caller
    decides. With float16 weights the graph is kept until the gradients are found, which takes the memory of the forward
    pass to the end of the backward pass.
    """
    if not in_float16(net):
        return list(torch.autograd.grad(loss, inputs, materialize_grads=True))
    for factor in FACTORS:
        scaled = torch.autograd.grad(loss * factor, inputs, retain_graph=True, materialize_grads=True)
        found = [gradient.float() / factor for gradient in scaled]
        if agreed(all(bool(gradient.isfinite().all()) for gradient in found)):
            break
    return found


def backward(net: nn.Module, loss: Tensor, weights: Sequence[Tensor], agreed: Callable[[bool], bool] = bool) -> None:
    """Add d loss / d weights, which are float32, to their `.grad`, also where that is zero. agreed: as above."""
    for weight, gradient in zip(weights, gradients(net, loss, weights, agreed), strict=True):
        weight.grad = gradient if weight.grad is None else weight.grad + gradient
