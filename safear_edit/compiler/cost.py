"""Minutes and memory that a recipe will take, predicted before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from safear_edit.compiler.recipe import Card, Predicted

# -- prediction -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What a run costs on two CPU cores in float32; a GPU is faster by far.

    Speeds: stage times of two runs of concepts/picasso.yaml on llamagen:mini (two shared cores of an AMD EPYC, 21
    November 2026: 33 images/s and 0.75 s/step in 3.9 minutes) scaled to the one that had the machine to itself (2.95
    minutes). `python -m safear_edit.studies machine_speed` measures them and the memory on the machine at hand.
    """

    startup_s: float = 20.0
    """Imports, loading, captions, report, signature."""
    sample_flops: float = 70e9
    """Flop/s of `picture_flops` while an image is drawn, decoded and judged: 45 images/s."""
    train_flops: float = 135e9
    """Flop/s of `Work.training_flops`: 0.56 s for a VCE step of 16 rows of pairs and 12 preserved ones."""
    fixed_gib: float = 1.2
    """Python, torch, MiniLM and judge (0.99 GiB measured), and the libraries of report and signature."""
    saved_floats_per_width: float = 34.0
    """Floats kept for the backward pass per token, layer and unit of width."""


@dataclass(frozen=True)
class Work:
    """What a method declares that its search costs, in counts; a row is one image under one caption.

    steps: optimiser steps in all. rows: those that a step runs forward and backward, in whole images (a few scales of
    one are a part of it). taught: those that the base model runs forward at every step. widths: trained parameters of
    a layer, in units of the model's width. drawn: images that the search draws itself.
    """

    steps: int
    rows: float
    taught: float = 0
    widths: float = 0
    drawn: int = 0

    def training_flops(self, card: Card) -> float:
        """All steps: a row that trains costs three forwards, and one by the base model a fourth."""
        return self.steps * (3 * self.rows + self.taught) * forward_flops(card)


def declared(method: object, params: BaseModel, card: Card, pairs: int) -> Work:
    """What `method` says; one that says nothing counts as one pass over the pairs."""
    work = getattr(method, "work", None)
    found: Work = work(params, card, pairs) if work else Work(pairs, 2)
    return found


def forward_flops(card: Card) -> float:
    """One row through the model: 2 flop per parameter and token."""
    return 2.0 * card.parameters * card.tokens


def picture_flops(card: Card) -> float:
    """One image with guidance: two rows through the model."""
    return 2 * forward_flops(card)


def predict(
    card: Card,
    work: Work,
    *,
    pairs: int,
    keep: int,
    candidates: int,
    n: Mapping[str, int],
    described: int = 0,
    costs: Costs | None = None,
) -> Predicted:
    """Minutes, peak memory and trainable parameters from counts alone.

    `work`: what the method declares; `candidates`: prompts that the base model is screened on; `described`: images
    that it describes, each read with a few words about it, which is taken for one row as long as the image. Drawn are
    both images of each pair, those to keep, the candidates, what the search draws, and what is scored twice; the base
    model also reads the pairs, with their captions and without. Depth and width follow from the parameters by
    parameters = 12 · depth · width² with width = 40 · depth (LlamaGen's own proportions, within a tenth). Tested to
    be within a factor of 2 of the runs that `Costs` names.
    """
    costs = costs or Costs()
    images = 2 * pairs + keep + candidates + work.drawn + 2 * sum(n.values())
    sampling_s = (images * picture_flops(card) + described * forward_flops(card)) / costs.sample_flops
    training_s = (work.training_flops(card) + 4 * pairs * forward_flops(card)) / costs.train_flops
    depth = (card.parameters / (12 * 40**2)) ** (1 / 3)
    width = 40 * depth
    saved = work.rows * card.tokens * depth * width * costs.saved_floats_per_width
    memory = costs.fixed_gib + 4 * (2 * card.parameters + saved) / 2**30
    return Predicted(
        minutes=round((costs.startup_s + sampling_s + training_s) / 60, 1),
        memory_gib=round(memory, 1),
        trainable=round(work.widths * depth * width),
    )


LORA_WIDTHS = {"attention": 6, "ffn": 11, "all": 17}
"""Inputs + outputs of one layer's adapted matrices, in widths: qkv 1+3, out 1+1; ffn 3 × (1 + 8/3)."""
