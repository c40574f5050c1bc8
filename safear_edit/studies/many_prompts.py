"""`eval --prompts` on many prompts: how fast it goes, what memory it takes, and how that grows from prompt to prompt.

`python -m safear_edit.studies many_prompts --n 5000` writes a prompt file, compares a model with itself on it (both
sides draw and judge everything, as two models would), and watches its own process after every batch. The slope is of a
straight line through the resident memory after the first tenth, when everything that is loaded at first use is there.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from safear_edit.errors import UsageError
from safear_edit.pipeline.eval import Loading, compare_prompts
from safear_edit.studies.arguments import command, positive
from safear_edit.studies.contest import prompts
from safear_edit.studies.rows import Row, made

if TYPE_CHECKING:
    from safear_edit.evaluate.own_prompts import Comparison

STATM, PAGE = Path("/proc/self/statm"), os.sysconf("SC_PAGE_SIZE")
"""Where Linux tells a process how many pages of it are in memory."""
FEWEST = 4
COMMAND = "python -m safear_edit.studies many_prompts"


@dataclass
class Watched:
    """A progress callback that notes images done, CPU seconds and resident bytes."""

    done: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    def __call__(self, stage: str, done: int, total: int, info: str = "") -> None:
        self.done.append(done)
        self.seconds.append(time.process_time())
        self.resident.append(int(STATM.read_text().split()[1]) * PAGE)

    def row(self) -> Row:
        """Images per CPU second of the first and the last half, memory in MiB, and its slope in KiB per image.

        UsageError for too few batches to have two halves.
        """
        if len(self.done) < FEWEST:
            raise UsageError("--n", f"{FEWEST} batches of images", str(len(self.done)), "ask for more prompts")
        first = len(self.done) // 10
        slope = np.polyfit(self.done[first:], self.resident[first:], 1)[0] / 2**10
        half = len(self.done) // 2
        rates = [
            round((self.done[b] - self.done[a]) / (self.seconds[b] - self.seconds[a]), 1)
            for a, b in ((first, half), (half, len(self.done) - 1))
        ]
        memory = [size / 2**20 for size in self.resident[first:]]
        return {
            "images": self.done[-1],
            "images per CPU second, first half": rates[0],
            "second half": rates[1],
            "resident MiB": {"from": round(min(memory)), "to": round(max(memory))},
            "slope, KiB per image": round(float(slope), 2),
        }


def watched(model: str, spec: str, count: int, folder: Path) -> tuple[Comparison, Watched]:
    """Compare the model with itself on `count` prompts, numbered so that each is its own."""
    file, seen = folder / "prompts.txt", Watched()
    file.write_text("".join(f"{text}, number {i}\n" for i, text in enumerate(prompts(count))))
    return compare_prompts([model, model], spec=spec, prompts=file, seed=0, how=Loading("cpu"), progress=seen), seen


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one row for examples/results."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="llamagen")
    parser.add_argument("--spec", default="picasso")
    parser.add_argument("--n", type=positive, default=5000)
    parser.add_argument("--commit", help="in which the row is recorded")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found, seen = watched(chosen.model, chosen.spec, chosen.n, Path(folder))
    origin = made(command(parser, chosen, ("model", "spec", "n")), chosen.commit)
    print(json.dumps({"model": found.models[0], "prompts": chosen.n} | seen.row() | origin))
    return 0
