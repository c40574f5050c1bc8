"""What a model did on fixed prompts and seeds, kept as a small text file that a person reviews before it binds anyone.

A baseline is accepted once (`safear-edit baseline accept DIR`), committed, and compared with by every `safear-edit
check` after that; nothing else ever writes it. It holds the promise (floors and margins: whoever changes a model can't
loosen them without a line in a diff), digests of all that must be equal for a comparison to mean anything (prompts,
judges, sampler), and one line per image:

    concept <tab> slice <tab> expect <tab> seed <tab> found|absent|unclear <tab> score <tab> id <tab> prompt

Same folder, same bytes: no times, no paths, the recipe's order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.errors import SpecError, UsageError
from safear_edit.files.atomic import write_atomic
from safear_edit.gate.record import WORDS, Policy, Record, Row, Suite, _pairs
from safear_edit.report.criteria import FLOOR

if TYPE_CHECKING:
    pass


MAGIC = "safear-edit baseline 1"
REMARK = (
    "# Written by `safear-edit baseline accept`, read by `safear-edit check`. Whoever changes it changes a promise."
)
COLUMNS = ("concept", "slice", "expect", "seed", "outcome", "score", "id", "prompt")
LARGEST = 16 << 20
"""Bytes of a baseline that are read at most; 5000 images make one megabyte."""
AGAIN = "accept a new baseline (`safear-edit baseline accept`) and have it reviewed"


@dataclass(frozen=True)
class Baseline:
    """A record that was accepted, with what was promised then and why."""

    record: Record
    policy: Policy
    suite: str
    reason: str

    def to_text(self) -> str:
        """The file. UsageError for a prompt or reason that would break its lines."""
        record = self.record
        head = [
            ("reason", self.reason),
            ("suite", self.suite),
            ("policy", _pairs(vars(self.policy))),
            ("model", record.model, record.digest),
            ("base", record.base),
            ("machine", record.machine),
            *(("concept", name, _pairs({"floor": floor}), record.sampler[name])
              for name, floor in record.floors.items()),
            *(("judge", name, digest) for name, digest in sorted(record.judges.items())),
            *(("likelihood", name, f"{value:.6f}") for name, value in sorted(record.figures.items())),
            ("prompts", record.prompts),
        ]  # fmt: skip
        rows = [tuple(getattr(row, name) for name in COLUMNS) for row in record.rows]
        lines = ["\t".join(map(_one_line, line)) for line in (*head, COLUMNS, *rows)]
        return "\n".join([MAGIC, REMARK, *lines, ""])

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomic(path, self.to_text())


def accept(record: Record, suite: Suite, reason: str, policy: Policy | None = None) -> Baseline:
    """The first prompts of each slice, as many as the suite asks for (or all there are), as a baseline.

    The recipe's order decides, as in the evaluation, so nobody picks. UsageError without a reason.
    """
    if not reason.strip():
        raise UsageError("--reason", "why this becomes the measure of what follows", "nothing", "write one sentence")
    record = replace(record, figures={} if record.doubts else record.figures, doubts=(), in_doubt={})
    return Baseline(record.first(suite), policy or suite.policy, suite.name, reason.strip())


# -- reading a baseline -----------------------------------------------------------------------------------------------


def read_baseline(path: Path) -> Baseline:
    """What `save` wrote; SpecError with file and line for anything else."""
    try:
        if path.stat().st_size > LARGEST:
            raise SpecError(str(path), f"at most {LARGEST >> 20} MiB", "a larger file", AGAIN)
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise SpecError(str(path), "a baseline", error.strerror or "an error", "check the path") from None
    except UnicodeDecodeError:
        raise SpecError(str(path), "text in UTF-8", "other bytes", AGAIN) from None
    if lines[0] != MAGIC:
        raise SpecError(f"{path}:1", repr(MAGIC), repr(lines[0][:40]), AGAIN)
    cells = [(n, line.split("\t")) for n, line in enumerate(lines, 1) if line and not line.startswith("#")][1:]
    start = next((i for i, (_, line) in enumerate(cells) if tuple(line) == COLUMNS), None)
    if start is None:
        raise SpecError(str(path), f"the line {' '.join(COLUMNS)}", "none", AGAIN)
    rows = tuple(_row(line, f"{path}:{number}") for number, line in cells[start + 1 :])
    return _assembled(_Head(str(path), cells[:start]), rows)


def _row(line: Sequence[str], where: str) -> Row:
    cells = dict(zip(COLUMNS, line, strict=False))
    fits = len(line) == len(COLUMNS) and cells["expect"] in ("absent", "present") and cells["seed"].isdecimal()
    if not fits or cells["outcome"] not in WORDS.values():
        raise SpecError(where, f"{len(COLUMNS)} columns: {' '.join(COLUMNS)}", " ".join(line)[:60], AGAIN)
    return Row(**cells)  # type: ignore[arg-type]


class _Head:
    """The lines above the table, by their first word; every one that is asked for must be there and make sense."""

    def __init__(self, path: str, lines: Sequence[tuple[int, list[str]]]) -> None:
        self.path, self.lines = path, lines

    def all(self, name: str, cells: int) -> list[list[str]]:
        found = [(number, line[1:]) for number, line in self.lines if line[0] == name]
        for number, line in found:
            if len(line) != cells:
                raise SpecError(f"{self.path}:{number}", f"{name} with {cells} cells", str(len(line)), AGAIN)
        return [line for _, line in found]

    def one(self, name: str, cells: int = 1) -> list[str]:
        found = self.all(name, cells)
        if len(found) != 1:
            raise SpecError(self.path, f"one line {name}", str(len(found)), AGAIN)
        return found[0]

    def numbers(self, name: str, text: str) -> dict[str, float]:
        try:
            found = {key: float(value) for key, _, value in (word.partition("=") for word in text.split(" "))}
        except ValueError:
            found = {"": math.nan}
        if not all(map(math.isfinite, found.values())):
            raise SpecError(f"{self.path}, {name}", "name=number", repr(text[:40]), AGAIN)
        return found


def _assembled(head: _Head, rows: tuple[Row, ...]) -> Baseline:
    model, digest = head.one("model", 2)
    concepts = head.all("concept", 3)
    policy = head.numbers("policy", head.one("policy")[0])
    known = {part.name for part in fields(Policy)}
    if set(policy) != known:
        raise SpecError(f"{head.path}, policy", " ".join(sorted(known)), " ".join(sorted(policy)), AGAIN)
    figures = {name: head.numbers("likelihood", f"x={value}")["x"] for name, value in head.all("likelihood", 2)}
    record = Record(
        model=model,
        digest=digest,
        base=head.one("base")[0],
        machine=head.one("machine")[0],
        floors={name: head.numbers("concept", floor).get("floor", FLOOR) for name, floor, _ in concepts},
        sampler={name: sampler for name, _, sampler in concepts},
        judges={name: value for name, value in head.all("judge", 2)},
        rows=rows,
        figures=figures,
    )
    if not rows or len({row.key for row in rows}) < len(rows):
        raise SpecError(head.path, "distinct prompts", "none, or one twice", AGAIN)
    if {row.concept for row in rows} != set(record.floors) or record.prompts != head.one("prompts")[0]:
        raise SpecError(head.path, "the prompts that its header names", "others", AGAIN)
    return Baseline(record, Policy(**policy), head.one("suite")[0], head.one("reason")[0])


def _one_line(cell: str) -> str:
    if not cell.isprintable():
        raise UsageError("baseline", "printable text", repr(cell)[:60], "remove tabs, newlines and control characters")
    return cell
