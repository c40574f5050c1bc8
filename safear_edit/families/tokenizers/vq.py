"""The VQ-16 image tokenizer that LlamaGen and Janus share: convolutional encoder, l2-normalised codebook, decoder.

Module names are the published state-dict keys, so upstream checkpoints load with no renaming
(tokenizer/tokenizer_image/vq_model.py of https://github.com/FoundationVision/LlamaGen/tree/ce98ec4). Published sizes
are the defaults of `VQConfig`; the minis use the same classes with fewer channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError

GROUPS = 32
"""Channel groups of every GroupNorm; all channel counts must be multiples of it."""


@dataclass(frozen=True)
class VQConfig:
    """Sizes of a VQ tokenizer; the defaults are the published VQ-16 (71.9 M parameters, 16x16 pixel patches)."""

    codebook_size: int = 16384
    codebook_embed_dim: int = 8
    ch: int = 128
    encoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    num_res_blocks: int = 2
    commit_loss_beta: float = 0.25

    def __post_init__(self) -> None:
        mult = (*self.encoder_ch_mult, *self.decoder_ch_mult)
        sizes = (self.codebook_size, self.codebook_embed_dim, self.ch, self.z_channels, self.num_res_blocks, *mult)
        if min(sizes) < 1 or self.ch % GROUPS or len(self.encoder_ch_mult) != len(self.decoder_ch_mult):
            expected = f"positive sizes, channels in multiples of {GROUPS}, as many decoder as encoder levels"
            raise UsageError("the tokenizer's sizes", expected, str(self), "take the configuration of a trained model")

    @property
    def patch(self) -> int:
        """Pixels per token edge."""
        return int(2 ** (len(self.encoder_ch_mult) - 1))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResBlock(nn.Module):
    """norm, swish, conv, twice, plus the input (through a 1x1 convolution where the width changes)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = _norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BChw)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut = self.nin_shortcut(x_BChw) if hasattr(self, "nin_shortcut") else x_BChw
        return shortcut + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all h*w positions, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h = self.norm(x_BChw)
        q, k, v = (m(h).flatten(2).transpose(1, 2).unsqueeze(1) for m in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape_as(x_BChw)
        return x_BChw + self.proj_out(out)


class _Resample(nn.Module):
    """Half or double the resolution; upstream names the convolution `conv`."""

    def __init__(self, width: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x_BChw: Tensor) -> Tensor:
        if self.up:
            return self.conv(F.interpolate(x_BChw, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x_BChw, (0, 1, 0, 1)))


class _Level(nn.Module):
    """Residual blocks of one resolution, attention beside each where asked, then the change of resolution."""

    def __init__(self, widths: list[int], attend: bool, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(b) for b in widths[1:] if attend)
        if downsample:
            self.downsample = _Resample(widths[-1], up=False)
        if upsample:
            self.upsample = _Resample(widths[-1], up=True)

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            h = block(h)
            if len(self.attn):
                h = self.attn[i](h)
        if hasattr(self, "downsample"):
            h = self.downsample(h)
        return self.upsample(h) if hasattr(self, "upsample") else h


def _middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(width, width), AttnBlock(width), ResBlock(width, width)])


class Encoder(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] to (B, z_channels, H/patch, W/patch)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        mult, last = config.encoder_ch_mult, len(config.encoder_ch_mult) - 1
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        width = config.ch
        levels = []
        for i, m in enumerate(mult):
            widths = [width] + [config.ch * m] * config.num_res_blocks
            levels.append(_Level(widths, attend=i == last, downsample=i != last))
            width = widths[-1]
        self.conv_blocks = nn.ModuleList(levels)
        self.mid = _middle(width)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        h = self.conv_in(image_BCHW)
        for block in (*self.conv_blocks, *self.mid):
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent (B, z_channels, h, w) to image (B, 3, H, W), about [-1, 1], not clamped."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        mult = tuple(reversed(config.decoder_ch_mult))
        width = config.ch * mult[0]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = _middle(width)
        levels = []
        for i, m in enumerate(mult):
            widths = [width] + [config.ch * m] * (config.num_res_blocks + 1)
            levels.append(_Level(widths, attend=i == 0, upsample=i != len(mult) - 1))
            width = widths[-1]
        self.conv_blocks = nn.ModuleList(levels)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z_BChw: Tensor) -> Tensor:
        h = self.conv_in(z_BChw)
        for block in (*self.mid, *self.conv_blocks):
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Quantizer(nn.Module):
    """Nearest codebook row by cosine (rows and vectors are l2-normalised before the comparison)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_embed_dim)
        nn.init.uniform_(self.embedding.weight, -1, 1)

    def rows(self) -> Tensor:
        """The codebook as it is compared and decoded: unit rows (V, d)."""
        return F.normalize(self.embedding.weight, dim=-1)

    def indices(self, z_Bdhw: Tensor) -> Tensor:
        """Token ids (B, h*w), row-major."""
        flat = F.normalize(z_Bdhw.permute(0, 2, 3, 1), dim=-1).flatten(1, 2)
        return (flat @ self.rows().T).argmax(-1)


class VQModel(nn.Module):
    """Encoder, quantiser and decoder under the published key names."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_embed_dim, config.z_channels, 1)

    def latent(self, image_BCHW: Tensor) -> Tensor:
        """Continuous latent before quantisation, (B, d, h, w)."""
        return self.quant_conv(self.encoder(image_BCHW))

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Image in [-1, 1] to token ids (B, h*w)."""
        return self.quantize.indices(self.latent(image_BCHW))

    def embed(self, ids_BN: Tensor, height: int) -> Tensor:
        """Unit codebook rows of the ids as a map (B, d, h, w)."""
        rows = self.quantize.rows()[ids_BN]
        return rows.view(ids_BN.shape[0], height, -1, rows.shape[-1]).permute(0, 3, 1, 2)

    def decode(self, ids_BN: Tensor, height: int | None = None) -> Tensor:
        """Token ids (B, N) to images (B, 3, H, W), unclamped; a square grid unless `height` is given."""
        height = height or round(ids_BN.shape[1] ** 0.5)
        return self.decoder(self.post_quant_conv(self.embed(ids_BN, height)))

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass: reconstruction, codebook loss plus commitment loss, ids (straight-through gradient)."""
        z = F.normalize(self.latent(image_BCHW), dim=1)
        ids = self.quantize.indices(z)
        e = self.embed(ids, z.shape[2])
        vq_loss = F.mse_loss(e, z.detach())
        commit_loss = self.config.commit_loss_beta * F.mse_loss(z, e.detach())
        image = self.decoder(self.post_quant_conv(z + (e - z).detach()))
        return image, vq_loss + commit_loss, ids


def to_uint8(image_BCHW: Tensor) -> Tensor:
    """[-1, 1] floats to uint8 as torchvision's save_image with value_range (-1, 1) does (truncated)."""
    return torch.clamp(127.5 * image_BCHW + 128, 0, 255).to(torch.uint8)
