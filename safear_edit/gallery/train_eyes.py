"""Train janus:mini's eyes further: the vision tower and its aligner learn from answers, all else stays as it is.

What draws (language model, picture tables, head) is frozen, so the same tokens are drawn from every caption before and
after, to the last bit. Pictures, questions and answers are train_janus', at step numbers that it never reaches. The
world has some 17 000 pictures and the tower learns them by heart: on fresh draws it named object and style in 98.5 % of
480, in combinations never shown in 87.9 % of 480. Hence every picture is varied in what no caption names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.families.janus import Janus
from safear_edit.families.vq import VQModel
from safear_edit.gallery.loop import Average, Report, clip, run
from safear_edit.gallery.muon import Muon
from safear_edit.gallery.render import Picture
from safear_edit.gallery.train_janus import Plan, Trainer, export, write_manifest

STEPS = 1500
PLAN = Plan(drawn=0, seen=32, turns=4)
MUON_RATE, ADAM_RATE, DECAY = 1.6e-3, 1e-3, 0.05
"""Some third of train_janus' peaks: the eyes have been trained before."""
FIRST_STEP = 1_000_000
TURN, ZOOM, MOVE = 0.12, 0.12, 0.08
"""Largest rotation in radians, change of size, and shift as a share of the side."""
CONTRAST, BRIGHTNESS, NOISE = 0.2, 0.1, 0.08
HOLE = 10
"""Edge in pixels of a grey square that hides a part of every other picture."""


class Eyes(Trainer):
    """A Trainer whose answers are about varied pictures."""

    def looks(self, pictures: Sequence[Picture], rng: np.random.Generator) -> Tensor:
        """Pixels (B, 3, S, S) in [-1, 1], varied."""
        return varied(super().looks(pictures, rng), rng)


def varied(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Each picture (B, 3, S, S) in [-1, 1] mirrored or not, turned, zoomed, shifted, lit otherwise, noisy, holed."""
    count, side = len(images), images.shape[-1]

    def uniform(limit: float) -> Tensor:
        return torch.from_numpy(rng.uniform(-limit, limit, count)).float()

    angle, size, mirror = uniform(TURN), 1 + uniform(ZOOM), torch.from_numpy(rng.choice((-1.0, 1.0), count)).float()
    across = torch.stack([angle.cos() * size * mirror, -angle.sin() * size, uniform(MOVE)], -1)
    down = torch.stack([angle.sin() * size * mirror, angle.cos() * size, uniform(MOVE)], -1)
    places = F.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    images = F.grid_sample(images, places, padding_mode="reflection", align_corners=False)
    images = images * (1 + uniform(CONTRAST)).view(-1, 1, 1, 1) + uniform(BRIGHTNESS).view(-1, 1, 1, 1)
    images = images + NOISE * torch.from_numpy(rng.standard_normal(images.shape)).float()
    corners = rng.integers(side - HOLE + 1, size=(count, 2))
    for image, (y, x) in zip(images[::2], corners[::2], strict=True):
        image[:, y : y + HOLE, x : x + HOLE] = 0
    return images.clamp(-1, 1)


def train(folder: Path, vq: VQModel, model: Janus, steps: int = STEPS, plan: Plan = PLAN) -> Janus:
    """Train (or continue) `model`'s eyes in `folder`; exports the averaged weights to `folder/export` at every save."""
    torch.manual_seed(0)
    eyes = nn.ModuleList([model.net.model.vision_model, model.net.model.aligner])
    model.net.float().requires_grad_(False)
    eyes.requires_grad_(True)
    trainer, average = Eyes(model, vq, plan), Average(model.net, 0.998)

    def step(i: int) -> Report:
        answered = trainer.answer_loss(FIRST_STEP + i)
        answered.backward()
        return {"answer": answered.item(), "norm": clip(eyes, 1.0)}

    def exported(done: int) -> None:
        export(folder / "export", average.state, model)

    minutes = run(folder, model.net, optimizers(eyes), step, steps, average=average, on_save=exported)
    write_manifest(folder / "export", "eyes", plan, steps, minutes, trained_from=model.card.digest)
    model.net.load_state_dict(average.state)
    return model


def optimizers(eyes: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the tower's layers, AdamW for the rest, as in train_janus."""
    named = list(eyes.named_parameters())
    matrices = [p for n, p in named if ".layers." in n and p.dim() == 2]
    others = [p for n, p in named if not (".layers." in n and p.dim() == 2)]
    return [Muon(matrices, MUON_RATE, weight_decay=DECAY), torch.optim.AdamW(others, ADAM_RATE, betas=(0.9, 0.95))]
