"""The calibration counts what it says it counts, with a clock of our own."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from safear_edit.compiler.cost import image_flops
from safear_edit.families.llamagen import LlamaGen
from safear_edit.judges.base import Judge, Judgement
from safear_edit.studies.machine_speed import time_model


class Always(Judge):
    def look(self, images: torch.Tensor) -> list[Judgement]:
        return [Judgement(True, 1.0, "") for _ in images]


def test_speeds_are_work_by_time_and_the_model_is_left_alone() -> None:
    model, ticks = LlamaGen.pico(), count()
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    found = time_model(model, Always(), images=32, steps=2, clock=lambda: 2.0 * next(ticks))
    assert found.images_per_second == 16, "32 images between two ticks of two seconds"
    assert found.sample_flops == 16 * image_flops(model.card)
    assert found.seconds_per_step == 2
    rows = 3 * (16 + 12) + 12  # VCE's base recipe: 8 pairs and 12 preserved images a step
    assert found.train_flops == pytest.approx(rows * 2 * model.card.parameters * model.card.tokens / 2)
    assert found.peak_gib > 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.net.state_dict().items())
