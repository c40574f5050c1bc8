"""Train and measure the gallery judge, on renders only, with seeds and augmentation that no generator shares.

Good images get sub-pixel shifts, small scalings, brightness, contrast, JPEG, mild noise and blur, so that what a
tokenizer does to an image is nothing new; a part of each batch is degraded beyond reading and must be refused. 60 %
of the good images lose their true colours and then teach the object head alone, so that it reads shape.
One in ten images of the world, with or without the sticker, is never trained on and makes the held-out set.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from safear_edit.gallery.render import NOTHING, OBJECTS, SCENES, STYLES, Picture
from safear_edit.gallery.world import World
from safear_edit.judges.base import JudgeCard, file_digest
from safear_edit.judges.gallery import GalleryJudge, GalleryReader
from safear_edit.judges.gallery_net import JudgeNet
from safear_edit.minis.degrade import CLEAR_BLUR, DEGRADATIONS, degrade, soften
from safear_edit.minis.loop import Average, Report, clip, run

JUDGE_SEED = 7001137
"""Root of every draw here; never the generators' WORLD_SEED."""
LABELS: dict[str, list[str]] = {
    "style": list(STYLES),
    "object": [*OBJECTS, NOTHING],
    "scene": list(SCENES),
    "hazard": ["no", "yes"],
}
BATCH, STEPS, LEARNING_RATE = 64, 2200, 3e-3
DEGRADED, DISCOLOURED_SHARE = 24, 0.6
"""Degraded images per batch, and the share of the good ones that lose their colours."""
OFTEN = {"mixed": 4, "halved": 4, "scrambled": 2, "blurred": 2, "smeared": 2, "noisy": 1, "blank": 1}
"""How often each degradation is trained on: the subtle ones more."""
REFUSE_AT = 0.5


def truth(picture: Picture) -> dict[str, str]:
    """The right answer of each head."""
    return {
        "style": picture.style,
        "object": picture.object,
        "scene": picture.scene,
        "hazard": "yes" if picture.hazard else "no",
    }


def is_held_out(picture: Picture) -> bool:
    """Whether this image, whatever its sticker, is kept for measuring: about one in ten, chosen by hash."""
    name = f"judge|{picture.object}|{picture.style}|{picture.scene}|{picture.pose}|{picture.variant}"
    return hashlib.sha256(name.encode()).digest()[0] < 26


def readable(picture: Picture) -> bool:
    """False for the empty plain scene: without texture or object it is a blank sheet, and blank is refused."""
    return picture.object != NOTHING or picture.scene != "plain"


def sample(world: World, rng: np.random.Generator, count: int, *, held_out: bool) -> list[Picture]:
    """`count` readable images of the training or of the held-out part."""
    kept: list[Picture] = []
    while len(kept) < count:
        kept += [p for p in world.sample(rng, 2 * count) if readable(p) and is_held_out(p) == held_out]
    return kept[:count]


# -- augmentation -----------------------------------------------------------------------------------------------


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """What a good image may go through without becoming unreadable: (B, 3, H, W) in [-1, 1] → same."""
    count = len(images)
    half = images.shape[-1] / 2
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.from_numpy(rng.uniform(0.93, 1.07, count)).float()
    theta[:, :, 2] = torch.from_numpy(rng.uniform(-1.5, 1.5, (count, 2))).float() / half
    moved = F.grid_sample(
        images,
        F.affine_grid(theta, list(images.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    moved = torch.where(torch.from_numpy(rng.random(count) < 0.7)[:, None, None, None], moved, images)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 1, 1, 1))).float()
    shift = torch.from_numpy(rng.uniform(-0.12, 0.12, (count, 1, 1, 1))).float()
    level = torch.from_numpy(rng.uniform(0, 0.08, (count, 1, 1, 1))).float()
    noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), np.float32))
    rows = [_worn(row, rng) for row in moved * gain + shift]
    return (torch.stack(rows) + level * noise).clamp(-1, 1)


def _worn(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A quarter of the images get a slight blur, another quarter a trip through JPEG."""
    kind = rng.random()
    if kind < 0.25:
        return soften(image, rng.uniform(0.2, CLEAR_BLUR))
    if kind < 0.5:
        pixels = ((image.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy().astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(45, 96)))
        return torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1).float() / 127.5 - 1
    return image


def discolour(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Take the true colours away: grey, or channels mixed at random, sometimes inverted."""
    mixing = rng.dirichlet((1.0, 1.0, 1.0), (len(images), 3)).astype(np.float32)
    grey = rng.random(len(images)) < 0.5
    mixing[grey] = np.array([0.299, 0.587, 0.114], np.float32)
    sign = np.where(rng.random((len(images), 1, 1)) < 0.1, -1, 1).astype(np.float32)
    return torch.einsum("bij,bjhw->bihw", torch.from_numpy(mixing * sign), images)


# -- training ---------------------------------------------------------------------------------------------------


def _others(world: World, pictures: list[Picture], rng: np.random.Generator, *, held_out: bool) -> Tensor:
    """For each image one that shows another object."""
    pool = sample(world, rng, 4 * len(pictures) + 60, held_out=held_out)
    names = np.array([p.object for p in pool])
    return world.tensor([pool[rng.choice((names != p.object).nonzero()[0])] for p in pictures])


def _degraded(world: World, rng: np.random.Generator, kinds: list[str], *, held_out: bool) -> Tensor:
    """One degraded image per entry of `kinds`."""
    pool = sample(world, rng, 3 * len(kinds), held_out=held_out)
    pictures = [p for p in pool if p.object != NOTHING][: len(kinds)]
    return degrade(world.tensor(pictures), _others(world, pictures, rng, held_out=held_out), kinds, rng)


def train(folder: Path, steps: int = STEPS) -> JudgeNet:
    """Train (or continue) in `folder`, write the finished asset into `folder/asset`, return the averaged net."""
    torch.manual_seed(JUDGE_SEED)
    net, world = new_net().to(memory_format=torch.channels_last), World()
    average = Average(net, 0.998)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.02)
    odds = np.array([OFTEN[kind] for kind in DEGRADATIONS]) / sum(OFTEN.values())

    def step(i: int) -> Report:
        rng = np.random.default_rng((JUDGE_SEED, 1, i))
        pictures = sample(world, rng, BATCH - DEGRADED, held_out=False)
        kinds = [str(kind) for kind in rng.choice(list(DEGRADATIONS), DEGRADED, p=odds)]
        images = torch.cat((world.tensor(pictures), _degraded(world, rng, kinds, held_out=False)))
        images = augment(images, rng)
        pale = torch.from_numpy(rng.random(BATCH) < DISCOLOURED_SHARE)
        pale[len(pictures) :] = False
        images[pale] = discolour(images[pale], rng)
        losses = _losses(net(images.contiguous(memory_format=torch.channels_last)), pictures, pale)
        torch.stack(list(losses.values())).sum().backward()
        clip(net, 5.0)
        return {name: float(loss.detach()) for name, loss in losses.items()}

    minutes = run(folder, net, [optimizer], step, steps, average=average)
    net.load_state_dict(average.state)
    save(net.eval(), folder / "asset", steps, minutes, world)
    return net


def new_net() -> JudgeNet:
    """An untrained judge with the gallery's heads."""
    return JudgeNet({name: len(values) for name, values in LABELS.items()} | {"refuse": 1})


def _losses(logits: dict[str, Tensor], pictures: list[Picture], pale: Tensor) -> dict[str, Tensor]:
    """Cross-entropy per head on the good rows, refusal on all; discoloured rows count for the object alone."""
    good = len(pictures)
    losses = {}
    for head, values in LABELS.items():
        target = torch.tensor([values.index(truth(p)[head]) for p in pictures])
        each = F.cross_entropy(logits[head][:good], target, reduction="none")
        losses[head] = each.mean() if head == "object" else _mean(each, ~pale[:good])
    bad = (torch.arange(len(pale)) >= good).float()
    each = F.binary_cross_entropy_with_logits(logits["refuse"].squeeze(-1), bad, reduction="none")
    return losses | {"refuse": _mean(each, ~pale)}


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)


# -- measuring --------------------------------------------------------------------------------------------------


def to_pixels(images: Tensor) -> Tensor:
    """[-1, 1] → uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def measure(source: GalleryReader, world: World | None = None, count: int = 2000) -> dict[str, Any]:
    """Quality on `count` held-out renders (never trained on, own seed) and degraded ones.

    Heads are scored over all good images by their best guess; `wrongly_refused` and `refused` tell the refusals.
    """
    world = world or World()
    rng = np.random.default_rng((JUDGE_SEED, 2))
    pictures = sample(world, rng, count, held_out=True)
    images = world.tensor(pictures)
    clean, worn = source.read(to_pixels(images)), source.read(to_pixels(augment(images, rng)))
    result: dict[str, Any] = {"n": count}
    for name, reading in (("clean", clean), ("augmented", worn)):
        right = {
            head: [
                LABELS[head][k] == truth(p)[head]
                for k, p in zip(reading.heads[head].argmax(-1).tolist(), pictures, strict=True)
            ]
            for head in LABELS
        }
        result[name] = {head: round(float(np.mean(hits)), 4) for head, hits in right.items()}
        result[name]["wrongly_refused"] = round(float((reading.refusal >= source.refuse_at).float().mean()), 4)
    kinds = [kind for kind in DEGRADATIONS for _ in range(count // 10)]
    refused = source.read(to_pixels(_degraded(world, rng, kinds, held_out=True))).refusal >= source.refuse_at
    by_kind = {k: round(float(refused[[x == k for x in kinds]].float().mean()), 4) for k in DEGRADATIONS}
    return result | {"refused": by_kind | {"all": round(float(refused.float().mean()), 4)}}


def label_card(source: GalleryReader, world: World | None = None, count: int = 3000) -> dict[str, dict[str, Any]]:
    """Counts per label, at threshold 0.5, on held-out augmented renders; a refusal is wrong on both sides."""
    world = world or World()
    rng = np.random.default_rng((JUDGE_SEED, 3))
    pictures = sample(world, rng, count, held_out=True)
    reading = source.read(to_pixels(augment(world.tensor(pictures), rng)))
    cards = {}
    for head, values in LABELS.items():
        for value in values:
            says = [v.present for v in GalleryJudge(f"{head}={value}", source=source).judgements(reading)]
            holds = [truth(p)[head] == value for p in pictures]
            pairs = list(zip(says, holds, strict=True))
            cards[f"{head}={value}"] = asdict(
                JudgeCard(
                    n_pos=sum(holds),
                    true_pos=sum(said is True and held for said, held in pairs),
                    n_neg=len(holds) - sum(holds),
                    true_neg=sum(said is False and not held for said, held in pairs),
                    data=f"{count} augmented renders never trained on, seed {JUDGE_SEED}",
                )
            )
    return cards


def save(net: JudgeNet, folder: Path, steps: int, minutes: float, world: World) -> None:
    """Write model.safetensors (fp16), config.json and manifest.json with everything measured, ready to ship."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    _write(folder / "config.json", {"labels": LABELS, "refuse_at": REFUSE_AT, "image_size": 40})
    manifest: dict[str, Any] = {
        "asset": "gallery judge",
        "made_by": "python -m safear_edit.minis judge",
        "seed": JUDGE_SEED,
        "steps": steps,
        "batch": BATCH,
        "minutes": round(minutes, 1),
        "parameters": sum(p.numel() for p in net.parameters()),
        "files": {"model.safetensors": file_digest(folder / "model.safetensors")},
        "card": {},
    }
    _write(folder / "manifest.json", manifest)
    source = GalleryReader(folder)
    manifest["quality"] = measure(source, world)
    manifest["card"] = label_card(source, world)
    _write(folder / "manifest.json", manifest)
    print(json.dumps(manifest["quality"], indent=1), flush=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
