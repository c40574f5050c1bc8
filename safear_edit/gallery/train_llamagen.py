"""Train llamagen:mini's transformer from nothing on captioned gallery pictures (tokens from the gallery VQ).

Matrices of the layers are trained with Muon, everything else with AdamW; an exponential moving average is exported.
Ten per cent of the captions are dropped (guidance); (object, style, scene) triples in `held_out_triple` are never
shown, so that the evaluation meets combinations that no training saw.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from safear_edit.families.llamagen import GPT, GPTConfig
from safear_edit.families.vq import VQModel
from safear_edit.gallery import train_vq
from safear_edit.gallery.captions import caption, style_only
from safear_edit.gallery.loop import Average, Report, clip, run
from safear_edit.gallery.muon import Muon
from safear_edit.gallery.render import SIDE, STYLES, Picture
from safear_edit.gallery.world import WORLD_SEED, World
from safear_edit.text import MINILM_WIDTH, minilm

CONFIG = GPTConfig(
    dim=192,
    n_layer=6,
    n_head=6,
    vocab_size=train_vq.CONFIG.codebook_size,
    caption_dim=MINILM_WIDTH,
    cls_token_num=32,
    block_size=(SIDE // train_vq.CONFIG.patch) ** 2,
)
BATCH, STEPS, POOL = 48, 3500, 30_000
MUON_RATE, ADAM_RATE = 4e-3, 3e-3
CAPTION_DROP = 0.1
TOKEN_NOISE = 0.15
"""Upper end of the share of input tokens replaced by another code. In so regular a world a clean prefix is never
wrong, so without noise one unlucky sample leads where the model has never been (trial: style 85 %, object 63 %)."""
STYLE_ONLY_SHARE = 0.05
SAMPLING = {"guidance": 1.5, "temperature": 0.3, "top_k": 0, "top_p": 1.0}


def held_out_triple(picture: Picture) -> bool:
    """One in ten (object, style, scene) triples is kept for evaluation, chosen by a hash of the names."""
    return zlib.crc32(f"{picture.object}|{picture.style}|{picture.scene}".encode()) % 10 == 0


@dataclass(frozen=True)
class Pool:
    """Tokenised pictures, encoded captions: ids (n, N) int64; states (n, T, C) fp16, right-padded; lengths (n,)."""

    ids: Tensor
    states: Tensor
    lengths: Tensor

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids, left-padded caption features trimmed to the longest, and their mask."""
        lengths = self.lengths[index]
        longest = int(lengths.max())
        column = torch.arange(longest) - (longest - lengths).unsqueeze(1)
        mask = column >= 0
        states = self.states[index[:, None], column.clamp(min=0)].float()
        return self.ids[index], states * mask.unsqueeze(-1), mask


@torch.no_grad()
def build_pool(vq: VQModel, folder: Path, size: int = POOL) -> Pool:
    """Draw captioned pictures, tokenise and encode them once; kept in `folder/pool.safetensors`."""
    path = folder / "pool.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        world, rng = World(), np.random.default_rng((WORLD_SEED, 3))
        pictures = [p for p in world.sample(rng, size * 9 // 8) if not held_out_triple(p)][:size]
        ids = torch.cat([vq.encode(world.tensor(pictures[i : i + 256])) for i in range(0, len(pictures), 256)])
        captions = [
            style_only(p.style, rng)
            if p.style in STYLES[1:] and not p.hazard and rng.random() < STYLE_ONLY_SHARE
            else caption(p, rng)
            for p in pictures
        ]
        states = torch.zeros(len(pictures), CONFIG.cls_token_num, MINILM_WIDTH, dtype=torch.float16)
        lengths = torch.zeros(len(pictures), dtype=torch.int64)
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
        for start in range(0, len(order), 128):
            rows = order[start : start + 128]
            batch, mask = minilm().states([captions[i] for i in rows])
            states[rows, : batch.shape[1]] = batch.half()
            lengths[rows] = mask.sum(1)
        save_file({"ids": ids, "states": states, "lengths": lengths}, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return Pool(**load_file(path))


def train(folder: Path, vq: VQModel, steps: int = STEPS) -> GPT:
    """Train (or continue) in `folder`; exports the averaged weights to `folder/export` at every save."""
    pool = build_pool(vq, folder)
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
    """Replace a share of the tokens, drawn per picture from [0, TOKEN_NOISE]: half by a similar code, half by any."""
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
