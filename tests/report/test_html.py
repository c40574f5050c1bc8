"""The page: it fetches nothing, escapes everything, repeats byte for byte, and claims no more than was counted."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from safear_edit.errors import SpecError
from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles
from safear_edit.report.html import render_html
from safear_edit.report.schema import Report
from tests.report.test_build import make_run

HOSTILE = "<script>alert(1)</script>"
OVERCLAIMS = re.compile(r"\bsafe\b(?!-)|\bcompliant\b|\bremoved\b|\bguarantee", re.IGNORECASE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), concept=f"Testpainter {HOSTILE}")


@pytest.fixture(scope="module")
def report(root: Path) -> Report:
    return build_report(RunFiles.find(root))


@pytest.fixture(scope="module")
def page(report: Report, root: Path) -> str:
    return render_html(report, root)


class Links(HTMLParser):
    """Every attribute that can make a browser fetch, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        wanted = ("href", "src", "srcset", "xlink:href", "action", "data", "poster")
        self.targets += [value or "" for name, value in attrs if name in wanted]


def test_it_fetches_nothing(page: str) -> None:
    links = Links()
    links.feed(page)
    assert links.targets and all(target.startswith(("#", "data:image/png;base64,")) for target in links.targets)
    assert not {"script", "iframe", "link", "object", "embed", "base"} & set(links.tags)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"url\((?!#|\"#|'#)|@import", page)


def test_everything_is_escaped(page: str) -> None:
    assert HOSTILE not in page
    assert "Testpainter &lt;script&gt;" in page


def test_same_report_same_bytes(page: str, report: Report, root: Path) -> None:
    assert render_html(report, root) == page


def test_no_overclaim(page: str) -> None:
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).replace("safear-edit", "")
    assert not OVERCLAIMS.search(text)
    assert "not detected in 248 of 250" in text


def test_what_was_not_tested_comes_before_the_results(page: str) -> None:
    order = ["verdict", "not-tested", "people", "identity", "erasure", "attacks", "preservation", "images", "repeat"]
    places = [page.index(f'<section id="{name}">') for name in order]
    assert places == sorted(places)


def test_the_chart_and_the_images_are_inside(page: str) -> None:
    assert page.count("<svg ") == 3 and "<metadata>" not in page
    assert page.count('src="data:image/png;base64,') == 1


def test_people_and_dropped_pairs_are_on_the_page(page: str, tmp_path: Path) -> None:
    assert "112 kept of 130; 15 unsafe caption, concept not drawn; 3 the judge cannot tell" in page
    assert '<tr><th scope="row">Responsible</th><td><span class="empty">not stated</span></td></tr>' in page
    root = make_run(tmp_path, governance={"responsible": f"Lab {HOSTILE}", "intended_use": "tests only"})
    stated = render_html(build_report(RunFiles.find(root)), root)
    assert "<td>Lab &lt;script&gt;" in stated and '<th scope="row">Intended use</th><td>tests only</td>' in stated


def test_no_prompt_of_a_category_is_on_the_page(page: str, tmp_path: Path) -> None:
    asked = re.compile(r"test prompt \d+ of (direct|paraphrase|template)")
    assert asked.search(page)
    root = make_run(tmp_path, kind="category")
    hidden = render_html(build_report(RunFiles.find(root)), root)
    assert not asked.search(hidden) and "withheld; recipe.json has it" in hidden and "direct-0008" in hidden


def test_a_decision_is_words_and_not_colour_alone(page: str) -> None:
    assert "✓ met" in page and "✓ The edit meets every criterion that was fixed beforehand" in page


def test_a_swapped_picture_is_refused(report: Report, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "random.png").write_bytes(b"\x89PNG\r\n\x1a\nother")
    with pytest.raises(SpecError, match="sha256"):
        render_html(report, tmp_path)
    with pytest.raises(SpecError, match=r"random\.png"):
        render_html(report, tmp_path / "nowhere")
