"""Train and measure the gallery's CLIP: a small vision transformer beside frozen MiniLM, in open_clip's own format.

Only the image tower and the text projection are trained and shipped; MiniLM comes from its package. Captions name all
of an image or only a part of it ("a painting by Monet"), and every image that a caption is true of counts as its
match: the loss is open_clip's softmax in both directions with the matches sharing the target.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from safear_edit.gallery.captions import HAZARD_WORDS, OBJECT_WORDS, SCENE_WORDS, STYLE_WORDS, caption, style_only
from safear_edit.gallery.render import OBJECTS, SCENES, STYLES, Picture
from safear_edit.gallery.world import World, nuisance
from safear_edit.judges.base import file_digest
from safear_edit.judges.clip import CONFIG_FILE, MINILM_NAME, WEIGHT_FILES, Clip, build, from_folder, minilm_tokenizer
from safear_edit.minis.loop import Average, Report, clip, run
from safear_edit.minis.train_judge import augment, is_held_out, sample, to_pixels

CLIP_SEED = 7001141
BATCH, STEPS, LEARNING_RATE = 96, 1000, 1.5e-3
POOL = 5000
"""Captions whose MiniLM vectors are computed once."""
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 40,
            "patch_size": 8,
            "layers": 4,
            "width": 128,
            "head_width": 32,
            "pool_type": "avg",
        },
        "text_cfg": {
            "hf_model_name": MINILM_NAME,
            "hf_tokenizer_name": MINILM_NAME,
            "context_length": 32,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp",
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
}


@dataclass(frozen=True)
class Claim:
    """A caption and what it says of an image; None where it says nothing."""

    text: str
    picture: Picture
    names: frozenset[str]

    def true_of(self, other: Picture) -> bool:
        """Whether the caption is true of another image too."""
        return all(getattr(self.picture, part) == getattr(other, part) for part in self.names)


def claim(picture: Picture, rng: np.random.Generator) -> Claim:
    """Half of the captions name everything; the others name style, object, scene or hazard alone."""

    def pick(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    kind = rng.random()
    if kind < 0.5:
        return Claim(caption(picture, rng), picture, frozenset({"object", "style", "scene", "hazard"}))
    if kind < 0.7 and picture.style != "photo":
        return Claim(style_only(picture.style, rng), picture, frozenset({"style"}))
    if kind < 0.7:
        return Claim(
            pick(("a photo", "a photograph", "a plain photo", "a realistic image")), picture, frozenset({"style"})
        )
    if kind < 0.85:
        thing = pick(OBJECT_WORDS[picture.object].train)
        return Claim(
            pick(("an image of {}", "a depiction of {}", "an image that shows {}")).format(thing),
            picture,
            frozenset({"object"}),
        )
    if kind < 0.95 or not picture.hazard:
        place = pick(SCENE_WORDS[picture.scene].train) or "on a plain background"
        return Claim(pick(("a scene {}", "something {}", "an image {}")).format(place), picture, frozenset({"scene"}))
    return Claim(pick(("an image {}", "something {}")).format(pick(HAZARD_WORDS.train)), picture, frozenset({"hazard"}))


def fresh(picture: Picture, rng: np.random.Generator) -> Picture:
    """The same image in another pose and texture that is not held out."""
    while is_held_out(other := nuisance(picture, rng)):
        pass
    return other


def matches(claims: list[Claim], pictures: list[Picture]) -> Tensor:
    """Truth (B images, B captions) bool."""
    return torch.tensor([[said.true_of(picture) for said in claims] for picture in pictures])


def contrastive(logits: Tensor, truth: Tensor) -> Tensor:
    """Softmax cross-entropy over rows and columns; a row's target is spread evenly over its matches."""
    target = truth.float()
    rows = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    columns = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (rows + columns) / 2


def train(folder: Path, steps: int = STEPS) -> Clip:
    """Train (or continue) in `folder`, write the finished asset into `folder/asset`, return it loaded."""
    torch.manual_seed(CLIP_SEED)
    net, world = build(CONFIG["model_cfg"], "gallery clip"), World()
    net.text.eval().transformer.requires_grad_(False)
    learner = torch.nn.ModuleDict({"visual": net.visual, "proj": net.text.proj})
    learner.register_parameter("logit_scale", net.logit_scale)
    rng = np.random.default_rng((CLIP_SEED, 0))
    claims = [claim(p, rng) for p in sample(world, rng, POOL, held_out=False)]
    vectors = _pooled(net, claims)
    average = Average(learner, 0.997)
    optimizer = torch.optim.AdamW(learner.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)

    def step(i: int) -> Report:
        rng = np.random.default_rng((CLIP_SEED, 1, i))
        chosen = rng.choice(len(claims), BATCH, replace=False)
        batch = [claims[k] for k in chosen]
        pictures = [fresh(said.picture, rng) for said in batch]
        image = F.normalize(net.visual(augment(world.tensor(pictures), rng)), dim=-1)
        text = F.normalize(net.text.proj(vectors[chosen]), dim=-1)
        loss = contrastive(net.logit_scale.exp() * image @ text.T, matches(batch, pictures))
        loss.backward()
        clip(learner, 1.0)
        with torch.no_grad():
            net.logit_scale.clamp_(max=float(np.log(100)))
        return {"loss": float(loss.detach()), "scale": float(net.logit_scale.detach().exp())}

    minutes = run(folder, learner, [optimizer], step, steps, average=average)
    learner.load_state_dict(average.state)
    return save(net, folder / "asset", steps, minutes, world)


@torch.no_grad()
def _pooled(net: Any, claims: list[Claim]) -> Tensor:
    """What open_clip's text tower pools from MiniLM before the projection, (n, 384)."""
    tokenizer = minilm_tokenizer(CONFIG["model_cfg"]["text_cfg"]["context_length"])
    unique = sorted({said.text for said in claims})
    parts = []
    for start in range(0, len(unique), 256):
        ids = tokenizer(unique[start : start + 256])
        ids = ids[:, : int((ids != 0).sum(1).max())]
        mask = (ids != 0).long()
        parts.append(net.text.pooler(net.text.transformer(input_ids=ids, attention_mask=mask), mask))
    table = dict(zip(unique, torch.cat(parts), strict=True))
    return torch.stack([table[said.text] for said in claims])


# -- measuring --------------------------------------------------------------------------------------------------


def zero_shot(model: Clip, images: Tensor, phrases: dict[str, list[str]]) -> list[str]:
    """The best of `phrases` (name → wordings, averaged) for each image (B, 3, H, W) uint8."""
    classes = torch.stack([F.normalize(model.texts(wordings).mean(0), dim=0) for wordings in phrases.values()])
    names = list(phrases)
    return [names[k] for k in (model.images(images) @ classes.T).argmax(-1).tolist()]


def phrases(part: str, *, held_out: bool = False) -> dict[str, list[str]]:
    """Zero-shot wordings of every style, object or scene; `held_out` takes words that no model was trained on."""

    def words(entry: Any) -> tuple[str, ...]:
        chosen: tuple[str, ...] = entry.held_out if held_out else entry.train
        return chosen

    if part == "style":
        art = {s: [f"a painting by {w}" for w in words(STYLE_WORDS[s])] for s in STYLES[1:]}
        plain = "a snapshot" if held_out else "a photo"
        return {"photo": [plain]} | art
    if part == "object":
        return {o: [f"an image of {w}" for w in words(OBJECT_WORDS[o])] for o in OBJECTS}
    return {s: [f"a scene {w or 'on a plain background'}" for w in SCENE_WORDS[s].train] for s in SCENES}


def measure(model: Clip, world: World | None = None, count: int = 1000) -> dict[str, Any]:
    """Zero-shot accuracy on augmented renders that were never trained on."""
    world = world or World()
    rng = np.random.default_rng((CLIP_SEED, 2))
    pictures = [p for p in sample(world, rng, 2 * count, held_out=True) if p.object in OBJECTS][:count]
    images = to_pixels(augment(world.tensor(pictures), rng))
    result: dict[str, Any] = {"n": len(pictures)}
    for part, unseen in (("style", False), ("style", True), ("object", False), ("object", True), ("scene", False)):
        guesses = zero_shot(model, images, phrases(part, held_out=unseen))
        right = np.mean([g == getattr(p, part) for g, p in zip(guesses, pictures, strict=True)])
        result[f"zero_shot_{part}{'_held_out_words' if unseen else ''}"] = round(float(right), 4)
    return result


def save(net: Any, folder: Path, steps: int, minutes: float, world: World) -> Clip:
    """Write open_clip_config.json, the trained weights (fp16, without MiniLM) and the manifest; returns it reloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half() for k, v in net.state_dict().items() if not k.startswith("text.transformer.")}
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / WEIGHT_FILES[0])
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG, indent=1) + "\n")
    model = from_folder(folder, "gallery")
    manifest = {
        "asset": "gallery clip",
        "made_by": "python -m safear_edit.minis clip",
        "seed": CLIP_SEED,
        "steps": steps,
        "batch": BATCH,
        "minutes": round(minutes, 1),
        "parameters": sum(v.numel() for v in weights.values()),
        "files": {name: file_digest(folder / name) for name in (WEIGHT_FILES[0], CONFIG_FILE)},
        "quality": measure(model, world),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    print(json.dumps(manifest["quality"], indent=1), flush=True)
    return model
