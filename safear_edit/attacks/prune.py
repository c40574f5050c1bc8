"""Prune: the smallest weights set to zero, as a deployment may to save time; what an edit added may be among them."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from safear_edit.attacks.base import AttackParams, Concept
from safear_edit.attacks.quantise import rounded
from safear_edit.attacks.search import Option, OptionSearch, named, unnamed
from safear_edit.families.base import ModelFamily
from safear_edit.registry import attack


class Pruning(AttackParams):
    """How much goes."""

    shares: tuple[float, ...] = Field((0.1, 0.2, 0.3), description="of every linear layer's weights")


@attack("prune", access="white-box")
class Prune(OptionSearch):
    """The smallest tenth, fifth and three tenths of every linear layer's weights set to zero."""

    Params: ClassVar[type[AttackParams]] = Pruning
    params: Pruning

    def options(self, base: ModelFamily, concept: Concept) -> list[Option]:
        """As the base class says."""
        asks, plain = named(), unnamed(concept.spec)
        return [
            Option(f"{share:.0%} pruned", asks, plain, weights=partial(rounded, how=partial(pruned, share=share)))
            for share in self.params.shares
        ]


def pruned(weight: Tensor, share: float) -> Tensor:
    """Zeros for the share of numbers that is smallest in magnitude (Han et al. 2015, https://arxiv.org/abs/1506.02626).

    As many as that share is, rounded down; of equal ones, the first.
    """
    flat = weight.detach().flatten().clone()
    smallest = torch.sort(flat.abs(), stable=True).indices[: int(share * flat.numel())]
    flat[smallest] = 0
    return flat.view_as(weight)
