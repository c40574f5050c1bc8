"""LlamaGen, text-conditional: next-token transformer over VQ-16 tokens.

Source of the semantics: https://github.com/FoundationVision/LlamaGen/tree/ce98ec4
(autoregressive/models/{gpt,generate}.py). Parameter names are the published state-dict keys. The published RoPE table
is zero at text positions, so queries and keys of the caption vanish in every layer. Two exact consequences shape this
file: a caption row attends to the running mean of the values before it, and an image row sees all n caption keys as ONE
slot with key 0, value = their mean, logit + log n. The caption therefore runs once, ahead of and apart from the image
(`TextPass`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from typing import ClassVar, cast

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.base import OWN, REPLACED, Condition, ModelCard, Sampling, select_modules
from safear_edit.families.captioned import CaptionedFamily
from safear_edit.families.folder import AGAIN, layers_in, read_settings
from safear_edit.families.layers.half import attention
from safear_edit.families.reference import ModelRef, Variant
from safear_edit.families.sampling import Chooser, guided, inverse_cdf, probabilities, uniforms
from safear_edit.families.text import MINILM_WIDTH, TextEncoder, text_encoder
from safear_edit.families.tokenizers.vq import GROUPS, VQConfig, VQModel, to_uint8
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.weights import filled, opened, write_pickle, write_weights
from safear_edit.registry import family

MOST_TOKENS = 1 << 16
"""Of an image; published: 1024. No tensor of a checkpoint says how many there are, so this bounds what they take."""


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a LlamaGen transformer; the defaults are the published t2i XL at 256 pixels."""

    dim: int = 1280
    n_layer: int = 36
    n_head: int = 20
    vocab_size: int = 16384
    caption_dim: int = 2048
    cls_token_num: int = 120
    block_size: int = 256
    multiple_of: int = 256
    norm_eps: float = 1e-5
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        sizes = (self.dim, self.n_layer, self.n_head, self.vocab_size, self.caption_dim, self.cls_token_num)
        fits = min(*sizes, self.block_size, self.multiple_of) > 0 and self.block_size <= MOST_TOKENS
        if not fits or self.dim % (4 * self.n_head) or isqrt(self.block_size) ** 2 != self.block_size:
            expected = f"positive sizes, heads of a multiple of 4 channels, n * n image tokens up to {MOST_TOKENS}"
            raise UsageError("LlamaGen's sizes", expected, str(self), "take the configuration of a trained model")

    @property
    def ffn_hidden(self) -> int:
        hidden = int(2 * 4 * self.dim / 3)
        return self.multiple_of * -(-hidden // self.multiple_of)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, then times the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class Attention(nn.Module):
    """Projections only: how rows attend differs between caption and image and lives in `Block`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w2 = nn.Linear(config.ffn_hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One layer, with a pass for caption rows and a pass for image rows."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.n_head, config.head_dim
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def qkv(self, h_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, L, hd), before RoPE."""
        mixed = self.attention.wqkv(self.attention_norm(h_BLD))
        q, k, v = mixed.view(*h_BLD.shape[:2], 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return q, k, v

    def after(self, h_BLD: Tensor, attended_BLD: Tensor) -> Tensor:
        """Residual of the attention output, then the feed-forward residual."""
        h = h_BLD + self.attention.wo(attended_BLD)
        return h + self.feed_forward(self.ffn_norm(h))

    def text(self, h_BTD: Tensor, mask_BT1: Tensor, count_BT1: Tensor) -> tuple[Tensor, Tensor]:
        """Caption rows attend to the running mean of the visible values; returns rows and the slot value (B, D).

        `wqkv` is called whole although q and k are not needed, so that an adapter wrapped around it applies.
        """
        v = self.attention.wqkv(self.attention_norm(h_BTD))[..., 2 * h_BTD.shape[-1] :]
        mean = ((v * mask_BT1).cumsum(1, dtype=torch.float32) / count_BT1).type_as(h_BTD)
        return self.after(h_BTD, mean), mean[:, -1]

    def image(self, h_BLD: Tensor, slot_BD: Tensor, rope: Tensor, bias_B1QK: Tensor) -> Tensor:
        """Image rows over the slot and the image rows up to themselves."""
        q, k, v = self.qkv(h_BLD)
        slot = slot_BD.view(-1, self.heads, 1, self.head_dim)
        q, k = rotate(q, rope), rotate(k, rope)
        keys = torch.cat([torch.zeros_like(slot), k], 2)
        attended = attention(q, keys, torch.cat([slot, v], 2), bias_B1QK)
        return self.after(h_BLD, attended.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    """Caption projection: two bias-free layers with tanh-approximated GELU between."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _CaptionEmbedder(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.cap_proj = _MLP(config)
        self.uncond_embedding: Tensor
        unconditional = torch.empty(config.cls_token_num, config.caption_dim)
        self.register_buffer("uncond_embedding", unconditional.normal_(std=config.caption_dim**-0.5))


@dataclass(frozen=True)
class TextPass:
    """What images need of their captions, computed once per caption and shared by its images.

    slots: one (B, D) value per layer; log_count: (B,), log of the number of visible caption tokens;
    last: (B, D), state of the last caption position, which predicts the first image token.
    """

    slots: tuple[Tensor, ...]
    log_count: Tensor
    last: Tensor

    def rows(self, index: Tensor) -> TextPass:
        """The pass of captions `index` (any order, repeats allowed)."""
        return TextPass(tuple(s[index] for s in self.slots), self.log_count[index], self.last[index])

    def joined(self, other: TextPass) -> TextPass:
        """These captions, then those of `other`."""
        slots = tuple(torch.cat(pair) for pair in zip(self.slots, other.slots, strict=True))
        return TextPass(slots, torch.cat([self.log_count, other.log_count]), torch.cat([self.last, other.last]))


class GPT(nn.Module):
    """The transformer; see the module docstring for how it differs from the published code and why it is exact.

    In half precision log n is rounded like the scores beside it: in bfloat16 the caption weighs up to 1.5 % more or
    less than it should.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = _CaptionEmbedder(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm: nn.Module = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.apply(_initialise)
        nn.init.zeros_(self.output.weight)
        self.register_buffer(REPLACED, None, persistent=False)
        self.rope: Tensor
        self.register_buffer("rope", rope_table(config), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GPT:
        """As in every module, but the angles stay float32, as published: in bfloat16 a turn would be off by 0.4 %."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.rope.dtype != torch.float32:
            self.rope = rope_table(self.config).to(self.rope.device)
        return self

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers, typed."""
        return cast("Sequence[Block]", self.layers)

    def unconditional(self, mask_BT: Tensor) -> Tensor:
        """Unconditional caption features (B, T, C): the last T rows of the buffer (captions are right-aligned)."""
        rows = self.cls_embedding.uncond_embedding[-mask_BT.shape[1] :]
        return rows.expand(mask_BT.shape[0], *rows.shape)

    def text_pass(self, features_BTC: Tensor, mask_BT: Tensor) -> TextPass:
        """Run left-padded caption features (B, T, caption_dim) through all layers.

        Masked rows never reach another row, so callers trim T to the longest caption; that is exact.
        """
        h = self.cls_embedding.cap_proj(features_BTC)
        mask = mask_BT.unsqueeze(-1)
        count = mask.cumsum(1).clamp(min=1)
        slots = []
        for layer in self.blocks:
            h, slot = layer.text(h, mask, count)
            slots.append(slot)
        return TextPass(tuple(slots), count[:, -1, 0].float().log(), h[:, -1])

    def forward(self, text: TextPass, ids_BN: Tensor) -> Tensor:
        """Teacher-forced logits (B, N, V) in float32: position j is predicted from the caption and ids[:, :j]."""
        return self.output(self.hidden(text, ids_BN)).float()

    def embed(self, ids: Tensor) -> Tensor:
        """What the layers read for image tokens, ids.shape + (D,)."""
        return F.embedding(ids, self.table)

    @property
    def table(self) -> Tensor:
        """The rows that image tokens are read from."""
        replaced: Tensor | None = getattr(self, REPLACED)
        return self.tok_embeddings.weight if replaced is None else replaced

    def hidden(self, text: TextPass, ids_BN: Tensor) -> Tensor:
        """Final hidden states (B, N, D), normed, of the positions that predict each token."""
        h = self.embed(ids_BN[:, :-1])
        rope, bias = self.rope[: h.shape[1]], _bias(text.log_count, h.shape[1]).to(h.dtype)
        for layer, slot in zip(self.blocks, text.slots, strict=True):
            h = layer.image(h, slot, rope, bias)
        return self.norm(torch.cat([text.last.unsqueeze(1), h], 1))


def _bias(log_count_B: Tensor, length: int) -> Tensor:
    """Additive mask (B, 1, L, 1 + L): log n on the caption slot, 0 up to the diagonal, -inf beyond it."""
    causal = torch.full((length, length), float("-inf"), device=log_count_B.device).triu(1)
    slot = log_count_B.view(-1, 1, 1, 1).expand(-1, 1, length, 1)
    return torch.cat([slot, causal.expand(len(log_count_B), 1, length, length)], -1)


def rope_table(config: GPTConfig) -> Tensor:
    """cos and sin of the image positions, (block_size, hd/2, 2): the first half of the pairs turns with the row."""
    grid = round(config.block_size**0.5)
    half = config.head_dim // 2
    if torch.get_default_device().type == "meta":  # sizes alone; to compute there torch would import its compiler
        return torch.empty(grid**2, half, 2)
    frequencies = config.rope_base ** (-torch.arange(0, half, 2).float() / half)
    angles = torch.outer(torch.arange(grid).float(), frequencies)
    rows, columns = angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)
    both = torch.cat([rows, columns], -1).flatten(0, 1)
    return torch.stack([both.cos(), both.sin()], -1)


def rotate(x_BHLd: Tensor, rope_Lp2: Tensor) -> Tensor:
    """Rotate adjacent pairs of channels, in float32, back to x's dtype."""
    a, b = x_BHLd.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope_Lp2.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).type_as(x_BHLd)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


# -- sampling ---------------------------------------------------------------------------------------------------------


class _Cache:
    """Keys and values of all layers, (R, H, 1 + N, hd) each, the caption slot first; allocated once, never moved.

    Batched matrix products over these views beat scaled_dot_product_attention for a single query row, and one product
    of complex numbers turns queries and keys together (measured by `python -m safear_edit.studies speed_llamagen
    sampling`).
    """

    def __init__(self, net: GPT, text: TextPass) -> None:
        config, rows = net.config, len(text.last)
        size = (rows, config.n_head, 1 + config.block_size, config.head_dim)
        self.keys = [text.last.new_empty(size) for _ in net.layers]
        self.values = [text.last.new_empty(size) for _ in net.layers]
        for keys, values, slot in zip(self.keys, self.values, text.slots, strict=True):
            keys[:, :, 0] = 0
            values[:, :, 0] = slot.view(rows, config.n_head, config.head_dim)
        self.bias = text.last.new_zeros(rows, config.n_head, 1, 1 + config.block_size)
        self.bias[..., 0] = text.log_count.view(-1, 1, 1)
        self.rope = torch.view_as_complex(net.rope.contiguous())

    def keep(self, count: int) -> None:
        """Forget all rows but the first `count`."""
        self.keys, self.values = ([x[:count] for x in layers] for layers in (self.keys, self.values))
        self.bias = self.bias[:count]

    def attend(self, layer: int, mixed: Tensor, position: int) -> Tensor:
        """Queries, keys and values (R, 3D) of one position: store, attend over the slot and all so far, (R, D)."""
        rows, heads, _, width = self.keys[layer].shape
        parts = mixed.view(rows, 3, heads, width)
        pairs = torch.view_as_complex(parts[:, :2].float().unflatten(-1, (-1, 2)))
        q, k = torch.view_as_real(pairs * self.rope[position]).flatten(-2).type_as(mixed).unbind(1)
        self.keys[layer][:, :, position + 1] = k
        self.values[layer][:, :, position + 1] = parts[:, 2]
        end = position + 2
        keys, values, bias = (x.flatten(0, 1) for x in (self.keys[layer], self.values[layer], self.bias))
        score = torch.baddbmm(
            bias[..., :end], q.reshape(-1, 1, width), keys[:, :end].transpose(1, 2), alpha=width**-0.5
        )
        return torch.bmm(score.softmax(-1), values[:, :end]).view(rows, -1)


def sample_ids(
    net: GPT,
    text: TextPass,
    unconditional: TextPass | None,
    sampling: Sampling,
    choose: Chooser,
    *,
    guide_until: int = -1,
    prefix: Tensor | None = None,
    keep_logits: list[Tensor] | None = None,
) -> Tensor:
    """Draw the image tokens (B, N) of B captions.

    unconditional: the pass of the same captions dropped, or None for no guidance (then its rows aren't computed).
    guide_until: upstream's cfg_interval: decode steps after it use the conditional logits alone, and the unconditional
    rows are no longer computed (-1: always guided).
    prefix: tokens (B, P) of the first P positions, not to be chosen. keep_logits collects the guided logits (for parity
    tests).
    """
    with torch.inference_mode():
        count = len(text.last)
        rows = text if unconditional is None else text.joined(unconditional)
        cache, h, chosen = _Cache(net, rows), rows.last, []
        for position in range(net.config.block_size):
            if len(h) > count and -1 < guide_until < position - 1:
                cache.keep(count)
                h = h[:count]
            logits = net.output(net.norm(h)).float()
            if len(h) > count:
                logits = guided(logits[:count], logits[count:], sampling.guidance)
            if keep_logits is not None:
                keep_logits.append(logits)
            if prefix is not None and position < prefix.shape[1]:
                ids = prefix[:, position]
            else:
                ids = choose(probabilities(logits, sampling), position)
            chosen.append(ids)
            if position + 1 < net.config.block_size:
                h = _decode_step(net, cache, net.embed(ids).repeat(len(h) // count, 1), position)
        ids = torch.stack(chosen, 1)
    return ids.clone()  # out of inference mode, so that training may take the ids


def _decode_step(net: GPT, cache: _Cache, h_RD: Tensor, position: int) -> Tensor:
    """One token through all layers; returns the final hidden state (R, D). Modules are called, so adapters apply."""
    for i, layer in enumerate(net.blocks):
        mixed = layer.attention.wqkv(layer.attention_norm(h_RD))
        h_RD = layer.after(h_RD, cache.attend(i, mixed, position))
    return h_RD


# -- the family -------------------------------------------------------------------------------------------------------

MINI_FOLDER = Path(__file__).resolve().parent.parent / "minis" / "llamagen"
PUBLISHED = {"xl-256": GPTConfig(), "xl-512": GPTConfig(block_size=1024)}
"""Sizes of the published variants, which their files don't say."""
PUBLISHED_VQ, PUBLISHED_TEXT = "vq_ds16_t2i.pt", "flan-t5-xl"
USAGE, USAGE_ENTRIES = "quantize.codebook_used", 65536
"""The usage buffer that upstream's strict loader wants in a tokenizer's state dict; inference ignores it."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Settings:
    """`safear.json`: how the weight files are to be read."""

    family: str = "llamagen"
    variant: str = ""
    gpt: GPTConfig
    vq: VQConfig
    text: str
    sampling: Sampling


@family("llamagen")
class LlamaGen(CaptionedFamily):
    """LlamaGen text-to-image: raster next-token over VQ-16 (https://arxiv.org/abs/2406.06525)."""

    name = "llamagen"
    provides = frozenset({"codebook"})
    variants: ClassVar = {
        "mini": Variant("the mini world's LlamaGen, shipped with this package", licence="Apache-2.0", images="gallery"),
        "xl-256": Variant(
            "published 775M text-to-image, 256 px",
            files=("t2i_XL_stage1_256.pt", "vq_ds16_t2i.pt"),
            repository="peizesun/llamagen_t2i",
            gigabytes=3.4,
            licence="MIT",
            text_encoder="google/flan-t5-xl",
        ),
        "xl-512": Variant(
            "published 775M text-to-image, 512 px",
            files=("t2i_XL_stage2_512.pt", "vq_ds16_t2i.pt"),
            repository="peizesun/llamagen_t2i",
            gigabytes=3.4,
            licence="MIT",
            text_encoder="google/flan-t5-xl",
        ),
    }
    layouts: ClassVar = {
        "upstream": "in github.com/FoundationVision/LlamaGen: python autoregressive/sample/sample_t2i.py --gpt-ckpt "
        "t2i_*.pt --vq-ckpt vq_ds16_t2i.pt (its loader is strict: a wrong name stops it)",
    }
    table_name = "tok_embeddings.weight"
    kept_bytes: ClassVar = {"float32": 88.0, "bfloat16": 65.0, "float16": 65.0}
    net: GPT

    def __init__(self, net: GPT, vq: VQModel, text: TextEncoder, card: ModelCard, sampling: Sampling) -> None:
        self.net, self.vq, self.text = net.eval(), vq.eval().requires_grad_(False), text
        self.card, self.sampling = card, sampling

    @classmethod
    def load(cls, ref: ModelRef, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> LlamaGen:
        """The embedded mini, a directory that `export` wrote, or a folder with a published variant's files.

        A published folder holds the two .pt files and the text encoder's folder `flan-t5-xl`.
        """
        folder = ref.path or MINI_FOLDER
        if ref.variant in PUBLISHED and not (folder / "safear.json").exists():
            return cls._published(folder, ref.variant, device, dtype)
        config = read_settings(folder / "safear.json", Settings)
        if config.gpt.vocab_size != (size := config.vq.codebook_size):
            where, got = f"{folder / 'safear.json'}: gpt.vocab_size", str(config.gpt.vocab_size)
            raise UsageError(where, f"{size}, as in vq", got, AGAIN)
        paths = (folder / "gpt.safetensors", folder / "vq.safetensors")
        gpt = _gpt(config.gpt, paths[0], dtype, device)
        vq = _vq(config.vq, paths[1], device)
        card = card_of(gpt, vq, ref.variant, {path.name: sha256_file(path) for path in paths})
        encoder = folder / PUBLISHED_TEXT
        text = text_encoder(config.text, gpt.config.cls_token_num, encoder, dtype=dtype, device=device)
        return cls(gpt, vq, text, card, config.sampling)

    @classmethod
    def _published(cls, folder: Path, variant: str, device: str | torch.device, dtype: torch.dtype) -> LlamaGen:
        file, config = cls.variants[variant].files[0], PUBLISHED[variant]
        gpt = _gpt(config, folder / file, dtype, device)
        vq = _vq(VQConfig(), folder / PUBLISHED_VQ, device)
        card = card_of(gpt, vq, variant, {name: sha256_file(folder / name) for name in (file, PUBLISHED_VQ)})
        encoder = folder / PUBLISHED_TEXT
        text = text_encoder("t5", config.cls_token_num, encoder, dtype=dtype, device=device)
        return cls(gpt, vq, text, card, Sampling(7.5, top_k=1000))

    @classmethod
    def pico(cls, seed: int = 0) -> LlamaGen:
        """16x16 pixels, 16 tokens, two layers, MiniLM captions, weights large enough that every input matters.

        With the training's own initialisation (output layer zero, the rest small) an image would be one token over
        and over, and tests on it couldn't tell a position from the next.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            gpt = GPT(GPTConfig(64, 2, 4, 64, MINILM_WIDTH, 32, 16))
            for parameter in gpt.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.15)
            nn.init.normal_(gpt.tok_embeddings.weight)
            vq = VQModel(VQConfig(64, 8, GROUPS, (1, 1, 1), (1, 1, 1), GROUPS, 1))
        digest = {"pico": hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in gpt.parameters())).hexdigest()}
        card = card_of(gpt, vq, "pico", digest)
        return cls(gpt, vq, text_encoder("minilm", 32, MINI_FOLDER), card, Sampling(2.0))

    @property
    def caption_places(self) -> int:
        """As the base class says."""
        return self.net.config.cls_token_num

    @property
    def weight_bytes(self) -> int:
        """As the base class says."""
        return super().weight_bytes + sum(tensor.nbytes for tensor in self.vq.state_dict().values())

    @property
    def depth_and_width(self) -> tuple[int, int]:
        """As the base class says."""
        config = self.net.config
        return config.n_layer, config.dim

    def text_pass(self, condition: Condition) -> TextPass:
        """One row per image; each distinct caption is run once."""
        features, mask, which = condition.in_use(self.net.unconditional)
        return self.net.text_pass(features, mask).rows(which)

    def logits(self, condition: Condition, ids: Tensor) -> Tensor:
        """Teacher-forced logits (B, N, V), float32."""
        return self.net(self.text_pass(condition), ids)

    def hidden(self, condition: Condition, ids: Tensor) -> Tensor:
        """Last hidden states (B, N, D); `ids` may be the first tokens of images only."""
        return self.net.hidden(self.text_pass(condition), ids)

    def image_table(self) -> Tensor:
        """`tok_embeddings`, or what `set_image_table` put in its place, (V, D)."""
        return self.net.table

    @property
    def row_bytes(self) -> int:
        """As the base class says."""
        config = self.net.config
        return 2 * config.n_layer * config.dim * (1 + config.block_size) * self.dtype.itemsize

    def _draw(self, condition: Condition, seeds: Sequence[int], sampling: Sampling, prefix: Tensor | None) -> Tensor:
        draws = uniforms(seeds, self.card.tokens).to(self.device)
        text, without = self.text_pass(condition), None
        if sampling.guidance > 1:
            without = self.text_pass(self.dropped(condition, torch.ones(len(condition), dtype=torch.bool)))
        choose = inverse_cdf(draws)
        return choose.checked(sample_ids(self.net, text, without, sampling, choose, prefix=prefix))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of the card's image size to ids (B, N)."""
        scaled = (self._checked(images).to(self.device).float() / 127.5 - 1).to(self.vq.quant_conv.weight.dtype)
        return torch.cat([self.vq.encode(part) for part in scaled.split(self.images_per_batch)])

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, N) to uint8 (B, 3, H, W)."""
        parts = [to_uint8(self.vq.decode(part).float()) for part in ids.to(self.device).split(self.images_per_batch)]
        return torch.cat(parts)

    def passes(self) -> list[tuple[nn.Module, str]]:
        """As the base class says."""
        return [(block, name) for block in self.net.blocks for name in ("text", "image")]

    def editable(self, part: str) -> list[str]:
        """attention, ffn, text (the caption projection), all (these three), layers[a:b]; joined by +."""
        blocks = [f"layers.{i}" for i in range(self.net.config.n_layer)]
        parts = {
            "attention": [f"{b}.attention.{n}" for b in blocks for n in ("wqkv", "wo")],
            "ffn": [f"{b}.feed_forward.{n}" for b in blocks for n in ("w1", "w2", "w3")],
            "text": [f"cls_embedding.cap_proj.{n}" for n in ("fc1", "fc2")],
        }
        parts["all"] = [name for names in parts.values() for name in names]
        return select_modules(parts, part, self.net.config.n_layer)

    def export(self, directory: Path, layout: str = OWN) -> None:
        """As the base class says.

        OWN: gpt.safetensors, vq.safetensors and, last, safear.json; `load` reads it back.
        "upstream": the two .pt files under the published names, {"model": state dict} as LlamaGen's own loaders take
        them (a variant that isn't published gets t2i_VARIANT.pt); a T5 encoder isn't copied.
        """
        weights = self.net.state_dict() | {self.table_name: self.image_table().detach()}
        if layout != OWN:
            known = self.variants.get(self.card.variant)
            file = known.files[0] if known and known.files else f"t2i_{self.card.variant}.pt"
            used = {USAGE: torch.zeros(USAGE_ENTRIES)}
            write_pickle(directory / file, {"model": weights})
            write_pickle(directory / PUBLISHED_VQ, {"model": {**self.vq.state_dict(), **used}})
            return
        settings = Settings(
            variant=self.card.variant,
            gpt=self.net.config,
            vq=self.vq.config,
            text=self.text.kind,
            sampling=self.sampling,
        )
        write_weights(directory / "gpt.safetensors", weights)
        write_weights(directory / "vq.safetensors", self.vq.state_dict())
        write_atomic(directory / "safear.json", json.dumps(asdict(settings), indent=1) + "\n")


def _gpt(config: GPTConfig, path: Path, dtype: torch.dtype, device: str | torch.device) -> GPT:
    with opened(path, allow_pickle=True) as weights:
        return filled(lambda: GPT(config), config.n_layer, weights, str(path), dtype=dtype, device=device)


def _vq(config: VQConfig, path: Path, device: str | torch.device) -> VQModel:
    """The tokenizer, in float32 whatever the transformer has: an image's tokens must not depend on that."""
    layers = layers_in(asdict(config))
    with opened(path, allow_pickle=True) as weights:
        return filled(lambda: VQModel(config), layers, weights, str(path), device=device, ignore=(USAGE,))


def card_of(gpt: GPT, vq: VQModel, variant: str, files: dict[str, str]) -> ModelCard:
    tokens = gpt.config.block_size
    parameters = sum(p.numel() for m in (gpt, vq) for p in m.parameters())
    licence = "MIT" if variant in PUBLISHED else "Apache-2.0"
    side = round(tokens**0.5) * vq.config.patch
    return ModelCard("llamagen", variant, side, tokens, gpt.config.vocab_size, (tokens,), parameters, licence, files)
