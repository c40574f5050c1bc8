"""Train infinity:mini's transformer from nothing on captioned gallery images (latents from the gallery BSQ).

As published: bitwise self-correction, coarse tokens weighted up, captions dropped for guidance. As in train_llamagen,
layers' matrices are trained with Muon, everything else with AdamW; an exponential moving average is exported. The first
COARSE_STEPS run all scales but the finest, which holds most of the tokens and the least of what a caption says: these
steps cost a third and decide most of how well captions are followed.

The shipped weights took several sittings, between which the end of the learning-rate schedule was moved: step 0 to
1250 with its end at 2500, to 2000 at 2000, to 3000 at 4750, to 3500 at 3500. From step 2250 on two processes shared
each batch and averaged their gradients: the same sums, rounded differently.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safear_edit.families.base import ModelCard
from safear_edit.families.infinity import Infinity, InfinityConfig, ScaleSampling, Transformer, bit_loss
from safear_edit.families.text import MINILM_WIDTH, text_encoder
from safear_edit.families.tokenizers.bsq import BSQ, SelfCorrection, quantise
from safear_edit.gallery.render import SIDE
from safear_edit.gallery.world import WORLD_SEED
from safear_edit.minis.loop import Average, Report, clip, run
from safear_edit.minis.muon import Muon
from safear_edit.minis.pool import LENGTH, build_pool
from safear_edit.minis.train_bsq import CONFIG as TOKENIZER
from safear_edit.minis.train_bsq import SCHEDULE

CONFIG = InfinityConfig(
    depth=6,
    width=192,
    heads=6,
    chunks=2,
    ffn_hidden=768,
    bits=TOKENIZER.bits,
    caption_dim=MINILM_WIDTH,
    pool_heads=3,
    text_maxlen=LENGTH,
    levels=len(SCHEDULE.grids),
)
BATCH, STEPS = 48, 3500
COARSE_STEPS, COARSE_BATCH, COARSE_SCALES = 1550, 64, len(SCHEDULE.grids) - 1
MUON_RATE, ADAM_RATE = 4e-3, 3e-3
CAPTION_DROP = 0.1
FLIPS = 0.3
"""Largest share of flipped bits per scale: the published strength (scripts/train.sh of
https://github.com/FoundationVision/Infinity/tree/4c27bbb)."""
SAMPLING = ScaleSampling(guidance=2.0, temperature=0.5, guidances=(2.0,) * COARSE_SCALES + (1.0,))
"""The finest scale draws what the coarser ones and the caption have settled: without guidance there, images come
almost twice as fast, and of 240 captions (not those of `measure`) the judge reads the style in 98.3 instead of 98.8 %,
the object in 97.5 instead of 98.8 %."""


def train(folder: Path, bsq: BSQ, steps: int = STEPS) -> Transformer:
    """Train (or continue) in `folder`; exports the averaged weights to `folder/export` at every save."""
    pool = build_pool(lambda image: bsq.encoder(image).half(), folder)
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    average = Average(model, 0.999)
    matrices = [p for n, p in model.named_parameters() if n.startswith("block") and p.dim() == 2]
    chosen = {id(p) for p in matrices}
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, MUON_RATE, weight_decay=0.01),
        torch.optim.AdamW([p for p in model.parameters() if id(p) not in chosen], ADAM_RATE, betas=(0.9, 0.95)),
    ]

    @torch.compile(dynamic=True)
    def loss_of(features: Tensor, mask: Tensor, inputs: Tensor, bits: Tensor, scales: int) -> Tensor:
        logits = model(model.text_pass(features, mask), inputs, SCHEDULE, scales)
        return bit_loss(logits, bits[:, : logits.shape[1]], SCHEDULE)

    def step(i: int) -> Report:
        scales, count = (COARSE_SCALES, COARSE_BATCH) if i < COARSE_STEPS else (len(SCHEDULE.grids), BATCH)
        generator = torch.Generator().manual_seed(WORLD_SEED + i)
        latents, features, mask = pool.batch(torch.randint(len(pool.ids), (count,), generator=generator))
        dropped = torch.rand(count, generator=generator) < CAPTION_DROP
        features = torch.where(dropped[:, None, None], model.unconditional(mask), features)
        flips = SelfCorrection(FLIPS, np.random.RandomState((WORLD_SEED + i) % 2**32), generator, len(SCHEDULE.grids))
        found = quantise(latents.float(), SCHEDULE, flips)
        loss = loss_of(features, mask, found.inputs, found.bits, scales)
        loss.backward()
        return {"loss": loss.item(), "norm": clip(model, 1.0)}

    def exported(done: int) -> None:
        export(folder / "export", average.state, bsq)

    run(folder, model, optimizers, step, steps, average=average, on_save=exported)
    model.load_state_dict(average.state)
    return model.eval()


def export(folder: Path, state: dict[str, Tensor], bsq: BSQ) -> None:
    """Write the mini's layout in half precision, as `Infinity.load` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    net, tokenizer = Transformer(CONFIG), BSQ(TOKENIZER)
    net.load_state_dict(state)
    tokenizer.load_state_dict(bsq.state_dict())
    scales = SCHEDULE.tokens
    parameters = sum(p.numel() for module in (net, tokenizer) for p in module.parameters())
    card = ModelCard("infinity", "mini", SIDE, SCHEDULE.total, 2, scales, parameters, "Apache-2.0")
    mini = Infinity(net.half(), tokenizer.half(), SCHEDULE, text_encoder("minilm", LENGTH, folder), card, SAMPLING)
    mini.export(folder)
