"""Incremental semantic saliency: at which scale a next-scale model first looks at the words that name the concept.

Algorithm 1 of the SACE paper (https://arxiv.org/abs/2606.15819): S_k is the attention that scale k pays to a set of
words, mean over layers and heads; what counts is what a scale adds to the scale before it, Delta_k = ReLU(S_k -
upsampled S_{k-1}), Delta_0 = S_0. It says where the model looks, not what that does: the causal measurement is
`cartography.switching`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from safear_edit.construct.pairs import Pairs
    from safear_edit.families.base import ModelFamily


SPECIAL = {"[CLS]", "[SEP]", "</s>"}
"""Marks of the encoders, no words; attention sinks besides."""
BATCH = 32


@dataclass(frozen=True)
class Saliency:
    """Mean increment per scale (share of attention), for the words that only the unsafe caption has and for the others.

    The two are not comparable in height where they are of different numbers of words; their shapes are.
    """

    target: tuple[float, ...]
    neutral: tuple[float, ...]


def saliency(model: ModelFamily, pairs: Pairs) -> Saliency | None:
    """On the model's own unsafe images, teacher-forced, n >= 1; None for a family without cross attention."""
    if "cross_attention" not in model.provides:
        return None
    sums = []
    for start in range(0, len(pairs), BATCH):
        rows = range(start, min(start + BATCH, len(pairs)))
        looked = model.text_attention([pairs.unsafe[i] for i in rows], pairs.unsafe_ids[start : rows.stop])
        for i, scales in zip(rows, looked, strict=True):
            split = split_words(model.pieces(pairs.unsafe[i]), model.pieces(pairs.safe[i]))
            sums.append([[float(part.mean()) for part in increments(scales, places)] for places in split])
    target, other = torch.tensor(sums).mean(0).tolist()
    return Saliency(tuple(target), tuple(other))


def split_words(unsafe: Sequence[str], safe: Sequence[str]) -> tuple[list[int], list[int]]:
    """Places in the unsafe caption of the words that the safe one lacks, and of those that both have, in order."""
    both: set[int] = set()
    for block in difflib.SequenceMatcher(a=list(unsafe), b=list(safe), autojunk=False).get_matching_blocks():
        both.update(range(block.a, block.a + block.size))
    words = [i for i, word in enumerate(unsafe) if word not in SPECIAL]
    return [i for i in words if i not in both], [i for i in words if i in both]


def increments(scales: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
    """Delta_k (h, w) of each scale, from attention (h, w, pieces) summed over the pieces at `places`."""
    sums = [scale[..., list(places)].sum(-1) for scale in scales]
    found = [sums[0]]
    for coarse, fine in pairwise(sums):
        grown = F.interpolate(coarse[None, None], fine.shape, mode="bilinear", align_corners=False)[0, 0]
        found.append((fine - grown).clamp(min=0))
    return found
