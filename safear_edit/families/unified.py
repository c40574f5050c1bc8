"""What Emu3 and Chameleon share: one transformer over one vocabulary, in which some tokens are pieces of pictures.

Such a model draws by saying image tokens and sees a picture as the same tokens (early fusion), so one table of rows
feeds both back. Scoring is transformers' forward pass; drawing and answering run its modules over keys and values that
are allocated once (llama.py). A family file adds what differs: prompt format, special tokens, the picture tokenizer,
row ends.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.checkpoint import assign_strict, read_weights, write_weights
from safear_edit.errors import UsageError
from safear_edit.families.base import Condition, ModelCard, ModelFamily, Sampling, select_modules
from safear_edit.families.folder import (
    AGAIN,
    LAYOUT_FILES,
    TEXT_FILES,
    WEIGHTS,
    all_files,
    plain_config,
    weight_files,
)
from safear_edit.families.llama import Cache, Prefix, positions, read_on, read_prompts
from safear_edit.registry import ModelRef
from safear_edit.rundir import sha256_file, write_atomic
from safear_edit.sampling import Chooser, guided, inverse_cdf, probabilities, uniforms
from safear_edit.tokens import token_logprobs
from safear_edit.yaml_strict import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Net = Any
"""A transformers model with what the names below say."""
TABLE = "image_tokens"
"""Embedding: the rows of its image tokens, in the order of the picture tokenizer's codes."""
REPLACED = "replaced_image_tokens"
"""Buffer, not saved: None, or the rows that are read instead."""
PLACES, CODES = "image_places", "image_codes"
"""Buffers, not saved: each code's place in the vocabulary (V,), and the code of each place, -1 for words."""
ROWS_PER_BATCH = 64
"""Images sampled or looked at together; bounds memory, changes no image."""
HEAD = "lm_head.weight"
FILES = (*TEXT_FILES, *LAYOUT_FILES, "vocab.json", "merges.txt", "added_tokens.json")
"""Small files that are kept and written back byte for byte."""


class Template(BaseModel):
    """The words around a prompt or a question; {text} is the user's, {image} where the picture goes.

    `unwanted` is what guidance leads away from: None = a prompt without words. `reply` comes before an answer,
    `describe` asks for a caption.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    draw: str = Field(pattern=r"\{text\}")
    unwanted: str | None = None
    ask: str = Field(pattern=r"(?s)\{image\}.*\{text\}")
    reply: str = ""
    describe: str


class Settings(BaseModel):
    """`safear.json`: what the folder's other files don't say. A family's own class has the published values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    variant: str = ""
    licence: str
    sampling: Sampling
    template: Template


@dataclass(frozen=True)
class Words:
    """A model's tokenizer, and the ids of the tokens that prompts are built with, by role."""

    tokenizer: Tokenizer
    ids: Mapping[str, int]

    @classmethod
    def read(cls, files: Mapping[str, bytes], special: Mapping[str, str], where: str) -> Words:
        """From tokenizer.json; `special` names the token of each role. UsageError for one that isn't there."""
        from tokenizers import Tokenizer

        if "tokenizer.json" not in files:
            raise UsageError(where, "tokenizer.json", "no such file", AGAIN)
        try:
            tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
        except Exception as error:  # the library has no exception type of its own
            got = " ".join(str(error).split())[:200]
            raise UsageError(f"{where}/tokenizer.json", "a tokenizer", got, AGAIN) from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        found = {role: tokenizer.token_to_id(name) for role, name in special.items()}
        if missing := [special[role] for role, number in found.items() if number is None]:
            raise UsageError(f"{where}/tokenizer.json", f"the tokens {', '.join(missing)}", "none such", AGAIN)
        return cls(tokenizer, {role: number for role, number in found.items() if number is not None})

    def __getitem__(self, role: str) -> int:
        return self.ids[role]

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with nothing added; special tokens written in it are recognised."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens and surrounding blanks."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()


class EarlyFusion(ModelFamily):
    """A model that draws and sees pictures as tokens of its one vocabulary; the base of Emu3 and Chameleon.

    A Condition's features (U, T, D) are the input embeddings of a whole drawing prompt, up to the mark that pictures
    begin with, taken without a gradient (no editable part reaches them). A dropped caption is the model's own
    unconditional prompt (`drawing_ids(None)`), whatever the caption's length was.

    The rows that feed image tokens back are kept apart from the embedding, as `image_tokens.weight` (V, D) in the
    order of the picture tokenizer's codes, so that an edit of them is an edit of that tensor; export puts them back
    where the published layout has them. The output layer is no editable part: it says words as well.
    """

    table_name = f"{TABLE}.weight"
    special: ClassVar[Mapping[str, str]]
    """role → name of the token: bos, eos, pad, boi, eoi, image and what else the prompts of the family need."""
    settings_type: ClassVar[type[Settings]]
    layers_at: ClassVar[str]
    """Where `layers` and `embed_tokens` are in the state dict, with the final dot."""
    pico_sizes: ClassVar[Mapping[str, Any]]
    pico_settings: ClassVar[Mapping[str, Any]] = {}
    net: Net

    def __init__(
        self, net: Net, words: Words, files: Mapping[str, bytes], settings: Settings, variant: str, where: str
    ) -> None:
        from transformers import GenerationConfig

        self.net, self.words, self.files, self.settings = net, words, files, settings
        self.sampling, self.template = settings.sampling, settings.template
        vocabulary = net.get_input_embeddings().weight
        _refuse_ids(words, len(vocabulary), where)
        places = self.image_places(net, where)
        codes = torch.full((len(vocabulary),), -1).index_copy(0, places, torch.arange(len(places)))
        net.register_buffer(PLACES, places.to(vocabulary.device), persistent=False)
        net.register_buffer(CODES, codes.to(vocabulary.device), persistent=False)
        net.register_buffer(REPLACED, None, persistent=False)
        rows = nn.Embedding.from_pretrained(vocabulary.detach()[places].clone(), freeze=False)
        parameters = sum(p.numel() for p in net.parameters())
        net.add_module(TABLE, rows)
        net.generation_config = GenerationConfig.from_dict(self._generation())
        factor = 2 ** (len(net.config.vq_config.channel_multiplier) - 1)
        self.side, rest = divmod(self.image_size, factor)
        if rest or not self.side:
            raise UsageError(f"{where}: image size", f"a multiple of {factor}", str(self.image_size), AGAIN)
        sizes = (self.image_size, self.side**2, len(places), (self.side**2,), parameters)
        self.card = ModelCard(self.name, variant, *sizes, settings.licence)

    # -- what a family adds --

    @classmethod
    @abstractmethod
    def read_config(cls, data: Mapping[str, Any]) -> Any:
        """transformers' configuration from a config.json; any exception means that it isn't one."""

    @classmethod
    @abstractmethod
    def build(cls, config: Any, dtype: torch.dtype) -> Net:
        """The network of a configuration, random."""

    @classmethod
    def own_weights(cls, weights: dict[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
        """Published names to those of `build`'s network, and what further weight files were read for it."""
        return weights, []

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Width and height of a picture in pixels."""

    @abstractmethod
    def drawing_ids(self, prompt: str | None) -> list[int]:
        """A drawing prompt from bos to the mark that the picture begins with; None: the unconditional one."""

    @abstractmethod
    def frame(self) -> tuple[list[int], list[int]]:
        """What stands before and after a picture's tokens in a question."""

    @property
    def end_of_row(self) -> int | None:
        """The token after each row of a picture; None if rows follow each other directly."""
        return None

    @property
    @abstractmethod
    def transformer(self) -> Any:
        """transformers' module over embeddings, that returns `last_hidden_state`."""

    @property
    def as_llama(self) -> Any:
        """The same layers under the names by which llama.py calls them."""
        return self.transformer

    def said(self, state: Tensor) -> Tensor:
        """Logits of words (…, vocabulary), float32, for an answer."""
        found: Tensor = self.net.lm_head(state).float()
        return found

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return (self.words["eos"],)

    # -- loading --

    @classmethod
    def load(cls, ref: ModelRef, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """A folder in transformers' layout, as published or as `export` wrote it; the tokenizer stays in float32."""
        if (folder := ref.path) is None:
            fix = "give the folder that holds config.json, tokenizer.json and the weights"
            raise UsageError(f"model {ref}", "a folder", "a name, and no such model comes with this package", fix)
        settings = read_settings(folder / "safear.json", cls.settings_type)
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        words = Words.read(files, cls.special, str(folder))
        data = read_json(folder / "config.json").data
        kind = data.get("model_type") if isinstance(data, Mapping) else None
        if kind != cls.name:
            raise UsageError(f"{folder / 'config.json'}: model_type", cls.name, repr(kind), AGAIN)
        net = cls._network(data, dtype, str(folder / "config.json"))
        paths = weight_files(folder)
        weights = {name: tensor for path in paths for name, tensor in read_weights(path, allow_pickle=True).items()}
        weights, more = cls.own_weights(weights, folder)
        vocabulary = f"{cls.layers_at}embed_tokens.weight"
        if HEAD not in weights and vocabulary in weights:
            weights[HEAD] = weights[vocabulary]  # a tied output layer
        assign_strict(net, weights, str(paths[0]))
        model = cls(net.to(device), words, files, settings, ref.variant, str(folder))
        model._stamp({path.name: sha256_file(path) for path in (*all_files(paths), *more)})
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

    def _stamp(self, files: dict[str, str]) -> None:
        self.card = ModelCard(**{**vars(self.card), "files": files})

    @classmethod
    def pico(cls, seed: int = 0) -> Self:
        """16x16 pixels, 16 tokens, two layers, a token per byte of text, weights so large that every input matters."""
        files = cls._pico_tokenizer()
        words = Words.read(files, cls.special, "pico")
        data = {**cls.pico_sizes, "vocabulary_map": words.tokenizer.get_vocab()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = cls._network(_sized(data, words.tokenizer.get_vocab_size()), torch.float32, "pico")
            _spread(net)
        published = cls.settings_type()  # type: ignore[call-arg]  # a family's own class has defaults
        changes = {"licence": "Apache-2.0", "sampling": Sampling(2.0), **cls.pico_settings}
        model = cls(net, words, files, published.model_copy(update=changes), "pico", "pico")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _tell_pictures_apart(model)
        content = b"".join(t.detach().numpy().tobytes() for t in net.parameters())
        model._stamp({"pico": hashlib.sha256(content).hexdigest()})
        return model

    @classmethod
    def _pico_tokenizer(cls) -> dict[str, bytes]:
        """Files of a tokenizer that knows single bytes, the special tokens and the image tokens."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([*cls.special.values(), *cls.image_names(PICO_CODES)])
        named = {f"{role}_token": cls.special[role] for role in ("bos", "eos", "pad")}
        named["tokenizer_class"] = "PreTrainedTokenizerFast"
        return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(named).encode()}

    @classmethod
    @abstractmethod
    def image_names(cls, count: int) -> list[str]:
        """Names of the first `count` codes in a published vocabulary."""

    @staticmethod
    def image_places(net: Net, where: str) -> Tensor:
        """Vocabulary ids of the picture tokenizer's codes, (V,), in the order of the codes."""
        count = net.model.vqmodel.quantize.embedding.num_embeddings
        size = net.get_input_embeddings().num_embeddings
        try:
            found: dict[int, int] = net.model.vocabulary_mapping.img2bpe
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
        rows = [self.drawing_ids(prompt) for prompt in prompts]
        longest, pad = max(map(len, rows)), self.words["pad"]
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=self.device)
        count = torch.tensor([len(row) for row in rows], device=self.device)
        return ids, torch.arange(longest, device=self.device) >= longest - count.unsqueeze(1)

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Embeddings of the distinct prompts in the model's drawing format; see the class for what they hold."""
        distinct = list(dict.fromkeys(prompts))
        ids, mask = self.prompt_ids(distinct)
        place = {prompt: i for i, prompt in enumerate(distinct)}
        return Condition.of(self._embedded(ids), mask).rows(torch.tensor([place[prompt] for prompt in prompts]))

    def _embedded(self, ids: Tensor) -> Tensor:
        """What the transformer reads for tokens of the vocabulary: image tokens among words come from the table too."""
        words: Tensor = self.net.get_input_embeddings()(ids)
        codes: Tensor = getattr(self.net, CODES)[ids]
        return torch.where((codes < 0).unsqueeze(-1), words, self.image_embeddings(codes.clamp(min=0)))

    def _rows(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct prompts in use: embeddings (U, T, D), mask (U, T), and which of them each image takes (B,)."""
        features, mask, caption = condition.features, condition.mask, condition.index
        if bool(condition.dropped.any()):
            ids, whole = self.prompt_ids([None])
            caption = caption.masked_fill(condition.dropped, len(mask))
            longest = max(mask.shape[1], ids.shape[1])
            parts = ((features, mask), (self._embedded(ids).type_as(features), whole))
            features = torch.cat([F.pad(f, (0, 0, longest - f.shape[1], 0)) for f, _ in parts])
            mask = torch.cat([F.pad(m, (longest - m.shape[1], 0)) for _, m in parts])
        used, which = torch.unique(caption, return_inverse=True)
        features, mask = features[used.to(features.device)], mask[used.to(mask.device)]
        longest = int(mask.sum(1).max())
        return features[:, -longest:], mask[:, -longest:], which.to(self.device)

    # -- drawing --

    @property
    def row(self) -> int:
        """Image tokens between two row ends."""
        return self.card.tokens if self.end_of_row is None else self.side

    def image_embeddings(self, ids: Tensor) -> Tensor:
        """What the transformer reads for image tokens, (…, D)."""
        return F.embedding(ids, self.image_table())

    def image_logits(self, state: Tensor) -> Tensor:
        """Logits of image tokens (…, V), float32: the only choices there are at the places of a picture."""
        return F.linear(state, self.net.lm_head.weight[self._places]).float()

    @property
    def _places(self) -> Tensor:
        places: Tensor = getattr(self.net, PLACES)
        return places

    def _end_of_row(self) -> Tensor:
        return self._embedded(torch.tensor([self.end_of_row], device=self.device))

    def logits(self, condition: Condition, ids: Tensor) -> Tensor:
        """Teacher-forced logits (B, N, V), float32, of image tokens."""
        return self.image_logits(self.hidden(condition, ids))

    def hidden(self, condition: Condition, ids: Tensor) -> Tensor:
        """Last hidden states (B, N, D), by transformers' forward pass over prompt and picture together.

        Row ends are put where the published format has them; what predicts a row's first token is the state of the
        row end before it. `ids` may be the first tokens of images only.
        """
        text, mask, which = self._rows(condition)
        place = torch.arange(ids.shape[1], device=self.device)
        place = place + place.div(self.row, rounding_mode="floor")
        before = self._spaced(self.image_embeddings(ids[:, :-1].to(self.device)), place)
        seen = torch.cat([mask[which], mask.new_ones(before.shape[:2])], 1)
        state: Tensor = self.transformer(
            inputs_embeds=torch.cat([text[which], before], 1),
            attention_mask=seen.long(),
            position_ids=positions(seen),
            use_cache=False,
        ).last_hidden_state
        return state[:, text.shape[1] - 1 + place]

    def _spaced(self, tokens_BND: Tensor, place_N: Tensor) -> Tensor:
        """Embeddings of all but the last token at their places, row ends between; place_N includes the last token."""
        if self.end_of_row is None:
            return tokens_BND
        count, length = tokens_BND.shape[1], int(place_N[-1])
        tokens = torch.arange(count, device=place_N.device)
        source = torch.full((length,), count, device=tokens_BND.device).scatter(0, place_N[:-1], tokens)
        end = self._end_of_row().expand(len(tokens_BND), 1, -1).type_as(tokens_BND)
        return torch.cat([tokens_BND, end], 1)[:, source]

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        progress: Callable[[int], None] | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Draw tokens (B, N). Guidance of 1 or less is none, and computes no unconditional rows.

        Row i depends on its prompt and its seed; see Janus.generate for what another batch can change.
        """
        sampling = sampling or self.sampling
        parts = []
        for start in range(0, len(condition), ROWS_PER_BATCH):
            rows = torch.arange(start, min(start + ROWS_PER_BATCH, len(condition)))
            draws = uniforms([seeds[i] for i in rows.tolist()], self.card.tokens).to(self.device)
            read, which, without = self.read(condition.rows(rows), sampling.guidance > 1)
            given = None if prefix is None else prefix[rows].to(self.device)
            parts.append(sample_ids(self, read, which, without, sampling, inverse_cdf(draws), given=given))
            if progress is not None:
                progress(int(rows[-1]) + 1)
        return torch.cat(parts) if parts else torch.empty(0, self.card.tokens, dtype=torch.int64)

    def read(self, condition: Condition, guided: bool) -> tuple[Prefix, Tensor, Tensor | None]:
        """Each distinct prompt through the transformer once; its rows per image, with and without the caption."""
        count = len(condition)
        if guided:
            condition = condition.rows(torch.arange(count).repeat(2))
            condition = self.dropped(condition, torch.arange(2 * count) >= count)
        text, mask, which = self._rows(condition)
        prefix = read_prompts(self.as_llama, text, mask)
        return (prefix, which[:count], which[count:]) if guided else (prefix, which, None)

    def _checked(self, images: Tensor) -> Tensor:
        side = self.card.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side):
            got = f"{images.dtype} {tuple(images.shape)}"
            raise UsageError("images", f"uint8 (B, 3, {side}, {side})", got, "resize them first")
        return images

    # -- understanding --

    def question_ids(self, question: str) -> list[int]:
        """A question in the model's format, the picture's place held by as many image tokens as it has, ends of rows
        included."""
        words = self.words
        marked = self.template.ask.replace("{image}", words.tokenizer.id_to_token(words["image"]) or "")
        ids = words.encode(marked.replace("{text}", question))
        if ids.count(words["image"]) != 1:
            raise UsageError("question", "words", "the token that stands for the picture", "take it out")
        place, (before, after) = ids.index(words["image"]), self.frame()
        held = [words["image"]] * (self.card.tokens + (self.end_of_row is not None) * self.side)
        return [words["bos"], *ids[:place], *before, *held, *after, *ids[place + 1 :], *self.after_question()]

    def after_question(self) -> list[int]:
        """What ends a user's turn, if a token does."""
        return []

    def reply_ids(self, reply: str) -> list[int]:
        """A reply as it follows a question, without the end token that a whole one ends with."""
        return self.words.encode(self.template.reply + reply)

    def see(self, images: Tensor) -> Tensor:
        """Pictures uint8 (B, 3, H, W) as the transformer reads them in a question, (B, n, D)."""
        seen = self.image_embeddings(self.encode(images))
        if self.end_of_row is None:
            return seen
        rows = seen.unflatten(1, (self.side, self.side))
        end = self._end_of_row().type_as(rows).expand(len(rows), self.side, 1, -1)
        return torch.cat([rows, end], 2).flatten(1, 2)

    def _asked(self, images: Tensor, question: str) -> Prefix:
        ids = torch.tensor(self.question_ids(question), device=self.device)
        seen = self.see(images)
        place = int((ids == self.words["image"]).nonzero()[0])
        text = self._embedded(ids).expand(len(images), -1, -1)
        h = torch.cat([text[:, :place], seen, text[:, place + seen.shape[1] :]], 1)
        return read_prompts(self.as_llama, h, torch.ones(h.shape[:2], dtype=torch.bool, device=self.device))

    @torch.no_grad()
    def answer(self, images: Tensor, question: str, limit: int = 64) -> list[str]:
        """One reply per picture, uint8 (B, 3, H, W): the likeliest token each time, to the end or `limit` tokens."""
        replies: list[str] = []
        ends = torch.tensor(self.ends, device=self.device)
        for part in self._checked(images).split(ROWS_PER_BATCH):
            prefix = self._asked(part, question)
            rows = torch.arange(len(part), device=self.device)
            cache, h, said = Cache(self.as_llama, prefix, rows, limit), prefix.last, list[Tensor]()
            ended = torch.zeros(len(part), dtype=torch.bool, device=self.device)
            while not said or (len(said) < limit and not bool(ended.all())):
                said.append(self.said(h).argmax(-1).masked_fill(ended, self.words["eos"]))
                ended = ended | torch.isin(said[-1], ends)
                h = cache.step(self._embedded(said[-1]))
            replies += [self.words.decode(self._until_end(row)) for row in torch.stack(said, 1).tolist()]
        return replies

    def _until_end(self, ids: Sequence[int]) -> Sequence[int]:
        return ids[: next((i for i, token in enumerate(ids) if token in self.ends), len(ids))]

    def answer_logprobs(self, images: Tensor, question: str, answers: Sequence[str]) -> Tensor:
        """Log-probability in nats, (B, len(answers)), that the reply begins with each answer; differentiable.

        "yes" against "no" judges a picture without reading prose. Answers of different lengths aren't comparable by
        themselves: a longer one is a product of more factors.
        """
        spoken = [torch.tensor(self.reply_ids(answer), device=self.device) for answer in answers]
        if not spoken or any(not len(ids) for ids in spoken):
            raise UsageError("answers", "at least one, of at least one token each", repr(list(answers)), "name them")
        parts = []
        for part in self._checked(images).split(ROWS_PER_BATCH):
            prefix = self._asked(part, question)
            parts.append(torch.stack([self._spoken(prefix, ids) for ids in spoken], 1))
        return torch.cat(parts)

    def _spoken(self, prefix: Prefix, ids_L: Tensor) -> Tensor:
        """Log-probability (B,) of these tokens after the prefix; the question itself isn't run again."""
        ids = ids_L.expand(len(prefix.last), -1)
        states = [prefix.last.unsqueeze(1)]
        if ids.shape[1] > 1:
            states.append(read_on(self.as_llama, prefix, self._embedded(ids[:, :-1])))
        return token_logprobs(self.said(torch.cat(states, 1)), ids).sum(1)

    def describe(self, images: Tensor) -> list[str]:
        """A caption per picture: the answer to the model's own question for one."""
        return self.answer(images, self.template.describe)

    # -- codebook --

    def image_table(self) -> Tensor:
        """What the transformer reads for each image token, (V, D), drawn and seen ones alike."""
        replaced: Tensor | None = getattr(self.net, REPLACED)
        own: Tensor = self.net.get_submodule(TABLE).weight
        return own if replaced is None else replaced

    def set_image_table(self, table: Tensor | None) -> None:
        """Let image tokens be read from `table` (V, D), or from the model's own rows again (None).

        Drawing, scoring and questions look rows up in it, and a gradient reaches it. What is drawn from (the output
        layer) and what pictures are decoded from (the tokenizer's codebook) stay. An export writes it where the
        published layout has these rows, so other programs read it too.
        """
        own = self.net.get_submodule(TABLE).weight
        if table is not None and table.shape != own.shape:
            got = str(tuple(table.shape))
            raise UsageError("image table", f"shape {tuple(own.shape)}", got, "change rows, not the shape")
        # past nn.Module's assignment, which would make a trained table one of the net's own parameters
        self.net._buffers[REPLACED] = None if table is None else table.to(own.device, own.dtype)

    # -- editing and leaving --

    def editable(self, part: str) -> list[str]:
        """attention, ffn, all (both), layers[a:b]; joined by +. These layers answer questions as well."""
        count = len(self.transformer.layers)
        blocks = [f"layers.{i}" for i in range(count)]
        parts = {
            "attention": [f"{b}.self_attn.{n}_proj" for b in blocks for n in "qkvo"],
            "ffn": [f"{b}.mlp.{n}_proj" for b in blocks for n in ("gate", "up", "down")],
        }
        parts["all"] = [name for names in parts.values() for name in names]
        return [f"{self.layers_at}{name}" for name in select_modules(parts, part, count)]

    def export(self, directory: Path) -> None:
        """Write the model into `directory`, which must exist, as transformers' from_pretrained loads it.

        model.safetensors, config.json, the small files it came with and, last, safear.json; every file appears whole
        or not at all. The image table is in the embedding's rows, replaced or not.
        """
        weights = {name: tensor for name, tensor in self.net.state_dict().items() if name != self.table_name}
        vocabulary = f"{self.layers_at}embed_tokens.weight"
        weights[vocabulary] = weights[vocabulary].clone()
        weights[vocabulary][self._places] = self.image_table().detach()
        write_weights(directory / WEIGHTS[0], weights, {"format": "pt"})
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


def sample_ids(
    model: EarlyFusion,
    prefix: Prefix,
    conditional: Tensor,
    unconditional: Tensor | None,
    sampling: Sampling,
    choose: Chooser,
    *,
    given: Tensor | None = None,
    keep_logits: list[Tensor] | None = None,
) -> Tensor:
    """Draw the image tokens (B, N) of B prompts; row ends are fed, never drawn.

    conditional, unconditional (B,): rows of `prefix`; None for no guidance (then its rows aren't computed).
    given: tokens (B, P) of the first P positions, not to be chosen. keep_logits collects the guided logits (for tests).
    """
    with torch.inference_mode():
        count, length, row = len(conditional), model.card.tokens, model.row
        rows = conditional if unconditional is None else torch.cat([conditional, unconditional])
        room = length - 1 + (length - 1) // row
        cache, h, chosen = Cache(model.as_llama, prefix, rows, room), prefix.last[rows], []
        for position in range(length):
            if position and position % row == 0:
                h = cache.step(model._end_of_row().expand(len(rows), -1))
            logits = model.image_logits(h)
            if len(h) > count:
                logits = guided(logits[:count], logits[count:], sampling.guidance)
            if keep_logits is not None:
                keep_logits.append(logits)
            if given is not None and position < given.shape[1]:
                ids = given[:, position]
            else:
                ids = choose(probabilities(logits, sampling), position)
            chosen.append(ids)
            if position + 1 < length:
                h = cache.step(model.image_embeddings(ids).repeat(len(h) // count, 1))
        ids = torch.stack(chosen, 1)
    return ids.clone()  # out of inference mode, so that training may take the ids


def read_settings(path: Path, kind: type[Settings]) -> Settings:
    """`safear.json`, or a published model's settings where there is none; UsageError names what is wrong in it."""
    try:
        return kind.model_validate(read_json(path).data if path.is_file() else {})
    except ValidationError as error:
        fault = error.errors()[0]
        where = f"{path}: {'.'.join(map(str, fault['loc']))}"
        raise UsageError(where, f"the settings of {kind.__name__}", fault["msg"], AGAIN) from None


def _refuse_ids(words: Words, size: int, where: str) -> None:
    if beyond := {role: number for role, number in words.ids.items() if not 0 <= number < size}:
        raise UsageError(f"{where}/tokenizer.json", f"special ids below {size}", str(beyond), AGAIN)


# -- pico -------------------------------------------------------------------------------------------------------------

PICO_CODES = 64
PICO_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


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
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1 and "vqmodel" not in name:
            norm = "norm" in name
            nn.init.normal_(parameter, mean=float(norm), std=1.0 if "embed" in name else 0.15)


@torch.no_grad()
def _tell_pictures_apart(model: EarlyFusion) -> None:
    """Scale what a random encoder says to mean 0 and deviation 1 in each channel: pictures then get several codes."""
    quant, caught = model.net.model.vqmodel.quant_conv, list[Tensor]()
    side = model.card.image_size
    with quant.register_forward_hook(lambda _, __, out: caught.append(out)):
        model.encode(torch.randint(0, 256, (8, 3, side, side)).to(torch.uint8))
    spread, middle = torch.std_mean(caught[0].transpose(0, 1).flatten(1), 1)
    conv = next(module for module in quant.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    conv.weight.div_(spread.view(-1, *[1] * (conv.weight.dim() - 1)))
    assert conv.bias is not None
    conv.bias.sub_(middle).div_(spread)
