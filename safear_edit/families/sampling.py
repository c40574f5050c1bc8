"""Turning logits into tokens: guidance, filters, and one uniform number per token from the image's own generator.

Filters follow LlamaGen's published order (https://github.com/FoundationVision/LlamaGen/tree/ce98ec4,
autoregressive/models/generate.py): temperature, top-k, then top-p on the survivors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.families.base import Sampling

COLDEST = 1e-5
"""Temperatures below it are this one: the likeliest choice."""
Chooser = Callable[[Tensor, int], Tensor]
"""(probabilities (B, V), position) → token ids (B,)."""


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """(B, count) float64 in [0, 1): row i is the stream of a generator seeded with seeds[i], so batching is free."""
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, count, dtype=torch.float64)


class Drawer:
    """What draws with numbers of its own, and knows at the end whether it drew from numbers."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws
        self._seen: Tensor | None = None

    def see(self, total: Tensor) -> None:
        """Keep in mind a sum of probabilities; nothing is looked at yet, which would wait for a GPU."""
        self._seen = total if self._seen is None else self._seen + total

    def checked(self, ids: Tensor) -> Tensor:
        """`ids`; UsageError if they were drawn from NaN, of which some token comes out as well."""
        if self._seen is not None:
            refuse_nan(self._seen)
        return ids


class InverseCdf(Drawer):
    """Token = the first whose cumulative probability exceeds the image's number for this position (draws (B, N))."""

    def __call__(self, probabilities: Tensor, position: int) -> Tensor:
        """Token ids (B,), as a Chooser."""
        cumulative = probabilities.double().cumsum(-1)
        self.see(cumulative[:, -1:])
        target = self.draws[:, position : position + 1] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=probabilities.shape[-1] - 1)


def inverse_cdf(draws_BN: Tensor) -> InverseCdf:
    """How tokens are drawn by numbers (B, N) of their images' own."""
    return InverseCdf(draws_BN)


def refuse_nan(numbers: Tensor, what: str = "drawing") -> None:
    """UsageError unless all are finite: what was drawn from or read off others is no evidence of anything."""
    if not bool(numbers.isfinite().all()):
        fix = "load the model with --dtype float32; if an edit is on it, that is too strong"
        raise UsageError(what, "a network that gives numbers", "NaN or infinity", fix)


def multinomial(generator: torch.Generator) -> Chooser:
    """Upstream's drawing: one torch.multinomial over the whole batch per position, for replaying its seeded runs.

    A row then depends on the batch that it is in; `inverse_cdf` is what the program itself samples with.
    """
    return lambda probabilities, _: torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u + s (c - u)."""
    return unconditional + scale * (conditional - unconditional)


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, filters and softmax, (B, V) float32."""
    scaled = logits_BV / max(sampling.temperature, COLDEST)
    if sampling.top_k > 0 or sampling.top_p < 1:
        scaled = filtered(scaled, sampling.top_k, sampling.top_p)
    return scaled.softmax(-1)


def filtered(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf outside the top-k (ties with the k-th are kept), then outside the smallest set that reaches top-p.

    The token that crosses top-p is kept, and so always is the best one.
    """
    if top_k > 0:
        worst = logits_BV.topk(min(top_k, logits_BV.shape[-1]), -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < worst, float("-inf"))
    if top_p < 1:
        ordered, order = logits_BV.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        drop = (before > top_p).scatter(-1, order, before > top_p)
        logits_BV = logits_BV.masked_fill(drop, float("-inf"))
    return logits_BV
