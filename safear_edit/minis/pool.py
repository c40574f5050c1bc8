"""Tokenised, captioned gallery images: what every generator of the mini world is trained on, made once and kept.

Generators see the calm part of the world (4 of 6 poses, 2 of 3 style variants: what is drawn the same way every time is
learnt sharply by few parameters), tokenizers and judges all of it. (object, style, scene) triples in `held_out_triple`
are never shown, so that the evaluation has combinations that no training saw.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.families.text import MINILM_WIDTH, minilm
from safear_edit.gallery.captions import caption, style_only
from safear_edit.gallery.render import STYLES, Picture
from safear_edit.gallery.world import CALM_POSES, CALM_VARIANTS, WORLD_SEED, World

SIZE = 40_000
LENGTH = 32
"""Longest caption, in MiniLM tokens."""
HAZARD_SHARE = 0.2
STYLE_ONLY_SHARE = 0.05
HELD_OUT_ONE_IN = 20
COMPARED = 16
"""Images by which a kept pool is known as this tokenizer's."""


def held_out_triple(picture: Picture) -> bool:
    """One in twenty (object, style, scene) triples is kept for evaluation, chosen by a hash of the names."""
    return zlib.crc32(f"{picture.object}|{picture.style}|{picture.scene}".encode()) % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Pool:
    """Images as tokens, captions as states: ids (n, N) int64; states (n, T, C) fp16, right-padded; lengths (n,).

    `ids` is whatever the tokenizer's `encode` gave: a bitwise model keeps latents (n, d, h, w), because its training
    quantises them again with other flips each time.
    """

    ids: Tensor
    states: Tensor
    lengths: Tensor

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids, left-padded caption states trimmed to the longest of the batch (float32), and their mask."""
        lengths = self.lengths[index]
        longest = int(lengths.max())
        column = torch.arange(longest) - (longest - lengths).unsqueeze(1)
        mask = column >= 0
        states = self.states[index[:, None], column.clamp(min=0)].float()
        return self.ids[index], states * mask.unsqueeze(-1), mask


@torch.no_grad()
def build_pool(encode: Callable[[Tensor], Tensor], folder: Path, size: int = SIZE) -> Pool:
    """Draw captioned images, tokenise them with `encode` ((B, 3, S, S) -> (B, …)); kept in `folder/pool.safetensors`.

    Images and captions depend on the world's seed alone: every family's pool shows the same ones. UsageError for a kept
    pool of another size, or whose first images `encode` makes something else of.
    """
    path, world = folder / "pool.safetensors", World(CALM_POSES, CALM_VARIANTS, HAZARD_SHARE)
    rng = np.random.default_rng((WORLD_SEED, 3))
    pictures = [p for p in world.sample(rng, size * 9 // 8) if not held_out_triple(p)][:size]
    if path.exists():
        pool = Pool(**load_file(path))
        if len(pool.ids) != size or not _alike(encode(world.tensor(pictures[:COMPARED])), pool.ids[:COMPARED]):
            fix = "give another folder, or delete the file"
            raise UsageError(str(path), f"{size} images as this tokenizer has them", "others", fix)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        captions = [
            style_only(p.style, rng)
            if p.style in STYLES[1:] and not p.hazard and rng.random() < STYLE_ONLY_SHARE
            else caption(p, rng)
            for p in pictures
        ]
        states, lengths = _encode_captions(captions)
        tensors = {"ids": _encode_pictures(encode, world, pictures), "states": states, "lengths": lengths}
        save_file(tensors, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return Pool(**load_file(path))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tokenizations of the same images are the same, up to what the sizes of batches round."""
    return one.shape == other.shape and float((one.float() - other.float()).abs().le(0.05).float().mean()) > 0.9


def _encode_pictures(encode: Callable[[Tensor], Tensor], world: World, pictures: list[Picture]) -> Tensor:
    """What `encode` gives, (n, …); each distinct image is encoded once."""
    distinct = list(dict.fromkeys(pictures))
    place = {picture: i for i, picture in enumerate(distinct)}
    ids = torch.cat([encode(world.tensor(distinct[i : i + 256])) for i in range(0, len(distinct), 256)])
    return ids[torch.tensor([place[picture] for picture in pictures])].contiguous()


def _encode_captions(captions: list[str]) -> tuple[Tensor, Tensor]:
    """MiniLM states (n, LENGTH, C) fp16, right-padded, and lengths (n,); similar lengths share a batch."""
    states = torch.zeros(len(captions), LENGTH, MINILM_WIDTH, dtype=torch.float16)
    lengths = torch.zeros(len(captions), dtype=torch.int64)
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    for start in range(0, len(order), 128):
        rows = order[start : start + 128]
        batch, mask = minilm().states([captions[i] for i in rows])
        states[rows, : batch.shape[1]] = batch.half()
        lengths[rows] = mask.sum(1)
    return states, lengths
