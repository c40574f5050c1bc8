"""Who says what unsafe images show: the model itself, another one of a family that answers questions, or any local
image-text-to-text model that transformers loads. What it says becomes the safe caption (captions.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import interpolate

from safear_edit.errors import UsageError
from safear_edit.families.fetch import pulled
from safear_edit.families.load import load_model, shipped
from safear_edit.families.reference import ModelRef
from safear_edit.files.atomic import digest_of, sha256_file
from safear_edit.registry import PACKAGE

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import Recipe
    from safear_edit.construct.captions import Describes
    from safear_edit.families.base import ModelFamily

QUESTION = "Describe this image in one short sentence: what it shows, where, and in which style."
"""What a model of transformers is asked."""
LONGEST = 48
"""New tokens of its answer at most."""


def captioner_of(recipe: Recipe, model: ModelFamily) -> Describes | None:
    """Who describes a recipe's unsafe images; None where nobody does. UsageError for a captioner that can't be loaded,
    or of a family that says nothing about images."""
    if not recipe.construct.described:
        return None
    name = recipe.construct.captioner
    return model if name is None else load_captioner(name, str(model.device))


def load_captioner(name: str, device: str = "cpu") -> Describes:
    """A model reference, or a folder; UsageError for what is neither, and for a family that only draws."""
    where = f"construct.captioner={name}"
    if _is_foreign(name):
        return Captioner.load(Path(name), device)
    found = load_model(name, device)
    if "understanding" not in found.provides:
        raise UsageError(where, "a family that answers questions about images", found.name, "take janus:mini")
    return Beside(found)


def captioner_files(recipe: Recipe) -> tuple[str, ...]:
    """Digest of the files of a recipe's captioner, of which the recipe has the name alone; nothing where nobody
    describes, where the model itself does, and where there are no such files yet."""
    name = recipe.construct.captioner
    folder = _folder_of(name) if name else None
    if folder is None:
        return ()
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return (digest_of(*(part for file in files for part in (file, sha256_file(folder / file)))),)


def _folder_of(name: str) -> Path | None:
    """Where a captioner's files lie; None of published weights that aren't here."""
    if _is_foreign(name):
        return Path(name)
    ref = ModelRef.parse(name)
    return ref.path or pulled(ref) or (PACKAGE / "minis" / ref.family if shipped(ref) else None)


def _is_foreign(name: str) -> bool:
    """Whether it is a folder of transformers' layout that no family of ours reads."""
    if not (Path(name) / "config.json").is_file():
        return False
    try:
        ModelRef.parse(name)
    except UsageError:
        return True
    return False


@dataclass(frozen=True)
class Beside:
    """A model of ours that looks at another's images, in its own size."""

    model: ModelFamily

    def describe(self, images: Tensor) -> list[str]:
        """A caption per image, uint8 (B, 3, H, W)."""
        side = self.model.card.image_size
        if images.shape[-2:] != (side, side):
            sized = interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
            images = sized.round().clamp(0, 255).to(torch.uint8)
        return self.model.describe(images)


@dataclass(frozen=True)
class Captioner:
    """An image-text-to-text model of transformers with its processor; a model without a chat template gets no question
    (BLIP and others of its kind caption whatever they see)."""

    model: Any
    processor: Any

    @classmethod
    def load(cls, folder: Path, device: str) -> Captioner:
        """Safetensors only, no code of its own; UsageError for a folder that transformers can't load so."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor: Any = AutoProcessor.from_pretrained(folder, **options)
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, **options)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            got = " ".join(str(error).split())[:120]
            fix = "give the folder of an image-text-to-text model"
            raise UsageError(f"construct.captioner={folder}", "a model that transformers loads", got, fix) from None
        return cls(model.to(device).eval(), processor)

    @torch.no_grad()
    def describe(self, images: Tensor) -> list[str]:
        """A caption per image, uint8 (B, 3, H, W), one after another: templates of several images differ by model."""
        return [self._described(image) for image in images]

    def _described(self, image: Tensor) -> str:
        asked: dict[str, Any] = {"images": image.cpu(), "return_tensors": "pt"}
        if getattr(self.processor, "chat_template", None):
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
            asked["text"] = self.processor.apply_chat_template([turn], add_generation_prompt=True)
        told = self.processor(**asked).to(self.model.device)
        ids = self.model.generate(**told, max_new_tokens=LONGEST, do_sample=False)[0]
        before = told["input_ids"][0] if "input_ids" in told else ids[:0]
        echoed = len(before) > 0 and torch.equal(ids[: len(before)], before)
        return str(self.processor.decode(ids[len(before) :] if echoed else ids, skip_special_tokens=True)).strip()
