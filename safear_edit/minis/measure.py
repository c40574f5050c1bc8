"""How well a mini follows its captions, by the strict judge: 500 asked generations, then aliases and templates unseen.

Strict: an image that the judge refuses ("cannot tell") counts as wrong. Prompts and seeds are of this file alone.
A family that understands images is asked about renders of unseen combinations too, in wordings it never trained on.
`python -m safear_edit.minis measure --folder F [--model REF]` writes `quality.json` and `sheet.png`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from safear_edit.evaluate.stats import clopper_pearson
from safear_edit.families.base import ModelFamily
from safear_edit.files.atomic import write_atomic
from safear_edit.gallery.captions import OBJECT_WORDS, SCENE_WORDS, STYLE_TEMPLATES, STYLE_WORDS, caption
from safear_edit.gallery.questions import DESCRIBE, KINDS, YES_NO, Kind, named, names, value_of, values
from safear_edit.gallery.render import NOTHING, OBJECTS, SCENES, STYLES, Picture, sheet
from safear_edit.gallery.world import World
from safear_edit.judges.gallery import GalleryReader, reader
from safear_edit.minis.pool import held_out_triple

MEASURE_SEED = 900_017
ASKED, UNSEEN = 500, 250
WITH_AND_WITHOUT = 12
"""Images that have what a yes-or-no question asks about, and as many that haven't, where the renders suffice."""
DESCRIBED = 240


@dataclass(frozen=True)
class Seen:
    """What the judge read in a batch of generations, as names, and whether it refused."""

    style: NDArray[np.str_]
    object: NDArray[np.str_]
    hazard: NDArray[np.bool_]
    refused: NDArray[np.bool_]


def measure(model: ModelFamily, folder: Path, count: int = ASKED) -> dict[str, Any]:
    """Generate, judge, write `folder/quality.json` and `folder/sheet.png`; returns the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, judge = np.random.default_rng(MEASURE_SEED), reader()
    asked = [p for p in World().sample(rng, count + 60) if p.object != NOTHING][:count]
    painted = [p for p in asked if p.style != "photo" and not p.hazard][:UNSEEN]
    sets = {
        "asked": (asked, [caption(p, rng) for p in asked]),
        "unseen alias": (painted, [_worded(p, rng, alias=True) for p in painted]),
        "unseen template": (painted, [_worded(p, rng, alias=False) for p in painted]),
    }
    figures: dict[str, Any] = {"model": model.card.ref, "digest": model.card.digest, "judge": judge.digest}
    for name, (pictures, prompts) in sets.items():
        start = time.monotonic()
        images = _draw(model, prompts, first_seed=MEASURE_SEED)
        seconds = time.monotonic() - start
        figures[name] = _figures(pictures, look(judge, images)) | {"images_per_second": round(len(images) / seconds, 1)}
        print(name, json.dumps(figures[name]), flush=True)
    if "understanding" in model.provides:
        figures["understanding"] = understanding(model, model.card.image_size)
        print("understanding", json.dumps(figures["understanding"]), flush=True)
    write_atomic(folder / "quality.json", json.dumps(figures, indent=1) + "\n")
    _contact_sheet(model).save(folder / "sheet.png")
    return figures


@torch.no_grad()
def understanding(model: ModelFamily, side: int, described: int = DESCRIBED) -> dict[str, Any]:
    """Yes-or-no accuracy in all and by kind, and how often captions name object and style, on unseen combinations.

    side: edge in pixels of the images that the model takes. Questions are of the held-out wordings.
    """
    rng, world = np.random.default_rng(MEASURE_SEED + 2), World()
    pictures = [p for p in world.sample(rng, 60 * described) if held_out_triple(p)]
    images = ((world.tensor(pictures) + 1) * 127.5).round()
    images = F.interpolate(images, size=(side, side)).to(torch.uint8)
    right = {kind: _yes_no(model, images, pictures, kind, rng) for kind in KINDS}
    captions: list[str] = []
    shares = np.array_split(np.arange(described), len(DESCRIBE.held_out))
    for part, question in zip(shares, DESCRIBE.held_out, strict=True):
        captions += model.answer(images[part], question)
    hits = {
        part: np.array([named(text, part) == getattr(p, part) for text, p in zip(captions, pictures, strict=False)])
        for part in ("object", "style")
    }
    return {
        "yes or no": _rate(np.concatenate(list(right.values()))),
        "yes or no by kind": {kind: _rate(hit) for kind, hit in right.items()},
        "caption object": _rate(hits["object"]),
        "caption style": _rate(hits["style"]),
        "caption object and style": _rate(hits["object"] & hits["style"]),
    }


def _yes_no(
    model: ModelFamily, images: Tensor, pictures: Sequence[Picture], kind: Kind, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Whether each answer was right: every value of the kind in every held-out wording, yes and no equally often."""
    found = []
    for value in values(kind):
        has = np.array([value_of(p, kind) == value for p in pictures])
        for wording in YES_NO[kind].held_out:
            question = wording.format(name=rng.choice(names(kind, value)))
            count = min(WITH_AND_WITHOUT, int(has.sum()), int((~has).sum()))
            if not count:  # few images, and a value that none of them shows
                continue
            shown = np.concatenate([rng.choice(np.flatnonzero(x), count, replace=False) for x in (has, ~has)])
            yes, no = model.answer_logprobs(images[torch.from_numpy(shown)], question, ["yes", "no"]).cpu().unbind(1)
            found.append((yes > no).numpy() == has[shown])
    return np.concatenate(found)


def look(judge: GalleryReader, images: Tensor) -> Seen:
    """Names of the judge's best guesses."""
    reading = judge.read(images)
    best = {h: np.array(judge.labels[h])[reading.heads[h].argmax(-1).numpy()] for h in ("style", "object", "hazard")}
    refused = (reading.refusal >= judge.refuse_at).numpy()
    return Seen(best["style"], best["object"], best["hazard"] == "yes", refused)


def _worded(picture: Picture, rng: np.random.Generator, *, alias: bool) -> str:
    """A caption with an unseen alias in a trained template, or a trained alias in an unseen template."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    style, templates = STYLE_WORDS[picture.style], STYLE_TEMPLATES
    subject = f"{pick(OBJECT_WORDS[picture.object].train)} {pick(SCENE_WORDS[picture.scene].train)}".strip()
    template = pick(templates.train if alias else templates.held_out)
    return template.format(subject=subject, style=pick(style.held_out if alias else style.train))


def _draw(model: ModelFamily, prompts: Sequence[str], first_seed: int) -> Tensor:
    with torch.no_grad():
        condition = model.condition(prompts)
        return model.decode(model.generate(condition, range(first_seed, first_seed + len(prompts)))).cpu()


def _figures(pictures: Sequence[Picture], seen: Seen) -> dict[str, Any]:
    """Share recognised with its 95 % interval, per question; per style and object; the unseen combinations apart."""
    style, name = np.array([p.style for p in pictures]), np.array([p.object for p in pictures])
    hazard = np.array([p.hazard for p in pictures])
    unseen = np.array([held_out_triple(p) for p in pictures])
    style_right = (seen.style == style) & ~seen.refused
    object_right = (seen.object == name) & ~seen.refused
    return {
        "style": _rate(style_right),
        "object": _rate(object_right),
        "hazard when asked": _rate((seen.hazard & ~seen.refused)[hazard]),
        "hazard unasked": _rate(seen.hazard[~hazard]),
        "refused": _rate(seen.refused),
        "object in unseen combinations": _rate(object_right[unseen]),
        "style by style": {s: round(float(style_right[style == s].mean()), 3) for s in STYLES if (style == s).any()},
        "object by style": {s: round(float(object_right[style == s].mean()), 3) for s in STYLES if (style == s).any()},
        "object by object": {o: round(float(object_right[name == o].mean()), 3) for o in OBJECTS if (name == o).any()},
    }


def _rate(hits: NDArray[np.bool_]) -> dict[str, float | int]:
    if not len(hits):
        return {"n": 0}
    rate = clopper_pearson(int(hits.sum()), len(hits))
    return {"n": rate.n, "rate": round(rate.estimate, 4), "low": round(rate.low, 4), "high": round(rate.high, 4)}


def _contact_sheet(model: ModelFamily) -> Any:
    """One row per object, one column per style, scenes in turn."""
    rng = np.random.default_rng(MEASURE_SEED + 1)
    grid = [Picture(o, s, SCENES[(i + j) % len(SCENES)]) for i, o in enumerate(OBJECTS) for j, s in enumerate(STYLES)]
    images = _draw(model, [caption(p, rng) for p in grid], first_seed=1).permute(0, 2, 3, 1).numpy()
    width = len(STYLES)
    return sheet([list(images[i : i + width]) for i in range(0, len(images), width)])
