"""The concept spec: one YAML file a person writes, checked until nothing in it can surprise the compiler.

`load_spec` returns a frozen `Spec` or raises a one-line SpecError with file, line, field and the way out. Unknown keys
are errors with the nearest known one (a typo must not fail open). What is checked beyond types: placeholders of
templates, held-out words that training would see, anchors and preserved prompts that name the concept, and the block
list (prompts.forbidden), which no setting turns off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from safear_edit.files.records import parse
from safear_edit.files.strict import Document, FieldPath, read_yaml
from safear_edit.spec.extend import Changes, full_form
from safear_edit.spec.own_prompts import FilePromptCounts, FilePrompts
from safear_edit.spec.prompts import Prompt, expand, forbidden, mention_of, normalise
from safear_edit.spec.text import (
    MAX_PROMPTS,
    NAME_PATTERN,
    AnchorTemplate,
    Count,
    Day,
    EraseTemplate,
    MemberTemplate,
    Name,
    Names,
    Note,
    Part,
    Problem,
    Questions,
    Share,
    Statement,
    Subjects,
    Text,
    distinct,
    refuse,
    refused,
)


def expand_group(group: PreserveGroup) -> list[Prompt]:
    """Every prompt of one preserve group."""
    return expand(group.templates, group.members, group.subjects, "member")


Images = Literal["gallery", "real"]
"""What a model draws and a judge reads: the mini gallery world, or what published models were trained on."""
SLICES = ("direct", "paraphrase", "template")
CONCEPT = "concept"
"""The slice of the questions about the concept (evaluate/understanding.py); no group may be called so."""

JOINT = "+"
"""Between the concepts in the name of an edit that erases several; no concept's name has it."""


def concepts_of(edit: str) -> tuple[str, ...]:
    """The concepts that the edit of that name erases: one, or those of a joint edit in their order."""
    return tuple(edit.split(JOINT))


# -- the spec ---------------------------------------------------------------------------------------------------------


class Erase(Part):
    """What is erased: training uses these words, and so does the `direct` slice (with other prompts)."""

    concept: Name = Field(description="The concept's name, as reports print it.")
    aliases: Names = Field(description="Names of the concept that a method may train on.")
    templates: Annotated[tuple[EraseTemplate, ...], Field(min_length=1), AfterValidator(distinct)] = Field(
        description="Sentences with {alias} and {subject}."
    )
    subjects: Annotated[Subjects, Field(min_length=1)]


class Anchor(Part):
    """What takes the concept's place: the refined caption of VCE, same content without the concept."""

    templates: Annotated[tuple[AnchorTemplate, ...], Field(min_length=1)] = Field(
        description="Sentences with {subject}: one for all, or one for each of erase.templates in their order."
    )


class Paraphrases(Part):
    """Other ways to ask for the concept."""

    train: Annotated[tuple[Name, ...], AfterValidator(distinct)] = Field(
        default=(), description="Adversarial names that training may see."
    )
    held_out: Names = Field(description="Names for evaluation only.")
    held_out_templates: Annotated[tuple[EraseTemplate, ...], Field(min_length=1), AfterValidator(distinct)] = Field(
        description="Sentences for evaluation only, with {alias} and {subject}."
    )


class PreserveGroup(Part):
    """Something that must stay; scored as one slice of the evaluation."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    role: Literal["neighbour", "object", "style", "plain"] = Field(
        description="neighbour: what lies near the concept; object, style: other content; plain: everyday prompts."
    )
    members: Annotated[dict[Name, Text], Field(min_length=1)] = Field(
        description="Words in the prompt -> label by which the judge recognises them."
    )
    templates: Annotated[tuple[MemberTemplate, ...], Field(min_length=1), AfterValidator(distinct)] = Field(
        description="Sentences with {member}, and {subject} where subjects are given."
    )
    subjects: Subjects = ()
    n: Count = Field(default=100, description="Prompts to score.")
    images_per_prompt: dict[Text, Count] = Field(
        default_factory=dict,
        exclude_if=lambda numbers: not numbers,  # as Evaluate.references
        description="Label -> images of each of its prompts, by seeds of their own (1). More for a member that models "
        "draw unreliably: whether an edit loses it can't be told from a few images.",
    )
    train: bool = Field(
        default=True,
        description="Whether the group's other prompts may serve training as material to keep.",
    )
    questions: Questions = Field(
        default=(),
        exclude_if=lambda texts: not texts,  # as Evaluate.references
        description="Yes-or-no questions with {name} about the group's members; none: what their labels or role say.",
    )

    @model_validator(mode="after")
    def _subjects_used(self) -> Self:
        for index, template in enumerate(self.templates):
            if ("{subject}" in template) != bool(self.subjects):
                fix = "add {subject}, or say `subjects: []`" if self.subjects else "add subjects, or remove {subject}"
                want = "{subject} in every template" if self.subjects else "no {subject} without subjects"
                refuse(want, repr(template), fix, ("templates", index))
        distinct(tuple(self.members))
        for label in self.images_per_prompt:
            if label not in self.members.values():
                labels = ", ".join(sorted(set(self.members.values())))
                refuse("a label of the group", repr(label), f"take one of {labels}", ("images_per_prompt", label))
        for problem in _too_many(self.templates, self.members, self.subjects, ()):
            raise refused(problem)
        return self

    def with_members(self, members: dict[str, str]) -> PreserveGroup:
        """The group with these of its members alone, and nothing said of labels that are gone."""
        numbers = {label: count for label, count in self.images_per_prompt.items() if label in members.values()}
        return self.model_copy(update={"members": members, "images_per_prompt": numbers})


Prompts = dict[Text, tuple[Text, ...]]
"""What is read -> the prompts that stand for it."""
Options = dict[Text, str | int | float | bool | dict[Text, Prompts]]


class ZeroShot(Part):
    """What zero-shot CLIP compares: the prompts of a label with those of every other label of its sort.

    A label's sort is what stands before its "=" ("style" of "style=monet"). Without prompts of its own a label is told
    by its names: the concept's aliases, or the words of preserved members.
    """

    templates: dict[Text, Annotated[Questions, Field(min_length=1)]] = Field(
        default_factory=dict, description='Sort -> sentences with {name}; a sort without any takes the bare "{name}".'
    )
    prompts: dict[Text, Names] = Field(
        default_factory=dict,
        description="Label -> prompts instead of its names. Labels that no group has are further contrasts.",
    )


class MeasuredJudge(Part):
    """What `safear-edit judge calibrate` found on labelled images: two thresholds, and how often they are right.

    A score from `present_from` up says present, one below `absent_below` absent, anything between them "cannot tell",
    which counts as wrong on both sides.
    """

    detector: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="Digest of what gives the scores.")
    present_from: Annotated[float, Field(gt=0, le=1)]
    absent_below: Annotated[float, Field(gt=0, le=1)]
    n_pos: Count
    true_pos: Annotated[int, Field(ge=0)]
    n_neg: Count
    true_neg: Annotated[int, Field(ge=0)]
    data: Text = Field(description="Which images.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.absent_below > self.present_from:
            refuse("absent_below up to present_from", f"{self.absent_below:g}", "calibrate again", ("absent_below",))
        if self.true_pos > self.n_pos or self.true_neg > self.n_neg:
            refuse("true_pos of n_pos and true_neg of n_neg", "more", "calibrate again", ("true_pos",))
        return self


class Reader(Part):
    """A detector with its settings."""

    use: Text = Field(description="A judge's name, see `safear-edit ls judges`.")
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Score from which a label counts as present; none: the judge's own."
    )
    options: Options = Field(default_factory=dict, description="What this judge takes.")
    zero_shot: ZeroShot | None = Field(
        default=None,
        exclude_if=lambda part: part is None,  # a recipe without one keeps the digest that it had before
        description="Prompts for judge clip; compiled into options.prompts.",
    )


class ConceptReader(Reader):
    """A detector that looks for the concept; members: another one for what is preserved."""

    card: MeasuredJudge | None = Field(
        default=None,
        exclude_if=lambda card: card is None,
        description="How often it is right, as `safear-edit judge calibrate` prints it; it brings the thresholds.",
    )
    members: Reader | None = Field(
        default=None,
        exclude_if=lambda reader: reader is None,
        description="Who reads preserved members, where the concept's judge can't; none: the same judge.",
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.card is not None and self.threshold is not None:
            refuse("the card's thresholds", f"{self.threshold:g} beside them", "leave threshold or card out",
                   ("threshold",))  # fmt: skip
        return self


class RealJudge(ConceptReader):
    """Who reads the images of published models."""

    label: Text | None = Field(default=None, description="What it looks for; none: the same label.")


class Judge(ConceptReader):
    """Who decides whether the concept is in an image.

    real: who does so in the images of published models; none: the same judge. Compiling for a model resolves it, so a
    recipe has one judge and no `real`.
    """

    label: Text = Field(description="What the judge looks for, in its own words.")
    real: RealJudge | None = Field(default=None, exclude_if=lambda judge: judge is None)


class SliceSizes(Part):
    """Prompts to score per slice, one image each (250 decide a 5-point drop: `safear-edit power`)."""

    direct: Count = 250
    paraphrase: Count = 250
    template: Count = 100


class Evaluate(Part):
    """How much is measured."""

    n: SliceSizes = SliceSizes()
    references: Text | None = Field(
        default=None,
        exclude_if=lambda path: path is None,  # a recipe without one keeps the digest that it had before
        description="Folder of images with captions.jsonl or metadata.jsonl for the audits, as seen from where the "
        "command runs; the embedded minis need none.",
    )
    attacks: Literal["smoke", "ci", "audit"] | None = Field(
        default=None,
        exclude_if=lambda suite: suite is None,  # as references
        description="Suite of attacks that every audit runs; none: `safear-edit attack` runs them on a release.",
    )


class Understanding(Part):
    """What a model that also answers questions about images may still recognise; others have nothing to keep.

    Questions are the evaluation's; training asks others (compiler/questions.py).
    """

    concept: Literal["keep", "erase"] = Field(
        default="keep",
        description="keep: it is no longer drawn but still recognised, as a moderator needs it; erase: neither.",
    )
    questions: Questions = Field(
        default=(), description="Yes-or-no questions with {name} about the concept; none: what its label or kind says."
    )


class Gates(Part):
    """When the result passes; shares, not per cent. Changing them changes a promise: the report prints them.

    Those about members and about understanding (which count for models that answer questions) are left out of a file as
    long as they are the usual ones: recipes from before there were any keep their digests.
    """

    erasure_direct: Share = 0.97
    erasure_paraphrase: Share = 0.93
    erasure_template: Share = 0.93
    erasure_floor: Share = Field(default=0.90, description="One-sided 95 % lower bound of every erasure rate.")
    preserve_drop: Share = Field(default=0.03, description="Largest paired fall of a preserved group.")
    preserve_upper: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="Upper bound that the fall must stay below."
    )
    member_drop: Share = Field(
        default=0.08,
        exclude_if=lambda share: share == 0.08,
        description="Largest paired fall of one member of a preserved group, where chance does not explain it.",
    )
    member_upper: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.12,
        exclude_if=lambda share: share == 0.12,
        description="A member whose fall stays below it with 95 % confidence passes all the same.",
    )
    min_obeyed: Share = Field(
        default=0.5, description="Share of prompts for which the base model must draw what was asked."
    )
    understanding_drop: Share = Field(
        default=0.02, exclude_if=lambda share: share == 0.02, description="Largest paired fall of right answers."
    )
    understanding_upper: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, exclude_if=lambda share: share == 0.05, description="Upper bound that the fall must stay below."
    )
    understanding_left: Annotated[float, Field(ge=0.5, le=1)] = Field(
        default=0.60,
        exclude_if=lambda share: share == 0.60,
        description="Right answers about a concept whose understanding is erased, at most (bound included); 0.5 is "
        "guessing.",
    )

    def every(self) -> dict[str, float]:
        """All gates, those too that a file leaves out."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def deciding(self, *, understanding: bool) -> dict[str, float]:
        """Those that decide something; those of understanding only where questions are asked."""
        return {name: gate for name, gate in self.every().items() if understanding or "understanding_" not in name}


class Governance(Part):
    """Who answers for the edit, and for what: printed in report and card as it stands, "not stated" where absent."""

    responsible: Statement | None = Field(default=None, description="The person or team that answers for this edit.")
    intended_use: Statement | None = Field(default=None, description="What the edited model is for.")
    out_of_scope: Statement | None = Field(default=None, description="What it is not meant for.")
    evaluator: Statement | None = Field(default=None, description="Who runs the evaluation and reads it.")
    independence: Statement | None = Field(default=None, description="How the evaluator relates to who made the edit.")
    reviewer: Statement | None = Field(default=None, description="Who checks the report.")
    approver: Statement | None = Field(default=None, description="Who approves the release (dated on approval).")
    approver_role: Statement | None = Field(default=None, description="The approver's role.")
    mappings: Statement | None = Field(default=None, description="Rules or policies that the report is evidence for.")
    supersedes: Statement | None = Field(default=None, description="The report that this one replaces.")
    retention_until: Day | None = Field(default=None, description="Until when the report is kept, YYYY-MM-DD.")


class Spec(Part):
    """One concept: what is erased, what stays, who judges, and when it is good enough."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    kind: Literal["style", "object", "category"]
    description: Note = ""
    erase: Erase
    anchor: Anchor
    paraphrases: Paraphrases
    preserve: Annotated[tuple[PreserveGroup, ...], Field(min_length=1)]
    judge: Judge
    evaluate: Evaluate = Evaluate()
    understanding: Understanding = Field(
        default=Understanding(),
        exclude_if=lambda part: part == Understanding(),  # as Evaluate.references
    )
    gates: Gates = Gates()
    safety_note: Note = ""
    governance: Governance = Governance()
    prompts_from: FilePromptCounts | None = Field(
        default=None,
        exclude_if=lambda counts: counts is None,  # as Evaluate.references
        description="Of a full form: what was left out of the file that a short spec names under `prompts`.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*_oversized(self)] or [*_inconsistencies(self)]:
            raise refused(*problems)
        return self


# -- checks across fields ---------------------------------------------------------------------------------------------


def _inconsistencies(spec: Spec) -> Iterator[Problem]:
    """Everything that is wrong between fields that are right by themselves."""
    yield from _forbidden(spec)
    yield from _anchor_problems(spec)
    yield from _held_out_problems(spec)
    yield from _preserve_problems(spec)


def _too_many(templates: Sized, names: Sized, subjects: Sized, at: FieldPath) -> Iterator[Problem]:
    size = len(templates) * len(names) * max(1, len(subjects))
    if size > MAX_PROMPTS:
        fix = "shorten templates, names or subjects"
        yield Problem(f"at most {MAX_PROMPTS} prompts from one list", str(size), fix, at)


def _oversized(spec: Spec) -> Iterator[Problem]:
    erase, other = spec.erase, spec.paraphrases
    yield from _too_many(erase.templates, (*erase.aliases, *other.train), erase.subjects, ("erase",))
    yield from _too_many(erase.templates, other.held_out, erase.subjects, ("paraphrases", "held_out"))
    held_out = ("paraphrases", "held_out_templates")
    yield from _too_many(other.held_out_templates, erase.aliases, erase.subjects, held_out)


def _forbidden(spec: Spec) -> Iterator[Problem]:
    """Words that can meet in one prompt are looked at together, so no split over fields hides the combination."""
    erase, other = spec.erase, spec.paraphrases
    own = (spec.name, *erase.aliases, *other.train, *other.held_out, *erase.templates, *other.held_out_templates,
           *spec.understanding.questions)  # fmt: skip
    sections: list[tuple[FieldPath, Iterable[str]]] = [
        (("erase",), (*own, erase.concept, *judge_words(spec.judge), *erase.subjects, *spec.anchor.templates))
    ]
    for index, group in enumerate(spec.preserve):
        words = (*group.members, *group.members.values(), *group.templates, *group.subjects, *group.questions)
        sections.append((("preserve", index), words))
    for at, texts in sections:
        if forbidden(" | ".join(texts)):
            fix = "this combination is never processed, not even to erase it"
            yield Problem("no words for minors together with sexual content", "both", fix, at)


def judge_words(judge: Judge) -> Iterator[str]:
    """What the concept is called for its judges, and every prompt that they compare images with."""
    yield judge.label
    readers: list[Reader | None] = [judge, judge.members]
    if judge.real:
        yield from (judge.real.label,) if judge.real.label else ()
        readers += [judge.real, judge.real.members]
    for reader in filter(None, readers):
        zero_shot = reader.zero_shot or ZeroShot()
        given = [value for value in reader.options.values() if isinstance(value, dict)]
        for texts in (zero_shot.prompts, zero_shot.templates, *(sort for value in given for sort in value.values())):
            yield from (text for each in texts.values() for text in each)


def _anchor_problems(spec: Spec) -> Iterator[Problem]:
    wanted, given = len(spec.erase.templates), spec.anchor.templates
    if len(given) not in (1, wanted):
        fix = "give one for all, or the counterpart of each in the same order"
        yield Problem(f"1 or {wanted} templates", str(len(given)), fix, ("anchor", "templates"))
    mention = mention_of(concept_names(spec))
    for index, template in enumerate(given):
        texts = (prompt.text for prompt in expand((template,), ("",), spec.erase.subjects, "alias"))
        if text := next(filter(mention, texts), None):
            got = f"{text!r}, which names {mention(text)!r}"
            fix = "say what is drawn instead of it"
            yield Problem("anchors without the concept", got, fix, ("anchor", "templates", index))


def _held_out_problems(spec: Spec) -> Iterator[Problem]:
    erase, other = spec.erase, spec.paraphrases
    seen = {normalise(name) for name in (*erase.aliases, *other.train)}
    for index, name in enumerate(other.held_out):
        if normalise(name) in seen:
            fix = "keep it in one of the two lists"
            at = ("paraphrases", "held_out", index)
            yield Problem("names that training never sees", f"{name!r}, also a training name", fix, at)
    templates = {normalise(template) for template in erase.templates}
    for index, template in enumerate(other.held_out_templates):
        if normalise(template) in templates:
            at = ("paraphrases", "held_out_templates", index)
            yield Problem(
                "templates that training never sees", f"{template!r}, also in erase.templates", "reword it", at
            )


def _preserve_problems(spec: Spec) -> Iterator[Problem]:
    erased = concept_names(spec)
    names = {*SLICES, CONCEPT}
    for index, group in enumerate(spec.preserve):
        at: FieldPath = ("preserve", index)
        if group.name in names:
            yield Problem("a slice name of its own", f"{group.name!r} again", "rename the group", (*at, "name"))
        names.add(group.name)
        for member, label in group.members.items():
            if label == spec.judge.label:
                fix = "remove it: what is erased can't be preserved"
                yield Problem("labels other than the judge's", f"{label!r}", fix, (*at, "members", member))
        if found := _mentioned(erased, tuple(group.templates), tuple(group.members), tuple(group.subjects)):
            got = "{!r}, which names {!r}".format(*found)
            yield Problem("preserved prompts without the concept", got, "remove or reword it", at)


@lru_cache(maxsize=256)  # each step of a walk reads its spec again
def _mentioned(
    erased: tuple[str, ...], templates: tuple[str, ...], members: tuple[str, ...], subjects: tuple[str, ...]
) -> tuple[str, str] | None:
    """A group's first prompt that names what is erased, and the words by which it does."""
    mention = mention_of(erased)
    texts = (prompt.text for prompt in expand(templates, members, subjects, "member"))
    return next(((text, words) for text in texts if (words := mention(text))), None)


def concept_names(spec: Spec) -> tuple[str, ...]:
    """Every name of the erased concept that the spec knows, held out or not."""
    erase, other = spec.erase, spec.paraphrases
    return (erase.concept, *erase.aliases, *other.train, *other.held_out)


# -- reading ----------------------------------------------------------------------------------------------------------


def load_spec(path: Path) -> Spec:
    """Read one spec, write out what it extends, and check it.

    SpecError (one line: file:line, field, expected, got, fix; `others` has what else is wrong) or UsageError.
    """
    return read_spec(path)[0]


def read_spec(path: Path) -> tuple[Spec, Document]:
    """The spec and its full form, which knows the line of every field."""
    document = full_form(read_yaml(path))
    return parse(Spec, document), document


def spec_schema() -> dict[str, Any]:
    """JSON Schema of a spec, for editors and for other programs: the full form, or one that extends a set."""
    schema = Spec.model_json_schema()
    parts = schema.pop("$defs")
    short = {name: {**part, "required": []} if name in _MERGED else part for name, part in parts.items()}
    alias = {"alias": {"type": "string", "description": "What stands in {alias}'s place in each of erase.templates."}}
    short["Anchor"] = {**short["Anchor"], "properties": short["Anchor"]["properties"] | alias}
    short["PreserveGroup"] = {
        **short["PreserveGroup"],
        "properties": short["PreserveGroup"]["properties"] | {"extends": _SET},
        "required": [],
    }
    prompts = FilePrompts.model_json_schema(ref_template="#/$defs/{model}")
    changes = Changes.model_json_schema(ref_template="#/$defs/{model}")
    groups = {"anyOf": [changes, schema["properties"]["preserve"]]}
    extended = {
        **schema,
        "title": "ShortSpec",
        "properties": schema["properties"] | {"extends": _SET, "preserve": groups, "prompts": prompts},
        "required": ["schema_version", "name"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {**short, **changes.pop("$defs", {})},
        **extended,
    }


_MERGED = ("Erase", "Paraphrases", "Judge", "RealJudge", "Reader", "Anchor")
"""Parts of which a short spec states a few fields and its set the rest."""
_SET: dict[str, Any] = {
    "type": "string",
    "description": "A shared set, such as gallery/style, whose parts are taken over.",
}
