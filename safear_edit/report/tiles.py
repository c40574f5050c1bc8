"""Kept images read back for a page: which tile an image is, and the tile by itself, as part of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from PIL import Image

from safear_edit.errors import SpecError
from safear_edit.evaluate.scored_images import COLUMNS, ScoredImage, read_index, sheet_name
from safear_edit.files.images import read_image
from safear_edit.files.records import AGAIN


@dataclass(frozen=True)
class Sheets:
    """The sheets of one concept, and the index of their tiles."""

    folder: Path
    names: tuple[str, ...]
    index: Mapping[tuple[str, str], ScoredImage]
    side: int

    @classmethod
    def of(cls, index: Path | None) -> Sheets | None:
        """Of an index file; None where no images were kept, SpecError if a sheet is missing or no image."""
        if index is None or not index.is_file():
            return None
        rows = {(row.id, str(row.model)): row for row in read_index(index).values()}
        names = tuple(sheet_name(number) for number in sorted({row.sheet for row in rows.values()}))
        for name in names:
            if not (index.parent / name).is_file():
                raise SpecError(str(index.parent / name), "a sheet of scored images", "no such file", AGAIN)
        first = read_image(index.parent / sheet_name(0), str(index.parent / sheet_name(0)))
        if first.width % COLUMNS:
            raise SpecError(str(index.parent), f"sheets of {COLUMNS} columns", f"{first.width} pixels wide", AGAIN)
        return cls(index.parent, names, rows, first.width // COLUMNS)

    def tile(self, prompt: str, model: str) -> ScoredImage:
        """Where an image is; SpecError if none was kept."""
        if (prompt, model) not in self.index:
            raise SpecError(str(self.folder), f"an image of {prompt}, {model}", "none", AGAIN)
        return self.index[prompt, model]

    def crops(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Image.Image]:
        """The tiles of (prompt id, model) by themselves; one sheet is open at a time."""
        found: dict[tuple[str, str], Image.Image] = {}
        by_sheet = groupby(sorted(wanted, key=lambda one: self.tile(*one).sheet), key=lambda one: self.tile(*one).sheet)
        for sheet, several in by_sheet:
            path = self.folder / sheet_name(sheet)
            image = read_image(path, str(path))
            for one in several:
                row, column = divmod(self.tile(*one).place, COLUMNS)
                left, top = column * self.side, row * self.side
                found[one] = image.crop((left, top, left + self.side, top + self.side))
        return found


def tile_uri(image: Image.Image) -> str:
    """A tile inside a page, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return webp_uri(buffer.getvalue())


def webp_uri(content: bytes) -> str:
    """A WebP image inside a page."""
    return "data:image/webp;base64," + base64.b64encode(content).decode()
