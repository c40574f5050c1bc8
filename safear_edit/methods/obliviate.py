"""Obliviate: distil a guidance away from the concept into the model (https://arxiv.org/abs/2606.28643): KL to the
turned-away prediction of the frozen model, on the frozen model's own unsafe image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor

from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods.base import PairTuning, Workbench, fit_pairs, token_kl
from safear_edit.methods.esd import turned_away
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@method("obliviate", paper="https://arxiv.org/abs/2606.28643")
class Obliviate:
    """Erase by KL to the frozen model's prediction, turned away from the concept; needs no safe image."""

    class Params(PairTuning):
        eta: float = Field(
            2.0, ge=0, description="how far beyond the unconditional logits (paper: Liquid 2, Emu3 1, Janus-Pro 10)"
        )

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: Obliviate.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find a LoRA edit: mean_k KL( softmax(z_0 - eta (z_c - z_0)) || p_th(x_<k, c) ).

        z are the frozen model's logits and x its own roll-out under the harmful prompt c. The safe images of the
        pairs are not looked at; the pairs' judge has made sure that c does show the concept.
        """

        def loss(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
            target = turned_away(
                bench.reference(draw, "none", "unsafe"), bench.reference(draw, "unsafe", "unsafe"), params.eta
            )
            return token_kl(target, bench.logits(draw, "unsafe", "unsafe")).mean(), {}

        return fit_pairs(
            "obliviate",
            model,
            material,
            params,
            loss,
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            reference=False,
        )
