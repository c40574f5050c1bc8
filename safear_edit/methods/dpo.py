"""Plain DPO on contrastive pairs (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290): the baseline of VCE.

Sums over all tokens, no drop, no anchor, nothing kept unless the recipe asks for it.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from safear_edit.compiler.recipe import Card
from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods.base import PairMethod
from safear_edit.methods.workbench import PairTuning, Workbench
from safear_edit.registry import method


@method("dpo", paper="https://arxiv.org/abs/2305.18290", denoising=True)
class DPO(PairMethod["DPO.Params"]):
    """Baseline: direct preference optimisation, sum form."""

    scored = True

    class Params(PairTuning):
        beta: float = Field(0.1, gt=0, description="on sums over tokens; the paper's value")

    def loss(self, bench: Workbench, draw: Draw, params: DPO.Params) -> tuple[Tensor, Readings]:
        """Mean of `dpo` over the pairs, both images under the unsafe caption."""
        scores = bench.scores(draw)
        value = dpo(scores.winner_gain, scores.loser_gain, params.beta).mean()
        return value, {"margin": float((scores.winner_gain - scores.loser_gain).detach().mean())}

    def rows(self, params: DPO.Params, card: Card) -> float:
        """Winner and loser."""
        return 2 * params.batch


def dpo(d_w: Tensor, d_l: Tensor, beta: float) -> Tensor:
    """-log sigmoid( beta * ( sum_t d_w,t - sum_t d_l,t ) ) per pair (b,), from log-ratios (b, N); equation 7."""
    return -F.logsigmoid(beta * (d_w - d_l).sum(1))
