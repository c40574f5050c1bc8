"""Chameleon and Anole: one transformer that reads and says words and images in one vocabulary.

Source of the semantics: https://github.com/facebookresearch/chameleon (chameleon/inference) and transformers'
ChameleonForConditionalGeneration, whose network this file uses. Meta's release was tuned not to draw; Anole
(https://github.com/GAIR-NLP/anole) is the same network whose output rows of image tokens were tuned to. Both answer.

A drawing prompt is: begin of sequence, the words, end of turn, begin of image; guidance leads away from a prompt
without words and end of turn. An image is 32 x 32 tokens without row ends. transformers has no decoder for them, so
the one of the release's image tokenizer is built in vqgan.py. Its weights are `model.vqmodel.decoder.*` in a folder
that was converted with them (as Anole's), else in the release's `vqgan.ckpt`, put beside the weights; without either
nothing can be drawn, and `load` says so. transformers' scaling of images (0.0078 for 1 / 127.5) is not followed.

Verified (tests, on tiny random weights): transformers' forward pass gives the same states over the same sequence and
the same answers, its tokenizer the same codes, its from_pretrained loads the exported folder (and doesn't use the
decoder); once, by hand, our decoder against the release's vqgan.py on equal random weights.
Not verified: no published weights can be had here, so nothing was drawn with them, and no numbers of the original
program were recorded. The prompt format is read from its source. The checkpoint's split over several machines, which
the release has for 30B, is transformers' conversion to undo and not read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from safear_edit.families.base import Sampling
from safear_edit.families.language import PICO_TEXT, Net
from safear_edit.families.reference import Variant
from safear_edit.families.tokenizers.vqgan import AT, DECODER, PICO_SIZES, Decoder, tokenizer_places
from safear_edit.families.unified import EarlyFusionVQGAN, Settings, Template
from safear_edit.files.weights import Renamed, places
from safear_edit.registry import family

UNUSED = f"{AT}loss."
"""What only the training of the tokenizer read; the release's file and folders converted from it carry it along."""


class ChameleonSettings(Settings):
    """The published program's: guidance 3, temperature 0.7, top-p 0.9."""

    family: Literal["chameleon"] = "chameleon"
    licence: str = "Chameleon Research License"
    sampling: Sampling = Sampling(3.0, temperature=0.7, top_p=0.9)
    template: Template = Template(draw="{text}", ask="{image}{text}", describe="Describe this image.")


# -- layers, as llama.py calls them -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attention:
    """Queries and keys come out normalised head by head; with Swin's order, the result is normalised too."""

    layer: Any
    swin: bool

    @property
    def head_dim(self) -> int:
        return int(self.layer.self_attn.head_dim)

    def q_proj(self, x: Tensor) -> Tensor:
        own = self.layer.self_attn
        found: Tensor = own.q_norm(own.q_proj(x).unflatten(-1, (-1, self.head_dim))).flatten(-2)
        return found

    def k_proj(self, x: Tensor) -> Tensor:
        own = self.layer.self_attn
        found: Tensor = own.k_norm(own.k_proj(x).unflatten(-1, (-1, self.head_dim))).flatten(-2)
        return found

    def v_proj(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer.self_attn.v_proj(x)
        return found

    def o_proj(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer.self_attn.o_proj(x)
        return self.layer.input_layernorm(found) if self.swin else found


@dataclass(frozen=True)
class _Layer:
    """A Chameleon layer in a Llama layer's form: Swin's order has its norms after the parts, not before."""

    layer: Any
    swin: bool

    @property
    def self_attn(self) -> _Attention:
        return _Attention(self.layer, self.swin)

    def input_layernorm(self, x: Tensor) -> Tensor:
        return x if self.swin else self.layer.input_layernorm(x)

    def post_attention_layernorm(self, x: Tensor) -> Tensor:
        return x if self.swin else self.layer.post_attention_layernorm(x)

    def mlp(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer.mlp(x)
        return self.layer.post_attention_layernorm(found) if self.swin else found


@dataclass(frozen=True)
class _Llama:
    layers: list[_Layer]
    norm: Any
    rotary_emb: Any


# -- the family -------------------------------------------------------------------------------------------------------


@family("chameleon")
class Chameleon(EarlyFusionVQGAN):
    """Chameleon and Anole: draws (Anole) and answers questions about images (https://arxiv.org/abs/2405.09818)."""

    name = "chameleon"
    provides = frozenset({"codebook", "understanding", "captioning"})
    variants: ClassVar = {
        "7b": Variant(
            "published 7B, 512 px: answers; was tuned not to draw",
            files=("config.json", "tokenizer.json", "model.safetensors.index.json", "vqgan.ckpt"),
            more=("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
            licence="Chameleon Research License",
        ),
        "anole-7b": Variant(
            "Anole 7B, 512 px: draws, answers (with vqgan.ckpt, unless the shards hold its decoder)",
            files=("config.json", "tokenizer.json", "model.safetensors.index.json"),
            more=("generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "vqgan.ckpt"),
            licence="Chameleon Research License",
        ),
    }
    model_types = ("chameleon",)
    layouts: ClassVar = {
        "transformers": "transformers' ChameleonForConditionalGeneration.from_pretrained(this folder) loads without a "
        "missing key (it has no decoder for images, and leaves ours out)",
    }
    settings_type = ChameleonSettings
    layers_at = "model."
    special: ClassVar[Mapping[str, str]] = {
        "bos": "<s>",
        "eos": "</s>",
        "pad": "<pad>",
        "boi": "<racm3:break>",
        "eoi": "<eoss>",
        "turn": "<reserved08706>",
        "image": "<image>",
    }
    pico_sizes: ClassVar[Mapping[str, Any]] = {
        **PICO_TEXT,
        "vq_config": PICO_SIZES,
    }

    # -- the network --

    @classmethod
    def read_config(cls, data: Mapping[str, Any]) -> Any:
        from transformers import ChameleonConfig

        return ChameleonConfig.from_dict(dict(data))

    @classmethod
    def build(cls, config: Any, dtype: torch.dtype) -> Net:
        from transformers import ChameleonForConditionalGeneration

        net = ChameleonForConditionalGeneration._from_config(config, dtype=dtype)
        net.model.vqmodel.decoder = Decoder(config.vq_config).eval()
        return net

    @classmethod
    def own_weights(
        cls, weights: Mapping[str, Tensor], folder: Path, stack: ExitStack
    ) -> tuple[Mapping[str, Tensor], list[Path]]:
        """The decoder, where the weights lack it, from the release's tokenizer file, which is a pickle and read so."""
        found = places(weights, lambda name: None if name.startswith(UNUSED) else name)
        if any(name.startswith(DECODER) for name in found):
            return Renamed(found), []
        tokenizer, file = tokenizer_places(folder, stack, "decoder", "transformers' conversion leaves this part out")
        return Renamed(found | {n: place for n, place in tokenizer.items() if n.startswith(DECODER)}), [file]

    @classmethod
    def image_names(cls, count: int) -> list[str]:
        """IMGIMG, the code's digits as letters A to J, and Z."""
        return [f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z" for code in range(count)]

    @property
    def transformer(self) -> Any:
        return self.net.model

    @property
    def as_llama(self) -> Any:
        own, swin = self.net.model, bool(self.net.config.swin_norm)
        return _Llama([_Layer(layer, swin) for layer in own.layers], own.norm, own.rotary_emb)

    # -- the format --

    def drawing_ids(self, prompt: str | None) -> list[int]:
        words = self.words
        if prompt is None and self.template.unwanted is None:
            return [words.bos, words.boi]
        text = self.template.unwanted if prompt is None else self.template.draw.replace("{text}", prompt)
        return [words.bos, *words.encode(text or ""), words["turn"], words.boi]

    def after_question(self) -> list[int]:
        return [self.words["turn"]]

    def said(self, state: Tensor) -> Tensor:
        """Logits of words: image tokens can't be part of an answer, in transformers' forward pass neither."""
        return super().said(state).index_fill(-1, self._places, float("-inf"))

    @property
    def ends(self) -> tuple[int, ...]:
        """The end of the sequence, and the begin of an image: what follows it isn't words."""
        return (self.words.eos, self.words.boi)
