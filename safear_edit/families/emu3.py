"""Emu3: one transformer that says images row by row, in the vocabulary of its words.

Source of the semantics: https://github.com/baaivision/Emu3 (image_generation.py, multimodal_understanding.py and
emu3/mllm/processing_emu3.py) and transformers' Emu3ForConditionalGeneration, whose network this file uses. There are
two published sets of weights: Gen was tuned to draw, Chat to answer; either can do both here, the other one badly.

An image of h x w tokens is: image start, "h*w" in digits, image token, then h rows of w visual tokens, each followed
by an end-of-line token; after them come end of frame and end of image. The end-of-line tokens are part of the prompt
format and not of the ids of this family: they are fed, never drawn. Guidance leads away from a fixed list of flaws,
in a prompt of its own.

Verified (tests, on tiny random weights): transformers' forward pass gives the same logits over the same sequence,
transformers' `generate` with the published constraint draws the same greedy images with and without guidance and
gives the same answers, transformers' processor puts the same sequence around an image, both load the exported folder.
Not verified: no published weights can be had here, so nothing was drawn with them, and no numbers of the original
program were recorded. The prompt format is read from its source; transformers' own example differs in the negative
prompt (no image mark) and its chat template in a full stop, and there this file follows the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.families.base import Sampling
from safear_edit.families.folder import AGAIN, json_file
from safear_edit.families.language import PICO_TEXT, Net, Words
from safear_edit.families.reference import Variant
from safear_edit.families.unified import PICO_CODES, EarlyFusion, Settings, Template
from safear_edit.files.weights import Renamed, places
from safear_edit.registry import family

SCALES = "preprocessor_config.json"
PRAISED = "{text} masterpiece, film grained, best quality."
UNWANTED = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""What the published program puts after every prompt, and what its guidance leads away from."""

RENAMED = (
    ("text_model.lm_head.", "lm_head."),
    ("text_model.model.", "model.text_model."),
    ("vqmodel.", "model.vqmodel."),
)
"""Beginnings of names, in the published folders and now; transformers renames them in the same way when it loads."""


class Emu3Settings(Settings):
    """The published program's: guidance 3, the best 2048 tokens, 720 x 720 pixels."""

    family: Literal["emu3"] = "emu3"
    licence: str = "Apache-2.0"
    sampling: Sampling = Sampling(3.0, top_k=2048)
    template: Template = Template(
        draw=PRAISED,
        unwanted=UNWANTED,
        ask="You are a helpful assistant. USER: {image}{text}. ASSISTANT:",
        reply=" ",
        describe="Please describe the image",
    )
    image_size: int = Field(default=720, gt=0)


@family("emu3")
class Emu3(EarlyFusion):
    """Emu3: draws row by row and answers questions about images (https://arxiv.org/abs/2409.18869)."""

    name = "emu3"
    provides = frozenset({"codebook", "understanding", "captioning"})
    variants: ClassVar = {
        "gen": Variant(
            "published 8B tuned to draw, 720 px",
            also=("BAAI/Emu3-Gen",),
            files=("config.json", "tokenizer.json", "model.safetensors.index.json"),
            more=("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
            licence="Apache-2.0",
        ),
        "chat": Variant(
            "published 8B tuned to answer",
            also=("BAAI/Emu3-Chat",),
            files=("config.json", "tokenizer.json", "model.safetensors.index.json"),
            more=("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
            licence="Apache-2.0",
        ),
    }
    model_types = ("emu3",)
    layouts: ClassVar = {
        "transformers": "transformers' Emu3ForConditionalGeneration.from_pretrained(this folder) loads without a "
        "missing key",
    }
    settings_type = Emu3Settings
    layers_at = "model.text_model."
    special: ClassVar[Mapping[str, str]] = {
        "bos": "<|extra_203|>",
        "eos": "<|extra_204|>",
        "pad": "<|endoftext|>",
        "boi": "<|image start|>",
        "begin": "<|image token|>",
        "eol": "<|extra_200|>",
        "eof": "<|extra_201|>",
        "eoi": "<|image end|>",
        "image": "<image>",
    }
    pico_sizes: ClassVar[Mapping[str, Any]] = {
        "text_config": {**PICO_TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        "vq_config": {
            "codebook_size": PICO_CODES,
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [2],
            "hidden_size": 32,
        },
    }

    pico_settings: ClassVar[Mapping[str, Any]] = {"image_size": 16}
    settings: Emu3Settings

    def __init__(
        self, net: Net, words: Words, files: Mapping[str, bytes], settings: Settings, variant: str, where: str
    ) -> None:
        self.scale = _scale(files, where)
        super().__init__(net, words, files, settings, variant, where)

    # -- the network --

    @classmethod
    def read_config(cls, data: Mapping[str, Any]) -> Any:
        from transformers import Emu3Config

        return Emu3Config.from_dict(dict(data))

    @classmethod
    def build(cls, config: Any, dtype: torch.dtype) -> Net:
        from transformers import Emu3ForConditionalGeneration

        return Emu3ForConditionalGeneration._from_config(config, dtype=dtype)

    @classmethod
    def own_weights(
        cls, weights: Mapping[str, Tensor], folder: Path, stack: ExitStack
    ) -> tuple[Mapping[str, Tensor], list[Path]]:
        """The published folders were written when transformers had other names: text_model.model, vqmodel."""

        def renamed(name: str) -> str:
            found = (new + name.removeprefix(old) for old, new in RENAMED if name.startswith(old))
            return next(found, name)

        return Renamed(places(weights, renamed)), []

    @classmethod
    def image_names(cls, count: int) -> list[str]:
        return [f"<|visual token {code:06d}|>" for code in range(count)]

    @property
    def transformer(self) -> Any:
        return self.net.model.text_model

    @property
    def image_size(self) -> int:
        return self.settings.image_size

    # -- the format --

    @property
    def end_of_row(self) -> int:
        return self.words["eol"]

    def _begin(self) -> list[int]:
        return [self.words.boi, *self.words.encode(f"{self.side}*{self.side}"), self.words["begin"]]

    def drawing_ids(self, prompt: str | None) -> list[int]:
        words = self.template.unwanted if prompt is None else self.template.draw.replace("{text}", prompt)
        return [self.words.bos, *self.words.encode(words or ""), *self._begin()]

    def frame(self) -> tuple[list[int], list[int]]:
        return self._begin(), [self.words["eof"], self.words.eoi]

    # -- the tokenizer --

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of the card's image size to ids (B, N): the nearest codebook row, in float32."""
        middle, spread = self.scale.to(self.device)
        vq, parts = self.net.model.vqmodel.eval(), []
        for part in self._checked(images).split(self.rows_per_batch):
            scaled = (part.to(self.device).float() / 255 - middle) / spread
            sizes = torch.tensor([part.shape[2:]] * len(part))
            parts.append(torch.stack(vq.encode(scaled, sizes).image_tokens).flatten(1))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, N) to uint8 (B, 3, H, W); fractions of a level are cut off, as upstream does."""
        middle, spread = self.scale.to(self.device)
        vq, parts = self.net.model.vqmodel.eval(), []
        for part in ids.to(self.device).unflatten(1, (self.side, self.side)).split(self.rows_per_batch):
            drawn = vq.decode(part) * spread + middle
            parts.append((drawn * 255).clamp(0, 255).to(torch.uint8))
        return torch.cat(parts)


def _scale(files: Mapping[str, bytes], where: str) -> Tensor:
    """Mean and deviation by which the model's files say that images are scaled, (2, 3, 1, 1)."""
    settings = json_file(files, SCALES, where)
    found = [settings.get(f"image_{kind}", [0.5, 0.5, 0.5]) for kind in ("mean", "std")]
    try:
        scale = torch.tensor(found, dtype=torch.float32).view(2, 3, 1, 1)
    except (TypeError, ValueError, RuntimeError):  # no numbers, lists of several lengths, another count
        scale = torch.zeros(2, 3, 1, 1)
    if not bool(scale.isfinite().all()) or bool((scale[1] <= 0).any()):
        expected = "three numbers each in image_mean and image_std, those above 0"
        raise UsageError(f"{where}/{SCALES}", expected, repr(found)[:80], AGAIN)
    return scale
