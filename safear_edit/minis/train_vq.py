"""Train the gallery's VQ tokenizer from nothing: L1, image-gradient L1 and codebook losses, dead codes restarted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.families.tokenizers.vq import VQConfig, VQModel, to_uint8
from safear_edit.gallery.render import sheet
from safear_edit.gallery.world import WORLD_SEED, World
from safear_edit.minis.loop import Average, Report, clip, finished, run

CONFIG = VQConfig(
    codebook_size=512,
    ch=32,
    encoder_ch_mult=(1, 1, 2),
    decoder_ch_mult=(1, 2, 2),
    z_channels=64,
    num_res_blocks=1,
)
BATCH, STEPS, LEARNING_RATE = 32, 1600, 2e-3


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 between the horizontal and vertical differences of two image batches (sharpness)."""
    return sum(((a.diff(dim=d)) - (b.diff(dim=d))).abs().mean() for d in (-1, -2))  # type: ignore[return-value]


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(a.clamp(-1, 1), b)))


def batch_source(step: int) -> np.random.Generator:
    """Draws the images of a step."""
    return np.random.default_rng((WORLD_SEED, 1, step))


def trained(folder: Path) -> VQModel:
    """The tokenizer whose training in `folder` is finished; UsageError for none."""
    model = VQModel(CONFIG)
    finished(folder, model)
    return model


def train(folder: Path, steps: int = STEPS) -> VQModel:
    """Train (or continue) in `folder`; returns the averaged model."""
    torch.manual_seed(0)
    model, world = VQModel(CONFIG), World()
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(F.normalize(torch.randn(CONFIG.codebook_size, 8), dim=-1))
    average = Average(model, 0.998)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-4)
    used = torch.zeros(CONFIG.codebook_size)

    def step(i: int) -> Report:
        image = world.tensor(world.sample(batch_source(i), BATCH))
        out, vq_loss, ids = model(image)
        l1 = (out - image).abs().mean()
        (l1 + 0.5 * gradient_l1(out, image) + vq_loss).backward()
        clip(model, 1.0)
        used.scatter_add_(0, ids.flatten(), torch.ones(ids.numel()))
        if (i + 1) % 50 == 0 and i < 0.7 * steps:
            _restart_dead_codes(model, image, used, i)
        return {
            "l1": l1.item(),
            "vq": vq_loss.item(),
            "psnr": psnr(out.detach(), image),
            "codes": float((used > 0).sum()),
        }

    def show(done: int) -> None:
        model.eval()
        save_reconstructions(lambda image: model.decode(model.encode(image)), world, folder, done)
        model.train()

    run(folder, model, [optimizer], step, steps, average=average, on_save=show)
    model.load_state_dict(average.state)
    show(steps)
    return model.eval()


@torch.no_grad()
def _restart_dead_codes(model: VQModel, image: Tensor, used: Tensor, step: int) -> None:
    """Move codes that no token chose lately onto random latents of the current batch; the step says which."""
    generator = torch.Generator().manual_seed(WORLD_SEED + step)
    dead = (used < 2).nonzero().flatten()
    latents = F.normalize(model.latent(image), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    pick = torch.randint(len(latents), (len(dead),), generator=generator)
    noise = torch.randn(len(dead), latents.shape[1], generator=generator)
    model.quantize.embedding.weight[dead] = latents[pick] + 0.01 * noise
    used.zero_()


@torch.no_grad()
def save_reconstructions(again: Callable[[Tensor], Tensor], world: World, folder: Path, step: int) -> None:
    """Originals above what a tokenizer makes of them ([-1, 1] to [-1, 1]), for a person to look at; prints the PSNR."""
    image = world.tensor(world.sample(np.random.default_rng((WORLD_SEED, 2)), 48))
    original, made = (to_uint8(x).permute(0, 2, 3, 1).numpy() for x in (image, again(image)))
    rows = [part for r in range(0, 48, 16) for part in (list(original[r : r + 16]), list(made[r : r + 16]))]
    sheet(rows, zoom=2).save(folder / "reconstructions.png")
    quality = psnr(*(torch.from_numpy(x).float() / 127.5 - 1 for x in (made, original)))
    print(f"step {step}: psnr of 48 images {quality:.2f}", flush=True)
