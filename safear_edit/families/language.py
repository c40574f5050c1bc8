"""What Janus, Emu3, Chameleon, Liquid, OmniMamba share: a model that draws by saying image tokens, answers questions.

Scoring is transformers' forward pass; drawing and answering run its modules over keys and values that are allocated
once (llama.py), with each distinct prompt run once for all of its images. A family adds how an image becomes tokens,
what the transformer reads for them, and the words that stand around prompts and questions. One whose layers aren't
Llama's (OmniMamba) has its own `read_prompts`, `read_on` and `going_on` instead.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from safear_edit.errors import UsageError
from safear_edit.families.base import Condition, ModelFamily, Sampling, each_once, inserted, select_modules
from safear_edit.families.folder import AGAIN
from safear_edit.families.layers import llama
from safear_edit.families.layers.llama import positions
from safear_edit.families.sampling import Chooser, guided, inverse_cdf, probabilities, uniforms
from safear_edit.families.tokens import token_logprobs

if TYPE_CHECKING:
    from tokenizers import Tokenizer


Net = Any
"""A transformers model, with what the family file registers on it."""
Draw = Annotated[str, Field(pattern=r"\{text\}")]
Ask = Annotated[str, Field(pattern=r"(?s)\{image\}.*\{text\}")]


class BaseTemplate(BaseModel):
    """The words around a prompt or a question; {text} is the user's, {image} where the image goes.

    `reply` comes before an answer, `describe` asks for a caption.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    draw: Draw
    ask: Ask
    reply: str = ""
    describe: str


class BaseSettings(BaseModel):
    """`safear.json`: what the folder's other files don't say. A family's own class has the published values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    variant: str = ""
    licence: str
    sampling: Sampling
    template: BaseTemplate


# -- words ------------------------------------------------------------------------------------------------------------

ROLES = ("bos", "eos", "pad", "boi", "eoi", "image")
"""What every model has a token for: ends of a text, padding, begin and end of an image, and its place in a question."""


@dataclass(frozen=True)
class Words:
    """A model's tokenizer, and the ids of the tokens that prompts are built with: of ROLES, and of the family's own."""

    tokenizer: Tokenizer
    bos: int
    eos: int
    pad: int
    boi: int
    eoi: int
    image: int
    own: Mapping[str, int]

    @property
    def ids(self) -> dict[str, int]:
        """The token of every role."""
        return {**{role: getattr(self, role) for role in ROLES}, **self.own}

    def __getitem__(self, role: str) -> int:
        return self.ids[role]

    def fitting(self, size: int, where: str) -> None:
        """UsageError if a token lies beyond a vocabulary of `size`."""
        if beyond := {role: number for role, number in self.ids.items() if not 0 <= number < size}:
            raise UsageError(f"{where}/tokenizer.json", f"special ids below {size}", str(beyond), AGAIN)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with nothing added; special tokens written in it are recognised."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens and surrounding blanks."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()


def open_tokenizer(files: Mapping[str, bytes], where: str) -> Tokenizer:
    """The tokenizer in tokenizer.json, which neither pads nor truncates; UsageError if there is none."""
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
    return tokenizer


# -- running on -------------------------------------------------------------------------------------------------------


class Read(Protocol):
    """Prompts after the language model: what its layers keep of them, and each one's last state (U, D)."""

    @property
    def last(self) -> Tensor: ...


class GoingOn(Protocol):
    """Rows that go on token by token."""

    def step(self, h_RD: Tensor) -> Tensor:
        """The next token of every row through all layers; its state (R, D)."""


TWO_TEXTS = ("a photo of a dog", "a painting of two cats")
"""End in different words, and in different letters for a tokenizer of bytes."""


# -- the model --------------------------------------------------------------------------------------------------------


class LanguageModel(ModelFamily):
    """A model whose transformer says image tokens to draw, and words to answer questions about images.

    A Condition's features (U, T, D) are the input embeddings of whole drawing prompts, up to the mark that images
    begin with, taken without a gradient: no editable part reaches them.
    """

    layers_at: ClassVar[str]
    """Where `layers` and `embed_tokens` are in the state dict, with the final dot."""
    more_parts: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Editable parts beside the layers: part → names of modules, without "model."."""
    net: Net
    words: Words
    template: BaseTemplate

    # -- what a family adds --

    @property
    @abstractmethod
    def transformer(self) -> Any:
        """transformers' module over embeddings, that returns `last_hidden_state`."""

    @property
    def as_llama(self) -> Any:
        """The same layers under the names by which llama.py calls them."""
        return self.transformer

    @abstractmethod
    def prompt_ids(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (U, T) and mask (U, T) of drawing prompts, left-padded to the longest."""

    @abstractmethod
    def _rows(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct prompts in use: embeddings (U, T, D), mask (U, T), and which of them each image takes (B,)."""

    def _embedded(self, ids: Tensor) -> Tensor:
        """What the transformer reads for tokens of the vocabulary, (…, D)."""
        embedded: Tensor = self.net.get_input_embeddings()(ids)
        return embedded

    @abstractmethod
    def image_embeddings(self, ids: Tensor) -> Tensor:
        """What the transformer reads for image tokens, (…, D)."""

    @abstractmethod
    def image_logits(self, state: Tensor) -> Tensor:
        """Logits of image tokens (…, V), float32: the only choices there are at the places of an image."""

    @abstractmethod
    def seen(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) as the transformer reads them in a question, (B, n, D)."""

    def said(self, state: Tensor) -> Tensor:
        """Logits of words (…, vocabulary), float32, for an answer."""
        found: Tensor = self.net.lm_head(state).float()
        return found

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return (self.words.eos,)

    @property
    def end_of_row(self) -> int | None:
        """The token after each row of an image; None if rows follow each other directly."""
        return None

    def frame(self) -> tuple[list[int], list[int]]:
        """What stands before and after an image's tokens in a question."""
        return [self.words.boi], [self.words.eoi]

    def after_question(self) -> list[int]:
        """What ends a user's turn, if a token does."""
        return []

    # -- prompts --

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Prompts of several lengths as ids (U, T), left-padded to the longest, and their mask (U, T)."""
        longest = max(map(len, rows))
        ids = torch.tensor([[self.words.pad] * (longest - len(row)) + [*row] for row in rows], device=self.device)
        count = torch.tensor([len(row) for row in rows], device=self.device)
        return ids, torch.arange(longest, device=self.device) >= longest - count.unsqueeze(1)

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Embeddings of the distinct prompts in the model's drawing format; see the class for what they hold."""
        return self.open_condition(prompts)

    def word_table(self) -> tuple[nn.Embedding, Tokenizer]:
        """The language model's."""
        return self.net.get_input_embeddings(), self.words.tokenizer

    def open_condition(self, prompts: Sequence[str]) -> Condition:
        """As the base class says."""
        distinct, index = each_once(prompts)
        ids, mask = self.prompt_ids(distinct)
        return Condition.of(self._embedded(ids), mask).rows(index)

    def with_vectors(self, condition: Condition, vectors: Tensor) -> Condition:
        """Before what follows the text in a drawing prompt: vectors behind the begin-of-image mark would stand where
        the image's first token is read."""
        return inserted(condition, vectors, self._after_text())

    @torch.no_grad()
    def in_prompt(self, image: Tensor) -> Tensor:
        """An image uint8 (3, H, W) between its marks, as a prompt may hold it, (n, D): for `with_vectors`."""
        before, after = (torch.tensor(ids, device=self.device, dtype=torch.long) for ids in self.frame())
        seen = self.seen(image.unsqueeze(0))[0]
        return torch.cat([self._embedded(before).to(seen), seen, self._embedded(after).to(seen)])

    def _after_text(self) -> int:
        """Tokens that every drawing prompt ends with: as many as two prompts share that end in different words."""
        ids, _ = self.prompt_ids(TWO_TEXTS)
        same = (ids[0] == ids[1]).flip(0)
        return int(same.long().cumprod(0).sum())

    def caption_lengths(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """Every prompt is read whole, with what the drawing format puts around it."""
        lengths = [int(n) for n in self.prompt_ids(prompts)[1].sum(1)]
        return [(n, n) for n in lengths]

    # -- drawing --

    @property
    def row(self) -> int:
        """Image tokens between two row ends."""
        return self.card.tokens if self.end_of_row is None else isqrt(self.card.tokens)

    def _end_of_row(self) -> Tensor:
        return self._embedded(torch.tensor([self.end_of_row], device=self.device))

    def logits(self, condition: Condition, ids: Tensor) -> Tensor:
        """Teacher-forced logits (B, N, V), float32, of image tokens."""
        return self.image_logits(self.hidden(condition, ids))

    def hidden(self, condition: Condition, ids: Tensor) -> Tensor:
        """Last hidden states (B, N, D), by transformers' forward pass over prompt and image together.

        `ids` may be the first tokens of images only. Row ends are put where the published format has them; what
        predicts a row's first token is the state of the row end before it. Every image runs its own copy of the
        prompt: the image is most of the sequence, and one pass lets `net.gradient_checkpointing_enable()` trade time
        for memory at a published size.
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

    @property
    def depth_and_width(self) -> tuple[int, int]:
        """As the base class says."""
        return len(self.transformer.layers), self.net.get_input_embeddings().weight.shape[1]

    @property
    def row_bytes(self) -> int:
        """As the base class says, of a transformer with transformers' configuration."""
        config = self.transformer.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        places = self.card.tokens // self.card.depth
        return 2 * config.num_hidden_layers * config.num_key_value_heads * head * places * self.dtype.itemsize

    def _draw(self, condition: Condition, seeds: Sequence[int], sampling: Sampling, prefix: Tensor | None) -> Tensor:
        draws = uniforms(seeds, self.card.tokens).to(self.device)
        read, which, without = self.read(condition, sampling.guidance > 1)
        choose = inverse_cdf(draws)
        return choose.checked(sample_ids(self, read, which, without, sampling, choose, given=prefix))

    def read_prompts(self, h_UTD: Tensor, mask_UT: Tensor, asking: bool = False) -> Any:
        """Run left-padded prompts, to draw or to answer from, once; a Read."""
        return llama.read_prompts(self.as_llama, h_UTD, mask_UT)

    def read_on(self, read: Any, h_ULD: Tensor) -> Tensor:
        """States (U, L, D) of L further tokens per prompt, differentiable; what was read stays as it is."""
        return llama.read_on(self.as_llama, read, h_ULD)

    def going_on(self, read: Any, rows_R: Tensor, room: int) -> GoingOn:
        """These rows of what was read, with room for so many tokens more."""
        return llama.Cache(self.as_llama, read, rows_R, room)

    def read(self, condition: Condition, guided: bool) -> tuple[Read, Tensor, Tensor | None]:
        """Each distinct prompt through the transformer once; its rows per image, with and without the caption."""
        count = len(condition)
        text, mask, which = self._rows(condition.twice() if guided else condition)
        prefix = self.read_prompts(text, mask)
        return prefix, which[:count], which[count:] if guided else None

    # -- understanding --

    def question_ids(self, question: str) -> list[int]:
        """A question in the model's format, the image's place held by as many image tokens as it has, ends of rows
        included."""
        words = self.words
        marked = self.template.ask.replace("{image}", words.tokenizer.id_to_token(words.image) or "")
        ids = words.encode(marked.replace("{text}", question))
        if ids.count(words.image) != 1:
            raise UsageError("question", "words", "the token that stands for the image", "take it out")
        place, (before, after) = ids.index(words.image), self.frame()
        ends = 0 if self.end_of_row is None else self.card.tokens // self.row
        held = [words.image] * (self.card.tokens + ends)
        return [words.bos, *ids[:place], *before, *held, *after, *ids[place + 1 :], *self.after_question()]

    def reply_ids(self, reply: str) -> list[int]:
        """A reply as it follows a question, without the end token that a whole one ends with."""
        return self.words.encode(self.template.reply + reply)

    @torch.no_grad()
    def answer(self, images: Tensor, question: str, limit: int = 64) -> list[str]:
        """One reply per image, uint8 (B, 3, H, W): the likeliest token each time, to the end or `limit` tokens."""
        replies: list[str] = []
        ends = torch.tensor(self.ends, device=self.device)
        for part in self._checked(images).split(self.rows_per_batch):
            prefix = self._asked(part, question)
            rows = torch.arange(len(part), device=self.device)
            cache, h, said = self.going_on(prefix, rows, limit), prefix.last, list[Tensor]()
            ended = torch.zeros(len(part), dtype=torch.bool, device=self.device)
            while not said or (len(said) < limit and not bool(ended.all())):
                said.append(self.said(h).argmax(-1).masked_fill(ended, self.words.eos))
                ended = ended | torch.isin(said[-1], ends)
                h = cache.step(self._embedded(said[-1]))
            replies += [self.words.decode(self._until_end(row)) for row in torch.stack(said, 1).tolist()]
        return replies

    def _until_end(self, ids: Sequence[int]) -> Sequence[int]:
        return ids[: next((i for i, token in enumerate(ids) if token in self.ends), len(ids))]

    def answer_logprobs(self, images: Tensor, question: str, answers: Sequence[str]) -> Tensor:
        """Log-probability in nats, (B, len(answers)), that the reply begins with each answer; differentiable.

        "yes" against "no" judges an image without reading prose. Answers of different lengths aren't comparable by
        themselves: a longer one is a product of more factors.
        """
        spoken = [torch.tensor(self.reply_ids(answer), device=self.device) for answer in answers]
        if not spoken or any(not len(ids) for ids in spoken):
            raise UsageError("answers", "at least one, of at least one token each", repr(list(answers)), "name them")
        parts = []
        for part in self._checked(images).split(self.rows_per_batch):
            prefix = self._asked(part, question)
            parts.append(torch.stack([self._spoken(prefix, ids) for ids in spoken], 1))
        return torch.cat(parts)

    def _spoken(self, prefix: Read, ids_L: Tensor) -> Tensor:
        """Log-probability (B,) of these tokens after the prefix; the question itself isn't run again."""
        ids = ids_L.expand(len(prefix.last), -1)
        states = [prefix.last.unsqueeze(1)]
        if ids.shape[1] > 1:
            states.append(self.read_on(prefix, self._embedded(ids[:, :-1])))
        return token_logprobs(self.said(torch.cat(states, 1)), ids).sum(1)

    def describe(self, images: Tensor) -> list[str]:
        """A caption per image: the answer to the model's own question for one."""
        return self.answer(images, self.template.describe)

    def _asked(self, images: Tensor, question: str) -> Read:
        ids = torch.tensor(self.question_ids(question), device=self.device)
        seen = self.seen(images)
        place = int((ids == self.words.image).nonzero()[0])
        text = self._embedded(ids).expand(len(images), -1, -1)
        h = torch.cat([text[:, :place], seen, text[:, place + seen.shape[1] :]], 1)
        return self.read_prompts(h, torch.ones(h.shape[:2], dtype=torch.bool, device=self.device), asking=True)

    # -- editing --

    def passes(self) -> list[tuple[nn.Module, str]]:
        """As the base class says."""
        return [(layer, "forward") for layer in self.transformer.layers]

    def editable(self, part: str) -> list[str]:
        """attention, ffn, what the family adds, all (these), layers[a:b]; joined by +.

        The layers are those that answer questions as well.
        """
        count = len(self.transformer.layers)
        blocks = [f"layers.{i}" for i in range(count)]
        parts: dict[str, Sequence[str]] = {
            "attention": [f"{b}.self_attn.{n}_proj" for b in blocks for n in "qkvo"],
            "ffn": [f"{b}.mlp.{n}_proj" for b in blocks for n in ("gate", "up", "down")],
            **self.more_parts,
        }
        parts["all"] = [name for names in parts.values() for name in names]
        found = select_modules(parts, part, count)
        return [f"{self.layers_at if name.startswith('layers.') else 'model.'}{name}" for name in found]


@dataclass(frozen=True)
class Pick:
    """How the next token of `count` images is taken from logits: under guidance if there are as many rows again, and
    where it is not `given` (B, P) already. `kept` collects the guided logits."""

    count: int
    sampling: Sampling
    choose: Chooser
    given: Tensor | None
    kept: list[Tensor] | None

    def next(self, logits: Tensor, position: int) -> Tensor:
        """Tokens (B,) from logits (B, V) or (2 B, V)."""
        if len(logits) > self.count:
            logits = guided(logits[: self.count], logits[self.count :], self.sampling.guidance)
        if self.kept is not None:
            self.kept.append(logits)
        if self.given is not None and position < self.given.shape[1]:
            return self.given[:, position]
        return self.choose(probabilities(logits, self.sampling), position)


def sample_ids(
    model: LanguageModel,
    prefix: Read,
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
    pick = Pick(len(conditional), sampling, choose, given, keep_logits)
    with torch.inference_mode():
        length, row = model.card.tokens, model.row
        rows = conditional if unconditional is None else torch.cat([conditional, unconditional])
        each = len(rows) // len(conditional)
        room = length - 1 + (length - 1) // row
        cache, h, chosen = model.going_on(prefix, rows, room), prefix.last[rows], []
        for position in range(length):
            if position and position % row == 0:
                h = cache.step(model._end_of_row().expand(len(rows), -1))
            ids = pick.next(model.image_logits(h), position)
            chosen.append(ids)
            if position + 1 < length:
                h = cache.step(model.image_embeddings(ids).repeat(each, 1))
        ids = torch.stack(chosen, 1)
    return ids.clone()  # out of inference mode, so that training may take the ids


# -- pico -------------------------------------------------------------------------------------------------------------

PICO_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def byte_tokenizer(tokens: Iterable[str], named: Mapping[str, str]) -> dict[str, bytes]:
    """Files of a tokenizer that knows single bytes and these tokens: different texts never look alike.

    `named`: role → token, for tokenizer_config.json.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(tokens))
    roles = {f"{role}_token": name for role, name in named.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}
