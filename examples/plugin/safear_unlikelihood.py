"""Unlikelihood training (Welleck et al., https://arxiv.org/abs/1908.04319, equation 4) as a method of safear-edit."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from safear_edit import method
from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.families.tokens import token_logprobs
from safear_edit.methods.base import PairMethod
from safear_edit.methods.workbench import PairTuning, Workbench


@method("unlikelihood", paper="https://arxiv.org/abs/1908.04319")
class Unlikelihood(PairMethod["Unlikelihood.Params"]):
    """Each token of the unsafe image becomes less likely under its caption, each of the safe one more likely."""

    class Params(PairTuning):
        """Beside what all methods that learn from pairs have."""

        alpha: float = Field(1.0, ge=0, description="weight of the unlikelihood term")

    def loss(self, bench: Workbench, draw: Draw, params: Unlikelihood.Params) -> tuple[Tensor, Readings]:
        """-log p(y_w,t) - alpha log(1 - p(y_l,t)), means over tokens, both under the unsafe caption."""
        avoid = token_logprobs(bench.logits(draw, "unsafe", "unsafe"), bench.image(draw, "unsafe"))
        less = -torch.log1p(-avoid.exp().clamp(max=1 - 1e-6)).mean()
        return -bench.winner(draw, "unsafe").mean() + params.alpha * less, {"less": less.item()}
