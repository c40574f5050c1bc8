"""Images, CSV and page of `eval --out` say what was judged; images of a category are hidden, prompts escaped."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safear_edit.errors import UsageError
from safear_edit.evaluate.own_prompts import Comparison, seen_by
from safear_edit.families.llamagen import LlamaGen
from safear_edit.pipeline.judged import Judged, image_name
from safear_edit.progress import silent
from safear_edit.spec.prompt_files import FilePrompt
from tests.evaluate.test_own_prompts import Bright

PROMPTS = (FilePrompt("a house", 1, "one"), FilePrompt('a <script>, "quoted"', 2, "../two"))


def made(out: Path, *, hide: bool = False) -> Comparison:
    model = LlamaGen.pico()
    with Judged.opened(out, hide=hide) as folder:
        seen = [seen_by(model, PROMPTS, Bright(), None, silent, keep=folder.keeping(side, PROMPTS)) for side in (0, 1)]
        found = Comparison(("base", "safe"), "bright", PROMPTS, (seen[0], seen[1]), hidden=hide)
        assert not out.exists(), "the folder appears whole"
        folder.publish(found)
    return found


def test_what_is_left(tmp_path: Path) -> None:
    out = tmp_path / "judged"
    found = made(out)
    rows = list(csv.DictReader((out / "judgements.csv").read_text().splitlines()))
    assert [row["prompt"] for row in rows] == [one.prompt for one in PROMPTS]
    said = {True: "found", False: "not found"}
    assert [row["said of safe"] for row in rows] == [said[bool(seen.present)] for seen in found.seen[1]]
    model = LlamaGen.pico()
    drawn = model.decode(model.generate(model.condition([PROMPTS[0].prompt]), [1]))[0].permute(1, 2, 0).numpy()
    for row in rows:
        assert (out / row["image of base"]).is_file() and (out / row["image of safe"]).is_file()
    kept = np.asarray(Image.open(out / rows[0]["image of base"])).astype(int)
    assert np.abs(kept - drawn).max() <= 1, "a batch of two rounds in another order"
    page = (out / "index.html").read_text()
    assert "<script>" not in page and "a &lt;script&gt;" in page and rows[1]["image of safe"] in page
    with pytest.raises(UsageError, match="one that exists"):
        made(out)
    assert [path.name for path in tmp_path.iterdir()] == ["judged"]


def test_two_calls_at_once_are_kept_apart(tmp_path: Path) -> None:
    """And one that fails leaves nothing."""
    out = tmp_path / "judged"
    with pytest.raises(KeyboardInterrupt), Judged.opened(out, hide=False) as folder:
        with pytest.raises(UsageError, match=r"judged: expected no other run on this output, got one at work; wait"):
            made(out)
        folder.keeping(0, PROMPTS)(0, np.zeros((4, 4, 3), np.uint8))
        assert (folder.work / image_name(0, PROMPTS[0])).is_file()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_images_of_a_category_are_blocks_and_its_prompts_withheld(tmp_path: Path) -> None:
    made(tmp_path / "plain")
    made(tmp_path / "hidden", hide=True)
    for name in ("judgements.csv", "index.html"):
        text = (tmp_path / "hidden" / name).read_text()
        assert PROMPTS[0].prompt not in text and "withheld; the prompt file has it under id one" in text
    name = image_name(0, PROMPTS[0])
    plain, hidden = (np.asarray(Image.open(tmp_path / one / name)) for one in ("plain", "hidden"))
    assert len(np.unique(hidden.reshape(-1, 3), axis=0)) <= 36 < len(np.unique(plain.reshape(-1, 3), axis=0))
