"""What Emu3, Chameleon, Liquid share: one transformer over one vocabulary, in which some tokens are parts of images.

Such a model draws by saying image tokens and sees an image as the same tokens (early fusion), so one table of rows
feeds both back. How it draws and answers is in language.py. A family file adds what differs: prompt format, special
tokens, the image tokenizer, row ends.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.base import OWN, REPLACED, Condition, ModelCard, Sampling
from safear_edit.families.folder import (
    AGAIN,
    LAYOUT_FILES,
    TEXT_FILES,
    WEIGHTS,
    all_files,
    layers_in,
    plain_config,
    read_settings,
    weight_file,
)
from safear_edit.families.language import (
    ROLES,
    BaseSettings,
    BaseTemplate,
    LanguageModel,
    Net,
    Words,
    byte_tokenizer,
    open_tokenizer,
)
from safear_edit.families.reference import ModelRef
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.strict import read_json
from safear_edit.files.weights import Place, Renamed, filled, opened, places, write_weights

TABLE = "image_tokens"
"""Embedding: the rows of its image tokens, in the order of the image tokenizer's codes."""
PLACES, CODES = "image_places", "image_codes"
"""Buffers, not saved: each code's place in the vocabulary (V,), and the code of each place, -1 for words."""
HEAD = "lm_head.weight"
FILES = (*TEXT_FILES, *LAYOUT_FILES, "vocab.json", "merges.txt", "added_tokens.json")
"""Small files that are kept and written back byte for byte."""


class Template(BaseTemplate):
    """The words around a prompt or a question; `unwanted` is what guidance leads away from, None: no words at all."""

    unwanted: str | None = None


class Settings(BaseSettings):
    """`safear.json`. A family's own class has the published values."""

    template: Template


def read_words(files: Mapping[str, bytes], special: Mapping[str, str], where: str) -> Words:
    """From tokenizer.json; `special` names the token of each role. UsageError for one that isn't there."""
    tokenizer = open_tokenizer(files, where)
    found = {role: tokenizer.token_to_id(name) for role, name in special.items()}
    if missing := [special[role] for role, number in found.items() if number is None]:
        raise UsageError(f"{where}/tokenizer.json", f"the tokens {', '.join(missing)}", "none such", AGAIN)
    ids = {role: number for role, number in found.items() if number is not None}
    return Words(tokenizer, **{role: ids.pop(role) for role in ROLES}, own=ids)


class EarlyFusion(LanguageModel):
    """A model that draws and sees images as tokens of its one vocabulary; the base of Emu3, Chameleon and Liquid.

    A dropped caption is the model's own unconditional prompt (`drawing_ids(None)`), whatever the caption's length was.

    The rows that feed image tokens back are kept apart from the embedding, as `image_tokens.weight` (V, D) in the
    order of the image tokenizer's codes, so that an edit of them is an edit of that tensor; export puts them back
    where the published layout has them. The output layer is no editable part: it says words as well.
    """

    table_name = f"{TABLE}.weight"
    special: ClassVar[Mapping[str, str]]
    """role → name of the token: bos, eos, pad, boi, eoi, image and what else the prompts of the family need."""
    settings_type: ClassVar[type[Settings]]
    pico_sizes: ClassVar[Mapping[str, Any]]
    pico_settings: ClassVar[Mapping[str, Any]] = {}
    template: Template

    def __init__(
        self, net: Net, words: Words, files: Mapping[str, bytes], settings: Settings, variant: str, where: str
    ) -> None:
        from transformers import GenerationConfig

        self.net, self.words, self.files, self.settings = net, words, files, settings
        self.sampling, self.template = settings.sampling, settings.template
        vocabulary = net.get_input_embeddings().weight
        words.fitting(len(vocabulary), where)
        places = self.image_places(where)
        codes = torch.full((len(vocabulary),), -1).index_copy(0, places, torch.arange(len(places)))
        net.register_buffer(PLACES, places.to(vocabulary.device), persistent=False)
        net.register_buffer(CODES, codes.to(vocabulary.device), persistent=False)
        net.register_buffer(REPLACED, None, persistent=False)
        rows = nn.Embedding.from_pretrained(vocabulary.detach()[places].clone(), freeze=False)
        parameters = sum(p.numel() for p in net.parameters())
        net.add_module(TABLE, rows)
        net.generation_config = GenerationConfig.from_dict(self._generation())
        factor = 2 ** (len(net.model.vqmodel.config.channel_multiplier) - 1)
        self.side, rest = divmod(self.image_size, factor)
        if rest or not self.side:
            raise UsageError(f"{where}: image size", f"a multiple of {factor}", str(self.image_size), AGAIN)
        sizes = (self.image_size, self.side**2, len(places), (self.side**2,), parameters)
        self.card = ModelCard(self.name, variant, *sizes, settings.licence)

    # -- what a family adds --

    @classmethod
    def whole_config(cls, data: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        """A config.json's content, with what the release says about the image tokenizer in another file."""
        return data

    @classmethod
    @abstractmethod
    def read_config(cls, data: Mapping[str, Any]) -> Any:
        """transformers' configuration from a config.json; any exception means that it isn't one."""

    @classmethod
    @abstractmethod
    def build(cls, config: Any, dtype: torch.dtype) -> Net:
        """The network of a configuration, random."""

    @classmethod
    def own_weights(
        cls, weights: Mapping[str, Tensor], folder: Path, stack: ExitStack
    ) -> tuple[Mapping[str, Tensor], list[Path]]:
        """Published names to those of `build`'s network, and what further weight files there are; all are read later,
        tensor by tensor, while `stack` is open."""
        return weights, []

    def write_own(self, weights: dict[str, Tensor], directory: Path) -> dict[str, Tensor]:
        """The reverse: write what the published layout keeps in files of its own; the weights that are left."""
        return weights

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Width and height of an image in pixels."""

    @abstractmethod
    def drawing_ids(self, prompt: str | None) -> list[int]:
        """A drawing prompt from bos to the mark that the image begins with; None: the unconditional one."""

    # -- loading --

    @classmethod
    def load(cls, ref: ModelRef, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """A folder in transformers' layout, as published or as `export` wrote it; the tokenizer stays in float32."""
        if (folder := ref.path) is None:
            fix = "give the folder that holds config.json, tokenizer.json and the weights"
            raise UsageError(f"model {ref}", "a folder", "a name, and no such model comes with this package", fix)
        settings = read_settings(folder / "safear.json", cls.settings_type, published=True)
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        words = read_words(files, cls.special, str(folder))
        data = read_json(folder / "config.json").data
        kind = data.get("model_type") if isinstance(data, Mapping) else None
        if kind not in (wanted := cls.model_types):
            raise UsageError(f"{folder / 'config.json'}: model_type", " or ".join(wanted), repr(kind), AGAIN)
        whole, where = cls.whole_config(data, folder), str(folder / "config.json")
        path = weight_file(folder)
        vocabulary = f"{cls.layers_at}embed_tokens.weight"
        with ExitStack() as stack:
            weights, more = cls.own_weights(stack.enter_context(opened(path, allow_pickle=True)), folder, stack)
            if HEAD not in weights and vocabulary in weights:  # a tied output layer
                weights = Renamed({**places(weights), HEAD: Place(weights, vocabulary)})
            net = filled(lambda: cls._network(whole, dtype, where), layers_in(whole), weights, str(path), device=device)
        model = cls(net, words, files, settings, ref.variant, str(folder))
        digests = {path.name: sha256_file(path) for path in (*all_files(path), *more)}
        model.card = replace(model.card, files=digests)
        return model

    @classmethod
    def _network(cls, data: Mapping[str, Any], dtype: torch.dtype, where: str) -> Net:
        try:
            config = cls.read_config(plain_config(data))
            config.tie_word_embeddings = False
            net = cls.build(config, dtype)
        except Exception as error:  # the configuration classes raise what they like, from KeyError to own types
            got = " ".join(str(error).split())[:200]
            raise UsageError(
                where, f"a {cls.__name__} configuration", f"{type(error).__name__}: {got}", AGAIN
            ) from None
        net.model.vqmodel.float().requires_grad_(False)  # codes must not depend on the dtype of the transformer
        return net.eval()

    @classmethod
    def pico(cls, seed: int = 0) -> Self:
        """16x16 pixels, 16 tokens, two layers, a token per byte of text, weights so large that every input matters."""
        codes, ends = cls.image_names(PICO_CODES), {role: cls.special[role] for role in ("bos", "eos", "pad")}
        files = byte_tokenizer([*cls.special.values(), *codes], ends)
        words = read_words(files, cls.special, "pico")
        data = {**cls.pico_sizes, "vocabulary_map": words.tokenizer.get_vocab()}
        size = words.tokenizer.get_vocab_size() + PICO_CODES - len(codes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = cls._network(_sized(data, size), torch.float32, "pico")
            _spread(net)
        published = cls.settings_type()  # type: ignore[call-arg]  # a family's own class has defaults
        changes = {"licence": "Apache-2.0", "sampling": Sampling(2.0), **cls.pico_settings}
        model = cls(net, words, files, published.model_copy(update=changes), "pico", "pico")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _spread_codes(model)
        content = b"".join(t.detach().numpy().tobytes() for t in net.parameters())
        model.card = replace(model.card, files={"pico": hashlib.sha256(content).hexdigest()})
        return model

    @classmethod
    @abstractmethod
    def image_names(cls, count: int) -> list[str]:
        """Names of the first `count` codes in a published vocabulary; empty where they have none."""

    def image_places(self, where: str) -> Tensor:
        """Vocabulary ids of the image tokenizer's codes, (V,), in the order of the codes."""
        count = self.net.model.vqmodel.quantize.embedding.num_embeddings
        size = self.net.get_input_embeddings().num_embeddings
        try:
            found: dict[int, int] = self.net.model.vocabulary_mapping.img2bpe
            fits = sorted(found) == list(range(count)) and all(0 <= place < size for place in found.values())
        except (ValueError, TypeError, AttributeError):  # names or numbers that transformers can't take apart
            found, fits = {}, False
        if not fits or len(set(found.values())) < count:
            got = f"{len(found)} of them, or some that fit no code" if found else "none"
            raise UsageError(f"{where}: vocabulary_map", f"a token for each of {count} codes", got, AGAIN)
        return torch.tensor([found[code] for code in range(count)])

    # -- prompts --

    def prompt_ids(self, prompts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Token ids (U, T) and mask (U, T) of drawing prompts, left-padded to the longest; None: unconditional."""
        return self._padded([self.drawing_ids(prompt) for prompt in prompts])

    def _embedded(self, ids: Tensor) -> Tensor:
        """What the transformer reads for tokens of the vocabulary: image tokens among words come from the table too."""
        words: Tensor = self.net.get_input_embeddings()(ids)
        codes: Tensor = getattr(self.net, CODES)[ids]
        return torch.where((codes < 0).unsqueeze(-1), words, self.image_embeddings(codes.clamp(min=0)))

    def _rows(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Dropped images take the unconditional prompt."""
        if bool(condition.dropped.any()):
            ids, mask = self.prompt_ids([None])
            condition = condition.taking(self._embedded(ids), mask)
        return condition.in_use()

    # -- drawing and seeing --

    def image_embeddings(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.image_table())

    def image_logits(self, state: Tensor) -> Tensor:
        return F.linear(state, self.net.lm_head.weight[self._places]).float()

    @property
    def _places(self) -> Tensor:
        places: Tensor = getattr(self.net, PLACES)
        return places

    def seen(self, images: Tensor) -> Tensor:
        seen = self.image_embeddings(self.encode(images))
        if self.end_of_row is None:
            return seen
        rows = seen.unflatten(1, (self.side, self.side))
        end = self._end_of_row().type_as(rows).expand(len(rows), self.side, 1, -1)
        return torch.cat([rows, end], 2).flatten(1, 2)

    # -- codebook --

    def image_table(self) -> Tensor:
        """Rows that the transformer reads for image tokens, (V, D), drawn and seen ones alike, as they are published:
        where a model scales what it looks up (Gemma), not yet scaled."""
        replaced: Tensor | None = getattr(self.net, REPLACED)
        own: Tensor = self.net.get_submodule(TABLE).weight
        return own if replaced is None else replaced

    # -- leaving --

    def export(self, directory: Path, layout: str = OWN) -> None:
        """As the base class says; every layout is the same, and transformers' from_pretrained loads it.

        model.safetensors, config.json, the small files it came with and, last, safear.json. The image table is in the
        embedding's rows, replaced or not.
        """
        weights = {name: tensor for name, tensor in self.net.state_dict().items() if name != self.table_name}
        vocabulary = f"{self.layers_at}embed_tokens.weight"
        weights[vocabulary] = weights[vocabulary].clone()
        weights[vocabulary][self._places] = self.image_table().detach()
        write_weights(directory / WEIGHTS[0], self.write_own(weights, directory), {"format": "pt"})
        config = json.loads(self.net.config.to_json_string(use_diff=False))
        config["dtype"] = str(self.net.lm_head.weight.dtype).removeprefix("torch.")
        config["architectures"] = [type(self.net).__name__]
        write_atomic(directory / "config.json", json.dumps(config, indent=1) + "\n")
        generation = {"generation_config.json": json.dumps(self._generation(), indent=1).encode()}
        for name, content in {**generation, **self.files}.items():
            write_atomic(directory / name, content)
        settings = self.settings.model_copy(update={"variant": self.card.variant})
        write_atomic(directory / "safear.json", settings.model_dump_json(indent=1) + "\n")

    def _generation(self) -> dict[str, Any]:
        return {f"{role}_token_id": self.words[role] for role in ("bos", "eos", "pad")}


# -- pico -------------------------------------------------------------------------------------------------------------

PICO_CODES = 64


def _sized(data: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The vocabulary's size where the configuration has it."""
    if "text_config" in data:
        return {**data, "text_config": {**data["text_config"], "vocab_size": count}}
    return {**data, "vocab_size": count}


def _spread(net: Net) -> None:
    """Random weights that let every input matter; transformers' own are too small for a test to see a fault."""
    for module in net.model.vqmodel.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Embedding):
            module.reset_parameters()
    embedded = 1 / float(getattr(net.get_input_embeddings(), "scalar_embed_scale", 1))
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1 and "vqmodel" not in name:
            norm = "norm" in name
            nn.init.normal_(parameter, mean=float(norm), std=embedded if "embed" in name else 0.15)


@torch.no_grad()
def _spread_codes(model: EarlyFusion) -> None:
    """Scale what a random encoder says to mean 0 and deviation 1 in each channel: images then get several codes."""
    quant, caught = model.net.model.vqmodel.quant_conv, list[Tensor]()
    side = model.card.image_size
    with quant.register_forward_hook(lambda _, __, out: caught.append(out)):
        model.encode(torch.randint(0, 256, (8, 3, side, side)).to(torch.uint8))
    spread, middle = torch.std_mean(caught[0].transpose(0, 1).flatten(1), 1)
    conv = next(module for module in quant.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    conv.weight.div_(spread.view(-1, *[1] * (conv.weight.dim() - 1)))
    assert conv.bias is not None
    conv.bias.sub_(middle).div_(spread)


# -- images ---------------------------------------------------------------------------------------------------------


class EarlyFusionVQGAN(EarlyFusion):
    """A family whose images are this tokenizer's codes, row by row, with no token between the rows."""

    @property
    def image_size(self) -> int:
        return int(self.net.model.vqmodel.config.resolution)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of the card's image size to ids (B, N): the nearest codebook row, in float32."""
        vq, parts = self.net.model.vqmodel.eval(), []
        for part in self._checked(images).split(self.rows_per_batch):
            found = vq.encode(part.to(self.device).float() / 127.5 - 1).image_tokens
            parts.append(found.view(len(part), -1))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, N) to uint8 (B, 3, H, W); fractions of a level are cut off, as upstream does."""
        vq, parts = self.net.model.vqmodel.eval(), []
        for part in ids.to(self.device).unflatten(1, (self.side, self.side)).split(self.rows_per_batch):
            drawn = vq.decoder(vq.post_quant_conv(vq.quantize.embedding(part).permute(0, 3, 1, 2)))
            parts.append(((drawn.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8))
        return torch.cat(parts)
