"""Understanding: does a model that draws and answers still recognise in an image what it no longer draws?

Base and edited model are asked yes-or-no questions about the same reference images (those of the likelihood audit: of
the mini world, or the user's), in wordings that training never asks. The images are no model's own, so no training
met them. What is right is known without a judge:

    slice "concept"   is it there? images of the concept (yes), and as many that must stay (no)
    each group        an image of it, asked about what it shows (yes) or about another of the group's members (no);
                      where the group has one label only, about the concept (no)

An image is asked one question per slice, so the answers of a slice are independent, and half of the right ones are
yes: a model that always says the same, or guesses, is right in 50 %. A group's members are taken to exclude each other.

Every answer is a row of understanding.jsonl; understanding.json says of what and, if nothing was asked, why. Torch is
loaded only where a model is asked: the report reads the rows without it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import AliasChoices, Field

from safear_edit import processes
from safear_edit.compiler.questions import ANSWERS, Topic, topics
from safear_edit.errors import SpecError
from safear_edit.files.atomic import write_atomic
from safear_edit.files.records import StrictRecord, to_lines
from safear_edit.progress import Callback, silent
from safear_edit.spec.prompts import mention_of
from safear_edit.spec.spec import PreserveGroup, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.reference_images import Source
    from safear_edit.families.base import ModelCard, ModelFamily

ABOUT, ROWS = "understanding.json", "understanding.jsonl"
FILES = (ABOUT, ROWS)
IMAGES = 240
"""Questions of a slice at most; if no answer changes, a fall of 1.2 points is excluded (stats.tango_upper)."""


# -- about which images ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One question about one image: `image` its digest, `row` its place in the reference images followed by those that
    must stay."""

    id: str
    slice: str
    image: str
    question: str
    truth: bool
    row: int


@dataclass(frozen=True)
class Exam:
    """All questions with their images uint8 (P, 3, H, W).

    unasked: preserved images of which nothing is known that a question could be about; pack: the images' digest.
    """

    items: tuple[Item, ...]
    images: Tensor
    unasked: int
    pack: str

    @property
    def digest(self) -> str:
        """sha256 over images and questions."""
        asked = [(item.id, item.question, item.truth) for item in self.items]
        return hashlib.sha256(json.dumps([self.pack, asked]).encode()).hexdigest()


def source_for(spec: Spec, card: ModelCard) -> Source:
    """Reference images for up to IMAGES questions per slice; a small evaluation asks few.

    Errors as `references.source_for`.
    """
    from safear_edit.evaluate import references
    from safear_edit.evaluate.reference_images import Wanted

    kept = sum(min(IMAGES, group.n) for group in spec.preserve)
    wanted = Wanted(min(IMAGES // 2, spec.evaluate.n.direct), kept, classified=0)
    return references.source_for(spec, card, wanted=wanted)


def exam(spec: Spec, source: Source) -> Exam:
    """What is asked about which image; decided by the spec and the images' own bytes alone.

    An image that is there twice is asked about once per slice. Of a slice whose yes and no can't be halved the rest is
    left out.
    """
    import torch

    images = torch.cat([source.reference_images, source.kept_images])
    marks = [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16] for image in images]
    concept, *others = topics(spec)
    first = len(source.references)
    stay = range(first, len(images))
    shown, rest = _distinct(range(first), marks), _distinct(stay, marks)
    few = min(len(shown), len(rest))
    items = [_item(concept, True, row, marks[row]) for row in shown[:few]]
    items += [_item(concept, False, row, marks[row]) for row in _spread(rest, marks)[:few]]
    unasked = len(stay)
    for group in spec.preserve:
        own = [topic for topic in others if topic.slice == group.name]
        rows = [row for row in stay if source.kept[row - first].group == group.name]
        known = {row: topic for row in rows if (topic := _shown(group, source.kept[row - first].prompt, own))}
        unasked -= len(known)
        items += _group_items(own, concept, [(row, known[row]) for row in _distinct(list(known), marks)], marks)
    return Exam(tuple(items), images, unasked, source.digest)


def _group_items(
    own: Sequence[Topic], concept: Topic, rows: Sequence[tuple[int, Topic]], marks: Sequence[str]
) -> Iterator[Item]:
    """By turns about what the image shows and about another of the group; others take turns too."""
    for place, (row, topic) in enumerate(rows[: len(rows) // 2 * 2]):
        about, others = topic, [other for other in own if other != topic] or [concept]
        if place % 2:
            about = others[place // 2 % len(others)]
        yield _item(about, place % 2 == 0, row, marks[row], topic.slice)


def _item(topic: Topic, truth: bool, row: int, mark: str, where: str | None = None) -> Item:
    name = where or topic.slice
    return Item(f"{name}-{mark}", name, mark, topic.question(int(mark, 16)), truth, row)


def _distinct(rows: Sequence[int], marks: Sequence[str]) -> list[int]:
    """Rows whose image is not there before."""
    return list({marks[row]: row for row in reversed(rows)}.values())[::-1]


def _spread(rows: Sequence[int], marks: Sequence[str]) -> list[int]:
    """An order in which the groups are mixed; the images' bytes decide it."""
    return sorted(rows, key=lambda row: marks[row])


def _shown(group: PreserveGroup, prompt: str, own: Sequence[Topic]) -> Topic | None:
    """What a preserved image shows, by the longest member that its caption mentions; None if it mentions none."""
    found = {member: mention_of([member])(prompt) or "" for member in group.members}
    best = max(found, key=lambda member: len(found[member]))
    return next((t for t in own if t.label == group.members[best]), None) if found[best] else None


# -- asking -----------------------------------------------------------------------------------------------------------


class QuestionsRecord(StrictRecord):
    """understanding.json: what was asked of which base model, or why nothing was.

    applies: the model could have answered; pack: the images' digest; unasked: images that no question fits.
    """

    schema_version: Literal[1] = 1
    applies: bool = True
    skipped: str = ""
    base_digest: str = ""
    pack: str = "not stated"
    unasked: int = Field(default=0, ge=0)


class Answer(StrictRecord):
    """One row of understanding.jsonl; `yes` is the model's share of yes against no.

    `image`, the digest of what was asked about, was called `picture` until 2026-11-29.
    """

    id: str
    slice: str
    image: str = Field(validation_alias=AliasChoices("image", "picture"))
    question: str
    truth: Literal["yes", "no"]
    model: Literal["base", "edited"]
    yes: float = Field(ge=0, le=1)

    @property
    def said(self) -> Literal["yes", "no"]:
        """The likelier of the two; a tie is a no."""
        return "yes" if self.yes > 0.5 else "no"

    @property
    def right(self) -> bool:
        return self.said == self.truth


def ask(pair: Pair, asked: Exam, progress: Callback = silent) -> list[Answer]:
    """Both models' answers, the base's first. The base is left bitwise as found."""
    before = answers(pair.base, "base", asked, progress)
    with pair.edited() as model:
        return before + answers(model, "edited", asked, progress)


def answers(
    model: ModelFamily, which: Literal["base", "edited"], asked: Exam, progress: Callback = silent
) -> list[Answer]:
    """Every item's answer in the items' order; images with the same question are asked together. UsageError for a
    network that gives no numbers."""
    import torch

    from safear_edit.families.sampling import refuse_nan

    alike: dict[str, list[int]] = {}
    for place, item in enumerate(asked.items):
        alike.setdefault(item.question, []).append(place)

    @torch.no_grad()
    def say(question: str) -> list[float]:
        images = asked.images[[asked.items[place].row for place in alike[question]]]
        said = model.answer_logprobs(images, question, ANSWERS)
        refuse_nan(said, "understanding")
        return said.double().softmax(-1)[:, 0].tolist()

    shares: dict[int, float] = {}
    report = partial(progress, f"questions {which}")
    for places, said in zip(alike.values(), processes.dealt(list(alike), say), strict=True):
        shares.update(zip(places, said, strict=True))
        report(len(shares), len(asked.items), "")
    return [
        Answer(
            id=item.id,
            slice=item.slice,
            image=item.image,
            question=item.question,
            truth="yes" if item.truth else "no",
            model=which,
            yes=round(shares[place], 6),
        )
        for place, item in enumerate(asked.items)
    ]


# -- files ------------------------------------------------------------------------------------------------------------


def save(folder: Path, base_digest: str, asked: Exam, answers: Sequence[Answer]) -> None:
    """Write both files; every one appears whole or not at all."""
    write_atomic(folder / ROWS, to_lines(answers))
    _save_about(folder, QuestionsRecord(base_digest=base_digest, pack=asked.pack, unasked=asked.unasked))


def save_skipped(folder: Path, why: str, *, applies: bool) -> None:
    """Write why nothing was asked; applies: the model could have answered."""
    write_atomic(folder / ROWS, "")
    _save_about(folder, QuestionsRecord(applies=applies, skipped=why))


def _save_about(folder: Path, about: QuestionsRecord) -> None:
    write_atomic(folder / ABOUT, json.dumps(about.model_dump(), indent=1, ensure_ascii=False) + "\n")


def paired(answers: Sequence[Answer], where: str) -> dict[str, list[tuple[Answer, Answer]]]:
    """By slice, (base, edited) answers to the same questions; SpecError unless every question has exactly both."""
    found: dict[str, dict[str, Answer]] = {"base": {}, "edited": {}}
    counts = Counter((answer.id, answer.model) for answer in answers)
    for answer in answers:
        found[answer.model][answer.id] = answer
    slices: dict[str, list[tuple[Answer, Answer]]] = {}
    for key, base in found["base"].items():
        edited = found["edited"].get(key)
        if edited is None or edited.model_copy(update={"model": "base", "yes": base.yes}) != base:
            raise SpecError(
                f"{where}, {key}", "the same question put to both models", "another", "finish the run again"
            )
        slices.setdefault(base.slice, []).append((base, edited))
    if found["base"].keys() != found["edited"].keys() or set(counts.values()) - {1}:
        raise SpecError(where, "every question once per model", "one more or less often", "finish the run again")
    return slices
