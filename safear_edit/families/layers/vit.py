"""The two image towers that OmniMamba sees with: timm's DINOv2 with registers, and its SigLIP.

Source of the semantics: https://github.com/TRI-ML/prismatic-vlms, from which OmniMamba took its image backbone
(https://github.com/hustvl/OmniMamba, models/cobra/backbones/vision/dinosiglip_vit.py): what they say is the output of
their last block but one, of the patches only, before the last norm. So the last block, the last norm and SigLIP's
pooling are never run, and aren't here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError

DINO, SIGLIP = "dino_featurizer", "siglip_featurizer"
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
        """Per image; the pixels that don't fill one are not looked at."""
        return (self.image // self.patch) ** 2


class Towers(nn.ModuleDict):
    """DINOv2 and SigLIP, frozen."""

    def __init__(self, dino: TowerSizes, siglip: TowerSizes) -> None:
        super().__init__({DINO: tower(dino), SIGLIP: tower(siglip)})
        self.sides = {DINO: dino.image, SIGLIP: siglip.image}
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) to what both towers say of each patch, (B, n, D of both)."""
        said = []
        for name, trained_on in ((DINO, IMAGENET), (SIGLIP, HALVES)):
            net: Any = self[name]
            shown = scaled(pixels(images, self.sides[name]), *trained_on).to(net.pos_embed)
            said.append(net.forward_features(shown)[:, net.num_prefix_tokens :])
        return torch.cat(said, 2)


def tower(sizes: TowerSizes) -> nn.Module:
    """timm's transformer, under its names, without what would come after the last block but one."""
    from timm.models.vision_transformer import VisionTransformer  # seconds to import: for this family alone

    return VisionTransformer(
        img_size=sizes.image,
        patch_size=sizes.patch,
        num_classes=0,
        global_pool="",
        embed_dim=sizes.width,
        depth=sizes.depth - 1,
        num_heads=sizes.heads,
        mlp_ratio=(sizes.inner + 0.5) / sizes.width,  # timm cuts the product down to a whole number
        init_values=1.0 if sizes.registers else None,
        class_token=sizes.registers > 0,
        no_embed_class=True,
        reg_tokens=sizes.registers,
        final_norm=False,
        weight_init="skip",
    )


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
