"""Reference images of a concept and of what is preserved: rendered by the mini world or from a user's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from safear_edit.errors import SpecError, UsageError
from safear_edit.families.base import ModelCard, ModelFamily
from safear_edit.files.atomic import digest_of
from safear_edit.files.strict import parse_json
from safear_edit.files.weights import write_weights
from safear_edit.gallery import captions, render
from safear_edit.gallery.world import CALM_POSES, CALM_VARIANTS
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import choose, fill, forbidden, image_seed, mention_of, side
from safear_edit.spec.spec import Spec, expand_group

BATCH = 16
"""Images per pass; bounds memory (two sets of logits and their softmax), changes no figure beyond rounding."""
REFERENCES, CLASSIFIED, KEPT = 144, 20, 48
"""Rendered images of a spec at most: those that CIR is about, the first of them that are also classified, and those
that must stay. Some 1650 teacher-forced passes: 17 s for llamagen:mini on two busy cores (limit 20 s)."""
NEUTRAL = "neutral"
CAPTIONS = "captions.jsonl"
LARGEST_CAPTIONS, LARGEST_PICTURE = 16 << 20, 64 << 20


# -- reference packs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Texts of one image that shows the concept.

    prompts: slice → prompt that asks for it; neutral: the same without the concept; others: what else a classifier may
    take it for, name → prompt.
    """

    prompts: Mapping[str, str]
    neutral: str
    others: Mapping[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, str]:
        """Every prompt that the image is scored under; slices are `slice/NAME`, other classes `class/NAME`."""
        slices = {f"slice/{name}": text for name, text in self.prompts.items()}
        return {**slices, NEUTRAL: self.neutral, **{f"class/{name}": text for name, text in self.others.items()}}


@dataclass(frozen=True)
class Kept:
    """Text of one image that must stay as likely as it was."""

    group: str
    prompt: str


@dataclass(frozen=True)
class Source:
    """Images uint8 (R, 3, H, W) and (K, 3, H, W) with their texts, not yet tokens of any model."""

    references: tuple[Reference, ...]
    reference_images: Tensor
    kept: tuple[Kept, ...]
    kept_images: Tensor

    @property
    def digest(self) -> str:
        """sha256 over texts and pixels."""
        texts = [asdict(part) for part in self.references] + [asdict(part) for part in self.kept]
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
        for images in (self.reference_images, self.kept_images):
            digest.update(json.dumps(list(images.shape)).encode() + images.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Pack:
    """The same as tokens of one family: ids (R, N) and (K, N), or bits (R, N, d) and (K, N, d)."""

    references: tuple[Reference, ...]
    reference_ids: Tensor
    kept: tuple[Kept, ...]
    kept_ids: Tensor
    digest: str


def tokenised(model: ModelFamily, source: Source, cache: Path | None = None) -> Pack:
    """Tokens of every image; with `cache`, made once for these images and these weights and then read.

    UsageError for images that don't have the model's size.
    """
    size = model.card.image_size
    for images in (source.reference_images, source.kept_images):
        if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
            got = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            raise UsageError("likelihood pack", f"uint8 images (n, 3, {size}, {size})", got, "scale them first")
    digest = digest_of("likelihood pack", model.card.ref, model.card.digest, source.digest)
    path = None if cache is None else cache / f"{digest}.safetensors"
    found = _cached(path, source) if path else None
    if found is None:
        found = (_encoded(model, source.reference_images), _encoded(model, source.kept_images))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_weights(path, {"references": found[0], "kept": found[1]})
    return Pack(source.references, found[0], source.kept, found[1], source.digest)


def _encoded(model: ModelFamily, images: Tensor) -> Tensor:
    return torch.cat([model.encode(part).cpu() for part in images.split(BATCH)])


def _cached(path: Path, source: Source) -> tuple[Tensor, Tensor] | None:
    """Tokens from the cache; None if they are not there or damaged (they are made again then)."""
    try:
        tensors = load_tensors(path.read_bytes())
        found = tensors["references"], tensors["kept"]
    except (OSError, SafetensorError, KeyError):
        return None
    return found if (len(found[0]), len(found[1])) == (len(source.references), len(source.kept)) else None


def why_none(spec: Spec, card: ModelCard) -> str:
    """Why there are no reference images of the spec's concept for this model; "" where there are some."""
    if spec.evaluate.references is not None:
        return ""
    fix = "and the spec names no folder of reference images (evaluate.references)"
    if card.variant != "mini" or card.image_size != render.SIDE:
        return f"{card.ref} is none of the embedded minis, {fix}"
    aspect, _, value = spec.judge.label.partition("=")
    known = {"style": render.STYLES, "object": render.OBJECTS, "hazard": ("yes",)}
    if spec.judge.use != "gallery" or value not in known.get(aspect, ()):
        return f"the mini world can't draw what judge {spec.judge.use} calls {spec.judge.label!r}, {fix}"
    return ""


def source_for(spec: Spec, card: ModelCard, seed: int = 0) -> Source:
    """The user's folder if the spec names one, else renders of the mini world; a small evaluation takes few of them.

    `seed` chooses the renders. UsageError where there are neither; SpecError for a wrong folder.
    """
    if spec.evaluate.references is not None:
        return folder_source(Path(spec.evaluate.references), card.image_size)
    if why := why_none(spec, card):
        raise UsageError("likelihood audit", "reference images", why, "see `likelihood.folder_source`")
    kept = min(KEPT, sum(group.n for group in spec.preserve))
    return gallery_source(spec, min(REFERENCES, spec.evaluate.n.direct), kept, seed)


def gallery_source(
    spec: Spec, references: int = REFERENCES, kept: int = KEPT, seed: int = 0, classified: int = CLASSIFIED
) -> Source:
    """Rendered images of the mini world for a spec whose judge label is the gallery's (style=…, object=…, hazard=…).

    The first `classified` references carry what else a classifier may take them for; the others are for CIR alone.

    References ask with the evaluation half of the direct prompts, so training never met them; the same image is also
    asked for by a held-out name and, where one fits its style, in a held-out sentence. `kept` is shared evenly among
    the preserved groups. Renders are no samples of any model: nothing is learnt from the base's own mistakes.
    """
    aspect, _, value = spec.judge.label.partition("=")
    if aspect not in ("style", "object", "hazard") or not value:
        fix = "give a folder of images with captions instead"
        raise UsageError(f"spec {spec.name}", "a gallery label", repr(spec.judge.label), fix)
    asked = choose(pools(spec).direct, references, f"likelihood|{seed}")
    texts = [_reference(spec, prompt.name, prompt.template, prompt.subject, i) for i, prompt in enumerate(asked)]
    texts = [text if i < classified else replace(text, others={}) for i, text in enumerate(texts)]
    shown = [_with_concept(picture_of(text.prompts["direct"], seed), aspect, value) for text in texts]
    stay: list[tuple[Kept, render.Picture]] = []
    each = max(1, kept // len(spec.preserve))
    for group in spec.preserve:
        own = [prompt for prompt in expand_group(group) if side(prompt.text) == "evaluate"]
        chosen = choose(own, each, f"likelihood|{seed}")
        stay += [(Kept(group.name, p.text), _labelled(picture_of(p.text, seed), group.members[p.name])) for p in chosen]
    return Source(tuple(texts), _drawn(shown), tuple(text for text, _ in stay), _drawn([p for _, p in stay]))


def _reference(spec: Spec, alias: str, template: int, subject: str, number: int) -> Reference:
    """All the ways to ask for one image; names and sentences take turns."""
    sentence = spec.erase.templates[template]
    anchors, other = spec.anchor.templates, spec.paraphrases
    held_out = other.held_out[number % len(other.held_out)]
    prompts = {
        "direct": fill(sentence, alias=alias, subject=subject),
        "paraphrase": fill(sentence, alias=held_out, subject=subject),
    }
    fitting = [t for t in other.held_out_templates if _style_in(t) == _style_in(sentence)]
    if fitting:
        prompts["template"] = fill(fitting[number % len(fitting)], alias=alias, subject=subject)
    neighbours: dict[str, str] = {}
    for group in spec.preserve:
        if group.role == "neighbour":
            for name, label in group.members.items():
                neighbours.setdefault(label, fill(sentence, alias=name, subject=subject))
    anchor = anchors[template if len(anchors) > 1 else 0]
    return Reference(prompts, fill(anchor, subject=subject), neighbours)


def picture_of(prompt: str, seed: int = 0) -> render.Picture:
    """The image of the mini world that a caption describes; what no caption names is drawn from the text's hash."""
    rng = np.random.default_rng(image_seed("likelihood", prompt, seed))
    return render.Picture(
        object=_longest(prompt, captions.OBJECT_WORDS) or render.NOTHING,
        style=_style_in(prompt) or "photo",
        scene=_longest(prompt, captions.SCENE_WORDS) or "plain",
        hazard=mention_of(captions.HAZARD_WORDS.train)(prompt) is not None,
        pose=int(rng.integers(CALM_POSES)),
        variant=int(rng.integers(CALM_VARIANTS)),
        corner=int(rng.integers(render.CORNERS)),
    )


def _style_in(text: str) -> str | None:
    return _longest(text, captions.STYLE_WORDS)


def _longest(text: str, words: Mapping[str, captions.Words]) -> str | None:
    """The thing whose longest name stands in `text` ("a house cat" is a cat's, not a house's)."""
    found = {name: mention_of((*word.train, *word.held_out))(text) or "" for name, word in words.items()}
    best = max(found, key=lambda name: len(found[name]))
    return best if found[best] else None


def _with_concept(picture: render.Picture, aspect: str, value: str) -> render.Picture:
    if aspect == "hazard":
        return replace(picture, hazard=True)
    return replace(picture, style=value) if aspect == "style" else replace(picture, object=value)


def _labelled(picture: render.Picture, label: str) -> render.Picture:
    aspect, _, value = label.partition("=")
    return _with_concept(picture, aspect, value) if aspect in ("style", "object", "hazard") else picture


def _drawn(pictures: Sequence[render.Picture]) -> Tensor:
    return torch.from_numpy(np.stack([render.draw(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()


def folder_source(folder: Path, size: int) -> Source:
    """A user's images, cropped to a square and scaled to `size`; captions.jsonl has one line per image:

        {"file": "a.png", "prompts": {"direct": "a cat by P."}, "neutral": "a cat", "others": {"Monet": "a cat by M."}}
        {"file": "b.png", "prompt": "a dog by Monet", "group": "neighbours"}

    SpecError with file and line for anything else. The images should come from three sources at least and must not
    be those that the edit was trained on; nobody but the user can know that.
    """
    path = folder / CAPTIONS
    references: list[tuple[Reference, Tensor]] = []
    kept: list[tuple[Kept, Tensor]] = []
    for number, line in enumerate(_caption_lines(path), 1):
        if line.strip():
            where = f"{path}:{number}"
            row = parse_json(line, where).data
            image = _opened(folder, row, where, size)
            if "group" in row:
                kept.append((Kept(_text(row, "group", where), _text(row, "prompt", where)), image))
            else:
                references.append((_told(row, where), image))
    if len(references) < 2 or not kept:
        got = f"{len(references)} and {len(kept)}"
        raise SpecError(str(path), "two images of the concept and one to keep, at least", got, "add some")
    images = [torch.stack([image for _, image in part]) for part in (references, kept)]
    return Source(tuple(text for text, _ in references), images[0], tuple(text for text, _ in kept), images[1])


def _caption_lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > LARGEST_CAPTIONS:
            raise SpecError(str(path), f"at most {LARGEST_CAPTIONS >> 20} MiB", "a larger file", "split it")
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise SpecError(str(path), "captions", error.strerror or "an error", "check the path") from None
    except UnicodeDecodeError:
        raise SpecError(str(path), "text in UTF-8", "other bytes", "save it as UTF-8") from None


def _told(row: Mapping[str, Any], where: str) -> Reference:
    prompts, others = row.get("prompts"), row.get("others", {})
    if not isinstance(prompts, dict) or "direct" not in prompts or not isinstance(others, dict):
        raise SpecError(where, "prompts with `direct`, or a group", str(list(row))[:60], "see `folder_source`")
    return Reference(
        {str(name): _text(prompts, name, where) for name in prompts},
        _text(row, "neutral", where),
        {str(name): _text(others, name, where) for name in others},
    )


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip() or not text.isprintable():
        raise SpecError(f"{where}, {name}", "printable text", repr(text)[:40], "write it")
    if forbidden(text):
        fix = "this combination is never processed, not even to test it"
        raise SpecError(f"{where}, {name}", "no words for minors together with sexual content", "both", fix)
    return text.strip()


def _opened(folder: Path, row: Any, where: str, size: int) -> Tensor:
    """uint8 (3, size, size): the middle square of an image that lies in `folder`."""
    if not isinstance(row, dict):
        raise SpecError(where, "a JSON object", type(row).__name__, 'write {"file": …}')
    path = folder / _text(row, "file", where)
    if folder.resolve() not in path.resolve().parents:
        raise SpecError(where, "an image inside the folder", str(path), "copy it there")
    try:
        if path.stat().st_size > LARGEST_PICTURE:
            raise SpecError(where, f"an image of at most {LARGEST_PICTURE >> 20} MiB", "a larger one", "reduce it")
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise SpecError(where, "an image", f"{path.name}: {error}", "convert it to PNG") from None
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    square = picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
