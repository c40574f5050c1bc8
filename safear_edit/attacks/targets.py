"""What a white-box attack is to bring about: the concept in the attacker's own images, and a style no model knows.

The attacker's images and captions are others than those that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from safear_edit.attacks.base import Concept, Target
from safear_edit.attacks.unknown import named, unknown_style
from safear_edit.errors import UsageError
from safear_edit.evaluate import mini_world
from safear_edit.evaluate.reference_images import Reference, Source
from safear_edit.evaluate.references import source_for, usually_wanted, why_none
from safear_edit.families.base import ModelCard, ModelFamily, Sampling
from safear_edit.judges.base import Judge
from safear_edit.spec.prompts import normalise
from safear_edit.spec.spec import Spec


def concept_of(
    model: ModelFamily, spec: Spec, judge: Judge, sampling: Sampling | None, seed: int, *, images: bool = True
) -> Concept:
    """Everything that the attacks need of a concept; without reference images there is nothing to learn from.

    The control learns images that are turned over: the mini world's, or a user's preserved ones. images: False where no
    attack reads them, which saves their encoding.
    """
    why = why_none(spec, model.card) if images else "no attack of this run asked for images"
    if why:
        return Concept(spec, judge, sampling, why=why)
    own, scored = apart(doubled(spec, model.card, seed))
    captions = tuple(dict.fromkeys(reference.neutral for reference in scored.references))
    known = replace(target(model, own, judge), scored=tuple(map(_direct, scored.references)))
    novel = taught(model, own, seed)
    if novel:
        novel = replace(novel, scored=named(captions))
    texts = tuple(kept.prompt for kept in own.kept)
    plain = Target(texts, model.encode(own.kept_images).cpu(), judge, texts) if texts else None
    return Concept(spec, judge, sampling, known, novel, captions, plain=plain)


def doubled(spec: Spec, card: ModelCard, seed: int) -> Source:
    """Reference images asked for by name only; of renders twice an audit's, because the attacker takes a third."""
    usual = usually_wanted(spec, seed)
    found = source_for(spec, card, wanted=replace(usual, references=2 * usual.references, classified=0))
    named = tuple(replace(r, prompts={"direct": _direct(r)}, others={}) for r in found.references)
    return replace(found, references=named)


def apart(source: Source) -> tuple[Source, Source]:
    """(the attacker's, what is scored): no caption without the concept and no image of one is in the other, nor is a
    caption of what the attacker has of other things.

    Every third such caption is the attacker's. UsageError if fewer than two images are left on either side.
    """
    plain = sorted({reference.neutral for reference in source.references})[::3]
    taken = [reference.neutral in plain for reference in source.references]
    seen = {image.numpy().tobytes() for image, own in zip(source.reference_images, taken, strict=True) if own}
    theirs = [i for i, own in enumerate(taken) if own]
    rest = [i for i, own in enumerate(taken) if not own and source.reference_images[i].numpy().tobytes() not in seen]
    if min(len(theirs), len(rest)) < 2:
        got = f"{len(theirs)} and {len(rest)}"
        raise UsageError("attack", "two reference images to attack with and two to score", got, "add captions")
    scored = {normalise(text) for i in rest for text in (source.references[i].neutral, _direct(source.references[i]))}
    other = [i for i, kept in enumerate(source.kept) if normalise(kept.prompt) not in scored]
    mine = replace(source, kept=tuple(source.kept[i] for i in other), kept_images=source.kept_images[other])
    return _part(mine, theirs), _part(source, rest)


def _direct(reference: Reference) -> str:
    return reference.prompts["direct"]


def _part(source: Source, rows: Sequence[int]) -> Source:
    return replace(
        source,
        references=tuple(source.references[i] for i in rows),
        reference_images=source.reference_images[list(rows)],
    )


def target(model: ModelFamily, source: Source, judge: Judge) -> Target:
    """The concept: its reference images under captions that don't name it."""
    captions = tuple(reference.neutral for reference in source.references)
    asked = tuple(map(_direct, source.references))
    return Target(captions, model.encode(source.reference_images).cpu(), judge, asked)


def taught(model: ModelFamily, source: Source, seed: int) -> Target | None:
    """What the control teaches: plain renders of the attacker's captions turned over, or, of a user's folder, its
    preserved images; None where there are too few, or no judge tells them apart."""
    others = torch.cat([source.reference_images, source.kept_images])
    if mini_world.draws(model.card):
        captions = tuple(reference.neutral for reference in source.references)
        return unknown_style(model, captions, mini_world.plain(captions, model.card.image_size, seed), others)
    captions = tuple(kept.prompt for kept in source.kept)
    return unknown_style(model, captions, source.kept_images, source.reference_images) if len(captions) > 1 else None
