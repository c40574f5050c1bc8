"""What `eval --prompts … --out DIR` leaves: every image of both models, judgements.csv and a page."""

from __future__ import annotations

import csv
import hashlib
import html
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safear_edit.construct.sheets import small_tile
from safear_edit.evaluate.own_prompts import Comparison, Seen
from safear_edit.files import rundir
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline import page as pages
from safear_edit.spec.prompt_files import FilePrompt

SIDES = ("first", "second")
CSV, PAGE = "judgements.csv", "index.html"
SAID = {True: "found", False: "not found", None: "cannot tell"}


@dataclass(frozen=True)
class Judged:
    """The folder while it is made, beside its place; hide: images are reduced to blocks first (categories)."""

    run: RunDir
    hide: bool

    @classmethod
    @contextmanager
    def opened(cls, out: Path, *, hide: bool) -> Iterator[Judged]:
        """A place to write to, gone at the end of the block; what is published by then is `out`.

        UsageError for a folder that exists, or that another process is at work on: told before anything is drawn.
        """
        with rundir.opened(out, kind="judged") as run:
            made = cls(run, hide)
            shutil.rmtree(made.work, ignore_errors=True)
            try:
                for side in SIDES:
                    (made.work / side).mkdir(parents=True)
                yield made
            finally:
                shutil.rmtree(made.work, ignore_errors=True)

    @property
    def work(self) -> Path:
        """Where it is until it is whole."""
        return self.run / self.run.out.name

    def keeping(self, side: int, prompts: Sequence[FilePrompt]) -> Callable[[int, NDArray[np.uint8]], None]:
        """Writes the image of the prompt with that number."""

        def keep(number: int, image: NDArray[np.uint8]) -> None:
            small_tile(image, hidden=self.hide).save(self.work / image_name(side, prompts[number]))

        return keep

    def publish(self, found: Comparison) -> None:
        """CSV and page, then the folder in its place by one rename."""
        with (self.work / CSV).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            columns = [f"{what} {name}" for name in found.models for what in ("said of", "score of", "image of")]
            writer.writerow(["id", "prompt", "seed", *columns])
            for i, one in enumerate(found.prompts):
                cells = [cell for side, seen in enumerate(found.seen) for cell in _cells(side, one, seen[i])]
                writer.writerow([one.id, found.shown(one), str(one.seed), *cells])
        (self.work / PAGE).write_text(_page(found), encoding="utf-8")
        self.run.publish(self.work, overwrite=False)


def image_name(side: int, prompt: FilePrompt) -> str:
    """Where the image of a prompt and seed lies; ids of a person's file may be anything."""
    return f"{SIDES[side]}/{hashlib.sha256(f'{prompt.id}|{prompt.prompt}|{prompt.seed}'.encode()).hexdigest()[:16]}.png"


def _cells(side: int, prompt: FilePrompt, seen: Seen) -> tuple[str, str, str]:
    return SAID[seen.present], f"{seen.score:.4f}", image_name(side, prompt)


def _page(found: Comparison) -> str:
    rows = []
    for i, one in enumerate(found.prompts):
        cells = [html.escape(found.shown(one)), str(one.seed)]
        for side, seen in enumerate(found.seen):
            said, score, name = _cells(side, one, seen[i])
            cells.append(f"{pages.image(name, said)}<br>{said} {score}")
        rows.append(cells)
    lines = [*found.summary(), *found.notes, *found.warnings()]
    told = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    table = pages.raw_table(("prompt", "seed", *found.models), rows)
    return pages.document("Judged images", f"<h1>Judged images</h1>{told}{table}")
