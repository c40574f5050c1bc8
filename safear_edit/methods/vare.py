"""VARE: match the neutral caption's predictions on the frozen model's own image of it, and the naive baseline that
the paper compares it with (the S-VARE paper, https://arxiv.org/abs/2509.22400).

In a next-scale model, a student that follows another image than its teacher collects errors over the scales. VARE
feeds both the same auxiliary visual tokens r^ori: the tokens that the frozen model drew for the neutral caption c.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods.base import PairMethod
from safear_edit.methods.workbench import PairTuning, Workbench
from safear_edit.registry import method


@method("vare", paper="https://arxiv.org/abs/2509.22400")
class VARE(PairMethod["VARE.Params"]):
    """Mean squared error between what the unsafe caption predicts and what the neutral one did, on shared tokens."""

    class Params(PairTuning):
        prefix: Literal["shared", "own"] = Field(
            "shared", description="shared: both see the neutral image (VARE); own: each its own (the naive baseline)"
        )

    def loss(self, bench: Workbench, draw: Draw, params: VARE.Params) -> tuple[Tensor, Readings]:
        """shared: || p_th*(r_i | r^ori_<i, c*) - p_th(r_i | r^ori_<i, c) ||^2

        own: || p_th*(r_i | r_<i, c*) - p_th(r_i | r^ori_<i, c) ||^2, r drawn for c* by the base model. The paper lets
        the student draw r again at each step; images drawn once are what a recipe can hold.
        """
        policy = bench.logits(draw, "unsafe", "safe" if params.prefix == "shared" else "unsafe")
        return probability_mse(policy, bench.reference(draw, "safe", "safe")).mean(), {}


def probability_mse(policy: Tensor, target: Tensor) -> Tensor:
    """Squared distance of two predictions for each token (b, N), from logits (b, N, V), or of bits (b, N, d, 2) their
    mean. Sums over choices: twice the square of the difference for a bit."""
    squares = (policy.softmax(-1) - target.softmax(-1)).square().sum(-1)
    return squares.mean(-1) if squares.dim() == 3 else squares
