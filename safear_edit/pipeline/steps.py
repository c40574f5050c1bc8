"""READ FIRST: the walk from a concept spec to a signed model, one short function per step.

    compile → construct → edit → evaluate → report → release

Data flows forward through files in one run folder (files/rundir.py): each step reads what the steps before it wrote,
and is skipped when the journal says that it is done with the same inputs. One model is loaded and serves every step:
the edit is applied to it, judged, and taken off again. The output appears by one rename, complete or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safear_edit import registry
from safear_edit.compiler.compile import cut_lines, method_params
from safear_edit.compiler.recipe import Recipe, save_recipe
from safear_edit.files import rundir
from safear_edit.files.atomic import digest_of, write_atomic
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline.environment import environment
from safear_edit.pipeline.order import Order, compiled, source_path
from safear_edit.progress import Callback, silent
from safear_edit.spec.spec import Spec, Understanding

if TYPE_CHECKING:
    from safear_edit.construct.pairs import Material
    from safear_edit.editor.edit import Change, Edit
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge
    from safear_edit.release.keys import SigningKey
    from safear_edit.report.schema import Report


UNSIGNED = 2
"""Exit code of a run that wrote everything and then found no key."""


# -- 2 construct ------------------------------------------------------------------------------------------------------

PAIR_FILES = ("pairs/pairs.safetensors", "pairs/pairs.jsonl", "pairs/stats.json", "images/pairs.png",
              "images/pairs.json")  # fmt: skip
KEEP_FILES = ("pairs/keep.safetensors", "pairs/keep.jsonl")
NOT_RELEASED = ("pairs/pairs.safetensors", *KEEP_FILES)
"""Training material that the recipe makes again; the captions of the pairs and why others were dropped are released."""


def construct(run: RunDir, recipe: Recipe, model: ModelFamily, progress: Callback, below: str = "") -> None:
    """Contrastive pairs, and the model's own images of what must stay; `below` is the digest of edits it holds."""
    from safear_edit.construct.captions import refiner_of
    from safear_edit.construct.pairs import build_keep, build_pairs, save_sheet

    def make() -> None:
        wanted = [(pair.unsafe, pair.safe, pair.seed) for pair in recipe.construct.pairs]
        judge, refiner = concept_judge(recipe.spec), refiner_of(recipe)
        pairs = build_pairs(model, wanted, judge, progress=progress, refiner=refiner)
        pairs.save(run / "pairs")
        if recipe.keep:
            kept, guards = [(keep.prompt, keep.seed) for keep in recipe.keep], [keep.guards for keep in recipe.keep]
            build_keep(model, kept, guards=guards, progress=progress).save(run / "pairs")
        (run / "images").mkdir(exist_ok=True)
        save_sheet(pairs, model, run / "images/pairs.png", hide=recipe.spec.kind == "category")

    files = PAIR_FILES + (KEEP_FILES if recipe.keep else ())
    run.step("construct", digest_of(recipe.digest, below), files, make)


def concept_judge(spec: Spec) -> Judge:
    """Who decides whether the spec's concept is in an image."""
    from safear_edit.judges.base import make_judge

    return make_judge(spec.judge.use, spec.judge.label, spec.judge.threshold, **spec.judge.options)


# -- 3 edit -----------------------------------------------------------------------------------------------------------

EDIT_FILES = ("edit/*.safetensors", "edit/edit.json", "edit/*")
"""The last stands for what an edit's kind has beside those two (edit.FILES), and the method's log of its search."""


def find_edit(run: RunDir, recipe: Recipe, model: ModelFamily, progress: Callback, below: str = "") -> Edit:
    """The method looks for the edit; the model is left as it was. A killed search goes on from its checkpoint.

    `below` is the digest of the edits that the model holds already.
    """
    from safear_edit.editor.edit import Edit

    def make() -> None:
        search(run, material_of(run, recipe, model), recipe, model, progress)

    run.step("edit", digest_of(recipe.digest, below, run.digest("construct")), EDIT_FILES, make)
    return Edit.load(run / "edit")


def material_of(run: RunDir, recipe: Recipe, model: ModelFamily) -> Material:
    """What `construct` left for the method, and what training may ask a model that answers questions."""
    from safear_edit.compiler.questions import CAPABILITY, training_questions
    from safear_edit.construct.pairs import Keep, Material, Pairs

    keep = Keep.load(run / "pairs") if recipe.keep else None
    asked = training_questions(recipe.spec) if CAPABILITY in model.provides else None
    pairs, judge = Pairs.load(run / "pairs"), concept_judge(recipe.spec)
    return Material(recipe.spec.name, pairs, keep, judge, asked, recipe.spec.erase.concept)


def search(run: RunDir, material: Material, recipe: Recipe, model: ModelFamily, progress: Callback) -> None:
    """Fit the recipe's method to `material` and write edit/; a killed search goes on from its checkpoint in `run`."""
    method = registry.lookup("methods", recipe.method.name).load()()
    params = method_params(recipe.method.name, recipe.method.params, "recipe.json")
    checkpoint = run / "edit.partial.safetensors"
    found = method.fit(model, material, params, seed=recipe.seed, progress=progress, checkpoint=checkpoint)
    shutil.rmtree(run / "edit", ignore_errors=True)  # files of an edit of another kind
    found.save(run / "edit")


# -- 4 evaluate -------------------------------------------------------------------------------------------------------

EVALUATION_FILES = ("outcomes.jsonl", "judges.json", "base.json", "images/before_after.*", "images/slice-*.png",
                    "images/slice-*.json")  # fmt: skip


@dataclass(frozen=True)
class Reuse:
    """How one evaluation of a stack differs from a single edit's; see `evaluate.evaluate`."""

    leave_out: frozenset[str] = frozenset()
    base_pictures: Path | None = None


def evaluate(
    run: RunDir, recipe: Recipe, model: ModelFamily, change: Change, progress: Callback, reuse: Reuse | None = None
) -> None:
    """Base and edited model draw the same prompts with the same seeds, and judges look: outcomes.jsonl.

    sampled.py screens with the base model first, keeps what it has judged in the run folder (a killed evaluation goes
    on from there), and leaves `judges.json` and the before/after sheets in `images/`.
    """
    from safear_edit.evaluate import sampled as evaluation

    terms = reuse or Reuse()

    def make() -> None:
        write_json(run / "base.json", base_card(model))
        evaluation.evaluate(
            model,
            change,
            recipe,
            run.root,
            progress=progress,
            leave_out=terms.leave_out,
            base_pictures=terms.base_pictures,
        )

    inputs = digest_of(recipe.digest, change.digest, *sorted(terms.leave_out))
    run.step("evaluate", inputs, EVALUATION_FILES, make)


def base_card(model: ModelFamily) -> dict[str, Any]:
    """What base.json says of the base model."""
    from safear_edit.report.evidence import BaseCard

    card = BaseCard(**asdict(model.card), ref=model.card.ref, digest=model.card.digest)
    return card.model_dump(mode="json")


def likelihoods(run: RunDir, recipe: Recipe, model: ModelFamily, change: Change, progress: Callback) -> str:
    """What base and edited model say about reference images, without drawing any: likelihood.json.

    The images are the mini world's or the spec's folder, tokenised once in the run folder. Returns why there are
    none, and then the file says that; "" where there are.
    """
    from safear_edit.evaluate import likelihood
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.likelihood_record import save_skipped
    from safear_edit.evaluate.references import source_for, tokenised, why_none

    why = why_none(recipe.spec, model.card)
    source = None if why else source_for(recipe.spec, model.card)

    def make() -> None:
        if source is None:
            save_skipped(run.root, why)
            return
        pack = tokenised(model, source, run / "references")
        pair = Pair(model, partial(_edited, model, change))
        likelihood.audit(pair, pack, progress=progress).save(run.root)

    inputs = digest_of(recipe.digest, change.digest, source.digest if source else why)
    run.step("likelihood", inputs, ("likelihood.json",), make)
    return why


def understanding(run: RunDir, recipe: Recipe, model: ModelFamily, change: Change, progress: Callback) -> str:
    """What base and edited model answer about reference images: understanding.json and .jsonl. Returns why nothing.

    "" where they were asked, and also for a model that answers no questions unless the spec is about that.
    """
    from safear_edit.compiler import questions
    from safear_edit.compiler.questions import STEP
    from safear_edit.evaluate import understanding as asking
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.references import why_none

    spec, provided = recipe.spec, questions.CAPABILITY in model.provides
    if STEP not in measuring(recipe, model):
        return ""
    why = why_none(spec, model.card) if provided else f"{model.card.ref} answers no questions about images"
    asked = None if why else asking.exam(spec, asking.source_for(spec, model.card))

    def make() -> None:
        if asked is None:
            asking.save_skipped(run.root, why, applies=provided)
            return
        pair = Pair(model, partial(_edited, model, change))
        asking.save(run.root, model.card.digest, asked, asking.measure(pair, asked, progress))

    run.step(STEP, digest_of(recipe.digest, change.digest, asked.digest if asked else why), asking.FILES, make)
    return why


def measuring(recipe: Recipe, model: ModelFamily) -> tuple[str, ...]:
    """The steps that leave evidence about an edit of this model, by the names under which the journal has them."""
    from safear_edit.compiler import questions
    from safear_edit.compiler.questions import STEP

    looked = questions.CAPABILITY in model.provides or recipe.spec.understanding != Understanding()
    return ("evaluate", "likelihood", *([STEP] if looked else []))


@contextmanager
def _edited(model: ModelFamily, change: Change) -> Iterator[ModelFamily]:
    with change.apply(model.net):
        yield model


# -- 5 report ---------------------------------------------------------------------------------------------------------


def write_report(folder: Path) -> Report:
    """Build report.json, report.html, the model card and the bill of materials from the files in `folder` alone."""
    from safear_edit.report import bom
    from safear_edit.report.build import build_report
    from safear_edit.report.evidence import RunFiles
    from safear_edit.report.html import render_html
    from safear_edit.report.model_card import model_card

    report = build_report(RunFiles.find(folder, model=folder))
    write_atomic(folder / "report.json", report.to_json())
    write_atomic(folder / "report.html", render_html(report, folder))
    write_atomic(folder / "README.md", model_card(report))
    write_atomic(folder / "bom.cdx.json", bom.to_json(report))
    return report


def rebuild_report(folder: Path) -> tuple[Report, str]:
    """The report of a released folder and its page, from the files alone; nothing is written.

    TrustError if its files are not those of the report that lies there.
    """
    from safear_edit.report.html import render_html
    from safear_edit.report.rebuild import rebuild

    report = rebuild(folder)
    return report, render_html(report, folder)


# -- 6 release --------------------------------------------------------------------------------------------------------


def sign(folder: Path, report: Report, recipes: Sequence[Recipe], key: SigningKey) -> None:
    """model.sig over every file, then the two signed claims about how it was made and what its tests said.

    Of several recipes the last is the one that this run added: its seed is named; all are resolved dependencies.
    """
    from safear_edit.release.claims import ClaimInputs, write_claims
    from safear_edit.release.claims import Result as Outcome
    from safear_edit.release.signing import sign_folder

    results: dict[str, Outcome] = {"pass": "PASSED", "inconclusive": "WARNED", "fail": "FAILED"}
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
        verdict=results[report.verdict.status],
        tests={criterion.id: results[criterion.decision] for criterion in report.verdict.criteria},
        materials={**{judge.id: judge.digest for judge in report.judges}, **several},
        builder="github" if os.environ.get("GITHUB_ACTIONS") == "true" else "local",
    )
    write_claims(folder, sign_folder(folder, key), inputs, key)


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
        """The verdict's (0 pass, 1 fail, 3 inconclusive); 2 for a pass that nobody signed or declined to sign."""
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
        """The verdict for a person: each criterion, then the sentence, then where things are."""
        found = self.report.verdict
        rows = [f"{c.decision.upper():<13}{c.id}: {c.observed} (needed: {c.needed})" for c in found.criteria]
        signature = self.signature or ("signed" if self.signed else "unsigned")
        where = f"{found.status.upper()}: {self.out} ({signature}); read {self.out}/report.html"
        return [*rows, *self.notes, found.summary, where]

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        found = self.report.verdict.model_dump(mode="json")
        signature = self.signature or ("signed" if self.signed else "unsigned")
        end = {"out": str(self.out), "signed": self.signed, "signature": signature, "exit_code": self.exit_code}
        return {**found, **end, "notes": list(self.notes)}


# -- the walk ---------------------------------------------------------------------------------------------------------


def apply(
    order: Order,
    out: Path,
    *,
    key: SigningKey | None = None,
    unsigned: bool = False,
    overwrite: bool = False,
    command: str = "",
    progress: Callback = silent,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Walk it all and publish `out`. After an interruption the same call continues where it was.

    Without `key` everything is written unsigned. UsageError if `out` exists (without `overwrite`) or another process
    works on it; every other SafearError of the steps. Whatever the verdict, the folder is published with it.
    """
    started = datetime.now(UTC)
    with rundir.opened(out, overwrite=overwrite) as run:
        model, recipe = compiled(order)
        say(f"model {model.card.ref}, method {recipe.method.name}, recipe {recipe.digest[:12]}")
        for line in cut_lines(recipe, model.caption_lengths):
            say(line)
        save_recipe(recipe, run / "recipe.json")
        construct(run, recipe, model, progress)
        edit = find_edit(run, recipe, model, progress)
        evaluate(run, recipe, model, edit, progress)
        if why := likelihoods(run, recipe, model, edit, progress):
            say(f"likelihoods are not looked at: {why}")
        if why := understanding(run, recipe, model, edit, progress):
            say(f"understanding is not evaluated: {why}")
        write_json(run / "environment.json", environment(model, command, started))
        staged = _stage(run, recipe, model, edit, order)
        report = write_report(staged)
        if key is not None:
            sign(staged, report, [recipe], key)
        run.publish(staged, overwrite=overwrite)
    return Result(out, report, key is not None, unsigned)


def _stage(run: RunDir, recipe: Recipe, model: ModelFamily, edit: Edit, order: Order) -> Path:
    """The folder to release: merged weights in the family's layout, the edit beside them, the evidence, the spec."""
    from safear_edit.release.released import save_base

    made = [name for step in ("construct", "edit", *measuring(recipe, model)) for name in run.files(step)]
    evidence = [name for name in made if name not in NOT_RELEASED]
    staged = rundir.stage(run, ["recipe.json", "environment.json", *evidence])
    save_base(staged, model.net, edit.weights)
    with edit.apply(model.net):
        model.export(staged)
    source = source_path(order.source)
    if source.suffix != ".json":
        write_atomic(staged / f"{recipe.spec.name}.yaml", source.read_bytes())
    return staged


def write_json(path: Path, document: Any) -> None:
    """A JSON file that appears whole or not at all."""
    write_atomic(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
