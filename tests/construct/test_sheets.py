"""Sheets: tiles of one size, hidden ones with nothing left in them, and the JSON that says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safear_edit.construct.sheets import GAP, LARGEST_TILE, MOSAIC, TITLE, SheetNote, page, tile, write_sheet
from safear_edit.report.build import SHEET_BYTES


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("side", "shown"), [(16, 80), (40, 80), (64, 128), (144, 144), (1024, LARGEST_TILE)])
def test_a_tile_is_enlarged_by_a_whole_number_or_reduced(side: int, shown: int) -> None:
    picture = noise(side)
    found = tile(picture, hidden=False)
    assert found.size == (shown, shown)
    if shown >= side:
        assert np.array_equal(np.asarray(found)[:: shown // side, :: shown // side], picture)


@pytest.mark.parametrize("side", [16, 40, 1024])
def test_a_hidden_tile_holds_no_more_than_its_blocks(side: int) -> None:
    hidden = tile(noise(side), hidden=True)
    assert hidden.size == tile(noise(side), hidden=False).size
    assert len(hidden.getcolors(hidden.width * hidden.height) or []) <= MOSAIC**2
    mean = noise(side)[: side // 2, : side // 2].mean((0, 1))
    assert np.allclose(np.asarray(hidden)[: hidden.width // 2, : hidden.width // 2].mean((0, 1)), mean, atol=12)


def test_sheets_of_large_pictures_stay_small() -> None:
    picture = tile(noise(1024), hidden=False)
    sheet = page([(title, [[picture] * 8] * 2) for title in ("one", "two", "three")])
    assert sheet.width * sheet.height * 3 < SHEET_BYTES


def test_the_file_says_what_was_done_to_it(tmp_path: Path) -> None:
    for hidden, word in ((True, "pixelated"), (False, "none")):
        write_sheet(
            tmp_path / "a.png",
            [("rows", [[tile(noise(40), hidden=hidden)]])],
            hidden=hidden,
            about={"caption": "x", "redaction": "whatever"},
        )
        assert json.loads((tmp_path / "a.json").read_text()) == {"caption": "x", "redaction": word}
        assert Image.open(tmp_path / "a.png").size == (80 + 2 * GAP, TITLE + 80 + 2 * GAP)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_the_index_of_an_older_sheet_is_read() -> None:
    found = [
        SheetNote.model_validate_json(f'{{"{key}": [{{"prompt_id": "direct-0"}}]}}') for key in ("pictures", "images")
    ]
    assert found[0] == found[1] and found[0].images[0].prompt_id == "direct-0"
