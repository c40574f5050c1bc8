"""Train llamagen:mini's transformer from nothing on captioned gallery images (tokens from the gallery VQ).

Matrices of the layers are trained with Muon, everything else with AdamW; an exponential moving average is exported.
Ten per cent of the captions are dropped (guidance). What is shown is `pool`'s; what is never shown as well.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from safear_edit.families.llamagen import GPT, GPTConfig
from safear_edit.families.text import MINILM_WIDTH
from safear_edit.families.tokenizers.vq import VQModel
from safear_edit.gallery.render import SIDE
from safear_edit.gallery.world import WORLD_SEED
from safear_edit.minis import train_vq
from safear_edit.minis.loop import Average, Report, clip, run
from safear_edit.minis.muon import Muon
from safear_edit.minis.pool import LENGTH, build_pool

CONFIG = GPTConfig(
    dim=192,
    n_layer=6,
    n_head=6,
    vocab_size=train_vq.CONFIG.codebook_size,
    caption_dim=MINILM_WIDTH,
    cls_token_num=LENGTH,
    block_size=(SIDE // train_vq.CONFIG.patch) ** 2,
)
BATCH, STEPS = 48, 7500
MUON_RATE, ADAM_RATE = 4e-3, 3e-3
CAPTION_DROP = 0.1
TOKEN_NOISE = 0.15
"""Upper end of the share of input tokens replaced by another code. In so regular a world a clean prefix is never
wrong, so without noise one unlucky sample leads where the model has never been (trial: style 85 %, object 63 %)."""
SAMPLING = {"guidance": 1.5, "temperature": 0.5, "top_k": 0, "top_p": 1.0}


def train(folder: Path, vq: VQModel, steps: int = STEPS) -> GPT:
    """Train (or continue) in `folder`; exports the averaged weights to `folder/export` at every save."""
    pool = build_pool(vq.encode, folder)
    torch.manual_seed(0)
    model = GPT(CONFIG)
    average = Average(model, 0.999)
    matrices = [p for n, p in model.named_parameters() if n.startswith("layers.") and p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, MUON_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    neighbours = nearest_codes(vq)

    @torch.compile(dynamic=True)
    def loss_of(features: Tensor, mask: Tensor, noisy: Tensor, ids: Tensor) -> Tensor:
        logits = model(model.text_pass(features, mask), noisy)
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())

    def step(i: int) -> Report:
        generator = torch.Generator().manual_seed(WORLD_SEED + i)
        index = torch.randint(len(pool.ids), (BATCH,), generator=generator)
        ids, features, mask = pool.batch(index)
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROP
        features = torch.where(dropped[:, None, None], model.unconditional(mask), features)
        loss = loss_of(features, mask, with_noise(ids, neighbours, generator), ids)
        loss.backward()
        return {"loss": loss.item(), "norm": clip(model, 1.0)}

    def exported(done: int) -> None:
        export(folder / "export", model, average.state, vq)

    run(folder, model, optimizers, step, steps, average=average, on_save=exported)
    model.load_state_dict(average.state)
    return model.eval()


def nearest_codes(vq: VQModel, count: int = 8) -> Tensor:
    """The `count` codes whose codebook rows are closest to each code's, (V, count)."""
    rows = vq.quantize.rows().detach()
    return (rows @ rows.T).topk(count + 1, -1).indices[:, 1:]


def with_noise(ids: Tensor, neighbours: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a share of the tokens, drawn per image from [0, TOKEN_NOISE]: half by a similar code, half by any."""
    share = torch.rand(len(ids), 1, generator=generator) * TOKEN_NOISE
    hit = torch.rand(ids.shape, generator=generator) < share
    similar = neighbours[ids, torch.randint(neighbours.shape[1], ids.shape, generator=generator)]
    anything = torch.randint(len(neighbours), ids.shape, generator=generator)
    other = torch.where(torch.rand(ids.shape, generator=generator) < 0.5, similar, anything)
    return torch.where(hit, other, ids)


def export(folder: Path, model: GPT, state: dict[str, Tensor], vq: VQModel) -> None:
    """Write the mini's layout: fp16 weights and `safear.json` (families/llamagen.py reads it back)."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.half().contiguous() for k, v in state.items()}
    save_file(half, folder / "gpt.safetensors")
    save_file({k: v.half().contiguous() for k, v in vq.state_dict().items()}, folder / "vq.safetensors")
    config = {
        "family": "llamagen",
        "variant": "mini",
        "gpt": asdict(model.config),
        "vq": asdict(vq.config),
        "text": "minilm",
        "sampling": SAMPLING,
    }
    (folder / "safear.json").write_text(json.dumps(config, indent=1))
