"""Images that no honest judge should read: blurred, mixed, scrambled, noisy, halved, blank or smeared.

They teach the gallery judge to say "cannot tell" and measure whether it does. All functions take and give batches
(B, 3, H, W) float32 in [-1, 1] and draw from the generator they are handed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

Degradation = Callable[[Tensor, Tensor, np.random.Generator], Tensor]
"""(image (3, H, W), another image that shows another object, rng) → degraded image (3, H, W)."""

CLEAR_BLUR, UNREADABLE_BLUR = 0.6, 1.6
"""Gaussian sigma in pixels up to which an image counts as good, and from which it counts as degraded."""


def soften(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of one image (3, H, W)."""
    return torch.from_numpy(ndimage.gaussian_filter(image.numpy(), (0, sigma, sigma), mode="nearest"))


def blurred(image: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """Gaussian blur beyond reading."""
    return soften(image, rng.uniform(UNREADABLE_BLUR, 3.5))


def mixed(image: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """Two images laid over each other, neither dominant."""
    return torch.lerp(image, other, float(rng.uniform(0.35, 0.65)))


def scrambled(image: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """Square patches of 4, 5, 8 or 10 pixels in random order."""
    edge = int(rng.choice((4, 5, 8, 10)))
    patches = F.unfold(image[None], edge, stride=edge)
    order = torch.from_numpy(rng.permutation(patches.shape[-1]))
    return F.fold(patches[..., order], image.shape[-2:], edge, stride=edge)[0]


def noisy(image: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise stronger than the image, or nothing but (coarse or fine) noise."""
    noise = rng.standard_normal(tuple(image.shape))
    if rng.random() < 0.5:
        noise = ndimage.gaussian_filter(noise, (0, *[rng.uniform(0.1, 2.0)] * 2))
        return torch.from_numpy(noise / noise.std() * rng.uniform(0.2, 0.7) + rng.uniform(-0.5, 0.5, (3, 1, 1))).float()
    return image + torch.from_numpy(noise * rng.uniform(0.8, 1.4)).float()


def halved(image: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """One half of each of two images, side by side or one above the other."""
    size = image.shape[-1]
    cut = int(rng.integers(round(0.4 * size), round(0.6 * size) + 1))
    out = image.clone()
    if rng.random() < 0.5:
        out[..., cut:] = other[..., cut:]
    else:
        out[:, cut:] = other[:, cut:]
    return out


def blank(image: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """One colour, or a smooth ramp between two."""
    first, second = (torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1))).float() for _ in range(2))
    if rng.random() < 0.5:
        return first.expand_as(image).clone()
    ramp = torch.linspace(0, 1, image.shape[-1])
    ramp = ramp[None, :, None] if rng.random() < 0.5 else ramp[None, None, :]
    return first.lerp(second, ramp).expand_as(image).clone()


def smeared(image: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """A long one-directional smear with little contrast left."""
    length = rng.uniform(3.0, 8.0)
    sigma = (0, length, length / 4) if rng.random() < 0.5 else (0, length / 4, length)
    streaks = torch.from_numpy(ndimage.gaussian_filter(image.numpy(), sigma, mode="nearest"))
    centre = streaks.mean((1, 2), keepdim=True)
    return centre + (streaks - centre) * float(rng.uniform(0.3, 0.9))


DEGRADATIONS: dict[str, Degradation] = {
    "blurred": blurred,
    "mixed": mixed,
    "scrambled": scrambled,
    "noisy": noisy,
    "halved": halved,
    "blank": blank,
    "smeared": smeared,
}


def degrade(images: Tensor, others: Tensor, kinds: list[str], rng: np.random.Generator) -> Tensor:
    """Degrade row i of `images` (B, 3, H, W) in the way kinds[i]; others[i] must show another object."""
    rows = [DEGRADATIONS[kind](image, other, rng) for image, other, kind in zip(images, others, kinds, strict=True)]
    return torch.stack(rows).clamp(-1, 1)
