"""Sampling images of the mini world and keeping their pixels: what every gallery training draws its batches from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safear_edit.gallery.render import CORNERS, NOTHING, OBJECTS, POSES, SCENES, STYLES, VARIANTS, Picture, draw

WORLD_SEED = 20261121
"""Root of every training draw; judges use another one (`judges` must not share the models' images)."""
HAZARD_SHARE = 0.12
NOTHING_SHARE = 0.06
CALM_POSES, CALM_VARIANTS = 4, 2
"""The part of the world that the generators see; tokenizers and judges see all of it."""


class World:
    """Draws `Picture`s and caches their pixels (the whole world is some 28 000 small images).

    poses, variants: how many of each are drawn from; fewer make a calmer world, which a small generator learns
    more sharply. hazard_share: how often the sticker is there.
    """

    def __init__(self, poses: int = POSES, variants: int = VARIANTS, hazard_share: float = HAZARD_SHARE) -> None:
        self.poses, self.variants, self.hazard_share = poses, variants, hazard_share
        self._pixels: dict[Picture, NDArray[np.uint8]] = {}

    def sample(self, rng: np.random.Generator, count: int) -> list[Picture]:
        """`count` images, uniform over objects, styles and scenes; some of the scene alone, some with the sticker."""
        return [
            nuisance(
                Picture(
                    object=NOTHING if rng.random() < NOTHING_SHARE else OBJECTS[rng.integers(len(OBJECTS))],
                    style=STYLES[rng.integers(len(STYLES))],
                    scene=SCENES[rng.integers(len(SCENES))],
                    hazard=bool(rng.random() < self.hazard_share),
                ),
                rng,
                self.poses,
                self.variants,
            )
            for _ in range(count)
        ]

    def pixels(self, picture: Picture) -> NDArray[np.uint8]:
        """(SIDE, SIDE, 3) uint8, rendered once."""
        if picture not in self._pixels:
            self._pixels[picture] = draw(picture)
        return self._pixels[picture]

    def tensor(self, pictures: Sequence[Picture]) -> Tensor:
        """Batch (B, 3, SIDE, SIDE) float32 in [-1, 1]."""
        stack = torch.from_numpy(np.stack([self.pixels(p) for p in pictures]))
        return stack.permute(0, 3, 1, 2).float() / 127.5 - 1


def nuisance(picture: Picture, rng: np.random.Generator, poses: int = POSES, variants: int = VARIANTS) -> Picture:
    """The same image with a random pose, style variant and sticker corner: what no caption names."""
    return replace(
        picture,
        pose=int(rng.integers(poses)),
        variant=int(rng.integers(variants)),
        corner=int(rng.integers(CORNERS)) if picture.hazard else 0,
    )
