"""Plain DPO on contrastive pairs (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290): the baseline of VCE.

Sums over all tokens, no drop, no anchor, nothing kept unless the recipe asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods.base import PairTuning, Workbench, fit_pairs
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@method("dpo", paper="https://arxiv.org/abs/2305.18290")
class DPO:
    """Baseline: direct preference optimisation, sum form."""

    class Params(PairTuning):
        beta: float = Field(0.1, gt=0, description="on sums over tokens; the paper's value")

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: DPO.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find a LoRA edit from the pairs."""

        def loss(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
            scores = bench.scores(draw)
            value = dpo(scores.winner_gain, scores.loser_gain, params.beta).mean()
            return value, {"margin": float((scores.winner_gain - scores.loser_gain).detach().mean())}

        return fit_pairs("dpo", model, material, params, loss, seed=seed, progress=progress, checkpoint=checkpoint)


def dpo(d_w: Tensor, d_l: Tensor, beta: float) -> Tensor:
    """-log sigmoid( beta * ( sum_t d_w,t - sum_t d_l,t ) ) per pair (b,), from log-ratios (b, N); equation 7."""
    return -F.logsigmoid(beta * (d_w - d_l).sum(1))
