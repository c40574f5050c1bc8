"""Quantise: the weights rounded as a deployment may round them; an edit smaller than the rounding would be lost.

Casting to half precision is one way. The others are plain rounding to the nearest of 2^bits values, symmetric about 0.
Packages that serve such weights round alike but for details: torchao's int4, for one, has groups with a zero of their
own (https://docs.pytorch.org/ao/stable/generated/torchao.quantization.Int4WeightOnlyConfig.html).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from safear_edit.attacks.base import AttackParams, Concept
from safear_edit.attacks.search import Option, OptionSearch, named, unnamed
from safear_edit.families.base import ModelFamily
from safear_edit.registry import attack

Way = Literal["bfloat16", "float16", "8 bits", "4 bits", "4 bits, groups of 64"]
"""Names of `ROUNDINGS`."""


class Rounding(AttackParams):
    """What is tried; each way is a model of its own to draw with."""

    ways: tuple[Way, ...] = get_args(Way)


@attack("quantise", access="white-box")
class Quantise(OptionSearch):
    """bfloat16, float16, and eight and four bits, per row and in groups of 64, there and back."""

    Params: ClassVar[type[AttackParams]] = Rounding
    params: Rounding

    def options(self, base: ModelFamily, concept: Concept) -> list[Option]:
        """As the base class says."""
        asks, plain = named(), unnamed(concept.spec)
        ways = [(name, partial(rounded, how=ROUNDINGS[name])) for name in self.params.ways]
        return [Option(name, asks, plain, weights=weights) for name, weights in ways]


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """To another floating-point type and back."""
    return weight.to(dtype).to(weight.dtype)


def to_bits(weight: Tensor, bits: int) -> Tensor:
    """To whole numbers of so many bits and back: symmetric, one scale per output row, round to nearest."""
    most = 2 ** (bits - 1) - 1
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / most
    return ((weight.float() / scale).round() * scale).to(weight.dtype)


def in_groups(weight: Tensor, bits: int, size: int) -> Tensor:
    """The same with one scale per so many numbers of a row; a row's last group may be smaller."""
    return torch.cat([to_bits(part, bits) for part in weight.split(size, 1)], 1)


ROUNDINGS: dict[Way, Callable[[Tensor], Tensor]] = {
    "bfloat16": partial(cast, dtype=torch.bfloat16),
    "float16": partial(cast, dtype=torch.float16),
    "8 bits": partial(to_bits, bits=8),
    "4 bits": partial(to_bits, bits=4),
    "4 bits, groups of 64": partial(in_groups, bits=4, size=64),
}


@contextmanager
def rounded(net: nn.Module, how: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Every linear layer's weight rounded; afterwards bitwise as before. Originals wait in host memory."""
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    weights = {id(layer.weight): layer.weight for layer in layers}.values()  # tied ones once
    originals = [(weight, weight.detach().to("cpu", copy=True)) for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(how(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, original in originals:
                weight.copy_(original)
