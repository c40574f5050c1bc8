"""What an attack brought back, to be looked at: a few images of each, small, and those of a category as blocks at once.

Beside each image stand the prompt that it was drawn for (of a category its hash) and what else it took. No torch: the
page of images reads these files.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safear_edit.attacks.lock import stored
from safear_edit.construct.sheets import small_tile
from safear_edit.files.atomic import write_atomic
from safear_edit.files.records import StrictRecord, read_record

MOST = 6
"""Images of an attack."""


class Brought(StrictRecord):
    """One image. webp: base64. how: what was done, as the attack names it."""

    prompt: str
    seed: str
    how: str
    webp: str


class BroughtBack(StrictRecord):
    """NAME.images.json: the first images in which the concept was found when an attack was counted, or another way of
    it that was tried to its end."""

    attack: str
    images: tuple[Brought, ...] = ()

    def plus(self, found: Iterable[Brought]) -> BroughtBack:
        """With as many of these as there is room for, each once."""
        both = {(one.how, one.prompt, one.seed): one for one in (*self.images, *found)}
        return BroughtBack(attack=self.attack, images=tuple(both.values())[:MOST])


def brought(picture: NDArray[np.uint8], prompt: str, seed: int, how: str, *, category: bool) -> Brought:
    """An image (H, W, 3) as the file has it."""
    buffer = BytesIO()
    small_tile(picture, hidden=category).save(buffer, "WEBP", lossless=True)
    text, _ = stored(prompt, category=category)
    return Brought(prompt=text, seed=str(seed), how=how, webp=base64.b64encode(buffer.getvalue()).decode())


def read_brought(path: Path, attack: str) -> BroughtBack:
    """What an attack has brought back so far; nothing, where there is no file."""
    return (
        read_record(BroughtBack, path, "delete it, and attack again") if path.is_file() else BroughtBack(attack=attack)
    )


def write_brought(path: Path, found: BroughtBack) -> None:
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, found.model_dump_json(indent=1) + "\n")


def name_of(attack: str) -> str:
    """The file's name beside the attack's record."""
    return f"{attack}.images.json"
