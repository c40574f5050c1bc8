"""Reference images from a user's folder: captions.jsonl, or the image folder's metadata.jsonl of Hugging Face datasets.

The convention: https://huggingface.co/docs/datasets/image_dataset#imagefolder (a line per image, `file_name` and what
else there is to say).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safear_edit.errors import SpecError
from safear_edit.evaluate.reference_images import Kept, Reference, Source, Wanted
from safear_edit.families.base import ModelCard
from safear_edit.files.images import read_image
from safear_edit.files.strict import parse_json
from safear_edit.spec.prompts import forbidden
from safear_edit.spec.spec import Spec

CAPTIONS, METADATA = "captions.jsonl", "metadata.jsonl"
SLICES = ("paraphrase", "template")
"""Columns of metadata.jsonl that ask for the image in further ways; `text` is the direct one."""
LARGEST_CAPTIONS = 16 << 20


@dataclass(frozen=True)
class ImageFolder:
    """A user's images."""

    folder: Path

    def why_none(self, spec: Spec, card: ModelCard) -> str:
        """As `ReferenceImages` says: a folder that is named has some, or `source` says what is wrong with it."""
        return ""

    def source(self, spec: Spec, card: ModelCard, wanted: Wanted) -> Source:
        """As `ReferenceImages` says."""
        return folder_source(self.folder, card.image_size)


def folder_source(folder: Path, size: int) -> Source:
    """A user's images, cropped to a square and scaled to `size`. captions.jsonl has one line per image:

        {"file": "a.png", "prompts": {"direct": "a cat by P."}, "neutral": "a cat", "others": {"Monet": "a cat by M."}}
        {"file": "b.png", "prompt": "a dog by Monet", "group": "neighbours"}

    or metadata.jsonl, which `datasets` reads as well, says the same in columns:

        {"file_name": "a.png", "text": "a cat by P.", "neutral": "a cat", "others": {"Monet": "a cat by M."}}
        {"file_name": "b.png", "text": "a dog by Monet", "group": "neighbours"}

    SpecError with file and line for anything else. The images should come from three sources at least and must not
    be those that the edit was trained on; nobody but the user can know that.
    """
    path = _captions(folder)
    references: list[tuple[Reference, Tensor]] = []
    kept: list[tuple[Kept, Tensor]] = []
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path}:{number}"
            row = _row(parse_json(line, where).data, where, path.name)
            image = _opened(folder, row, where, size)
            if "group" in row:
                kept.append((Kept(_text(row, "group", where), _text(row, "prompt", where)), image))
            else:
                references.append((_told(row, where), image))
    if len(references) < 2 or not kept:
        got = f"{len(references)} and {len(kept)}"
        raise SpecError(str(path), "two images of the concept and one to keep, at least", got, "add some")
    images = [torch.stack([image for _, image in part]) for part in (references, kept)]
    return Source(tuple(text for text, _ in references), images[0], tuple(text for text, _ in kept), images[1])


def _captions(folder: Path) -> Path:
    """The one file of captions."""
    found = [folder / name for name in (CAPTIONS, METADATA) if (folder / name).exists()]
    if len(found) != 1:
        got, fix = ("both", "remove one") if found else ("neither", "see `image_folder.folder_source` for their lines")
        raise SpecError(str(folder), f"{CAPTIONS} or {METADATA}", got, fix)
    return found[0]


def _lines(path: Path) -> list[str]:
    try:
        if not path.is_file():
            raise SpecError(str(path), "captions", "a folder, pipe or device", "give a file")
        if path.stat().st_size > LARGEST_CAPTIONS:
            raise SpecError(str(path), f"at most {LARGEST_CAPTIONS >> 20} MiB", "a larger file", "split it")
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise SpecError(str(path), "captions", error.strerror or "an error", "check the path") from None
    except UnicodeDecodeError:
        raise SpecError(str(path), "text in UTF-8", "other bytes", "save it as UTF-8") from None


def _row(row: Any, where: str, file: str) -> Mapping[str, Any]:
    """A line of either file as one of captions.jsonl."""
    if not isinstance(row, dict):
        raise SpecError(where, "a JSON object", type(row).__name__, "write one per line")
    if file == CAPTIONS:
        return row
    columns = {"file": row.get("file_name"), **{key: row[key] for key in ("group", "neutral", "others") if key in row}}
    if "group" in row:
        return {**columns, "prompt": row.get("text")}
    if "neutral" not in row:
        fix = "write what asks for the same image without the concept, or the group of an image to keep"
        raise SpecError(where, "a column `neutral` or `group`", ", ".join(map(str, row))[:60], fix)
    return {**columns, "prompts": {"direct": row.get("text"), **{name: row[name] for name in SLICES if row.get(name)}}}


def _told(row: Mapping[str, Any], where: str) -> Reference:
    prompts, others = row.get("prompts"), row.get("others", {})
    if not isinstance(prompts, dict) or "direct" not in prompts or not isinstance(others, dict):
        raise SpecError(where, "prompts with `direct`, or a group", str(list(row))[:60], "see `folder_source`")
    return Reference(
        {str(name): _text(prompts, name, where) for name in prompts},
        _text(row, "neutral", where),
        {str(name): _text(others, name, where) for name in others},
    )


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip() or not text.isprintable():
        raise SpecError(f"{where}, {name}", "printable text", repr(text)[:40], "write it")
    if forbidden(text):
        fix = "this combination is never processed, not even to test it"
        raise SpecError(f"{where}, {name}", "no words for minors together with sexual content", "both", fix)
    return text.strip()


def _opened(folder: Path, row: Mapping[str, Any], where: str, size: int) -> Tensor:
    """uint8 (3, size, size): the middle square of an image that lies in `folder`."""
    path = folder / _text(row, "file", where)
    if folder.resolve() not in path.resolve().parents:
        raise SpecError(where, "an image inside the folder", str(path), "copy it there")
    image = read_image(path, where)
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
