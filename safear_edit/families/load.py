"""Loads the model that a reference names, its frozen weights in a dtype that the device has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from safear_edit.errors import NotFetchedError, UsageError
from safear_edit.families.fetch import pulled
from safear_edit.families.reference import ModelRef, Variant, published
from safear_edit.files.names import EXPORTED
from safear_edit.registry import PACKAGE, families, lookup

if TYPE_CHECKING:
    import torch

    from safear_edit.families.base import ModelFamily

Dtype = Literal["float32", "bfloat16", "float16"]
"""What frozen weights can be. What is trained and its optimiser are float32 whatever these are, and so are image
tokenizers: an image's tokens must not depend on it."""
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")


def load_model(
    text: str, device: str | torch.device = "cpu", dtype: str | torch.dtype = "auto", **options: Any
) -> ModelFamily:
    """Parse a model reference and load it (`options` go to the family's `load`); `dtype` is "auto" or one of DTYPES.

    NotFetchedError for published weights that `pull` could fetch and hasn't, UsageError for others that aren't here,
    with the way to get them, and for a dtype in which the device doesn't compute.
    """
    ref = ModelRef.parse(text)
    facts = published(ref.family).variants.get(ref.variant)
    if facts and facts.files and ref.path is None and (home := pulled(ref)) is not None:
        ref = replace(ref, path=home)
    if facts and facts.files and ref.path is None:
        raise _not_here(ref, facts)
    if ref.path is None and not shipped(ref):
        there = ", ".join(f"{name}:mini" for name in families() if shipped(ModelRef(name, "mini")))
        fix = f"give a folder of weights of that family, or take {there}"
        raise UsageError(f"model {ref}", "weights that ship with this package", "none yet", fix)
    kind = resolve_dtype(dtype, ref, device)
    if str(kind) != "torch.float32":  # a family of another package may know no other dtype
        options["dtype"] = kind
    model: ModelFamily = lookup("families", ref.family).load().load(ref, device=device, **options)
    if str(kind) != "torch.float32":
        from safear_edit.families.layers.half import widened

        widened(model.net)
    return model


def _not_here(ref: ModelRef, facts: Variant) -> UsageError:
    """Why a published variant can't be loaded."""
    where, expected, got = f"model {ref}", "its published weights on this machine", "only their name"
    fix = f"put {' and '.join(facts.files)} into one folder and give that folder instead of {ref}"
    if not facts.repository:
        return UsageError(where, expected, got, fix)
    error = NotFetchedError(where, expected, got, f"`safear-edit pull {ref}` or --pull, or {fix}")
    size = f" ({facts.gigabytes:g} GB)" if facts.gigabytes else ""
    encoder = f" and its text encoder from {facts.text_encoder}" if facts.text_encoder else ""
    error.model, error.what = str(ref), f"it{size} from {facts.repository}{encoder}"
    return error


def resolve_dtype(wanted: str | torch.dtype, ref: ModelRef, device: str | torch.device) -> torch.dtype:
    """The torch dtype for "auto" or one of DTYPES; UsageError if the device doesn't compute in it.

    auto: a folder that `export` wrote keeps the dtype of its weights; published weights become bfloat16 on a GPU
    (float16 on one that lacks it); all others, and everything on a CPU, float32.
    """
    import torch

    name = str(wanted).removeprefix("torch.")
    if name not in ("auto", *DTYPES):
        raise UsageError("--dtype", f"auto, {', '.join(DTYPES)}", repr(name), "leave it out for auto")
    if name != "auto":
        if not _computes(kind := getattr(torch, name), device):
            fix = "take --dtype auto or float32"
            raise UsageError(f"--dtype {name}", f"a dtype that {device} computes in", "one that it lacks", fix)
        return kind
    if ref.path is not None and (ref.path / "safear.json").is_file():
        return getattr(torch, _exported_dtype(ref))
    if ref.path is None or torch.device(device).type == "cpu":
        return torch.float32
    return next(kind for kind in (torch.bfloat16, torch.float16, torch.float32) if _computes(kind, device))


def _computes(kind: torch.dtype, device: str | torch.device) -> bool:
    """Whether the device has arithmetic for it; a GPU that only emulates bfloat16 counts as one that hasn't."""
    import torch

    if torch.device(device).type == "cuda" and kind == torch.bfloat16:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        one = torch.ones(2, 2, device=device, dtype=kind)
        return bool((one @ one).float().sum().item() == 8)
    except (RuntimeError, TypeError, AssertionError):
        return False


def _exported_dtype(ref: ModelRef) -> Dtype:
    """Of the weights that `export` wrote to the folder; float32 where they are none of DTYPES."""
    from safear_edit.files.weights import stored_dtype

    assert ref.path is not None
    found = next((ref.path / name for name in EXPORTED if (ref.path / name).is_file()), None)
    name = stored_dtype(found) if found else ""
    return next((known for known in DTYPES if known == name), "float32")


def shipped(ref: ModelRef) -> bool:
    """Whether the weights of a built-in variant are in this package (a family's code may come before its mini)."""
    source = lookup("families", ref.family).source
    return source != "built in" or (PACKAGE / "minis" / ref.family / "safear.json").is_file()
