"""LlamaGen, text-conditional: next-token transformer over VQ-16 tokens (parity.md section 1).

Source of the semantics: https://github.com/FoundationVision/LlamaGen (autoregressive/models/{gpt,generate}.py).
Parameter names are the published state-dict keys. The published RoPE table is zero at text positions, so queries and
keys of the caption vanish in every layer (parity.md 1.3). Two exact consequences shape this file: a caption row
attends to the running mean of the values before it, and an image row sees all n caption keys as ONE slot with key 0,
value = their mean, logit + log n. The caption therefore runs once, ahead of and apart from the image (`TextPass`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        mean = (v * mask_BT1).cumsum(1) / count_BT1
        return self.after(h_BTD, mean), mean[:, -1]

    def image(self, h_BLD: Tensor, slot_BD: Tensor, rope: Tensor, bias_B1QK: Tensor) -> Tensor:
        """Image rows over the slot and the image rows up to themselves."""
        q, k, v = self.qkv(h_BLD)
        slot = slot_BD.view(-1, self.heads, 1, self.head_dim)
        q, k = rotate(q, rope), rotate(k, rope)
        keys = torch.cat([torch.zeros_like(slot), k], 2)
        attended = F.scaled_dot_product_attention(q, keys, torch.cat([slot, v], 2), attn_mask=bias_B1QK)
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
        scale = config.caption_dim**-0.5
        self.uncond_embedding: Tensor
        self.register_buffer("uncond_embedding", torch.randn(config.cls_token_num, config.caption_dim) * scale)


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


class GPT(nn.Module):
    """The transformer; see the module docstring for how it differs from the published code and why it is exact."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = _CaptionEmbedder(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.apply(_initialise)
        nn.init.zeros_(self.output.weight)
        self.rope: Tensor
        self.register_buffer("rope", rope_table(config), persistent=False)

    def unconditional(self, mask_BT: Tensor) -> Tensor:
        """Unconditional caption features (B, T, C): the last T rows of the buffer (captions are right-aligned)."""
        rows = self.cls_embedding.uncond_embedding[-mask_BT.shape[1] :]
        return rows.expand(mask_BT.shape[0], *rows.shape)

    def text_pass(self, features_BTC: Tensor, mask_BT: Tensor) -> TextPass:
        """Run left-padded caption features (B, T, caption_dim) through all layers.

        Masked rows never reach another row, so callers trim T to the longest caption; that is exact.
        """
        h = self.cls_embedding.cap_proj(features_BTC)
        mask = mask_BT.unsqueeze(-1).to(h.dtype)
        count = mask.cumsum(1).clamp(min=1)
        slots = []
        for layer in self.layers:
            h, slot = layer.text(h, mask, count)
            slots.append(slot)
        return TextPass(tuple(slots), count[:, -1, 0].float().log(), h[:, -1])

    def forward(self, text: TextPass, ids_BN: Tensor) -> Tensor:
        """Teacher-forced logits (B, N, V) in float32: position j is predicted from the caption and ids[:, :j]."""
        h = self.tok_embeddings(ids_BN[:, :-1])
        rope, bias = self.rope[: h.shape[1]], _bias(text.log_count, h.shape[1]).to(h.dtype)
        for layer, slot in zip(self.layers, text.slots, strict=True):
            h = layer.image(h, slot, rope, bias)
        h = torch.cat([text.last.unsqueeze(1), h], 1)
        return self.output(self.norm(h)).float()


def _bias(log_count_B: Tensor, length: int) -> Tensor:
    """Additive mask (B, 1, L, 1 + L): log n on the caption slot, 0 up to the diagonal, -inf beyond it."""
    causal = torch.full((length, length), float("-inf"), device=log_count_B.device).triu(1)
    slot = log_count_B.view(-1, 1, 1, 1).expand(-1, 1, length, 1)
    return torch.cat([slot, causal.expand(len(log_count_B), 1, length, length)], -1)


def rope_table(config: GPTConfig) -> Tensor:
    """cos and sin of the image positions, (block_size, hd/2, 2): the first half of the pairs turns with the row."""
    grid = round(config.block_size**0.5)
    half = config.head_dim // 2
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
