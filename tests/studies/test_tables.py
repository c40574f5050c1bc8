"""The page of measured tables: up to date, every row with its origin, and each kind of cell as it should look."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from safear_edit.errors import SpecError, UsageError
from safear_edit.studies.__main__ import names
from safear_edit.studies.tables import FOLDER, PAGE, Table, main, page, shown
from tests import ROOT

RESULTS = ROOT / FOLDER
MADE = {"command": "safear-edit ls models", "commit": "0123abc", "date": "2026-11-29"}


def _table(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "one.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_the_page_is_up_to_date() -> None:
    assert (RESULTS / PAGE).read_text() == page(RESULTS), "run python -m safear_edit.studies tables"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_table_has_a_title_and_rows(path: Path) -> None:
    table = Table.read(path)
    assert table.head.title != path.stem and table.rows
    assert all(row.cells for row in table.rows)
    assert set(table.head.signed) <= set(table.columns)
    assert all((RESULTS.parent / name).is_file() for name in table.head.images)


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (None, False, ""),
        ({"k": 3, "n": 48}, False, "3 of 48"),
        ({"mean": -3.7, "from": -4, "to": 2}, True, "-3.7 (-4 to +2)"),
        ({"from": 0.61, "to": 0.67}, False, "0.61 to 0.67"),
        ({"drop": 2.5, "at most": 4.4}, False, "2.5 (4.4)"),
        (1.0, True, "+1.0"),
        (0, True, "0"),
        (100, False, "100"),
        ("a | b", False, "a \\| b"),
    ],
)
def test_cells(value: Any, signed: bool, text: str) -> None:
    assert shown(value, signed) == text


def test_rows_of_one_run_share_its_number(tmp_path: Path) -> None:
    other = {**MADE, "command": None, "commit": None, "date": None}
    _table(tmp_path, {"title": "T"}, {"a": 1, **MADE}, {"b": 2, **MADE}, {"a": 3, **other})
    text = page(tmp_path)
    assert "| a | b | run |" in text
    assert "| 1 |  | 1 |" in text and "|  | 2 | 1 |" in text and "| 3 |  | 2 |" in text
    assert "1. `safear-edit ls models`; 0123abc, 2026-11-29" in text
    assert "2. command not recorded; commit not recorded, date not recorded" in text


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"a": 1, "command": "x", "commit": "0123abc"}, "one.jsonl:2 date"),
        ({"a": 1, **MADE, "commit": "main"}, "one.jsonl:2 commit"),
        ({"a": 1, **MADE, "date": "yesterday"}, "one.jsonl:2 date"),
    ],
)
def test_a_row_says_where_it_comes_from(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = _table(tmp_path, {"title": "T"}, row)
    with pytest.raises(SpecError, match=says):
        Table.read(path)


def test_the_studies_that_rows_name_exist() -> None:
    named = {n for path in RESULTS.glob("*.jsonl") for n in re.findall(r"safear_edit\.studies (\w+)", path.read_text())}
    assert named and named <= set(names())


def test_a_folder_without_tables(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder with tables"):
        page(tmp_path)


def test_check_tells_and_the_command_mends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _table(tmp_path, {"title": "T"}, {"a": 1, **MADE})
    assert main(["--folder", str(tmp_path), "--check"]) == 1
    assert "out of date" in capsys.readouterr().err and not (tmp_path / PAGE).exists()
    assert main(["--folder", str(tmp_path)]) == 0
    assert main(["--folder", str(tmp_path), "--check"]) == 0
