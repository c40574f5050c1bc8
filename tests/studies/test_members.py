"""The study of members: a release's report becomes one row, and what a release has not is left empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from safear_edit.studies import members
from safear_edit.studies.__main__ import main as studies
from tests.report.test_build import _flipped, built


def test_a_row_says_what_was_lost_and_who_paid(tmp_path: Path) -> None:
    row = members.row(built(tmp_path / "run", change=_flipped("test-styles", 12, 1)), seed=3)
    assert row["seed"] == 3 and row["method"] == "`testmethod`" and row["verdict"] in ("FAIL", "INCONCLUSIVE", "PASS")
    assert row["by name"]["k"] <= row["by name"]["n"] > 0 and "held-out names" in row
    assert "test-styles -12 +1 of " in row["lost and gained"] and {"CIR", "absCIR"} <= row.keys()
    assert row["worst member"] is None or " in test-" in row["worst member"]


def test_a_folder_without_a_report_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert studies(["members", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "report.json" in error
