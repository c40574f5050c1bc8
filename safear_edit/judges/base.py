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
from typing import TYPE_CHECKING, Any

from safear_edit.errors import UsageError
from safear_edit.files.atomic import json_digest, sha256_file

if TYPE_CHECKING:
    from torch import Tensor


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

    @classmethod
    def check_label(cls, label: str) -> None:
        """UsageError for a label that this judge can't look for; asked before anything is drawn.

        It must be cheap: it may read lists of names, and loads no detector. A judge that knows its labels only once it
        is made says nothing here.
        """
        return None

    @abstractmethod
    def look(self, images: Tensor) -> list[Judgement]:
        """Judge a batch (B, 3, H, W) uint8 RGB; row i of the answer depends on row i of the batch only."""


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
