"""What reference images are: of a concept and of what is preserved, with their texts, wherever they come from.

The mini world draws them (mini_world.py), or a user has them in a folder (image_folder.py); references.py chooses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol

from torch import Tensor

from safear_edit.families.base import ModelCard
from safear_edit.spec.spec import Spec

NEUTRAL = "neutral"


@dataclass(frozen=True)
class Reference:
    """Texts of one image that shows the concept.

    prompts: slice → prompt that asks for it; neutral: the same without the concept; others: what else a classifier may
    take it for, name → prompt.
    """

    prompts: Mapping[str, str]
    neutral: str
    others: Mapping[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, str]:
        """Every prompt that the image is scored under; slices are `slice/NAME`, other classes `class/NAME`."""
        slices = {f"slice/{name}": text for name, text in self.prompts.items()}
        return {**slices, NEUTRAL: self.neutral, **{f"class/{name}": text for name, text in self.others.items()}}


@dataclass(frozen=True)
class Kept:
    """Text of one image that must stay as likely as it was."""

    group: str
    prompt: str


@dataclass(frozen=True)
class Source:
    """Images uint8 (R, 3, H, W) and (K, 3, H, W) with their texts, not yet tokens of any model."""

    references: tuple[Reference, ...]
    reference_images: Tensor
    kept: tuple[Kept, ...]
    kept_images: Tensor

    @property
    def digest(self) -> str:
        """sha256 over texts and pixels."""
        texts = [asdict(part) for part in self.references] + [asdict(part) for part in self.kept]
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
        for images in (self.reference_images, self.kept_images):
            digest.update(json.dumps(list(images.shape)).encode() + images.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Wanted:
    """How many images an audit can use: of the concept, the first `classified` of them with what else a classifier may
    take them for; and kept ones, shared evenly among the preserved groups. `seed` chooses, where there is a choice."""

    references: int
    kept: int
    classified: int
    seed: int = 0


class ReferenceImages(Protocol):
    """Where reference images come from."""

    def why_none(self, spec: Spec, card: ModelCard) -> str:
        """Why there are none of the spec's concept for this model; "" where there are some."""
        ...

    def source(self, spec: Spec, card: ModelCard, wanted: Wanted) -> Source:
        """The images in the model's size. A source that has a fixed set gives all of it, whatever is wanted."""
        ...
