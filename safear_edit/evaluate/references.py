"""Reference images for a spec and a model, and their tokens, made once.

They come from the user's folder if the spec names one (`evaluate.references`), else the mini world draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.evaluate.image_folder import ImageFolder
from safear_edit.evaluate.mini_world import MiniWorld
from safear_edit.evaluate.reference_images import Kept, Reference, ReferenceImages, Source, Wanted
from safear_edit.families.base import ModelCard, ModelFamily
from safear_edit.files.atomic import digest_of
from safear_edit.files.weights import write_weights
from safear_edit.spec.spec import Spec

BATCH = 16
"""Images per pass; bounds memory (two sets of logits and their softmax), changes no figure beyond rounding."""
REFERENCES, CLASSIFIED, KEPT = 144, 20, 48
"""Images of a spec at most: those that CIR is about, the first of them that are also classified, and those that must
stay. Some 1650 teacher-forced passes: 17 s for llamagen:mini on two busy cores (limit 20 s)."""


def images_of(spec: Spec) -> ReferenceImages:
    """The user's folder if the spec names one, else the mini world."""
    return MiniWorld() if spec.evaluate.references is None else ImageFolder(Path(spec.evaluate.references))


def why_none(spec: Spec, card: ModelCard) -> str:
    """Why there are no reference images of the spec's concept for this model; "" where there are some."""
    return images_of(spec).why_none(spec, card)


def usually_wanted(spec: Spec, seed: int = 0) -> Wanted:
    """As many images as a small evaluation, too, has prompts for."""
    kept = min(KEPT, sum(group.n for group in spec.preserve))
    return Wanted(min(REFERENCES, spec.evaluate.n.direct), kept, CLASSIFIED, seed)


def source_for(spec: Spec, card: ModelCard, seed: int = 0, wanted: Wanted | None = None) -> Source:
    """The spec's reference images in the model's size; by default those that `usually_wanted` says.

    UsageError where there are none; SpecError for a wrong folder.
    """
    images = images_of(spec)
    if why := images.why_none(spec, card):
        raise UsageError("likelihood audit", "reference images", why, "see `image_folder.folder_source`")
    return images.source(spec, card, wanted or usually_wanted(spec, seed))


# -- tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pack:
    """The same as tokens of one family: ids (R, N) and (K, N), or bits (R, N, d) and (K, N, d)."""

    references: tuple[Reference, ...]
    reference_ids: Tensor
    kept: tuple[Kept, ...]
    kept_ids: Tensor
    digest: str


def tokenised(model: ModelFamily, source: Source, cache: Path | None = None) -> Pack:
    """Tokens of every image; with `cache`, made once for these images, weights, dtype and device, and then read.

    UsageError for images that don't have the model's size.
    """
    size = model.card.image_size
    for images in (source.reference_images, source.kept_images):
        if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
            got = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            raise UsageError("likelihood pack", f"uint8 images (n, 3, {size}, {size})", got, "scale them first")
    place = str(model.dtype), str(model.device)
    digest = digest_of("likelihood pack", model.card.ref, model.card.digest, source.digest, *place)
    path = None if cache is None else cache / f"{digest}.safetensors"
    found = _cached(path, source) if path else None
    if found is None:
        found = (_encoded(model, source.reference_images), _encoded(model, source.kept_images))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_weights(path, {"references": found[0], "kept": found[1]})
    return Pack(source.references, found[0], source.kept, found[1], source.digest)


def _encoded(model: ModelFamily, images: Tensor) -> Tensor:
    return torch.cat([model.encode(part).cpu() for part in images.split(BATCH)])


def _cached(path: Path, source: Source) -> tuple[Tensor, Tensor] | None:
    """Tokens from the cache; None if they are not there or damaged (they are made again then)."""
    try:
        tensors = load_tensors(path.read_bytes())
        found = tensors["references"], tensors["kept"]
    except (OSError, SafetensorError, KeyError):
        return None
    return found if (len(found[0]), len(found[1])) == (len(source.references), len(source.kept)) else None
