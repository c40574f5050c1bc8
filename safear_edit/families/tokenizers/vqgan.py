"""The image tokenizer that Chameleon and Liquid share: its decoder, its files, and drawing with it.

Source of the semantics: https://github.com/facebookresearch/chameleon (chameleon/inference/vqgan.py and
image_tokenizer.py). transformers' ChameleonVQVAE has its encoder and codebook; it has no decoder, so that one is built
here. The release's files are `vqgan.ckpt`, a pickle, which is read as one, and `vqgan.yaml` with its sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.unified import PICO_CODES
from safear_edit.files.weights import Place, opened, places

AT = "model.vqmodel."
"""Where the tokenizer is in a network's state dict."""
DECODER = f"{AT}decoder."
FILES = ("vqgan.safetensors", "vqgan.ckpt", "tokenizer/vqgan.ckpt")
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
"""What the release's file has beside the weights that only the tokenizer's training read."""
PICO_SIZES: Mapping[str, Any] = {
    "num_embeddings": PICO_CODES,
    "embed_dim": 8,
    "latent_channels": 8,
    "resolution": 16,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
}


def tokenizer_places(folder: Path, stack: ExitStack, what: str, why: str) -> tuple[dict[str, Place], Path]:
    """The tokenizer's weights under a network's names, to be read while `stack` is open, and their file; UsageError,
    with the reason `why` they are wanted, if the folder has none. `what` is the part that is looked for."""
    if not (found := [folder / name for name in FILES if (folder / name).is_file()]):
        fix = f"put the release's tokenizer/vqgan.ckpt into the folder: {why}"
        raise UsageError(str(folder), f"weights of the image {what}", "none", fix)
    weights = stack.enter_context(opened(found[0], allow_pickle=True))
    return places(weights, lambda name: f"{AT}{name}" if name.startswith(PARTS) else None), found[0]


# -- the image decoder ----------------------------------------------------------------------------------------------


class _Up(nn.Module):
    """Twice the width and height: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(F.interpolate(x, scale_factor=2.0))
        return found


class _Level(nn.Module):
    """Residual blocks of one resolution, an attention after each where the encoder has one, then the way up."""

    def __init__(self, config: Any, width: int, out: int, attends: bool, rises: bool) -> None:
        super().__init__()
        from transformers.models.chameleon import modeling_chameleon as parts

        widths = [width, *[out] * config.num_res_blocks]
        self.block = nn.ModuleList([parts.ChameleonVQVAEEncoderResnetBlock(config, w, out) for w in widths])
        attentions = [parts.ChameleonVQVAEEncoderAttnBlock(out) for _ in widths] if attends else []
        self.attn = nn.ModuleList(attentions)
        self.upsample = _Up(out) if rises else None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return x if self.upsample is None else self.upsample(x)


class Decoder(nn.Module):
    """The encoder's mirror image, under the names of the release's vqgan.py: (B, z, h, w) to (B, 3, H, W)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.models.chameleon import modeling_chameleon as parts

        widths = [config.base_channels * factor for factor in config.channel_multiplier]
        deepest, vanilla = widths[-1], config.attn_type == "vanilla"
        self.conv_in = nn.Conv2d(config.latent_channels, deepest, 3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1 = parts.ChameleonVQVAEEncoderResnetBlock(config, deepest, deepest)
        self.mid.attn_1 = parts.ChameleonVQVAEEncoderAttnBlock(deepest) if vanilla else nn.Identity()
        self.mid.block_2 = parts.ChameleonVQVAEEncoderResnetBlock(config, deepest, deepest)
        wanted = (config.attn_resolutions or ()) if vanilla else ()
        self.up = nn.ModuleList(
            _Level(config, width, out, config.resolution // 2**level in wanted, level > 0)
            for level, (width, out) in enumerate(zip([*widths[1:], deepest], widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        middle: Any = self.mid
        for part in (middle.block_1, middle.attn_1, middle.block_2, *reversed(self.up)):
            x = part(x)
        found: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return found
