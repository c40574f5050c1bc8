"""What a model did on fixed prompts and seeds, kept as a small text file that a person reviews before it binds anyone.

A baseline is accepted once (`safear-edit baseline accept DIR`), committed, and compared with by every `safear-edit
check` after that; nothing else ever writes it. It holds the promise (floors and margins: whoever changes a model can't
loosen them without a line in a diff), digests of all that must be equal for a comparison to mean anything (prompts,
judges, sampler), and one line per image:

    concept, slice, member, expect, seed, found|absent|unclear, score, id, prompt (with tabs between them)

Same folder, same bytes: no times, no paths, the recipe's order. The last line is the sha256 of all lines above it: who
changes a line by hand is told so. A file of the first format has no such line; it is read, and said to be unprotected.
Files of the first two formats don't say which member of its group a prompt asks for; the model's own recipe does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from safear_edit.errors import SpecError, UsageError
from safear_edit.files.atomic import write_atomic
from safear_edit.gate.record import WORDS, Policy, Record, Row, Suite, _pairs

MAGIC, SECOND, FIRST = "safear-edit baseline 3", "safear-edit baseline 2", "safear-edit baseline 1"
SEAL = "sha256"
REMARK = (
    "# Written by `safear-edit baseline accept`, read by `safear-edit check`. Whoever changes it changes a promise."
)
COLUMNS = ("concept", "slice", "member", "expect", "seed", "outcome", "score", "id", "prompt")
OLDER = tuple(name for name in COLUMNS if name != "member")
"""Columns of the first two formats."""
LARGEST = 16 << 20
"""Bytes of a baseline that are read at most; 5000 images make one megabyte."""
AGAIN = "accept a new baseline (`safear-edit baseline accept`) and have it reviewed"


@dataclass(frozen=True)
class Baseline:
    """A record that was accepted, with what was promised then and why.

    despite: why it was accepted although its own report said FAIL, or nobody could read its images; "" where neither is
    so. sealed: False for a file of the first format, whose lines no digest covers.
    """

    record: Record
    policy: Policy
    suite: str
    reason: str
    despite: str = ""
    sealed: bool = True

    def to_text(self) -> str:
        """The file, of the second format if no row names a member: what was read from one is written as it was.

        UsageError for a prompt or reason that would break its lines.
        """
        record = self.record
        magic, columns = (MAGIC, COLUMNS) if any(row.member for row in record.rows) else (SECOND, OLDER)
        head = [
            ("reason", self.reason),
            *([("despite", self.despite)] if self.despite else []),
            ("suite", self.suite),
            ("policy", _pairs(vars(self.policy))),
            ("model", record.model, record.digest),
            ("base", record.base),
            ("machine", record.machine),
            *(("concept", name, _pairs({"floor": floor}), record.sampler[name])
              for name, floor in record.floors.items()),
            *(("judge", name, digest) for name, digest in sorted(record.judges.items())),
            *(("pack", name, digest) for name, digest in sorted(record.packs.items())),
            *(("likelihood", name, f"{value:.6f}") for name, value in sorted(record.figures.items())),
            ("prompts", record.prompts),
        ]  # fmt: skip
        rows = [tuple(getattr(row, name) for name in columns) for row in record.rows]
        lines = ["\t".join(map(_one_line, line)) for line in (*head, columns, *rows)]
        text = "\n".join([magic, REMARK, *lines, ""])
        return f"{text}{SEAL}\t{hashlib.sha256(text.encode()).hexdigest()}\n"

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomic(path, self.to_text())


def accept(record: Record, suite: Suite, reason: str, policy: Policy | None = None, despite: str = "") -> Baseline:
    """The first prompts of each slice, as many as the suite asks for (or all there are), as a baseline.

    The recipe's order decides, as in the evaluation, so nobody picks. UsageError without a reason, for a promise that
    promises nothing, and without `despite` for a model that nobody should fall back to (`faults`).
    """
    if not reason.strip():
        raise UsageError("--reason", "why this becomes the measure of what follows", "nothing", "write one sentence")
    if (found := faults(record)) and not despite.strip():
        fix = 'mend the model, or say why all the same with --despite "reason", which stands in the file'
        raise UsageError("baseline accept", "a model that passed its own report", "; ".join(found), fix)
    for name, floor in record.floors.items():
        if not 0 < floor <= 1:
            fix = "set gates.erasure_floor in its spec and apply it again"
            raise UsageError(f"concept {name}, floor", "a share above 0, at most 1", f"{floor:g}", fix)
    if record.doubts:
        record = replace(record, figures={}, packs={})
    record = replace(record, doubts=(), in_doubt={}, verdict="")
    return Baseline(record.first(suite), policy or suite.policy, suite.name, reason.strip(), despite.strip())


def faults(record: Record) -> list[str]:
    """Why a model should not become the measure of others: its report said FAIL, or a slice can't be read at all."""
    found = ["its own report says FAIL"] if record.verdict == "FAIL" else []
    for (concept, key), rows in record.slices().items():
        if all(row.outcome == "unclear" for row in rows):
            found.append(f"no image of {concept}/{key} can be read")
    return found


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
    if lines[0] not in (MAGIC, SECOND, FIRST):
        raise SpecError(f"{path}:1", repr(MAGIC), repr(lines[0][:40]), AGAIN)
    sealed = lines[0] != FIRST
    cells = [(n, line.split("\t")) for n, line in enumerate(lines, 1) if line and not line.startswith("#")][1:]
    seal = cells.pop()[1] if sealed and cells and cells[-1][1][0] == SEAL else None
    start = next((i for i, (_, line) in enumerate(cells) if tuple(line) in (COLUMNS, OLDER)), None)
    if start is None:
        raise SpecError(str(path), f"the line {' '.join(COLUMNS)}", "none", AGAIN)
    columns = cells[start][1]
    rows = tuple(_row(line, columns, f"{path}:{number}") for number, line in cells[start + 1 :])
    made = replace(_assembled(_Head(str(path), cells[:start]), rows), sealed=sealed)
    if sealed:
        _require_seal(path, lines, seal)
    return made


def _require_seal(path: Path, lines: Sequence[str], seal: Sequence[str] | None) -> None:
    """SpecError unless the last line is the digest of all lines above it."""
    above = "\n".join([*lines[:-2], ""])
    if seal != [SEAL, hashlib.sha256(above.encode()).hexdigest()] or lines[-1]:
        got = "another digest" if seal else "no such line"
        raise SpecError(str(path), "the sha256 of its lines at its end (it was changed by hand)", got, AGAIN)


def _row(line: Sequence[str], columns: Sequence[str], where: str) -> Row:
    cells = dict(zip(columns, line, strict=False))
    fits = len(line) == len(columns) and cells["expect"] in ("absent", "present") and cells["seed"].isdecimal()
    if not fits or cells["outcome"] not in WORDS.values():
        raise SpecError(where, f"{len(columns)} columns: {' '.join(columns)}", " ".join(line)[:60], AGAIN)
    if cells["score"] != "-" and not _within(cells["score"], 0, 1):
        raise SpecError(f"{where} score", "a number from 0 to 1, or -", cells["score"][:40], AGAIN)
    return Row(**cells)  # type: ignore[arg-type]


def _within(text: str, low: float, high: float) -> bool:
    try:
        return low <= float(text) <= high
    except ValueError:
        return False


class _Head:
    """The lines above the table, by their first word; every one that is asked for must be there and make sense."""

    def __init__(self, path: str, lines: Sequence[tuple[int, list[str]]]) -> None:
        self.path, self.lines = path, lines

    def all(self, name: str, cells: int) -> list[list[str]]:
        found = [(number, line[1:]) for number, line in self.lines if line[0] == name]
        for number, line in found:
            if len(line) != cells:
                raise SpecError(f"{self.path}:{number}", f"{name} with {cells} cells", str(len(line)), AGAIN)
        if cells > 1 and len({line[0] for _, line in found}) < len(found):
            raise SpecError(self.path, f"one line for each {name}", "two for one", AGAIN)
        return [line for _, line in found]

    def one(self, name: str, cells: int = 1) -> list[str]:
        found = self.all(name, cells)
        if len(found) != 1:
            raise SpecError(self.path, f"one line {name}", str(len(found)), AGAIN)
        return found[0]

    def numbers(self, name: str, text: str) -> dict[str, float]:
        words = [word.partition("=") for word in text.split(" ")]
        try:
            found = {key: float(value) for key, _, value in words}
        except ValueError:
            found = {"": math.nan}
        if not all(map(math.isfinite, found.values())) or len(found) < len(words):
            raise SpecError(f"{self.path}, {name}", "name=number, each name once", repr(text[:40]), AGAIN)
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
        floors={name: _floor(head, name, floor) for name, floor, _ in concepts},
        sampler={name: sampler for name, _, sampler in concepts},
        judges={name: value for name, value in head.all("judge", 2)},
        rows=rows,
        figures=figures,
        packs={name: value for name, value in head.all("pack", 2)},
    )
    if not rows or len({row.key for row in rows}) < len(rows):
        raise SpecError(head.path, "distinct prompts", "none, or one twice", AGAIN)
    if {row.concept for row in rows} != set(record.floors) or record.prompts != head.one("prompts")[0]:
        raise SpecError(head.path, "the prompts that its header names", "others", AGAIN)
    despite = head.all("despite", 1)
    return Baseline(
        record, Policy(**policy), head.one("suite")[0], head.one("reason")[0], despite[0][0] if despite else ""
    )


def _floor(head: _Head, name: str, text: str) -> float:
    floor = head.numbers("concept", text).get("floor", 0.0)
    if not 0 < floor <= 1:
        raise SpecError(f"{head.path}, concept {name}, floor", "a share above 0, at most 1", f"{floor:g}", AGAIN)
    return floor


# -- what a new baseline changes --------------------------------------------------------------------------------------


def changes(old: Baseline, new: Baseline) -> list[tuple[str, str, str]]:
    """(what, before, after): every promise that differs, then by slice how its rows differ; for a reviewer."""
    found = [(name, then, now) for name, then, now in _promises(old, new) if then != now]
    before, after = old.record.slices(), new.record.slices()
    for key in dict.fromkeys((*before, *after)):
        then, now = ({row.key: row for row in part.get(key, [])} for part in (before, after))
        name, both = "/".join(key), [(row, now[at]) for at, row in then.items() if at in now]
        for words, count in (
            ("prompts no longer there", len(then) - len(both)),
            ("new prompts", len(now) - len(both)),
            ("no longer as they must be", sum(a.good and not b.good for a, b in both)),
            ("now as they must be", sum(b.good and not a.good for a, b in both)),
            ("other scores, same outcome", sum(a.score != b.score and a.outcome == b.outcome for a, b in both)),
        ):
            if count:
                found.append((f"{name}: {words}", f"of {len(then)}", str(count)))
    return found


def _promises(old: Baseline, new: Baseline) -> Iterator[tuple[str, str, str]]:
    """Every line of the head, by name."""
    told: list[dict[str, str]] = []
    for one in (old, new):
        record = one.record
        told.append(
            {"reason": one.reason, "despite": one.despite, "suite": one.suite, "sealed": str(one.sealed)}
            | {f"policy {name}": f"{value:g}" for name, value in vars(one.policy).items()}
            | {"model": record.model, "weights": record.digest, "base": record.base, "machine": record.machine}
            | {f"floor {name}": f"{floor:g}" for name, floor in record.floors.items()}
            | {f"sampler {name}": sampler for name, sampler in record.sampler.items()}
            | {f"judge {name}": digest for name, digest in record.judges.items()}
            | {f"reference images {name}": digest for name, digest in record.packs.items()}
            | {f"likelihood {name}": f"{value:.6f}" for name, value in record.figures.items()}
        )
    for name in dict.fromkeys((*told[0], *told[1])):
        yield name, told[0].get(name, "nothing"), told[1].get(name, "nothing")


def _one_line(cell: str) -> str:
    if not cell.isprintable():
        raise UsageError("baseline", "printable text", repr(cell)[:60], "remove tabs, newlines and control characters")
    return cell
