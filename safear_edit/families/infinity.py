"""Infinity: a transformer that draws an image scale by scale, bit by bit.

Source of the semantics: https://github.com/FoundationVision/Infinity/tree/4c27bbb
(infinity/models/{infinity,basic}.py). Parameter names are the published state-dict keys. Tokens of one scale are drawn
together and see each other and all coarser scales; every block reads the caption through cross attention, whose keys
and values are computed once per distinct caption (`TextPass`) and shared by its images, by all scales, and by their
unguided twins.

Letters in tensor names: B images, U captions, T caption tokens, L tokens of the scales at hand, N of all scales,
D bits of a token, C width, H heads, d channels of a head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import zip_longest
from math import log, pi, prod
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.base import OWN, Condition, ModelCard, Sampling, select_modules
from safear_edit.families.captioned import CaptionedFamily
from safear_edit.families.folder import all_files, layers_in, read_settings
from safear_edit.families.layers.half import attention
from safear_edit.families.reference import ModelRef, Variant
from safear_edit.families.sampling import COLDEST, Drawer, guided, uniforms
from safear_edit.families.text import MINILM_WIDTH, TextEncoder, text_encoder
from safear_edit.families.tokenizers.bsq import (
    BSQ,
    IGNORED,
    BSQConfig,
    CodeSum,
    cell_bits,
    published_names,
    teacher_inputs,
    to_uint8,
)
from safear_edit.families.tokenizers.schedules import Schedule
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.weights import assign_strict, filled, opened, read_weights, write_pickle, write_weights
from safear_edit.registry import family

EPS = 1e-6
LARGEST_SCALE = log(100)
"""Bound of the learned log temperature of self-attention."""
SHORTEST = 1e-12
"""What a query or key of length 0 is divided by."""
ROPE_BASE = 10000.0

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values (B, H, L, d) → what the queries see (B, H, L, d): over which tokens is the caller's matter."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class InfinityConfig:
    """Sizes of an Infinity transformer; the defaults are the published 2B. `bits` are those of a token."""

    depth: int = 32
    width: int = 2048
    heads: int = 16
    chunks: int = 8
    ffn_hidden: int = 8192
    bits: int = 32
    caption_dim: int = 2048
    pool_heads: int = 16
    text_maxlen: int = 512
    levels: int = 15

    def __post_init__(self) -> None:
        fits = min(asdict(self).values()) > 0
        if not fits or self.width % (4 * self.heads) or self.width % self.pool_heads or self.depth % self.chunks:
            expected = "positive sizes, heads of a multiple of 4 channels, whole pooling heads, chunks of equal depth"
            raise UsageError("Infinity's sizes", expected, str(self), "take the configuration of a trained model")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], where: str) -> InfinityConfig:
        """The sizes that a state dict was made with; UsageError if it isn't an Infinity transformer's."""
        blocks = [name.removesuffix("ada_gss") for name in weights if name.endswith(".ada_gss")]
        chunks = {name.split(".")[1] for name in blocks if name.startswith("block_chunks.")}
        try:
            first = blocks[0] if blocks else "blocks.0."
            text_maxlen, caption_dim = weights["cfg_uncond"].shape
            return cls(
                depth=len(blocks),
                width=weights["pos_start"].shape[-1],
                heads=weights[f"{first}sa.scale_mul_1H11"].shape[1],
                chunks=len(chunks) or 1,
                ffn_hidden=len(weights[f"{first}ffn.fc1.weight"]),
                bits=weights["word_embed.weight"].shape[1],
                caption_dim=caption_dim,
                pool_heads=weights["text_proj_for_sos.ca.mat_q"].shape[1],
                text_maxlen=text_maxlen,
                levels=len(weights["lvl_embed.weight"]),
            )
        except (KeyError, ValueError, IndexError) as error:
            expected = f"an Infinity transformer with {error.args[0]}"
            raise UsageError(where, expected, "none", "take the checkpoint of an Infinity model") from None


# -- the transformer --------------------------------------------------------------------------------------------------


class _MLP(nn.Module):
    """Two layers with tanh-approximated GELU between."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn_hidden)
        self.fc2 = nn.Linear(config.ffn_hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        if h.requires_grad or h.dtype != torch.float32 or h.device.type != "cpu":
            return self.fc2(F.gelu(h, approximate="tanh"))
        for part in h.view(-1).split(GELU_NUMBERS):
            gelu_(part)
        return self.fc2(h)


GELU_NUMBERS = 2**17
"""How many numbers a core's cache holds between the passes over them."""


def gelu_(x: Tensor) -> None:
    """Tanh-approximated GELU in place, as x * sigmoid(2u): torch's CPU kernel takes twice the time (rounding differs,
    5e-7 for numbers of size 1)."""
    slope = 2 * (2 / pi) ** 0.5
    gate = torch.addcmul(x.new_tensor(slope), x, x, value=0.044715 * slope)
    x.mul_(gate.mul_(x).sigmoid_())


class SelfAttention(nn.Module):
    """Cosine attention: unit queries and keys, a learned temperature per head (at most 100), RoPE on both."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        width = config.width
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.zero_k_bias: Tensor
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.heads, 1, 1), log(4)))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLC: Tensor, rope_Lp: Tensor, attend: Attend) -> Tensor:
        heads = self.scale_mul_1H11.shape[1]
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        mixed_BL3Hd = self.mat_qkv(x_BLC).add_(bias).unflatten(-1, (3, heads, -1))
        turned = rotated(self._normed(mixed_BL3Hd[:, :, :2]), rope_Lp[:, None, None])
        q, k, v = (x.transpose(1, 2) for x in (*turned.unbind(2), mixed_BL3Hd[:, :, 2]))
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))

    def _normed(self, qk_BL2Hd: Tensor) -> Tensor:
        """Queries as long as their head's temperature, keys of length 1: one product for both."""
        temperature = self.scale_mul_1H11.clamp(max=LARGEST_SCALE).exp().view(1, 1, 1, -1, 1)
        wanted = torch.cat([temperature, torch.ones_like(temperature)], 2)
        return qk_BL2Hd * (wanted / torch.linalg.vector_norm(qk_BL2Hd, dim=-1, keepdim=True).clamp(min=SHORTEST))


class CrossAttention(nn.Module):
    """Every token reads the caption; keys and values come from outside, since scales and images share them."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.mat_q = nn.Linear(width, width)
        self.mat_kv = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.zero_k_bias: Tensor
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def keys_values(self, text_UTC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the captions, each (U, H, T, d)."""
        mixed = self.mat_kv(text_UTC) + torch.cat([self.zero_k_bias, self.v_bias])
        k, v = mixed.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def queries(self, x_BLC: Tensor) -> Tensor:
        """(B, H, L, d)."""
        return self.mat_q(x_BLC).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def probabilities(self, x_BLC: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
        """How much every token looks at every caption token, (B, L, T), mean over the heads: `forward`'s weights."""
        scores = self.queries(x_BLC) @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias).softmax(-1).mean(1)

    def forward(self, x_BLC: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        q = self.queries(x_BLC)
        seen = attention(q, keys, values, bias)
        return self.proj(seen.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention and feed-forward, scaled, shifted and gated by the caption; cross attention between, plain.

    In half precision what the layers read is narrow; the states that they add to are float32, see `Transformer.to`.
    """

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, config.width))
        self.sa = SelfAttention(config)
        self.ca = CrossAttention(config)
        self.ca_norm = nn.LayerNorm(config.width, EPS)
        self.ffn = _MLP(config)

    def forward(self, x_BLC: Tensor, text: TextPass, layer: int, rope_Lp: Tensor, attend: Attend) -> Tensor:
        """`text` holds one row per image; `layer` is this block's place in it."""
        parts = (self.ada_gss + text.modulation.unsqueeze(1)).unbind(2)
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = parts
        narrow, wide = text.keys[layer].dtype, x_BLC.dtype
        seen = self.sa(modulated(x_BLC, scale_1, shift_1).to(narrow), rope_Lp, attend)
        x = torch.addcmul(x_BLC, seen.to(wide), gate_1)
        norm = self.ca_norm
        normed = F.layer_norm(x, norm.normalized_shape, norm.weight.to(wide), norm.bias.to(wide), norm.eps)
        x = x + self.ca(normed.to(narrow), text.keys[layer], text.values[layer], text.bias)
        return torch.addcmul(x, self.ffn(modulated(x, scale_2, shift_2).to(narrow)).to(wide), gate_2)


class _Pool(nn.Module):
    """Attention of one learned query per head over a caption: the start token and the condition of all modulation."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        width, heads = config.width, config.pool_heads
        self.mat_q = nn.Parameter(torch.empty(1, heads, width // heads).normal_(std=(width // heads) ** -0.5))
        self.mat_kv = nn.Linear(config.caption_dim, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.zero_k_bias: Tensor
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, text_UTC: Tensor, bias: Tensor | None) -> Tensor:
        heads = self.mat_q.shape[1]
        mixed = self.mat_kv(text_UTC) + torch.cat([self.zero_k_bias, self.v_bias])
        k, v = mixed.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.mat_q.transpose(0, 1).expand(len(text_UTC), -1, -1, -1)
        return self.proj(attention(q, k, v, bias).flatten(1))


class _TextPool(nn.Module):
    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.ca = _Pool(config)


class _HeadNorm(nn.Module):
    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))


class _Chunk(nn.Module):
    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)


@dataclass(frozen=True)
class TextPass:
    """All that images need of their captions, one row per caption or, after `rows`, per image.

    start (U, C): first token; modulation (U, 6, C) and head (U, 2, C): scales and shifts of the blocks and the head;
    keys, values: per layer (U, H, T, d); bias (U, 1, 1, T): -inf at padding, None if there is none.
    """

    start: Tensor
    modulation: Tensor
    head: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor | None

    def __len__(self) -> int:
        return len(self.start)

    def rows(self, index: Tensor) -> TextPass:
        """The captions `index`, any order, repeats allowed; no copy if that is all of them in order."""
        if torch.equal(index.cpu(), torch.arange(len(self))):
            return self
        return self._each(lambda x: x.index_select(0, index))

    def first(self, count: int) -> TextPass:
        """The first `count` rows, as views."""
        return self._each(lambda x: x[:count])

    def _each(self, take: Callable[[Tensor], Tensor]) -> TextPass:
        keys, values = (tuple(take(x) for x in layers) for layers in (self.keys, self.values))
        bias = None if self.bias is None else take(self.bias)
        return TextPass(take(self.start), take(self.modulation), take(self.head), keys, values, bias)


class Transformer(nn.Module):
    """The network. Initialised as a plain pre-norm transformer: gates 1, no modulation, head 0."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        unconditional = torch.empty(config.text_maxlen, config.caption_dim)
        self.cfg_uncond = nn.Parameter(unconditional.normal_(std=config.caption_dim**-0.5))
        self.pos_start = nn.Parameter(torch.empty(1, 1, width).normal_(std=width**-0.5))
        self.text_norm = nn.RMSNorm(config.caption_dim, EPS)
        self.text_proj_for_sos = _TextPool(config)
        hidden = nn.Linear(config.caption_dim, width)
        self.text_proj_for_ca = nn.Sequential(hidden, nn.GELU(approximate="tanh"), nn.Linear(width, width))
        self.lvl_embed = nn.Embedding(config.levels, width)
        self.word_embed = nn.Linear(config.bits, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        blocks = [Block(config) for _ in range(config.depth)]
        if config.chunks > 1:
            size = config.depth // config.chunks
            self.block_chunks = nn.ModuleList(_Chunk(blocks[i : i + size]) for i in range(0, config.depth, size))
        else:
            self.blocks = nn.ModuleList(blocks)
        self.head_nm = _HeadNorm(config)
        self.head = nn.Linear(width, 2 * config.bits)
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            if name.endswith((".sa.proj", ".ca.proj", ".fc2")):
                nn.init.normal_(cast("nn.Linear", module).weight, std=0.02 * (2 * self.config.depth) ** -0.5)
        for linear in (self.shared_ada_lin[1], self.head_nm.ada_lin[1], self.head):
            nn.init.zeros_(cast("nn.Linear", linear).weight)
        for block in self.layers:
            nn.init.ones_(block.ada_gss[:, :, :2].detach())

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As nn.Module; in half precision only the blocks are narrow.

        So the published program computes: the blocks' weights in bfloat16, what they add to, the captions' norm and
        pooling, all modulation and the head in float32 (get_logits, Infinity.forward and tools/run_infinity.py of
        https://github.com/FoundationVision/Infinity; its inference pools captions under autocast, its training doesn't,
        and this follows the training).
        """
        super().to(*args, **kwargs)
        if self.narrow in (torch.bfloat16, torch.float16):
            for name, module in self.named_children():
                if name not in ("blocks", "block_chunks"):
                    module.float()
            for parameter in (self.cfg_uncond, self.pos_start):
                parameter.data = parameter.data.float()
        return self

    @property
    def narrow(self) -> torch.dtype:
        """What the blocks compute in."""
        return self.layers[0].ada_gss.dtype

    @property
    def layers(self) -> list[Block]:
        """All blocks, first to last."""
        if self.config.chunks == 1:
            return list(cast("Sequence[Block]", self.blocks))
        chunks = cast("Sequence[_Chunk]", self.block_chunks)
        return [block for chunk in chunks for block in cast("Sequence[Block]", chunk.module)]

    def layer_name(self, layer: int) -> str:
        """The module name of a block."""
        size = self.config.depth // self.config.chunks
        return f"blocks.{layer}" if self.config.chunks == 1 else f"block_chunks.{layer // size}.module.{layer % size}"

    def unconditional(self, mask_UT: Tensor) -> Tensor:
        """Unconditional features (U, T, caption_dim): a caption of n tokens becomes the first n rows of cfg_uncond."""
        return self.cfg_uncond[(mask_UT.cumsum(1) - 1).clamp(min=0)]

    def text_pass(self, features_UTC: Tensor, mask_UT: Tensor) -> TextPass:
        """What images need of these captions; positions outside the mask are never seen, wherever they lie."""
        bias = None
        if not bool(mask_UT.all()):
            hidden = torch.zeros(mask_UT.shape, dtype=self.pos_start.dtype, device=mask_UT.device)
            bias = hidden.masked_fill(~mask_UT, float("-inf"))[:, None, None]
        text = self.normed_captions(features_UTC)
        start = self.text_proj_for_sos.ca(text, bias)
        projected = self.text_proj_for_ca(text).to(self.narrow)
        bias = None if bias is None else bias.to(self.narrow)
        keys, values = zip(*(block.ca.keys_values(projected) for block in self.layers), strict=True)
        modulation = self.shared_ada_lin(start).unflatten(-1, (6, -1))
        return TextPass(start, modulation, self.head_nm.ada_lin(start).unflatten(-1, (2, -1)), keys, values, bias)

    def normed_captions(self, features_UTC: Tensor) -> Tensor:
        """What pooling and cross attention read of captions, in the dtype of what lies outside the blocks."""
        return self.text_norm(features_UTC.to(self.pos_start.dtype))

    def first_token(self, text: TextPass) -> Tensor:
        """What scale 0 reads, (B, 1, C)."""
        return text.start.unsqueeze(1) + self.pos_start + self.lvl_embed.weight[0]

    def embed(self, inputs_BLD: Tensor, levels: int | Tensor) -> Tensor:
        """What the scales after it read: projected code sums plus the level embedding, (B, L, C)."""
        return self.word_embed(inputs_BLD.to(self.word_embed.weight.dtype)) + self.lvl_embed.weight[levels]

    def run(self, x_BLC: Tensor, text: TextPass, rope_Lp: Tensor, attend: Callable[[int], Attend]) -> Tensor:
        """All blocks; `attend(layer)` is how tokens of that layer see each other."""
        for layer, block in enumerate(self.layers):
            x_BLC = block(x_BLC, text, layer, rope_Lp, attend(layer))
        return x_BLC

    def bit_logits(self, x_BLC: Tensor, text: TextPass) -> Tensor:
        """States after the last block to logits (B, L, D, 2) in float32; the last axis is bit 0, bit 1."""
        return self.head(self.normed(x_BLC, text)).float().unflatten(-1, (-1, 2))

    def normed(self, x_BLC: Tensor, text: TextPass) -> Tensor:
        """States after the last block as the head reads them."""
        scale, shift = text.head.unsqueeze(1).unbind(2)
        return modulated(x_BLC, scale, shift)

    def states(self, text: TextPass, inputs_BND: Tensor, schedule: Schedule, first_scales: int | None) -> Tensor:
        """States (B, L, C) after the last block, teacher-forced; arguments as for `forward`."""
        spans = schedule.spans[:first_scales]
        length = spans[-1][1]
        levels = torch.tensor([scale for scale, (start, end) in enumerate(spans) for _ in range(start, end)])
        rest = self.embed(inputs_BND[:, : length - 1], levels[1:].to(inputs_BND.device))
        x = torch.cat([self.first_token(text), rest], 1)
        rope = rope_table(schedule, self.config.head_dim)[:length].to(x.device)
        return self.run(x, text, rope, lambda _: blockwise(spans))

    def forward(
        self, text: TextPass, inputs_BND: Tensor, schedule: Schedule, first_scales: int | None = None
    ) -> Tensor:
        """Teacher-forced logits (B, L, D, 2), float32, of all scales or of the first few; `text` has a row per image.

        inputs (B, at least L - 1, D) are `bsq.teacher_inputs` of the bits, or those that self-correction made.
        """
        return self.bit_logits(self.states(text, inputs_BND, schedule, first_scales), text)


def modulated(x_BLC: Tensor, scale_B1C: Tensor, shift_B1C: Tensor) -> Tensor:
    """LayerNorm without weights, times (1 + scale), plus shift."""
    return torch.addcmul(shift_B1C, F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=EPS), 1 + scale_B1C)


def blockwise(spans: Sequence[tuple[int, int]]) -> Attend:
    """Tokens of a scale see their own and all coarser scales. Scale by scale, so that no (L, L) mask is ever made."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], scale=1.0) for start, end in spans]
        return torch.cat(parts, 2)

    return attend


@lru_cache(maxsize=32)
def rope_table(schedule: Schedule, head_dim: int) -> Tensor:
    """cos + i sin of all positions, complex64 (N, head_dim / 2): the first half of the pairs turns with the row.

    Positions of every scale are stretched to the schedule's `rope` grid and rounded, half to even, in float32.
    """
    with torch.inference_mode(False):  # the table outlives the call that happens to make it
        return _rope_table(schedule, head_dim)


def _rope_table(schedule: Schedule, head_dim: int) -> Tensor:
    half = head_dim // 2
    frequencies = ROPE_BASE ** (-torch.arange(0, half, 2).float() / half)
    tables = []
    for height, width in schedule.grids:
        rows = (torch.arange(height) * (schedule.rope[0] / height)).round()
        columns = (torch.arange(width) * (schedule.rope[1] / width)).round()
        vertical, horizontal = torch.outer(rows, frequencies), torch.outer(columns, frequencies)
        both = [vertical[:, None].expand(-1, width, -1), horizontal[None].expand(height, -1, -1)]
        tables.append(torch.cat(both, -1).flatten(0, 1))
    angles = torch.cat(tables)
    return torch.complex(angles.cos(), angles.sin())


def rotated(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate adjacent pairs of the last axis, in float32, back to x's dtype; `rope` is broadcast over the pairs."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rope).flatten(-2).type_as(x)


def bit_loss(logits_BLD2: Tensor, bits_BLD: Tensor, schedule: Schedule, reweight: bool = True) -> Tensor:
    """Training loss, a scalar: cross-entropy per bit, mean over bits, weighted mean over tokens, mean over images.

    `reweight` gives coarse tokens more say, as the shipped trainings do (`Schedule.token_weights`). Logits and bits may
    be those of the first scales only; their tokens then weigh what they weigh among all.
    """
    each = F.cross_entropy(logits_BLD2.flatten(0, 2), bits_BLD.flatten(), reduction="none").view(bits_BLD.shape)
    tokens = each.mean(-1)
    if not reweight:
        return tokens.mean()
    weights = torch.tensor(schedule.token_weights(), device=tokens.device)[: tokens.shape[1]]
    return (tokens * weights).sum(-1).mean()


# -- sampling ---------------------------------------------------------------------------------------------------------

BitChooser = Callable[[Tensor, int], Tensor]
"""(chances of a 1-bit (B, L, D), number of the first of these tokens) → bits int64 (B, L, D)."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class ScaleSampling(Sampling):
    """`Sampling` with its own guidance or temperature for each scale; empty: the one number holds for all scales."""

    guidances: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """As `Sampling`'s, of every scale's number."""
        super().__post_init__()
        for guidance, temperature in zip_longest(self.guidances, self.temperatures, fillvalue=1.0):
            Sampling(guidance, temperature)

    def guided(self, factor: float) -> Self:
        """As `Sampling`'s; a scale that isn't guided stays so."""
        turned = tuple(one * factor if one > 1 else one for one in self.guidances)
        return replace(super().guided(factor), guidances=turned)

    def warmed(self, temperature: float) -> Self:
        """As `Sampling`'s, every scale at the same."""
        return replace(super().warmed(temperature), temperatures=())


def per_scale(sampling: Sampling, scales: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Guidance and temperature of every scale; UsageError for lists of another length."""
    found = []
    for name, single in (("guidances", sampling.guidance), ("temperatures", sampling.temperature)):
        numbers = getattr(sampling, name, ()) or (single,) * scales
        if len(numbers) != scales:
            raise UsageError(name, f"{scales} numbers, one per scale", str(len(numbers)), "give one for each scale")
        found.append(numbers)
    return found[0], tuple(max(one, COLDEST) for one in found[1])


class InverseCdfBits(Drawer):
    """Bit = whether the image's number for this bit lies above the chance of a 0 (draws (B, N, D))."""

    def __call__(self, chances: Tensor, first: int) -> Tensor:
        """Bits (B, L, D), as a BitChooser."""
        self.see(chances.sum())
        return (self.draws[:, first : first + chances.shape[1]] >= 1 - chances.double()).long()


def inverse_cdf_bits(draws_BND: Tensor) -> InverseCdfBits:
    """How bits are drawn by numbers (B, N, D) of their images' own."""
    return InverseCdfBits(draws_BND)


def bit_chances(logits_BLD2: Tensor, sampling: Sampling) -> Tensor:
    """Chance of a 1-bit after the filters, (B, L, D); the temperature is in the logits already.

    Of two choices top_k = 1 keeps the likelier, more changes nothing; top_p drops the other if its share is at most
    1 - top_p, which is upstream's rule (a tie included, unlike LlamaGen's).
    """
    gap = logits_BLD2[..., 1] - logits_BLD2[..., 0]
    if sampling.top_k == 1:
        return torch.where(gap.isnan(), gap, (gap > 0).float())
    chances = gap.sigmoid()
    if sampling.top_p < 1:
        certain = (-gap.abs()).sigmoid() <= 1 - sampling.top_p
        chances = torch.where(certain, (gap > 0).float(), chances)
    return chances


class _Cache:
    """Keys and values of all layers, (R, tokens, H, d) each, allocated once; the last scale's aren't kept."""

    def __init__(self, config: InfinityConfig, schedule: Schedule, like: Tensor) -> None:
        size = (len(like), schedule.spans[-1][0], config.heads, config.head_dim)
        self.keys = [like.new_empty(size) for _ in range(config.depth)]
        self.values = [like.new_empty(size) for _ in range(config.depth)]

    def keep(self, count: int) -> None:
        """Forget all rows but the first `count`."""
        self.keys, self.values = ([x[:count] for x in layers] for layers in (self.keys, self.values))

    def attend(self, layer: int, start: int, end: int) -> Attend:
        """Tokens start … end of a layer over themselves and all before them."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (x[layer].transpose(1, 2) for x in (self.keys, self.values))
            if end > keys.shape[2]:
                keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
            else:
                keys, values = keys[:, :, :end], values[:, :, :end]
                keys[:, :, start:], values[:, :, start:] = k, v
            return F.scaled_dot_product_attention(q, keys, values, scale=1.0)

        return attend


class Guide(Protocol):
    """How the logits of a scale come from several kinds of rows per image: the captions first, all of one kind
    together."""

    def kinds(self, scale: int) -> int:
        """How many kinds this scale has to run (the first so many of `text`); never more than the scale before."""

    def logits(self, net: Transformer, scale: int, states_RLC: Tensor, text: TextPass) -> Tensor:
        """Logits (B, L, D, 2) to draw from, from the states after the last block of all rows that were run."""


@dataclass(frozen=True)
class ClassifierFree:
    """Captions and dropped captions, to the last scale with a guidance above 1 (earlier ones need keys and values)."""

    guidance: tuple[float, ...]
    temperature: tuple[float, ...]

    def kinds(self, scale: int) -> int:
        """2 while a scale from here on is guided."""
        return 2 if max(self.guidance[scale:]) > 1 else 1

    def logits(self, net: Transformer, scale: int, states_RLC: Tensor, text: TextPass) -> Tensor:
        """After temperature and guidance; the head runs on the rows that these need."""
        kinds, temperature = self.kinds(scale), self.temperature[scale]
        images = len(text) // kinds
        if self.guidance[scale] <= 1:
            return net.bit_logits(states_RLC[:images], text.first(images)) / temperature
        both = net.bit_logits(states_RLC, text) / temperature
        return guided(both[:images], both[images:], self.guidance[scale])


def sample_bits(
    net: Transformer,
    schedule: Schedule,
    text: TextPass,
    images: int,
    sampling: Sampling,
    choose: BitChooser,
    *,
    prefix: Tensor | None = None,
    keep_logits: list[Tensor] | None = None,
    guide: Guide | None = None,
) -> Tensor:
    """Draw the bits (B, N, D) of `images` images.

    text: a row per image and, for guidance, as many again with the captions dropped (and what more kinds of rows a
    `guide` of one's own wants). Rows are computed as long as the guide needs them and no further.
    prefix: bits (B, P, D) of the first P tokens, not to be chosen; keep_logits collects the logits of every scale
    after temperature and guidance (for parity tests).
    """
    guide = guide or ClassifierFree(*per_scale(sampling, len(schedule.grids)))
    known = text.start.new_empty(images, 0, net.config.bits, dtype=torch.int64) if prefix is None else prefix
    with torch.inference_mode():
        text = text.first(images * guide.kinds(0))
        cache, chosen = _Cache(net.config, schedule, text.keys[0]), []
        codes = CodeSum(schedule, images, cell_bits(net.config.bits, schedule), text.start.device)
        rope = rope_table(schedule, net.config.head_dim).to(text.start.device)
        for scale, (start, end) in enumerate(schedule.spans):
            if len(text) > (rows := images * guide.kinds(scale)):
                text = text.first(rows)
                cache.keep(rows)
            if scale == 0:
                x = net.first_token(text)
            else:
                x = net.embed(codes.inputs(scale), scale).repeat(len(text) // images, 1, 1)
            x = net.run(x, text, rope[start:end], partial(cache.attend, start=start, end=end))
            bits = known[:, start:end]
            if bits.shape[1] < end - start or keep_logits is not None:
                logits = guide.logits(net, scale, x, text)
                if keep_logits is not None:
                    keep_logits.append(logits)
                drawn = choose(bit_chances(logits, sampling), start)
                bits = torch.cat([bits, drawn[:, bits.shape[1] :]], 1)
            chosen.append(bits)
            codes.add_tokens(scale, bits)
    return torch.cat(chosen, 1).clone()  # out of inference mode, so that training may take the bits


# -- the family -------------------------------------------------------------------------------------------------------

MINI_FOLDER = Path(__file__).resolve().parent.parent / "minis" / "infinity"
MOST_ROWS = 32
"""Images sampled together at most; changes no image. On a CPU 64 of the mini's take longer each (1.05 times):
their activations no longer fit in its cache."""
LEGACY = ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen")
"""Buffers in older checkpoints that upstream ignores as well."""
PUBLISHED_TEXT = "flan-t5-xl"
TOKENIZER = "infinity_vae_d{bits}.pth"
"""The tokenizer's file of a variant that names none, by the bits of its tokens."""


@dataclass(frozen=True)
class Published:
    """What the files of a released model don't say: image size and sampling."""

    size: str
    sampling: Sampling


PUBLISHED = {
    "125m": Published("0.06M", Sampling(4.0, 0.5, 0, 0.97)),
    "2b": Published("1M", Sampling(4.0, 0.5, 0, 0.97)),
    "8b": Published("1M", Sampling(3.0, 1.0, 0, 0.97)),
    "8b-512": Published("0.25M", Sampling(3.0, 1.0, 0, 0.97)),
}


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Settings:
    """`safear.json`: how the weight files are to be read."""

    family: str = "infinity"
    variant: str = ""
    transformer: InfinityConfig
    tokenizer: BSQConfig
    schedule: Schedule
    text: str
    sampling: ScaleSampling


@family("infinity")
class Infinity(CaptionedFamily):
    """Infinity text-to-image: bitwise next-scale prediction (https://arxiv.org/abs/2412.04431)."""

    name = "infinity"
    provides = frozenset({"scales", "cross_attention"})
    variants: ClassVar = {
        "mini": Variant("the mini world's Infinity, shipped with this package", licence="Apache-2.0", images="gallery"),
        "125m": Variant(
            "published 125M, 256 px (with infinity_vae_d16.pth or _d32.pth, as its tokens have bits)",
            files=("infinity_125M_256x256.pth",),
            more=("infinity_vae_d16.pth", "infinity_vae_d32.pth"),
            repository="FoundationVision/Infinity",
            gigabytes=0.5,
            licence="MIT",
            text_encoder="google/flan-t5-xl",
        ),
        "2b": Variant(
            "published 2B, 1024 px",
            files=("infinity_2b_reg.pth", "infinity_vae_d32reg.pth"),
            repository="FoundationVision/Infinity",
            gigabytes=8.8,
            licence="MIT",
            text_encoder="google/flan-t5-xl",
        ),
        "8b": Variant(
            "published 8B, 1024 px",
            files=("infinity_8b_weights/model.safetensors.index.json", "infinity_vae_d56_f8_14_patchify.pth"),
            repository="FoundationVision/Infinity",
            gigabytes=33.5,
            licence="MIT",
            text_encoder="google/flan-t5-xl",
        ),
        "8b-512": Variant(
            "published 8B, 512 px",
            files=("infinity_8b_512x512_weights/model.safetensors.index.json", "infinity_vae_d56_f8_14_patchify.pth"),
            repository="FoundationVision/Infinity",
            gigabytes=33.5,
            licence="MIT",
            text_encoder="google/flan-t5-xl",
        ),
    }
    layouts: ClassVar = {
        "upstream": "in github.com/FoundationVision/Infinity: tools/run_infinity.py --model_path infinity_*.pth "
        "--vae_path infinity_vae_*.pth",
    }
    kept_bytes: ClassVar = {"float32": 110.0, "bfloat16": 91.0, "float16": 91.0}
    decode_bytes = 33 * 2**26  # 0.26 GiB an image of 256 x 256 pixels, measured as the base class's
    decode_flops = 9.39e6
    net: Transformer

    def __init__(
        self, net: Transformer, bsq: BSQ, schedule: Schedule, text: TextEncoder, card: ModelCard, sampling: Sampling
    ) -> None:
        self.net, self.bsq, self.text = net.eval(), bsq.eval().requires_grad_(False), text
        self.schedule, self.card, self.sampling = schedule, card, sampling

    @classmethod
    def load(cls, ref: ModelRef, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Infinity:
        """The embedded mini, a directory that `export` wrote, or a folder with a published variant's files.

        A published folder holds the transformer's and the tokenizer's file (`variants`) and the text encoder's folder
        `flan-t5-xl`; sizes are read from the weights.
        """
        folder = ref.path or MINI_FOLDER
        if ref.variant in PUBLISHED and not (folder / "safear.json").exists():
            facts = PUBLISHED[ref.variant]
            weights, tokenizer = (folder / name for name in _files(ref.variant))
            made = cls.from_files(weights, tokenizer, size=facts.size, variant=ref.variant, device=device, dtype=dtype)
            made.sampling = facts.sampling
            return made
        settings = read_settings(folder / "safear.json", Settings)
        _check_fit(settings.transformer, settings.tokenizer, settings.schedule, str(folder / "safear.json"))
        paths, sizes = (folder / "gpt.safetensors", folder / "vae.safetensors"), settings.transformer
        with opened(paths[0]) as stored:
            net = filled(lambda: Transformer(sizes), sizes.depth, stored, str(paths[0]), dtype=dtype, device=device)
        levels = layers_in(asdict(settings.tokenizer))
        with opened(paths[1]) as stored:
            bsq = filled(lambda: BSQ(settings.tokenizer), levels, stored, str(paths[1]), device=device)
        card = card_of(net, bsq, settings.schedule, ref.variant, _digests(*paths))
        text = _text_encoder(settings.text, net.config.text_maxlen, folder, dtype, device)
        return cls(net, bsq, settings.schedule, text, card, settings.sampling)

    @classmethod
    def from_files(
        cls,
        weights: Path,
        tokenizer: Path,
        *,
        ratio: float = 1.0,
        size: str = "1M",
        variant: str = "custom",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Infinity:
        """Any checkpoint in upstream's formats with its tokenizer: a flat .pth, an index of safetensors shards, or a
        trainer's checkpoint; a `flan-t5-xl` folder lies beside `tokenizer`.

        `{bits}` in the tokenizer's name stands for the bits of a token. Pickles are read by `checkpoint.read_weights`.
        """
        with opened(weights, allow_pickle=True) as stored:
            config, legacy = InfinityConfig.of(stored.like, str(weights)), [name for name in LEGACY if name in stored]
            where = str(weights)
            net = filled(
                lambda: Transformer(config), config.depth, stored, where, dtype=dtype, device=device, ignore=legacy
            )
        tokenizer = tokenizer.with_name(tokenizer.name.replace("{bits}", str(net.config.bits)))
        found = published_names(read_weights(tokenizer, allow_pickle=True))
        bsq = BSQ(BSQConfig.of(found, str(tokenizer)))
        assign_strict(bsq, found, str(tokenizer), ignore=IGNORED)
        bsq.to(device)
        schedule = Schedule.published(ratio, size, patchify=net.config.bits == 4 * bsq.config.bits)
        _check_fit(net.config, bsq.config, schedule, str(tokenizer))
        text = _text_encoder("t5", net.config.text_maxlen, tokenizer.parent, dtype, device)
        card = card_of(net, bsq, schedule, variant, _digests(weights, tokenizer))
        return cls(net, bsq, schedule, text, card, Sampling(4.0, 0.5, 0, 0.97))

    @classmethod
    def pico(cls, seed: int = 0) -> Infinity:
        """16x16 pixels in 1 + 4 + 16 tokens of 6 bits, MiniLM captions, weights large enough that every input matters.

        With the training's own initialisation (head zero, no modulation) all bits would be even chances, and tests on
        them couldn't tell a position from the next.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = Transformer(InfinityConfig(4, 48, 2, 2, 64, 6, MINILM_WIDTH, 3, 32))
            for name, parameter in net.named_parameters():
                if parameter.dim() > 1 and not name.endswith(("scale_mul_1H11", "ada_gss")):
                    nn.init.normal_(parameter, std=0.15)
            nn.init.normal_(net.word_embed.weight)
            nn.init.normal_(net.lvl_embed.weight)
            bsq = BSQ(BSQConfig(6, 24, (1, 1, 1), 1, 4))
        digest = {"pico": hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()}
        schedule = Schedule.square(1, 2, 4)
        card = card_of(net, bsq, schedule, "pico", digest)
        return cls(net, bsq, schedule, text_encoder("minilm", 32, MINI_FOLDER), card, ScaleSampling(2.0))

    def at(self, schedule: Schedule) -> Infinity:
        """The same weights drawing another schedule (ratio or size), with a card that says so."""
        _check_fit(self.net.config, self.bsq.config, schedule, "the scale schedule")
        card = card_of(self.net, self.bsq, schedule, self.card.variant, dict(self.card.files))
        return Infinity(self.net, self.bsq, schedule, self.text, card, self.sampling)

    @property
    def weight_bytes(self) -> int:
        """As the base class says."""
        return super().weight_bytes + sum(tensor.nbytes for tensor in self.bsq.state_dict().values())

    @property
    def depth_and_width(self) -> tuple[int, int]:
        """As the base class says."""
        config = self.net.config
        return config.depth, config.width

    @property
    def caption_places(self) -> int:
        """As the base class says."""
        return self.net.config.text_maxlen

    def text_pass(self, condition: Condition) -> TextPass:
        """One row per image; each distinct caption is run once."""
        features, mask, which = condition.in_use(self.net.unconditional)
        return self.net.text_pass(features, mask).rows(which)

    def logits(self, condition: Condition, ids: Tensor, *, first_scales: int | None = None) -> Tensor:
        """Teacher-forced logits (B, N, D, 2), float32; of the first scales' tokens alone if that many are asked for.

        Tokens after those scales are neither looked at nor computed.
        """
        inputs = teacher_inputs(ids, self.schedule, first_scales)
        return self.net(self.text_pass(condition), inputs, self.schedule, first_scales)

    def pieces(self, prompt: str) -> list[str]:
        """As the base class says."""
        return self.text.pieces(prompt)

    @torch.no_grad()
    def text_attention(self, prompts: Sequence[str], ids: Tensor) -> list[list[Tensor]]:
        """As the base class says; the hooks of ISSA (SACE, algorithm 1), on given tokens."""
        seen: list[Tensor] = []

        def record(attention: nn.Module, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
            x, keys, _, bias = inputs
            seen.append(cast("CrossAttention", attention).probabilities(x, keys, bias))

        hooks = [block.ca.register_forward_pre_hook(record) for block in self.net.layers]
        try:
            self.logits(self.condition(prompts), ids)
        finally:
            for hook in hooks:
                hook.remove()
        mean = torch.stack(seen).mean(0)
        found = []
        for prompt, row in zip(prompts, mean, strict=True):
            scales = row[:, -len(self.pieces(prompt)) :].split(list(self.schedule.tokens))
            found.append([part.unflatten(0, grid) for part, grid in zip(scales, self.schedule.grids, strict=True)])
        return found

    def hidden(self, condition: Condition, ids: Tensor) -> Tensor:
        """Last hidden states (B, L, C) as the head reads them; `ids` may be the first tokens of images only.

        A scale's states are read from the scales before it, so one that `ids` ends in is run as a whole.
        """
        count = ids.shape[1]
        scales = sum(start < count for start, _ in self.schedule.spans)
        text = self.text_pass(condition)
        states = self.net.states(text, teacher_inputs(ids, self.schedule, scales), self.schedule, scales)
        return self.net.normed(states, text)[:, :count]

    @property
    def token_shape(self) -> tuple[int, int]:
        """(N, D)."""
        return (self.card.tokens, self.net.config.bits)

    def _draw(self, condition: Condition, seeds: Sequence[int], sampling: Sampling, prefix: Tensor | None) -> Tensor:
        """Bits (B, N, D); a scale with a guidance of 1 or less is unguided."""
        guidance, _ = per_scale(sampling, len(self.schedule.grids))
        text, choose = self.text_pass(condition.twice() if max(guidance) > 1 else condition), self.chooser(seeds)
        return choose.checked(
            sample_bits(self.net, self.schedule, text, len(condition), sampling, choose, prefix=prefix)
        )

    def chooser(self, seeds: Sequence[int]) -> InverseCdfBits:
        """How the bits of these images are chosen: each by a number of its image's own seed."""
        draws = uniforms(seeds, prod(self.token_shape)).view(len(seeds), *self.token_shape)
        return inverse_cdf_bits(draws.to(self.device))

    @property
    def row_bytes(self) -> int:
        """As the base class says."""
        config = self.net.config
        return 2 * config.depth * self.schedule.total * config.width * self.dtype.itemsize

    @property
    def rows_per_batch(self) -> int:
        """As the base class says, and at most MOST_ROWS."""
        return min(MOST_ROWS, super().rows_per_batch)

    @property
    def images_per_batch(self) -> int:
        """As the base class says, and at most MOST_ROWS."""
        return min(MOST_ROWS, super().images_per_batch)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of the schedule's image size to bits (B, N, D)."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            got = f"{images.dtype} {tuple(images.shape)}"
            raise UsageError("images", "uint8 (B, 3, H, W)", got, "give pixels from 0 to 255")
        scaled = images.to(self.device).float() / 127.5 - 1
        return torch.cat([self.bsq.encode(part, self.schedule).bits for part in scaled.split(self.images_per_batch)])

    def decode(self, ids: Tensor) -> Tensor:
        """Bits (B, N, D) to uint8 (B, 3, H, W)."""
        return self.sketched(ids, len(self.schedule.grids))

    @torch.no_grad()
    def sketched(self, ids: Tensor, first_scales: int) -> Tensor:
        """As the base class says."""
        parts = ids.to(self.device).split(self.images_per_batch)
        return torch.cat([to_uint8(self.bsq.decode(part, self.schedule, first_scales).float()) for part in parts])

    def passes(self) -> list[tuple[nn.Module, str]]:
        """As the base class says."""
        return [(block, "forward") for block in self.net.layers]

    def editable(self, part: str) -> list[str]:
        """attention, cross_attention, cross_query, ffn, text (the caption projections), all, layers[a:b]; joined by +.

        cross_query is the query projection of cross attention alone, which SACE edits; all is everything else's union.
        """
        depth = self.net.config.depth
        names = {
            "attention": ("sa.mat_qkv", "sa.proj"),
            "cross_attention": ("ca.mat_q", "ca.mat_kv", "ca.proj"),
            "cross_query": ("ca.mat_q",),
            "ffn": ("ffn.fc1", "ffn.fc2"),
        }
        parts = {key: [f"layers.{i}.{n}" for i in range(depth) for n in value] for key, value in names.items()}
        text = ["text_proj_for_ca.0", "text_proj_for_ca.2"]
        parts["text"] = [*text, "text_proj_for_sos.ca.mat_kv", "text_proj_for_sos.ca.proj"]
        parts["all"] = [name for part_names in parts.values() for name in part_names]
        return sorted(self._module_name(name) for name in select_modules(parts, part, depth))

    def _module_name(self, name: str) -> str:
        """`layers.<i>.…`, as `select_modules` wants layers, to the published name."""
        if not name.startswith("layers."):
            return name
        _, layer, rest = name.split(".", 2)
        return f"{self.net.layer_name(int(layer))}.{rest}"

    def export(self, directory: Path, layout: str = OWN) -> None:
        """As the base class says.

        OWN: gpt.safetensors, vae.safetensors and, last, safear.json; `load` reads it back.
        "upstream": the transformer as a flat .pth, the tokenizer as {"vae": state dict}, under the published names (a
        variant that isn't published, or is published in shards, gets infinity_VARIANT.pth); a T5 encoder isn't copied.
        """
        if layout != OWN:
            weights, tokenizer = _files(self.card.variant)
            if not weights.endswith(".pth"):
                weights = f"infinity_{self.card.variant}.pth"
            write_pickle(directory / weights, self.net.state_dict())
            name = tokenizer.replace("{bits}", str(self.net.config.bits))
            write_pickle(directory / name, {"vae": self.bsq.state_dict()})
            return
        settings = Settings(
            variant=self.card.variant,
            transformer=self.net.config,
            tokenizer=self.bsq.config,
            schedule=self.schedule,
            text=self.text.kind,
            sampling=scale_sampling(self.sampling),
        )
        write_weights(directory / "gpt.safetensors", self.net.state_dict())
        write_weights(directory / "vae.safetensors", self.bsq.state_dict())
        write_atomic(directory / "safear.json", json.dumps(asdict(settings), indent=1) + "\n")


def scale_sampling(sampling: Sampling) -> ScaleSampling:
    """The same sampling, with (empty) lists if it had none."""
    return sampling if isinstance(sampling, ScaleSampling) else ScaleSampling(**asdict(sampling))


def _check_fit(config: InfinityConfig, tokenizer: BSQConfig, schedule: Schedule, where: str) -> None:
    """UsageError unless tokens have the bits of their cells and every scale has a level embedding."""
    bits = tokenizer.bits * (4 if schedule.patchify else 1)
    if config.bits != bits:
        got = f"one for {config.bits}"
        raise UsageError(where, f"a transformer for tokens of {bits} bits", got, "take the tokenizer of this model")
    if len(schedule.grids) > config.levels:
        got = str(len(schedule.grids))
        raise UsageError(where, f"at most {config.levels} scales", got, "take a shorter schedule")


def _text_encoder(
    kind: str,
    max_tokens: int,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> TextEncoder:
    """Prompts go to T5 as they are: the cleaning is LlamaGen's alone."""
    return text_encoder(kind, max_tokens, folder / PUBLISHED_TEXT, cleaned=False, dtype=dtype, device=device)


def _files(variant: str) -> tuple[str, str]:
    """Names of the transformer's file and the tokenizer's; the latter may have {bits} in it."""
    known = Infinity.variants.get(variant)
    weights, *tokenizer = known.files if known and known.files else (f"infinity_{variant}.pth",)
    return weights, tokenizer[0] if tokenizer else TOKENIZER


def _digests(*paths: Path) -> dict[str, str]:
    """sha256 of weight files by name; of an index, its shards' as well."""
    files = [*paths, *(shard for path in paths for shard in all_files(path))]
    return {path.name: sha256_file(path) for path in dict.fromkeys(files)}


def card_of(net: Transformer, bsq: BSQ, schedule: Schedule, variant: str, files: dict[str, str]) -> ModelCard:
    parameters = sum(p.numel() for m in (net, bsq) for p in m.parameters())
    licence = "Apache-2.0" if variant in ("mini", "pico") else "MIT"
    side = max(schedule.cells[-1]) * bsq.config.patch
    return ModelCard("infinity", variant, side, schedule.total, 2, schedule.tokens, parameters, licence, files)
