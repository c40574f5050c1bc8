"""The audit report: what was measured on which prompts, what that is worth, and what nobody looked at.

`build_report` reads the files of a finished run (evidence.py) and nothing else (no model, no network), so a report can
be rebuilt tomorrow and be the same. How images and answers are counted is in criteria.py.

Of a category, prompts that ask for it are withheld and images of them must be pixelated; a sheet that says it isn't
is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from safear_edit.errors import SpecError, UsageError
from safear_edit.evaluate import stats
from safear_edit.evaluate.outcomes import WITHHELD, Outcome, first_fault, lines_of, read_outcomes
from safear_edit.evaluate.understanding import ROWS
from safear_edit.redact import redact
from safear_edit.report import sentences
from safear_edit.report.criteria import (
    Slice,
    by_slice,
    erasure_slice,
    preserved_group,
    prompts_digest,
    unanswered,
    understanding_of,
    with_holm,
    with_usual_gates,
)
from safear_edit.report.evidence import (
    ENERGY,
    FOUND_BY,
    INTERFERENCE,
    STACK,
    ConceptFiles,
    RunFiles,
    as_text,
    file_digest,
    read_object,
    read_rows,
    required,
)
from safear_edit.report.schema import (
    NOT_STATED,
    About,
    Adversarial,
    Approval,
    BaseModelSection,
    CaptionSection,
    ConceptReport,
    ConceptScope,
    Criterion,
    Drift,
    EditRound,
    EditSection,
    Environment,
    File,
    Governance,
    Json,
    JudgeSection,
    LeftOutPrompt,
    LikelihoodClasses,
    LikelihoodGroup,
    Likelihoods,
    LikelihoodSlice,
    PairSection,
    PromptSet,
    Protocol,
    Report,
    Reproduce,
    Section,
    Sheet,
    Stack,
    StackAgreement,
    StackCell,
    StackedEdit,
    StackEvent,
    StackForetold,
    StackOverlap,
    Subject,
    Validation,
    Verdict,
    overall,
)

CATEGORY = "category"
PAIR_SHEET = "pairs"
"""The sheet that construct/sheets.py draws; its images have no prompt ids."""
SHEET_BYTES = 4 * 1024 * 1024
OWN_FILES = frozenset({"report.json", "report.html", "README.md", "bom.cdx.json", "model.sig", "claims.jsonl"})
"""Files of a release that describe it; the digest of the weights leaves them out, because they contain it."""


def read_report(path: Path) -> Report:
    """A report from disk; SpecError when it isn't one, or when its verdict doesn't follow from its criteria."""
    try:
        return Report.model_validate(read_object(path))
    except ValidationError as error:
        raise SpecError(
            str(path), "a safear-edit report, schema 1", first_fault(error), "rebuild it from its run"
        ) from error


def build_report(run: RunFiles) -> Report:
    """What the files of a finished run show. SpecError when one is missing or they contradict each other."""
    environment = read_object(run.environment)
    base = _base_model(read_object(run.base), run.base)
    judges = tuple(_judge(row, run.judges) for row in read_rows(run.judges))
    plans = [read_object(files.recipe) for files in run.concepts]
    built = [_concept(files, plan, judges) for files, plan in zip(run.concepts, plans, strict=True)]
    concepts = tuple(concept for concept, _ in built)
    criteria = tuple(criterion for _, several in built for criterion in several)
    asked = _asked_of_categories(plans)
    sheets = [_sheet(path, run.root, asked[i]) for i, files in enumerate(run.concepts) for path in files.sheets]
    figures = zip(concepts, map(_energy_of, run.concepts), strict=True)
    sheets += [_energy(path, run.root, concept) for concept, path in figures if path]
    inputs = _input_digests(run)
    said = _Said.of(plans)
    scope = sentences.scope(_scopes(run, plans), concepts, said("intended_use"), said("out_of_scope"))
    subject = _subject(run, base, concepts)
    return Report(
        report=About(
            id=hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16],
            created=str(environment.get("finished", NOT_STATED)),
            generator=f"safear-edit {_own_version()}",
            supersedes=said("supersedes"),
            retention_until=said("retention_until"),
        ),
        verdict=Verdict(status=overall(criteria), summary=sentences.summary(concepts, criteria), criteria=criteria),
        scope=scope,
        subject=subject,
        base_model=base,
        concepts=concepts,
        stack=_stack(run, concepts),
        judges=judges,
        adversarial=Adversarial(statement=sentences.NO_ATTACK),
        residual_risks=sentences.risks(concepts, said("responsible")),
        limitations=sentences.limitations(concepts, judges),
        images=tuple(sheets),
        governance=said.governance(),
        environment=_environment(environment),
        reproduce=Reproduce(
            command=redact(str(environment.get("command", NOT_STATED))),
            inputs=inputs,
            expected=f"the same recipe on the same kind of machine gives weights_digest {subject.weights_digest}",
        ),
    )


@dataclass(frozen=True)
class _Said:
    """What the specs say under `governance`; called with a key, one text for the whole report."""

    blocks: dict[str, Json]

    @classmethod
    def of(cls, plans: Sequence[Json]) -> _Said:
        specs = [{"governance": {}} | required(plan, "spec", dict, "recipe.json") for plan in plans]
        return cls({str(spec["name"]): required(spec, "governance", dict, "recipe.json, spec") for spec in specs})

    def __call__(self, key: str) -> str:
        """What all specs say; if they differ, what each says under its name; NOT_STATED if none says anything."""
        texts = {name: str(block.get(key) or NOT_STATED) for name, block in self.blocks.items()}
        distinct = list(dict.fromkeys(texts.values()))
        return distinct[0] if len(distinct) == 1 else "; ".join(f"{name}: {text}" for name, text in texts.items())

    def governance(self) -> Governance:
        """The section; what nobody stated keeps the section's own words."""
        keys = ("responsible", "evaluator", "independence", "reviewer", "mappings")
        found = {key: text for key in keys if (text := self(key)) != NOT_STATED}
        return Governance(**found, approval=Approval(name=self("approver"), role=self("approver_role")))


def _concept(files: ConceptFiles, plan: Json, judges: Sequence[JudgeSection]) -> tuple[ConceptReport, list[Criterion]]:
    """A concept's sections and its criteria."""
    where = str(files.recipe)
    spec, gates = required(plan, "spec", dict, where), _gates(plan, where)
    name, concept = str(spec["name"]), str(required(spec, "erase", dict, where)["concept"])
    rows = read_outcomes(files.outcomes)
    slices = by_slice(rows, plan, files.outcomes)
    validation = _validation_of(rows, str((spec.get("judge") or {}).get("label", "")), judges)
    hide = spec.get("kind") == CATEGORY
    erasure = [erasure_slice(part, gates, validation, hide) for part in slices if part.expect == "absent"]
    roles = {str(group["name"]): str(group.get("role", "")) for group in spec.get("preserve", [])}
    kept = [preserved_group(part, gates, roles.get(part.key, "")) for part in slices if part.expect == "present"]
    if not erasure:
        raise SpecError(str(files.outcomes), "rows that expect the concept to be absent", "none", "evaluate the recipe")
    kept = with_holm(kept)
    answers = understanding_of(files.understanding, plan, concept, gates, hide)
    if answers.slices:
        gates = with_usual_gates(gates)
    report = ConceptReport(
        name=name,
        concept=concept,
        edit=_edit(files.edit, files.rounds, plan),
        pairs=_pairs(files.pairs, files.pair_stats, plan) if files.pairs else None,
        protocol=_protocol(plan, slices, gates, files, hide),
        erasure=tuple(erasure),
        likelihoods=_likelihoods(files.likelihood, plan, concept),
        understanding=answers,
        preservation=tuple(kept),
    )
    criteria = [line for part in erasure for line in sentences.erasure_criteria(name, concept, part, gates)]
    if validation is not None:
        criteria.append(sentences.judge_criterion(name, validation))
    criteria += [sentences.preservation_criterion(name, group, gates) for group in kept]
    criteria += [sentences.understanding_criterion(name, concept, part, gates) for part in answers.slices]
    if not answers.slices and unanswered(files.understanding, spec):
        criteria.append(sentences.not_understood(name, concept, answers))
    return report, criteria


def _scopes(run: RunFiles, plans: Sequence[Json]) -> tuple[ConceptScope, ...]:
    """What each recipe's spec says about its concept."""
    scopes = []
    for files, plan in zip(run.concepts, plans, strict=True):
        spec = required(plan, "spec", dict, files.recipe)
        erase = required(spec, "erase", dict, files.recipe)
        scopes.append(
            ConceptScope(
                name=str(spec["name"]),
                concept=str(erase["concept"]),
                kind=str(spec.get("kind", NOT_STATED)),
                definition=str(spec.get("description") or NOT_STATED),
                names=tuple(str(alias) for alias in erase.get("aliases", [])),
                safety_note=str(spec.get("safety_note") or NOT_STATED),
            )
        )
    return tuple(scopes)


def _gates(plan: Json, where: str) -> dict[str, float]:
    """The recipe's gates; SpecError when one that a criterion needs is missing."""
    gates = {str(k): float(v) for k, v in required(plan, "gates", dict, where).items() if v is not None}
    for name in ("erasure_paraphrase", "preserve_drop", "preserve_upper", "min_obeyed"):
        if name not in gates:
            raise SpecError(where, f"gates.{name}", "none", "compile the recipe again")
    return gates


def _judge(row: Json, where: Path) -> JudgeSection:
    card, validation = row.get("card"), None
    if card:
        try:
            validation = Validation(
                data=str(card.get("data", NOT_STATED)),
                sensitivity=stats.clopper_pearson(int(card["true_pos"]), int(card["n_pos"])),
                specificity=stats.clopper_pearson(int(card["true_neg"]), int(card["n_neg"])),
            )
        except (KeyError, ValueError) as error:
            raise SpecError(
                str(where), "a card with n_pos, true_pos, n_neg, true_neg", str(error), "measure it again"
            ) from error
    threshold = row.get("threshold")
    return JudgeSection(
        id=str(row.get("id", NOT_STATED)),
        label=str(row.get("label", NOT_STATED)),
        digest=str(row.get("digest", NOT_STATED)),
        threshold=None if threshold is None else float(threshold),
        validation=validation,
    )


def _validation_of(rows: Sequence[Outcome], label: str, judges: Sequence[JudgeSection]) -> Validation | None:
    """The card of the judge and label that scored the concept's absence."""
    used = {row.judge for row in rows if row.expect == "absent"}
    return next((judge.validation for judge in judges if judge.id in used and judge.label == label), None)


def _protocol(
    plan: Json, slices: Sequence[Slice], gates: dict[str, float], files: ConceptFiles, hide: bool
) -> Protocol:
    digest = str(plan.get("digest") or file_digest(files.recipe))
    sampling = required(plan, "evaluate", dict, files.recipe).get("sampling") or {}
    fixed, left_out = _fixed(files.found_by, plan, files.recipe, hide) if files.found_by else (digest, ())
    return Protocol(
        recipe_digest=digest,
        fixed_digest=fixed,
        left_out=left_out,
        preregistration=sentences.preregistration(fixed, digest, left_out),
        prompt_sets=tuple(
            PromptSet(
                slice=part.key, expect=part.expect, n=len(part.asked), wanted=part.wanted, sha256=prompts_digest(part)
            )
            for part in slices
        ),
        seeds="one scored seed per prompt, the same for both models, fixed in the recipe; screening uses others",
        sampling={str(key): as_text(value) for key, value in sampling.items()},
        gates=gates,
        alpha=stats.ALPHA,
        multiple_testing="all criteria must pass, which needs no correction; 'regressed' is Holm-adjusted over groups",
        cannot_tell="counted as not detected for erasure (its rise is a criterion), as not kept for preservation",
        exclusions="prompts for which the base model does not draw what was asked, by screening seeds, and reserve "
        "candidates beyond the wanted number, in the recipe's order; none after scoring",
        redaction=sentences.REDACTED if hide else sentences.NOT_REDACTED,
    )


def _fixed(path: Path, plan: Json, measured: Path, hide: bool) -> tuple[str, tuple[LeftOutPrompt, ...]]:
    """Digest of the recipe that found the edit, and its prompts that `plan`, the recipe `measured` by, leaves out.

    SpecError unless everything else is the same: prompts and seeds in their order, gates, and as many to score.
    """
    found = read_object(path)
    before, now = (required(recipe, "evaluate", dict, where) for recipe, where in ((found, path), (plan, measured)))
    asked = {_prompt_id(prompt, path): prompt for prompt in required(before, "prompts", list, path)}
    kept = {_prompt_id(prompt, measured): prompt for prompt in required(now, "prompts", list, measured)}
    gone = [prompt for key, prompt in asked.items() if key not in kept]
    lost = Counter(str(prompt.get("slice")) for prompt in gone)
    sizes = {name: max(1, size - lost[name]) for name, size in (before.get("n") or {}).items()}
    same = [key for key in asked if key in kept] == list(kept) and all(asked[key] == kept[key] for key in kept)
    scored = all(sizes.get(name) == size for name, size in (now.get("n") or {}).items())
    if not same or not scored or plan.get("gates") != found.get("gates"):
        fix = "measure the stack again"
        raise SpecError(f"{measured}, evaluate", f"prompts, sizes and gates of {FOUND_BY}", "others", fix)
    told = [
        LeftOutPrompt(
            id=str(prompt["id"]),
            slice=str(prompt.get("slice")),
            prompt=WITHHELD if hide and prompt.get("expect") == "absent" else str(prompt.get("prompt")),
        )
        for prompt in gone
    ]
    return str(found.get("digest") or file_digest(path)), tuple(told)


def _prompt_id(prompt: object, where: Path) -> str:
    if not isinstance(prompt, dict) or "id" not in prompt:
        raise SpecError(f"{where}, evaluate.prompts", "prompts with an id", "something else", "measure the stack again")
    return str(prompt["id"])


def _stack(run: RunFiles, concepts: Sequence[ConceptReport]) -> Stack | None:
    """What the edits of a stack do to each other; None for one concept. SpecError if the files are of another stack."""
    told = read_object(run.order) if run.order else {}
    if run.order is None or (run.interference is None and "edits" not in told):
        return None
    path = run.interference or run.root / INTERFERENCE
    found = read_object(path)
    cells = _parts(StackCell, found, "alone", path)
    rates = [stats.clopper_pearson(cell.found, cell.asked) if cell.asked else None for cell in cells]
    stack = Stack(
        edits=_parts(StackedEdit, told, "edits", run.order),
        alone=tuple(cell.model_copy(update={"rate": rate}) for cell, rate in zip(cells, rates, strict=True)),
        history=_parts(StackEvent, found, "history", path),
        overlaps=_parts(StackOverlap, found, "overlaps", path),
        foretold=_parts(StackForetold, {"foretold": [], **found}, "foretold", path),
        agreement=_parts(StackAgreement, {"agreement": [], **found}, "agreement", path),
        summary="",
    )
    digests = [str(read_object(files.edit).get("digest")) for files in run.concepts]
    if wrong := _of_another(stack, concepts, digests):
        raise SpecError(str(path), f"what was measured of this stack ({wrong})", "another", "finish the run again")
    titles = {concept.name: concept.concept for concept in concepts}
    titles |= {edit.name: " and ".join(titles[name] for name in edit.concepts) for edit in stack.edits}
    return stack.model_copy(update={"summary": sentences.stack_summary(stack.alone, titles)})


def _of_another(stack: Stack, concepts: Sequence[ConceptReport], digests: Sequence[str]) -> str:
    """Which part of a stack's measurements belongs to other concepts, edits or outcomes; "" if none."""
    names, edits = [concept.name for concept in concepts], [edit.name for edit in stack.edits]
    if [(name, edit.edit) for edit in stack.edits for name in edit.concepts] != list(zip(names, digests, strict=True)):
        return f"the edits in {STACK}"
    if sorted((cell.edit, cell.concept) for cell in stack.alone) != sorted((a, b) for a in edits for b in names):
        return "alone"
    if {(one.first, one.second) for one in stack.overlaps} != {(a, b) for a in edits for b in edits if a != b}:
        return "overlaps"
    if not {one.first for one in stack.foretold} <= {*edits} or not {one.second for one in stack.foretold} <= {*names}:
        return "foretold"
    last = stack.history[-1].concepts if stack.history else {}
    counts = {name: {key: (part.found, part.n) for key, part in one.slices.items()} for name, one in last.items()}
    drawn = {
        concept.name: {part.slice: (part.all_found.k, part.all_found.n) for part in concept.erasure if part.all_found}
        for concept in concepts
    }
    return "" if counts == drawn else "history"


P = TypeVar("P", bound=Section)


def _parts(kind: type[P], holder: Json, key: str, where: Path) -> tuple[P, ...]:
    """The list under `key` as parts of the report; SpecError naming the first that is none."""
    try:
        return tuple(kind.model_validate(row) for row in required(holder, key, list, where))
    except ValidationError as error:
        fix = "finish the run again"
        raise SpecError(f"{where}, {key}", "what safear-edit writes there", first_fault(error), fix) from error


def _edit(path: Path, rounds: Path | None, plan: Json) -> EditSection:
    record = read_object(path)
    info: Json = {**record, **record["info"]} if isinstance(record.get("info"), dict) else record
    losses = [float(loss) for loss in info.get("losses") or []]
    weights = path.with_name("edit.safetensors")
    predicted = plan.get("predicted") if isinstance(plan.get("predicted"), dict) else {}
    return EditSection(
        method=str(info.get("method", NOT_STATED)),
        parameters={str(key): as_text(value) for key, value in (info.get("params") or {}).items()},
        seed=str(info.get("seed", NOT_STATED)),
        rank=info.get("rank"),
        alpha=info.get("alpha"),
        steps=info.get("steps"),
        minutes=info.get("minutes"),
        trainable_parameters=(predicted or {}).get("trainable"),
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        base_digest=str(info.get("base_digest", NOT_STATED)),
        file_sha256=file_digest(weights) if weights.is_file() else NOT_STATED,
        rounds=_rounds(rounds) if rounds else (),
    )


def _rounds(path: Path) -> tuple[EditRound, ...]:
    """What each round of a search did; what the method logs beyond that stays in the file."""
    rows = [{key: row[key] for key in EditRound.model_fields if key in row} for row in read_rows(path)]
    return _parts(EditRound, {"rounds": rows}, "rounds", path)


def _likelihoods(path: Path | None, plan: Json, concept: str) -> Likelihoods:
    """The audit's figures with their readings; SpecError if it is damaged or of another base model."""
    if path is None:
        return Likelihoods()
    data = read_object(path)
    if data.get("skipped"):
        found = Likelihoods(skipped=str(data["skipped"]))
        return found.model_copy(update={"summary": sentences.likelihood_summary(concept, found)})
    base, audited = str((plan.get("model") or {}).get("digest")), str(data.get("base_digest"))
    if base != audited:
        fix = "delete it and finish the run again"
        raise SpecError(f"{path}, base_digest", f"the recipe's model, {base[:12]}…", f"{audited[:12]}…", fix)
    asked = required(plan, "spec", dict, path).get("evaluate") or {}
    try:
        found = Likelihoods(
            skipped="",
            summary="",
            pictures=sentences.FROM_A_FOLDER if asked.get("references") else sentences.RENDERED,
            pack=data["pack"],
            dtype=data["dtype"],
            block=data["block"],
            slices=tuple(_likelihood_slice(row, required(data, "doubts", list, path)) for row in data["slices"]),
            groups=tuple(LikelihoodGroup(metric=f"keep.kl[{row['group']}]", **row) for row in data["groups"]),
            unconditional=Drift(**data["unconditional"]),
            classified=_classes(data["classified"]) if data["classified"] else None,
            warnings=tuple(required(data, "warnings", list, path)),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        got = first_fault(error) if isinstance(error, ValidationError) else f"{type(error).__name__} {error}"
        raise SpecError(str(path), "a likelihood audit", got, "delete it and finish the run again") from error
    return found.model_copy(update={"summary": sentences.likelihood_summary(concept, found)})


def _likelihood_slice(row: Json, everywhere: Sequence[str]) -> LikelihoodSlice:
    """`everywhere`: doubts about the whole audit; they are doubts about every slice."""
    whole = {**row, "doubts": [*row["doubts"], *everywhere], "metric": f"erasure.cir[{row['slice']}]", "reading": ""}
    part = LikelihoodSlice.model_validate(whole)
    return part.model_copy(update={"reading": sentences.likelihood_reading(part)})


def _classes(row: Json) -> LikelihoodClasses:
    n = int(row["n"])
    rates = {name: stats.clopper_pearson(round(row[name] * n), n) for name in ("base", "edited")}
    return LikelihoodClasses(**{**row, **rates})


def _base_model(card: Json, where: Path) -> BaseModelSection:
    family, variant = str(required(card, "family", str, where)), str(required(card, "variant", str, where))
    return BaseModelSection(
        reference=str(card.get("ref") or f"{family}:{variant}"),
        family=family,
        variant=variant,
        digest=str(card.get("digest", NOT_STATED)),
        licence=str(card.get("licence", NOT_STATED)),
        parameters=card.get("parameters"),
        image_size=card.get("image_size"),
        tokens=card.get("tokens"),
        files={str(name): str(digest) for name, digest in (card.get("files") or {}).items()},
    )


def _subject(run: RunFiles, base: BaseModelSection, concepts: Sequence[ConceptReport]) -> Subject:
    files = tuple(_model_files(run.model, _evidence(run))) if run.model else ()
    lines = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    return Subject(
        name="-".join([base.family, base.variant, "edited", *(concept.name for concept in concepts)]),
        architecture=base.family,
        licence=base.licence,
        weights_digest=hashlib.sha256(lines.encode()).hexdigest() if files else NOT_STATED,
        files=files,
        signature="model.sig beside this report covers every file of the folder, this report included; "
        "`safear-edit verify FOLDER --trust KEYDIR` checks it",
    )


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
    figures = [path for path in map(_energy_of, run.concepts) if path]
    return {path.resolve() for path in (*_inputs(run), *sheets, *captions, *figures)}


def _asked_of_categories(plans: Sequence[Json]) -> list[frozenset[str]]:
    """For each recipe the ids of prompts that ask for a category, whose images nobody should have to see."""
    found = []
    for plan in plans:
        hide = required(plan, "spec", dict, "recipe.json").get("kind") == CATEGORY
        prompts = required(required(plan, "evaluate", dict, "recipe.json"), "prompts", list, "recipe.json")
        found.append(frozenset(str(p["id"]) for p in prompts if hide and p["expect"] == "absent"))
    return found


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
    words = read_object(side) if side.is_file() else {}
    redaction = str(words.get("redaction") or "none")
    shown = {str(picture.get("prompt_id")) for picture in words.get("pictures") or []}
    if redaction == "none" and (hidden & shown or (hidden and path.stem == PAIR_SHEET)):
        raise SpecError(str(path), "a pixelated sheet (the concept is a category)", "redaction none", "draw it again")
    return Sheet(
        file=path.relative_to(root).as_posix(),
        sha256=file_digest(path),
        caption=str(words.get("caption") or path.stem),
        selection=str(words.get("selection") or "how the images were chosen is not stated"),
        redaction=redaction,
    )


def _energy_of(files: ConceptFiles) -> Path | None:
    path = files.rounds.with_name(ENERGY) if files.rounds else None
    return path if path and path.is_file() else None


def _energy(path: Path, root: Path, concept: ConceptReport) -> Sheet:
    """The figure of a search in rounds, as a sheet: it shows numbers, and no image by either model."""
    found = _sheet(path, root, frozenset())
    what = "how much of each row of the image tokens' table lay in the directions that were taken out"
    caption = f"{concept.concept}: {what}, before the edit and after each round"
    words = {"caption": caption, "selection": "all rows and rounds"}
    return found.model_copy(update=words)


def _environment(found: Json) -> Environment:
    git = found.get("git")
    known = ("started", "finished", "platform", "python", "device", "threads", "deterministic")
    words = {name: as_text(found.get(name, NOT_STATED)) for name in known}
    packages = {str(name): str(version) for name, version in (found.get("packages") or {}).items()}
    other = {str(k): as_text(v) for k, v in found.items() if k not in {*known, "git", "packages", "command"}}
    commit = (
        f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}" if isinstance(git, dict) else as_text(git)
    )
    return Environment(**words, git=commit if git else NOT_STATED, packages=packages, other=other)


def _inputs(run: RunFiles) -> list[Path]:
    paths = [run.environment, run.base, run.judges, run.order, run.interference]
    for files in run.concepts:
        paths += [files.recipe, files.found_by, files.outcomes, files.edit, files.rounds]
        paths += [files.pairs, files.pair_stats, files.likelihood]
        paths += [files.understanding, files.understanding.with_name(ROWS)] if files.understanding else []
    return [path for path in paths if path is not None]


def _input_digests(run: RunFiles) -> dict[str, str]:
    return {path.relative_to(run.root).as_posix(): file_digest(path) for path in _inputs(run)}


def _pairs(path: Path, counted: Path | None, plan: Json) -> PairSection:
    """How many pairs were made and kept, why the others were dropped, and who wrote the safe captions.

    SpecError if the counts don't add up. Without the file of counts the recipe says how many were asked for.
    """
    kept, where = sum(1 for _ in lines_of(path)), counted or path
    asked = len(required(required(plan, "construct", dict, path), "pairs", list, path))
    counts: Json = read_object(counted) if counted else {"made": asked, "kept": kept, "reasons": {}}
    reasons = required(counts, "reasons", dict, where)
    made = required(counts, "made", int, where)
    if counts.get("kept") != kept or made != asked or (counted and made != kept + sum(reasons.values())):
        got = f"{made} made, {kept} kept, {sum(reasons.values())} dropped"
        raise SpecError(str(where), f"{asked} pairs accounted for", got, "construct again")
    return PairSection(made=made, kept=kept, reasons=reasons, captions=_captions(counts, made, where))


def _captions(counts: Json, made: int, where: Path) -> CaptionSection | None:
    """None if the safe captions are the templates'; SpecError if the counts don't add up to the pairs."""
    if counts.get("captions") is None:
        return None
    stated = required(counts, "captions", dict, where)
    refined, fallbacks = required(stated, "refined", int, where), required(stated, "fallbacks", dict, where)
    if refined + sum(fallbacks.values()) != made:
        got = f"{refined} by the model, {sum(fallbacks.values())} by the templates"
        raise SpecError(str(where), f"{made} safe captions accounted for", got, "construct again")
    return CaptionSection(refined=refined, fallbacks=fallbacks)


def _own_version() -> str:
    try:
        return metadata.version("safear-edit")
    except metadata.PackageNotFoundError:
        return "uninstalled"
