"""ESD for autoregressive models: push the unsafe caption's logits beyond the unconditional ones (Gandikota et al. 2023,
https://arxiv.org/abs/2303.07345), on the frozen model's own image. A baseline of VARE and SACE. On a model that
denoises latents it is the paper's own loss, on predictions of noise, with the base model's finished images noised in
place of images that are half drawn.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods.base import PairMethod
from safear_edit.methods.workbench import PairTuning, Workbench
from safear_edit.registry import method


@method("esd", paper="https://arxiv.org/abs/2303.07345", denoising=True)
class ESD(PairMethod["ESD.Params"]):
    """Baseline: mean squared error to logits turned away from the concept."""

    class Params(PairTuning):
        eta: float = Field(1.0, ge=0, description="how far beyond the unconditional logits; 0 stops at them")

    def loss(self, bench: Workbench, draw: Draw, params: ESD.Params) -> tuple[Tensor, Readings]:
        """|| z_th*(y | y_<, c*) - (z_0 - eta (z_c* - z_0)) ||^2, mean over tokens and choices.

        ESD-x trains cross-attention (`part: cross_attention`), ESD-u the rest (`part: attention+ffn`).
        """
        without, concept = (bench.reference(draw, caption, "unsafe") for caption in ("none", "unsafe"))
        target = turned_away(without, concept, params.eta)
        return (bench.logits(draw, "unsafe", "unsafe") - target).square().mean(), {}


def turned_away(without: Tensor, concept: Tensor, eta: float) -> Tensor:
    """z_0 - eta (z_c* - z_0): guidance away from the concept; any shape."""
    return without - eta * (concept - without)
