"""The verbs about judges: `judge calibrate`; main.py attaches VERBS."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from safear_edit.cli.options import (
    FOLDER,
    NEW,
    SOURCE,
    Replacing,
    Shown,
    option,
    print_json,
    refuse_existing_file,
    shown_progress,
    taking,
)

if TYPE_CHECKING:
    from safear_edit.spec.spec import MeasuredJudge


@click.group()
def judge() -> None:
    """Measure judges on labelled images.

    \b
    safear-edit judge calibrate labelled concepts/monet.yaml
    """


@dataclass(frozen=True)
class CalibrateOptions(Replacing, Shown):
    images: Literal["gallery", "real"] = option(
        "--images",
        type=click.Choice(["gallery", "real"]),
        default="real",
        show_default=True,
        help="Whose judge: the one for published models' images, or for the minis'.",
    )
    out: Path | None = option("--out", type=NEW, help="A file for the card (default: print it).")


@judge.command()
@click.argument("folder", type=FOLDER)
@click.argument("spec", type=SOURCE)
@taking(CalibrateOptions)
def calibrate(folder: Path, spec: str, given: CalibrateOptions) -> int:
    """Choose the thresholds of a spec's judge, and measure how often it is right.

    FOLDER/present holds images that show the concept, FOLDER/absent images that don't, 40 of each at least. One half
    chooses the thresholds, the other half measures. The card goes into the spec, beside the judge's label, or into
    --set judge.card=CARD.

    \b
    safear-edit judge calibrate labelled/ concepts/picasso.yaml
    """
    from safear_edit.files.atomic import write_atomic
    from safear_edit.pipeline.calibrate import calibrate

    if given.out:
        refuse_existing_file(given.out, overwrite=given.overwrite)
    with shown_progress(given) as progress:
        card = calibrate(folder, spec, given.images, progress)
    text = f"card: {json.dumps(card.model_dump(mode='json'), ensure_ascii=False)}\n"
    if given.out:
        write_atomic(given.out, text)
    if given.as_json:
        print_json(card.model_dump(mode="json"))
    elif not given.out:
        print(text, end="")
    print(_sentence(card), file=sys.stderr)
    return 0


def _sentence(card: MeasuredJudge) -> str:
    found, passed = card.true_pos / card.n_pos, card.true_neg / card.n_neg
    band = f"cannot tell from {card.absent_below:g} to {card.present_from:g}"
    if card.absent_below == card.present_from:
        band = f"threshold {card.present_from:g}"
    return (
        f"finds the concept in {card.true_pos} of {card.n_pos} images that show it ({found:.0%}) and not in "
        f"{card.true_neg} of {card.n_neg} others ({passed:.0%}); {band}"
    )


VERBS: tuple[click.Command, ...] = (judge,)
