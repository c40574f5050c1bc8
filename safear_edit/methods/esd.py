"""ESD for autoregressive models: push the unsafe caption's logits beyond the unconditional ones (Gandikota et al. 2023,
https://arxiv.org/abs/2303.07345), on the frozen model's own image. A baseline of VARE and SACE.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor

from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods.base import PairTuning, Workbench, fit_pairs
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@method("esd", paper="https://arxiv.org/abs/2303.07345")
class ESD:
    """Baseline: mean squared error to logits turned away from the concept."""

    class Params(PairTuning):
        eta: float = Field(1.0, ge=0, description="how far beyond the unconditional logits; 0 stops at them")

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: ESD.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find a LoRA edit: || z_th*(y | y_<, c*) - (z_0 - eta (z_c* - z_0)) ||^2, mean over tokens and choices.

        ESD-x trains cross-attention (`part: cross_attention`), ESD-u the rest (`part: attention+ffn`).
        """

        def loss(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
            target = turned_away(
                bench.reference(draw, "none", "unsafe"), bench.reference(draw, "unsafe", "unsafe"), params.eta
            )
            return (bench.logits(draw, "unsafe", "unsafe") - target).square().mean(), {}

        return fit_pairs(
            "esd", model, material, params, loss, seed=seed, progress=progress, checkpoint=checkpoint, reference=False
        )


def turned_away(without: Tensor, concept: Tensor, eta: float) -> Tensor:
    """z_0 - eta (z_c* - z_0): guidance away from the concept; any shape."""
    return without - eta * (concept - without)
