"""Supervised fine-tuning, the simplest baseline: teach the unsafe caption the safe image; no loser is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods.base import PairTuning, Workbench, fit_pairs
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@method("sft", paper="https://arxiv.org/abs/2406.06525")
class SFT:
    """Baseline: maximum likelihood of the safe image under the unsafe caption."""

    class Params(PairTuning):
        """Nothing of its own."""

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: SFT.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find a LoRA edit: mean over tokens of -log pi(y_w,t | x_u, y_w,<t), the model's own training loss."""

        def loss(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
            return -bench.winner(draw, "unsafe").mean(), {}

        return fit_pairs(
            "sft", model, material, params, loss, seed=seed, progress=progress, checkpoint=checkpoint, reference=False
        )
