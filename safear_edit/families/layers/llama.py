"""Layers of Llama's form, run by hand: prompts once, then token by token over keys and values allocated once.

Janus, Emu3, Chameleon and Liquid draw and answer with this. `llama` is transformers' LlamaModel, or whatever has its
names: `layers` (input_layernorm, self_attn with q_proj, k_proj, v_proj, o_proj and head_dim, post_attention_layernorm,
mlp), `norm` and `rotary_emb`. Embeddings come in as the layers read them, scaled where a model scales them (Gemma).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.families.layers.half import attention

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries (R, H, L, hd), keys and values (R, K, L, hd)) → attended (R, H, L, hd)."""


@dataclass(frozen=True)
class Prefix:
    """Prompts after the language model: every layer's keys and values (U, K, T, hd), mask (U, T), last state (U, D)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor
    last: Tensor


def _angles(llama: Any, h_RLD: Tensor, positions_RL: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, (R, 1, L, hd), as the model's own rotary module gives them."""
    cos, sin = llama.rotary_emb(h_RLD, positions_RL)
    return cos.unsqueeze(1), sin.unsqueeze(1)


def _turn(x_RHLd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_RHLd.chunk(2, -1)
    return x_RHLd * cos + torch.cat([-b, a], -1) * sin


def _through(llama: Any, h_RLD: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
    """All layers and the last norm, (R, L, D). Modules are called, so adapters apply; `attend` may keep k and v."""
    for i, layer in enumerate(llama.layers):
        own, x = layer.self_attn, layer.input_layernorm(h_RLD)
        q, k, v = (
            project(x).unflatten(-1, (-1, own.head_dim)).transpose(1, 2)
            for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        attended = attend(i, _turn(q, *angles), _turn(k, *angles), v)
        h_RLD = h_RLD + own.o_proj(attended.transpose(1, 2).flatten(2))
        h_RLD = h_RLD + layer.mlp(layer.post_attention_layernorm(h_RLD))
    return llama.norm(h_RLD)


def _attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    return attention(q, k, v, seen, grouped=q.shape[1] != k.shape[1])


def read_prompts(llama: Any, h_UTD: Tensor, mask_UT: Tensor) -> Prefix:
    """Run left-padded prompt embeddings once; a prompt's positions count its own tokens, whatever stands beside it."""
    keys, values = list[Tensor](), list[Tensor]()
    length = mask_UT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=h_UTD.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=h_UTD.device)  # a pad sees itself: a softmax needs something
    seen = (causal & mask_UT[:, None, None] | itself).expand(-1, 1, -1, -1)

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(k)
        values.append(v)
        return _attention(q, k, v, seen)

    h = _through(llama, h_UTD, _angles(llama, h_UTD, positions(mask_UT)), attend)
    return Prefix(tuple(keys), tuple(values), mask_UT, h[:, -1])


def read_on(llama: Any, prefix: Prefix, h_ULD: Tensor) -> Tensor:
    """States (U, L, D) of L further tokens per prompt, differentiable; the prefix stays as it is."""
    rows, length = h_ULD.shape[:2]
    mask = torch.cat([prefix.mask, prefix.mask.new_ones(rows, length)], 1)
    causal = torch.ones(length, mask.shape[1], dtype=torch.bool, device=mask.device).tril(prefix.mask.shape[1])
    seen = causal & mask[:, None, None]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = torch.cat([prefix.keys[layer], k], 2), torch.cat([prefix.values[layer], v], 2)
        return _attention(q, keys, values, seen)

    return _through(llama, h_ULD, _angles(llama, h_ULD, positions(mask)[:, -length:]), attend)


def positions(mask_RT: Tensor) -> Tensor:
    """Places (R, T) that count a row's own tokens only; pads before the first have place 0."""
    return (mask_RT.long().cumsum(1) - 1).clamp(min=0)


class Cache:
    """Keys and values of all layers, (R, K, T + room, hd) each; allocated once, never moved.

    A single query row goes through batched matrix products over views of the filled part, the query heads that share
    a key head together.
    """

    def __init__(self, llama: Any, prefix: Prefix, rows_R: Tensor, room: int) -> None:
        self.llama, self.filled = llama, prefix.mask.shape[1]
        self.keys, self.values = ([F.pad(t[rows_R], (0, 0, 0, room)) for t in x] for x in (prefix.keys, prefix.values))
        mask = prefix.mask[rows_R]
        hidden = torch.zeros(mask.shape, dtype=prefix.last.dtype, device=mask.device).masked_fill(~mask, float("-inf"))
        heads = self.keys[0].shape[1]
        self.bias = F.pad(hidden, (0, room)).repeat_interleave(heads, 0).unsqueeze(1)
        self.skipped = (~mask).sum(1)
        everywhere = torch.arange(self.filled + room, device=mask.device).unsqueeze(0)
        self.angles = tuple(t[0, 0] for t in _angles(self.llama, prefix.last, everywhere))

    def step(self, h_RD: Tensor) -> Tensor:
        """The next token of every row through all layers; its state (R, D)."""
        cos, sin = (table[self.filled - self.skipped][:, None, None] for table in self.angles)
        h = _through(self.llama, h_RD.unsqueeze(1), (cos, sin), self._attend)
        self.filled += 1
        return h[:, 0]

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keys[layer][:, :, self.filled] = k[:, :, 0]
        self.values[layer][:, :, self.filled] = v[:, :, 0]
        end, width = self.filled + 1, q.shape[-1]
        keys, values = (x[layer].flatten(0, 1)[:, :end] for x in (self.keys, self.values))
        rows = q.reshape(len(keys), -1, width)
        score = torch.baddbmm(self.bias[..., :end], rows, keys.transpose(1, 2), alpha=width**-0.5)
        return torch.bmm(score.softmax(-1, dtype=torch.float32).type_as(values), values).view_as(q)
