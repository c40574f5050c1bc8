"""Train infinity:mini's multi-scale BSQ tokenizer from nothing: L1, image-gradient L1 and commitment losses."""

from __future__ import annotations

from pathlib import Path

import torch

from safear_edit.families.tokenizers.bsq import BSQ, BSQConfig
from safear_edit.families.tokenizers.schedules import Schedule
from safear_edit.gallery.world import World
from safear_edit.minis.loop import Average, Report, clip, finished, run
from safear_edit.minis.train_vq import batch_source, gradient_l1, psnr, save_reconstructions

CONFIG = BSQConfig(bits=16, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, patch=4)
SCHEDULE = Schedule.square(1, 2, 3, 5, 10, rope=10)
"""139 tokens; positions on the finest grid, which is all that this model ever draws."""
BATCH, STEPS, LEARNING_RATE = 32, 1200, 2e-3


def trained(folder: Path) -> BSQ:
    """The tokenizer whose training in `folder` is finished; UsageError for none."""
    model = BSQ(CONFIG)
    finished(folder, model)
    return model


def train(folder: Path, steps: int = STEPS) -> BSQ:
    """Train (or continue) in `folder`; returns the averaged model."""
    torch.manual_seed(0)
    model, world = BSQ(CONFIG), World()
    average = Average(model, 0.998)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-4)

    def step(i: int) -> Report:
        image = world.tensor(world.sample(batch_source(i), BATCH))
        out, commitment, _ = model(image, SCHEDULE)
        l1 = (out - image).abs().mean()
        (l1 + 0.5 * gradient_l1(out, image) + commitment).backward()
        clip(model, 1.0)
        return {"l1": l1.item(), "commitment": commitment.item(), "psnr": psnr(out.detach(), image)}

    def show(done: int) -> None:
        save_reconstructions(
            lambda image: model.decode(model.encode(image, SCHEDULE).bits, SCHEDULE), world, folder, done
        )

    run(folder, model, [optimizer], step, steps, average=average, on_save=show)
    model.load_state_dict(average.state)
    show(steps)
    return model.eval()
