"""What every model family offers: one class per architecture, the same handful of verbs.

Methods, attacks and the evaluation know this interface only; a new family is one file with one decorated class.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.reference import ModelRef, Variant, images_of
from safear_edit.files.memory import LARGE
from safear_edit.spec.spec import Images

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from safear_edit.families.text import TextEncoder


CAPTIONS_PER_BATCH = 128
"""Captions encoded together; bounds memory."""
ROWS_PER_BATCH = 64
"""Images sampled or looked at together; bounds memory, changes no image."""
ROW_BYTES = 2**31
"""How much the keys and values of images that are sampled together may take, with and without their captions."""
READ_BYTES = 2**31
"""How much logits that are read and compared together may take, and what is made of them."""
READ_COPIES = 8
"""Of both models with and without captions, and the softmax of a pair of them (`likelihood.exact_kl`)."""
PIXELS_PER_BATCH = 2**19
"""Pixels that a tokenizer encodes or decodes together: its widest layers take about 3 KiB for each."""
OWN = "safear"
"""The layout in which a family writes what it loads again, also what no published layout has a place for."""
REPLACED = "replaced_image_table"
"""Buffer of a net with a codebook, not saved: None, or the rows that image tokens are read from instead of its own."""
Capability = Literal["codebook", "scales", "understanding", "captioning", "cross_attention", "denoising"]
"""What only some families can do. denoising: an image is a latent that is denoised as a whole, so it has no tokens that
follow each other and no likelihood; `logits` refuses, `noise_prediction` takes its place."""


@dataclass(frozen=True)
class ModelCard:
    """What a model is, for recipes and reports.

    tokens: per image; choices: values of one token (codebook size, 2 for bits, 0 where it is numbers of a latent);
    scales: tokens per scale, coarse to fine, (tokens,) for a raster model; files: weight file name → sha256; depth:
    tokens of one place of an image, which follow each other; passes: forward passes over all tokens that drawing an
    image takes, 1 where each token is computed once.
    """

    family: str
    variant: str
    image_size: int
    tokens: int
    choices: int
    scales: tuple[int, ...]
    parameters: int
    licence: str
    files: Mapping[str, str] = field(default_factory=dict)
    depth: int = 1
    passes: int = 1

    @property
    def ref(self) -> str:
        """`family:variant`."""
        return f"{self.family}:{self.variant}"

    @property
    def images(self) -> Images:
        """What it draws, as its family's variant says."""
        return images_of(self.family, self.variant)

    @property
    def digest(self) -> str:
        """sha256 over the digests of the weight files: the identity of the base in edits and recipes."""
        return hashlib.sha256(json.dumps(dict(self.files), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Condition:
    """Encoded captions, each once, and which caption every image takes.

    features (U, T, C) and mask (U, T) bool are the distinct captions, left-padded; index (B,) int64 names the caption
    of each image; dropped (B,) bool marks images that take the unconditional caption instead.
    """

    features: Tensor
    mask: Tensor
    index: Tensor
    dropped: Tensor

    @classmethod
    def of(cls, features: Tensor, mask: Tensor) -> Self:
        """One image per caption, none dropped."""
        count = len(features)
        return cls(features, mask, torch.arange(count), torch.zeros(count, dtype=torch.bool))

    @classmethod
    def encoded(cls, text: TextEncoder, prompts: Sequence[str], device: torch.device, dtype: torch.dtype) -> Self:
        """Encode prompts, equal ones once, trimmed to the longest: left-padded, zeros at the pads."""
        distinct, index = each_once(prompts)
        parts = [text.states(distinct[i : i + CAPTIONS_PER_BATCH]) for i in range(0, len(distinct), CAPTIONS_PER_BATCH)]
        longest = max(int(mask.sum(1).max()) for _, mask in parts)
        aligned = [left_padded(states, mask, longest) for states, mask in parts]
        features = torch.cat([f for f, _ in aligned]).to(device, dtype)
        return cls.of(features, torch.cat([m for _, m in aligned]).to(device)).rows(index)

    def distinct(self) -> tuple[Tensor, Tensor, Tensor]:
        """What has to be run: (captions (U,), dropped (U,) bool, row of the two for each image (B,)).

        Dropped captions differ in their lengths only, so the first caption of a length stands for all of that length.
        """
        first: dict[int, int] = {}
        twins = [first.setdefault(int(n), i) for i, n in enumerate(self.mask.sum(1))]
        caption = torch.where(self.dropped, torch.tensor(twins)[self.index], self.index)
        key, inverse = torch.unique(2 * caption + self.dropped, return_inverse=True)
        device = self.features.device
        return (key // 2).to(device), (key % 2).bool().to(device), inverse.to(device)

    def in_use(self, unconditional: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What has to be run: features (U, T, C) and mask (U, T), trimmed to the longest caption, and which of these
        rows each image takes (B,).

        unconditional: mask (U, T) → features (U, T, C) of dropped captions; needed if there are any.
        """
        used, dropped, which = self.distinct()
        features, mask = self.features[used], self.mask[used]
        if bool(dropped.any()):
            assert unconditional is not None
            features = torch.where(dropped[:, None, None], unconditional(mask), features)
        longest = int(mask.sum(1).max())
        return features[:, -longest:], mask[:, -longest:], which

    def taking(self, features_1TC: Tensor, mask_1T: Tensor) -> Self:
        """Dropped images take this caption instead, whatever the length of their own was; it is one caption more."""
        if not bool(self.dropped.any()):
            return self
        longest = max(self.mask.shape[1], mask_1T.shape[1])
        parts = ((self.features, self.mask), (features_1TC.type_as(self.features), mask_1T))
        return type(self)(
            torch.cat([F.pad(f, (0, 0, longest - f.shape[1], 0)) for f, _ in parts]),
            torch.cat([F.pad(m, (longest - m.shape[1], 0)) for _, m in parts]),
            self.index.masked_fill(self.dropped, len(self.mask)),
            torch.zeros_like(self.dropped),
        )

    def twice(self) -> Self:
        """These images, then the same ones with their captions dropped: what guidance needs."""
        dropped = torch.cat([self.dropped, torch.ones_like(self.dropped)])
        return replace(self, index=self.index.repeat(2), dropped=dropped)

    def rows(self, index: Tensor) -> Self:
        """The condition of images `index`, any order, repeats allowed; no caption is copied."""
        return replace(self, index=self.index[index.cpu()], dropped=self.dropped[index.cpu()])

    def __len__(self) -> int:
        return len(self.index)


def inserted(condition: Condition, vectors_kC: Tensor, tail: int) -> Condition:
    """Captions with these vectors before their last `tail` positions."""
    count, added, at = len(condition.features), len(vectors_kC), condition.features.shape[1] - tail
    rows = vectors_kC.to(condition.features).expand(count, *vectors_kC.shape)
    features = torch.cat([condition.features[:, :at], rows, condition.features[:, at:]], 1)
    seen = condition.mask.new_ones(count, added)
    return replace(
        condition, features=features, mask=torch.cat([condition.mask[:, :at], seen, condition.mask[:, at:]], 1)
    )


def each_once(prompts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct prompts in the order of their first use, and which of them each one is, (B,)."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    return list(place), torch.tensor([place[prompt] for prompt in prompts])


def left_padded(states_BTC: Tensor, mask_BT: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Right-padded encoder output to (B, length, C) with each caption at the right end and zeros before it."""
    count = mask_BT.sum(1, keepdim=True)
    column = torch.arange(length, device=count.device) - (length - count)
    mask = column >= 0
    row = torch.arange(len(states_BTC), device=count.device).unsqueeze(1)
    return states_BTC[row, column.clamp(min=0)] * mask.unsqueeze(-1), mask


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: guidance s in u + s (c - u) (≤ 1 = off), temperature (0: the likeliest), top-k (0 = off),
    top-p (1 = off). UsageError for numbers with which no token is left, or another is drawn than was meant."""

    guidance: float
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        finite = isfinite(self.guidance) and isfinite(self.temperature)
        if not finite or self.temperature < 0 or self.top_k < 0 or not 0 <= self.top_p <= 1:
            expected = "a finite guidance, a temperature and a top-k of 0 or more, a top-p from 0 to 1"
            raise UsageError("sampling", expected, str(self), "correct the number, or leave it out")

    def guided(self, factor: float) -> Self:
        """The same with so many times its guidance."""
        return replace(self, guidance=self.guidance * factor)

    def warmed(self, temperature: float) -> Self:
        """The same at another temperature."""
        return replace(self, temperature=temperature)


class ModelFamily(ABC):
    """A loaded model. An Edit's names are names of `net`'s state dict."""

    name: ClassVar[str]
    provides: ClassVar[frozenset[Capability]] = frozenset()
    variants: ClassVar[Mapping[str, Variant]] = {}
    model_types: ClassVar[Sequence[str]] = ()
    layouts: ClassVar[Mapping[str, str]] = {}
    """These three as `reference.Published` says. They are read without importing the class: write literals."""
    table_name: ClassVar[str] = ""
    kept_bytes: ClassVar[Mapping[str, float]] = {"float32": 110.0, "bfloat16": 78.0, "float16": 78.0}
    """What a training step keeps for its backward pass per token, layer and unit of width, by dtype of the frozen
    weights: storages that autograd saves with adapters on all linear layers (tests/families/test_contract.py)."""
    decode_bytes: ClassVar[int] = 3 * 2**29
    """Activations of a tokenizer that decodes one batch of images (PIXELS_PER_BATCH). VQ-16's: 0.17 GiB an image of
    256 x 256 pixels, measured for two of them, beside weights in float32."""
    decode_flops: ClassVar[float] = 3.86e6
    """What it computes for a pixel; VQ-16's, counted by torch's FlopCounterMode."""
    card: ModelCard
    net: nn.Module
    sampling: Sampling
    together: int = ROWS_PER_BATCH
    """Images that are drawn, encoded or decoded together at most; less saves memory and changes no image."""
    learnt_together: int = 2**31 - 1
    """Images that an attack computes a gradient on together at most; less saves memory and sums in another order."""

    @classmethod
    @abstractmethod
    def load(cls, ref: ModelRef, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Read the weights that `ref` names; UsageError or TrustError say what is missing or wrong with them."""

    @classmethod
    @abstractmethod
    def pico(cls, seed: int = 0) -> Self:
        """The real architecture, tiny and random: for contract tests."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights, the image tokenizer's aside."""
        return self.net.get_submodule(self.editable("all")[0]).get_parameter("weight").dtype

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights, the image tokenizer's too, the text encoder's not."""
        return sum(tensor.nbytes for tensor in (*self.net.parameters(), *self.net.buffers()))

    @property
    def layer_parameters(self) -> int:
        """Numbers of the linear layers that a token goes through: those that an edit may change."""
        return sum(self.net.get_submodule(name).get_parameter("weight").numel() for name in self.editable("all"))

    @property
    def text_bytes(self) -> int:
        """Memory of the text encoder while it encodes; 0 where it is part of the net, or small."""
        return 0

    @property
    def depth_and_width(self) -> tuple[int, int]:
        """Layers of the transformer, and numbers of a token's state."""
        shape = self.net.get_submodule(self.editable("attention")[0]).get_parameter("weight").shape
        return len(self.passes()), shape[1]

    @property
    def stacks(self) -> tuple[tuple[int, int, int], ...]:
        """Transformers that an image goes through: layers, numbers of a position's state, positions of one image. The
        first one's layers are `passes`."""
        return ((*self.depth_and_width, self.card.tokens // self.card.depth),)

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts, equal ones once; image i takes prompt i."""

    def open_condition(self, prompts: Sequence[str]) -> Condition:
        """`condition`, through which a gradient flows back to what looks the prompts' tokens up."""
        return self.condition(prompts)

    def keep_captions(self, prompts: Sequence[str], file: Path, identity: str) -> None:
        """Encode these prompts now, for a run that keeps them in `file`, and let go of the text encoder until others
        are asked for. identity: what the run is of. Does nothing for a model without an encoder of its own."""
        return

    @abstractmethod
    def word_table(self) -> tuple[nn.Embedding, Tokenizer]:
        """What looks the tokens of prompts up, and the tokenizer that made them."""

    def encoder_origin(self) -> tuple[str, str] | None:
        """Name and weight file's sha256 of the text encoder that isn't among the model's own files; None: there is
        none, its transformer reads captions itself."""
        return None

    def caption_lengths(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """Tokens of each caption, and how many of them the model reads: fewer where its window is shorter.

        What is cut off is not part of what is drawn. A family that reads every caption whole needs nothing of its own.
        """
        read = self.condition(prompts)
        lengths = [int(n) for n in read.mask.sum(1)[read.index.to(read.mask.device)]]
        return [(n, n) for n in lengths]

    def with_vectors(self, condition: Condition, vectors: Tensor) -> Condition:
        """The same captions, each with these vectors (k, C) as the last of its text, where the model reads text;
        differentiable in them.

        Captions are right-aligned, so the right end is theirs. A family whose prompts go on after the text, or whose
        window is fixed, has its own.
        """
        return inserted(condition, vectors, 0)

    def dropped(self, condition: Condition, rows: Tensor) -> Condition:
        """The same condition with the captions of images `rows` (B,) bool dropped (classifier-free guidance)."""
        return replace(condition, dropped=condition.dropped | rows.cpu())

    @abstractmethod
    def logits(self, condition: Condition, ids: Tensor) -> Tensor:
        """Teacher-forced logits, ids.shape + (choices,), float32, differentiable, without guidance."""

    def noise_prediction(self, condition: Condition, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The noise that the network finds in latents (B, N, C) after this noise was mixed in, (B, N, C) float32,
        differentiable, without guidance. level (B,) in [0, 1): how far along the training's noise schedule, 1 being
        noise alone. Families that provide "denoising" have it."""
        raise UsageError(f"family {self.name}", "one that denoises latents", "none", "take family diffusion")

    def caption_states(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """What keys and values of captions are made from, (B, T, C), and which of it is a caption's, (B, T) bool.
        Families that provide "denoising" have it."""
        raise UsageError(f"family {self.name}", "one that denoises latents", "none", "take family diffusion")

    def hidden(self, condition: Condition, ids: Tensor) -> Tensor:
        """Last hidden states (B, N, D) after the final norm, differentiable: row j is what predicts token j."""
        raise UsageError(f"family {self.name}", "one that shows its hidden states", "none", "choose another method")

    def prompt_hidden(self, condition: Condition) -> tuple[Tensor, Tensor] | None:
        """Last hidden states (B, T, D) of the prompt's own positions, left-padded, and their mask (B, T); None where
        the transformer doesn't read prompts token by token."""
        return None

    def pieces(self, prompt: str) -> list[str]:
        """What the text encoder cuts a prompt into. Families that provide "cross_attention" have it."""
        raise UsageError(f"family {self.name}", "one that reads captions by cross attention", "none", "use Infinity")

    def text_attention(self, prompts: Sequence[str], ids: Tensor) -> list[list[Tensor]]:
        """Per image and scale, how much each place looks at each piece of the caption, (h, w, pieces): attention
        probabilities, mean over layers and heads, without guidance. Families with "cross_attention" have it."""
        raise UsageError(f"family {self.name}", "one that reads captions by cross attention", "none", "use Infinity")

    def image_table(self) -> Tensor:
        """The rows that feed image tokens back to the transformer, (V, D), in their state-dict tensor `table_name`."""
        raise UsageError(f"family {self.name}", "one with a learned codebook", "none", "choose another method")

    def set_image_table(self, table: Tensor | None) -> None:
        """Read image tokens from `table` (V, D), which may carry a gradient; None: from the model's own again.

        Whatever reads image tokens looks rows up in it. What is drawn from (the head) and what images are decoded
        from (the tokenizer's codebook) stay. An export has these rows.
        """
        own = self.image_table()
        if table is not None and table.shape != own.shape:
            got, fix = str(tuple(table.shape)), "change rows, not the shape"
            raise UsageError("image table", f"shape {tuple(own.shape)}", got, fix)
        # past nn.Module's assignment, which would make a trained table one of the net's own parameters
        self.net._buffers[REPLACED] = None if table is None else table.to(own.device, own.dtype)

    def answer(self, images: Tensor, question: str, limit: int = 64) -> list[str]:
        """One reply per image, uint8 (B, 3, H, W), of at most `limit` tokens. Families that provide "understanding"
        have it."""
        raise UsageError(f"family {self.name}", "one that answers questions about images", "none", "use Janus")

    def describe(self, images: Tensor) -> list[str]:
        """A caption per image, uint8 (B, 3, H, W): the answer to the model's own question for one. Families that
        provide "understanding" have it."""
        raise UsageError(f"family {self.name}", "one that answers questions about images", "none", "use Janus")

    def answer_logprobs(self, images: Tensor, question: str, answers: Sequence[str]) -> Tensor:
        """Log-probability in nats, (B, len(answers)), that the reply to the question begins with each answer;
        differentiable. Families that provide "understanding" have it."""
        raise UsageError(f"family {self.name}", "one that answers questions about images", "none", "use Janus")

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of one image's ids: (N,), or (N, D) where a token is D bits, or D numbers of a latent."""
        return (self.card.tokens,)

    @property
    def row_bytes(self) -> int:
        """What sampling keeps of one image: keys and values of all layers; 0 where that is next to nothing."""
        return 0

    @property
    def rows_per_batch(self) -> int:
        """How many images are sampled together."""
        return max(1, min(self.together, ROW_BYTES // max(1, 2 * self.row_bytes)))

    @property
    def batch_bytes(self) -> int:
        """Keys and values of a whole batch of images that are drawn under guidance."""
        return 2 * self.rows_per_batch * self.row_bytes

    @property
    def images_per_batch(self) -> int:
        """How many images are encoded or decoded together."""
        return max(1, min(self.together, PIXELS_PER_BATCH // self.card.image_size**2))

    def read_bytes(self, images: int) -> int:
        """Logits of so many images that are read and compared at once, with what is made of them, all in float32."""
        return images * READ_COPIES * 4 * prod(self.token_shape) * self.card.choices

    def read_together(self, asked: int) -> int:
        """So many of `asked` images are read in one pass that their logits keep within READ_BYTES, or one: a codebook
        of 184,000 entries has 735 kB of them for every token. The same whatever is free, so that a run that goes on
        elsewhere rounds alike."""
        return max(1, min(asked, READ_BYTES // max(1, self.read_bytes(1))))

    @property
    def hands(self) -> int:
        """Batches that are drawn or read side by side, each by one thread (`processes.side_by_side`): as many as torch
        has threads, for a small model on a CPU, while their keys and values fit into ROW_BYTES. A large one is read
        from memory once for all threads."""
        if self.device.type != "cpu" or self.weight_bytes >= LARGE:
            return 1
        return max(1, min(torch.get_num_threads(), ROW_BYTES // max(1, self.batch_bytes)))

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        progress: Callable[[int], None] | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Draw one image's ids per row, (B, N) or (B, N, D). Guidance of 1 or less is none, and computes no
        unconditional rows; `progress` is told how many images are done.

        Row i depends on its prompt and seeds[i] only. Matrix products of another height round differently (1e-6 in a
        logit), so another batch gives the same ids unless a draw falls that close to the border of two choices.

        `prefix` (B, P) or (B, P, D) are the first P tokens, given instead of drawn; those after them are drawn from
        the same numbers as without, so an image continued from its own prefix comes out the same.
        """
        if len(seeds) < len(condition):
            raise UsageError("generate", f"a seed for each of {len(condition)} images", str(len(seeds)), "give as many")
        sampling, parts = sampling or self.sampling, list[Tensor]()
        for start in range(0, len(condition), self.rows_per_batch):
            rows = torch.arange(start, min(start + self.rows_per_batch, len(condition)))
            given = None if prefix is None else prefix[rows].to(self.device)
            parts.append(self._draw(condition.rows(rows), [seeds[i] for i in rows.tolist()], sampling, given))
            if progress is not None:
                progress(int(rows[-1]) + 1)
        return torch.cat(parts) if parts else torch.empty(0, *self.token_shape, dtype=torch.int64)

    @abstractmethod
    def _draw(self, condition: Condition, seeds: Sequence[int], sampling: Sampling, prefix: Tensor | None) -> Tensor:
        """`generate` for one batch: arguments as there, `prefix` on the model's device."""

    def _checked(self, images: Tensor) -> Tensor:
        """`images` if they are as large as the model's own, UsageError otherwise."""
        side = self.card.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side):
            got = f"{images.dtype} {tuple(images.shape)}"
            raise UsageError("images", f"uint8 (B, 3, {side}, {side})", got, "resize them first")
        return images

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to tokens."""

    @abstractmethod
    def decode(self, ids: Tensor) -> Tensor:
        """Tokens to uint8 (B, 3, H, W)."""

    def sketched(self, ids: Tensor, first_scales: int) -> Tensor:
        """What the first scales of finished images alone decode to; families that provide "scales" have it."""
        raise UsageError(f"family {self.name}", "one that draws scale by scale", "none", "use Infinity")

    @abstractmethod
    def editable(self, part: str) -> list[str]:
        """Names of the linear layers of `part`; UsageError names the parts there are."""

    def passes(self) -> list[tuple[nn.Module, str]]:
        """What a training step may run again instead of keeping what it computed: each layer, and its method's name.
        Empty: this family can't."""
        return []

    @abstractmethod
    def export(self, directory: Path, layout: str = OWN) -> None:
        """Write into an existing directory; every file appears whole or not at all.

        OWN: what `load` reads back, whatever the model is. A name of `layouts`: what the code that it is for loads, and
        shows this very model; UsageError for a model that it has no place for.
        """

    def check_of(self, layout: str) -> str:
        """How a person checks, in other code, what `export` wrote in this layout."""
        return self.layouts[layout]


def select_modules(parts: Mapping[str, Sequence[str]], wanted: str, layers: int) -> list[str]:
    """Module names of `wanted`: part names joined by "+" ("attention+ffn"), or "layers[a:b]" for whole layers.

    parts: part name → module names, layer modules being "layers.<i>.…"; `layers` is how many there are.
    """
    if wanted.startswith("layers[") and wanted.endswith("]"):
        first, _, last = wanted[7:-1].partition(":")
        if first.isdigit() and last.isdigit() and int(first) < int(last) <= layers:
            prefixes = tuple(f"layers.{i}." for i in range(int(first), int(last)))
            return sorted({n for names in parts.values() for n in names if n.startswith(prefixes)})
    elif all(name in parts for name in wanted.split("+")):
        return sorted({n for name in wanted.split("+") for n in parts[name]})
    raise UsageError("part", f"{', '.join(parts)} or layers[0:{layers}]", repr(wanted), "join several parts with +")
