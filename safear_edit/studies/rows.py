"""The rows of a study, one JSON object a line: what is measured stays, so a killed study goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safear_edit.errors import UsageError
from safear_edit.files.atomic import write_atomic
from safear_edit.files.strict import parse_json

ROWS = "rows.jsonl"
Row = dict[str, Any]


def read_rows(path: Path, **told: object) -> list[Row]:
    """The rows that are there, none for no file; UsageError for one that doesn't say of itself what is `told`."""
    if not path.exists():
        return []
    rows = [parse_json(line, f"{path}:{i}").data for i, line in enumerate(path.read_text().splitlines(), 1)]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or any(row.get(key) != value for key, value in told.items()):
            fix = "give another folder, or delete the file"
            raise UsageError(f"{path}:{number}", "a row of this study with these settings", "another", fix)
    return rows


def made(command: str, commit: str | None) -> Row:
    """How rows that are made today came about, as `studies tables` wants it; commit: in which they are recorded."""
    return {"command": command, "commit": commit, "date": datetime.now(UTC).date().isoformat()}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """All rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
