"""EAR: regress the hidden states of the unsafe caption to those of the neutral one, window by window (immc-lab,
https://arxiv.org/abs/2506.20151; code https://github.com/immc-lab/ear).

Windowed gradient accumulation: one update for each window of W tokens. Thresholded loss masking: no update where the
window's loss is at most mu, because it is erased there already. Two readings: as the paper means it, and as the
published code does it, whose contexts get lost.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings, adapter_off
from safear_edit.errors import UsageError
from safear_edit.families.base import Condition, Sampling
from safear_edit.families.sampling import guided, inverse_cdf, probabilities, uniforms
from safear_edit.methods.base import PairTuning, Workbench, fit_pairs
from safear_edit.methods.esd import turned_away
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


RELEASED_GUIDANCE = 5.0
"""Of the published training loop, which draws at temperature 1; it only matters for the first token of a chain."""


@method("ear", paper="https://arxiv.org/abs/2506.20151")
class EAR:
    """Erase in the hidden states: windowed gradient accumulation and thresholded loss masking."""

    class Params(PairTuning):
        """`steps` counts windows, as the published code does: an image of N tokens has ceil(N / window) of them."""

        mode: Literal["paper", "released"] = Field(
            "paper", description="paper: prompt and prefix in context; released: what the published code does"
        )
        window: int = Field(48, ge=1, description="tokens per update (released: nudity 100, church 48, Van Gogh 12)")
        threshold: float = Field(
            0.05, ge=0, description="mu, on the sum of a window's token losses, so it grows with the window (released)"
        )
        eta: float = Field(1.0, ge=0, description="how far beyond the neutral states (released: 1)")
        picture: Literal["unsafe", "safe"] = Field(
            "safe", description="whose tokens are the shared prefix (released: not read, it draws its own)"
        )

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: EAR.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find a LoRA edit (the published code trains the attention of the first five layers as whole matrices).

        UsageError for mode "released" with a next-scale model, which has no next token, or a window beyond an image.
        """
        chains: Chains | None = None
        tokens = model.card.tokens
        if params.mode == "released":
            if "scales" in model.provides:
                raise UsageError("params.mode", "paper for a next-scale model", "released", "it has no next token")
            if params.window > tokens:
                raise UsageError("params.window", f"at most {tokens} in mode released", str(params.window), "lower it")
            chains = Chains(model, material, seed, progress)

        def loss(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
            if chains is None:
                return ear_loss(bench, draw, params, tokens)
            return released_loss(bench, draw, params, chains)

        return fit_pairs(
            "ear", model, material, params, loss, seed=seed, progress=progress, checkpoint=checkpoint, reference=False
        )


def ear_loss(bench: Workbench, draw: Draw, params: EAR.Params, tokens: int) -> tuple[Tensor, Readings]:
    """L_W of this step's window; without gradient where L_W <= mu.

        L_t = mean_D || h_th'(c*, y_<t) - sg[ h_th(c, y_<t) - eta (h_th(c*, y_<t) - h_th(c, y_<t)) ] ||^2
        L_W = sum over the window of L_t

    Prompt and prefix are in context at every position, the three states share one trajectory, the last window may be
    shorter, and the unconditional branch is left alone. Steps pass through the windows of the same images first to
    last, then take the next images. Positions after the window are not computed; the frozen model's states are
    computed once for each pair.
    """
    windows = -(-tokens // params.window)
    same = replace(draw, step=draw.step // windows)
    start = (draw.step % windows) * params.window
    end = min(start + params.window, tokens)
    neutral, concept = (bench.hidden_reference(same, caption, params.picture) for caption in ("safe", "unsafe"))
    target = turned_away(neutral, concept, params.eta)[:, start:end]
    found = bench.hidden(same, "unsafe", params.picture, end)[:, start:]
    return masked((found - target).square().mean(-1).sum(1).mean(), params.threshold)


def masked(loss: Tensor, threshold: float) -> tuple[Tensor, Readings]:
    """Thresholded loss masking: the loss, without gradient where it is at most `threshold`."""
    updated = bool(loss.detach() > threshold)
    return loss if updated else loss.detach(), {"updated": float(updated)}


# -- as the published code does it ------------------------------------------------------------------------------------


class Chains:
    """The trajectories of the published loop, for every pair: c* under the concept, c neutral, c again as target.

    After the first token that loop feeds one token alone, without prompt or prefix, so a trajectory is a Markov chain
    of the frozen model, and none depends on the training: they can be drawn beforehand. Each takes its own random
    numbers, as the released code does. `ids[name]` is (n, N) for "concept", "neutral" and "target".
    """

    NAMES = ("concept", "neutral", "target")

    def __init__(self, model: ModelFamily, material: Material, seed: int, progress: Callback) -> None:
        pairs = material.pairs
        self.model = model
        captions = {"concept": pairs.unsafe, "neutral": pairs.safe, "target": pairs.safe}
        self.captions: dict[str, Condition] = {}
        self.ids: dict[str, Tensor] = {}
        for place, name in enumerate(self.NAMES):
            self.captions[name] = model.condition(captions[name])
            shift = Draw(seed, place).rows("chain", 2**20, 1)
            seeds = [(number + int(shift)) % 2**63 for number in pairs.seeds]
            self.ids[name] = self._drawn(self.captions[name], seeds)
            progress("chains", place + 1, len(self.NAMES), name)

    @torch.no_grad()
    def _drawn(self, condition: Condition, seeds: list[int]) -> Tensor:
        sampling = Sampling(RELEASED_GUIDANCE)
        choose = inverse_cdf(uniforms(seeds, self.model.card.tokens).to(self.model.device))
        first = torch.zeros(len(condition), 1, dtype=torch.int64, device=self.model.device)
        every = torch.ones(len(condition), dtype=torch.bool)
        with_, without = (self.model.logits(c, first)[:, 0] for c in (condition, self.model.dropped(condition, every)))
        ids = [choose(probabilities(guided(with_, without, RELEASED_GUIDANCE), sampling), 0)]
        for position in range(1, self.model.card.tokens):
            logits = self.model.logits(blind(condition), torch.stack([ids[-1], ids[-1]], 1))[:, 1]
            ids.append(choose(probabilities(logits, sampling), position))  # alone, both branches of guidance are equal
        return torch.stack(ids, 1).cpu()

    def states(self, name: str, rows: Tensor, start: int, end: int) -> Tensor:
        """Hidden states (2, b, end - start, D) with and without the caption, by the net as it is."""
        condition, ids = self.captions[name].rows(rows), self.ids[name][rows].to(self.model.device)
        alone = ids[:, max(start - 1, 0) : end - 1].flatten()
        which = torch.arange(len(rows)).repeat_interleave(len(alone) // len(rows))
        parts = []
        if len(alone):
            found = self.model.hidden(blind(condition.rows(which)), torch.stack([alone, alone], 1))[:, 1]
            parts.append(found.unflatten(0, (len(rows), -1)).expand(2, -1, -1, -1))
        if start == 0:
            every = torch.ones(len(rows), dtype=torch.bool)
            both = [self.model.hidden(c, ids[:, :1]) for c in (condition, self.model.dropped(condition, every))]
            parts.insert(0, torch.stack(both))
        return torch.cat(parts, 2)


def blind(condition: Condition) -> Condition:
    """The same images with every caption hidden: what follows reads no word."""
    return replace(condition, mask=torch.zeros_like(condition.mask))


def released_loss(bench: Workbench, draw: Draw, params: EAR.Params, chains: Chains) -> tuple[Tensor, Readings]:
    """`ear_loss` with the faults of the published loop (train/ear_train_*.py of https://github.com/immc-lab/ear).

    Context is lost after the first token, the three states follow three trajectories, tokens beyond the last whole
    window are left out, and the loss is a mean over the guided and the unguided row. At a position after the first
    both rows feed the same single token and are equal; only the first token's loss moves the unconditional branch.
    """
    windows = bench.model.card.tokens // params.window
    rows = Draw(draw.seed, draw.step // windows, draw.part, draw.parts).rows(
        "pairs", len(bench.material.pairs), params.batch
    )
    start = (draw.step % windows) * params.window
    end = start + params.window
    with adapter_off(bench.model.net):
        concept, neutral, target = (chains.states(name, rows, start, end) for name in Chains.NAMES)
    found = chains.states("concept", rows, start, end)
    goal = target - params.eta * (concept - neutral)
    return masked((found - goal).square().mean(-1).mean(0).sum(1).mean(), params.threshold)
