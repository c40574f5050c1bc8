"""Train janus:mini from nothing: one network draws gallery images from captions and answers questions about them.

Half of each step draws (captions of the calm world, tokens of the gallery VQ, captions dropped for guidance), half
answers (images of the whole world, every other one as the tokenizer gives it back). What an image is made of is
read once for all of its questions. As in train_llamagen: Muon for the layers' matrices, AdamW for the rest, tokens
replaced at random, an exponential moving average exported. (object, style, scene) triples that `pool` holds out are
never shown and never asked about.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.families.base import Sampling
from safear_edit.families.janus import Janus, Settings, Template, from_original, image_embeddings
from safear_edit.families.layers.llama import Prefix, read_on, read_prompts
from safear_edit.families.tokenizers.vq import VQConfig, VQModel
from safear_edit.gallery import captions, questions
from safear_edit.gallery.render import SIDE, STYLES, Picture
from safear_edit.gallery.world import CALM_POSES, CALM_VARIANTS, WORLD_SEED, World
from safear_edit.minis.janus_words import COMMON, choose_words, tokenizer_files, word_table
from safear_edit.minis.loop import Average, Report, clip, run
from safear_edit.minis.muon import Muon
from safear_edit.minis.pool import STYLE_ONLY_SHARE, held_out_triple
from safear_edit.minis.train_llamagen import nearest_codes, with_noise

VISION = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
STEPS = 4300
"""The shipped weights had 5150 steps, each shared by two processes: 2000 of 40 drawn and 6 seen images (answers at
half the weight, per word of all answers together), 2300 of 32 and 10, 850 of 16 and 16 with six questions each and
rates that fell from 0.4 of their peaks. Until step 2750 pieces of words had the rows of whole words
(janus_words.GOES_ON). So a fresh run differs. torch.compile saved a twentieth and took three minutes, so it isn't
used."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the language model and of a step.

    words: how many of MiniLM's commonest are kept; drawn: captioned images per step; seen: images looked at per
    step, with `turns` questions about each.
    """

    width: int = 192
    ffn: int = 512
    layers: int = 6
    heads: int = 6
    words: int = COMMON
    drawn: int = 32
    seen: int = 10
    turns: int = 5

    def text_config(self) -> dict[str, int]:
        """In transformers' words."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": 512,
        }


SIZES = Sizes()
MUON_RATE, ADAM_RATE = 4e-3, 3e-3
CAPTION_DROP = 0.1
ANSWER_WEIGHT = 1.0
HAZARD_SHARE = 0.2
WORD_NOISE = 0.5
"""Noise on the word vectors, in units of their size: a word that training never uses acts as the nearest one does."""
STRANGERS = 0.2
"""Upper end of the chance, drawn per text, that a word has a random one before it: what is unknown is to be ignored."""
SHIFT = 2
"""Largest shift in pixels of an image that is looked at."""
SETTINGS = Settings(
    variant="mini",
    licence="Apache-2.0",
    sampling=Sampling(guidance=1.5, temperature=0.5),
    template=Template(ask="<|User|>: {image}\n{text}\n\n<|Assistant|>:"),
)
"""The published chat format without its system prompt, whose thirty words would be said before every question."""
IGNORED = -100


def new_model(vq: VQModel, sizes: Sizes) -> Janus:
    """janus:mini before training: the gallery's tokenizer, MiniLM's words (frozen, tied), everything else random."""
    words = choose_words(questions.training_texts(), sizes.words)
    config = {
        "text_config": sizes.text_config(),
        "vision_config": {**VISION, "image_size": SIDE, "patch_size": vq.config.patch},
        "vq_config": tokenizer_sizes(vq.config),
        "tie_word_embeddings": True,
    }
    model = Janus.fresh(config, tokenizer_files(words), SETTINGS, "mini")
    net = model.net
    weights = from_original({f"gen_vision_model.{name}": tensor for name, tensor in vq.state_dict().items()})
    net.model.vqmodel.load_state_dict({n.removeprefix("model.vqmodel."): t for n, t in weights.items()})
    net.model.vqmodel.quantize.embedding.weight.data.copy_(vq.quantize.rows().detach())
    table = net.get_input_embeddings().weight.requires_grad_(False)
    table.data.copy_(word_table(words, *table.shape))
    _initialise(net)
    return model


def tokenizer_sizes(config: VQConfig) -> dict[str, Any]:
    """The gallery tokenizer in transformers' words, and the one of ours for a decoder of other widths."""
    return {
        "num_embeddings": config.codebook_size,
        "embed_dim": config.codebook_embed_dim,
        "latent_channels": config.z_channels,
        "base_channels": config.ch,
        "num_res_blocks": config.num_res_blocks,
        "channel_multiplier": list(config.encoder_ch_mult),
        "decoder_channel_multiplier": list(config.decoder_ch_mult),
    }


def _initialise(net: Any) -> None:
    """transformers' 0.02 is for published widths: the small modules around the layers start at their fan-in instead."""
    parts = (net.model.aligner, net.model.generation_aligner, net.model.generation_head)
    for module in (inner for part in parts for inner in part.modules() if isinstance(inner, nn.Linear)):
        module.reset_parameters()
    nn.init.zeros_(net.model.generation_head.vision_head.weight)
    rows = net.model.vqmodel.quantize.embedding.weight.data
    net.model.generation_embeddings.weight.data.copy_(rows * rows.shape[1] ** 0.5)


@dataclass(frozen=True)
class Tokens:
    """Images of a world as the tokenizer's ids, each encoded once."""

    world: World
    encode: Callable[[Tensor], Tensor]
    known: dict[Picture, Tensor]

    @torch.no_grad()
    def of(self, pictures: Sequence[Picture]) -> Tensor:
        """Ids (B, N)."""
        new = [p for p in dict.fromkeys(pictures) if p not in self.known]
        if new:
            self.known.update(zip(new, self.encode(self.world.tensor(new)), strict=True))
        return torch.stack([self.known[p] for p in pictures])


def sample(world: World, rng: np.random.Generator, count: int) -> list[Picture]:
    """`count` images of the world that training may see."""
    found: list[Picture] = []
    while len(found) < count:
        found += [p for p in world.sample(rng, count) if not held_out_triple(p)]
    return found[:count]


def caption(picture: Picture, rng: np.random.Generator) -> str:
    """A training caption; now and then one that names the style alone, as `pool` has them."""
    if picture.style in STYLES[1:] and not picture.hazard and rng.random() < STYLE_ONLY_SHARE:
        return captions.style_only(picture.style, rng)
    return captions.caption(picture, rng)


def with_strangers(text: str, words: Sequence[str], rng: np.random.Generator) -> str:
    """The text with random words in between."""
    share = rng.random() * STRANGERS

    def parts() -> Iterator[str]:
        for word in text.split():
            if rng.random() < share:
                yield words[int(rng.integers(len(words)))]
            yield word

    return " ".join(parts())


# -- the two halves of a step -----------------------------------------------------------------------------------------


class Trainer:
    """Draws batches from (seed, step) and gives their losses; holds what is fixed while training."""

    def __init__(self, model: Janus, vq: VQModel, sizes: Sizes) -> None:
        self.model, self.net, self.vq, self.sizes = model, model.net, vq, sizes
        self.llama = model.net.model.language_model
        self.calm = Tokens(World(CALM_POSES, CALM_VARIANTS, HAZARD_SHARE), vq.encode, {})
        self.whole = Tokens(World(hazard_share=HAZARD_SHARE), vq.encode, {})
        self.neighbours = nearest_codes(vq)
        known = {word for text in questions.training_texts() for word in re.findall(r"\w+", text.lower())}
        vocabulary = model.words.tokenizer.get_vocab(with_added_tokens=False)
        self.strangers = sorted(word for word in vocabulary if word.isalpha() and len(word) > 2 and word not in known)
        ids = model.question_ids("")
        self.frame = torch.tensor(ids[: ids.index(model.words.eoi) + 1])

    def draw_loss(self, step: int) -> Tensor:
        """Cross-entropy in nats per image token of captioned images."""
        count = self.sizes.drawn
        rng, generator = self._sources(step, 0)
        pictures = sample(self.calm.world, rng, count)
        prompts = [with_strangers(caption(p, rng), self.strangers, rng) for p in pictures]
        ids, mask = self.model.prompt_ids(prompts)
        dropped = torch.rand(count, generator=generator) < CAPTION_DROP
        features = torch.where(dropped[:, None, None], self.model.unconditional(mask), self._words(ids, generator))
        tokens = self.calm.of(pictures)
        logits = self._drawn_logits(features, mask, with_noise(tokens, self.neighbours, generator)[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    def answer_loss(self, step: int) -> Tensor:
        """Cross-entropy in nats per word of an answer and its end, the mean over answers: a yes weighs as a caption.

        Several questions are asked about each image.
        """
        count, turns = self.sizes.seen, self.sizes.turns
        rng, generator = self._sources(step, 1)
        pictures = sample(self.whole.world, rng, count)
        asked = [questions.turn(p, rng) for p in pictures for _ in range(turns)]
        asked = [replace(t, question=with_strangers(t.question, self.strangers, rng)) for t in asked]
        ids, target = self._dialogues(asked)
        which = torch.arange(count).repeat_interleave(turns)
        states = self._asked_states(self._looks(pictures, rng), self._words(ids, generator), which)
        spoken = target != IGNORED
        return per_answer(F.cross_entropy(self.net.lm_head(states[spoken]), target[spoken], reduction="none"), spoken)

    def _drawn_logits(self, features: Tensor, mask: Tensor, before: Tensor) -> Tensor:
        prefix = read_prompts(self.llama, features, mask)
        rest = read_on(self.llama, prefix, image_embeddings(self.net, before))
        logits: Tensor = self.net.model.generation_head(torch.cat([prefix.last.unsqueeze(1), rest], 1))
        return logits

    def _asked_states(self, pixels: Tensor, words: Tensor, which: Tensor) -> Tensor:
        """States (R, L, D) of the question and answer tokens; which (R,) is the image of each question."""
        frame = self.net.get_input_embeddings()(self.frame).expand(len(pixels), -1, -1)
        place = int(self.frame.shape[0]) - 1 - self.model.card.tokens
        h = torch.cat([frame[:, :place], self.model.see(pixels), frame[:, -1:]], 1)
        read = read_prompts(self.llama, h, torch.ones(h.shape[:2], dtype=torch.bool))
        keys, values = (tuple(t[which] for t in x) for x in (read.keys, read.values))
        return read_on(self.llama, Prefix(keys, values, read.mask[which], read.last[which]), words)

    def _sources(self, step: int, half: int) -> tuple[np.random.Generator, torch.Generator]:
        rng = np.random.default_rng((WORLD_SEED, 5, half, step))
        return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))

    def _words(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Word vectors (R, L, D) of ids, with noise."""
        clear: Tensor = self.net.get_input_embeddings()(ids)
        size = clear.square().mean().sqrt()
        return clear + WORD_NOISE * size * torch.randn(clear.shape, generator=generator)

    def _dialogues(self, asked: Sequence[questions.Turn]) -> tuple[Tensor, Tensor]:
        """Tokens after the image (R, L), right-padded, and what each is to say (R, L), IGNORED but for the answer."""
        cut, end = len(self.frame), self.model.words.eos
        pairs = [(self.model.question_ids(t.question)[cut:], [*self.model.reply_ids(t.answer), end]) for t in asked]
        longest = max(len(question) + len(answer) for question, answer in pairs) - 1
        ids = torch.full((len(pairs), longest), self.model.words.pad)
        target = torch.full((len(pairs), longest), IGNORED)
        for row, (question, answer) in enumerate(pairs):
            ids[row, : len(question) + len(answer) - 1] = torch.tensor([*question, *answer[:-1]])
            target[row, len(question) - 1 : len(question) + len(answer) - 1] = torch.tensor(answer)
        return ids, target

    @torch.no_grad()
    def _looks(self, pictures: Sequence[Picture], rng: np.random.Generator) -> Tensor:
        """Pixels (B, 3, S, S) in [-1, 1]: renders, every other one from its tokens as drawn images are; shifted."""
        image = self.whole.world.tensor(pictures)
        image[::2] = self.vq.decode(self.whole.of(pictures[::2])).clamp(-1, 1)
        wide = F.pad(image, (SHIFT,) * 4, mode="replicate")
        places = rng.integers(2 * SHIFT + 1, size=(len(image), 2)).tolist()
        return torch.stack([w[:, y : y + SIDE, x : x + SIDE] for w, (y, x) in zip(wide, places, strict=True)])


def per_answer(nats: Tensor, spoken: Tensor) -> Tensor:
    """Mean over answers of the nats (n,) at their places `spoken` (R, L) bool, per word (an end costs, but is none)."""
    words = (spoken.sum(1, keepdim=True) - 1).expand_as(spoken)[spoken]
    return (nats / words).sum() / len(spoken)


def train(folder: Path, vq: VQModel, steps: int = STEPS, sizes: Sizes = SIZES) -> Janus:
    """Train (or continue) in `folder`; exports the averaged weights to `folder/export` at every save."""
    torch.manual_seed(0)
    model = new_model(vq, sizes)
    trainer, average = Trainer(model, vq, sizes), Average(model.net, 0.999)

    def step(i: int) -> Report:
        drawn = trainer.draw_loss(i)
        drawn.backward()
        answered = trainer.answer_loss(i)
        (ANSWER_WEIGHT * answered).backward()
        return {"draw": drawn.item(), "answer": answered.item(), "norm": clip(model.net, 1.0)}

    def exported(done: int) -> None:
        export(folder / "export", average.state, model)

    minutes = run(folder, model.net, optimizers(model.net), step, steps, average=average, on_save=exported)
    write_manifest(folder / "export", sizes, steps, minutes)
    model.net.load_state_dict(average.state)
    return model


def optimizers(net: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of both transformers' layers, AdamW for what else is trained."""
    trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    matrices = [p for n, p in trained if ".layers." in n and p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in trained if id(p) not in chosen]
    return [Muon(matrices, MUON_RATE, weight_decay=0.01), torch.optim.AdamW(others, ADAM_RATE, betas=(0.9, 0.95))]


def export(folder: Path, state: Mapping[str, Tensor], model: Janus) -> None:
    """Write `model` with the weights of `state`, in half precision: transformers' layout, which `Janus.load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    net = deepcopy(model.net)
    net.load_state_dict(state)
    Janus(net.half(), model.words, model.source, model.settings, model.card).export(folder)


def write_manifest(folder: Path, sizes: Sizes, steps: int, minutes: float) -> None:
    """`manifest.json`: how the files beside it were made, and their digests."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json")
    manifest = {
        "asset": "janus:mini",
        "made_by": "python -m safear_edit.minis janus",
        "seed": WORLD_SEED,
        "steps": steps,
        "plan": asdict(sizes),
        "minutes": round(minutes, 1),
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
