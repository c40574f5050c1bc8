"""Reference images that the mini world draws: a concept of its own, under prompts that training never met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.evaluate.reference_images import Kept, Reference, Source, Wanted
from safear_edit.families.base import ModelCard
from safear_edit.gallery import captions, render
from safear_edit.gallery.world import CALM_POSES, CALM_VARIANTS
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import choose, fill, image_seed, mention_of, side
from safear_edit.spec.spec import Spec, expand_group


class MiniWorld:
    """Renders for the embedded minis, of specs whose judge label is the gallery's (style=…, object=…, hazard=…)."""

    def why_none(self, spec: Spec, card: ModelCard) -> str:
        """As `ReferenceImages` says."""
        fix = "and the spec names no folder of reference images (evaluate.references)"
        if not draws(card):
            return f"{card.ref} is none of the embedded minis, {fix}"
        aspect, _, value = spec.judge.label.partition("=")
        known = {"style": render.STYLES, "object": render.OBJECTS, "hazard": ("yes",)}
        if spec.judge.use != "gallery" or value not in known.get(aspect, ()):
            return f"the mini world can't draw what judge {spec.judge.use} calls {spec.judge.label!r}, {fix}"
        return ""

    def source(self, spec: Spec, card: ModelCard, wanted: Wanted) -> Source:
        """As `ReferenceImages` says."""
        return drawn_source(spec, wanted)


def drawn_source(spec: Spec, wanted: Wanted) -> Source:
    """Renders for a spec whose label the mini world can draw; UsageError for any other.

    References ask with the evaluation half of the direct prompts, so training never met them; the same image is also
    asked for by a held-out name and, where one fits its style, in a held-out sentence. Renders are no samples of any
    model: nothing is learnt from the base's own mistakes. What isn't classified is for CIR alone.
    """
    seed = wanted.seed
    aspect, _, value = spec.judge.label.partition("=")
    if aspect not in ("style", "object", "hazard") or not value:
        fix = "give a folder of images with captions instead"
        raise UsageError(f"spec {spec.name}", "a gallery label", repr(spec.judge.label), fix)
    asked = choose(pools(spec).direct, wanted.references, f"likelihood|{seed}")
    texts = [_reference(spec, prompt.name, prompt.template, prompt.subject, i) for i, prompt in enumerate(asked)]
    texts = [text if i < wanted.classified else replace(text, others={}) for i, text in enumerate(texts)]
    shown = [_with_concept(picture_of(text.prompts["direct"], seed), aspect, value) for text in texts]
    stay: list[tuple[Kept, render.Picture]] = []
    each = max(1, wanted.kept // len(spec.preserve))
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


def draws(card: ModelCard) -> bool:
    """Whether the mini world's images are of this model's kind."""
    return card.variant == "mini" and card.image_size == render.SIDE


def plain(texts: Sequence[str], size: int, seed: int) -> Tensor:
    """What these captions describe, as photographs, uint8 (B, 3, size, size)."""
    images = _drawn([replace(picture_of(text, seed), style="photo") for text in texts])
    return F.interpolate(images.float(), (size, size), mode="area").round().to(torch.uint8)
