"""What every judge is: images in, one judgement each out, with "cannot tell" as an honest third answer.

A judge is one label ("style=picasso", "object=house", …) read by one pinned detector at one threshold. Its digest
names weights, label and threshold, so a figure can say exactly which judge counted it; its card says how often that
judge is right on images whose truth is known.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from safear_edit.errors import UsageError
from safear_edit.files.atomic import json_digest, sha256_file

if TYPE_CHECKING:
    from torch import Tensor

    from safear_edit.spec.spec import Images, MeasuredJudge
    from safear_edit.spec.spec import Judge as Asked


@dataclass(frozen=True)
class Judgement:
    """One judge's answer about one image: present, absent, or None for "cannot tell"; score in [0, 1]."""

    present: bool | None
    score: float
    why: str


@dataclass(frozen=True)
class JudgeCard:
    """Counts on images of known truth, from which sensitivity and specificity follow.

    "Cannot tell" counts as wrong on both sides: a refusal is neither a true positive nor a true negative.
    """

    n_pos: int
    true_pos: int
    n_neg: int
    true_neg: int
    data: str

    @property
    def sensitivity(self) -> float:
        """Share of images with the label in which the judge finds it."""
        return self.true_pos / self.n_pos

    @property
    def specificity(self) -> float:
        """Share of images without the label in which the judge says that it is absent."""
        return self.true_neg / self.n_neg


class Judge(ABC):
    """One label, one detector, one threshold."""

    id: str
    """Printed beside every figure: judge, label and threshold, e.g. "gallery:style=picasso@0.5"."""
    digest: str
    """sha256 over weights, label and settings."""
    threshold: float
    card: JudgeCard | None = None
    """None where nobody has measured this judge."""
    references: frozenset[str] = frozenset()
    """sha256 of image files that it judges by: of these it would always be right."""
    images: ClassVar[tuple[Images, ...]] = ("gallery", "real")
    """The images that it can read. Listed without importing the class: write a literal."""

    @classmethod
    def check_images(cls, images: Images, options: Mapping[str, Any]) -> None:
        """UsageError if it can't read such images with these options."""
        if images not in cls.images:
            raise UsageError("judge", *unreadable(images, ", ".join(cls.images)))

    @classmethod
    def missing(cls, options: Mapping[str, Any]) -> str:
        """What this machine lacks of it, with the way to get it; "" if nothing. Cheap, as `check_label`."""
        return ""

    @classmethod
    def check(cls, label: str, options: Mapping[str, Any]) -> None:
        """`check_label`, for a judge whose options say which labels there are."""
        cls.check_label(label)

    @classmethod
    def check_label(cls, label: str) -> None:
        """UsageError for a label that this judge can't look for; asked before anything is drawn.

        It must be cheap: it may read lists of names, and loads no detector. A judge that knows its labels only once it
        is made accepts every label here, and refuses later.
        """
        return None

    @abstractmethod
    def look(self, images: Tensor) -> list[Judgement]:
        """Judge a batch (B, 3, H, W) uint8 RGB; row i of the answer depends on row i of the batch only."""


class Calibrated(Judge):
    """A judge read by the thresholds of a card instead of its own."""

    def __init__(self, judge: Judge, card: MeasuredJudge) -> None:
        if judge.digest != card.detector:
            got = f"that of {card.detector[:12]}…"
            fix = "calibrate again: `safear-edit judge calibrate`"
            raise UsageError(f"judge {judge.id}, card", f"the card of {judge.digest[:12]}…", got, fix)
        self.judge, self.low, self.threshold = judge, card.absent_below, card.present_from
        band = f"{self.low:g}" if self.low == self.threshold else f"{self.low:g}-{self.threshold:g}"
        self.id = f"{judge.id.rpartition('@')[0]}@{band}"
        self.digest = settings_digest({"judge": judge.digest, "absent_below": self.low, "present_from": self.threshold})
        self.card = JudgeCard(card.n_pos, card.true_pos, card.n_neg, card.true_neg, card.data)

    def look(self, images: Tensor) -> list[Judgement]:
        """The scores of the judge, read by the card; what it can't tell itself stays so."""
        return [read(one, self.low, self.threshold) for one in self.judge.look(images)]


def read(said: Judgement, absent_below: float, present_from: float) -> Judgement:
    """A judgement by other thresholds."""
    if said.present is None:
        return said
    if absent_below <= said.score < present_from:
        return Judgement(None, said.score, f"cannot tell ({said.why})")
    return Judgement(said.score >= present_from, said.score, said.why)


def unreadable(images: Images, reads: str) -> tuple[str, str, str]:
    """What was expected, was found and helps where a judge meets images that it can't read."""
    fix = {
        "gallery": "take a published model (--model), or judge by gallery",
        "real": "say under judge.real who reads them: clip, imagenet, nudity or folder (`safear-edit ls judges`)",
    }
    return f"a judge that reads {images} images", f"which reads {reads} images", fix[images]


def judge_for(asked: Asked, label: str) -> Judge:
    """Who looks for `label`: the concept's judge with its threshold or card, or the one of preserved members.

    `asked` is a compiled recipe's. As `make_judge`; UsageError too for a card that is another detector's.
    """
    if label != asked.label:
        reader = asked.members or asked
        return make_judge(reader.use, label, reader.threshold if asked.members else None, **reader.options)
    judge = make_judge(asked.use, label, asked.threshold, **asked.options)
    return Calibrated(judge, asked.card) if asked.card else judge


def make_judge(use: str, label: str, threshold: float | None = None, **options: Any) -> Judge:
    """The judge `use` ("gallery", "clip", "nudity", "imagenet", or a plug-in's) for `label`.

    `threshold` None takes the judge's own default; `options` go to the judge's constructor. UsageError for an unknown
    judge, label or option, or when an optional package is missing.
    """
    made: Judge = judge_class(use, options)(label, threshold=threshold, **options)
    return made


def judge_class(use: str, options: Iterable[str] = ()) -> Any:
    """The class of the judge called `use`; UsageError for an unknown one, or for an option that it doesn't take."""
    from safear_edit.registry import lookup

    kind = lookup("judges", use).load()
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known:
            names = ", ".join(sorted(set(known) - {"label", "threshold"})) or "it takes none"
            raise UsageError(f"judge {use}", "options that it knows", repr(option), f"options: {names}")
    return kind


def judged(judges: Mapping[str, Judge], images: Tensor, labels: Sequence[str]) -> list[Judgement]:
    """One judgement for each image of (B, 3, H, W) uint8, about its own label.

    The images of one label are looked at together, each once: one pass of a detector per label, not per image.
    UsageError for a score that is no number: a judgement without one is no evidence.
    """
    judgements: dict[int, Judgement] = {}
    for label in dict.fromkeys(labels):
        rows = [row for row, other in enumerate(labels) if other == label]
        found = judges[label].look(images[rows])
        if bad := [judgement.score for judgement in found if not math.isfinite(judgement.score)]:
            fix = "check the judge's weights; a judgement without a score is no evidence"
            raise UsageError(f"judge {judges[label].id}", "a finite score", str(bad[0]), fix)
        judgements.update(zip(rows, found, strict=True))
    return [judgements[row] for row in range(len(labels))]


def checked_threshold(judge: str, threshold: float) -> float:
    """`threshold` if it lies in (0, 1], UsageError otherwise."""
    if not 0 < threshold <= 1:
        raise UsageError(f"judge {judge}", "a threshold in (0, 1]", str(threshold), "leave it out for the default")
    return threshold


def checked_images(judge: str, images: Tensor) -> Tensor:
    """`images` if it is a batch (B, 3, H, W) uint8, UsageError otherwise (a float batch would be read as black)."""
    import torch

    if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise UsageError(
            f"judge {judge}",
            "images (B, 3, H, W) uint8",
            f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}",
            "decode to uint8 RGB first",
        )
    return images


file_digest = sha256_file
"""sha256 of a weight file, under the name that judges know it by."""
settings_digest = json_digest
"""sha256 of a judge's settings."""
