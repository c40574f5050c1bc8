"""The workbench for models that denoise latents: what stands for a log-probability is how well noise is predicted.

Diffusion-DPO (Wallace et al. 2023, https://arxiv.org/abs/2311.12908, eq. 14) puts one noise level t and noise e per
image into the bound of its likelihood. A place n of a latent with C channels then has, with w(t) = 1,

    log p(place n) ~ -T mean_c (e_th(x_t, t, caption) - e)^2,     T = STEPS

so that beta on the mean over places is their beta T w(t) on the mean squared error (2000 to 5000 there, 2 to 5 here).
Level and noise are those of a step and the same for both images of a pair, the trained and the base model: their
differences are then of the models, not of the noise. Methods read these numbers as they read those of tokens, so VCE's
two averages, its token drop and its anchor mean the same, over places.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from safear_edit.construct.pairs import Material
from safear_edit.editor.fine_tune import Draw, adapter_off
from safear_edit.errors import UsageError
from safear_edit.families.merged import without_edits
from safear_edit.methods.workbench import Caption, Image, PairTuning, Scores, Workbench
from safear_edit.progress import Callback, silent

if TYPE_CHECKING:
    from safear_edit.families.base import Condition, ModelFamily


STEPS = 1000
"""T: steps of the noise schedule that both layouts are trained with."""
TAIL = 3e-7
"""Share of normal numbers beyond 5."""


class DenoisingWorkbench(Workbench):
    """What `Workbench` offers, from predictions of noise; `logits` and `reference` are the predictions themselves."""

    def __init__(self, model: ModelFamily, material: Material, params: PairTuning) -> None:
        super().__init__(model, material, params, silent, reference=False)

    def scores(self, draw: Draw, *, logits: bool = False) -> Scores:
        """As of tokens, of this step's level and noise, in one forward of 2b rows by each model; keeps no `logits`."""
        rows, dropped = self._pairs(draw)
        pairs, captions = self.material.pairs, self._captions.rows(self._unsafe[rows].repeat(2))
        captions, latents = self._dropping(captions, dropped.repeat(2)), torch.cat([pairs.safe_ids, pairs.unsafe_ids])
        latents = latents[torch.cat([rows, rows + len(pairs)])]
        policy = self._likely(draw, captions, latents)
        with adapter_off(self.model.net):
            base = self._likely(draw, captions, latents)
        (winner, loser), (winner_before, loser_before) = policy.chunk(2), base.chunk(2)
        return Scores(winner, loser, winner_before, loser_before, dropped.to(policy.device))

    def winner(self, draw: Draw, caption: Literal["unsafe", "safe"]) -> Tensor:
        """As of tokens, of this step's level and noise."""
        rows, dropped = self._pairs(draw)
        captions = self._captions.rows((self._unsafe if caption == "unsafe" else self._safe)[rows])
        return self._likely(draw, self._dropping(captions, dropped), self.material.pairs.safe_ids[rows])

    def logits(self, draw: Draw, caption: Caption, image: Image, *, first_scales: int | None = None) -> Tensor:
        """The noise (b, N, C) that is found in this step's images, of this step's level and noise."""
        return self._noise(draw, *self._view(self._pairs(draw)[0], caption, image), "pairs")[0]

    def reference(self, draw: Draw, caption: Caption, image: Image, *, first_scales: int | None = None) -> Tensor:
        """`logits` of the base model, without gradients."""
        with adapter_off(self.model.net):
            return self.logits(draw, caption, image)

    def drift(self, draw: Draw) -> Tensor:
        """T times the mean squared difference of the noises that base and trained model find in preserved images."""
        assert self._keep is not None and self.material.keep is not None
        rows = draw.rows("keep", len(self._keep), self.params.keep_batch)
        dropped = draw.uniform("keep caption", self.params.keep_batch, 1)[:, 0] < self.params.caption_drop
        captions = self._dropping(self._captions.rows(self._keep[rows]), dropped)
        latents = self.material.keep.ids[rows].to(self.model.device)
        policy = self._noise(draw, captions, latents, "keep")[0]
        guards = self.material.keep.guards
        held = torch.tensor([guards[row] for row in rows.tolist()]) if guards else torch.zeros(len(rows)).bool()
        with adapter_off(self.model.net):
            with without_edits(self.model.net):
                base = self._noise(draw, captions, latents, "keep")[0]
            if held.any():
                guarded = self._noise(draw, captions, latents, "keep")[0]
                base = torch.where(held.view(-1, 1, 1).to(base.device), guarded, base)
        return STEPS * (policy - base).square().mean()

    def _likely(self, draw: Draw, captions: Condition, latents: Tensor) -> Tensor:
        found, noise = self._noise(draw, captions, latents.to(self.model.device), "pairs")
        return -STEPS * (found - noise).square().mean(-1)

    def _noise(
        self, draw: Draw, captions: Condition, latents: Tensor, which: Literal["pairs", "keep"]
    ) -> tuple[Tensor, Tensor]:
        """What is found in latents (B, N, C), and what was mixed in, at this step's levels. Both images of pairs, which
        follow each other in blocks, share their level and noise."""
        batch = self.params.batch if which == "pairs" else self.params.keep_batch
        level = draw.uniform(f"{which} level", batch, 1)[:, 0]
        noise = normal(draw.uniform(f"{which} noise", batch, prod(self.model.token_shape)))
        images = len(latents) // len(level)
        noise = noise.unflatten(1, self.model.token_shape).repeat(images, 1, 1).to(self.model.device)
        return self.model.noise_prediction(captions, latents, noise, level.repeat(images)), noise


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from numbers in [0, 1); the tails end at 5 standard deviations."""
    return torch.special.ndtri(uniform.double().clamp(TAIL, 1 - TAIL)).float()


def workbench(
    model: ModelFamily, material: Material, params: PairTuning, progress: Callback, *, reference: bool = True
) -> Workbench:
    """The workbench for a model that draws tokens, or for one that denoises; UsageError for parts of a loss that such a
    model can't have."""
    if "denoising" in model.provides:
        if params.adversarial or bool(getattr(params, "depth", 0.0)) or params.keep_parts > 1:
            got = f"{model.card.ref}, which denoises latents"
            fix = "set depth to 0, adversarial to false and keep_parts to 1"
            raise UsageError(
                "depth, adversarial and keep_parts", "a model that gives likelihoods of image tokens", got, fix
            )
        return DenoisingWorkbench(model, material, params)
    return Workbench(model, material, params, progress, reference=reference)
