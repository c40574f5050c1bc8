"""VILA-U: a Llama that draws, and sees, images as places of several residual codes each.

Source of the semantics: https://arxiv.org/abs/2409.04429 and https://github.com/mit-han-lab/vila-u (vila_u/model/,
vila_u/utils/tokenizer.py, vila_u/conversation.py, inference.py, and its replaced transformers 4.36). The language model
is transformers' LlamaForCausalLM; rqvae.py has the tokenizer of images and the depth transformer. The release is a
folder with config.json and the folders llm/, vision_tower/ and mm_projector/, each with a config.json and weights.

An image is P places of D codes. Its ids are flat, (B, P * D): the codes of the first place, then those of the second.
What the language model reads for a place is the projector's output for the sum of the place's codebook rows, whether
the place was drawn or seen; its state before a place goes to the depth transformer, which says the codes. So one table
of rows feeds codes back, both within a place and from place to place: `image_tokens.weight`. It starts as the
tokenizer's codebook, which stays as it is for quantising and decoding. A hidden state here is the depth transformer's.

A drawing prompt is Vicuna's: system sentence, "USER: ", the words, " ASSISTANT: ", begin of image. Guidance leads away
from the same without words, "USER:ASSISTANT: ". A question has the image where "<image>" stands, with nothing around
it, as the published `generate_content` does (its training put <im_start> and <im_end> there); the words before and
after it are tokenised apart, so a "▁" begins the part after it.

Verified (tests, against numbers recorded from the release's own code and its replaced transformers 4.36.2, which ran in
float32 from a folder that `export` wrote, on tiny weights; flash attention and .cuda() had stand-ins, its hard-coded
bfloat16 was taken out, and its random draws were this package's): codes of images, images of codes, what the
language model reads for an image, guided logits and drawn ids under top-k and top-p, answers, ids of prompts and
questions, and of texts by its slow tokenizer. By hand, once: the same with places stretched for the decoder, as at 384
pixels; and a folder that the release's own `save_pretrained` wrote loads here and draws the same.
Not verified: no published weights, configurations or tokenizer files can be had here, so nothing was drawn with them;
which files the release holds is read from the code that writes it, sizes of its two SigLIP towers from public
descriptions of those. The published program runs the tokenizer of images in bfloat16, here it is float32, so a code
near a border may differ. Not reproduced: its loop also samples a word per place, which it has no use for, but which can
end a batch early (end of sequence) or be read instead of the image (<im_start>). Its resizing of an image before a
question is left to the caller, and answers are greedy where it samples (0.9, top-p 0.6). Video is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import SafearError, UsageError
from safear_edit.families.base import OWN, REPLACED, Condition, ModelCard, Sampling, select_modules
from safear_edit.families.folder import (
    AGAIN,
    TEXT_FILES,
    all_files,
    json_file,
    layers_in,
    no_place_for_table,
    plain_config,
    read_settings,
    weight_file,
    weights_name,
)
from safear_edit.families.language import PICO_TEXT, LanguageModel, Net, Pick, Read, Words, byte_tokenizer
from safear_edit.families.layers.llama import positions
from safear_edit.families.layers.spm import tokenizer_json
from safear_edit.families.reference import ModelRef, Variant
from safear_edit.families.sampling import Chooser, inverse_cdf, uniforms
from safear_edit.families.tokenizers.rqvae import (
    CODEBOOK,
    OWN_TOWER,
    DepthCache,
    DepthTransformer,
    ResidualTokenizer,
    names_read,
)
from safear_edit.families.unified import Settings, Template, read_words
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.strict import parse_json
from safear_edit.files.weights import Place, Renamed, filled, opened, write_weights
from safear_edit.registry import family

MOST_LAYERS = 4096
"""Of any part, so that a configuration is no reason to run out of memory before the weights are read."""
KIND = "vila_u_llama"
"""model_type of the release's config.json."""
LLM, TOWER, PROJECTOR = "llm", "vision_tower", "mm_projector"
PARTS: Mapping[str, Sequence[str]] = {
    "": ("config.json",),
    LLM: ("config.json", "generation_config.json", *TEXT_FILES, "tokenizer.model", "added_tokens.json"),
    TOWER: ("config.json", "preprocessor_config.json"),
    PROJECTOR: ("config.json",),
}
"""Small files of the release by folder: kept, and written back byte for byte."""
TABLE = "image_tokens"
"""Embedding: the rows that feed codes back, in the order of the codebook."""
EXPORTED_TABLE = "image_table"
"""A tensor that the release doesn't have: see `VilaU.export`."""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
AT = {TOWER: "model.vision_tower.", PROJECTOR: "model.mm_projector."}
"""Where the parts' tensors are in the net's state dict; the language model's have their own names."""
PICTURE = "<image>"
"""What the published program puts into a question for the image; no token."""
SPECIAL = {
    "bos": "<s>",
    "eos": "</s>",
    "pad": "<unk>",
    "boi": "<im_start>",
    "eoi": "<im_end>",
    "image": "<unk>",
}
"""role → token. The one of `image` only holds an image's place in a question, and is never read."""

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
"""The words before every prompt that a published VILA-U saw."""


class VilaUSettings(Settings):
    """The published program's: guidance 3, the best 900 codes, top-p 0.96."""

    family: Literal["vila_u"] = "vila_u"
    licence: str = "MIT (code); Llama 2 Community License (language model)"
    sampling: Sampling = Sampling(3.0, top_k=900, top_p=0.96)
    template: Template = Template(
        draw=_SYSTEM + "USER: {text} ASSISTANT: ",
        unwanted=_SYSTEM + "USER:ASSISTANT: ",
        ask=_SYSTEM + "USER: {image}\n{text} ASSISTANT:",
        reply=" ",
        describe="Describe this image in detail.",
    )


# -- the network ------------------------------------------------------------------------------------------------------


class Projector(nn.Module):
    """From the sum of a place's rows to what the language model reads: `mlp<n>x_gelu` or `linear`."""

    def __init__(self, kind: str, inside: int, width: int) -> None:
        super().__init__()
        if kind == "linear":
            self.layers: nn.Module = nn.Linear(inside, width)
        elif found := re.fullmatch(r"mlp([1-9])x_gelu", kind):
            more = [layer for _ in range(int(found[1]) - 1) for layer in (nn.GELU(), nn.Linear(width, width))]
            self.layers = nn.Sequential(nn.Linear(inside, width), *more)
        else:
            raise UsageError(f"{PROJECTOR}/config.json: mm_projector_type", "mlp2x_gelu", repr(kind), AGAIN)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.layers(rows)
        return found


def build(configs: Mapping[str, Mapping[str, Any]], dtype: torch.dtype, where: str) -> Net:
    """The network of the folders' configurations, random, in `dtype`; its tokenizer is frozen, and float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        config = LlamaConfig.from_dict(plain_config(configs[LLM]))
        config.tie_word_embeddings = False
        tokenizer = ResidualTokenizer(configs[TOWER]["rqvaesiglip"])
        depth = DepthTransformer(configs[TOWER]["rqtransformer"])
        count, width = tokenizer.codebook.shape
        kind = str(configs[PROJECTOR]["mm_projector_type"])
        projector = Projector(kind, width, config.hidden_size)
        fits = {
            "a depth transformer of the image's codes": depth.pos_emb_d.shape[1] == tokenizer.depth
            and depth.logits(depth.pos_emb_d).shape[-1] == count
            and depth.in_mlp_1.in_features == width,
            "a depth transformer that reads the language model": depth.in_mlp_2.in_features == config.hidden_size,
        }
        if wrong := [name for name, fit in fits.items() if not fit]:
            raise UsageError(where, wrong[0], "sizes that disagree", AGAIN)
        net: Any = LlamaForCausalLM._from_config(config, dtype=dtype)
    except SafearError:
        raise
    except Exception as error:  # the configuration classes raise what they like, from KeyError to own types
        got = " ".join(str(error).split())[:200]
        raise UsageError(where, "a VILA-U configuration", f"{type(error).__name__}: {got}", AGAIN) from None
    net.model.vision_tower = nn.Module()
    net.model.vision_tower.rqvaesiglip = tokenizer.float().requires_grad_(False)
    net.model.vision_tower.rqtransformer = depth.to(dtype)
    net.model.mm_projector = projector.to(dtype)
    net.add_module(TABLE, nn.Embedding(count, width, dtype=dtype))
    net.register_buffer(REPLACED, None, persistent=False)
    return net.eval()


# -- files ------------------------------------------------------------------------------------------------------------


def read_files(folder: Path) -> dict[str, bytes]:
    """The small files that are there, by their names in the folder."""
    names = [f"{part}/{name}".lstrip("/") for part, own in PARTS.items() for name in own]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def read_configs(files: Mapping[str, bytes], where: str) -> dict[str, Mapping[str, Any]]:
    """Every folder's config.json; UsageError for one that is missing, or for another model's."""
    found: dict[str, Mapping[str, Any]] = {}
    for part in PARTS:
        name = f"{part}/config.json".lstrip("/")
        data = parse_json(files[name].decode("utf-8", "replace"), f"{where}/{name}").data if name in files else None
        if not isinstance(data, Mapping):
            fix = "take the whole folder of the release, with llm/, vision_tower/ and mm_projector/"
            raise UsageError(f"{where}/{name}", "a configuration", "none", fix)
        found[part] = data
    if (kind := found[""].get("model_type")) != KIND:
        raise UsageError(f"{where}/config.json: model_type", KIND, repr(kind), AGAIN)
    return found


def vocabulary(files: Mapping[str, bytes], where: str) -> Words:
    """From tokenizer.model, which the published program reads, with the tokens that were added to it; else from
    tokenizer.json."""
    here, inside = f"{where}/{LLM}", {name.removeprefix(f"{LLM}/"): content for name, content in files.items()}
    if "tokenizer.model" in inside:
        config = json_file(inside, "tokenizer_config.json", here)
        added = {
            str(token.get("content")): int(number)
            for number, token in (config.get("added_tokens_decoder") or {}).items()
            if isinstance(token, Mapping) and str(number).isdigit()
        }
        own = json_file(inside, "added_tokens.json", here)
        added |= {name: number for name, number in own.items() if type(number) is int}
        inside["tokenizer.json"] = tokenizer_json(inside["tokenizer.model"], added, f"{here}/tokenizer.model")
    return read_words(inside, SPECIAL, here)


def read_parts(folder: Path, last_layer: int, stack: ExitStack) -> tuple[Renamed, dict[str, str]]:
    """Tensors under the net's names, to be read one by one while `stack` is open, and the sha256 of every weight
    file."""
    found, digests = dict[str, Place](), dict[str, str]()
    for part in (LLM, TOWER, PROJECTOR):
        path = weight_file(folder / part)
        weights = stack.enter_context(opened(path, allow_pickle=True))
        names = names_read(weights, last_layer, str(path)) if part == TOWER else list(weights)
        found |= {f"{AT.get(part, '')}{name}": Place(weights, name) for name in names}
        digests |= {f"{part}/{path.name}": sha256_file(path) for path in all_files(path)}
    if HEAD not in found and EMBEDDING in found:
        found[HEAD] = found[EMBEDDING]  # a tied output layer
    own, table, codebook = f"{AT[TOWER]}{EXPORTED_TABLE}", f"{TABLE}.weight", f"{AT[TOWER]}rqvaesiglip.{CODEBOOK}"
    if own in found:
        found[table] = found.pop(own)
    elif codebook in found:
        found[table] = replace(found[codebook], made=lambda rows: rows[:-1].clone())
    return Renamed(found), digests


# -- the family -------------------------------------------------------------------------------------------------------


@family("vila_u")
class VilaU(LanguageModel):
    """VILA-U: Llama that draws places of residual codes and answers questions (https://arxiv.org/abs/2409.04429).

    A dropped caption is the model's own prompt without words, whatever the caption's length was. The table that feeds
    codes back has the width of the codebook's rows, not the language model's: what the latter reads is no row per code.
    """

    name = "vila_u"
    provides = frozenset({"codebook", "understanding", "captioning"})
    variants: ClassVar = {
        "7b-256": Variant(
            "published 7B, 256 px, 4 codes per place: draws, answers",
            files=("config.json", "llm/config.json", "vision_tower/config.json", "mm_projector/config.json"),
            licence="MIT (code); Llama 2 Community License (language model)",
        ),
        "7b-384": Variant(
            "published 7B, 384 px, 16 codes per place: draws, answers",
            files=("config.json", "llm/config.json", "vision_tower/config.json", "mm_projector/config.json"),
            licence="MIT (code); Llama 2 Community License (language model)",
        ),
    }
    model_types = ("vila_u_llama",)
    layouts: ClassVar = {
        "upstream": "in github.com/mit-han-lab/vila-u: python inference.py --model_path (this folder) --prompt TEXT",
    }
    table_name = f"{TABLE}.weight"
    layers_at = "model."
    template: Template
    published: ClassVar[type[Settings]] = VilaUSettings

    def __init__(
        self, net: Net, words: Words, files: Mapping[str, bytes], settings: Settings, variant: str, where: str
    ) -> None:
        self.net, self.words, self.files, self.settings = net, words, files, settings
        self.sampling, self.template = settings.sampling, settings.template
        words.fitting(net.get_input_embeddings().num_embeddings, where)
        tokenizer = self.tokenizer
        self.places, self.depth = tokenizer.side**2, tokenizer.depth
        tokens, choices = self.places * self.depth, len(tokenizer.codebook)
        parameters = sum(p.numel() for name, p in net.named_parameters() if name != self.table_name)
        sizes = (tokenizer.image_size, tokens, choices, (tokens,), parameters)
        self.card = ModelCard(self.name, variant, *sizes, settings.licence, depth=self.depth)

    @property
    def stacks(self) -> tuple[tuple[int, int, int], ...]:
        """As the base class says: the language model reads places, the depth transformer their codes."""
        depth = self.depth_transformer
        return (*super().stacks, (len(depth.blocks), depth.pos_emb_d.shape[-1], self.card.tokens))

    @property
    def transformer(self) -> Any:
        return self.net.model

    @property
    def tokenizer(self) -> ResidualTokenizer:
        """Images to codes and back."""
        found: ResidualTokenizer = self.net.model.vision_tower.rqvaesiglip
        return found

    @property
    def depth_transformer(self) -> DepthTransformer:
        """What says the codes of a place."""
        found: DepthTransformer = self.net.model.vision_tower.rqtransformer
        return found

    # -- loading --

    @classmethod
    def load(cls, ref: ModelRef, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """A folder in the release's layout, as published or as `export` wrote it; the tokenizer stays in float32."""
        if (folder := ref.path) is None:
            fix = "give the folder that holds config.json, llm/, vision_tower/ and mm_projector/"
            raise UsageError(f"model {ref}", "a folder", "a name, and no such model comes with this package", fix)
        settings = read_settings(folder / "safear.json", cls.published, published=True)
        files = read_files(folder)
        configs = read_configs(files, str(folder))
        words = vocabulary(files, str(folder))
        if (layers := layers_in(configs)) > MOST_LAYERS:
            raise UsageError(f"{folder}: config.json", f"at most {MOST_LAYERS} layers", str(layers), AGAIN)
        with torch.device("meta"):
            last_layer = build(configs, dtype, str(folder)).model.vision_tower.rqvaesiglip.last_layer
        with ExitStack() as stack:
            weights, digests = read_parts(folder, last_layer, stack)
            net = filled(lambda: build(configs, dtype, str(folder)), layers, weights, str(folder), device=device)
        model = cls(net, words, files, settings, ref.variant, str(folder))
        model.card = replace(model.card, files=digests)
        return model

    @classmethod
    def pico(cls, seed: int = 0) -> Self:
        """16x16 pixels, 16 places of 4 codes, two layers, a token per byte of text, weights so large that every input
        matters."""
        text = byte_tokenizer(SPECIAL.values(), {role: SPECIAL[role] for role in ("bos", "eos", "pad")})
        words = read_words(text, SPECIAL, "pico")
        configs = {**PICO, LLM: {**PICO[LLM], "vocab_size": words.tokenizer.get_vocab_size()}}
        files = {f"{LLM}/{name}": content for name, content in text.items()}
        files |= {f"{part}/config.json".lstrip("/"): _json(config) for part, config in configs.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = build(configs, torch.float32, "pico")
            _spread(net)
        changes = {"licence": "Apache-2.0", "sampling": Sampling(2.0)}
        settings = VilaUSettings().model_copy(update=changes)
        model = cls(net, words, files, settings, "pico", "pico")
        content = b"".join(t.detach().numpy().tobytes() for t in net.parameters())
        model.card = replace(model.card, files={"pico": hashlib.sha256(content).hexdigest()})
        return model

    # -- prompts --

    def drawing_ids(self, prompt: str | None) -> list[int]:
        """A drawing prompt from bos to the mark that the image begins with; None, or no words: the unconditional."""
        words = (prompt or "").strip()
        text = self.template.draw.replace("{text}", words) if words else self.template.unwanted or ""
        return [self.words.bos, *self.words.encode(text), self.words.boi]

    def prompt_ids(self, prompts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Token ids (U, T) and mask (U, T) of drawing prompts, left-padded to the longest; None: unconditional."""
        return self._padded([self.drawing_ids(prompt) for prompt in prompts])

    def _rows(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Dropped images take the unconditional prompt."""
        if bool(condition.dropped.any()):
            ids, mask = self.prompt_ids([None])
            condition = condition.taking(self._embedded(ids), mask)
        return condition.in_use()

    # -- drawing and seeing --

    def rows_of(self, codes: Tensor) -> Tensor:
        """The table's rows of codes, (…, d)."""
        return F.embedding(codes, self.image_table())

    def projected(self, rows: Tensor) -> Tensor:
        """What the language model reads for places whose rows sum to these, (…, C)."""
        found: Tensor = self.net.model.mm_projector(rows)
        return found

    def image_embeddings(self, ids: Tensor) -> Tensor:
        """What the language model reads for whole places, ids (…, P * D) to (…, P, C)."""
        return self.projected(self.rows_of(ids.unflatten(-1, (-1, self.depth))).sum(-2))

    def image_logits(self, state: Tensor) -> Tensor:
        return self.depth_transformer.logits(state).float()

    def hidden(self, condition: Condition, ids: Tensor) -> Tensor:
        """States (B, N, E) of the depth transformer after its last norm: row j is what says code j.

        `ids` may be the first codes of images only, and end inside a place. One forward pass of transformers over
        prompt and places, then one of the depth transformer over all places at once.
        """
        text, mask, which = self._rows(condition)
        count = ids.shape[1]
        places = -(-count // self.depth)
        codes = F.pad(ids.to(self.device), (0, places * self.depth - count)).unflatten(1, (places, self.depth))
        rows = self.rows_of(codes)
        before = self.projected(rows[:, :-1].sum(2))
        seen = torch.cat([mask[which], mask.new_ones(before.shape[:2])], 1)
        state: Tensor = self.transformer(
            inputs_embeds=torch.cat([text[which], before], 1),
            attention_mask=seen.long(),
            position_ids=positions(seen),
            use_cache=False,
        ).last_hidden_state[:, text.shape[1] - 1 :]
        said: Tensor = self.depth_transformer(state.flatten(0, 1), rows[:, :, :-1].flatten(0, 1))
        return said.reshape(len(ids), places * self.depth, -1)[:, :count]

    def _draw(self, condition: Condition, seeds: Sequence[int], sampling: Sampling, prefix: Tensor | None) -> Tensor:
        draws = uniforms(seeds, self.card.tokens).to(self.device)
        read, which, without = self.read(condition, sampling.guidance > 1)
        choose = inverse_cdf(draws)
        return choose.checked(sample_places(self, read, which, without, sampling, choose, given=prefix))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of the card's image size to ids (B, P * D), in float32."""
        parts = self._checked(images).split(self.rows_per_batch)
        return torch.cat([self.tokenizer.encode(p.to(self.device).float() / 127.5 - 1).flatten(1) for p in parts])

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, P * D) to uint8 (B, 3, H, W); fractions of a level are cut off, as upstream does."""
        codes = ids.to(self.device).unflatten(1, (self.places, self.depth)).split(self.rows_per_batch)
        return torch.cat([((self.tokenizer.decode(p) + 1) * 127.5).clamp(0, 255).to(torch.uint8) for p in codes])

    def seen(self, images: Tensor) -> Tensor:
        return self.image_embeddings(self.encode(images))

    # -- questions --

    def question_ids(self, question: str) -> list[int]:
        """A question in the model's format, with a token for every place of the image."""
        words, (before, after) = self.words, self.template.ask.split("{image}", 1)
        first, last = words.encode(before), words.encode(after.replace("{text}", question.rstrip()))
        if PICTURE in question or words.image in last:
            raise UsageError("question", "words", "what stands for the image", "take it out")
        return [words.bos, *first, *[words.image] * self.places, *last]

    # -- editing --

    def image_table(self) -> Tensor:
        """Rows that feed codes back, (V, d): summed over a place's codes for the depth transformer and, through the
        projector, for the language model; of drawn and seen images alike."""
        replaced: Tensor | None = getattr(self.net, REPLACED)
        own: Tensor = self.net.get_submodule(TABLE).weight
        return own if replaced is None else replaced

    def editable(self, part: str) -> list[str]:
        """attention, ffn (of the language model), depth (which only draws), projector (which reads images), all
        (these), layers[a:b]; joined by +."""
        blocks = [f"layers.{i}" for i in range(len(self.transformer.layers))]
        at = f"{TOWER}.rqtransformer"
        depth = [name for name, module in self.depth_transformer.named_modules() if isinstance(module, nn.Linear)]
        projector = [n for n, module in self.net.model.mm_projector.named_modules() if isinstance(module, nn.Linear)]
        parts: dict[str, Sequence[str]] = {
            "attention": [f"{b}.self_attn.{n}_proj" for b in blocks for n in "qkvo"],
            "ffn": [f"{b}.mlp.{n}_proj" for b in blocks for n in ("gate", "up", "down")],
            "depth": [f"{at}.{name}" for name in depth],
            "projector": [f"{PROJECTOR}.{name}" for name in projector],
        }
        parts["all"] = [name for names in parts.values() for name in names]
        return [f"{self.layers_at}{name}" for name in select_modules(parts, part, len(blocks))]

    # -- leaving --

    def export(self, directory: Path, layout: str = OWN) -> None:
        """As the base class says, in the release's layout: llm/, vision_tower/ and mm_projector/ with their weights,
        the small files as they came and, last, safear.json.

        What nothing reads of the tower isn't given back: the published code makes it up, and never calls it. The
        release has one codebook for reading, quantising and decoding, and no place for a table that is not it, edited
        or replaced. "upstream" refuses such a table (UsageError). OWN writes it as one more tensor of vision_tower/,
        "image_table", and calls the weights of that part `names.OWN_WEIGHTS`, which no other code looks for: it would
        load the rest and draw as the unedited model.
        """
        table, own = self.image_table().detach(), self.tokenizer.codebook.detach()
        parts: dict[str, dict[str, Tensor]] = {LLM: {}, TOWER: {}, PROJECTOR: {}}
        for name, tensor in self.net.state_dict().items():
            if name != self.table_name:
                part = next((part for part, at in AT.items() if name.startswith(at)), LLM)
                parts[part][name.removeprefix(AT.get(part, ""))] = tensor
        if not torch.equal(table, own.to(table.dtype)):
            if layout != OWN:
                raise no_place_for_table(layout)
            parts[TOWER][EXPORTED_TABLE] = table
        for part, tensors in parts.items():
            (directory / part).mkdir(exist_ok=True)
            write_weights(directory / part / weights_name(tensors, EXPORTED_TABLE), tensors, {"format": "pt"})
        for name, content in self.files.items():
            write_atomic(directory / name, content)
        settings = self.settings.model_copy(update={"variant": self.card.variant})
        write_atomic(directory / "safear.json", settings.model_dump_json(indent=1) + "\n")


def sample_places(
    model: VilaU,
    prefix: Read,
    conditional: Tensor,
    unconditional: Tensor | None,
    sampling: Sampling,
    choose: Chooser,
    *,
    given: Tensor | None = None,
    keep_logits: list[Tensor] | None = None,
) -> Tensor:
    """Draw the codes (B, P * D) of B prompts, place by place; both rows of guidance read the codes that were chosen.

    conditional, unconditional (B,): rows of `prefix`; None for no guidance (then its rows aren't computed).
    given: codes (B, n) of the first n positions, not to be chosen. keep_logits collects the guided logits (for tests).
    """
    pick = Pick(len(conditional), sampling, choose, given, keep_logits)
    with torch.inference_mode():
        rows = conditional if unconditional is None else torch.cat([conditional, unconditional])
        each = len(rows) // len(conditional)
        cache, h = model.going_on(prefix, rows, model.places - 1), prefix.last[rows]
        depth, chosen = DepthCache(model.depth_transformer, len(rows)), list[Tensor]()
        total = torch.zeros(0)
        for position in range(model.card.tokens):
            place, code = divmod(position, model.depth)
            if code:
                state = depth.next(total.repeat(each, 1))
            else:
                if place:
                    h = cache.step(model.projected(total).repeat(each, 1))
                state = depth.first(h)
            ids = pick.next(model.image_logits(state), position)
            chosen.append(ids)
            total = total + model.rows_of(ids) if code else model.rows_of(ids)
        ids = torch.stack(chosen, 1)
    return ids.clone()  # out of inference mode, so that training may take the ids


# -- pico -------------------------------------------------------------------------------------------------------------

PICO_CODES, _WIDTH = 64, 32
PICO: Mapping[str, Mapping[str, Any]] = {
    "": {"model_type": KIND, "architectures": ["VILAULlamaModel"], "mm_use_im_start_end": True}
    | {"mm_use_im_patch_token": False, "mm_use_vi_start_end": False, "image_aspect_ratio": "resize"}
    | {"llm_cfg": {}, "vision_tower_cfg": {}, "mm_projector_cfg": {}, "hidden_size": PICO_TEXT["hidden_size"]},
    LLM: {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 10000.0, **PICO_TEXT},
    TOWER: {
        "model_type": "rqvaesigliptransformer_model",
        "architectures": ["RQVAESIGLIPTransformer"],
        "hidden_size": _WIDTH,
        "rqvaesiglip": {
            "embed_dim": _WIDTH,
            "n_embed": PICO_CODES,
            "latent_shape": [4, 4, _WIDTH],
            "code_shape": [4, 4, 4],
            "shared_codebook": True,
            "restart_unused_codes": True,
            "ddconfig": {"z_channels": 32, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32}
            | {"ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "dropout": 0.0},
            OWN_TOWER: {"hidden_size": _WIDTH, "intermediate_size": 64, "num_hidden_layers": 3}
            | {"num_attention_heads": 2, "patch_size": 4, "image_size": 16},
        },
        "rqtransformer": {
            "block_size": [4, 4, 4],
            "input_embed_dim_1": _WIDTH,
            "input_embed_dim_2": PICO_TEXT["hidden_size"],
            "embed_dim": 48,
            "vocab_size": PICO_CODES,
            "head": {"n_layer": 2, "block": {"n_head": 4}},
        },
    },
    PROJECTOR: {"model_type": "v2l_projector", "mm_projector_type": "mlp2x_gelu"},
}


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=1) + "\n").encode()


@torch.no_grad()
def _spread(net: Net) -> None:
    """Random weights that let every input matter, and a codebook of what the random tower says about images."""
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1 and ".decoder." not in name and ".post_quant_conv." not in name:
            nn.init.normal_(parameter, std=1.0 if "embed_tokens" in name else 0.15)
    tokenizer: ResidualTokenizer = net.model.vision_tower.rqvaesiglip
    side = tokenizer.image_size
    said = tokenizer.vectors(torch.rand(8, 3, side, side) * 2 - 1).flatten(0, 1)
    said = said[torch.randperm(len(said))]
    coarse, rest = said[: PICO_CODES // 2], said[PICO_CODES // 2 : PICO_CODES] - said[-PICO_CODES // 2 :]
    tokenizer.codebook.copy_(torch.cat([coarse, 0.5 * rest]))
    net.get_submodule(TABLE).weight.copy_(tokenizer.codebook)
