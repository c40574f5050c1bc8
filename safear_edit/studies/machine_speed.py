"""How fast this machine is and how much memory a run takes, for compiler/cost.py.

`python -m safear_edit.studies machine_speed` measures both.

One batch of images is drawn, decoded and judged, and VCE takes a few steps with the numbers of its base recipe on
pairs of those images: the two things that a run spends its time on, at the sizes of a run. Speeds are printed in the
units of `Costs` (flop by its own counting, so that they carry over to other sizes of model). Run it alone: other work
on the same cores is measured with it.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from safear_edit.compiler.cost import forward_flops, image_flops
from safear_edit.compiler.recipe import ANSWER_WEIGHT, load_base_recipe
from safear_edit.construct.pairs import Keep, Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.families.base import ModelFamily
from safear_edit.families.load import load_model
from safear_edit.judges.base import Judge, make_judge
from safear_edit.judges.draw import ImageRequest, draw_and_judge
from safear_edit.methods.vce import VCE
from safear_edit.studies.contest import SUBJECTS

STAGE = "edit"
"""The stage that `fit` reports its steps under."""


@dataclass(frozen=True)
class Measured:
    """Speeds by wall clock, and the most memory that the process has held (GiB)."""

    images_per_second: float
    sample_flops: float
    seconds_per_step: float
    train_flops: float
    peak_gib: float


def time_model(
    model: ModelFamily, judge: Judge, *, images: int = 64, steps: int = 4, clock: Callable[[], float] = time.monotonic
) -> Measured:
    """Draw `images` (at least 32, an even number), then train `steps` of VCE; the model is left as it was."""
    prompts = [f"{SUBJECTS[i % len(SUBJECTS)]} number {i // len(SUBJECTS)}" for i in range(images)]
    _tokens(model, judge, prompts[:2])  # what is loaded at first use
    start = clock()
    ids = _tokens(model, judge, prompts)
    per_second = images / (clock() - start)
    unsafe, safe = prompts[0::2], prompts[1::2]
    made = PairStats(len(unsafe), len(unsafe), {})
    pairs = Pairs(unsafe, safe, list(range(len(unsafe))), ids[0::2], ids[1::2], made)
    numbers = VCE.Params(**_defaults(model))
    seconds = step_seconds(model, Material("calibration", pairs, Keep(prompts, ids)), numbers, steps, clock)
    work = replace(VCE().work(VCE.Params(**_defaults(model) | {ANSWER_WEIGHT: 0.0}), model.card, len(unsafe)), steps=1)
    one_step = work.training_flops(model.card)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Measured(per_second, per_second * image_flops(model.card), seconds, one_step / seconds, peak)


def _defaults(model: ModelFamily) -> dict[str, Any]:
    return load_base_recipe("vce").for_model(model.card).params


def _tokens(model: ModelFamily, judge: Judge, prompts: Sequence[str]) -> torch.Tensor:
    """Tokens of one image per prompt, after a judge has looked at them, all in one batch."""
    requests = [ImageRequest(prompt, seed, "any") for seed, prompt in enumerate(prompts)]
    drawn = draw_and_judge(model, requests, {"any": judge}, None, batch=len(requests))
    return torch.stack([image.ids for image in drawn])


def step_seconds(
    model: ModelFamily, material: Material, numbers: VCE.Params, steps: int, clock: Callable[[], float]
) -> float:
    """Mean seconds of an optimiser step after the first, which also pays for what happens once."""
    ends: list[float] = []

    def note(stage: str, done: int, total: int, info: str = "") -> None:
        if stage == STAGE:
            ends.append(clock())

    VCE().fit(model, material, numbers.model_copy(update={"steps": steps + 1}), seed=0, progress=note)
    return (ends[-1] - ends[0]) / steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was measured beside what it makes of a forward pass; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies machine_speed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="llamagen")
    parser.add_argument("--judge", nargs=2, default=["gallery", "style=picasso"], metavar=("NAME", "LABEL"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    model = load_model(options.model)
    found = time_model(model, make_judge(*options.judge))
    if options.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    print(f"{model.card.ref}, {torch.get_num_threads()} threads, {forward_flops(model.card) / 1e9:.2f} Gflop a forward")
    print(f"sampling: {found.images_per_second:.1f} images/s, sample_flops={found.sample_flops:.2g}")
    print(f"training: {found.seconds_per_step:.2f} s/step, train_flops={found.train_flops:.2g}")
    print(f"memory: at most {found.peak_gib:.2f} GiB so far")
    return 0
