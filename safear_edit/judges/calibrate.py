"""Chooses a judge's thresholds on one half of labelled images, and measures on the other half how often they are right.

Between the two thresholds lies "cannot tell". They are set so that outside of it at most WRONG of the first half's
images are judged wrongly on either side; what that costs in images without an answer, the second half shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from safear_edit.errors import UsageError
from safear_edit.files.atomic import json_digest
from safear_edit.judges.base import Judge, Judgement, file_digest, read
from safear_edit.judges.folder import images_below, read_tensor
from safear_edit.progress import Callback, silent
from safear_edit.spec.spec import MeasuredJudge

PRESENT, ABSENT = "present", "absent"
"""Subfolders of labelled images."""
WRONG = 0.02
"""Share of the images that choose the thresholds, on either side, that may be judged wrongly."""
FEWEST = 20
"""Images with the label in each half, and without it: fewer say nothing about a share of 2 %."""
DIGITS = 4
SMALLEST = 10**-DIGITS
"""What thresholds are rounded to; none lies below it, for a score of nothing must stay absent."""


@dataclass(frozen=True)
class Truth:
    """One labelled image: whether the label is in it, and what the judge said."""

    present: bool
    judgement: Judgement


def labelled(judge: Judge, folder: Path, progress: Callback = silent) -> tuple[list[Truth], list[Truth], str]:
    """What the judge says of the images in `folder`/present and `folder`/absent: two halves, and which images they are.

    The sha256 of a file decides its half, so that copies count once and the same folder gives the same halves.
    UsageError without either subfolder, for an image that lies in both, and for one that the judge judges by.
    """
    files = {name: {file_digest(path): path for path in images_below(folder / name)} for name in (PRESENT, ABSENT)}
    for name, found in files.items():
        if not found:
            fix = f"put images with the label into {PRESENT}/ and others into {ABSENT}/"
            raise UsageError(str(folder / name), "images in PNG, JPEG or WebP", "none", fix)
    if both := files[PRESENT].keys() & files[ABSENT].keys():
        path = files[PRESENT][min(both)]
        raise UsageError(str(path), f"an image in {PRESENT}/ or in {ABSENT}/", "one in both", "remove one")
    if own := judge.references & {*files[PRESENT], *files[ABSENT]}:
        path = next(found[digest] for found in files.values() for digest in found if digest in own)
        got, fix = f"{len(own)} that it judges by", "take others: it is always right about these"
        raise UsageError(str(path), f"images that {judge.id} doesn't have", got, fix)
    halves: tuple[list[Truth], list[Truth]] = ([], [])
    total = sum(map(len, files.values()))
    for name, found in files.items():
        for number, digest in enumerate(sorted(found)):
            (said,) = judge.look(read_tensor(found[digest])[None])
            halves[number % 2].append(Truth(name == PRESENT, said))
            progress("judge", sum(map(len, halves)), total, "")
    every = json_digest(sorted(digest for found in files.values() for digest in found))
    return *halves, f"{folder.resolve().name}, {total} images ({every[:12]}), half of them chose the thresholds"


def calibrated(judge: Judge, chosen_on: Sequence[Truth], measured_on: Sequence[Truth], data: str) -> MeasuredJudge:
    """The card of `judge`: thresholds from the first half, counts from the second.

    UsageError for a half with fewer than FEWEST images of either kind, and for a judge whose scores don't tell them
    apart.
    """
    for half in (chosen_on, measured_on):
        for present in (True, False):
            count = sum(one.present is present and one.judgement.present is not None for one in half)
            if count < FEWEST:
                kind = "with" if present else "without"
                expected = f"{2 * FEWEST} readable images {kind} the label"
                raise UsageError("calibrate", expected, f"{count} in one half", "add more")
    low, high = thresholds(chosen_on)
    answers = {wanted: [read(one.judgement, low, high).present for one in measured_on if one.present is wanted]
               for wanted in (True, False)}  # fmt: skip
    return MeasuredJudge(
        detector=judge.digest,
        present_from=high,
        absent_below=low,
        n_pos=len(answers[True]),
        true_pos=answers[True].count(True),
        n_neg=len(answers[False]),
        true_neg=answers[False].count(False),
        data=data,
    )


def thresholds(truths: Sequence[Truth]) -> tuple[float, float]:
    """(absent_below, present_from): the best single threshold, moved apart until at most WRONG err on either side.

    The best one has the largest sensitivity + specificity (Youden's J), in the middle of its gap. UsageError if no
    threshold is better than a coin.
    """
    readable = [one for one in truths if one.judgement.present is not None]
    present = sorted(one.judgement.score for one in readable if one.present)
    absent = sorted(one.judgement.score for one in readable if not one.present)
    scores = sorted({*present, *absent})
    middles = [(a + b) / 2 for a, b in pairwise(scores)] or scores
    best = max(middles, key=lambda at: _youden(at, present, absent))
    if _youden(best, present, absent) <= 0:
        fix = "take other prompts, another model or another judge"
        raise UsageError("calibrate", "higher scores where the label is present", "none", fix)
    best = round(best, DIGITS)
    low = min(best, _rounded_down(present[int(WRONG * len(present))]))
    high = max(best, _just_above(absent[len(absent) - 1 - int(WRONG * len(absent))]))
    return max(SMALLEST, low), min(max(SMALLEST, high), 1.0)


def _youden(at: float, present: Sequence[float], absent: Sequence[float]) -> float:
    return sum(s >= at for s in present) / len(present) + sum(s < at for s in absent) / len(absent) - 1


def _rounded_down(score: float) -> float:
    return math.floor(score * 10**DIGITS) / 10**DIGITS


def _just_above(score: float) -> float:
    rounded = round(_rounded_down(score) + SMALLEST, DIGITS)
    return rounded if rounded > score else round(rounded + SMALLEST, DIGITS)
