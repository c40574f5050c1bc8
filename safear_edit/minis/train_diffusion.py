"""Train diffusion:mini's denoiser from nothing on captioned gallery images (latents of llamagen:mini's tokenizer).

The network is diffusers' PixArt transformer. It predicts v (https://arxiv.org/abs/2202.00512) under the cosine schedule
(https://arxiv.org/abs/2102.09672), at noise levels that are spread evenly over each batch. As in train_llamagen,
layers' matrices are trained with Muon, everything else with AdamW; ten per cent of the captions are replaced by the
empty one (guidance), and an exponential moving average is exported.

What ships is 2000 steps of 64 images, 66.8 minutes on one core of a busy machine without bfloat16 units; the first 1000
ran under a schedule of 2500 steps, so a fresh run differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.families.diffusion import DenoisingSampling, Diffusion, Quantised, Settings
from safear_edit.families.text import MINILM_WIDTH, minilm, text_encoder
from safear_edit.families.tokenizers.vq import VQModel
from safear_edit.gallery.world import WORLD_SEED
from safear_edit.minis.loop import Average, Report, clip, run
from safear_edit.minis.muon import Muon
from safear_edit.minis.pool import LENGTH, build_pool

if TYPE_CHECKING:
    from diffusers import PixArtTransformer2DModel

HEADS, HEAD_WIDTH = 6, 32
CONFIG: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_WIDTH,
    "cross_attention_dim": HEADS * HEAD_WIDTH,
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 5,
    "sample_size": 10,
    "patch_size": 2,
    "caption_channels": MINILM_WIDTH,
}
SCHEDULE: dict[str, Any] = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
BATCH, STEPS = 64, 2000
MUON_RATE, ADAM_RATE = 4e-3, 3e-3
CAPTION_DROP = 0.1
SAMPLING = DenoisingSampling(2.0, steps=20)


def train(folder: Path, vq: VQModel, steps: int = STEPS) -> PixArtTransformer2DModel:
    """Train (or continue) in `folder`; exports the averaged weights to `folder/export` at every save."""
    from diffusers import DDIMScheduler, PixArtTransformer2DModel

    tokenizer = Quantised(vq)
    pool = build_pool(lambda images: tokenizer.latent(images).half(), folder)
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(**CONFIG)
    shares = DDIMScheduler(**SCHEDULE).alphas_cumprod
    average = Average(model, 0.999)
    matrices = [p for n, p in model.named_parameters() if n.startswith("transformer_blocks") and n.endswith(".weight")]
    chosen = {id(p) for p in matrices}
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, MUON_RATE, weight_decay=0.01),
        torch.optim.AdamW([p for p in model.parameters() if id(p) not in chosen], ADAM_RATE, betas=(0.9, 0.95)),
    ]
    empty = minilm().states([""])[0][0]

    def loss_of(noised: Tensor, step: Tensor, features: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        found = model(
            noised, timestep=step, encoder_hidden_states=features, encoder_attention_mask=mask, return_dict=False
        )[0]
        return F.mse_loss(found, wanted)

    def step(i: int) -> Report:
        generator = torch.Generator().manual_seed(WORLD_SEED + i)
        latents, features, mask = pool.batch(torch.randint(len(pool.ids), (BATCH,), generator=generator))
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROP
        features, mask = without(features, mask, dropped, empty)
        number = ((torch.arange(BATCH) + torch.rand(1, generator=generator)) / BATCH * len(shares)).long()
        noised, wanted = mixed(latents.float(), shares[number], generator)
        loss = loss_of(noised, number, features, mask.float(), wanted)
        loss.backward()
        return {"loss": loss.item(), "norm": clip(model, 1.0)}

    def exported(done: int) -> None:
        export(folder / "export", average.state, vq)

    run(folder, model, optimizers, step, steps, average=average, on_save=exported)
    model.load_state_dict(average.state)
    return model.eval()


def mixed(latents: Tensor, share: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents (B, C, h, w) with noise, of which `share` (B,) of the variance is the image's; and v, which says both."""
    noise = torch.randn(latents.shape, generator=generator)
    image, other = (root.sqrt().view(-1, 1, 1, 1) for root in (share, 1 - share))
    return image * latents + other * noise, image * noise - other * latents


def without(features: Tensor, mask: Tensor, dropped: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Captions (B, T, C), left-padded, with the empty caption's states in place of those that are dropped (B,)."""
    blank, seen = torch.zeros_like(features[0]), torch.zeros_like(mask[0])
    blank[-len(empty) :], seen[-len(empty) :] = empty, True
    return torch.where(dropped[:, None, None], blank, features), torch.where(dropped[:, None], seen, mask)


def export(folder: Path, state: dict[str, Tensor], vq: VQModel) -> None:
    """Write the mini's layout in half precision, as `Diffusion.load` reads it."""
    from diffusers import DDIMScheduler, PixArtTransformer2DModel

    folder.mkdir(parents=True, exist_ok=True)
    net, tokenizer = PixArtTransformer2DModel(**CONFIG), VQModel(vq.config)
    net.load_state_dict(state)
    tokenizer.load_state_dict(vq.state_dict())
    settings = Settings(variant="mini", licence="Apache-2.0", vq=vq.config, sampling=SAMPLING)
    parts = net.half(), Quantised(tokenizer.half()), text_encoder("minilm", LENGTH, folder), DDIMScheduler(**SCHEDULE)
    Diffusion.of(*parts, settings).export(folder)
