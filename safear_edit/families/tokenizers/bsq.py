"""The multi-scale BSQ image tokenizer of Infinity: a convolutional latent as a sum of ±1/√d codes, one map per scale.

Parameter names are the published state-dict keys (infinity/models/bsq_vae of
https://github.com/FoundationVision/Infinity/tree/4c27bbb). What the transformer reads and writes follows from bits by
arithmetic alone and needs no weights (`CodeSum`, `teacher_inputs`); published sizes are the defaults of `BSQConfig`,
the minis use the same classes with fewer channels.

Letters in tensor names: d bits of a tokenizer cell, D bits of a token (d, or 4 d where a token covers 2 x 2 cells).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from typing import Literal

import numpy as np
import torch
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.tokenizers.schedules import Grid, Schedule

IGNORED = ("quantizer.lfq.mask", "quantize.lfq.mask")
"""Powers of two in published files, for integer codes that nothing here needs."""
FIX = "take the configuration of a trained model"


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class BSQConfig:
    """Sizes of a tokenizer; the defaults are the published d32 (110.1 M parameters, 16 x 16 pixels per cell)."""

    bits: int = 32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    patch: int = 16
    commit_loss_beta: float = 0.25

    def __post_init__(self) -> None:
        positive = bool(self.ch_mult) and min(self.bits, self.ch, self.num_res_blocks, self.patch, *self.ch_mult) > 0
        halved = positive and self.patch == 2**self.halvings and self.halvings < len(self.ch_mult)
        if not halved or any(self.ch * m % _groups(self.ch * m) for m in self.ch_mult):
            expected = (
                "positive sizes, channels in multiples of 32 or 24, a patch of 2^n pixels with n + 1 levels or more"
            )
            raise UsageError("the tokenizer's sizes", expected, str(self), FIX)

    @property
    def halvings(self) -> int:
        """How often the encoder halves the image."""
        return round(log2(self.patch))

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], where: str) -> BSQConfig:
        """The sizes that a state dict was made with (names as `published_names` leaves them)."""
        levels = {int(m[1]) for name in weights if (m := re.match(r"encoder\.down\.(\d+)\.", name))}
        blocks = {m[1] for name in weights if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name))}
        try:
            ch = len(weights["encoder.conv_in.conv.weight"])
            wide = [len(weights[f"encoder.down.{i}.block.0.conv1.conv.weight"]) for i in range(len(levels))]
            bits = weights["decoder.conv_in.conv.weight"].shape[1]
        except KeyError as error:
            raise UsageError(where, f"a BSQ tokenizer with {error.args[0]}", "none", FIX) from None
        halvings = sum(name.endswith(".downsample.conv.conv.weight") for name in weights)
        return cls(bits, ch, tuple(width // ch for width in wide), len(blocks), 2**halvings)


def published_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the wrapped names (`conv1.conv.weight`) where a file has the plain ones (`conv1.weight`)."""
    rules = (
        (r"(conv_in|conv_out|conv1|conv2|nin_shortcut)\.(weight|bias)$", r"\1.conv.\2"),
        (r"(norm1|norm2|norm_out)\.(weight|bias)$", r"\1.norm.\2"),
        (r"((?:down|up)sample)\.conv\.(weight|bias)$", r"\1.conv.conv.\2"),
    )
    renamed = {}
    for name, tensor in weights.items():
        for pattern, wrapped in rules:
            name = re.sub(pattern, wrapped, name)
        renamed[name] = tensor
    return renamed


# -- encoder and decoder ----------------------------------------------------------------------------------------------


def _groups(channels: int) -> int:
    return 24 if channels % 32 else 32


class _Conv(nn.Module):
    def __init__(self, width_in: int, width_out: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _NormSwish(nn.Module):
    """GroupNorm and, since upstream always has it next, swish."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(channels), channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))


class ResBlock(nn.Module):
    """norm, swish, conv, twice, plus the input (through a 1x1 convolution where the width changes)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1 = _NormSwish(width_in)
        self.conv1 = _Conv(width_in, width_out)
        self.norm2 = _NormSwish(width_out)
        self.conv2 = _Conv(width_out, width_out)
        if width_in != width_out:
            self.nin_shortcut = _Conv(width_in, width_out, 1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _Resample(nn.Module):
    """Half or double the resolution; upstream names the convolution `conv`."""

    def __init__(self, width: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = _Conv(width, width, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Level(nn.Module):
    """Residual blocks of one resolution, then the change of resolution if there is one."""

    def __init__(self, widths: list[int], downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))
        if downsample:
            self.downsample = _Resample(widths[-1], up=False)
        if upsample:
            self.upsample = _Resample(widths[-1], up=True)

    def forward(self, h: Tensor) -> Tensor:
        for block in self.block:
            h = block(h)
        if hasattr(self, "downsample"):
            h = self.downsample(h)
        return self.upsample(h) if hasattr(self, "upsample") else h


class _Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(width, width)
        self.block_2 = ResBlock(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.block_1(h))


class Encoder(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] to features (B, d, H/patch, W/patch)."""

    def __init__(self, config: BSQConfig) -> None:
        super().__init__()
        self.conv_in = _Conv(3, config.ch)
        levels, width = [], config.ch
        for i, m in enumerate(config.ch_mult):
            widths = [width] + [config.ch * m] * config.num_res_blocks
            levels.append(_Level(widths, downsample=i < config.halvings))
            width = widths[-1]
        self.down = nn.ModuleList(levels)
        self.mid = _Middle(width)
        self.norm_out = _NormSwish(width)
        self.conv_out = _Conv(width, config.bits)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        h = self.conv_in(image_BCHW)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.norm_out(self.mid(h)))


class Decoder(nn.Module):
    """Latent (B, d, h, w) to image (B, 3, H, W), about [-1, 1], not clamped. `up.0` is the finest level, run last."""

    def __init__(self, config: BSQConfig) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[-1]
        self.conv_in = _Conv(config.bits, width)
        self.mid = _Middle(width)
        levels = []
        for i, m in reversed(list(enumerate(config.ch_mult))):
            widths = [width] + [config.ch * m] * (config.num_res_blocks + 1)
            levels.append(_Level(widths, upsample=1 <= i <= config.halvings))
            width = widths[-1]
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = _NormSwish(width)
        self.conv_out = _Conv(width, 3)

    def forward(self, z_Bdhw: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z_Bdhw))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(self.norm_out(h))


# -- bits, codes and what the transformer reads -----------------------------------------------------------------------


def to_tokens(map_BdHW: Tensor, schedule: Schedule) -> Tensor:
    """Cells of one scale as tokens (B, n, D), row-major; 2 x 2 cells make one token under patchify."""
    if schedule.patchify:
        map_BdHW = F.pixel_unshuffle(map_BdHW, 2)
    return map_BdHW.flatten(2).transpose(1, 2)


def to_map(tokens_BnD: Tensor, schedule: Schedule, scale: int) -> Tensor:
    """Tokens of scale number `scale` as the tokenizer's cells (B, d, H, W)."""
    cells = tokens_BnD.transpose(1, 2).unflatten(2, schedule.grids[scale])
    return F.pixel_shuffle(cells, 2) if schedule.patchify else cells


def resized(map_BdHW: Tensor, size: Grid, mode: Literal["trilinear", "area"]) -> Tensor:
    """Interpolate to `size`, as a volume one deep, which is how upstream does it.

    Contiguous first: torch rounds otherwise for a map that is laid out as tokens, and bits hang on the sum.
    """
    if map_BdHW.shape[2:] == size:
        return map_BdHW
    return F.interpolate(map_BdHW.contiguous().unsqueeze(2), (1, *size), mode=mode).squeeze(2)


class CodeSum:
    """The running sum of the codes so far at the final size: the image's latent once all scales are in."""

    def __init__(self, schedule: Schedule, images: int, bits: int, device: torch.device | str = "cpu") -> None:
        self.schedule, self.bits = schedule, bits
        self.total = torch.zeros(images, bits, *schedule.cells[-1], device=device)

    def add(self, scale: int, bits_BdHW: Tensor) -> None:
        """Add the code of a scale from its cells' bits (0 or 1): (2 bit - 1) / sqrt(d), enlarged to the final size."""
        code = (2 * bits_BdHW.float() - 1) * self.bits**-0.5
        self.total = self.total + resized(code, self.schedule.cells[-1], "trilinear")

    def add_tokens(self, scale: int, bits_BnD: Tensor) -> None:
        """`add` for tokens."""
        self.add(scale, to_map(bits_BnD.float(), self.schedule, scale))

    def inputs(self, scale: int) -> Tensor:
        """What the transformer reads at `scale` (from 1): the sum so far at that scale's size, (B, n, D).

        Trilinear, not by area as the encoder's residuals: that is what the published transformers were trained on.
        """
        return to_tokens(resized(self.total, self.schedule.cells[scale], "trilinear"), self.schedule)


def cell_bits(token_bits: int, schedule: Schedule) -> int:
    """d from D."""
    return token_bits // 4 if schedule.patchify else token_bits


def summed_codes(bits_BND: Tensor, schedule: Schedule, first_scales: int | None = None) -> Tensor:
    """The latent (B, d, H, W) of whole images' bits, or of what their first scales alone say."""
    codes = CodeSum(schedule, len(bits_BND), cell_bits(bits_BND.shape[-1], schedule), bits_BND.device)
    for scale, (start, end) in enumerate(schedule.spans[:first_scales]):
        codes.add_tokens(scale, bits_BND[:, start:end])
    return codes.total


def teacher_inputs(bits_BND: Tensor, schedule: Schedule, first_scales: int | None = None) -> Tensor:
    """What the transformer reads at scales 1, 2, … of images with these bits, (B, tokens - 1, D).

    `first_scales` stops after that many scales; bits of the last of them and beyond aren't looked at.
    """
    codes = CodeSum(schedule, len(bits_BND), cell_bits(bits_BND.shape[-1], schedule), bits_BND.device)
    parts = [codes.total.new_empty(len(bits_BND), 0, bits_BND.shape[-1])]
    for scale, (start, end) in enumerate(schedule.spans[: (first_scales or len(schedule.grids)) - 1]):
        codes.add_tokens(scale, bits_BND[:, start:end])
        parts.append(codes.inputs(scale + 1))
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class SelfCorrection:
    """Random flips while training, so that the transformer learns to correct its own errors (Infinity's bitwise
    self-correction, https://arxiv.org/abs/2412.04431).

    At each of the first `scales` scales one share of up to `strength` (in steps of 0.01) is drawn from `shares` for the
    whole batch, then every bit of it is flipped with that chance by numbers from `generator` (None: torch's own).
    The published trainings use strength 0.3. Equal generators give equal flips.
    """

    strength: float
    shares: np.random.RandomState
    generator: torch.Generator | None = None
    scales: int = 13

    def flips(self, scale: int, bits_BdHW: Tensor) -> Tensor:
        """Which bits of a scale to flip, bool (B, d, H, W)."""
        if scale >= self.scales:
            return torch.zeros_like(bits_BdHW, dtype=torch.bool)
        share = self.shares.randint(0, int(100 * self.strength + 1)) * 0.01
        images, bits, height, width = bits_BdHW.shape
        draws = torch.rand(images, height, width, bits, generator=self.generator)
        return (draws < share).permute(0, 3, 1, 2).to(bits_BdHW.device)


@dataclass(frozen=True)
class Quantised:
    """bits (B, N, D) int64 are the labels; inputs (B, N - 1, D) what the transformer reads; latent (B, d, H, W)."""

    bits: Tensor
    inputs: Tensor
    latent: Tensor


def quantise(features_BdHW: Tensor, schedule: Schedule, correction: SelfCorrection | None = None) -> Quantised:
    """Bits of the residual that the scales before have left, coarse to fine (0 counts as a 0-bit).

    With `correction` the inputs and the latent carry flipped bits, while the labels are the right ones for the
    residual that the flips have left.
    """
    if features_BdHW.shape[2:] != schedule.cells[-1]:
        got = f"a grid of {tuple(features_BdHW.shape[2:])}"
        raise UsageError("image", f"the schedule's finest grid {schedule.cells[-1]}", got, "resize the image")
    codes = CodeSum(schedule, len(features_BdHW), features_BdHW.shape[1], features_BdHW.device)
    labels, inputs = [], []
    for scale, size in enumerate(schedule.cells):
        residual = resized(features_BdHW.float() - codes.total, size, "area")
        bits = residual > 0
        labels.append(to_tokens(bits.float(), schedule).long())
        if scale:
            inputs.append(codes.inputs(scale))
        codes.add(scale, bits ^ correction.flips(scale, bits) if correction else bits)
    none = codes.total.new_empty(len(features_BdHW), 0, labels[0].shape[-1])
    return Quantised(torch.cat(labels, 1), torch.cat([none, *inputs], 1), codes.total)


class BSQ(nn.Module):
    """Encoder and decoder under the published key names; the schedule of scales comes with each call."""

    def __init__(self, config: BSQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, image_BCHW: Tensor, schedule: Schedule, correction: SelfCorrection | None = None) -> Quantised:
        """Image in [-1, 1] to bits and the transformer's inputs."""
        return quantise(self.encoder(image_BCHW), schedule, correction)

    def decode(self, bits_BND: Tensor, schedule: Schedule, first_scales: int | None = None) -> Tensor:
        """Bits, of all scales or of the first few, to image (B, 3, H, W), clamped to [-1, 1]."""
        latent = summed_codes(bits_BND, schedule, first_scales).to(self.decoder.conv_in.conv.weight.dtype)
        return self.decoder(latent).clamp(-1, 1)

    def forward(self, image_BCHW: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass: reconstruction (not clamped), commitment loss, bits (straight-through gradient)."""
        features = self.encoder(image_BCHW)
        found = quantise(features.detach(), schedule)
        commitment = self.config.commit_loss_beta * F.mse_loss(features, found.latent)
        return self.decoder(features + (found.latent - features).detach()), commitment, found.bits


def to_uint8(image_BCHW: Tensor) -> Tensor:
    """[-1, 1] floats to uint8, truncated, as upstream writes its images."""
    return ((image_BCHW.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
