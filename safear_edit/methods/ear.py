"""EAR: regress the hidden states of the unsafe caption to those of the neutral one, window by window (immc-lab,
https://arxiv.org/abs/2506.20151; code https://github.com/immc-lab/ear).

Windowed gradient accumulation: one update for each window of W tokens. Thresholded loss masking: no update where the
window's loss is at most mu, because it is erased there already. Two readings: as the paper means it, and as the
published code does it, whose contexts get lost.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from safear_edit.compiler.recipe import Card
from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings, adapter_off
from safear_edit.errors import UsageError
from safear_edit.families.base import Condition, Sampling
from safear_edit.families.sampling import guided, inverse_cdf, probabilities, uniforms
from safear_edit.methods.base import PairMethod, fit_pairs
from safear_edit.methods.esd import turned_away
from safear_edit.methods.workbench import PairTuning, Workbench
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


RELEASED_GUIDANCE = 5.0
"""Of the published training loop, which draws at temperature 1; it only matters for the first token of a chain."""


@method("ear", paper="https://arxiv.org/abs/2506.20151")
class EAR(PairMethod["EAR.Params"]):
    """Erase in the hidden states: windowed gradient accumulation and thresholded loss masking."""

    masked = True

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
        layers: int | None = Field(
            None,
            ge=1,
            exclude_if=lambda count: count is None,  # recipes from before there was one keep their digests
            description="adapters in the first so many layers alone (released: 5 of 30); null: in all",
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
        if params.mode == "paper":
            return super().fit(model, material, params, seed=seed, progress=progress, checkpoint=checkpoint)
        refuse_released(params, model.card)
        chains = Chains(model, material, seed, progress)

        def loss(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
            return released_loss(bench, draw, params, chains)

        return fit_pairs(
            "ear",
            model,
            material,
            params,
            loss,
            modules=self.modules(model, params),
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            reference=False,
            masked=True,
        )

    def modules(self, model: ModelFamily, params: EAR.Params) -> list[str]:
        """The layers of `part`, or those of them in the first `layers`."""
        names = super().modules(model, params)
        if params.layers is None:
            return names
        layers = takewhile(bool, (_layer(model, number) for number in range(params.layers)))
        first = {name for layer in layers for name in layer}
        return [name for name in names if name in first]

    def loss(self, bench: Workbench, draw: Draw, params: EAR.Params) -> tuple[Tensor, Readings]:
        """`ear_loss`: what mode "paper" minimises."""
        return ear_loss(bench, draw, params, bench.model.card.tokens)

    def rows(self, params: EAR.Params, card: Card) -> float:
        """An image up to the end of the window, half of it on average; as released, two tokens for each of a window.

        UsageError as `fit`, because this is asked before anything is drawn.
        """
        refuse_released(params, card)
        share = (1 + params.window / card.tokens) / 2 if params.mode == "paper" else 2 * params.window / card.tokens
        return params.batch * min(1.0, share)


def refuse_released(params: EAR.Params, card: Card) -> None:
    """UsageError if mode "released" can't be had of this model or with this window."""
    if params.mode == "paper":
        return
    if len(card.scales) > 1:
        raise UsageError("params.mode", "paper for a next-scale model", "released", "it has no next token")
    if params.window > card.tokens:
        fits = f"at most {card.tokens} in mode released"
        raise UsageError("params.window", fits, str(params.window), "lower it")


def _layer(model: ModelFamily, number: int) -> list[str]:
    """Linear layers of one transformer layer, whatever the family calls it; none beyond the last."""
    try:
        return model.editable(f"layers[{number}:{number + 1}]")
    except UsageError:
        return []


def ear_loss(bench: Workbench, draw: Draw, params: EAR.Params, tokens: int) -> tuple[Tensor, Readings]:
    """L_W of this step's window; without gradient where L_W <= mu.

        L_t = mean_D || h_th'(c*, y_<t) - sg[ h_th(c, y_<t) - eta (h_th(c*, y_<t) - h_th(c, y_<t)) ] ||^2
        L_W = sum over the window of L_t, mean over the images of this part of the step (one in the released code)

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
        unsafe, safe = model.condition(pairs.unsafe), model.condition(pairs.safe)
        self.captions = {"concept": unsafe, "neutral": safe, "target": safe}
        self.ids: dict[str, Tensor] = {}
        for place, name in enumerate(self.NAMES):
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

    def prompt_states(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """Hidden states (2, b, T, D) of the prompts with and without the caption, by the net as it is, and which of
        them are no padding, (b, T); None where the family's transformer reads no prompt tokens."""
        condition = self.captions[name].rows(rows)
        every = torch.ones(len(rows), dtype=torch.bool)
        found = [self.model.prompt_hidden(c) for c in (condition, self.model.dropped(condition, every))]
        read = [one for one in found if one is not None]
        if len(read) < 2:
            return None
        length = min(mask.shape[1] for _, mask in read)  # left-padded, so the ends fit together
        states, masks = ([part[:, -length:] for part in parts] for parts in zip(*read, strict=True))
        return torch.stack(states), masks[0] & masks[1]


def blind(condition: Condition) -> Condition:
    """The same images with every caption hidden: what follows reads no word."""
    return replace(condition, mask=torch.zeros_like(condition.mask))


def released_loss(bench: Workbench, draw: Draw, params: EAR.Params, chains: Chains) -> tuple[Tensor, Readings]:
    """`ear_loss` with the faults of the published loop (train/ear_train_*.py of https://github.com/immc-lab/ear).

    Context is lost after the first token, the three states follow three trajectories, tokens beyond the last whole
    window are left out, and the loss is a mean over the guided and the unguided row. At a position after the first
    both rows feed the same single token and are equal; only the first step's loss moves the unconditional branch, and
    only it sees the prompt: it is a mean over all positions of the prompt (those that both captions have; the code
    pads the neutral one with tokens that are read as words).
    """
    windows = bench.model.card.tokens // params.window
    rows = Draw(draw.seed, draw.step // windows, draw.part, draw.parts).rows(
        "pairs", len(bench.material.pairs), params.batch
    )
    start = (draw.step % windows) * params.window
    end = start + params.window
    with adapter_off(bench.model.net):
        frozen = [chains.states(name, rows, start, end) for name in Chains.NAMES]
    losses = _gaps(chains.states("concept", rows, start, end), frozen, params.eta)
    if start == 0 and (first := _prompt_loss(bench, chains, rows, params.eta)) is not None:
        losses = torch.cat([first.unsqueeze(1), losses[:, 1:]], 1)
    return masked(losses.sum(1).mean(), params.threshold)


def _prompt_loss(bench: Workbench, chains: Chains, rows: Tensor, eta: float) -> Tensor | None:
    """The first step's loss (b,), mean over the prompt's positions."""
    tuned = chains.prompt_states("concept", rows)
    with adapter_off(bench.model.net):
        read = [tuned, *(chains.prompt_states(name, rows) for name in Chains.NAMES)]
    known = [one for one in read if one is not None]
    if len(known) < len(read):
        return None
    length = min(mask.shape[1] for _, mask in known)
    found, *frozen = [states[:, :, -length:] for states, _ in known]
    shared = torch.stack([mask[:, -length:] for _, mask in known]).all(0).float()
    return (_gaps(found, frozen, eta) * shared).sum(1) / shared.sum(1)


def _gaps(found: Tensor, frozen: list[Tensor], eta: float) -> Tensor:
    """Mean squares (b, n) over width and both rows of what is left to the goal, from states (2, b, n, D)."""
    concept, neutral, target = frozen
    return (found - (target - eta * (concept - neutral))).square().mean(-1).mean(0)
