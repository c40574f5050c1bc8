"""VCE: preference optimisation on contrastive pairs, VSafe-DPO (Han et al. 2025, https://arxiv.org/abs/2509.16986).

The paper gives the idea; the details here are our reconstruction and each is a parameter. Both images are scored under
the unsafe caption x_u: the safe one y_w shall become the likelier answer. On a model that denoises latents it is the
same loss in the form of Diffusion-DPO, over places of the latent (denoising.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from safear_edit.compiler.cost import Work
from safear_edit.compiler.recipe import Card
from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.methods import deepen
from safear_edit.methods.base import PairMethod
from safear_edit.methods.strength import Strength, at_strength, eased, images_drawn, refuse_unjudged
from safear_edit.methods.workbench import PairTuning, Workbench
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


Average = Literal["seq", "token"]


@method("vce", paper="https://arxiv.org/abs/2509.16986", denoising=True)
class VCE(PairMethod["VCE.Params"]):
    """Erase by preferring the refined caption's image: VSafe-DPO with token drop and token-level average."""

    scored = True

    class Params(PairTuning):
        """Everything but the idea is ours: the paper's settings are not public."""

        beta: float = Field(5.0, gt=0, description="how sharply preferences count; on per-token averages, so 1 to 10")
        average: Average = Field(
            "seq", description="average log-ratios before (seq) or losses after (token) the sigmoid"
        )
        token_drop: float = Field(0.2, ge=0, lt=1, description="share of positions left out, the same for both images")
        caption_drop: float = Field(0.1, ge=0, lt=1, description="share of pairs that train the unconditional branch")
        anchor_weight: float = Field(0.3, ge=0, description="weight of the NLL of the safe image")
        anchor: Literal["unsafe", "safe"] = Field("unsafe", description="the caption that the NLL is taken under")
        keep_weight: float = Field(1.0, ge=0, description="weight of the KL to the base model on preserved prompts")
        depth: float = Field(
            0.0,
            ge=0,
            exclude_if=lambda weight: weight == 0,  # recipes from before there was one keep their digests
            description="weight of the KL to the base model's safe caption, on images of the concept",
        )
        strength: Strength = Field(
            1.0,
            exclude_if=lambda strength: strength == 1,
            description="scale of the found adapter; search: a little above the weakest that erases the concept from "
            "images of training prompts, so that neighbours lose less; likelihoods then keep more of the concept",
        )

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: VCE.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find a LoRA edit at its strength; UsageError if one is to be searched and nobody can judge."""
        refuse_unjudged("vce", params.strength, material)
        found = super().fit(model, material, params, seed=seed, progress=progress, checkpoint=checkpoint)
        return at_strength(model, material, found, params.strength, SEARCH, seed=seed, progress=progress)

    def loss(self, bench: Workbench, draw: Draw, params: VCE.Params) -> tuple[Tensor, Readings]:
        """VSafe-DPO on this step's pairs, plus the anchor.

        Why the anchor: a preference is also satisfied when both images become unlikely, and then the mass goes
        anywhere. NLL(y_w | x_u) says where it should go, at no cost (the forward is shared), so it erases and
        replaces; it is the default. NLL(y_w | x_s) costs a forward and only holds the safe caption in place. Rows
        without a caption are left out of the first: they would make the safe images the unconditional ones.
        """
        scores = bench.scores(draw, logits=bool(params.depth))
        drawn = draw.uniform("tokens", params.batch, scores.winner.shape[1]).to(scores.winner.device)
        gains = scores.winner_gain, scores.loser_gain
        loss = vsafe_dpo(*gains, drawn >= params.token_drop, params.beta, params.average).mean()
        margin = float((gains[0] - gains[1]).detach().mean())
        if params.anchor_weight:
            if params.anchor == "safe":
                anchor = -bench.winner(draw, "safe").mean()
            else:
                anchor = -(scores.winner.mean(1) * ~scores.dropped).mean()
            loss = loss + params.anchor_weight * anchor
        readings = {"margin": margin}
        if params.depth:
            deeper = deepen.depth(bench, draw, scores)
            loss, readings["depth"] = loss + params.depth * deeper, float(deeper.detach())
        return loss, readings

    def rows(self, params: VCE.Params, card: Card) -> float:
        """Winner and loser; the winner again where the anchor stands on the safe caption; what depth adds."""
        pairs = 3 if params.anchor_weight and params.anchor == "safe" else 2
        return params.batch * (pairs + (1 + params.caption_drop) * bool(params.depth))

    def work(self, params: VCE.Params, card: Card, pairs: int) -> Work:
        """With the images of a search for a strength, all of which are drawn in the worst case."""
        return replace(super().work(params, card, pairs), drawn=images_drawn(params.strength, SEARCH, pairs))


SEARCH = eased(0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
"""What a search tries. Training goes on until its steps are used up, and then the edit reaches beyond the concept: less
strength spares its neighbours. But likelihoods then keep all of the concept (examples/results), so it is no default."""


def vsafe_dpo(d_w: Tensor, d_l: Tensor, kept: Tensor, beta: float, average: Average) -> Tensor:
    """Loss per pair (b,) from log-ratios d = log pi(y_t | x_u, y_<t) - log pi_ref(y_t | x_u, y_<t), each (b, N).

    M = the positions `kept` (b, N) bool, one mask for winner and loser.
        seq:    -log sigmoid( beta * ( mean_M d_w - mean_M d_l ) )
        token:  mean_M of -log sigmoid( beta * ( d_w,t - d_l,t ) )
    log 2 where policy and reference agree. By concavity seq <= token: token goes on working on the positions that are
    still wrong when the pair as a whole is already right.
    """
    weight = kept.float() / kept.sum(1, keepdim=True).clamp(min=1)
    gap = d_w - d_l
    if average == "seq":
        return -F.logsigmoid(beta * (gap * weight).sum(1))
    return -(F.logsigmoid(beta * gap) * weight).sum(1)
