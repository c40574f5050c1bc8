"""What training may ask a model that answers questions about images, and what evaluation keeps for itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safear_edit.errors import SpecError
from safear_edit.spec.prompts import fill, normalise
from safear_edit.spec.spec import CONCEPT, Spec

if TYPE_CHECKING:
    from safear_edit.gallery.questions import Kind


STEP = CAPABILITY = "understanding"
"""The step's name in a run's journal, and what a family must provide."""
ANSWERS = ("yes", "no")


# -- what is asked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Topic:
    """What a question can be about: a label, what it is called, and the wordings of evaluation and of training."""

    slice: str
    label: str
    names: tuple[str, ...]
    wordings: tuple[str, ...]
    training_wordings: tuple[str, ...]

    def question(self, number: int) -> str:
        """One of the evaluation's questions; any number gives one."""
        wording, name = number % len(self.wordings), number // len(self.wordings) % len(self.names)
        return fill(self.wordings[wording], name=self.names[name])

    def training(self) -> Iterator[str]:
        """Every question that training may ask about it."""
        return (fill(wording, name=name) for wording in self.training_wordings for name in self.names)


@dataclass(frozen=True)
class TrainingQuestions:
    """Training's questions about the concept and about what must stay; erase: neither may the concept be recognised."""

    concept: tuple[str, ...]
    others: tuple[str, ...]
    erase: bool


def topics(spec: Spec) -> tuple[Topic, ...]:
    """The concept, then every label of the preserved groups.

    A label of the mini world ("style=monet") is called what its models learnt to call it; any other, what the spec
    does. Wordings follow from the label or, failing that, from the concept's kind and the group's role.
    """
    erase = spec.erase
    names = (erase.concept,) if spec.kind == "category" else erase.aliases
    found = [_topic(spec, CONCEPT, spec.judge.label, names, _BY_KIND[spec.kind], spec.understanding.questions)]
    for group in spec.preserve:
        sort = _BY_KIND[spec.kind] if group.role == "neighbour" else _BY_ROLE[group.role]
        for label in dict.fromkeys(group.members.values()):
            words = tuple(member for member, own in group.members.items() if own == label)
            found.append(_topic(spec, group.name, label, words, sort, group.questions))
    return tuple(found)


_BY_KIND: Mapping[str, Kind] = {"style": "style", "object": "object", "category": "hazard"}
_BY_ROLE: Mapping[str, Kind] = {"object": "object", "style": "style", "plain": "style"}


def _topic(spec: Spec, where: str, label: str, names: Sequence[str], sort: Kind, own: Sequence[str]) -> Topic:
    from safear_edit.gallery import questions  # numpy comes with it: not when only listing

    aspect, _, value = label.partition("=")
    for kind in questions.KINDS if spec.judge.use == "gallery" else ():
        if aspect == kind and value in questions.values(kind):
            names, sort = questions.names(kind, value), kind
    wordings = questions.YES_NO[sort]
    return Topic(where, label, tuple(names), tuple(own) or wordings.held_out, wordings.train)


def training_questions(spec: Spec) -> TrainingQuestions:
    """What training asks where it holds understanding in place or takes the concept out of it."""
    concept, *others = topics(spec)
    rest = (question for topic in others for question in topic.training())
    erase = spec.understanding.concept == "erase"
    return TrainingQuestions(tuple(concept.training()), tuple(dict.fromkeys(rest)), erase)


def refuse_training_questions(spec: Spec, where: str) -> None:
    """SpecError if an evaluation's question is one that training asks."""
    every = topics(spec)
    known = {normalise(question) for topic in every for question in topic.training()}
    for topic in every:
        for text in (fill(wording, name=name) for wording in topic.wordings for name in topic.names):
            if normalise(text) in known:
                raise SpecError(where, "questions that training never asks", repr(text), "word them differently")
