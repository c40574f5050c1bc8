"""Obliviate: distil a guidance away from the concept into the model (https://arxiv.org/abs/2606.28643): KL to the
turned-away prediction of the frozen model, on the frozen model's own roll-outs under the concept prompt.

As in the paper, one prompt names the concept and nothing else; neither captions nor safe images are looked at.
`obliviate_pairs` is our form of it.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from safear_edit.compiler.cost import Work
from safear_edit.compiler.recipe import Card
from safear_edit.construct.pairs import Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.errors import UsageError
from safear_edit.judges.draw import BATCH
from safear_edit.methods.base import PairMethod
from safear_edit.methods.esd import turned_away
from safear_edit.methods.workbench import PairTuning, Workbench, token_kl
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@method("obliviate", paper="https://arxiv.org/abs/2606.28643")
class Obliviate(PairMethod["Obliviate.Params"]):
    """Erase by KL to the frozen model's prediction under the concept prompt, turned away from the concept."""

    class Params(PairTuning):
        eta: float = Field(
            2.0, ge=0, description="how far beyond the unconditional logits (paper: Liquid 2, Emu3 1, Janus-Pro 10)"
        )
        prompt: str | None = Field(
            None,
            min_length=1,
            description="the concept prompt: words joined by commas (paper); null: the concept",
        )
        rollouts: int = Field(160, ge=1, description="images that the frozen model draws for it (not in the paper)")

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: Obliviate.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Draw the roll-outs under the concept prompt, and find a LoRA edit on them; the pairs are left aside.

        UsageError for `adversarial`, which needs a caption without the concept.
        """
        if params.adversarial:
            fix = "choose a method that learns from pairs, obliviate_pairs for one"
            raise UsageError("params.adversarial", "false for obliviate", "true", fix)
        prompt = params.prompt or material.prompt or material.concept
        drawn = replace(material, pairs=rolled_out(model, prompt, params.rollouts, seed, progress))
        return super().fit(model, drawn, params, seed=seed, progress=progress, checkpoint=checkpoint)

    def loss(self, bench: Workbench, draw: Draw, params: Obliviate.Params) -> tuple[Tensor, Readings]:
        """`null_guided` under the concept prompt, over whole roll-outs."""
        return null_guided(bench, draw, params.eta), {}

    def work(self, params: Obliviate.Params, card: Card, pairs: int) -> Work:
        """With the roll-outs."""
        return replace(super().work(params, card, pairs), drawn=params.rollouts)


def null_guided(bench: Workbench, draw: Draw, eta: float) -> Tensor:
    """mean_k KL( softmax(z_k) || p_th(x_<k, c) ),  z_k = z(x_<k, 0) - eta (z(x_<k, c) - z(x_<k, 0)); equations 7, 9.

    z are the frozen model's logits with the caption c and without one, x its own roll-out under c: one prefix for all
    three, whole images at once.
    """
    without, concept = (bench.reference(draw, caption, "unsafe") for caption in ("none", "unsafe"))
    return token_kl(turned_away(without, concept, eta), bench.logits(draw, "unsafe", "unsafe")).mean()


@torch.no_grad()
def rolled_out(model: ModelFamily, prompt: str, count: int, seed: int, progress: Callback) -> Pairs:
    """`count` images that `model` draws for `prompt`, under seeds that nothing else uses, both sides of each pair."""
    words = (f"obliviate|rollout|{seed}|{number}" for number in range(count))
    seeds = [int.from_bytes(sha256(word.encode()).digest()[:8]) >> 1 for word in words]
    condition, parts = model.condition([prompt]), list[Tensor]()
    for start in range(0, count, BATCH):
        part = seeds[start : start + BATCH]
        parts.append(model.generate(condition.rows(torch.zeros(len(part), dtype=torch.int64)), part).cpu())
        progress("roll-outs", start + len(part), count, "")
    ids = torch.cat(parts)
    return Pairs([prompt] * count, [prompt] * count, seeds, ids, ids, PairStats(count, count, {}))
