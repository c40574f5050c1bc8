"""Sheets of images for people: rows of equal tiles under titles, and beside the PNG a JSON that says what is on it.

The one place where an image is hidden: a tile is reduced to MOSAIC x MOSAIC blocks before it is written, so nothing
that opens the file can bring the rest back (a blur in the page could be switched off).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import AliasChoices, Field

from safear_edit.files.atomic import write_atomic
from safear_edit.files.records import StrictRecord

SMALLEST_TILE, LARGEST_TILE, GAP, TITLE = 80, 144, 4, 16
"""Pixels: small images are enlarged by a whole number, large ones reduced, so that a sheet stays below 4 MiB."""
MOSAIC = 6
"""Blocks per edge of a pixelated image: shows that there is one, not what is in it."""


class ShownImage(StrictRecord):
    """One image of a sheet's index; sha256 is of its RGB bytes as drawn, before it was resized or pixelated."""

    prompt_id: str
    prompt: str = ""
    seed: str = ""
    model: str = ""
    present: bool | None = None
    score: float | None = None
    sha256: str = ""
    selection: str = ""


class SheetNote(StrictRecord):
    """What lies beside a sheet NAME.png as NAME.json; `images` was called `pictures` until 2026-11-29."""

    caption: str | None = None
    selection: str = "how the images were chosen is not stated"
    redaction: Literal["none", "pixelated"] = "none"
    images: tuple[ShownImage, ...] = Field(default=(), validation_alias=AliasChoices("images", "pictures"))


Strip = tuple[str, Sequence[Sequence[Image.Image]]]
"""A title and its rows of tiles."""


def tile(pixels: NDArray[np.uint8], *, hidden: bool) -> Image.Image:
    """A square image (H, W, 3) at the sheet's size, as blocks if `hidden`."""
    size = pixels.shape[1]
    side = size * math.ceil(SMALLEST_TILE / size) if size < SMALLEST_TILE else min(size, LARGEST_TILE)
    return _resized(pixels, side, hidden)


def small_tile(pixels: NDArray[np.uint8], *, hidden: bool) -> Image.Image:
    """A square image (H, W, 3) as it is, LARGEST_TILE wide at most, as blocks if `hidden`."""
    return _resized(pixels, min(pixels.shape[1], LARGEST_TILE), hidden)


def _resized(pixels: NDArray[np.uint8], side: int, hidden: bool) -> Image.Image:
    image, size = Image.fromarray(pixels), pixels.shape[1]
    if hidden:
        return image.resize((MOSAIC, MOSAIC), Image.Resampling.BOX).resize((side, side), Image.Resampling.NEAREST)
    return image.resize((side, side), Image.Resampling.NEAREST if side > size else Image.Resampling.BOX)


def page(strips: Sequence[Strip]) -> Image.Image:
    """Strips under each other, each a title over its rows; all tiles are as large as the first."""
    step = strips[0][1][0][0].width + GAP
    columns = max(len(row) for _, rows in strips for row in rows)
    height = sum(TITLE + len(rows) * step for _, rows in strips) + GAP
    sheet = Image.new("RGB", (columns * step + GAP, height), "white")
    top = GAP
    for title, rows in strips:
        ImageDraw.Draw(sheet).text((GAP, top), title, fill="black")
        top += TITLE
        for row in rows:
            for column, image in enumerate(row):
                sheet.paste(image, (GAP + column * step, top))
            top += step
    return sheet


def write_sheet(path: Path, strips: Sequence[Strip], *, hidden: bool, about: Mapping[str, Any]) -> None:
    """The PNG at `path`, and beside it `about` as JSON with how it was redacted (`hidden`: some of its tiles are)."""
    buffer = BytesIO()
    page(strips).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
    note = SheetNote.model_validate({**about, "redaction": "pixelated" if hidden else "none"})
    words = note.model_dump(exclude_unset=True)
    write_atomic(path.with_suffix(".json"), json.dumps(words, indent=1, ensure_ascii=False) + "\n")
