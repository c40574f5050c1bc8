"""Loads the model that a reference names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safear_edit.errors import UsageError
from safear_edit.families.fetch import pulled
from safear_edit.families.reference import ModelRef, published
from safear_edit.registry import PACKAGE, families, lookup

if TYPE_CHECKING:
    import torch

    from safear_edit.families.base import ModelFamily


def load_model(text: str, device: str | torch.device = "cpu", **options: Any) -> ModelFamily:
    """Parse a model reference and load it (`options`, such as dtype, go to the family's `load`).

    UsageError for published weights that `pull` hasn't fetched: it says how to get them.
    """
    ref = ModelRef.parse(text)
    facts = published(ref.family).variants.get(ref.variant)
    if facts and facts.files and ref.path is None and (home := pulled(ref)) is not None:
        ref = replace(ref, path=home)
    if facts and facts.files and ref.path is None:
        files = " and ".join(facts.files)
        fix = f"put {files} into one folder and give that folder instead of {ref}"
        if facts.repository:
            fix = f"`safear-edit pull {ref}`, or {fix}"
        raise UsageError(f"model {ref}", "its published weights on this machine", "only their name", fix)
    if ref.path is None and not shipped(ref):
        there = ", ".join(f"{name}:mini" for name in families() if shipped(ModelRef(name, "mini")))
        fix = f"give a folder of weights of that family, or take {there}"
        raise UsageError(f"model {ref}", "weights that ship with this package", "none yet", fix)
    model: ModelFamily = lookup("families", ref.family).load().load(ref, device=device, **options)
    return model


def shipped(ref: ModelRef) -> bool:
    """Whether the weights of a built-in variant are in this package (a family's code may come before its mini)."""
    source = lookup("families", ref.family).source
    return source != "built in" or (PACKAGE / "minis" / ref.family / "safear.json").is_file()
