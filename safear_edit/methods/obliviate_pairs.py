"""Obliviate's target (https://arxiv.org/abs/2606.28643, equation 7) on the whole unsafe captions of the pairs and the
frozen model's own images of them, with what must stay held in place: our form of it, not the paper's.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods.base import PairMethod
from safear_edit.methods.obliviate import null_guided
from safear_edit.methods.workbench import PairTuning, Workbench
from safear_edit.registry import method


@method("obliviate_pairs", paper="https://arxiv.org/abs/2606.28643")
class ObliviatePairs(PairMethod["ObliviatePairs.Params"]):
    """Obliviate's target on whole captions instead of the concept prompt; ours."""

    class Params(PairTuning):
        eta: float = Field(2.0, ge=0, description="how far beyond the unconditional logits (paper: 1 to 10)")

    def loss(self, bench: Workbench, draw: Draw, params: ObliviatePairs.Params) -> tuple[Tensor, Readings]:
        """`null_guided` under each pair's unsafe caption; the safe images are not looked at."""
        return null_guided(bench, draw, params.eta), {}
