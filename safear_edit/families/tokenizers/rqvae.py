"""An image as residual codes, and the small transformer that says them: the parts under VILA-U's `vision_tower/`.

Source of the semantics: https://github.com/mit-han-lab/vila-u (vila_u/model/multimodal_encoder/), after residual
quantisation with a transformer over depth (https://arxiv.org/abs/2203.01941). An image is a square of places, each a
vector: the state of a SigLIP tower before its last layer. The first code of a place is the codebook row nearest to the
vector, the next one that nearest to what is left, and so on to the depth; all depths share one codebook, and a place
is the sum of its rows. The depth transformer says a place's codes one after the other: it reads the language model's
state first, then after each code the sum of the rows so far.

Module names are the published state-dict names. The tower is transformers' SiglipVisionModel without what nothing
reads (last layer, norm, pooling); the decoder of images is vqgan.py's, whose form and names the release has too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.folder import AGAIN
from safear_edit.families.tokenizers.vqgan import Decoder

TOWERS: Mapping[str, Mapping[str, int]] = {
    "google/siglip-large-patch16-256": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "image_size": 256,
    },
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 384,
    },
}
"""Sizes of the published towers. The release gives them by name only: its code asks a model hub for them."""
OWN_TOWER = "siglip_vision_config"
"""Key beside the published ones that holds a tower's sizes, for towers without a name; the published code skips it."""
CODEBOOK = "quantizer.codebooks.0.weight"
"""The rows of all codes, and one more at the end that only training used."""
VECTORS_AT_ONCE = 4096
"""Vectors compared with the codebook together; bounds memory."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values (n, H, L, hd) → attended (n, H, L, hd)."""


# -- the tokenizer of images ----------------------------------------------------------------------------------------


def tower_sizes(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sizes of the SigLIP tower that a configuration's `rqvaesiglip` section asks for; KeyError for an unknown name."""
    named = str(data.get("pretrained_model", next(iter(TOWERS))))
    own: Mapping[str, Any] | None = data.get(OWN_TOWER)
    return TOWERS[named] if own is None else own


def residual_codes(vectors_Nd: Tensor, rows_Vd: Tensor, depth: int) -> Tensor:
    """Codes (N, depth): the row nearest to each vector, then nearest to what each step leaves of it."""
    length, parts = rows_Vd.square().sum(1), list[Tensor]()
    for left in vectors_Nd.split(VECTORS_AT_ONCE):
        codes = list[Tensor]()
        for _ in range(depth):
            codes.append(torch.addmm(length, left, rows_Vd.T, alpha=-2.0).argmin(-1))
            left = left - rows_Vd[codes[-1]]
        parts.append(torch.stack(codes, 1))
    return torch.cat(parts)


class ResidualTokenizer(nn.Module):
    """Images to codes (B, P, D) and back, from the `rqvaesiglip` section of vision_tower/config.json.

    The decoder has vqgan.py's form; `decoder_latent_shape` stretches the square of places to what it wants (729
    places of a 384-pixel image are no power of two along a side).
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import ChameleonVQVAEConfig, SiglipVisionConfig, SiglipVisionModel

        sizes, drawn = tower_sizes(data), data["ddconfig"]
        seen = int(sizes["num_hidden_layers"]) - 1
        tower = SiglipVisionConfig(**{**sizes, "num_hidden_layers": seen, "vision_use_head": False})
        vision = SiglipVisionModel._from_config(tower)
        vision.post_layernorm = nn.Identity()
        self.siglip_model = nn.Module()
        self.siglip_model.vision_model = vision
        self.quantizer = nn.Module()
        codebook = nn.Embedding(int(data["n_embed"]) + 1, tower.hidden_size)
        self.quantizer.codebooks = nn.ModuleList([codebook])
        self.post_quant_conv = nn.Conv2d(int(data["embed_dim"]), int(drawn["z_channels"]), 1)
        self.decoder = Decoder(
            ChameleonVQVAEConfig(
                latent_channels=int(drawn["z_channels"]),
                resolution=int(drawn["resolution"]),
                base_channels=int(drawn["ch"]),
                channel_multiplier=list(drawn["ch_mult"]),
                num_res_blocks=int(drawn["num_res_blocks"]),
                attn_resolutions=list(drawn["attn_resolutions"]),
            )
        )
        high, wide, self.depth = (int(number) for number in data["code_shape"])
        stretched = data.get("decoder_latent_shape")
        self.stretched = None if stretched is None else (int(stretched[0]), int(stretched[1]))
        self.side, self.image_size, self.last_layer = high, int(sizes["image_size"]), seen
        self._refuse(data, wide, 2 ** (len(drawn["ch_mult"]) - 1))

    def _refuse(self, data: Mapping[str, Any], wide: int, growth: int) -> None:
        width = self.codebook.shape[1]
        fits = {
            "one codebook for all depths": bool(data.get("shared_codebook")),
            "a square of places": self.side == wide == self.image_size // self.vision.config.patch_size,
            "a vector for every place": list(data["latent_shape"]) == [self.side, wide, width],
            "one width of vectors": int(data["embed_dim"]) == width,
            "a decoder of 3 channels": int(data["ddconfig"].get("out_ch", 3)) == 3,
            "images of one size": {n * growth for n in self.stretched or (self.side, wide)} == {self.image_size},
        }
        if wrong := [name for name, fit in fits.items() if not fit]:
            raise UsageError("the image tokenizer's sizes", wrong[0], "sizes that disagree", AGAIN)

    @property
    def vision(self) -> Any:
        """The SigLIP tower."""
        return self.siglip_model.vision_model

    @property
    def codebook(self) -> Tensor:
        """The rows of the codes, (V, d)."""
        return self.get_parameter(CODEBOOK)[:-1]

    def vectors(self, pixels_B3HW: Tensor) -> Tensor:
        """What is quantised, (B, P, d): the tower's states before its last layer, of pixels in [-1, 1]."""
        state: Tensor = self.vision.embeddings(pixels_B3HW)
        for layer in self.vision.encoder.layers:
            state = layer(state, None)
        return state

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to codes (B, P, D)."""
        found = self.vectors(pixels_B3HW)
        codes = residual_codes(found.flatten(0, 1), self.codebook, self.depth)
        return codes.view(*found.shape[:2], self.depth)

    def decode(self, codes_BPD: Tensor) -> Tensor:
        """Codes to pixels (B, 3, H, W), about [-1, 1], not clamped."""
        places = F.embedding(codes_BPD, self.codebook).sum(2)
        z = places.transpose(1, 2).unflatten(2, (self.side, self.side))
        if self.stretched is not None:
            z = F.interpolate(z, size=self.stretched, mode="bilinear")
        found: Tensor = self.decoder(self.post_quant_conv(z))
        return found


# -- the depth transformer --------------------------------------------------------------------------------------------


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"{heads} heads for a width of {width}")
        self.heads = heads
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_nLE: Tensor, attend: Attend) -> Tensor:
        q, k, v = (
            project(x_nLE).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        found: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return found


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_nLE: Tensor, attend: Attend) -> Tensor:
        x_nLE = x_nLE + self.attn(self.ln1(x_nLE), attend)
        found: Tensor = x_nLE + self.mlp(self.ln2(x_nLE))
        return found


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class DepthTransformer(nn.Module):
    """From the language model's state at a place to the states that say its codes; the `rqtransformer` section."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__()
        width, head = int(data["embed_dim"]), data["head"]
        self.in_mlp_1 = nn.Linear(int(data["input_embed_dim_1"]), width)
        self.in_mlp_2 = nn.Linear(int(data["input_embed_dim_2"]), width)
        blocks = [_Block(width, int(head["block"]["n_head"])) for _ in range(int(head["n_layer"]))]
        self.head_transformer = nn.Module()
        self.head_transformer.blocks = nn.ModuleList(blocks)
        self.pos_emb_d = nn.Parameter(torch.empty(1, int(data["block_size"][2]), width).normal_(std=0.02))
        self.classifier_mlp = nn.Module()
        self.classifier_mlp.layer_norm = nn.LayerNorm(width)
        self.classifier_mlp.linear = nn.Linear(width, int(data["vocab_size"]))

    @property
    def blocks(self) -> Any:
        """Its layers."""
        return self.head_transformer.blocks

    def forward(self, state_nC: Tensor, rows_nKd: Tensor) -> Tensor:
        """States (n, K + 1, E), after the last norm, that say the first K + 1 codes of n places.

        state: the language model's; rows: the table's rows of the first K codes.
        """
        h = torch.cat([self.in_mlp_2(state_nC).unsqueeze(1), self.in_mlp_1(rows_nKd.cumsum(1))], 1)
        h = h + self.pos_emb_d[:, : h.shape[1]]
        for block in self.blocks:
            h = block(h, _causal)
        return self.normed(h)

    def normed(self, h: Tensor) -> Tensor:
        """The norm before the output layer."""
        found: Tensor = self.classifier_mlp.layer_norm(h)  # type: ignore[operator]
        return found

    def logits(self, h: Tensor) -> Tensor:
        """States after the norm to logits of codes (…, V)."""
        found: Tensor = self.classifier_mlp.linear(h)  # type: ignore[operator]
        return found


class DepthCache:
    """One place's codes one after the other: keys and values are allocated once and written over place by place."""

    def __init__(self, net: DepthTransformer, rows: int) -> None:
        self.net, self.filled = net, 0
        depth, width = net.pos_emb_d.shape[1:]
        heads = net.blocks[0].attn.heads if len(net.blocks) else 1
        shape = (len(net.blocks), rows, heads, depth, width // heads)
        self.keys, self.values = (net.pos_emb_d.new_empty(shape) for _ in range(2))

    def first(self, state_RC: Tensor) -> Tensor:
        """The state (R, E) that says a new place's first code."""
        self.filled = 0
        return self._step(self.net.in_mlp_2(state_RC))

    def next(self, total_Rd: Tensor) -> Tensor:
        """The state (R, E) that says the code after those whose rows sum to `total`."""
        return self._step(self.net.in_mlp_1(total_Rd))

    def _step(self, x_RE: Tensor) -> Tensor:
        h = (x_RE + self.net.pos_emb_d[:, self.filled]).unsqueeze(1)
        for layer, block in enumerate(self.net.blocks):
            h = block(h, partial(self._attend, layer))
        self.filled += 1
        return self.net.normed(h[:, 0])

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.filled], values[:, :, self.filled] = k[:, :, 0], v[:, :, 0]
        end = self.filled + 1
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])


# -- published names --------------------------------------------------------------------------------------------------

_VISION = "rqvaesiglip.siglip_model.vision_model"
UNREAD = (
    "rqvaesiglip.logit_",
    "rqvaesiglip.siglip_model.logit_",
    "rqvaesiglip.siglip_model.text_model.",
    f"{_VISION}.head.",
    f"{_VISION}.post_layernorm.",
)
"""Published tensors that neither drawing nor answering reads."""


def names_read(weights: Mapping[str, Tensor], last_layer: int, where: str) -> list[str]:
    """The tensors of vision_tower/ that are read. The codebook, saved once per depth or once in all, becomes one.

    UsageError if the depths have codebooks of their own.
    """
    unread, first = (*UNREAD, f"{_VISION}.encoder.layers.{last_layer}."), f"rqvaesiglip.{CODEBOOK}"
    found: list[str] = []
    for name in weights:
        if name.startswith("rqvaesiglip.quantizer.codebooks.") and name != first:
            same = not name.endswith(".weight") or (first in weights and torch.equal(weights[name], weights[first]))
            if not same:
                raise UsageError(f"{where}: {name}", "one codebook for all depths", "another than the first", AGAIN)
        elif not name.startswith(unread):
            found.append(name)
    return found
