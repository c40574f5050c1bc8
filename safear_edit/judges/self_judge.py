"""A unified model as the judge of images, and how far it agrees with a pinned judge.

Safe-CB lets a model judge what it drew itself (https://arxiv.org/abs/2606.27147, section 3.2). It stands or falls with
that judgement, so agreement is measured and kept beside the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from safear_edit.files.atomic import json_digest
from safear_edit.judges.base import Judge, Judgement, checked_images, checked_threshold

if TYPE_CHECKING:
    from torch import Tensor

    from safear_edit.families.base import ModelFamily


ANSWERS = ("yes", "no")


class SelfJudge(Judge):
    """Asks the model a question about each image; "yes" against "no" is the score."""

    def __init__(self, model: ModelFamily, question: str, threshold: float = 0.5) -> None:
        self.model, self.question = model, question
        self.threshold = checked_threshold("self", threshold)
        self.id = f"self:{question}@{self.threshold:g}"
        about = {"model": model.card.digest, "question": question, "threshold": self.threshold, "answers": ANSWERS}
        self.digest = json_digest(about)

    def look(self, images: Tensor) -> list[Judgement]:
        """One reply for each image (B, 3, H, W) uint8; it never says that it cannot tell."""
        checked_images("self", images)
        chances = self.model.answer_logprobs(images, self.question, ANSWERS).softmax(-1)[:, 0]
        return [Judgement(p >= self.threshold, p, f"yes {p:.2f}") for p in chances.detach().tolist()]


class Compared(Judge):
    """A judge whose every answer is also compared with a second one's; `agreement` counts until it is set to None."""

    def __init__(self, judge: Judge, truth: Judge) -> None:
        self.judge, self.truth = judge, truth
        self.id, self.digest, self.threshold = judge.id, judge.digest, judge.threshold
        self.agreement: Agreement | None = None
        self._counting = Lock()  # threads judge a batch each

    def look(self, images: Tensor) -> list[Judgement]:
        """What the first judge says."""
        found = self.judge.look(images)
        counted = Agreement.of(found, self.truth.look(images))
        with self._counting:
            self.agreement = counted if self.agreement is None else self.agreement + counted
        return found


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same images: both yes, both no, only the first, only the second; and those left out.

    unclear: images on which either cannot tell.
    """

    both: int
    neither: int
    first_only: int
    second_only: int
    unclear: int

    @classmethod
    def of(cls, first: Sequence[Judgement], second: Sequence[Judgement]) -> Agreement:
        """Count; the second is the judge whose word counts as the truth."""
        pairs = [(a.present, b.present) for a, b in zip(first, second, strict=True)]
        clear = [(a, b) for a, b in pairs if a is not None and b is not None]
        both, neither, alone = (clear.count(wanted) for wanted in ((True, True), (False, False), (True, False)))
        return cls(both, neither, alone, len(clear) - both - neither - alone, len(pairs) - len(clear))

    def __add__(self, other: Agreement) -> Agreement:
        """Counts of both samples."""
        return Agreement(*(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """In the order of the fields."""
        return (self.both, self.neither, self.first_only, self.second_only, self.unclear)

    @property
    def accuracy(self) -> float | None:
        """Share of the clear images on which they agree; None without any."""
        clear = sum(self.counts[:4])
        return (self.both + self.neither) / clear if clear else None

    @property
    def recall(self) -> float | None:
        """Share of the second judge's yes that the first finds; None without any."""
        found = self.both + self.second_only
        return self.both / found if found else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond chance; None where chance alone would agree always."""
        clear = sum(self.counts[:4])
        if not clear:
            return None
        first, second = (self.both + self.first_only) / clear, (self.both + self.second_only) / clear
        chance = first * second + (1 - first) * (1 - second)
        return None if chance == 1 else ((self.both + self.neither) / clear - chance) / (1 - chance)

    def as_json(self) -> dict[str, float | int | None]:
        """Counts and what follows from them."""
        names = ("both", "neither", "first_only", "second_only", "unclear")
        figures = {"accuracy": self.accuracy, "recall": self.recall, "kappa": self.kappa}
        return {**dict(zip(names, self.counts, strict=True)), **figures}
