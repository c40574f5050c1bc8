"""5 report and 6 release: the folder to publish is laid out, described from its own files, signed, and put in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safear_edit.compiler.recipe import Recipe, save_recipe
from safear_edit.evaluate.outcomes import JudgeRecord
from safear_edit.files import rundir
from safear_edit.files.atomic import digest_of, write_atomic
from safear_edit.files.layout import CARD, FOUND_BY, INTERFERENCE, Layout
from safear_edit.files.records import read_records
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline.environment import environment
from safear_edit.pipeline.state import RunOptions, StackState, measured_part
from safear_edit.pipeline.steps import NOT_RELEASED, measuring

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily
    from safear_edit.release.claims import Builder
    from safear_edit.release.keys import SigningKey
    from safear_edit.release.released import Member
    from safear_edit.report.schema import Report


UNSIGNED = 2
"""Exit code of a run that wrote everything and then found no key."""
ENVIRONMENT, JUDGES = "environment.json", "judges.json"
SEARCH_FILES = ("edit/**/*", "pairs/*", "images/pairs.*", "*.yaml")
"""What a concept keeps of its search, by pattern."""


def publish(run: RunDir, state: StackState, options: RunOptions, started: datetime, notes: tuple[str, ...]) -> Result:
    """The end of a walk that began at `started`: its folder appears in one piece. notes: lines for whoever began it."""
    staged = stage(run, state, environment(state.model, state.recipes, options.command, started, options.key))
    report = write_report(staged)
    if options.key is not None:
        sign(staged, report, state.recipes, options.key)
    run.publish(staged, overwrite=options.overwrite)
    return Result(run.out, report, options.key is not None, options.unsigned, notes)


# -- the folder -------------------------------------------------------------------------------------------------------


def stage(run: RunDir, state: StackState, environment: dict[str, Any]) -> Path:
    """The folder to release: weights in the family's layout, the base's values of them, edits, recipes and evidence."""
    from safear_edit.release.released import save_base, save_stack

    net, stack = state.model.net, state.stack
    staged, judges = rundir.stage(run, ()), dict[str, JudgeRecord]()
    layout = Layout.to_write(staged, len(state.members), len(state.history))
    for member in state.members:
        part = measured_part(run, state, member.name)
        _stage_concept(layout, member, part, measuring(member.recipe, state.model))
        judges |= {card.model_dump_json(): card for card in read_records(JudgeRecord, part / JUDGES)}
    write_json(staged / JUDGES, [card.model_dump(mode="json") for card in judges.values()])
    write_json(staged / CARD, base_card(state.model))
    write_json(staged / ENVIRONMENT, environment)
    save_base(staged, net, stack.weights)
    if layout.stacked:
        save_stack(staged, stack, net)
        shutil.copyfile(run / INTERFERENCE, staged / INTERFERENCE)
    with stack.apply(net):
        state.model.export(staged)
    return staged


def _stage_concept(layout: Layout, member: Member, measured: RunDir, steps: Sequence[str]) -> None:
    """A concept's recipes, its edit and pairs from where they were made, and the evidence about the whole stack."""
    target, found = layout.concept(member.name), member.folder
    searched = [path for pattern in SEARCH_FILES for path in sorted(found.glob(pattern)) if path.is_file()]
    names = [path.relative_to(found).as_posix() for path in searched]
    files = [(found, name) for name in names if name not in (*NOT_RELEASED, FOUND_BY)]
    files += [(measured.root, name) for step in steps for name in measured.files(step) if name != JUDGES]
    for folder, name in (*files, (measured.root, "recipe.json")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    save_recipe(member.recipe, layout.found_by(member.name))


def base_card(model: ModelFamily) -> dict[str, Any]:
    """What base.json says of the base model."""
    from safear_edit.report.evidence import BaseCard

    card = BaseCard(**asdict(model.card), ref=model.card.ref, digest=model.card.digest)
    return card.model_dump(mode="json")


def write_json(path: Path, document: Any) -> None:
    """A JSON file that appears whole or not at all."""
    write_atomic(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


# -- 5 report ---------------------------------------------------------------------------------------------------------


def write_report(folder: Path) -> Report:
    """Build the report, the page of images, the model card and the bill of materials from files in `folder` alone."""
    from safear_edit.report import bom
    from safear_edit.report.build import build_report
    from safear_edit.report.evidence import RunFiles
    from safear_edit.report.evidence_page import evidence_page
    from safear_edit.report.html import render_html
    from safear_edit.report.model_card import model_card

    run = RunFiles.find(folder, model=folder)
    report = build_report(run)
    if report.evidence:
        write_atomic(folder / report.evidence, evidence_page(report, run))
    write_atomic(folder / "report.json", report.to_json())
    write_atomic(folder / "report.html", render_html(report, folder))
    write_atomic(folder / "README.md", model_card(report))
    write_atomic(folder / "bom.cdx.json", bom.to_json(report))
    return report


def rebuild_report(folder: Path, trust: Path | None = None) -> tuple[Result, str]:
    """What a released folder says and its page, from the files alone; nothing is written.

    trust: public keys against which its signature is verified; without them nothing is said of it but that. TrustError
    for a bad signature, and for files that are not those of the report that lies there.
    """
    from safear_edit.release.approve import approvals
    from safear_edit.release.verify import signature_of, verify_folder
    from safear_edit.report.html import render_html
    from safear_edit.report.rebuild import rebuild

    signature = f"signature {signature_of(folder, trust)}"
    report = rebuild(folder)
    result = Result(folder, report, trust is not None, unsigned_on_purpose=True, signature=signature)
    people = approvals(verify_folder(folder, trust)) if trust else ()
    return result, render_html(report, folder, [f"by {one.name}, {one.role}, {one.when}" for one in people])


# -- 6 release --------------------------------------------------------------------------------------------------------


def sign(folder: Path, report: Report, recipes: Sequence[Recipe], key: SigningKey) -> None:
    """model.sig over every file, then the two signed claims about how it was made and what its tests said.

    Of several recipes the last is the one that this run added: its seed is named; all are resolved dependencies.
    """
    from safear_edit.release.claims import RESULT_OF, ClaimInputs, test_of, write_claims
    from safear_edit.release.signing import sign_folder

    made, last = report.environment, recipes[-1]
    several = {f"recipe:{recipe.spec.name}": recipe.digest for recipe in recipes} if len(recipes) > 1 else {}
    inputs = ClaimInputs(
        run=report.report.id,
        specs={recipe.spec.name: digest_of(recipe.spec.model_dump_json()) for recipe in recipes},
        recipe=digest_of(*several.values()) if several else last.digest,
        model=last.model.ref,
        base=last.model.digest,
        method=", ".join(dict.fromkeys(recipe.method.name for recipe in recipes)),
        seed=str(last.seed),
        versions=made.packages,
        started=datetime.fromisoformat(made.started),
        finished=datetime.fromisoformat(made.finished),
        verdict=RESULT_OF[report.verdict.status],
        tests={test_of(criterion.id): RESULT_OF[criterion.decision] for criterion in report.verdict.criteria},
        materials={**{judge.id: judge.digest for judge in report.judges}, **several},
        builder=_builder(os.environ),
    )
    write_claims(folder, sign_folder(folder, key), inputs, key)


def _builder(environ: Mapping[str, str]) -> Builder:
    """Whose machine this is: GitHub's only where its runner says so, because a runner may be anybody's own."""
    if environ.get("GITHUB_ACTIONS") != "true":
        return "local"
    return "github-hosted" if environ.get("RUNNER_ENVIRONMENT") == "github-hosted" else "github-self-hosted"


# -- what is printed --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a finished walk leaves: the folder, its report, and what the command line should end with.

    notes: of a stack, what its change did to the other concepts. signature: what is known of it, in words; of a walk
    that just made the folder, "signed" or "unsigned".
    """

    out: Path
    report: Report
    signed: bool
    unsigned_on_purpose: bool
    notes: tuple[str, ...] = ()
    signature: str = ""

    @property
    def exit_code(self) -> int:
        """The verdict's (PASS 0, FAIL 1, INCONCLUSIVE 3); 2 for a PASS that nobody signed or declined to sign."""
        from safear_edit.report.schema import verdict

        code = verdict(self.report)[1]
        return code or (0 if self.signed or self.unsigned_on_purpose else UNSIGNED)

    @property
    def advice(self) -> str:
        """The line that says how to get it signed, where that is missing."""
        if self.signed or self.unsigned_on_purpose:
            return ""
        return (
            f"{self.out} is complete but unsigned: make a key with `safear-edit keygen keys` and give the same command "
            "with --overwrite --key keys/safear.key, or --unsigned if that is what you want"
        )

    @property
    def lines(self) -> list[str]:
        """What stands below the criteria: notes, the verdict in a sentence, and where things are."""
        found = self.report.verdict
        signature = self.signature or ("signed" if self.signed else "unsigned")
        where = f"{found.status}: {self.out} ({signature}); read {self.out}/report.html"
        return [*self.notes, found.summary, where]

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        found = self.report.verdict.model_dump(mode="json")
        signature = self.signature or ("signed" if self.signed else "unsigned")
        end = {"out": str(self.out), "signed": self.signed, "signature": signature, "exit_code": self.exit_code}
        return {**found, **end, "notes": list(self.notes)}
