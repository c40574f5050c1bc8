"""What an edit costs each member of the preserved groups, as rows for a table of examples/results.

    python -m safear_edit.studies members FOLDER… --commit 5df0d5c > rows.jsonl

FOLDER: a release of one concept, or a run that `safear-edit compare` left (OUT/runs/*). A row holds the three erasure
rates, each group's losses, its worst member, CIR and absCIR, and what of the verdict was not met.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safear_edit.evaluate.stats import Rate
    from safear_edit.report.schema import ConceptReport, PreservedGroup, Report

SLICES = {"direct": "by name", "paraphrase": "held-out names", "template": "held-out forms"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row per folder. UsageError for one that holds no report."""
    from safear_edit.compiler.recipe import read_recipe
    from safear_edit.report.build import read_report

    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies members", description=__doc__)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path)
    parser.add_argument("--commit", help="in which the rows are recorded", default=None)
    chosen = parser.parse_args(arguments)
    for folder in chosen.folders:
        report = read_report(folder / "report.json")
        made = {"command": report.reproduce.command, "commit": chosen.commit, "date": report.report.created[:10]}
        print(json.dumps(row(report, read_recipe(folder / "recipe.json").seed) | made, ensure_ascii=False))
    return 0


def row(report: Report, seed: int) -> dict[str, Any]:
    """The columns of a release of one concept: k images without it of n asked for, images lost and gained."""
    concept = report.concepts[0]
    erased = {part.slice: _share(part.erased) for part in concept.erasure}
    return {
        "model": report.base_model.reference,
        "concept": concept.name,
        "method": f"`{concept.edit.method}`",
        "seed": seed,
        "verdict": report.verdict.status,
        **{SLICES.get(name, name): share for name, share in erased.items()},
        "lost and gained": "; ".join(filter(None, map(_lost, concept.preservation))),
        "worst member": _worst(concept.preservation),
        **_ratios(concept),
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


def _ratios(concept: ConceptReport) -> dict[str, dict[str, float] | None]:
    """The least and the most of the slices whose ratios say something."""
    said = [part for part in concept.likelihoods.slices if not part.doubts]
    found = {"CIR": [part.cir for part in said], "absCIR": [part.abs_cir for part in said]}
    return {name: _span([one.estimate for one in those if one is not None]) for name, those in found.items()}


def _span(values: Sequence[float]) -> dict[str, float] | None:
    return {"from": round(min(values), 2), "to": round(max(values), 2)} if values else None
