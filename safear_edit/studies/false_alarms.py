"""How often the gate errs on a model that did not change, by real images (`… studies false_alarms DIR`).

A released model is drawn again and again on its baseline's prompts, each time with other seeds, and every draw is
checked against the baseline as a new release would be. Nothing changed, so FAIL is a false alarm. The baseline's
own images are those that the release was accepted with, the base model is not needed, the edited one is loaded once
and each caption encoded once. Every run is kept in the folder as a text file (gate/baseline.py), so the same command
goes on with the runs that are missing.

Cost: one run draws the suite's prompts once; smoke on one concept of llamagen:mini is 660 images, 33 s a run on one
core (20 runs: 662 s).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safear_edit.errors import SafearError
from safear_edit.evaluate import stats
from safear_edit.gate import rules
from safear_edit.gate.baseline import Baseline, accept, read_baseline
from safear_edit.gate.record import ERASURE_FLIPS, PRESERVE_FLIPS, SUITES, Record, read_folder
from safear_edit.gate.redraw import Redraw
from safear_edit.progress import Callback, Progress, mode_for, silent
from safear_edit.report.sentences import percent
from safear_edit.studies.arguments import positive

RUNS = 20


@dataclass(frozen=True)
class Run:
    """One draw of the unchanged model: the verdict, what did not pass, and pairs that flipped, by kind of slice."""

    number: int
    verdict: str
    why: tuple[str, ...]
    erasure: tuple[int, int]
    """Flipped pairs and all pairs of the slices where the concept must be absent."""
    kept: tuple[int, int]
    """The same where something must be present."""


def kept_runs(
    source: Path, baseline: Baseline, runs: int, folder: Path, device: str, progress: Callback
) -> Iterator[Record]:
    """Draw number 1, 2, … of the model in `source`, from `folder` where it lies there, and kept there otherwise.

    A file of another model, other prompts or other judges is drawn again.
    """
    known = read_folder(source)
    again: Redraw | None = None
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, runs + 1):
        path = folder / f"run-{number:03d}.txt"
        record = _read(path, known, baseline)
        if record is None:
            again = again or Redraw.of(source, baseline.record.rows, device)
            record = again.record(number, progress)
            reason = f"run {number} of an unchanged model with other seeds"
            Baseline(replace(record, figures={}), baseline.policy, baseline.suite, reason).save(path)
        progress("runs", number, runs, "")
        yield replace(known, rows=record.rows, judges=record.judges)


def _read(path: Path, known: Record, baseline: Baseline) -> Record | None:
    """A run that was kept; None if it is not there, damaged, or of something else."""
    if not path.is_file():
        return None
    try:
        record = read_baseline(path).record
    except SafearError:
        return None
    same = record.digest == known.digest and record.prompts == baseline.record.prompts
    return record if same and baseline.record.judges.items() <= record.judges.items() else None


def judged(number: int, record: Record, baseline: Baseline) -> Run:
    """What the gate says about one draw."""
    found = rules.check(record, {"baseline": baseline})
    why = tuple(f"{one.decision} {one.id}: {one.observed}" for one in found.findings
                if one.decision in ("FAIL", "INCONCLUSIVE"))  # fmt: skip
    parts = rules.count(record, baseline)
    erasure, kept = ([part for part in parts if (part.floor is not None) is erased] for erased in (True, False))
    return Run(number, found.verdict, why, _flips(erasure), _flips(kept))


def _flips(parts: Sequence[rules.Counts]) -> tuple[int, int]:
    return sum(part.lost + part.gained for part in parts), sum(part.n for part in parts)


def told(runs: Sequence[Run]) -> list[str]:
    """The result for a person: one line per run, then how many ended how, and how many pairs flip by chance."""
    words = Counter(run.verdict for run in runs)
    lines = [f"run {run.number:>3}: {run.verdict}" + "".join(f"\n  {why}" for why in run.why) for run in runs]
    alarms = stats.clopper_pearson(words["FAIL"], len(runs), side="upper")
    counts = ", ".join(f"{words[word]} {word}" for word in ("PASS", "INCONCLUSIVE", "FAIL"))
    lines.append(f"{len(runs)} runs of an unchanged model: {counts}")
    lines.append(f"false alarms: at most {percent(alarms.high)} with 95 % confidence")
    for name, pairs, assumed in (
        ("erasure", [run.erasure for run in runs], ERASURE_FLIPS),
        ("preserved", [run.kept for run in runs], PRESERVE_FLIPS),
    ):
        flipped, n = (sum(pair[i] for pair in pairs) for i in range(2))
        if n:
            lines.append(f"{name}: {flipped} of {n} pairs flipped ({percent(flipped / n)}; assumed {percent(assumed)})")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if no run is FAIL, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies false_alarms", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="DIR", type=Path, help="a released folder")
    parser.add_argument("--baseline", type=Path, help="an accepted baseline (default: what the folder itself says)")
    parser.add_argument("--suite", choices=[*SUITES], default="smoke", help="sizes and margin (default: smoke)")
    parser.add_argument(
        "--runs", type=positive, default=RUNS, help=f"draws in all, kept ones included (default: {RUNS})"
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of sentences")
    options = parser.parse_args(arguments)
    suite = SUITES[options.suite]
    accepted = read_baseline(options.baseline) if options.baseline else None
    baseline = (
        rules.cut(accepted, suite)
        if accepted
        else accept(read_folder(options.source), suite, "trial", despite="a trial binds nobody")
    )
    with Progress(mode_for(sys.stderr, quiet=options.json)) as progress:
        call: Callback = silent if options.json else progress
        drawn = kept_runs(options.source, baseline, options.runs, options.folder, options.device, call)
        runs = [judged(number, record, baseline) for number, record in enumerate(drawn, 1)]
    print(json.dumps([asdict(run) for run in runs], indent=1) if options.json else "\n".join(told(runs)))
    return 1 if any(run.verdict == "FAIL" for run in runs) else 0
