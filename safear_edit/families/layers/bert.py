"""BERT's encoder, whose weights keep the names of the published files: what MiniLM is.

Equal bit for bit to transformers' BertModel on a CPU (a test compares them), which takes seconds to import: whoever
draws a single image of a mini would wait for them. Source: https://arxiv.org/abs/1810.04805, post-norm layers, learnt
positions, exact GELU; no dropout, for it only encodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class BertSizes:
    """Fields of a published config.json that the encoder needs, under their names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


def bert_sizes(config: Mapping[str, Any]) -> BertSizes:
    """Those of a published configuration; KeyError for one that lacks a field."""
    return BertSizes(**{field.name: config[field.name] for field in fields(BertSizes)})


class Bert(nn.Module):
    """Token ids (B, T) and mask (B, T), 1 where a token is read → states (B, T, C) after the last layer."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(sizes.vocab_size, width),
                "position_embeddings": nn.Embedding(sizes.max_position_embeddings, width),
                "token_type_embeddings": nn.Embedding(sizes.type_vocab_size, width),
                "LayerNorm": nn.LayerNorm(width, eps=sizes.layer_norm_eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(sizes) for _ in range(sizes.num_hidden_layers))})

    @property
    def words(self) -> nn.Embedding:
        """What looks the tokens up."""
        table = self.embeddings["word_embeddings"]
        assert isinstance(table, nn.Embedding)
        return table

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Every token looks at all that are read. A caption alone rounds otherwise than among longer ones (1e-6)."""
        kinds = self.embeddings["token_type_embeddings"](torch.zeros_like(ids))
        places = self.embeddings["position_embeddings"](torch.arange(ids.shape[1], device=ids.device))
        states = self.embeddings["LayerNorm"](self.words(ids) + kinds + places)
        seen = None if bool(mask.all()) else mask.bool()[:, None, None].expand(-1, -1, ids.shape[1], -1)
        for layer in self.encoder["layer"].children():
            states = layer(states, seen)
        return states


class _Layer(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        width, self.heads = sizes.hidden_size, sizes.num_attention_heads
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")}),
                "output": _Added(width, width, sizes.layer_norm_eps),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, sizes.intermediate_size)})
        self.output = _Added(sizes.intermediate_size, width, sizes.layer_norm_eps)

    def forward(self, states: Tensor, seen: Tensor | None) -> Tensor:
        project = self.attention["self"]
        q, k, v = (
            project.get_submodule(name)(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
        states = self.attention["output"](attended, states)
        return self.output(F.gelu(self.intermediate["dense"](states)), states)


class _Added(nn.Module):
    """What is added to the states, and the norm after it."""

    def __init__(self, width: int, out: int, eps: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(width, out), nn.LayerNorm(out, eps=eps)

    def forward(self, found: Tensor, states: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(found) + states)
