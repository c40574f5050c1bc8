"""What each paper claims, and what was measured here: a table per paper, made from the rows of examples/results.

    python -m safear_edit.studies papers            writes paper-NAME.jsonl beside the rows it reads
    python -m safear_edit.studies papers --check    writes nothing and fails if one is out of date

A claim names the cells that speak about it (file, row, column), and what must be true of them for it to hold; both
figures and finding come from the rows, so a new measurement changes the finding. A claim without cells can't be tested
here, and says why. What holds on a mini says nothing yet about published weights; what doesn't may be the mini's fault.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safear_edit.errors import UsageError
from safear_edit.evaluate.verdict import WORST_FIRST
from safear_edit.files.atomic import write_atomic
from safear_edit.studies.paper_claims import PAPERS, Cell, Claim, Paper
from safear_edit.studies.tables import FOLDER, Row, Table, shown

COMMAND = "python -m safear_edit.studies papers"
SUBJECTS = ("model", "concept", "method")
"""Columns that say what a row is about."""
HOLDS, FAILS, UNTESTED = "holds", "doesn't hold", "not tested"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, or tell by 1 that one is out of date. UsageError for rows that lack what a claim reads."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a table is out of date")
    chosen = parser.parse_args(arguments)
    made = {chosen.folder / f"paper-{paper.name}.jsonl": table(paper, chosen.folder) for paper in PAPERS}
    old = [path for path, text in made.items() if not path.is_file() or path.read_text() != text]
    if chosen.check:
        for path in old:
            print(f"{path} is out of date: run {COMMAND}", file=sys.stderr)
        return 1 if old else 0
    for path in old:
        write_atomic(path, made[path])
    return 0


def table(paper: Paper, folder: Path) -> str:
    """The paper's table as JSON lines: its head, and a row per claim."""
    head = {"title": f"{paper.title}: its claims, and what was measured here", "note": paper.note}
    return "".join(
        json.dumps(line, ensure_ascii=False) + "\n" for line in (head, *(row(c, folder) for c in paper.claims))
    )


def row(claim: Claim, folder: Path) -> dict[str, Any]:
    """What is said of one claim; UsageError for cells that aren't there, or of which some have more seeds."""
    found = {words: cell_of(cell, folder) for words, cell in claim.cells.items()}
    finding = UNTESTED
    if claim.holds is not None:
        finding = HOLDS if claim.holds({words: one.value for words, one in found.items()}) else FAILS
    dates = [one.origin.date for one in found.values() if one.origin.date]
    if len(seeds := {one.seeds for one in found.values() if one.seeds}) > 1:
        got = " and ".join(sorted(f"{len(some)}" for some in seeds))
        raise UsageError(
            str(folder), f"the same seeds for each figure of {claim.text!r}", got, "measure the others too"
        )
    told = f"; seeds {', '.join(map(str, sorted(*seeds)))} together" if any(len(some) > 1 for some in seeds) else ""
    return {
        "claim": claim.text,
        "finding": finding,
        "measured here": "; ".join(f"{words}: {shown(one.value)}" for words, one in found.items()) + told,
        "why, or how far": claim.why,
        "from": ", ".join(dict.fromkeys(f"{cell.file}.jsonl" for cell in claim.cells.values())),
        "command": COMMAND,
        "commit": None,
        "date": max(dates, default=None),
    }


@dataclass(frozen=True)
class Found:
    """A cell's figure: the file's last row that has it, what the last row of each seed gave together, and those seeds
    (none where rows have no such column)."""

    origin: Row
    value: Any
    seeds: frozenset[int]


def cell_of(cell: Cell, folder: Path) -> Found:
    """What the file says. UsageError for no row, or for rows of several methods, concepts or models."""
    path = folder / f"{cell.file}.jsonl"
    rows = Table.read(path).rows if path.is_file() else ()
    fitting = [one for one in rows if all(one.cells.get(name) == value for name, value in cell.where.items())]
    by_seed = {one.cells.get("seed"): one for one in fitting}
    values = [one.cells.get(cell.column) for one in by_seed.values()]
    if not values or None in values:
        raise UsageError(str(path), f"a row {dict(cell.where)} with {cell.column!r}", "none", "mend paper_claims.py")
    for name in SUBJECTS:
        if len(said := {str(one.cells.get(name)) for one in fitting}) > 1:
            got = f"{name} {' and '.join(sorted(said))}"
            raise UsageError(str(path), f"rows {dict(cell.where)} of one subject", got, "mend paper_claims.py")
    return Found(fitting[-1], together(values), frozenset(seed for seed in by_seed if seed is not None))


FLIPS = re.compile(r"-(\d+) \+(\d+) of (\d+)")
"""Images lost and gained, of how many."""


def together(values: Sequence[Any]) -> Any:
    """What several seeds gave: counts added, other numbers averaged, a verdict that all of them have; ValueError for
    what is none of these."""
    first, *others = values
    if all(other == first for other in others) and (not others or first in WORST_FIRST):
        return first
    match first:
        case {"k": _, "n": _}:
            return {part: sum(value[part] for value in values) for part in ("k", "n")}
        case str():
            found = [FLIPS.fullmatch(value) for value in values]
            counts = [[int(count) for count in one.groups()] for one in found if one]
            if len(counts) == len(values):
                return "-{} +{} of {}".format(*(sum(column) for column in zip(*counts, strict=True)))
        case int() | float():
            return round(sum(values) / len(values), 3)
    raise ValueError(f"{values} can't be put together")
