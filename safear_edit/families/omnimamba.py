"""OmniMamba: a Mamba-2 language model that draws with LlamaGen's tokenizer and answers questions about images.

Source of the semantics: https://arxiv.org/abs/2503.08686 and https://github.com/hustvl/OmniMamba (models/omnimamba.py,
models/mamba_vlm.py, models/stage2, models/cobra, scripts/inference_t2i.py, scripts/inference_mmu.py). The release is
one pickle, `OmniMamba-1.3b.pth`, that holds everything: the model, LlamaGen's VQ-16 and both image towers (vit.py);
sizes are in the code only. Put the tokenizer.json of EleutherAI's gpt-neox-20b beside it; the ten tokens that OmniMamba
adds to it get their ids here as they do there.

A drawing prompt is <|t2i|> <|sot|>, 68 places with the words at their right end and [PAD] before them, <|eot|> <|soi|>,
all through a small network of its own (caption_embed). A state space model has no mask: the pads are read, so every
prompt has 72 tokens. A question is <|mmu|> <|soi|>, 729 patches of the image as DINOv2 and SigLIP see them at 384
pixels, <|eoi|> <|sot|>, the words. Each task has learned positions, a head and corrections of the layers' input
projection (the paper's task-specific LoRA) of its own; everything else serves both.

An image token is read as its row after three linear layers (img_embeddings.project_in); the same row, as it is, is the
head. The image table holds what is read, as Janus' does here: an edit of it leaves what is said as it was. The
published layout has no place for an edited table.

Guidance is not part of the published training, and is off. The null prompt of its data, "A picture", stands for a
dropped caption; it was drawn with probability 0 there, so guidance away from it is ours. The published script takes
the best token each time (top_k 1), which gives one image per prompt; the defaults here are those of the function that
it calls (temperature 1, every token). Its question format (USER, ASSISTANT) is the default; the published data code
has "In: ...\\nOut: " instead, which `safear.json` can say.

Verified: once, by hand, beside the original program on tiny random weights (its own modules, mamba_ssm's Mamba2 of
v2.2.2 with its kernels replaced by a loop over tokens, timm's towers): its state dict, saved as its release is, loads
here, and what is exported from here loads there strictly, bit for bit; prompts, special ids, codes, greedy images and
greedy answers are the same, logits, answers' log-probabilities and seen images within rounding. In the tests:
transformers' Mamba2 says the same, and drawing and answering equal one pass over the whole sequence.
Not verified: no published weights or tokenizer files can be had here, so nothing was drawn with them, and whether the
release holds all tensors of its state dict, as this file expects, is read from its training code. The Triton kernels,
their lower precision and CUDA graphs were not run. Resized pixels differ from PIL's by a level or two here and there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.base import OWN, REPLACED, Condition, ModelCard, Sampling, each_once, select_modules
from safear_edit.families.folder import (
    AGAIN,
    TEXT_FILES,
    all_files,
    layers_in,
    no_place_for_table,
    read_settings,
    weight_file,
    weights_name,
)
from safear_edit.families.language import (
    ROLES,
    Ask,
    BaseSettings,
    BaseTemplate,
    Draw,
    LanguageModel,
    Words,
    byte_tokenizer,
    open_tokenizer,
)
from safear_edit.families.layers import mamba
from safear_edit.families.layers.mamba import MambaSizes, Memory
from safear_edit.families.layers.vit import DINO, SIGLIP, Towers, TowerSizes
from safear_edit.families.reference import ModelRef, Variant
from safear_edit.families.tokenizers.vq import VQConfig, VQModel, to_uint8
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.weights import Place, Renamed, filled, opened, places, write_pickle, write_weights
from safear_edit.registry import family

PUBLISHED = "OmniMamba-1.3b.pth"
TABLE = "image_table"
"""A parameter more than the published state dict has: see `OmniMamba.image_table`."""
Task = Literal["t2i", "mmu"]
DRAWING: Task = "t2i"
ANSWERING: Task = "mmu"
MOST_STATES = 4 << 30
"""Bytes of layers' states that images drawn together may take: 100 MB each at the published size."""


# -- sizes and settings -----------------------------------------------------------------------------------------------


MAMBA, VQ = MambaSizes(), VQConfig()
DINO_SIZES, SIGLIP_SIZES = TowerSizes(1024, 24, 16, 4096, registers=4), TowerSizes(1152, 27, 16, 4304)
"""Sizes of the published parts."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model; the defaults are those of the published 1.3B.

    text: places for a prompt's words; tokens: of an image; positions: of a question, its image and its reply.
    """

    vocabulary: int = 50288
    layers: int = 48
    text: int = 68
    tokens: int = 256
    positions: int = 1500
    mamba: MambaSizes = MAMBA
    vq: VQConfig = VQ
    dino: TowerSizes = DINO_SIZES
    siglip: TowerSizes = SIGLIP_SIZES

    def __post_init__(self) -> None:
        fits = {
            "positive sizes": min(self.vocabulary, self.layers, self.text, self.tokens, self.positions) > 0,
            "a square of image tokens": isqrt(max(self.tokens, 0)) ** 2 == self.tokens,
            "as many patches in both towers": self.dino.patches == self.siglip.patches,
        }
        if wrong := [name for name, fit in fits.items() if not fit]:
            raise UsageError("the model's sizes", wrong[0], "others", AGAIN)

    @property
    def prompt(self) -> int:
        """Tokens of a drawing prompt: the words and two marks on either side."""
        return self.text + 4


class Template(BaseTemplate):
    """The published format; `unwanted` is the null prompt."""

    draw: Draw = "{text}"
    unwanted: str = "A picture"
    ask: Ask = "{image}USER: {text} ASSISTANT:"
    reply: str = " "
    describe: str = "Please describe it in detail."


class Settings(BaseSettings):
    """`safear.json`, with the published model's values."""

    family: Literal["omnimamba"] = "omnimamba"
    licence: str = "MIT"
    sampling: Sampling = Sampling(1.0)
    template: Template = Template()
    sizes: Sizes = Sizes()


# -- words ------------------------------------------------------------------------------------------------------------

SPECIAL = {
    "pad": "[PAD]",
    "boi": "<|soi|>",
    "eoi": "<|eoi|>",
    "sot": "<|sot|>",
    "eot": "<|eot|>",
    "t2i": "<|t2i|>",
    "mmu": "<|mmu|>",
    "soc": "<|soc|>",
    "eoc": "<|eoc|>",
    "image": "<|lvg|>",
}
"""The tokens that OmniMamba adds to the tokenizer, in this order. The last isn't used there: it holds places here."""
END = "<|endoftext|>"


def read_words(files: Mapping[str, bytes], where: str) -> Words:
    """The tokenizer with the added tokens, at the ids after its last one; UsageError if it isn't GPT-NeoX'."""
    tokenizer = open_tokenizer(files, where)
    if (end := tokenizer.token_to_id(END)) is None:
        raise UsageError(f"{where}/tokenizer.json", f"the tokenizer of gpt-neox-20b, with {END}", "none such", AGAIN)
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    found = {role: tokenizer.token_to_id(name) for role, name in SPECIAL.items()}
    ids = {role: number for role, number in found.items() if number is not None}
    return Words(tokenizer, bos=end, eos=end, **{r: ids.pop(r) for r in ROLES if r in ids}, own=ids)


# -- the network ------------------------------------------------------------------------------------------------------


class Projector(nn.Module):
    """Three linear layers."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        inner = 4 * width_in
        layers = (nn.Linear(width_in, inner), nn.Linear(inner, width_out), nn.Linear(width_out, width_out))
        self.projector = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(x)


class ImageEmbedding(nn.Module):
    """Rows of image tokens, which are also the head, and the layers through which they are read."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(count, width)
        self.project_in = Projector(width, width)


class CaptionProjection(nn.Module):
    """What a drawing prompt's embeddings go through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Backbone(nn.Module):
    """The language model under the published names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.mamba.width
        self.embedding = nn.Embedding(sizes.vocabulary, width)
        self.img_embeddings = ImageEmbedding(sizes.vq.codebook_size, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.prompt + sizes.tokens + 1, width))
        self.mmu_pos_embed = nn.Parameter(torch.zeros(1, sizes.positions, width))
        self.caption_embed = nn.ModuleDict({"cap_proj": CaptionProjection(width)})
        self.layers = nn.ModuleList(mamba.Block(sizes.mamba, (DRAWING, ANSWERING)) for _ in range(sizes.layers))
        self.norm_f = mamba.Norm(width)


class Net(nn.Module):
    """Everything. The image tokenizer is in float32 always: codes must not depend on the dtype of the rest.

    table: with an image table of its own from the start, zeros until it is filled.
    """

    image_table: nn.Parameter | None

    def __init__(self, sizes: Sizes, dtype: torch.dtype = torch.float32, *, table: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.backbone = Backbone(sizes)
        self.vision_backbone = Towers(sizes.dino, sizes.siglip)
        self.projector = Projector(sizes.dino.width + sizes.siglip.width, sizes.mamba.width)
        self.to(dtype)
        self.vqvae = VQModel(sizes.vq).requires_grad_(False)
        rows = self.backbone.img_embeddings.word_embeddings.weight
        self.register_parameter(TABLE, nn.Parameter(torch.zeros_like(rows)) if table else None)
        self.register_buffer(REPLACED, None, persistent=False)
        self.eval()

    def get_input_embeddings(self) -> nn.Embedding:
        """The words'."""
        return self.backbone.embedding

    def image_rows(self) -> Tensor:
        """What the published modules give for every image token, (V, D)."""
        rows = self.backbone.img_embeddings
        return rows.project_in(rows.word_embeddings.weight)

    def keep_table(self) -> None:
        """Read image tokens from a table of its own, with the published modules' rows unless its file had others."""
        if self.image_table is None:
            with torch.no_grad():
                self.image_table = nn.Parameter(self.image_rows())


# -- names of the published file --------------------------------------------------------------------------------------

_MODEL, _VQ = "llm_backbone.mamba.", "llm_backbone."
HEADS = {
    f"{_MODEL}img_head.weight": f"{_MODEL}backbone.img_embeddings.word_embeddings.weight",
    f"{_MODEL}lm_head.weight": f"{_MODEL}backbone.embedding.weight",
}
"""Tensors that are other ones once more: the heads are tied."""
_TASK = re.compile(r"mixer\.in_proj\.(t2i|mmu)_lora_([AB])0\.")
_OWN_TASK = re.compile(r"mixer\.tasks\.(t2i|mmu)\.(down|up)\.")


def unread(sizes: Sizes) -> re.Pattern[str]:
    """Published tensors that neither drawing nor answering reads: kept as they are, for an export to give back."""
    towers = "|".join(
        rf"{name}\.(norm|fc_norm|attn_pool|head|blocks\.{tower.depth - 1})\."
        for name, tower in ((DINO, sizes.dino), (SIGLIP, sizes.siglip))
    )
    return re.compile(rf"vision_backbone\.({towers})|{re.escape(_VQ)}vqvae\.quantize\.codebook_used$")


def from_published(name: str) -> str:
    """The published name of a tensor to its name in `Net`; unknown ones stay, for the loader to refuse."""
    name = name.removeprefix(_MODEL).removeprefix(_VQ)
    return _TASK.sub(lambda m: f"mixer.tasks.{m[1]}.{'down' if m[2] == 'A' else 'up'}.", name)


def to_published(name: str) -> str:
    """The way back."""
    at = {"backbone.": _MODEL, "vqvae.": _VQ}
    prefix = next((prefix for start, prefix in at.items() if name.startswith(start)), "")
    return prefix + _OWN_TASK.sub(lambda m: f"mixer.in_proj.{m[1]}_lora_{'A' if m[2] == 'down' else 'B'}0.", name)


def untied(weights: Mapping[str, Tensor], where: str) -> Renamed:
    """Without the heads, which are embeddings once more; UsageError if one isn't."""
    found = places(weights, lambda name: None if name in HEADS else name)
    for head, rows in HEADS.items():
        if head in weights and rows not in found:
            found[rows] = Place(weights, head)
        elif head in weights and not torch.equal(weights[rows], weights[head]):
            got = "another tensor: the published code ties them"
            raise UsageError(f"{where} {head}", f"the same as {rows}", got, AGAIN)
    return Renamed(found)


# -- running it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """Prompts after the model: every layer's memory of them, how many tokens they had, the last state (U, D)."""

    task: Task
    memory: tuple[Memory, ...]
    length: int
    last: Tensor


class Steps:
    """Rows of a Read, each going on by a token at a time."""

    def __init__(self, net: Net, read: Read, rows_R: Tensor) -> None:
        self.net, self.task, self.place = net, read.task, read.length
        self.memory = [memory.rows(rows_R) for memory in read.memory]

    def step(self, h_RD: Tensor) -> Tensor:
        """The next token's embeddings (R, D) through all layers: states (R, D)."""
        h = h_RD + positions(self.net, self.task, self.place, 1)
        self.place += 1
        return mamba.step(self.net.backbone, h, self.memory, self.task)


def positions(net: Net, task: Task, start: int, count: int) -> Tensor:
    """Rows (count, D) of a task's learned positions; UsageError past their end."""
    table = (net.backbone.pos_embed if task == DRAWING else net.backbone.mmu_pos_embed)[0]
    if start + count > len(table):
        expected = f"at most {len(table)} tokens with image and reply"
        raise UsageError("question", expected, f"{start + count}", "shorten it, or ask for a shorter reply")
    return table[start : start + count]


def run(net: Net, task: Task, h_BLD: Tensor, before: Read | None = None) -> tuple[Tensor, Read]:
    """L tokens' embeddings, after what was read before: states (B, L, D), and the Read after them."""
    start, memory = (0, None) if before is None else (before.length, before.memory)
    h = h_BLD + positions(net, task, start, h_BLD.shape[1])
    states, after = mamba.read(net.backbone, h, memory, task)
    return states, Read(task, tuple(after), start + h.shape[1], states[:, -1])


@family("omnimamba")
class OmniMamba(LanguageModel):
    """OmniMamba: Mamba-2 that draws and answers questions about images (https://arxiv.org/abs/2503.08686).

    A Condition's features (U, 72, D) are a prompt's embeddings after the caption network, without positions.

    A loaded model reads image tokens from a table of its own, `image_table` (V, D) in the state dict, so that an edit
    of these rows is an edit of that tensor. It holds what the published modules give until somebody changes it.
    """

    name = "omnimamba"
    provides = frozenset({"codebook", "understanding", "captioning"})
    variants: ClassVar = {
        "1.3b": Variant(
            "published 1.3B, 256 px: draws, answers (the tokenizer is gpt-neox-20b's)",
            files=("OmniMamba-1.3b.pth", "tokenizer.json"),
            repository="hustvl/OmniMamba",
            licence="MIT",
            elsewhere={"tokenizer.json": "EleutherAI/gpt-neox-20b"},
        ),
    }
    layouts: ClassVar = {
        "upstream": "in github.com/hustvl/OmniMamba: python scripts/inference_t2i.py --prompt TEXT, with "
        "OmniMamba-1.3b.pth in ckpts/ (its loader is not strict: a wrong name passes unseen)",
    }
    table_name = TABLE
    layers_at = "backbone."
    net: Net
    template: Template

    def __init__(
        self,
        net: Net,
        words: Words,
        files: Mapping[str, bytes],
        settings: Settings,
        card: ModelCard,
        kept: Mapping[str, Tensor],
    ) -> None:
        self.net, self.words, self.files, self.settings, self.card = net, words, files, settings, card
        self.sampling, self.template, self.kept = settings.sampling, settings.template, kept
        net.keep_table()

    # -- loading --

    @classmethod
    def load(cls, ref: ModelRef, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> OmniMamba:
        """A folder with the published file, or one that `export` wrote, and gpt-neox-20b's tokenizer.json."""
        if (folder := ref.path) is None:
            fix = f"give the folder that holds {PUBLISHED} and gpt-neox-20b's tokenizer.json"
            raise UsageError(f"model {ref}", "a folder", "a name, and no such model comes with this package", fix)
        settings = read_settings(folder / "safear.json", Settings, published=True)
        files = {name: (folder / name).read_bytes() for name in TEXT_FILES if (folder / name).is_file()}
        words = read_words(files, str(folder))
        words.fitting(settings.sizes.vocabulary, str(folder))
        path = folder / PUBLISHED if (folder / PUBLISHED).is_file() else weight_file(folder)
        with opened(path, allow_pickle=True) as stored:
            kept = {name: stored[name] for name in stored if unread(settings.sizes).match(name)}
            own = Renamed(
                places(untied(stored, str(path)), lambda name: None if name in kept else from_published(name))
            )
            layers, make = layers_in(asdict(settings.sizes)), partial(Net, settings.sizes, dtype, table=TABLE in own)
            net = filled(make, layers, own, str(path), device=device)
        digests = {path.name: sha256_file(path) for path in all_files(path)}
        card = _card(net, ref.variant, settings.licence, digests)
        return cls(net, words, files, settings, card, kept)

    @classmethod
    def pico(cls, seed: int = 0) -> OmniMamba:
        """16x16 pixels, 16 tokens, two layers, a token per byte of text, weights so large that every input matters."""
        files = byte_tokenizer([END], {"bos": END, "eos": END})
        words = read_words(files, "pico")
        sizes = replace(PICO_SIZES, vocabulary=words.tokenizer.get_vocab_size() + 1)
        settings = Settings(licence="Apache-2.0", sizes=sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = Net(sizes)
            _spread(net)
        content = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
        card = _card(net, "pico", settings.licence, {"pico": hashlib.sha256(content).hexdigest()})
        return cls(net, words, files, settings, card, {})

    # -- prompts --

    def prompt_ids(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (U, 72) and their mask, which is all true: the pads before the words are read as well.

        Words beyond the 68th token are cut off, as the published script does.
        """
        room, own = self.net.sizes.text, self.words
        rows = []
        for prompt in prompts:
            text = own.encode(self.template.draw.replace("{text}", prompt))[:room]
            pads = [own.pad] * (room - len(text))
            rows.append([own["t2i"], own["sot"], *pads, *text, own["eot"], own.boi])
        ids = torch.tensor(rows, device=self.device)
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def caption_lengths(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """In the drawing format, without the tokens around it; the published window holds 68 of them."""
        room = self.net.sizes.text
        lengths = [len(self.words.encode(self.template.draw.replace("{text}", prompt))) for prompt in prompts]
        return [(n, min(n, room)) for n in lengths]

    def _captions(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = self.prompt_ids(prompts)
        features: Tensor = self.net.backbone.caption_embed["cap_proj"](self._embedded(ids))
        return features, mask

    def open_condition(self, prompts: Sequence[str]) -> Condition:
        """The distinct prompts in the model's drawing format; see the class for what it holds."""
        distinct, index = each_once(prompts)
        return Condition.of(*self._captions(distinct)).rows(index)

    def with_vectors(self, condition: Condition, vectors: Tensor) -> Condition:
        """The window keeps its 72 places: the first of those after its two marks (pads, where a caption is short)
        make room."""
        wider, added = super().with_vectors(condition, vectors), len(vectors)
        features = torch.cat([wider.features[:, :2], wider.features[:, 2 + added :]], 1)
        return replace(wider, features=features, mask=wider.mask[:, added:])

    @torch.no_grad()
    def unconditional(self, mask_UT: Tensor) -> Tensor:
        """The null prompt's embeddings, (U, 72, D)."""
        features, _ = self._captions([self.template.unwanted])
        return features.expand(len(mask_UT), -1, -1)

    def _rows(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        return condition.in_use(self.unconditional)

    # -- drawing --

    @property
    def transformer(self) -> Any:
        """The language model; its layers are Mamba-2's."""
        return self.net.backbone

    @property
    def row_bytes(self) -> int:
        """Its layers keep states, not keys and values: `rows_per_batch` counts these."""
        return 0

    @property
    def rows_per_batch(self) -> int:
        """As many as their states leave room for, twice each for guidance."""
        sizes = self.net.sizes
        state = 4 * sizes.layers * sizes.mamba.inner * sizes.mamba.state
        return max(1, min(super().rows_per_batch, MOST_STATES // (2 * state)))

    def image_embeddings(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.image_table())

    def image_logits(self, state: Tensor) -> Tensor:
        return F.linear(state, self.net.backbone.img_embeddings.word_embeddings.weight).float()

    def said(self, state: Tensor) -> Tensor:
        return F.linear(state, self.net.backbone.embedding.weight).float()

    def hidden(self, condition: Condition, ids: Tensor) -> Tensor:
        """Last hidden states (B, N, D): each distinct prompt once, and every image from there, by chunks.

        `ids` may be the first tokens of images only.
        """
        text, _, which = self._rows(condition)
        _, prompts = run(self.net, DRAWING, text)
        first = prompts.last[which].unsqueeze(1)
        if ids.shape[1] == 1:
            return first
        own = replace(prompts, memory=tuple(memory.rows(which) for memory in prompts.memory))
        states, _ = run(self.net, DRAWING, self.image_embeddings(ids[:, :-1].to(self.device)), own)
        return torch.cat([first, states], 1)

    def passes(self) -> list[tuple[nn.Module, str]]:
        """None: images go on from what their prompts left in every layer's memory, which isn't run as whole layers."""
        return []

    def read_prompts(self, h_UTD: Tensor, mask_UT: Tensor, asking: bool = False) -> Read:
        """Drawing prompts have no pads that are not read, and questions none at all."""
        return run(self.net, ANSWERING if asking else DRAWING, h_UTD)[1]

    def read_on(self, read: Read, h_ULD: Tensor) -> Tensor:
        return run(self.net, read.task, h_ULD, read)[0]

    def going_on(self, read: Read, rows_R: Tensor, room: int) -> Steps:
        return Steps(self.net, read, rows_R)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of the card's image size to ids (B, N), in float32."""
        parts = self._checked(images).split(self.rows_per_batch)
        return torch.cat([self.net.vqvae.encode(part.to(self.device).float() / 127.5 - 1) for part in parts])

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, N) to uint8 (B, 3, H, W)."""
        return torch.cat(
            [to_uint8(self.net.vqvae.decode(part)) for part in ids.to(self.device).split(self.rows_per_batch)]
        )

    # -- understanding --

    def seen(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) as the language model reads them, (B, n, D): the patches of both towers."""
        return self.net.projector(self.net.vision_backbone(images.to(self.device)))

    def question_ids(self, question: str) -> list[int]:
        """A question in the model's format, every patch of the image held by a token that is never read."""
        own = self.words
        words = own.encode(self.template.ask.replace("{image}", "").replace("{text}", question).strip())
        if own.image in words:
            raise UsageError("question", "words", "the token that stands for the image", "take it out")
        held = [own.image] * self.net.sizes.dino.patches
        return [own["mmu"], own.boi, *held, own.eoi, own["sot"], *words]

    # -- editing --

    def image_table(self) -> Tensor:
        """What the language model reads for each image token, (V, D), with its gradient: a replaced table, or its own.

        This is the table that Safe-CB edits (methods/safe_cb.py).
        """
        replaced: Tensor | None = getattr(self.net, REPLACED)
        if replaced is None:
            assert self.net.image_table is not None
            return self.net.image_table
        return replaced

    def editable(self, part: str) -> list[str]:
        """in_proj, out_proj, all (both), layers[a:b], drawing; joined by +.

        The layers answer questions as well. `drawing` are the model's own corrections for drawing: an edit of them
        can't change an answer, whatever it does.
        """
        count = len(self.net.backbone.layers)
        parts: dict[str, Sequence[str]] = {
            name: [f"layers.{i}.mixer.{name}" for i in range(count)] for name in ("in_proj", "out_proj")
        }
        parts["all"] = [name for names in parts.values() for name in names]
        if not part.startswith("layers["):
            own = [f"layers.{i}.mixer.tasks.{DRAWING}" for i in range(count)]
            parts["drawing"] = [f"{name}.{end}" for name in own for end in ("down", "up")]
        return [f"{self.layers_at}{name}" for name in select_modules(parts, part, count)]

    # -- leaving --

    def export(self, directory: Path, layout: str = OWN) -> None:
        """As the base class says.

        OWN: model.safetensors under the published names, with an image table that isn't what the published
        modules give as one more tensor. "upstream": the published file, as its own code loads it, strictly too if the
        model came from such a file; UsageError for an edited table, which that code would leave out without a word.
        Both: the tokenizer's files and, last, safear.json.
        """
        own = self.net.state_dict()
        weights = {to_published(name): tensor for name, tensor in own.items() if name != TABLE}
        weights.update(self.kept)
        with torch.no_grad():
            table = self.image_table().detach()
            if not torch.equal(table, self.net.image_rows()):
                weights[TABLE] = table
        if layout == OWN:
            write_weights(directory / weights_name(weights, TABLE), weights, {"format": "pt"})
        elif TABLE in weights:
            raise no_place_for_table(layout)
        else:
            weights.update({head: weights[rows] for head, rows in HEADS.items()})
            write_pickle(directory / PUBLISHED, weights)
        for name, content in self.files.items():
            write_atomic(directory / name, content)
        settings = self.settings.model_copy(update={"variant": self.card.variant})
        write_atomic(directory / "safear.json", settings.model_dump_json(indent=1) + "\n")


def _card(net: Net, variant: str, licence: str, files: Mapping[str, str]) -> ModelCard:
    tokens, vq = net.sizes.tokens, net.sizes.vq
    side = round(tokens**0.5) * vq.patch
    parameters = sum(p.numel() for name, p in net.named_parameters() if name != TABLE)  # as published
    return ModelCard("omnimamba", variant, side, tokens, vq.codebook_size, (tokens,), parameters, licence, files)


# -- pico -------------------------------------------------------------------------------------------------------------

_SEEN = {"width": 32, "depth": 3, "heads": 2, "inner": 64, "patch": 7, "image": 30}
PICO_SIZES = Sizes(
    vocabulary=1,  # until the tokenizer is known
    layers=2,
    text=24,
    tokens=16,
    positions=160,
    mamba=MambaSizes(width=64, state=16, head=16, rank=4),
    vq=VQConfig(64, 8, 32, (1, 1, 1), (1, 1, 1), 32, 1),
    dino=TowerSizes(**_SEEN, registers=2),
    siglip=TowerSizes(**_SEEN),
)


@torch.no_grad()
def _spread(net: Net) -> None:
    """Random weights that let every input matter: layers forget at several speeds, and no task is like the other."""
    for name, parameter in net.named_parameters():
        if name.startswith("vqvae."):
            continue
        if name.endswith(("A_log", "dt_bias")):
            nn.init.uniform_(parameter, -4, 0.5)
        elif "norm" in name or name.endswith((".D", "gamma")):
            nn.init.normal_(parameter, mean=1.0, std=0.2)
        elif parameter.dim() > 1:
            loud = ("embed" in name and "project_in" not in name) or name.startswith("projector")
            nn.init.normal_(parameter, std=0.5 if loud else 0.15)
