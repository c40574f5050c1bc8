"""The two picture towers that OmniMamba sees with: DINOv2 with registers, and SigLIP, under the names of timm.

Source of the semantics: https://github.com/TRI-ML/prismatic-vlms, from which OmniMamba took its picture backbone
(https://github.com/hustvl/OmniMamba, models/cobra/backbones/vision/dinosiglip_vit.py): both towers are timm's, and what
they say is the output of their last block but one, of the patches only, before the last norm. So the last block, the
last norm and SigLIP's pooling are never run, and aren't here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError

EPS = 1e-6
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and deviation of the pixels that a tower was trained on."""


@dataclass(frozen=True)
class TowerSizes:
    """Sizes of a tower. registers: tokens beside a class token; 0 is a tower that has neither, nor layer scales."""

    width: int
    depth: int
    heads: int
    inner: int
    registers: int = 0
    patch: int = 14
    image: int = 384

    def __post_init__(self) -> None:
        if min(self.width, self.depth - 1, self.heads, self.inner, self.patch) < 1 or self.width % self.heads:
            expected = "positive sizes, two blocks or more, whole heads"
            raise UsageError("a tower's sizes", expected, str(self), "take the configuration of a trained model")

    @property
    def patches(self) -> int:
        """Per picture; the pixels that don't fill one are not looked at."""
        return (self.image // self.patch) ** 2


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Feedforward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BND)))


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND * self.gamma


class Block(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width, EPS), nn.LayerNorm(sizes.width, EPS)
        self.attn = Attention(sizes.width, sizes.heads)
        self.mlp = Feedforward(sizes.width, sizes.inner)
        self.ls1, self.ls2 = (Scale(sizes.width) if sizes.registers else nn.Identity() for _ in range(2))

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.ls1(self.attn(self.norm1(x_BND)))
        return x_BND + self.ls2(self.mlp(self.norm2(x_BND)))


class Patches(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch)


class Tower(nn.Module):
    """Pixels (B, 3, S, S), scaled, to what the last block but one says of their patches, (B, n, D)."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.patch_embed = Patches(sizes)
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.patches, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth - 1))
        self.beside = 0
        if sizes.registers:
            self.beside = 1 + sizes.registers
            self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
            self.reg_token = nn.Parameter(torch.zeros(1, sizes.registers, sizes.width))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels_BCHW).flatten(2).transpose(1, 2) + self.pos_embed
        if self.beside:
            x = torch.cat([t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token)] + [x], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, self.beside :]


def pixels(images: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, H, W) resized to side x side, in [0, 1], float32: bicubic, with the window widened where it shrinks.

    Width, then height, each rounded to whole levels, as PIL's resize does it, which the published program uses.
    """
    sized = images.float()
    for shape in ((images.shape[-2], side), (side, side)):
        if sized.shape[-2:] != shape:
            sized = (F.interpolate(sized, shape, mode="bicubic", antialias=True) + 0.5).floor().clamp(0, 255)
    return sized / 255


def scaled(pixels_BCHW: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """Pixels with the mean and the deviation of what a tower was trained on taken out."""
    middle, spread = (pixels_BCHW.new_tensor(x).view(3, 1, 1) for x in (mean, deviation))
    return (pixels_BCHW - middle) / spread
