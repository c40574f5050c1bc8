"""What an audit report holds, section by section: the schema of report.json and the one rule that makes its verdict.

Every field is there in every report: what nobody stated says so (`NOT_STATED`) instead of being left out. Seeds
are strings, because 64 bits don't survive every JSON reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from safear_edit.evaluate import stats
from safear_edit.evaluate.stats import Interval, Paired, Rate
from safear_edit.spec.spec import concepts_of

STATUS_OF: dict[stats.Decision, Status] = {"PASS": "pass", "REGRESSED": "fail", "INCONCLUSIVE": "inconclusive"}

NOT_STATED = "not stated"

Status = Literal["pass", "fail", "inconclusive"]
Json = dict[str, Any]
EXIT_CODES: dict[Status, int] = {"pass": 0, "fail": 1, "inconclusive": 3}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    decision: Status
    why: str


class Verdict(Section):
    status: Status
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
    """The edited model. `weights_digest`: sha256 over the lines "<sha256>  <name>" of `files`, ordered by name."""

    name: str
    architecture: str
    licence: str
    weights_digest: str
    files: tuple[File, ...]
    signature: str


class EditRound(Section):
    """One round of a method that works in rounds on the image tokens' table (Safe-CB).

    pairs: of those drawn, the ones that could be told apart. dimension: directions taken out so far; captured: share of
    the pairs' difference in this round's directions; energy: mean share of a table row in them. harmful, unclear: on
    training prompts under seeds of their own, by the search's own judge; drift: nats per token to the base model
    on preserved training images; all three None where nobody looked. agreement: that judge against the pinned one.
    taken: False for a last round that was undone.
    """

    number: int
    drawn: int
    pairs: int
    dimension: int
    captured: float
    rows_moved: int
    energy_before: float
    energy_after: float
    harmful_before: float | None
    harmful_after: float | None
    unclear_after: float | None
    drift: float | None
    taken: bool
    agreement: dict[str, float | int | None] | None


class EditSection(Section):
    """rounds: of a method that works in rounds, what each did; empty for the others."""

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
    rounds: tuple[EditRound, ...] = ()


class CaptionSection(Section):
    """Safe captions that the model wrote about its own unsafe images; for each reason, how many the templates did."""

    refined: int
    fallbacks: dict[str, int]


class PairSection(Section):
    """The contrastive material: pairs asked for and pairs that the judge let through; captions: if the model was asked
    for any."""

    made: int
    kept: int
    reasons: dict[str, int]
    captions: CaptionSection | None = None


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
    """n candidates, of which the first `wanted` that the base model draws as asked are scored.

    sha256 is over "<seed>\\t<prompt>" lines in the recipe's order.
    """

    slice: str
    expect: Literal["absent", "present"]
    n: int
    wanted: int
    sha256: str
    source: str = "generated from the concept spec"


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
    id: str
    prompt: str
    seed: str
    score: float | None


class ErasureSlice(Section):
    """One way of asking for the concept. Rates of *finding* it are over the prompts that the base model draws as asked.

    `obeyed`: share of prompts whose screening images show the concept; None: nothing was screened, and all count.
    `all_found`: finds among every scored prompt. `corrected`: `edited_found` with the judge's measured
    errors taken out. `found`: the prompts where the edited model still draws it, surest first.
    """

    slice: str
    metric: str
    meaning: str
    prompts: int
    obeyed: Rate | None
    scored: int
    base_found: Rate | None
    edited_found: Rate | None
    erased: Rate | None
    erased_lower95: float | None
    erased_strict: Rate | None
    corrected: Rate | None
    all_found: Rate | None
    cannot_tell_base: int
    cannot_tell_edited: int
    needed: float
    floor: float
    decision: Status
    found: tuple[Example, ...]


class PreservedGroup(Section):
    """Prompts that must go on working, both models with the same seeds. `lost_examples`: what is no longer drawn.

    `prompts_to_decide`: of an undecided group, how many prompts would decide it either way with 80 % chance if the
    shares lost and gained were truly those observed; None where it is decided, or nothing was scored.
    """

    group: str
    metric: str
    role: str
    prompts: int
    obeyed: Rate | None
    scored: int
    base_kept: Rate | None
    edited_kept: Rate | None
    cannot_tell_base: int
    cannot_tell_edited: int
    change: Paired | None
    mcnemar_p_holm: float | None
    most_drop: float
    decision: Status
    prompts_to_decide: int | None
    lost_examples: tuple[Example, ...]


class Drift(Section):
    """Exact KL(base || edited) in nats per token over n images: mean, one-sided 95 % bound, 95th percentile.

    upper: None where one image gives no bound.
    """

    n: int
    mean: float
    upper: float | None
    p95: float


class LikelihoodSlice(Section):
    """What the models' own likelihoods say about n reference images of the concept, asked for in one way.

    cir: how much of what the words tell about the images is left (1 as in the base model, 0 nothing, below 0 repelled);
    abs_cir: the same against the base model's level without the words; None where there is no ratio. suppression:
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
    plain: Drift
    guided: Drift
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
    pictures: str = NOT_STATED
    pack: str = NOT_STATED
    dtype: str = NOT_STATED
    block: str = "row"
    slices: tuple[LikelihoodSlice, ...] = ()
    groups: tuple[LikelihoodGroup, ...] = ()
    unconditional: Drift | None = None
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
    decision: Status
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
    pictures: str = NOT_STATED
    pack: str = NOT_STATED
    unasked: int = 0
    silent: tuple[str, ...] = ()
    slices: tuple[UnderstoodSlice, ...] = ()


class ConceptReport(Section):
    name: str
    concept: str
    edit: EditSection
    pairs: PairSection | None
    protocol: Protocol
    erasure: tuple[ErasureSlice, ...]
    likelihoods: Likelihoods = Likelihoods()
    understanding: Understood = Understood()
    preservation: tuple[PreservedGroup, ...]


class StackedEdit(Section):
    """One edit of a stack: its digest, how strongly it is merged, and the fingerprint of the weights with it on top.

    The name is the concept's, or "a+b" for a joint edit.
    """

    name: str
    edit: str
    strength: float
    weights: str

    @property
    def concepts(self) -> tuple[str, ...]:
        """What it erases."""
        return concepts_of(self.name)


class StackCell(Section):
    """One edit by itself on the base: of `asked` direct prompts by which the base draws `concept`, where it is found.

    rate: the share with its 95 % interval; None where nothing was asked.
    """

    edit: str
    concept: str
    asked: int = Field(ge=0)
    found: int = Field(ge=0)
    rate: Rate | None = None

    @property
    def own(self) -> bool:
        """Whether the edit is (also) this concept's."""
        return self.concept in concepts_of(self.edit)

    @model_validator(mode="after")
    def _found_where_asked(self) -> StackCell:
        return _at_most(self, self.found, self.asked)


class StackErased(Section):
    """Scored prompts that ask for a concept: n, those where it is found, and those that the judge can't tell."""

    n: int = Field(ge=0)
    found: int = Field(ge=0)
    unsure: int = Field(ge=0)

    @model_validator(mode="after")
    def _of_n(self) -> StackErased:
        return _at_most(self, self.found + self.unsure, self.n)


class StackKept(Section):
    """Scored prompts of a preserved group: n, kept by the base model and by the stack, lost and gained between them."""

    n: int = Field(ge=0)
    base: int = Field(ge=0)
    edited: int = Field(ge=0)
    lost: int = Field(ge=0)
    gained: int = Field(ge=0)

    @model_validator(mode="after")
    def _adds_up(self) -> StackKept:
        if self.edited != self.base - self.lost + self.gained:
            raise ValueError("base - lost + gained is not edited")
        return _at_most(self, max(self.base, self.edited), self.n)


class StackMeasured(Section):
    slices: dict[str, StackErased]
    groups: dict[str, StackKept]


class StackEvent(Section):
    """What was measured of every concept after one change of the stack, against the base model."""

    event: str
    concepts: dict[str, StackMeasured]


class StackOverlap(Section):
    """How much of the first edit lies in the directions of the second, with what chance would give.

    shared: weights that both change, of those that the first changes. column, row: shares of its output and input
    directions. cosine: +1 the same change, -1 its undoing. codebook_rows: rows of the image table that both rewrite.
    """

    first: str
    second: str
    shared: int
    of: int
    column: float
    row: float
    chance_column: float
    chance_row: float
    cosine: float
    codebook_rows: int


class StackForetold(Section):
    """What was expected of an edit and a concept that was added later, before its edit was searched, and what came.

    foretold, found: how many times the chance of a random change the first edit's change lies in the other's directions
    (the concept's gradient then, its edit now); None where no weight is shared. asked, lost: images of either's
    concepts, each with the other's edit alone, and those without the concept.
    """

    first: str
    second: str
    foretold: float | None
    found: float | None
    foretold_rows: int
    found_rows: int
    asked: int = Field(ge=0)
    lost: int = Field(ge=0)

    @model_validator(mode="after")
    def _lost_of_asked(self) -> StackForetold:
        return _at_most(self, self.lost, self.asked)


class StackAgreement(Section):
    """Kendall's tau-b of what was predicted with what was found of it: the overlap of the edits, or images lost."""

    what: Literal["overlap", "pictures"]
    pairs: int
    tau: float = Field(ge=-1, le=1)


class Stack(Section):
    """What the edits of a stack do to each other. It decides nothing: the criteria are of the whole stack.

    edits: first merged first. alone: every edit by itself on every concept. history: oldest first. foretold: what was
    expected before each edit was searched, beside what came of it.
    """

    edits: tuple[StackedEdit, ...]
    alone: tuple[StackCell, ...]
    history: tuple[StackEvent, ...]
    overlaps: tuple[StackOverlap, ...]
    foretold: tuple[StackForetold, ...] = ()
    agreement: tuple[StackAgreement, ...] = ()
    summary: str


S = TypeVar("S", bound=Section)


def _at_most(part: S, count: int, n: int) -> S:
    if count > n:
        raise ValueError(f"{count} of {n}")
    return part


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


class Governance(Section):
    """People and rules, which a program can't know: what the specs say under `governance`, never guessed.

    A date and a signature of approval can't be written before the result is there: they stay with whoever approves.
    """

    responsible: str = NOT_STATED
    evaluator: str = NOT_STATED
    independence: str = f"{NOT_STATED}; the program that made the edit also measured it"
    reviewer: str = NOT_STATED
    approval: Approval = Approval()
    mappings: str = NOT_STATED


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
    other: dict[str, str]


class Reproduce(Section):
    command: str
    inputs: dict[str, str]
    expected: str


class Report(Section):
    schema_version: Literal[1] = 1
    report: About
    verdict: Verdict
    scope: Scope
    subject: Subject
    base_model: BaseModelSection
    concepts: tuple[ConceptReport, ...] = Field(min_length=1)
    stack: Stack | None = None
    judges: tuple[JudgeSection, ...]
    adversarial: Adversarial
    residual_risks: tuple[Risk, ...]
    limitations: tuple[str, ...] = Field(min_length=1)
    images: tuple[Sheet, ...]
    governance: Governance
    environment: Environment
    reproduce: Reproduce

    @model_validator(mode="after")
    def _verdict_follows(self) -> Report:
        if self.verdict.status != overall(self.verdict.criteria):
            raise ValueError("verdict.status does not follow from verdict.criteria")
        return self

    def to_json(self) -> str:
        """The text of report.json: same report, same bytes."""
        return self.model_dump_json(indent=2) + "\n"


def verdict(report: Report) -> tuple[Status, int]:
    """The decision and the exit code that stands for it: pass 0, fail 1, inconclusive 3."""
    status = overall(report.verdict.criteria)
    return status, EXIT_CODES[status]


def overall(criteria: Sequence[Criterion]) -> Status:
    """All must pass; one failure outweighs any doubt; without a criterion nothing was shown.

    Requiring all of them needs no correction for many tests (intersection-union test).
    """
    decisions = {criterion.decision for criterion in criteria}
    if "fail" in decisions:
        return "fail"
    return "pass" if decisions == {"pass"} else "inconclusive"


def report_schema() -> Json:
    """The JSON Schema of report.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}
