"""The pages in a browser: no sideways scrolling, nothing serious for axe-core, links that keep what they say, print.

Skipped where there is no Chromium (apt install chromium) or no axe-playwright-python (extra `test`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safear_edit.evaluate.outcomes import read_outcomes
from safear_edit.evaluate.scored_images import kept, save_images
from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles
from safear_edit.report.evidence_page import evidence_page
from safear_edit.report.html import render_html
from tests.report.test_build import make_run

axe_core = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
PHONE = {"width": 390, "height": 844}
PRINTED_PAGES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both pages of a run with one failing slice, its images kept."""
    root = make_run(tmp_path_factory.mktemp("run"))
    rng = np.random.default_rng(0)
    rows = [row for row in read_outcomes(root / "outcomes.jsonl") if row.phase == "score"]
    colours = rng.integers(0, 256, (len(rows), 1, 1, 3)).astype(np.uint8)
    tiles = np.broadcast_to(colours, (len(rows), 8, 8, 3))
    save_images(root / "images", (kept(row.id, row.model, tiles[i].copy(), hidden=False) for i, row in enumerate(rows)))
    machine = json.loads((root / "environment.json").read_text())
    signer = {"key": "ab" * 32, "thrown_away": True}
    (root / "environment.json").write_text(json.dumps({**machine, "signer": signer}))
    run = RunFiles.find(root)
    report = build_report(run)
    (root / "report.html").write_text(render_html(report, root))
    (root / "evidence.html").write_text(evidence_page(report, run))
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


EVIDENCE = "evidence.html#slice=direct&edited=found"


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        ("light", "report.html"),
        ("dark", "report.html"),
        ("light", EVIDENCE),
        pytest.param("dark", EVIDENCE, marks=pytest.mark.soak),
    ],
)
def test_a_phone_scrolls_down_only_and_axe_finds_nothing_serious(
    browser: Any, folder: Path, name: str, scheme: str
) -> None:
    page = browser.new_page(viewport=PHONE, color_scheme=scheme)
    page.goto(f"file://{folder}/{name}")
    page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
    found = axe_core.Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    told = [(one["id"], one["impact"], [node["html"][:120] for node in one["nodes"][:3]]) for one in serious]
    page.close()
    assert not told


def test_every_number_with_a_link_is_the_number_of_pairs_behind_it(browser: Any, folder: Path) -> None:
    text = (folder / "report.html").read_text()
    links = re.findall(r'<a href="evidence\.html#([^"]+)">(\d+)( / \d+)?', text)
    assert len(links) > 20
    page = browser.new_page()
    page.goto(f"file://{folder}/evidence.html")
    for filters, number, of in links:
        if of and "=" in filters and "edited" not in filters and "base" not in filters:
            continue  # "not detected 248 of 250" leads to all 250, which are shown with what was found
        page.goto(f"file://{folder}/evidence.html#{filters.replace('&amp;', '&')}")
        page.wait_for_function("() => document.querySelector('#count').textContent.includes(' of ')")
        assert page.text_content("#count").split()[0] == number, filters
    page.close()


def test_folded_parts_are_open_in_print_and_it_is_short(browser: Any, folder: Path) -> None:
    page = browser.new_page()
    page.goto(f"file://{folder}/report.html")
    printed = page.pdf(prefer_css_page_size=True)
    page.emulate_media(media="print")
    assert page.evaluate("[...document.querySelectorAll('details table')].every((one) => one.offsetHeight > 0)")
    page.close()
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= PRINTED_PAGES
