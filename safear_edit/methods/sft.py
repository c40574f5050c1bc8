"""Supervised fine-tuning, the simplest baseline: teach the unsafe caption the safe image; no loser is needed."""

from __future__ import annotations

from torch import Tensor

from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods.base import PairMethod
from safear_edit.methods.workbench import PairTuning, Workbench
from safear_edit.registry import method


@method("sft", paper="https://arxiv.org/abs/2406.06525", denoising=True)
class SFT(PairMethod["SFT.Params"]):
    """Baseline: maximum likelihood of the safe image under the unsafe caption."""

    class Params(PairTuning):
        """Nothing of its own."""

    def loss(self, bench: Workbench, draw: Draw, params: SFT.Params) -> tuple[Tensor, Readings]:
        """Mean over tokens of -log pi(y_w,t | x_u, y_w,<t), the model's own training loss."""
        return -bench.winner(draw, "unsafe").mean(), {}
