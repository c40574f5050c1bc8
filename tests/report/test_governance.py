"""The table of what rules ask: filled by what the report says, empty where a person has to speak, and no claim."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles, Signer
from safear_edit.report.governance import ITEMS, with_items
from safear_edit.report.html import render_html
from safear_edit.report.schema import Report
from safear_edit.report.sentences import signed_by
from tests.report.test_build import make_run

STATED = {
    "responsible": "Lab A",
    "intended_use": "tests only",
    "out_of_scope": "everything else",
    "evaluator": "Lab A",
    "independence": "another team",
    "reviewer": "Ada Example",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), governance=STATED)


@pytest.fixture(scope="module")
def report(root: Path) -> Report:
    return build_report(RunFiles.find(root))


def status(report: Report) -> dict[tuple[str, str], str]:
    return {(item.framework, item.item): item.status for item in report.governance.items}


def test_what_the_spec_says_fills_its_items_and_nothing_else(report: Report) -> None:
    silent = report.model_copy(
        update={
            "scope": report.scope.model_copy(update={"intended_use": "not stated", "out_of_scope": "not stated"}),
            "governance": report.governance.model_copy(update={"responsible": "not stated", "reviewer": "not stated"}),
        }
    )
    full, less = status(report), status(with_items(silent))
    changed = {key for key in full if full[key] != less[key]}
    assert {full[key] for key in changed} == {"filled"} and {less[key] for key in changed} == {"empty"}
    assert {item for _, item in changed} == {"1(a)", "2(g)", "1.1(a)", "1.1(b)", "GOVERN 2.1", "MAP 1.1", "A.3.2",
                                             "A.8.2", "A.9.4"}  # fmt: skip


def test_what_was_not_done_is_empty_and_what_no_report_can_hold_says_so(report: Report) -> None:
    found = status(report)
    assert found["EU AI Act, Annex XI", "2(2)"] == found["NIST AI RMF 1.0", "MEASURE 2.7"] == "empty", "no attack"
    assert found["NIST AI RMF 1.0", "MANAGE 1.1"] == "empty", "nobody can have approved before the page was made"
    assert found["EU AI Act, Annex IV", "9"] == "not applicable"
    assert len(found) == len(ITEMS)


def test_the_page_has_the_table_and_claims_nothing(report: Report, root: Path) -> None:
    page = render_html(report, root)
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert (
        "no claim of compliance" in text
        and "these texts ask for more" in text
        and "A.6.2.4 verification and validation" in text
        and "ISO/IEC 42001, Annex A" in text
    )
    assert page.count("? empty") == sum(item.status == "empty" for item in report.governance.items)


def test_approval_is_amber_until_somebody_signed(report: Report, root: Path) -> None:
    assert "? not approved when this page was made" in render_html(report, root)
    page = render_html(report, root, ["by Ada Example, board, 2030-01-02"])
    assert "✓ approved</span> by Ada Example, board" in page and "not approved when" not in page
    decision = page[page.index("MANAGE 1.1") :].partition("</tr>")[0]
    assert "filled" in decision and "Verdict: Approval" in decision, "the table knows what the first screen says"


def test_who_signs_and_what_that_shows() -> None:
    kept, thrown = (signed_by(Signer(key="ab" * 32, thrown_away=away)) for away in (False, True))
    assert "key abababababababab" in kept and "another way" in kept
    assert "not who made it" in thrown and "by nobody" in signed_by("none") and signed_by(None) == ""
