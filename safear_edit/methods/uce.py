"""UCE: keys and values of captions, edited in closed form (Gandikota et al. 2024, https://arxiv.org/abs/2308.14761).

Every linear layer W that makes keys or values of a caption's states is replaced by the minimum (equation 7) of

    sum_E ||W' c - W c'||^2 + preserve sum_P ||W' c - W c||^2 + ridge ||W' - W||^2

The paper's E are the tokens of a name and of what takes its place. Here they are the states c of unsafe captions,
each with the state c' of the pair's safe caption that is nearest by cosine: what both captions say keeps its keys, and
the name takes those of what stands there. P are the states of preserved and of safe captions. The paper's code has
ridge 0.1 and equal weights; sums are taken as means here, so that neither count of captions has a say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from safear_edit.compiler.cost import Work
from safear_edit.compiler.recipe import Card
from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


PART = "keys_values"


@method("uce", paper="https://arxiv.org/abs/2308.14761", needs=frozenset({"denoising"}), denoising=True)
class UCE:
    """Baseline: keys and values of captions edited in closed form, without training."""

    name = "uce"
    edits = "keys and values of captions"
    """What `safear-edit ls methods` says that it changes."""

    class Params(BaseModel):
        """The paper's weights."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        preserve: float = Field(1.0, ge=0, description="weight of captions that must stay, against those that change")
        ridge: float = Field(0.1, gt=0, description="weight of staying as it was where no caption says anything")

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: UCE.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find the edit; takes seconds, so there is no checkpoint. `seed` changes nothing but its name."""
        start = time.monotonic()
        old, new = erased(model, material)
        kept = preserved(model, material)
        changes = dict[str, Tensor]()
        names = model.editable(PART)
        for number, name in enumerate(names, 1):
            weight = model.net.get_submodule(name).get_parameter("weight").detach().double().cpu()
            found = closed_form(weight, old, new, kept, params.preserve, params.ridge)
            changes[f"{name}.weight"] = (found - weight).float()
            progress("edit", number, len(names), "")
        info = EditInfo(
            method=self.name,
            params=params.model_dump(mode="json"),
            concept=material.concept,
            base_digest=model.card.digest,
            rank=None,
            alpha=None,
            seed=seed,
            steps=1,
            losses=(),
            minutes=(time.monotonic() - start) / 60,
        )
        return Edit("delta", changes, info)

    def work(self, params: UCE.Params, card: Card, pairs: int) -> Work:
        """No image goes through the model, nor does the base model read any pair."""
        return Work(steps=0, rows=0, read=0)

    def trainable(self, params: UCE.Params, model: ModelFamily) -> int:
        """Numbers that change."""
        return sum(model.net.get_submodule(name).get_parameter("weight").numel() for name in model.editable(PART))


def closed_form(weight: Tensor, old: Tensor, new: Tensor, kept: Tensor, preserve: float, ridge: float) -> Tensor:
    """Equation 7: W' (out, C) for states old (n, C) that shall be read as new (n, C), and kept (m, C) as before."""
    about_old, about_kept = old.T @ old / len(old), preserve * kept.T @ kept / max(1, len(kept))
    same = about_kept + ridge * torch.eye(old.shape[1], dtype=old.dtype)
    wanted = weight @ (new.T @ old / len(old) + same)
    return torch.linalg.solve(about_old + same, wanted.T).T


def erased(model: ModelFamily, material: Material) -> tuple[Tensor, Tensor]:
    """States (n, C) of all unsafe captions, and for each the nearest one of its pair's safe caption."""
    pairs = list(dict.fromkeys(zip(material.pairs.unsafe, material.pairs.safe, strict=True)))
    states = captions(model, [text for pair in pairs for text in pair])
    old, new = list[Tensor](), list[Tensor]()
    for unsafe, safe in pairs:
        old.append(states(unsafe))
        new.append(nearest(states(unsafe), states(safe)))
    return torch.cat(old), torch.cat(new)


def preserved(model: ModelFamily, material: Material) -> Tensor:
    """States (m, C) of preserved and of safe captions."""
    texts = list(dict.fromkeys([*material.pairs.safe, *(material.keep.prompts if material.keep else [])]))
    states = captions(model, texts)
    return torch.cat([states(text) for text in texts])


def nearest(states: Tensor, among: Tensor) -> Tensor:
    """For each state (n, C) the one of `among` (m, C) that points most nearly the same way."""
    likeness = F.normalize(states, dim=-1) @ F.normalize(among, dim=-1).T
    return among[likeness.argmax(-1)]


@torch.no_grad()
def captions(model: ModelFamily, texts: list[str]) -> Callable[[str], Tensor]:
    """What gives the states (n, C), float64 on the CPU, of each of these captions."""
    distinct = list(dict.fromkeys(texts))
    features, mask = model.caption_states(model.condition(distinct))
    found = {text: f[m].double().cpu() for text, f, m in zip(distinct, features, mask, strict=True)}
    return found.__getitem__
