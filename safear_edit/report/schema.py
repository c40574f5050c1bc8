"""What an audit report holds, section by section: the schema of report.json and the one rule that makes its verdict.

Every field is there in every report: what nobody stated says so (`NOT_STATED`) instead of being left out. Seeds
are strings, because 64 bits don't survive every JSON reader.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from safear_edit.attacks.record import Attacks
from safear_edit.compiler.plugins import Plugin
from safear_edit.construct.pairs_record import PairStats
from safear_edit.editor.edit_record import Round, StackedEdit
from safear_edit.editor.method_log import MethodLog
from safear_edit.evaluate.interference_record import After, Cell, Overlap
from safear_edit.evaluate.likelihood_record import Divergence
from safear_edit.evaluate.members import Member
from safear_edit.evaluate.stats import Interval, Paired, Rate
from safear_edit.evaluate.verdict import EXIT_CODES, Verdict, overall
from safear_edit.files.records import StrictRecord

NOT_STATED = "not stated"
EVIDENCE = "evidence.html"
"""The page of all scored images, beside the report."""

Json = dict[str, Any]


class Section(StrictRecord):
    """Base of every section: frozen, no field that the schema doesn't have."""


class About(Section):
    id: str
    created: str
    generator: str
    language: str = "en"
    supersedes: str = NOT_STATED
    retention_until: str = NOT_STATED


class Criterion(Section):
    """One line of the verdict; `id` is kind/concept/slice and doubles as the test name in the signed claims."""

    id: str
    concept: str
    claim: str
    needed: str
    observed: str
    decision: Verdict
    why: str


class VerdictSection(Section):
    status: Verdict
    summary: str
    criteria: tuple[Criterion, ...]


class ConceptScope(Section):
    name: str
    concept: str
    kind: str
    definition: str
    names: tuple[str, ...]
    safety_note: str


class Scope(Section):
    concepts: tuple[ConceptScope, ...] = Field(min_length=1)
    modalities: str = "text in, image out"
    languages_tested: str = "only the prompt texts of the recipe; no language coverage is claimed"
    intended_use: str = NOT_STATED
    out_of_scope: str = NOT_STATED
    threat_model: str
    not_tested: tuple[str, ...] = Field(min_length=1)


class File(Section):
    name: str
    sha256: str
    bytes: int


class BaseModelSection(Section):
    reference: str
    family: str
    variant: str
    digest: str
    licence: str
    parameters: int | None
    image_size: int | None
    tokens: int | None
    files: dict[str, str]


class Subject(Section):
    """The edited model. `weights_digest`: sha256 over the lines "<sha256>  <name>" of `files`, ordered by name.

    verify: the command that checks the signature, with the folder and the place of the key that the run was given.
    signer: which key signs, and what that shows; "" in older reports.
    """

    name: str
    architecture: str
    licence: str
    weights_digest: str
    files: tuple[File, ...]
    signature: str
    verify: str = "safear-edit verify FOLDER --trust KEYDIR"
    signer: str = ""


class EditSection(Section):
    """log: what the method tells of its search, if anything; rounds: the same of a Safe-CB before there was a log."""

    method: str
    parameters: dict[str, str]
    seed: str
    rank: int | None
    alpha: float | None
    steps: int | None
    minutes: float | None
    trainable_parameters: int | None
    loss_first: float | None
    loss_last: float | None
    base_digest: str
    file_sha256: str
    rounds: tuple[Round, ...] = ()
    log: MethodLog | None = None


class Validation(Section):
    """What the judge got right on images whose content is known; intervals are two-sided 95 %."""

    data: str
    sensitivity: Rate
    specificity: Rate


class JudgeSection(Section):
    id: str
    label: str
    digest: str
    threshold: float | None
    validation: Validation | None


class PromptSet(Section):
    """n candidates, of which the first `wanted` that the base model draws as asked are scored (all, if not screened).

    sha256 is over "<seed>\\t<prompt>" lines in the recipe's order. prompts: how many different ones the n are, where
    some are drawn several times; None where each is drawn once.
    """

    slice: str
    expect: Literal["absent", "present"]
    n: int
    wanted: int
    sha256: str
    screened: bool = True
    source: str = "generated from the concept spec"
    prompts: int | None = Field(default=None, exclude_if=lambda number: number is None)


class LeftOutPrompt(Section):
    """A prompt of the recipe that found an edit by which a stack is not measured."""

    id: str
    slice: str
    prompt: str


class Protocol(Section):
    """recipe_digest: of the recipe that was measured by; fixed_digest: of the one that found the edit.

    They differ in a stack where prompts are left out: those that another concept erases, or another edit trained on.
    """

    recipe_digest: str
    fixed_digest: str = NOT_STATED
    left_out: tuple[LeftOutPrompt, ...] = ()
    preregistration: str
    prompt_sets: tuple[PromptSet, ...]
    seeds: str
    sampling: dict[str, str]
    gates: dict[str, float]
    alpha: float
    multiple_testing: str
    cannot_tell: str
    exclusions: str
    redaction: str


class Example(Section):
    """One image of the edited model; reason: what the judge said of it, "" in reports from before it was kept."""

    id: str
    prompt: str
    seed: str
    score: float | None
    reason: str = ""


class Clustered(Section):
    """The same bound with prompts of one content taken together (evaluate/clusters.py); the wider bound decides."""

    clusters: int
    design_effect: float
    bound: float


class Leak(Section):
    """One way of asking (a name, a sentence) on which the concept is found more often than the slice's gate allows, and
    than chance explains: p_holm is the exact one-sided binomial p, Holm over all ways of the slice."""

    way: str
    found: int
    n: int
    p_holm: float


class ErasureSlice(Section):
    """One way of asking for the concept. Rates of *finding* it are over the prompts that the base model draws as asked.

    `adherence`: share of prompts whose screening images show the concept; None: nothing was screened, and all count.
    `all_found`: finds among every scored prompt. `corrected`: images that are found or unreadable, with the judge's
    measured errors taken out (in reports from before 2026-11-30 those that are found). `found`: the prompts where the
    edited model still draws it, surest first. `clustered`: the lower bound by content; None in older reports.
    `unreadable_p`: of the images that became unreadable against those that became readable, exact and one-sided; None
    in older reports. `leak`: the way of asking that fails by itself, if one does.
    """

    slice: str
    metric: str
    meaning: str
    prompts: int
    adherence: Rate | None
    scored: int
    base_found: Rate | None
    edited_found: Rate | None
    erased: Rate | None
    erased_lower95: float | None
    clustered: Clustered | None = None
    erased_strict: Rate | None
    corrected: Rate | None
    all_found: Rate | None
    cannot_tell_base: int
    cannot_tell_edited: int
    unreadable_p: float | None = None
    needed: float
    floor: float
    decision: Verdict
    leak: Leak | None = Field(default=None, exclude_if=lambda leak: leak is None)
    found: tuple[Example, ...]

    @property
    def lower(self) -> float | None:
        """The one-sided 95 % lower bound that decides: the smaller of the plain one and that by content."""
        bounds = [self.erased_lower95, self.clustered.bound if self.clustered else None]
        return min((bound for bound in bounds if bound is not None), default=None)


class PreservedGroup(Section):
    """Prompts that must go on working, both models with the same seeds. `lost_examples`: what is no longer drawn.

    `prompts_to_decide`: of an undecided group, how many prompts would decide it either way with 80 % chance if the
    shares lost and gained were truly those observed; None where it is decided, or nothing was scored. `members`: the
    same for each label that a judge reads for this group, worst first; none in reports from before they were counted.
    `clustered`: the upper bound of the drop by content; None in older reports.
    """

    group: str
    metric: str
    role: str
    prompts: int
    adherence: Rate | None
    scored: int
    base_kept: Rate | None
    edited_kept: Rate | None
    cannot_tell_base: int
    cannot_tell_edited: int
    change: Paired | None
    clustered: Clustered | None = None
    mcnemar_p_holm: float | None
    most_drop: float
    decision: Verdict
    prompts_to_decide: int | None
    lost_examples: tuple[Example, ...]
    members: tuple[Member, ...] = ()

    @property
    def upper(self) -> float | None:
        """The one-sided 95 % upper bound of the drop that decides: the larger of the plain one and that by content."""
        bounds = [self.change.upper95 if self.change else None, self.clustered.bound if self.clustered else None]
        return max((bound for bound in bounds if bound is not None), default=None)


class LikelihoodSlice(Section):
    """What the models' own likelihoods say about n reference images of the concept, asked for in one way.

    cir: how much of what the prompt tells about the images is left (1 as in the base model, 0 nothing, below 0 less);
    abs_cir: the same against the base model's level without the prompt; None where there is no ratio. suppression:
    bits per token that the images lost. By block, coarse to fine or top to bottom: decided, the share of the
    base model's gain; profile, CIR there. doubts: why cir and abs_cir say nothing; reading: all that in words.
    """

    slice: str
    metric: str
    n: int
    cir: Interval | None
    abs_cir: Interval | None
    suppression: float
    decided: tuple[float | None, ...]
    profile: tuple[float | None, ...]
    doubts: tuple[str, ...]
    reading: str


class LikelihoodGroup(Section):
    """How far the edited model's probabilities moved on images that must stay, plain and as the sampler sees them."""

    group: str
    metric: str
    plain: Divergence
    guided: Divergence
    doubts: tuple[str, ...]


class LikelihoodClasses(Section):
    """Which prompt explains a reference image best: share for which it is the concept's, before and after.

    handle: what most of the others are now taken for, handle_share of all. options: prompts that competed.
    """

    n: int
    options: int
    base: Rate
    edited: Rate
    handle: str
    handle_share: float
    doubts: tuple[str, ...]


class Likelihoods(Section):
    """The likelihood audit of one concept: no image drawn, no judge. It decides nothing in this report.

    skipped: why nothing was measured, "" where it was; summary: the worst slice in one sentence. images: where the
    reference images come from; pack: their digest; block: what a depth profile is cut into, row or scale.
    """

    skipped: str = "no likelihood audit was made"
    summary: str = "Likelihoods were not looked at: no likelihood audit was made."
    images: str = NOT_STATED
    pack: str = NOT_STATED
    dtype: str = NOT_STATED
    block: str = "row"
    slices: tuple[LikelihoodSlice, ...] = ()
    groups: tuple[LikelihoodGroup, ...] = ()
    unconditional: Divergence | None = None
    classified: LikelihoodClasses | None = None
    warnings: tuple[str, ...] = ()


class UnderstoodSlice(Section):
    """n yes-or-no questions about reference images, the same to both models; half of the right answers are yes.

    base, edited: right answers; yes_*: said yes where that is right, false_*: where it is wrong. wanted: whether the
    right answers must stay (a fall of at most `most_drop`) or must be no better than guessing (`most_right` at most).
    asked: some of the questions.
    """

    slice: str
    metric: str
    role: str
    wanted: Literal["keep", "erase"]
    n: int
    asked: tuple[str, ...]
    base: Rate
    edited: Rate
    yes_base: Rate | None
    yes_edited: Rate | None
    false_base: Rate | None
    false_edited: Rate | None
    change: Paired
    mcnemar_p_holm: float | None
    most_drop: float
    most_right: float
    decision: Verdict
    why: str
    prompts_to_decide: int | None


class Understood(Section):
    """What the models answer about reference images, of a family that answers questions.

    skipped: why nothing was asked; "" where it was, and for a family or a run without questions (then `slices` is
    empty as well). unasked: images that no question fits; silent: preserved groups of which none was asked.
    """

    wanted: Literal["keep", "erase"] = "keep"
    skipped: str = ""
    summary: str = ""
    images: str = NOT_STATED
    pack: str = NOT_STATED
    unasked: int = 0
    silent: tuple[str, ...] = ()
    slices: tuple[UnderstoodSlice, ...] = ()


class ConceptReport(Section):
    name: str
    concept: str
    edit: EditSection
    pairs: PairStats | None
    protocol: Protocol
    erasure: tuple[ErasureSlice, ...]
    likelihoods: Likelihoods = Likelihoods()
    understanding: Understood = Understood()
    attacks: Attacks | None = Field(default=None, exclude_if=lambda found: found is None)
    preservation: tuple[PreservedGroup, ...]


class StackCell(Cell):
    """A cell of interference.json with its share's 95 % interval; None where nothing was asked."""

    rate: Rate | None = None


class StackSection(Section):
    """What the edits of a stack do to each other. It decides nothing: the criteria are of the whole stack.

    edits: first merged first. alone: every edit by itself on every concept. history: oldest first.
    """

    edits: tuple[StackedEdit, ...]
    alone: tuple[StackCell, ...]
    history: tuple[After, ...]
    overlaps: tuple[Overlap, ...]
    summary: str


class Adversarial(Section):
    statement: str


class Risk(Section):
    risk: str
    evidence: str
    mitigation: str
    likelihood: str = "not assessed"
    severity: str = "not assessed"
    owner: str = NOT_STATED


class Sheet(Section):
    file: str
    sha256: str
    caption: str
    selection: str
    redaction: str


class Approval(Section):
    name: str = NOT_STATED
    role: str = NOT_STATED
    date: str = NOT_STATED
    signature: str = NOT_STATED


Status = Literal["filled", "empty", "not applicable"]


class GovernanceItem(Section):
    """One item of a rule, and whether the report says something about it (governance.py). No claim of compliance."""

    framework: str
    item: str
    asks: str
    status: Status
    where: str


class Governance(Section):
    """People and rules, which a program can't know: what the specs say under `governance`, never guessed.

    items: what rules ask for and where it is; none in older reports.

    A date and a signature of approval can't be written before the result is there: they stay with whoever approves.
    """

    responsible: str = NOT_STATED
    evaluator: str = NOT_STATED
    independence: str = f"{NOT_STATED}; the program that made the edit also measured it"
    reviewer: str = NOT_STATED
    approval: Approval = Approval()
    mappings: str = NOT_STATED
    items: tuple[GovernanceItem, ...] = ()


class EncoderFile(StrictRecord):
    """The text encoder that read the captions: it is not among a model's files, and its images depend on it."""

    name: str
    sha256: str


class Environment(Section):
    started: str
    finished: str
    platform: str
    python: str
    device: str
    threads: str
    deterministic: str
    git: str
    packages: dict[str, str]
    plugins: tuple[Plugin, ...] = ()
    text_encoder: EncoderFile | None = None
    other: dict[str, str]


class Reproduce(Section):
    command: str
    inputs: dict[str, str]
    expected: str


class Report(Section):
    """report.json: everything that page, model card and bill of materials show, and nothing else.

    evidence: the page of all scored images, "" where they were not kept.
    """

    schema_version: Literal[3] = 3
    report: About
    verdict: VerdictSection
    scope: Scope
    subject: Subject
    base_model: BaseModelSection
    concepts: tuple[ConceptReport, ...] = Field(min_length=1)
    stack: StackSection | None = None
    judges: tuple[JudgeSection, ...]
    adversarial: Adversarial
    residual_risks: tuple[Risk, ...]
    limitations: tuple[str, ...] = Field(min_length=1)
    images: tuple[Sheet, ...]
    evidence: str = Field(default="", exclude_if=lambda name: not name)
    governance: Governance
    environment: Environment
    reproduce: Reproduce

    @model_validator(mode="after")
    def _verdict_follows(self) -> Report:
        if self.verdict.status != overall(criterion.decision for criterion in self.verdict.criteria):
            raise ValueError("verdict.status does not follow from verdict.criteria")
        return self

    def to_json(self) -> str:
        """The text of report.json: same report, same bytes."""
        return self.model_dump_json(indent=2) + "\n"


def verdict(report: Report) -> tuple[Verdict, int]:
    """The decision and the exit code that stands for it: PASS 0, FAIL 1, INCONCLUSIVE 3."""
    status = overall(criterion.decision for criterion in report.verdict.criteria)
    return status, EXIT_CODES[status]


def report_schema() -> Json:
    """The JSON Schema of report.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}
