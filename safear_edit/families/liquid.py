"""Liquid: Gemma 7B whose vocabulary goes on with the codes of Chameleon's image tokenizer.

Source of the semantics: https://arxiv.org/abs/2412.04332 and https://github.com/FoundationVision/Liquid
(evaluation/inference_t2i.py, inference_i2t.py, liquid/expand_vocabulary.py, TRAIN.md), and transformers'
GemmaForCausalLM, whose network this file uses. The release (Junfeng5/Liquid_V1_7B) is a folder in transformers' layout
for that class; the tokenizer is Chameleon's `vqgan.ckpt` and `vqgan.yaml`, to be put beside it (vqgan.py here; without
the yaml its sizes are the release's). Code c has vocabulary id c + the number of words, and no name.

A drawing prompt is: begin of sequence, the words, one fixed sentence, begin of image; guidance leads away from a
prompt that is the token <unconditional> alone. An image is 32 x 32 tokens without row ends. A question is Gemma's
user turn with the image before the words. <unused3> only holds the image's place there, and is never read.

Gemma multiplies embeddings by the square root of their width when it reads them. The image table holds the rows as the
published layout has them, so what is read for an image token is its row times that. Gemma's output layer is its
embedding; here the two are apart, so that an edit of what is read leaves what is said as it was, and so the export
says `tie_word_embeddings: false`.

Verified (tests, on tiny random weights): transformers' GemmaForCausalLM, loaded from the exported folder, gives the
same logits over the same ids, the same greedy images in the published program's loop with guidance, and the same
answers; transformers' ChameleonVQVAE the same codes; once, by hand, the codes and images of the vqgan.py in the
original program.
Not verified: no published weights or tokenizer files can be had here, so nothing was drawn with them, and no numbers of
the original program were recorded. Names of special tokens, offset of the codes, prompt format and defaults of sampling
are read from its source. Its way to make an image square before a question (grey bars) is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import yaml
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.families.base import Sampling
from safear_edit.families.folder import AGAIN
from safear_edit.families.language import PICO_TEXT, Net
from safear_edit.families.reference import Variant
from safear_edit.families.tokenizers.vqgan import AT, FILES, PICO_SIZES, Decoder, tokenizer_places
from safear_edit.families.unified import EarlyFusionVQGAN, Settings, Template
from safear_edit.files.atomic import write_atomic
from safear_edit.files.strict import read_yaml
from safear_edit.files.weights import Renamed, places, write_weights
from safear_edit.registry import family

SIZES = "vqgan.yaml"
OUTER = {"embed_dim": "embed_dim", "n_embed": "num_embeddings"}
INNER = {
    "double_z": "double_latent",
    "z_channels": "latent_channels",
    "resolution": "resolution",
    "in_channels": "in_channels",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "dropout": "dropout",
}
"""Names of sizes in vqgan.yaml (model.params, and ddconfig in it), and in transformers' configuration."""


class LiquidSettings(Settings):
    """The published program's: guidance 7, temperature 0.99, the best 4096 tokens, top-p 0.96."""

    family: Literal["liquid"] = "liquid"
    licence: str = "MIT (code); Gemma Terms of Use (weights)"
    sampling: Sampling = Sampling(7.0, temperature=0.99, top_k=4096, top_p=0.96)
    template: Template = Template(
        draw="{text} Generate an image based on this description.",
        unwanted="<unconditional>",
        ask="<start_of_turn>user\n{image}\n{text}<end_of_turn>\n<start_of_turn>model\n",
        describe="Describe this image thoroughly.",
    )


def read_sizes(file: Path) -> dict[str, Any]:
    """The tokenizer's sizes in a vqgan.yaml, under transformers' names; empty (the release's) without the file."""
    if not file.is_file():
        return {}
    found: Any = read_yaml(file).data
    for key in ("model", "params"):
        found = found.get(key) if isinstance(found, Mapping) else None
    inner = found.get("ddconfig") if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(inner, Mapping):
        raise UsageError(str(file), "model.params with a ddconfig", "none", AGAIN)
    parts = ((OUTER, found), (INNER, inner))
    return {new: part[old] for names, part in parts for old, new in names.items() if old in part}


def written_sizes(config: Any) -> str:
    """The reverse: a vqgan.yaml that says these sizes."""
    outer, inner = ({old: getattr(config, new) for old, new in names.items()} for names in (OUTER, INNER))
    inner = {**inner, "ch_mult": list(config.channel_multiplier), "out_ch": config.in_channels}
    inner["attn_resolutions"] = list(config.attn_resolutions or ())
    return yaml.safe_dump({"model": {"params": {**outer, "ddconfig": inner}}}, sort_keys=False)


@family("liquid")
class Liquid(EarlyFusionVQGAN):
    """Liquid: Gemma that draws and answers questions about images (https://arxiv.org/abs/2412.04332)."""

    name = "liquid"
    provides = frozenset({"codebook", "understanding", "captioning"})
    variants: ClassVar = {
        "7b": Variant(
            "published 7B, 512 px: draws, answers (vqgan.yaml if there is one)",
            files=("config.json", "tokenizer.json", "model.safetensors.index.json", "vqgan.ckpt"),
            more=("generation_config.json", "tokenizer_config.json", "vqgan.yaml"),
            also=("Junfeng5/Liquid_V1_7B",),
            licence="MIT (code); Gemma Terms of Use (weights)",
        ),
    }
    model_types = ("gemma",)
    layouts: ClassVar = {
        "transformers": "in github.com/FoundationVision/Liquid, evaluation/: python inference_t2i.py --model_path "
        "(this folder), with the release's chameleon/vqgan.ckpt, which no edit changes",
    }
    settings_type = LiquidSettings
    layers_at = "model."
    special: ClassVar[Mapping[str, str]] = {
        "bos": "<bos>",
        "eos": "<eos>",
        "pad": "<pad>",
        "boi": "<boi>",
        "eoi": "<eoi>",
        "image": "<unused3>",
        "unconditional": "<unconditional>",
        "turn": "<start_of_turn>",
        "turn_end": "<end_of_turn>",
    }
    pico_sizes: ClassVar[Mapping[str, Any]] = {**PICO_TEXT, "head_dim": 32, "vq_config": PICO_SIZES}

    # -- the network --

    @classmethod
    def whole_config(cls, data: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        return {**data, "vq_config": read_sizes(folder / SIZES)}

    @classmethod
    def read_config(cls, data: Mapping[str, Any]) -> Any:
        from transformers import ChameleonVQVAEConfig, GemmaConfig

        own = {key: value for key, value in data.items() if key not in ("vq_config", "vocabulary_map")}
        config = GemmaConfig.from_dict(own)
        config.vq_config = ChameleonVQVAEConfig(**data["vq_config"])
        return config

    @classmethod
    def build(cls, config: Any, dtype: torch.dtype) -> Net:
        from transformers import GemmaForCausalLM
        from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

        sizes = vars(config).pop("vq_config")  # a Gemma's config.json has no place for it
        net = GemmaForCausalLM._from_config(config, dtype=dtype)
        if not hasattr(net.get_input_embeddings(), "embed_scale"):
            raise ImportError("a transformers whose Gemma scales embeddings where it looks them up (5) is needed")
        net.model.vqmodel = ChameleonVQVAE(sizes)
        net.model.vqmodel.decoder = Decoder(sizes)
        return net

    @classmethod
    def own_weights(
        cls, weights: Mapping[str, Tensor], folder: Path, stack: ExitStack
    ) -> tuple[Mapping[str, Tensor], list[Path]]:
        """With the image tokenizer's, which is a file of its own."""
        tokenizer, file = tokenizer_places(folder, stack, "tokenizer", "Liquid is released without it")
        return Renamed(places(weights) | tokenizer), [file]

    def write_own(self, weights: dict[str, Tensor], directory: Path) -> dict[str, Tensor]:
        """The image tokenizer to its own file, and its sizes."""
        tokenizer = {name.removeprefix(AT): tensor for name, tensor in weights.items() if name.startswith(AT)}
        write_weights(directory / FILES[0], tokenizer, {"format": "pt"})
        write_atomic(directory / SIZES, written_sizes(self.net.model.vqmodel.config))
        return {name: tensor for name, tensor in weights.items() if not name.startswith(AT)}

    @classmethod
    def image_names(cls, count: int) -> list[str]:
        return []

    def image_places(self, where: str) -> Tensor:
        """The codes follow the words, in their order."""
        words, count = self.words.tokenizer.get_vocab_size(), self.net.model.vqmodel.quantize.num_embeddings
        if (size := self.net.get_input_embeddings().num_embeddings) < words + count:
            got = f"a vocabulary of {size}"
            raise UsageError(f"{where}: vocab_size", f"{words} words and {count} codes", got, AGAIN)
        return torch.arange(words, words + count)

    @property
    def transformer(self) -> Any:
        return self.net.model

    def image_embeddings(self, ids: Tensor) -> Tensor:
        """Rows of the image table as Gemma reads rows of its embedding: times the square root of their width."""
        rows = super().image_embeddings(ids)
        scale: Tensor = self.net.get_input_embeddings().embed_scale
        return rows * scale.to(rows.dtype)

    # -- the format --

    def drawing_ids(self, prompt: str | None) -> list[int]:
        text = self.template.unwanted if prompt is None else self.template.draw.replace("{text}", prompt)
        return [self.words.bos, *self.words.encode(text or ""), self.words.boi]
