"""SACE: erase at the first scale, where a next-scale model commits to what it draws (https://arxiv.org/abs/2606.15819,
equations 4 and 13): match the neutral caption's logits there, keep them sharp, and hold the scales after it.

A step runs the first scales only: erasing at scale 0 alone is a forward of one token per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from safear_edit.compiler.cost import Work
from safear_edit.compiler.recipe import Card
from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings
from safear_edit.errors import UsageError
from safear_edit.methods.base import PairMethod
from safear_edit.methods.strength import Strength, at_strength, images_drawn, refuse_unjudged, upwards
from safear_edit.methods.workbench import PairTuning, Workbench
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@method("sace", paper="https://arxiv.org/abs/2606.15819", needs=frozenset({"scales"}))
class SACE(PairMethod["SACE.Params"]):
    """Erase at the scale that locks the concept in: logit matching, entropy hinge, restorative preservation."""

    class Params(PairTuning):
        """The paper gives scales and weights; eta, rank, learning rate, steps and batch are not in it."""

        erase_scales: tuple[int, ...] = Field((0,), min_length=1, description="scales that are edited (paper: [0])")
        eta: float = Field(1.0, gt=0, description="1 matches the neutral logits, more goes beyond them")
        target: Literal["frozen", "student"] = Field(
            "frozen", description="whose logits make the target; equation 4 prints the student's, figure 1 the teacher"
        )
        entropy_weight: float = Field(0.05, ge=0, description="weight of the entropy hinge (paper: 0.05)")
        entropy_max: float = Field(0.4, ge=0, description="nats per bit from which it acts (paper: 0.4; most: 0.69)")
        preserve_scales: tuple[int, ...] = Field((1, 2, 3), description="scales held on the neutral caption")
        preserve_weight: float = Field(2.0, ge=0, description="weight of the preservation loss (paper: 2)")
        strength: Strength = Field(
            1.0,
            description="scale of the found adapter (paper, table VII: 4 for nudity and Van Gogh, 3 for a church); "
            "search: the weakest of 1, 2, 3 and 4 that erases the concept from images of training prompts",
        )

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: SACE.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find a LoRA edit; UsageError if the model has fewer scales than the recipe names, or a strength is to be
        searched and nobody can judge."""
        refuse_missing(params, model.card)
        refuse_unjudged("sace", params.strength, material)
        found = super().fit(model, material, params, seed=seed, progress=progress, checkpoint=checkpoint)
        return at_strength(model, material, found, params.strength, SEARCH, seed=seed, progress=progress)

    def loss(self, bench: Workbench, draw: Draw, params: SACE.Params) -> tuple[Tensor, Readings]:
        """`sace_loss` on the model's own scales."""
        return sace_loss(bench, draw, params, bench.model.card.scales)

    def rows(self, params: SACE.Params, card: Card) -> float:
        """The first scales of an image under each caption: erased under the unsafe one, held under the neutral one."""
        last = [max(scales) for scales in (params.erase_scales, params.preserve_scales) if scales]
        return params.batch * sum(sum(card.scales[: scale + 1]) for scale in last) / card.tokens

    def work(self, params: SACE.Params, card: Card, pairs: int) -> Work:
        """With the images of the search for a strength, all of which are drawn in the worst case; UsageError as `fit`
        for scales, because this is asked before anything is drawn."""
        refuse_missing(params, card)
        return replace(super().work(params, card, pairs), drawn=images_drawn(params.strength, SEARCH, pairs))


def refuse_missing(params: SACE.Params, card: Card) -> None:
    """UsageError if the model lacks a scale that the recipe names."""
    asked, known = (*params.erase_scales, *params.preserve_scales), range(len(card.scales))
    if missing := [scale for scale in asked if scale not in known]:
        fix = "name scales that it has in erase_scales and preserve_scales"
        raise UsageError("sace", f"scales 0 to {known[-1]} of this model", str(missing[0]), fix)


SEARCH = upwards(1.0, 2.0, 3.0, 4.0)
"""The paper's range of inference scales (table VII). The loss reaches its target at strength 1, on the prefix that the
base model drew; what lacks there is strength, and how much differs by concept."""


def sace_loss(bench: Workbench, draw: Draw, params: SACE.Params, scales: Sequence[int]) -> tuple[Tensor, Readings]:
    """L_ER + weight L_pre (equations 3 to 7), with R^gt the tokens that the frozen model drew for the neutral caption.

    L_ER = mean over the erased scales k of  E || z_th*(R_k | R_<k, c*) - t_k ||^2  +  weight max(0, H_k - H_max)
    t_k = (1 - eta) z(R_k | R_<k, c*) + eta z(R_k | R_<k, c), without gradient
    L_pre = mean over the preserved scales of  E || z_th*(R_k | R_<k, c) - z_th(R_k | R_<k, c) ||^2

    Means run over images, tokens, bits and classes; H is per bit: H_max is then 0.4 of at most ln 2.
    """
    first = max(params.erase_scales) + 1
    student = bench.logits(draw, "unsafe", "safe", first_scales=first)
    target = _target(bench, draw, params, first, student.detach())
    erased = [part(student, scales, k) for k in params.erase_scales]
    matched = [(z - part(target, scales, k)).square().mean() for z, k in zip(erased, params.erase_scales, strict=True)]
    hinges = [entropy_hinge(z, params.entropy_max) for z in erased]
    count = len(erased)
    match, hinge = sum(matched[1:], matched[0]) / count, sum(hinges[1:], hinges[0]) / count
    loss, readings = match + params.entropy_weight * hinge, {"match": float(match.detach())}
    if params.preserve_scales and params.preserve_weight:
        held = _held(bench, draw, params, scales)
        loss, readings["preserve"] = loss + params.preserve_weight * held, float(held.detach())
    return loss, readings


def _target(bench: Workbench, draw: Draw, params: SACE.Params, first: int, student: Tensor) -> Tensor:
    """t of equation 4 at the first scales, without gradient; with eta 1 only the neutral caption's logits are run."""
    frozen = params.target == "frozen"
    if frozen:
        here = bench.reference(draw, "safe", "safe", first_scales=first)
    else:
        here = bench.logits(draw, "safe", "safe", first_scales=first).detach()
    if params.eta == 1:
        return here
    there = bench.reference(draw, "unsafe", "safe", first_scales=first) if frozen else student
    return (1 - params.eta) * there + params.eta * here


def _held(bench: Workbench, draw: Draw, params: SACE.Params, scales: Sequence[int]) -> Tensor:
    first = max(params.preserve_scales) + 1
    student = bench.logits(draw, "safe", "safe", first_scales=first)
    teacher = bench.reference(draw, "safe", "safe", first_scales=first)
    drifts = [(part(student, scales, k) - part(teacher, scales, k)).square().mean() for k in params.preserve_scales]
    return sum(drifts[1:], drifts[0]) / len(drifts)


def part(logits: Tensor, scales: Sequence[int], scale: int) -> Tensor:
    """The logits of one scale's tokens, (b, n_k, d, 2), from those of all tokens so far; scales are token counts."""
    start = sum(scales[:scale])
    return logits[:, start : start + scales[scale]]


def entropy_hinge(logits: Tensor, most: float) -> Tensor:
    """Mean over rows of max(0, H - most), H a row's mean entropy per bit in nats, from logits (b, n, d, 2).

    The hinge belongs to each row: a mean over the batch would let sharp rows pay for flat ones.
    """
    logp = logits.log_softmax(-1)
    rows = -(logp.exp() * logp).sum(-1).flatten(1).mean(1)
    return (rows - most).clamp(min=0).mean()
