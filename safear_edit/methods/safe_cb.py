"""Safe-CB, one round: take the harmful directions out of the table that feeds image tokens back to the transformer,
then repair it in the directions that are left (Xue et al. 2026, https://arxiv.org/abs/2606.27147; methods.md 4).

The network and the tokenizer stay as they are: the edit is a change of one table.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from safear_edit.codebook_map import HarmfulSpace, Reading, harmful_space
from safear_edit.edit import Edit, EditInfo
from safear_edit.errors import UsageError
from safear_edit.pairs import Material
from safear_edit.progress import Callback
from safear_edit.registry import method
from safear_edit.tokens import token_logprobs
from safear_edit.training import Draw, borrowed

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@method("safe_cb", paper="https://arxiv.org/abs/2606.27147", needs=frozenset({"codebook"}))
class SafeCB:
    """Erase in the codebook: project the harmful space out of the image tokens' table, repair in its null space."""

    class Params(BaseModel):
        """The paper's numbers, where it gives them."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        directions: int = Field(8, ge=1, description="k, dimensions of the harmful space (paper: 8 of 2048)")
        strength: float = Field(1.0, ge=0, le=1, description="lambda: how much of the harmful part goes (paper: 1)")
        reading: Reading = Field("position", description="position: as the paper; pooled: deaf to the layout")
        epochs: int = Field(5, ge=0, description="passes over the safe pictures; 0: no repair (paper: 5)")
        batch: int = Field(8, ge=1, description="safe pictures per step (not in the paper)")
        learning_rate: float = Field(1e-4, gt=0, description="of Adam (paper: 1e-4)")

    name: ClassVar[str]

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: SafeCB.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find the change of the table: W_safe - W, with W_safe = W (I - lambda P) + Delta Q.

        Delta minimises the cross-entropy of the safe pictures under their safe captions. Always one round: the caller
        repeats construction and round, as the paper's iterations do. `checkpoint` is not used; a round is short.
        """
        start, pairs = time.monotonic(), material.pairs
        with torch.no_grad():
            table = model.image_table().detach().float().clone()
            rows = [table[ids.to(table.device)] for ids in (pairs.unsafe_ids, pairs.safe_ids)]
        space = harmful_space(rows[0], rows[1], params.directions, params.reading)
        cleaned = space.without(table, params.strength)
        change, losses = _repaired(model, material, params, cleaned, space, seed, progress)
        info = EditInfo(
            method="safe_cb",
            params=params.model_dump(mode="json"),
            concept=material.concept,
            base_digest=model.card.digest,
            rank=None,
            alpha=None,
            seed=seed,
            steps=len(losses),
            losses=tuple(losses),
            minutes=(time.monotonic() - start) / 60,
        )
        return Edit("delta", {model.table_name: (cleaned + change - table).cpu()}, info)


def _repaired(
    model: ModelFamily,
    material: Material,
    params: SafeCB.Params,
    cleaned: Tensor,
    space: HarmfulSpace,
    seed: int,
    progress: Callback,
) -> tuple[Tensor, list[float]]:
    """Delta Q after `epochs` passes, and the loss of each step; the model is left as it was found."""
    pairs, losses = material.pairs, list[float]()
    steps = params.epochs * -(-len(pairs) // params.batch)
    change = torch.zeros_like(cleaned, requires_grad=True)
    optimizer = torch.optim.Adam([change], params.learning_rate)
    with torch.no_grad():
        captions = model.condition(pairs.safe)
    with borrowed(model.net, writes=()):
        model.net.eval().requires_grad_(False)
        try:
            for step in range(steps):
                rows = Draw(seed, step).rows("safe", len(pairs), min(params.batch, len(pairs)))
                ids = pairs.safe_ids[rows].to(cleaned.device)
                model.set_image_table((cleaned + space.harmless(change)).to(model.image_table().dtype))
                loss = -token_logprobs(model.logits(captions.rows(rows), ids), ids).mean()
                if not bool(torch.isfinite(loss)):
                    fix = f"lower learning_rate (it is {params.learning_rate:g})"
                    raise UsageError(f"edit, step {step + 1}", "a finite loss", str(loss.item()), fix)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    change.copy_(space.harmless(change))
                losses.append(loss.item())
                progress("edit", step + 1, steps, f"loss {losses[-1]:.3f}")
        finally:
            model.set_image_table(None)
    return change.detach(), losses
