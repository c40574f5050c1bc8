"""Rows of attacks: what `studies tables` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safear_edit.attacks.record import FILE
from safear_edit.studies import attacks
from safear_edit.studies.tables import Table, section
from tests.report.test_attacks import leaks, record


def test_rows_become_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = record(leaks("spelling", "black-box", 0), leaks("relearn", "white-box", 80))
    (tmp_path / FILE).write_text(found.model_dump_json())
    assert attacks.main([str(tmp_path), "--label", "VCE", "--commit", "0567d9a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["attack"] for row in rows] == ["spelling", "relearn", "relearn, LoRA, 8 images"]
    assert rows[1]["edited"] == {"k": 80, "n": 100} and rows[1]["more than the control, points"]["mean"] == 80
    assert rows[2]["edited"] == "0: 0/100, 5: 80/100" and rows[2]["result"].startswith("30% of images after 2 steps")
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert "80 of 100" in section(Table.read(tmp_path / "rows.jsonl"))
    assert attacks.main([str(tmp_path / "none")]) == 2 and capsys.readouterr().err.count("\n") == 1
