"""What attacks found on several releases, as rows for a table of examples/results.

    python -m safear_edit.studies attacks FOLDER… --commit 0567d9a > rows.jsonl
    python -m safear_edit.studies attacks --alone rows.jsonl… > alone.jsonl
    python -m safear_edit.studies attacks --holm rows.jsonl > again.jsonl

FOLDER: what `safear-edit attack --out FOLDER` wrote. One row per attack and release, and one per curve of an attack
that learns. A run that was asked for a part of a suite corrects its p for that part alone: the column "Holm over" says
for how many attacks. --alone: of such rows, what every attack found that no other did. --holm: the same rows with both
columns computed from their counts; what has release, suite, command and commit in common is one run.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safear_edit.attacks.counts import Count
from safear_edit.attacks.record import FILE, NO_MORE, Attacks, Leaks, recovered
from safear_edit.evaluate import stats
from safear_edit.files.records import read_record
from safear_edit.studies.rows import made
from safear_edit.studies.tables import Row, Table

MORE, P_HOLM, OVER = "more than the control, points", "p (Holm)", "Holm over"
"""Columns; the last: for how many attacks of its run a p is corrected."""
UNREAD = "not interpretable"
"""How the result of such a row begins (`Leaks.sentence`)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows. UsageError for a folder without a record."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies attacks", description=__doc__)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="with --alone: files of rows")
    parser.add_argument("--alone", action="store_true", help="what each attack found that no other did")
    parser.add_argument("--holm", action="store_true", help="the rows of a file with p corrected within each run")
    parser.add_argument("--commit", help="in which the rows are recorded", default=None)
    parser.add_argument(
        "--label", action="append", default=[], help="what each release is, in order (default: its name)"
    )
    chosen = parser.parse_args(arguments)
    if len(chosen.label) > len(chosen.folders):
        parser.error(f"{len(chosen.label)} --label for {len(chosen.folders)} folders")
    labels = [*chosen.label, *(folder.name for folder in chosen.folders[len(chosen.label) :])]
    if chosen.alone:
        tables = [Table.read(path) for path in chosen.folders]
        command = f"python -m safear_edit.studies attacks --alone {' '.join(path.name for path in chosen.folders)}"
        for row in alone(row.cells for table in tables for row in table.rows):
            print(json.dumps(row | made(command, chosen.commit), ensure_ascii=False))
        return 0
    if chosen.holm:
        for path in chosen.folders:
            for row in corrected(Table.read(path).rows):
                print(json.dumps(row, ensure_ascii=False))
        return 0
    for folder, label in zip(chosen.folders, labels, strict=True):
        record = read_record(Attacks, folder / FILE, "attack the release first")
        for row in rows(record, label):
            print(json.dumps(row | _attacked(record, chosen.commit), ensure_ascii=False))
    return 0


def rows(record: Attacks, label: str) -> Iterator[dict[str, Any]]:
    """A row per attack, then one per curve."""
    about = {"model": record.model, "concept": record.concept, "release": label, "suite": record.tier}
    over = sum(leaks.p_holm is not None for leaks in record.found)
    for leaks in record.found:
        yield about | _attack(leaks, over)
    for leaks in record.found:
        for curve in leaks.curves:
            steps = ", ".join(f"{mark.steps}: {mark.edited.found}/{mark.edited.n}" for mark in curve.marks)
            taught = ", ".join(f"{m.steps}: {m.control.found}/{m.control.n}" for m in curve.marks if m.control)
            what = {"attack": f"{leaks.attack}, {curve.name}", "edited": steps, "control": taught}
            yield about | what | {"result": curve.sentence()}


def _attack(leaks: Leaks, over: int) -> dict[str, Any]:
    excess = leaks.excess
    return {
        "attack": leaks.attack,
        "base": _cell(leaks.base),
        "edited": _cell(leaks.edited),
        "control": _cell(leaks.control) if leaks.control else "none",
        MORE: None
        if excess is None
        else {"mean": _points(excess.estimate), "from": _points(excess.low), "to": _points(excess.high)},
        P_HOLM: None if leaks.p_holm is None else _rounded(leaks.p_holm),
        OVER: None if leaks.p_holm is None else over,
        "seconds": round(leaks.cost.seconds),
        "result": leaks.sentence(),
    } | ({"images drawn before": leaks.cost.reused} if leaks.cost.reused else {})


def corrected(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """The rows with Fisher's one-sided p of each attack, corrected over those of its run that can be interpreted, and
    with the result that follows. A p that was recorded otherwise stays: its run had other attacks, without a row."""
    runs: dict[tuple[Any, ...], list[int]] = {}
    for number, row in enumerate(rows):
        if isinstance(row.cells["control"], dict) and not row.cells["result"].startswith(UNREAD):
            about = (row.cells[key] for key in ("model", "concept", "release", "suite"))
            runs.setdefault((*about, row.command, row.commit), []).append(number)
    found: dict[int, dict[str, Any]] = {}
    for numbers in runs.values():
        counts = [(rows[number].cells["edited"], rows[number].cells["control"]) for number in numbers]
        p_holm = stats.holm([stats.fisher_p(own["k"], own["n"], other["k"], other["n"]) for own, other in counts])
        for number, p in zip(numbers, p_holm, strict=True):
            points = rows[number].cells[MORE]["mean"]
            result = recovered(points) if p <= stats.ALPHA else NO_MORE
            if rows[number].cells[P_HOLM] in (None, _rounded(p)):
                found[number] = {P_HOLM: _rounded(p), OVER: len(numbers), "result": result}
    for number, row in enumerate(rows):
        cells = {key: value for key, value in row.cells.items() if key != OVER}
        if P_HOLM in cells:
            at = list(cells).index(P_HOLM) + 1
            cells = dict([*list(cells.items())[:at], (OVER, None), *list(cells.items())[at:]])
        yield cells | found.get(number, {}) | {"command": row.command, "commit": row.commit, "date": row.date}


def alone(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per attack: on how many releases it was tried, on how many it found more than its control (the interval
    of the excess, uncorrected, lies above 0), and on which of these no other attack did. Left out: rows of curves, and
    those that can't be interpreted.
    """
    found: dict[str, dict[str, bool]] = {}
    for row in rows:
        if isinstance(row.get("edited"), dict) and not row["result"].startswith(UNREAD):
            release = f"{row['release']} ({row['concept']}, {row['model']})"
            excess, tried = row.get(MORE), found.setdefault(row["attack"], {})
            tried[release] = tried.get(release, False) or (excess or {"from": 0})["from"] > 0
    by = Counter(release for tried in found.values() for release, more in tried.items() if more)
    for attack, tried in sorted(found.items(), key=lambda one: (-sum(one[1].values()), one[0])):
        more = [release for release, brought in tried.items() if brought]
        yield {
            "attack": attack,
            "found more than its control": {"k": len(more), "n": len(tried)},
            "on": "; ".join(more),
            "alone on": "; ".join(release for release in more if by[release] == 1),
        }


def _cell(count: Count) -> dict[str, int]:
    return {"k": count.found, "n": count.n}


def _rounded(p: float) -> float:
    return float(f"{p:.2g}")


def _points(share: float) -> int:
    return round(100 * share)


def _attacked(record: Attacks, commit: str | None) -> dict[str, Any]:
    return made(f"safear-edit attack DIR --tier {record.tier}", commit)
