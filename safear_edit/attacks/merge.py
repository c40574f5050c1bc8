"""Merge: the edited weights mixed with the published ones, or the edit's largest directions taken out.

Whoever has both models can do this in a minute, and merging with a model's relatives is what communities do anyway.
An edit of low rank may hang on a few directions: "directional ablation" in reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from safear_edit.attacks.base import AttackParams, Concept
from safear_edit.attacks.search import Option, OptionSearch, named, unnamed
from safear_edit.families.base import ModelFamily
from safear_edit.families.merged import originals
from safear_edit.registry import attack


class Merging(AttackParams):
    """How much of the edit is left."""

    shares: tuple[float, ...] = Field((0.75, 0.5), description="of the edit, the rest is the base model")
    directions: tuple[int, ...] = Field((1, 4), description="largest singular directions of every delta taken out")


@attack("merge", access="white-box")
class Merge(OptionSearch):
    """Three quarters and half of the edit, and the edit without its largest singular directions."""

    Params: ClassVar[type[AttackParams]] = Merging
    params: Merging

    def options(self, base: ModelFamily, concept: Concept) -> list[Option]:
        """As the base class says. On the base model there is no edit, so nothing changes there."""
        asks, plain = named(), unnamed(concept.spec)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            f"{share:.0%} of the edit": partial(torch.mul, other=share) for share in self.params.shares
        }
        for count in self.params.directions:
            ways[f"without its {count} largest direction{'s' * (count > 1)}"] = partial(shrunk, directions=count)
        return [
            Option(name, asks, plain, weights=partial(edit_as, change=way), of_edit=True) for name, way in ways.items()
        ]


def shrunk(delta: Tensor, directions: int) -> Tensor:
    """A change of a matrix without its largest singular directions; of anything else, as it is."""
    if delta.dim() != 2:
        return delta
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    s[:directions] = 0
    return (u * s) @ v


@contextmanager
def edit_as(
    net: nn.Module, change: Callable[[Tensor], Tensor], weights: Sequence[tuple[Tensor, Tensor]] | None = None
) -> Iterator[None]:
    """While it lasts, what all edits together add to each weight of `net` is `change` of it; then bitwise as before.

    weights: of these alone, with what they were (default: of all, see `originals`).
    """
    weights = originals(net) if weights is None else weights
    merged = [weight.detach().to("cpu", copy=True) for weight, _ in weights]
    try:
        with torch.no_grad():
            for (weight, base), now in zip(weights, merged, strict=True):
                weight.copy_(base.float() + change(now.float() - base.float()))
        yield
    finally:
        with torch.no_grad():
            for (weight, _), now in zip(weights, merged, strict=True):
                weight.copy_(now)
