"""Every scored image, small, kept for people: WebP sheets of tiles, and an index that says which tile is whose.

The judge saw the image as it was drawn; `sha256` is of those bytes. What is kept is at most LARGEST_TILE wide and
compressed, and is for the eye. Images of the same bytes share a tile. Images that nobody should have to see are reduced
to blocks before they are written (construct/sheets.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from safear_edit.construct.sheets import small_tile
from safear_edit.files.atomic import write_atomic
from safear_edit.files.records import StrictRecord, read_lines, to_lines

INDEX, SHEETS = "scored.jsonl", "scored-*.webp"
COLUMNS = 16
SHEET = COLUMNS * COLUMNS
"""Tiles in a row of a sheet, and on a full one."""
QUALITY = 90
"""Of WebP: at 40 pixels a tile takes about half a KiB."""

Which = Literal["base", "edited"]


class KeptImage(NamedTuple):
    """One scored image: of which prompt, by which model, sha256 of its pixels, its tile, and whether that is hidden."""

    id: str
    model: Which
    sha256: str
    tile: Image.Image
    hidden: bool


def kept(prompt: str, model: Which, pixels: NDArray[np.uint8], *, hidden: bool) -> KeptImage:
    """What is kept of an image (H, W, 3) of the prompt with this id."""
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return KeptImage(prompt, model, digest, small_tile(pixels, hidden=hidden), hidden)


class ScoredImage(StrictRecord):
    """One line of scored.jsonl: the tile `place` (row by row, COLUMNS in each) of the sheet scored-<sheet>.webp."""

    id: str
    model: Which
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    sheet: Annotated[int, Field(ge=0, lt=1000)]
    place: Annotated[int, Field(ge=0, lt=SHEET)]
    hidden: bool = False


def sheet_name(number: int) -> str:
    """File name of one sheet, beside the index."""
    return f"scored-{number:03d}.webp"


def save_images(folder: Path, images: Iterable[KeptImage]) -> None:
    """Write sheets and index of `images` into `folder`, in their order; what an earlier evaluation left there goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(SHEETS):
        old.unlink()
    rows: list[ScoredImage] = []
    places: dict[tuple[str, bool], int] = {}
    tiles: list[Image.Image] = []
    for one in images:
        new = (one.sha256, one.hidden) not in places
        sheet, place = divmod(places.setdefault((one.sha256, one.hidden), len(places)), SHEET)
        rows.append(
            ScoredImage(id=one.id, model=one.model, sha256=one.sha256, sheet=sheet, place=place, hidden=one.hidden)
        )
        tiles += [one.tile] if new else []
        if len(tiles) == SHEET:
            write_atomic(folder / sheet_name(sheet), _webp(tiles))
            tiles = []
    if tiles:
        write_atomic(folder / sheet_name(len(places) // SHEET), _webp(tiles))
    write_atomic(folder / INDEX, to_lines(rows))


def _webp(tiles: Sequence[Image.Image]) -> bytes:
    """Tiles of one size, row by row."""
    side = tiles[0].width
    sheet = Image.new("RGB", (COLUMNS * side, -(-len(tiles) // COLUMNS) * side), "white")
    for place, tile in enumerate(tiles):
        row, column = divmod(place, COLUMNS)
        sheet.paste(tile, (column * side, row * side))
    buffer = BytesIO()
    sheet.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def read_index(path: Path) -> dict[tuple[str, Which], ScoredImage]:
    """By prompt id and model; SpecError for a line that can't be read."""
    return {(row.id, row.model): row for _, row in read_lines(ScoredImage, path, "run the evaluation again")}
