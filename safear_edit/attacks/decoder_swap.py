"""Decoder swap: the base model's codebook, tables and image decoder put back, the edited transformer kept.

An edit of the table that feeds image tokens back (Safe-CB) leaves everything else as it was, and the original table is
on the hub for everybody. Who puts it back needs no training, no prompt and no gradient. An edit of the transformer's
layers has nothing there to put back: its codebook and decoder are the base model's anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from safear_edit.attacks.base import Concept
from safear_edit.attacks.merge import edit_as
from safear_edit.attacks.search import Option, OptionSearch, named, unnamed
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import ModelFamily
from safear_edit.families.merged import originals
from safear_edit.registry import attack

NOTHING = "the edit changes layers of the transformer alone; codebook and decoder are the base model's already"


@attack("decoder_swap", access="grey-box")
class DecoderSwap(OptionSearch):
    """The base model's codebook and decoder in the edited model, for edits that changed more than layers."""

    def unfit(self, pair: Pair, concept: Concept) -> str:
        """Needs an edit of something else than the transformer's linear layers."""
        with pair.edited() as model:
            return "" if beside_layers(model.net, model.editable("all")) else NOTHING

    def options(self, base: ModelFamily, concept: Concept) -> list[Option]:
        """As the base class says. On the base model there is no edit, so nothing changes there."""
        put_back = partial(as_published, layers=base.editable("all"))
        name = "codebook and decoder of the base model"
        return [Option(name, named(), unnamed(concept.spec), weights=put_back, of_edit=True)]


def beside_layers(net: nn.Module, layers: list[str]) -> list[tuple[Tensor, Tensor]]:
    """What edits changed outside of these linear layers, with what it was before."""
    inside = {id(net.get_parameter(f"{name}.weight")) for name in layers}
    return [(weight, base) for weight, base in originals(net) if id(weight) not in inside]


@contextmanager
def as_published(net: nn.Module, layers: list[str]) -> Iterator[None]:
    """While it lasts, everything outside of these layers is the base model's; then bitwise as before."""
    with edit_as(net, torch.zeros_like, beside_layers(net, layers)):
        yield
