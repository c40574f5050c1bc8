"""Janus' drawing raced against transformers' own `generate` with guidance, greedily: both must draw the same tokens.

In one process on one thread, by turns, with the same weights. `generate` runs a copy of the prompt for each row and
concatenates its cache; we read each distinct prompt once, into a cache that has room for the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safear_edit.families.base import Sampling
from safear_edit.families.janus import Janus
from safear_edit.studies.contest import alternately, prompts
from safear_edit.studies.roofline import Alone, alone


@dataclass(frozen=True)
class Race:
    """One batch size: tokens that agree, median seconds, and how often we are as fast."""

    batch: int
    tokens: int
    identical: int
    seconds: dict[str, float]
    times_faster: float
    alone: Alone


@torch.no_grad()
def race(model: Janus, batch: int, repeats: int) -> Race:
    """Time `generate` of both alternately on `batch` images, prompts encoded by each."""
    texts, guidance = prompts(batch), max(2.0, model.sampling.guidance)

    def theirs() -> Tensor:
        ids, mask = model.prompt_ids(texts)
        told = {"attention_mask": mask.long(), "generation_mode": "image", "guidance_scale": guidance}
        drawn: Tensor = model.net.generate(inputs=ids, do_sample=False, **told)
        return drawn

    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: model.generate(model.condition(texts), range(batch), Sampling(guidance, top_k=1)),
        "transformers": theirs,
    }
    ids = {name: run() for name, run in runs.items()}
    _, seconds = alternately(runs, repeats)
    same = int((ids["ours"] == ids["transformers"]).sum())
    times = seconds["transformers"] / seconds["ours"]
    return Race(batch, ids["ours"].numel(), same, seconds, times, alone(runs["ours"], repeats))
