"""The measured tables of examples/results as one page: README.md there, made from the rows.

A table is one file of JSON lines. The first line may be a head, {title, note, signed: columns of changes, shown with
their sign, images}; each other line is a row: its columns, and `command`, `commit` and `date` that made it (`commit` is
the one in which it was recorded; null where nobody wrote it down). A cell is text, a number, or one of
    {k, n}              "k of n"
    {mean, from, to}    mean and range over seeds, or a figure and its interval
    {from, to}          a range
    {drop, at most}     a drop and its upper 95 % bound
`python -m safear_edit.studies tables` writes the page; with `--check` it writes nothing and fails if it is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safear_edit.errors import SpecError, UsageError
from safear_edit.files.atomic import write_atomic
from safear_edit.files.strict import parse_json

FOLDER = Path("examples/results")
PAGE = "README.md"
M = TypeVar("M", bound=BaseModel)
INTRODUCTION = """# What was measured

Made by `python -m safear_edit.studies tables` from the files beside it; edit those. The embedded minis draw 40×40
images of a small rendered world: see "Limits" in the [README](../../README.md) for what these numbers say about
published models. `run` points to the command that made a row, the commit that recorded it, and its date."""


class Head(BaseModel):
    """What a table is about; `signed` names the columns that hold changes, `images` files in the folder above."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    note: str = ""
    signed: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


class Row(BaseModel):
    """How a row was made, and its columns (`model_extra`)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    command: str | None
    commit: str | None = Field(pattern=r"^[0-9a-f]{7,40}$")
    date: str | None = Field(pattern=r"^\d{4}-\d\d-\d\d$")

    @property
    def cells(self) -> dict[str, Any]:
        """The measured columns, in the file's order."""
        return dict(self.model_extra or {})

    @property
    def made(self) -> str:
        """The run that the row came from, in words."""
        how = f"`{self.command}`" if self.command else "command not recorded"
        return f"{how}; {self.commit or 'commit not recorded'}, {self.date or 'date not recorded'}"


@dataclass(frozen=True)
class Table:
    """One file of results."""

    name: str
    head: Head
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, path: Path) -> Table:
        """SpecError with file and line for a row that lacks its origin or isn't one."""
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        documents = [parse_json(line, f"{path}:{number}").data for number, line in enumerate(lines, 1)]
        headed = bool(documents) and isinstance(documents[0], dict) and "title" in documents[0]
        head = _checked(Head, documents[0], f"{path}:1") if headed else Head(title=path.stem)
        first = 1 if headed else 0
        rows = [_checked(Row, row, f"{path}:{number + 1}") for number, row in enumerate(documents) if number >= first]
        return cls(path.stem, head, tuple(rows))

    @property
    def columns(self) -> list[str]:
        """Every column that a row has, in the order of appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row.cells))


def _checked(model: type[M], data: Any, place: str) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{place} {field}".strip(), "a table's row", first["msg"], "see studies/tables.py") from None


def shown(value: Any, signed: bool = False) -> str:
    """One cell as the page shows it."""
    match value:
        case None:
            return ""
        case {"k": k, "n": n}:
            return f"{k} of {n}"
        case {"mean": mean, "from": low, "to": high}:
            return f"{shown(mean, signed)} ({shown(low, signed)} to {shown(high, signed)})"
        case {"from": low, "to": high}:
            return f"{shown(low, signed)} to {shown(high, signed)}"
        case {"drop": drop, "at most": bound}:
            return f"{drop} ({bound})"
        case int() | float() if signed and value:
            return f"{value:+}"
        case _:
            return str(value).replace("|", "\\|")


def section(table: Table) -> str:
    """Heading, note, table, and the runs that its last column counts."""
    runs = list(dict.fromkeys(row.made for row in table.rows))
    columns = table.columns
    lines = [[*columns, "run"], ["---"] * (len(columns) + 1)]
    for row in table.rows:
        cells = [shown(row.cells.get(key), key in table.head.signed) for key in columns]
        lines.append([*cells, str(runs.index(row.made) + 1)])
    parts = [
        f"## {table.head.title}",
        table.head.note,
        "\n".join(f"| {' | '.join(cells)} |" for cells in lines),
        "\n\n".join(f"![{Path(name).stem}](../{name})" for name in table.head.images),
        "\n".join(f"{number}. {made}" for number, made in enumerate(runs, 1)),
        f"Rows: [{table.name}.jsonl]({table.name}.jsonl)",
    ]
    return "\n\n".join(part for part in parts if part)


def page(folder: Path) -> str:
    """The whole page; same files, same bytes. UsageError for a folder without tables."""
    tables = [Table.read(path) for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stem)]
    if not tables:
        raise UsageError(str(folder), "a folder with tables (*.jsonl)", "none", "name it by --folder")
    contents = "\n".join(f"* [{table.head.title}](#{_anchor(table.head.title)})" for table in tables)
    return "\n\n".join([INTRODUCTION, contents, *map(section, tables)]) + "\n"


def _anchor(title: str) -> str:
    """The name that Markdown pages give a heading: lower case, words joined by dashes, no punctuation."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or tell by 1 that it is out of date."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies tables", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is out of date")
    chosen = parser.parse_args(arguments)
    text = page(chosen.folder)
    if not chosen.check:
        write_atomic(chosen.folder / PAGE, text)
        return 0
    current = chosen.folder / PAGE
    if current.is_file() and current.read_text() == text:
        return 0
    print(f"{current} is out of date: run python -m safear_edit.studies tables", file=sys.stderr)
    return 1
