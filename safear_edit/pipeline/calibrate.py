"""A card for a spec's judge: how often it is right on labelled images of a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.pipeline.order import spec_for
from safear_edit.progress import Callback, silent

if TYPE_CHECKING:
    from safear_edit.spec.spec import Images, MeasuredJudge


def calibrate(folder: Path, source: str, images: Images, progress: Callback = silent) -> MeasuredJudge:
    """The card of the judge by which the spec reads such images, from `folder`/present and `folder`/absent.

    What the spec says of a threshold or an older card counts for nothing. UsageError for too few images, and for a
    judge that can't read them or doesn't tell the two kinds apart.
    """
    from safear_edit.judges.base import make_judge
    from safear_edit.judges.calibrate import calibrated, labelled

    asked = spec_for(source, images).judge
    judge = make_judge(asked.use, asked.label, None, **asked.options)
    chosen_on, measured_on, data = labelled(judge, folder, progress)
    return calibrated(judge, chosen_on, measured_on, data)
