"""evidence.html: every scored pair with what the judge said, one script that the page's own policy names, and nothing
of a category to read or to see."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from safear_edit.errors import SpecError
from safear_edit.evaluate.outcomes import WITHHELD, Outcome, read_outcomes
from safear_edit.evaluate.scored_images import INDEX, KeptImage, kept, save_images
from safear_edit.report import html
from safear_edit.report.build import OWN_FILES, build_report
from safear_edit.report.evidence import RunFiles
from safear_edit.report.evidence_page import evidence_page
from safear_edit.report.html import render_html
from safear_edit.report.schema import Report
from safear_edit.report.tiles import Sheets
from tests.report.test_build import FLIPS, FOUND_AFTER, SIZES, make_run
from tests.report.test_html import HOSTILE, Links

PAIR = re.compile(r'<figure class="pair" ([^>]*)>')


def with_images(root: Path, *, hide: bool = False) -> Path:
    """The run in `root` with an image of one colour for each scored row."""
    colours = np.random.default_rng(0).integers(0, 256, (4000, 1, 1, 3)).astype(np.uint8)
    rows = [row for row in read_outcomes(root / "outcomes.jsonl") if row.phase == "score"]
    pixels = (np.broadcast_to(colours[i], (8, 8, 3)).copy() for i in range(len(rows)))
    hidden = (hide and row.expect == "absent" for row in rows)
    save_images(root / "images", map(_kept, rows, pixels, hidden))
    return root


def _kept(row: Outcome, pixels: NDArray[np.uint8], hidden: bool) -> KeptImage:
    return kept(row.id, row.model, pixels, hidden=hidden)


def page_of(root: Path) -> tuple[Report, str]:
    run = RunFiles.find(root)
    report = build_report(run)
    return report, evidence_page(report, run)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_images(make_run(tmp_path_factory.mktemp("run"), concept=f"Testpainter {HOSTILE}"))


@pytest.fixture(scope="module")
def made(root: Path) -> tuple[Report, str]:
    return page_of(root)


def test_every_scored_pair_is_there_with_its_judgement(made: tuple[Report, str]) -> None:
    pairs = [dict(re.findall(r'data-(\w+)="([^"]*)"', tag)) for tag in PAIR.findall(made[1])]
    assert Counter(pair["slice"] for pair in pairs) == SIZES
    for key, found in FOUND_AFTER.items():
        assert sum(pair["slice"] == key and pair["edited"] == "found" for pair in pairs) == found
    for key, (lost, gained) in FLIPS.items():
        changes = Counter(pair["change"] for pair in pairs if pair["slice"] == key)
        assert (changes["lost"], changes["gained"]) == (lost, gained)
    of_concept = Counter(pair["change"] for pair in pairs if pair["slice"] in FOUND_AFTER)
    asked = sum(SIZES[key] for key in FOUND_AFTER)
    assert of_concept == {"erased": asked - sum(FOUND_AFTER.values()), "same": sum(FOUND_AFTER.values())}


def test_it_fetches_nothing_and_runs_one_script_only(made: tuple[Report, str]) -> None:
    links = Links()
    links.feed(made[1])
    assert set(links.targets) == {"#pairs", "report.html"}
    assert links.tags.count("script") == 1 and HOSTILE not in made[1]
    script = re.search(r"<script>(.*?)</script>", made[1], re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in made[1] and "default-src 'none'" in made[1]
    assert not re.search(r"url\((?!data:image/webp)", made[1])


def test_the_report_leads_to_it_and_is_not_part_of_the_weights(made: tuple[Report, str], root: Path) -> None:
    report = made[0]
    assert report.evidence == "evidence.html" and report.evidence in OWN_FILES
    assert f"images/{INDEX}" in report.reproduce.inputs and "images/scored-000.webp" in report.reproduce.inputs
    page = render_html(report, root)
    assert 'href="evidence.html#slice=direct&amp;edited=found"' in page
    assert "change=lost" in page and "member=" in page


def test_a_report_without_kept_images_has_no_links(tmp_path: Path) -> None:
    root = make_run(tmp_path)
    report = build_report(RunFiles.find(root))
    assert not report.evidence and "evidence.html" not in render_html(report, root)
    assert "evidence" not in json.loads(report.to_json())


def test_a_categorys_prompts_are_withheld_and_its_images_marked(tmp_path: Path) -> None:
    root = with_images(make_run(tmp_path, kind="category"), hide=True)
    page = page_of(root)[1]
    assert not re.search(r"test prompt \d+ of (direct|paraphrase|template)", page)
    assert page.count(WITHHELD) == sum(SIZES[key] for key in FOUND_AFTER)
    assert page.count("model’s image, pixelated") == 2 * sum(SIZES[key] for key in FOUND_AFTER)


def test_a_missing_image_and_a_missing_sheet_are_refused(tmp_path: Path) -> None:
    root = with_images(make_run(tmp_path))
    index = root / "images" / INDEX
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[1:]))
    with pytest.raises(SpecError, match="an image of"):
        page_of(root)
    index.write_text("".join(lines))
    (root / "images" / "scored-001.webp").unlink()
    with pytest.raises(SpecError, match="scored-001"):
        page_of(root)


def test_a_sheet_that_names_one_model_of_a_pair_is_refused(tmp_path: Path) -> None:
    """Found by fuzzing: a prompt's id changed in the note beside a sheet ended in a traceback."""
    root = with_images(make_run(tmp_path / "run"))
    kept_images, note = Sheets.of(root / "images" / INDEX), tmp_path / "slice-direct.json"
    assert kept_images is not None
    note.write_text(json.dumps({"images": [{"prompt_id": "direct-0000", "model": "base", "selection": "random"}]}))
    with pytest.raises(SpecError, match=r"slice-direct\.json.*both models' image of every prompt"):
        list(html._figure_pairs(kept_images, note))
