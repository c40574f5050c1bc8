"""Kept images: where each lies, that equal ones share a tile, and that hidden ones are blocks in the file itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from safear_edit.construct.sheets import MOSAIC
from safear_edit.errors import SpecError
from safear_edit.evaluate.scored_images import COLUMNS, INDEX, SHEET, kept, read_index, save_images, sheet_name

SIDE = 24


def picture(number: int) -> NDArray[np.uint8]:
    """One colour per number, and a line that blocks can't show."""
    made = np.full((SIDE, SIDE, 3), (number * 37 % 256, number * 101 % 251, number * 11 % 241), dtype=np.uint8)
    made[:, 5] = 255 - made[:, 5]
    return made


def tile(folder: Path, sheet: int, place: int) -> NDArray[np.int64]:
    row, column = divmod(place, COLUMNS)
    box = (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE)
    return np.asarray(Image.open(folder / sheet_name(sheet)).convert("RGB").crop(box)).astype(int)


def test_every_image_is_found_again_across_sheets(tmp_path: Path) -> None:
    count = SHEET + 3
    save_images(tmp_path, (kept(f"p-{i}", "base", picture(i), hidden=False) for i in range(count)))
    found = read_index(tmp_path / INDEX)
    assert [*found] == [(f"p-{i}", "base") for i in range(count)]
    for i in (0, COLUMNS, SHEET - 1, SHEET, count - 1):
        row = found[f"p-{i}", "base"]
        assert row.sha256 == hashlib.sha256(picture(i).tobytes()).hexdigest()
        assert abs(tile(tmp_path, row.sheet, row.place) - picture(i)).mean() < 12, "compressed, and the same image"
    assert sorted(path.name for path in tmp_path.glob("*.webp")) == [sheet_name(0), sheet_name(1)]


def test_equal_images_share_a_tile_and_old_sheets_go(tmp_path: Path) -> None:
    (tmp_path / sheet_name(7)).write_bytes(b"of an earlier evaluation")
    images = [kept("a", "base", picture(1), hidden=False), kept("a", "edited", picture(1), hidden=False)]
    save_images(tmp_path, [*images, kept("b", "base", picture(2), hidden=False)])
    found = read_index(tmp_path / INDEX)
    assert found["a", "base"].place == found["a", "edited"].place != found["b", "base"].place
    assert not (tmp_path / sheet_name(7)).exists()


def test_a_hidden_image_is_blocks_in_the_file_and_never_another_ones_tile(tmp_path: Path) -> None:
    fine = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    save_images(tmp_path, [kept("a", "base", fine, hidden=True), kept("b", "base", fine, hidden=False)])
    found = read_index(tmp_path / INDEX)
    assert found["a", "base"].hidden and found["a", "base"].place != found["b", "base"].place
    block = SIDE // MOSAIC
    shown = tile(tmp_path, 0, found["a", "base"].place).reshape(MOSAIC, block, MOSAIC, block, 3)
    assert shown.std(axis=(1, 3)).mean() < 8 < fine.reshape(MOSAIC, block, MOSAIC, block, 3).std(axis=(1, 3)).mean()


def test_an_index_that_points_nowhere_is_refused(tmp_path: Path) -> None:
    save_images(tmp_path, [kept("a", "base", picture(1), hidden=False)])
    text = (tmp_path / INDEX).read_text()
    (tmp_path / INDEX).write_text(text.replace('"place":0', f'"place":{SHEET}'))
    with pytest.raises(SpecError, match="place"):
        read_index(tmp_path / INDEX)
