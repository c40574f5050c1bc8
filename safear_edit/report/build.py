"""The audit report: what was measured on which prompts, what that is worth, and what nobody looked at.

`build_report` reads the files of a finished run (evidence.py) and nothing else (no model, no network), so a report can
be rebuilt tomorrow and be the same. How images and answers are counted is in criteria.py.

Of a category, prompts that ask for it are withheld and images of them must be pixelated; a sheet that says it isn't
is refused.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from safear_edit.attacks.record import Attacks
from safear_edit.compiler.recipe import Recipe, read_recipe
from safear_edit.construct.pairs_record import PairRow, PairStats
from safear_edit.construct.sheets import SheetNote
from safear_edit.editor.edit_record import EditRecord, Round, StackRecord, digest_of_edits
from safear_edit.editor.method_log import FIGURE, MethodLog
from safear_edit.errors import SpecError, UsageError
from safear_edit.evaluate import stats
from safear_edit.evaluate.interference_record import Cell, read_interference
from safear_edit.evaluate.likelihood_record import Classified, GroupAudit, Skipped, SliceAudit, read_audit
from safear_edit.evaluate.outcomes import WITHHELD, WITHHELD_NAMES, JudgeRecord, Outcome, read_outcomes
from safear_edit.evaluate.understanding import ROWS
from safear_edit.evaluate.verdict import overall
from safear_edit.files.layout import FOUND_BY, INTERFERENCE, STACK
from safear_edit.files.records import AGAIN, read_lines, read_record, read_records
from safear_edit.redact import redact
from safear_edit.report import sentences
from safear_edit.report.attacks import attack_criteria, statement
from safear_edit.report.criteria import (
    CATEGORY,
    Slice,
    by_slice,
    erasure_slice,
    if_drawn,
    preserved_group,
    prompts_digest,
    refuse_other_base,
    refuse_other_judges,
    unanswered,
    understanding_of,
    with_holm,
)
from safear_edit.report.evidence import (
    ENERGY,
    BaseCard,
    ConceptFiles,
    Machine,
    RunFiles,
    file_digest,
)
from safear_edit.report.governance import with_items
from safear_edit.report.schema import (
    EVIDENCE,
    NOT_STATED,
    About,
    Adversarial,
    Approval,
    BaseModelSection,
    ConceptReport,
    ConceptScope,
    Criterion,
    EditSection,
    Environment,
    File,
    Governance,
    JudgeSection,
    LeftOutPrompt,
    LikelihoodClasses,
    LikelihoodGroup,
    Likelihoods,
    LikelihoodSlice,
    PromptSet,
    Protocol,
    Report,
    Reproduce,
    Sheet,
    StackCell,
    StackSection,
    Subject,
    Validation,
    VerdictSection,
)
from safear_edit.report.versions import upgraded
from safear_edit.spec.spec import SLICES, Spec
from safear_edit.spec.spec import Governance as SpecGovernance

PAIR_SHEET = "pairs"
"""The sheet that construct/sheets.py draws; its images have no prompt ids."""
SHEET_BYTES = 4 * 1024 * 1024
OWN_FILES = frozenset(
    {"report.json", "report.html", EVIDENCE, "README.md", "bom.cdx.json", "model.sig", "claims.jsonl"}
)
"""Files of a release that describe it; the digest of the weights leaves them out, because they contain it."""


def read_report(path: Path) -> Report:
    """A report from disk; SpecError when it isn't one, or when its verdict doesn't follow from its criteria."""
    return read_record(Report, path, "rebuild it from its run", upgrade=upgraded)


def build_report(run: RunFiles) -> Report:
    """What the files of a finished run show. SpecError when one is missing or they contradict each other."""
    machine = read_record(Machine, run.environment)
    base = _base_model(read_record(BaseCard, run.base))
    judges = tuple(_judge(row) for row in read_records(JudgeRecord, run.judges))
    recipes = [read_recipe(files.recipe) for files in run.concepts]
    change = _change(run)
    built = [_concept(files, recipe, judges, change) for files, recipe in zip(run.concepts, recipes, strict=True)]
    concepts = tuple(concept for concept, _ in built)
    criteria = tuple(criterion for _, several in built for criterion in several)
    asked = [_asked_of_category(recipe) for recipe in recipes]
    sheets = [_sheet(path, run.root, asked[i]) for i, files in enumerate(run.concepts) for path in files.sheets]
    figures = zip(concepts, map(_figure_of, run.concepts), strict=True)
    sheets += [_figure(path, run.root, concept) for concept, path in figures if path]
    inputs = _input_digests(run)
    said = _Said({recipe.spec.name: recipe.spec.governance for recipe in recipes})
    scope = sentences.scope(
        [_scope(recipe.spec) for recipe in recipes], concepts, said("intended_use"), said("out_of_scope")
    )
    subject = _subject(run, base, concepts, machine)
    report = Report(
        report=About(
            id=digest_of_inputs(inputs),
            created=machine.finished,
            generator=f"safear-edit {_own_version()}",
            supersedes=said("supersedes"),
            retention_until=said("retention_until"),
        ),
        verdict=VerdictSection(
            status=overall(criterion.decision for criterion in criteria),
            summary=sentences.summary(concepts, criteria, judges),
            criteria=criteria,
        ),
        scope=scope,
        subject=subject,
        base_model=base,
        concepts=concepts,
        stack=_stack(run, concepts),
        judges=judges,
        adversarial=Adversarial(statement=statement(concepts)),
        residual_risks=sentences.risks(concepts, said("responsible")),
        limitations=sentences.limitations(concepts, judges, subject),
        images=tuple(sheets),
        evidence=EVIDENCE if any(files.scored for files in run.concepts) else "",
        governance=said.governance(),
        environment=_environment(machine),
        reproduce=Reproduce(
            command=redact(machine.command),
            inputs=inputs,
            expected=f"the same recipe on the same kind of machine gives weights_digest {subject.weights_digest}",
        ),
    )
    return with_items(report)


@dataclass(frozen=True)
class _Said:
    """What the specs say under `governance`; called with a key, one text for the whole report."""

    blocks: dict[str, SpecGovernance]

    def __call__(self, key: str) -> str:
        """What all specs say; if they differ, what each says under its name; NOT_STATED if none says anything."""
        texts = {name: str(getattr(block, key) or NOT_STATED) for name, block in self.blocks.items()}
        distinct = list(dict.fromkeys(texts.values()))
        return distinct[0] if len(distinct) == 1 else "; ".join(f"{name}: {text}" for name, text in texts.items())

    def governance(self) -> Governance:
        """The section; what nobody stated keeps the section's own words."""
        keys = ("responsible", "evaluator", "independence", "reviewer", "mappings")
        found: dict[str, Any] = {key: text for key in keys if (text := self(key)) != NOT_STATED}
        return Governance(**found, approval=Approval(name=self("approver"), role=self("approver_role")))


def _concept(
    files: ConceptFiles, recipe: Recipe, judges: Sequence[JudgeSection], change: str
) -> tuple[ConceptReport, list[Criterion]]:
    """A concept's sections and its criteria; change: digest of all edits of the model."""
    spec, gates = recipe.spec, recipe.gates
    if gates != spec.gates:
        raise SpecError(f"{files.recipe}, gates", "those of its spec", "others", "compile the spec again")
    name, concept = spec.name, spec.erase.concept
    rows = read_outcomes(files.outcomes)
    slices = by_slice(rows, recipe, files.outcomes)
    refuse_other_judges(rows, recipe, judges, files.outcomes)
    validation = _validation_of(rows, spec.judge.label, judges)
    erasure = [erasure_slice(part, recipe, validation) for part in slices if part.expect == "absent"]
    roles = {group.name: str(group.role) for group in spec.preserve}
    kept = [preserved_group(part, gates, roles.get(part.key, "")) for part in slices if part.expect == "present"]
    if not erasure:
        raise SpecError(str(files.outcomes), "rows that expect the concept to be absent", "none", "evaluate the recipe")
    kept = [if_drawn(group, gates.min_obeyed) for group in with_holm(kept)]
    answers = understanding_of(files, recipe)
    report = ConceptReport(
        name=name,
        concept=concept,
        edit=_edit(files, recipe),
        pairs=_pairs(files, recipe),
        protocol=_protocol(files, recipe, slices, gates.deciding(understanding=bool(answers.slices))),
        erasure=tuple(erasure),
        likelihoods=_likelihoods(files.likelihood, recipe),
        understanding=answers,
        attacks=_attacks(files.attacks, recipe, judges, change) if files.attacks else None,
        preservation=tuple(kept),
    )
    _refuse_other_sizes(files, recipe, slices, report.protocol.left_out)
    criteria = [line for part in erasure for line in sentences.erasure_criteria(name, concept, part, gates)]
    if validation is not None:
        criteria.append(sentences.judge_criterion(name, validation))
    criteria += [line for line in _judges_of_the_rest(name, recipe, judges) if line.decision != "PASS"]
    criteria += [sentences.preservation_criterion(name, group, gates) for group in kept]
    criteria += [sentences.members_criterion(name, group, gates) for group in kept]
    criteria += [sentences.understanding_criterion(name, concept, part, gates) for part in answers.slices]
    criteria += attack_criteria(name, concept, report.attacks)
    if not answers.slices and unanswered(files.understanding, recipe):
        criteria.append(sentences.not_understood(name, concept, answers))
    return report, criteria


def _refuse_other_sizes(
    files: ConceptFiles, recipe: Recipe, slices: Sequence[Slice], left_out: Sequence[LeftOutPrompt]
) -> None:
    """SpecError where nobody asks in one of the ways, or for a group of the spec: without prompts, no criterion; and
    where more was scored than the recipe says: going on until a bound is met makes it mean less.

    left_out: of a stack, prompts that another concept's edit rules out; then more than are left may have been scored.
    """
    there = {prompt.slice for prompt in recipe.evaluate.prompts} | {prompt.slice for prompt in left_out}
    wanted = [*SLICES, *(group.name for group in recipe.spec.preserve)]
    if missing := [name for name in wanted if name not in there]:
        where = f"{files.recipe}, evaluate"
        raise SpecError(where, f"prompts of {missing[0]}, as its spec says", "none", "compile the spec again")
    if more := [part for part in slices if len(part.pairs) > part.wanted and not left_out]:
        where, got = f"{files.outcomes}, slice {more[0].key}", f"{len(more[0].pairs)}"
        raise SpecError(where, f"the {more[0].wanted} prompts that the recipe says", got, "evaluate again")


def _change(run: RunFiles) -> str:
    """Digest of the model's edits in their order; a single edit has strength 1."""
    edits = read_record(StackRecord, run.order).edits if run.order else None
    told = [(one.edit, one.strength) for one in edits or ()]
    return digest_of_edits(told or [(read_record(EditRecord, files.edit).digest, 1.0) for files in run.concepts])


def _attacks(path: Path, recipe: Recipe, judges: Sequence[JudgeSection], change: str) -> Attacks:
    """What attacks found; SpecError if they were run on another model, on other edits, or read by another judge."""
    found = read_record(Attacks, path, AGAIN)
    refuse_other_base(path, recipe, found.base_digest)
    mine = [(judge.id, judge.digest) for judge in judges if judge.label == recipe.spec.judge.label]
    of_this = (found.concept, found.change) == (recipe.spec.name, change)
    if not of_this or (found.judge, found.judge_digest) not in mine:
        got = "another judge's" if of_this else "on another concept or edit"
        raise SpecError(str(path), "attacks on this very model, read by its judge", got, AGAIN)
    return found


def _scope(spec: Spec) -> ConceptScope:
    return ConceptScope(
        name=spec.name,
        concept=spec.erase.concept,
        kind=spec.kind,
        definition=spec.description or NOT_STATED,
        names=_names(spec),
        safety_note=spec.safety_note or NOT_STATED,
    )


def _names(spec: Spec) -> tuple[str, ...]:
    """The names that training may use; of a category how many they are, because prompts that ask for it are made of
    them."""
    names = spec.erase.aliases
    return (f"{len(names)}, {WITHHELD_NAMES}",) if names and spec.kind == CATEGORY else names


def _judge(row: JudgeRecord) -> JudgeSection:
    validation, card = None, row.card
    if card is not None:
        validation = Validation(
            data=card.data,
            sensitivity=stats.clopper_pearson(card.true_pos, card.n_pos),
            specificity=stats.clopper_pearson(card.true_neg, card.n_neg),
        )
    return JudgeSection(id=row.id, label=row.label, digest=row.digest, threshold=row.threshold, validation=validation)


def _validation_of(rows: Sequence[Outcome], label: str, judges: Sequence[JudgeSection]) -> Validation | None:
    """The card of the judge and label that scored the concept's absence."""
    used = {row.judge for row in rows if row.expect == "absent"}
    return next((judge.validation for judge in judges if judge.id in used and judge.label == label), None)


def _judges_of_the_rest(name: str, recipe: Recipe, judges: Sequence[JudgeSection]) -> Iterator[Criterion]:
    """One line for each label of what must stay whose judge was measured: one that says yes to everything keeps all."""
    labels = dict.fromkeys(one.judge_label for one in recipe.evaluate.prompts if one.expect == "present")
    for judge in judges:
        if judge.label in labels and judge.validation is not None:
            yield sentences.judge_criterion(name, judge.validation, judge.label)


def _protocol(files: ConceptFiles, recipe: Recipe, slices: Sequence[Slice], gates: dict[str, float]) -> Protocol:
    digest, hide = recipe.digest, recipe.spec.kind == CATEGORY
    sampling = recipe.evaluate.sampling.model_dump() if recipe.evaluate.sampling else {}
    fixed, left_out = _fixed(files.found_by, recipe, files.recipe) if files.found_by else (digest, ())
    return Protocol(
        recipe_digest=digest,
        fixed_digest=fixed,
        left_out=left_out,
        preregistration=sentences.preregistration(fixed, digest, left_out),
        prompt_sets=tuple(
            PromptSet(
                slice=part.key,
                expect=part.expect,
                n=len(part.asked),
                wanted=part.wanted,
                sha256=prompts_digest(part),
                screened=any(asked.adheres is not None for asked in part.asked),
                prompts=_repeated(part),
            )
            for part in slices
        ),
        seeds="one scored seed per image, the same for both models, fixed in the recipe; screening uses others",
        sampling={str(key): as_text(value) for key, value in sampling.items()},
        gates=gates,
        alpha=stats.ALPHA,
        multiple_testing="all criteria must pass, which needs no correction; 'regressed' is Holm-adjusted over groups",
        cannot_tell="counted as not detected for erasure (its rise is a criterion), as not kept for preservation",
        exclusions=sentences.exclusions(recipe.spec),
        redaction=sentences.REDACTED if hide else sentences.NOT_REDACTED,
    )


def _repeated(part: Slice) -> int | None:
    """How many different prompts a slice's candidates are, where some are drawn several times."""
    different = len({asked.prompt for asked in part.asked})
    return different if different < len(part.asked) else None


def _fixed(path: Path, recipe: Recipe, measured: Path) -> tuple[str, tuple[LeftOutPrompt, ...]]:
    """Digest of the recipe that found the edit, and its prompts that `recipe`, the one `measured` by, leaves out.

    SpecError unless everything else is the same: prompts and seeds in their order, gates, and as many to score.
    """
    found = read_recipe(path)
    asked = {prompt.id: prompt for prompt in found.evaluate.prompts}
    kept = {prompt.id: prompt for prompt in recipe.evaluate.prompts}
    gone = [prompt for key, prompt in asked.items() if key not in kept]
    lost = Counter(prompt.slice for prompt in gone)
    sizes = {name: max(1, size - lost[name]) for name, size in found.evaluate.n.items()}
    same = [key for key in asked if key in kept] == list(kept) and all(asked[key] == kept[key] for key in kept)
    scored = all(sizes.get(name) == size for name, size in recipe.evaluate.n.items())
    if not same or not scored or recipe.gates != found.gates:
        fix = "measure the stack again"
        raise SpecError(f"{measured}, evaluate", f"prompts, sizes and gates of {FOUND_BY}", "others", fix)
    hide = recipe.spec.kind == CATEGORY
    told = [
        LeftOutPrompt(
            id=prompt.id, slice=prompt.slice, prompt=WITHHELD if hide and prompt.expect == "absent" else prompt.prompt
        )
        for prompt in gone
    ]
    return found.digest, tuple(told)


def _stack(run: RunFiles, concepts: Sequence[ConceptReport]) -> StackSection | None:
    """What the edits of a stack do to each other; None for one concept. SpecError if the files are of another stack."""
    edits = read_record(StackRecord, run.order).edits if run.order else None
    if run.order is None or (run.interference is None and edits is None):
        return None
    path = run.interference or run.root / INTERFERENCE
    found = read_interference(path)
    stack = StackSection(
        edits=edits or (),
        alone=tuple(_with_rate(cell) for cell in found.alone),
        history=found.history,
        overlaps=found.overlaps,
        summary="",
    )
    digests = [read_record(EditRecord, files.edit).digest for files in run.concepts]
    if wrong := _of_another(stack, concepts, digests):
        raise SpecError(str(path), f"what was measured of this stack ({wrong})", "another", AGAIN)
    titles = {concept.name: concept.concept for concept in concepts}
    titles |= {edit.name: " and ".join(titles[name] for name in edit.concepts) for edit in stack.edits}
    return stack.model_copy(update={"summary": sentences.stack_summary(stack.alone, titles)})


def _with_rate(cell: Cell) -> StackCell:
    rate = stats.clopper_pearson(cell.found, cell.asked) if cell.asked else None
    return StackCell(**cell.model_dump(), rate=rate)


def _of_another(stack: StackSection, concepts: Sequence[ConceptReport], digests: Sequence[str]) -> str:
    """Which part of a stack's measurements belongs to other concepts, edits or outcomes; "" if none."""
    names, edits = [concept.name for concept in concepts], [edit.name for edit in stack.edits]
    if [(name, edit.edit) for edit in stack.edits for name in edit.concepts] != list(zip(names, digests, strict=True)):
        return f"the edits in {STACK}"
    if sorted((cell.edit, cell.concept) for cell in stack.alone) != sorted((a, b) for a in edits for b in names):
        return "alone"
    if {(one.first, one.second) for one in stack.overlaps} != {(a, b) for a in edits for b in edits if a != b}:
        return "overlaps"
    last = stack.history[-1].concepts if stack.history else {}
    counts = {name: {key: (part.found, part.n) for key, part in one.slices.items()} for name, one in last.items()}
    drawn = {
        concept.name: {part.slice: (part.all_found.k, part.all_found.n) for part in concept.erasure if part.all_found}
        for concept in concepts
    }
    return "" if counts == drawn else "history"


def _edit(files: ConceptFiles, recipe: Recipe) -> EditSection:
    info = files.told_of_edit(recipe).info
    own, peft = (files.edit.with_name(name) for name in ("edit.safetensors", "adapter_model.safetensors"))
    weights = own if own.is_file() else peft
    return EditSection(
        method=info.method,
        parameters={key: as_text(value) for key, value in info.params.items()},
        seed=str(info.seed),
        rank=info.rank,
        alpha=info.alpha,
        steps=info.steps,
        minutes=info.minutes,
        trainable_parameters=recipe.predicted.trainable,
        loss_first=info.losses[0] if info.losses else None,
        loss_last=info.losses[-1] if info.losses else None,
        base_digest=info.base_digest,
        file_sha256=file_digest(weights) if weights.is_file() else NOT_STATED,
        rounds=read_records(Round, files.rounds) if files.rounds else (),
        log=read_record(MethodLog, files.log) if files.log else None,
    )


def _likelihoods(path: Path | None, recipe: Recipe) -> Likelihoods:
    """The audit's figures with their readings; SpecError if it is damaged or of another base model."""
    if path is None:
        return Likelihoods()
    audit, concept = read_audit(path), recipe.spec.erase.concept
    if isinstance(audit, Skipped):
        found = Likelihoods(skipped=audit.why)
        return found.model_copy(update={"summary": sentences.likelihood_summary(concept, found)})
    refuse_other_base(path, recipe, audit.base_digest)
    found = Likelihoods(
        skipped="",
        summary="",
        images=sentences.images_from(recipe.spec),
        pack=audit.pack,
        dtype=audit.dtype,
        block=audit.block,
        slices=tuple(_likelihood_slice(part, audit.doubts) for part in audit.slices),
        groups=tuple(_likelihood_group(part) for part in audit.groups),
        unconditional=audit.unconditional,
        classified=_classes(audit.classified) if audit.classified else None,
        warnings=audit.warnings,
    )
    return found.model_copy(update={"summary": sentences.likelihood_summary(concept, found)})


def _likelihood_slice(part: SliceAudit, everywhere: Sequence[str]) -> LikelihoodSlice:
    """`everywhere`: doubts about the whole audit; they are doubts about every slice."""
    made = LikelihoodSlice(
        **vars(part), metric=f"erasure.cir[{part.slice}]", doubts=(*part.doubts, *everywhere), reading=""
    )
    return made.model_copy(update={"reading": sentences.likelihood_reading(made)})


def _likelihood_group(part: GroupAudit) -> LikelihoodGroup:
    return LikelihoodGroup(**vars(part), metric=f"keep.kl[{part.group}]", doubts=part.doubts)


def _classes(part: Classified) -> LikelihoodClasses:
    rates = {
        name: stats.clopper_pearson(round(share * part.n), part.n)
        for name, share in (("base", part.base), ("edited", part.edited))
    }
    return LikelihoodClasses(**{**vars(part), **rates}, doubts=part.doubts)


def _base_model(card: BaseCard) -> BaseModelSection:
    return BaseModelSection(
        reference=card.ref or f"{card.family}:{card.variant}",
        family=card.family,
        variant=card.variant,
        digest=card.digest,
        licence=card.licence,
        parameters=card.parameters,
        image_size=card.image_size,
        tokens=card.tokens,
        files=card.files,
    )


def _subject(run: RunFiles, base: BaseModelSection, concepts: Sequence[ConceptReport], machine: Machine) -> Subject:
    files = tuple(_model_files(run.model, _evidence(run))) if run.model else ()
    return Subject(
        name="-".join([base.family, base.variant, "edited", *(concept.name for concept in concepts)]),
        architecture=base.family,
        licence=base.licence,
        weights_digest=digest_of_files(files),
        files=files,
        signature="model.sig, where the folder is signed, covers every file of it, this report included; "
        "`safear-edit verify` checks it and names the key",
        verify=verify_command(machine.command),
        signer=sentences.signed_by(machine.signer),
    )


def verify_command(command: str) -> str:
    """How to verify what `command` made: its --out, and where the public key of its --key or --throwaway-key lies.

    The signature is made after the report, so a key that came from the environment or a key service isn't known here.
    """
    try:
        words = shlex.split(redact(command))
    except ValueError:
        words = []
    given = dict(pairwise(words)) | dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    key = given.get("--key", "")
    trust = given.get("--throwaway-key") or (PurePath(key).parent.as_posix() if key and ":" not in key else "KEYDIR")
    return shlex.join(["safear-edit", "verify", given.get("--out", "FOLDER"), "--trust", trust])


def digest_of_files(files: Sequence[File]) -> str:
    """sha256 over the lines "<sha256>  <name>" of the files, which are ordered by name."""
    lines = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest() if files else NOT_STATED


def digest_of_inputs(inputs: Mapping[str, str]) -> str:
    """The id of a report: 16 digits of the sha256 over everything that it was made from, file by file."""
    return hashlib.sha256(json.dumps(dict(inputs), sort_keys=True).encode()).hexdigest()[:16]


def _model_files(folder: Path, evidence: set[Path]) -> Iterator[File]:
    """What makes up the model, by name: neither files that describe the release nor the run's evidence.

    Evidence holds times and minutes; left out, the digest of the rest is the same when the run is repeated.
    """
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in OWN_FILES and path.resolve() not in evidence:
            yield File(name=name, sha256=file_digest(path), bytes=path.stat().st_size)


def _evidence(run: RunFiles) -> set[Path]:
    """Every file that the report is made from, resolved."""
    sheets = [path for files in run.concepts for path in files.sheets]
    captions = [path.with_suffix(".json") for path in sheets]
    figures = [path for path in map(_figure_of, run.concepts) if path]
    return {path.resolve() for path in (*_inputs(run), *sheets, *captions, *figures)}


def _asked_of_category(recipe: Recipe) -> frozenset[str]:
    """Of a category, the ids of prompts that ask for it, whose images nobody should have to see."""
    hide = recipe.spec.kind == CATEGORY
    return frozenset(prompt.id for prompt in recipe.evaluate.prompts if hide and prompt.expect == "absent")


def _sheet(path: Path, root: Path, hidden: frozenset[str]) -> Sheet:
    """An image sheet; its caption lies beside it as <name>.json. Only real PNGs of bearable size get into a report.

    SpecError if it shows an image of one of the prompts `hidden`, or training pairs of a category, unpixelated.
    """
    with path.open("rb") as file:
        magic = file.read(8)
    if magic != b"\x89PNG\r\n\x1a\n" or path.stat().st_size > SHEET_BYTES:
        raise UsageError(
            str(path), f"a PNG of at most {SHEET_BYTES >> 20} MiB", "something else", "draw the sheet again"
        )
    side = path.with_suffix(".json")
    note = read_record(SheetNote, side, "draw the sheet again") if side.is_file() else SheetNote()
    shown = {image.prompt_id for image in note.images}
    if note.redaction == "none" and (hidden & shown or (hidden and path.stem == PAIR_SHEET)):
        raise SpecError(str(path), "a pixelated sheet (the concept is a category)", "redaction none", "draw it again")
    return Sheet(
        file=path.relative_to(root).as_posix(),
        sha256=file_digest(path),
        caption=note.caption or path.stem,
        selection=note.selection,
        redaction=note.redaction,
    )


def _figure_of(files: ConceptFiles) -> Path | None:
    """What a method drew of its search."""
    path = files.log.with_name(FIGURE) if files.log else files.rounds.with_name(ENERGY) if files.rounds else None
    return path if path and path.is_file() else None


def _figure(path: Path, root: Path, concept: ConceptReport) -> Sheet:
    """The figure of a search, as a sheet: it shows numbers, and no image by either model."""
    found = _sheet(path, root, frozenset())
    what = "how much of each row of the image tokens' table lay in the directions that were taken out"
    log = concept.edit.log
    told = log.figure if log else f"{what}, before the edit and after each round"
    words = {"caption": f"{concept.concept}: {told}", "selection": "of the whole search"}
    return found.model_copy(update=words)


def _environment(found: Machine) -> Environment:
    known = ("started", "finished", "platform", "python", "device", "threads", "deterministic")
    words = {name: as_text(getattr(found, name)) for name in known}
    other = {name: as_text(value) for name, value in (found.model_extra or {}).items()}
    commit = f"{found.git.commit}{' with changes' if found.git.dirty else ''}" if found.git else NOT_STATED
    return Environment(
        **words,
        git=commit,
        packages=found.packages,
        plugins=found.plugins,
        text_encoder=found.text_encoder,
        other=other,
    )


def _inputs(run: RunFiles) -> list[Path]:
    paths = [run.environment, run.base, run.judges, run.order, run.interference]
    for files in run.concepts:
        paths += [files.recipe, files.found_by, files.outcomes, files.edit, files.rounds, files.log]
        paths += [files.pairs, files.pair_stats, files.likelihood, files.attacks]
        paths += [files.understanding, files.understanding.with_name(ROWS)] if files.understanding else []
        paths += [files.scored, *(files.scored.parent / name for name in files.sheet_names())] if files.scored else []
    return [path for path in paths if path is not None]


def _input_digests(run: RunFiles) -> dict[str, str]:
    return {path.relative_to(run.root).as_posix(): file_digest(path) for path in _inputs(run)}


def _pairs(files: ConceptFiles, recipe: Recipe) -> PairStats | None:
    """How many pairs were made and kept, why the others were dropped, and who wrote the safe captions.

    None for methods that construct none; SpecError if the counts don't add up. Without the file of counts the recipe
    says how many were asked for.
    """
    if files.pairs is None:
        return None
    kept, asked = sum(1 for _ in read_lines(PairRow, files.pairs)), len(recipe.construct.pairs)
    if files.pair_stats is None:
        return PairStats(asked, kept, {})
    counts, where = read_record(PairStats, files.pair_stats), str(files.pair_stats)
    dropped = sum(counts.reasons.values())
    if counts.kept != kept or counts.made != asked or counts.made != kept + dropped:
        got = f"{counts.made} made, {kept} kept, {dropped} dropped"
        raise SpecError(where, f"{asked} pairs accounted for", got, "construct again")
    if words := counts.captions:
        fallbacks = sum(words.fallbacks.values())
        if words.refined + fallbacks != counts.made:
            got = f"{words.refined} by the model, {fallbacks} by the templates"
            raise SpecError(where, f"{counts.made} safe captions accounted for", got, "construct again")
    return counts


def as_text(value: object) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _own_version() -> str:
    try:
        return metadata.version("safear-edit")
    except metadata.PackageNotFoundError:
        return "uninstalled"
