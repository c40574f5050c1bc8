"""Rows of attacks: what `studies tables` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safear_edit.attacks.record import FILE, adjusted
from safear_edit.studies import attacks
from safear_edit.studies.__main__ import main as studies
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
    assert studies(["attacks", str(tmp_path / "none")]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_what_an_attack_alone_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, found in (("a", (("merge", 90), ("suffix", 30), ("prune", 0))), ("b", (("merge", 0), ("suffix", 30)))):
        (tmp_path / name).mkdir()
        broken = leaks("p4d", "white-box", 90, why="the base model breaks")
        made = record(*(leaks(attack, "white-box", k) for attack, k in found), broken)
        (tmp_path / name / FILE).write_text(made.model_dump_json())
    assert attacks.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    (tmp_path / "rows.jsonl").write_text(capsys.readouterr().out)
    assert attacks.main(["--alone", str(tmp_path / "rows.jsonl")]) == 0
    rows = {row["attack"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(rows) == ["suffix", "merge", "prune"]
    counts = {name: row["found more than its control"] for name, row in rows.items()}
    assert counts == {"suffix": {"k": 2, "n": 2}, "merge": {"k": 1, "n": 2}, "prune": {"k": 0, "n": 1}}
    assert (
        rows["suffix"]["alone on"] == "b (testpainter, f:v)" and rows["merge"]["alone on"] == rows["prune"]["on"] == ""
    )


def test_a_part_of_a_suite_is_corrected_for_what_it_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the counts of its rows as the run itself does; what lost or never had its p gets it back."""
    broken = leaks("p4d", "white-box", 90, why="the base model breaks")
    found = [leaks("merge", "white-box", 90), leaks("suffix", "white-box", 8), broken, leaks("relearn", "white-box", 5)]
    made = record(*adjusted(found))
    (tmp_path / FILE).write_text(made.model_dump_json())
    assert attacks.main([str(tmp_path), "--commit", "0567d9a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row.get("Holm over") for row in rows] == [3, 3, None, 3, None]
    alone = rows[0] | {"suite": "smoke", "p (Holm)": None, "Holm over": None, "result": "whatever"}
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, json.dumps(alone)]))
    assert attacks.main(["--holm", str(tmp_path / "rows.jsonl")]) == 0
    *again, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert again == rows and [list(row) for row in again] == [list(row) for row in rows]
    assert last["Holm over"] == 1 and last["p (Holm)"] < rows[0]["p (Holm)"]
    assert last["result"] == rows[0]["result"] == "recovers 90 points more than its control"
