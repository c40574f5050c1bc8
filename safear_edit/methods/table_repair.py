"""Safe-CB's repair: a change of the image tokens' table in its harmless directions that makes safe images likely.

Two lessons. `safe` is the paper's: safe images under their safe captions. `switch` is ours: the unsafe caption, the
unsafe image up to a random place, and the safe image's rest to be said. The first never sees what the edited model
stands before when the concept is asked for, so the better it repairs the less stays erased.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from safear_edit.construct.pairs import Keep
from safear_edit.editor.fine_tune import Draw, schedule
from safear_edit.editor.gradients import backward
from safear_edit.errors import UsageError
from safear_edit.families.tokens import token_logprobs
from safear_edit.methods.codebook import HarmfulSpace
from safear_edit.methods.workbench import REFERENCE_BYTES, REFERENCE_ROWS, token_kl
from safear_edit.progress import Callback

if TYPE_CHECKING:
    from safear_edit.families.base import Condition, ModelFamily


WHOLE = 1 / 3
"""Share of a switch repair's rows that are the safe image from its first token on."""
EARLY = 3
"""The place of a switch is N u^3, u uniform: an edited model that draws the concept is to leave it at once, so what it
stands before is most often a few unsafe tokens."""


class Repair(BaseModel):
    """How to repair; the paper's numbers, where it gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repair: Literal["safe", "switch"] = Field(
        "safe", description="safe: safe images under safe captions (paper); switch: from an unsafe image's beginning on"
    )
    epochs: int = Field(5, ge=0, description="passes over the safe images in a round; 0: no repair (paper: 5)")
    batch: int = Field(8, ge=1, description="safe images, and as many preserved ones, per step")
    learning_rate: float = Field(1e-4, gt=0, description="of Adam, falling by a cosine (paper: 1e-4)")
    keep_weight: float = Field(0.0, ge=0, description="weight of the KL on preserved images (paper: none)")
    caption_drop: float = Field(
        0.0, ge=0, lt=1, description="share of preserved images that hold the unconditional branch (paper: none)"
    )


@dataclass(frozen=True)
class Lessons:
    """What is to be learnt: captions of n images, their tokens (n, N), and what precedes a switch, or None."""

    captions: Condition
    images: Tensor
    before: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def part(self, draw: Draw, batch: int) -> tuple[Condition, Tensor, Tensor]:
        """This step's captions, tokens (b, N), and which of them are to be learnt, (b, N) bool."""
        rows = draw.rows("safe", len(self), min(batch, len(self)))
        images = self.images[rows]
        taught = torch.ones(images.shape[:2], dtype=torch.bool)
        if self.before is not None:
            taught = torch.arange(images.shape[1]) >= switches(draw, *images.shape[:2]).unsqueeze(1)
            images = torch.where(taught, images, self.before[rows])
        return self.captions.rows(rows), images, taught


def switches(draw: Draw, count: int, tokens: int) -> Tensor:
    """Where each row goes over to the safe image, (count,) in 0 … tokens - 1."""
    whole, place = draw.uniform("switch", count, 2).unbind(1)
    later = 1 + (place**EARLY * (tokens - 1)).floor().clamp(max=tokens - 2)
    return torch.where(whole < WHOLE, torch.zeros_like(later), later).long()


@dataclass(frozen=True)
class Held:
    """Preserved images, to stay as the model says them with the table that it is read with outside the repair."""

    model: ModelFamily
    keep: Keep
    captions: Condition
    aims: dict[bool, Tensor] = field(default_factory=dict)

    def part(self, draw: Draw, params: Repair) -> tuple[Condition, Tensor, Tensor]:
        """This step's captions, tokens and reference logits."""
        rows = draw.rows("keep", len(self.keep), min(params.batch, len(self.keep)))
        dropped = draw.uniform("keep caption", len(rows), 1)[:, 0] < params.caption_drop
        condition, ids = self._asked(rows, dropped)
        return condition, ids, self._aims(rows, dropped, condition, ids)

    def _asked(self, rows: Tensor, dropped: Tensor) -> tuple[Condition, Tensor]:
        condition = self.captions.rows(rows)
        if bool(dropped.any()):
            condition = self.model.dropped(condition, dropped)
        return condition, self.keep.ids[rows].to(self.model.device)

    @torch.no_grad()
    def _aims(self, rows: Tensor, dropped: Tensor, condition: Condition, ids: Tensor) -> Tensor:
        """Reference logits of these rows: of all images once, as long as memory allows."""
        for drop in set(dropped.tolist()) - self.aims.keys():
            one = self._whole(torch.arange(1), drop)
            if one.numel() * one.element_size() * len(self.keep) > REFERENCE_BYTES:
                return self.model.logits(condition, ids)
            parts = torch.arange(len(self.keep)).split(self.model.read_together(REFERENCE_ROWS))
            self.aims[drop] = torch.cat([self._whole(part, drop) for part in parts])
        return torch.stack([self.aims[drop][row] for row, drop in zip(rows.tolist(), dropped.tolist(), strict=True)])

    def _whole(self, rows: Tensor, drop: bool) -> Tensor:
        return self.model.logits(*self._asked(rows, torch.full((len(rows),), drop)))


def repaired(
    model: ModelFamily,
    cleaned: Tensor,
    space: HarmfulSpace,
    lessons: Lessons,
    keep: Keep | None,
    params: Repair,
    using: Callable[[Tensor], AbstractContextManager[None]],
    *,
    seed: int,
    number: int,
    progress: Callback,
) -> tuple[Tensor, list[float]]:
    """Delta Q (V, D) of round `number` on the table `cleaned`, and the loss of each step.

    Delta minimises - mean log p of the tokens to be learnt + keep_weight KL(base || edited) on preserved images, and is
    projected after each step. using: reads image tokens from a table inside. UsageError if the loss stops being finite.
    """
    steps = params.epochs * -(-len(lessons) // params.batch)
    change = torch.zeros_like(cleaned, requires_grad=True)
    optimizer, losses = torch.optim.Adam([change], params.learning_rate), list[float]()
    held = None
    if keep is not None and params.keep_weight:
        with torch.no_grad():
            held = Held(model, keep, model.condition(keep.prompts))
    for step in range(steps):
        draw = Draw(seed, step + steps * number)
        kept = held.part(draw, params) if held else None
        with using(cleaned + space.harmless(change)):
            loss = _loss(model, lessons.part(draw, params.batch), kept, params.keep_weight)
        if not bool(torch.isfinite(loss)):
            fix = f"lower learning_rate (it is {params.learning_rate:g})"
            raise UsageError(f"edit, step {step + 1}", "a finite loss", str(loss.item()), fix)
        optimizer.param_groups[0]["lr"] = params.learning_rate * schedule(step, steps, 0)
        optimizer.zero_grad()
        backward(model.net, loss, [change])
        optimizer.step()
        with torch.no_grad():
            change.copy_(space.harmless(change))
        losses.append(loss.item())
        progress(f"repair {number}", step + 1, steps, f"loss {losses[-1]:.3f}")
    return change.detach(), losses


def _loss(
    model: ModelFamily,
    taught: tuple[Condition, Tensor, Tensor],
    kept: tuple[Condition, Tensor, Tensor] | None,
    keep_weight: float,
) -> Tensor:
    captions, images, which = taught
    ids, mask = images.to(model.device), which.to(model.device)
    loss = -token_logprobs(model.logits(captions, ids), ids)[mask].mean()
    if kept is None:
        return loss
    condition, kept_ids, reference = kept
    return loss + keep_weight * token_kl(reference, model.logits(condition, kept_ids)).mean()
