"""What an edit costs each member of the preserved groups: concepts × models × seeds, one row for every release.

    python -m safear_edit.studies members picasso dog --models llamagen infinity --seeds 0 1 --out runs > rows.jsonl

Every release is made by `apply` with the defaults (or with --set and --method), unsigned, in OUT/MODEL-CONCEPT-SEED;
one that is there is read, not made again, so a killed study goes on where it was. Rows are as `studies tables` wants
them: the three erasure rates, each group's loss, its worst member, CIR, and the verdict with what was not met.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safear_edit.errors import SafearError

if TYPE_CHECKING:
    from safear_edit.evaluate.stats import Rate
    from safear_edit.report.schema import ConceptReport, PreservedGroup, Report

SLICES = {"direct": "by name", "paraphrase": "held-out names", "template": "held-out forms"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row per release as it is done; 2 and one line on stderr for what can't be made."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies members", description=__doc__)
    parser.add_argument("concepts", metavar="CONCEPT", nargs="+")
    parser.add_argument("--models", nargs="+", default=["llamagen"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--method", default="vce")
    parser.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default=None, help="in which the rows are recorded")
    chosen = parser.parse_args(arguments)
    try:
        for seed, model, concept in itertools.product(chosen.seeds, chosen.models, chosen.concepts):
            report, command = _release(concept, model, seed, chosen)
            made = {"command": command, "commit": chosen.commit, "date": datetime.now(UTC).date().isoformat()}
            print(json.dumps(row(report, seed) | made, ensure_ascii=False), flush=True)
    except SafearError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _release(concept: str, model: str, seed: int, chosen: argparse.Namespace) -> tuple[Report, str]:
    """The report of one release, made if it isn't there, and the command that makes it."""
    from safear_edit.pipeline import run
    from safear_edit.pipeline.order import Order
    from safear_edit.pipeline.state import RunOptions
    from safear_edit.report.build import read_report

    out = chosen.out / f"{model}-{concept}-{seed}"
    command = f"safear-edit apply concepts/{concept}.yaml --model {model} --seed {seed}"
    command += f" --method {chosen.method}" if chosen.method != "vce" else ""
    command += "".join(f" --set {one}" for one in chosen.sets)
    if not (out / "report.json").exists():
        order = Order(concept, model, chosen.method, seed, tuple(chosen.sets))
        run.apply([order], out, RunOptions(unsigned=True, command=command))
    return read_report(out / "report.json"), command


def row(report: Report, seed: int) -> dict[str, Any]:
    """The columns of a release of one concept: k images without it of n asked for, images lost and gained."""
    concept = report.concepts[0]
    erased = {part.slice: _share(part.erased) for part in concept.erasure}
    return {
        "model": report.base_model.reference,
        "concept": concept.name,
        "seed": seed,
        "verdict": report.verdict.status,
        **{SLICES.get(name, name): share for name, share in erased.items()},
        "lost and gained": "; ".join(filter(None, map(_lost, concept.preservation))),
        "worst member": _worst(concept.preservation),
        "CIR": _cir(concept),
        "not met": ", ".join(f"{one.id} {one.decision}" for one in report.verdict.criteria if one.decision != "PASS"),
    }


def _share(rate: Rate | None) -> dict[str, int] | None:
    return None if rate is None else {"k": rate.k, "n": rate.n}


def _lost(group: PreservedGroup) -> str:
    change = group.change
    return "" if change is None else f"{group.group} -{change.lost} +{change.gained} of {change.n}"


def _worst(groups: Sequence[PreservedGroup]) -> str | None:
    from safear_edit.evaluate.members import worst

    found = [(member, group) for group in groups for member in group.members]
    if not found:
        return None
    member, group = worst(found)
    return f"{member.name} in {group.group}: -{member.lost} +{member.gained} of {member.n}"


def _cir(concept: ConceptReport) -> dict[str, float] | None:
    """The least and the most of the slices whose ratio says something."""
    means = [part.cir.estimate for part in concept.likelihoods.slices if part.cir is not None and not part.doubts]
    return {"from": round(min(means), 2), "to": round(max(means), 2)} if means else None


if __name__ == "__main__":
    sys.exit(main())
