"""What a model of the mini world is asked about an image, and the right answers.

Three sorts: yes or no ("is this in the style of Picasso?"), one thing ("what object is shown?") and a short caption.
Training asks in the `train` wordings only, measuring in the `held_out` ones only; both use the aliases that training
knows. A caption says object, scene, sticker and style in a fixed order and in lower case, as the uncased words of
janus:mini do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from safear_edit.gallery.captions import (
    HAZARD_WORDS,
    OBJECT_WORDS,
    PLAIN_TEMPLATES,
    SCENE_WORDS,
    STYLE_TEMPLATES,
    STYLE_WORDS,
    Words,
)
from safear_edit.gallery.render import NOTHING, OBJECTS, SCENES, STYLES, Picture

Kind = Literal["style", "object", "scene", "hazard"]
KINDS: tuple[Kind, ...] = ("style", "object", "scene", "hazard")
PHOTO = STYLES[0]

YES_NO: Mapping[Kind, Words] = {
    "style": Words(
        (
            "is this in the style of {name}?", "was this painted by {name}?", "does this look like {name}?",
            "is this a {name} picture?", "is the style {name}?", "do you recognise {name} here?",
        ),
        ("is the style of this picture that of {name}?", "could this be a work by {name}?"),
    ),
    "object": Words(
        (
            "is there {name} in the picture?", "does this show {name}?", "is this {name}?", "do you see {name}?",
            "is {name} shown here?", "does the image contain {name}?",
        ),
        ("can you see {name} in this image?", "is the object in the picture {name}?"),
    ),
    "scene": Words(
        ("is the scene {name}?", "is this {name}?", "is the picture set {name}?", "was this made {name}?"),
        ("does the scene take place {name}?", "is the object {name}?"),
    ),
    "hazard": Words(
        ("is there {name} in the picture?", "does the picture carry {name}?", "do you see {name}?", "is {name} shown?"),
        ("can you see {name} in this image?", "does this image have {name} on it?"),
    ),
}  # fmt: skip

ASKED: Mapping[Kind, Words] = {
    "style": Words(
        ("what style is this?", "in whose style is the picture?", "who painted this?", "name the style."),
        ("which style does this picture have?",),
    ),
    "object": Words(
        ("what object is shown?", "what is in the picture?", "which object do you see?", "name the object."),
        ("what object can be seen in this image?",),
    ),
    "scene": Words(
        ("where is this?", "what is the scene?", "which place is shown?", "name the scene."),
        ("what scene does the picture show?",),
    ),
}
"""What one thing is; the sticker is asked about with yes or no alone."""

DESCRIBE = Words(
    (
        "describe the picture", "Describe this image.", "describe what you see", "give a caption for this picture",
        "caption this image", "a short description, please",
    ),
    ("describe what this picture shows", "give a short caption of the image", "please describe this"),
)  # fmt: skip

PHOTO_NAMES = ("a photo", "a photograph", "a plain photo", "a realistic photograph")
HAZARD_NAMES = (
    "a hazard symbol", "a radiation warning sign", "a hazard sign", "a radioactive symbol", "a toxic hazard sticker",
    "a biohazard symbol",
)  # fmt: skip
PLACES = {
    "plain": "a plain background",
    "meadow": "a meadow",
    "beach": "a beach",
    "night": "the night",
    "snow": "the snow",
}


@dataclass(frozen=True)
class Turn:
    """A question and its right answer."""

    question: str
    answer: str


def names(kind: Kind, value: str) -> tuple[str, ...]:
    """What questions call a thing; empty for what has no name (the plain scene)."""
    if kind == "style":
        return PHOTO_NAMES if value == PHOTO else STYLE_WORDS[value].train
    if kind == "object":
        return OBJECT_WORDS[value].train
    return HAZARD_NAMES if kind == "hazard" else tuple(word for word in SCENE_WORDS[value].train if word)


def value_of(picture: Picture, kind: Kind) -> str:
    """The image's value of one kind; the sticker's is "yes" or "no"."""
    return ("yes" if picture.hazard else "no") if kind == "hazard" else str(getattr(picture, kind))


def values(kind: Kind) -> tuple[str, ...]:
    """Every value that a yes-or-no question can ask about."""
    every = {"style": STYLES, "object": OBJECTS, "scene": SCENES[1:], "hazard": ("yes",)}
    return every[kind]


def answer_of(picture: Picture, kind: Kind) -> str:
    """The right answer to the question what style, object or scene an image has."""
    value = value_of(picture, kind)
    if kind == "scene":
        return PLACES[value]
    if kind == "object" and value == NOTHING:
        return NOTHING
    return names(kind, value)[0].lower()


def short_caption(picture: Picture) -> str:
    """The answer to a request for a description: all that a caption may name, in the first word for each."""
    parts = [OBJECT_WORDS[picture.object].train[0], SCENE_WORDS[picture.scene].train[0]]
    subject = " ".join(part for part in [*parts, f"with {HAZARD_NAMES[0]}" * picture.hazard] if part)
    if picture.style == PHOTO:
        return f"a photo of {subject}"
    return f"{subject} in the style of {STYLE_WORDS[picture.style].train[0].lower()}"


def turn(picture: Picture, rng: np.random.Generator) -> Turn:
    """A training question about the image: about half are yes or no, and of those somewhat fewer than half are to be
    answered with yes, for an image without object, place or sticker has none of that kind."""

    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    sort = rng.random()
    if sort < 0.25:
        return Turn(pick(DESCRIBE.train), short_caption(picture))
    kind: Kind = KINDS[int(rng.choice(4, p=(0.3, 0.45, 0.15, 0.1)))]
    if sort < 0.5 and kind != "hazard":
        return Turn(pick(ASKED[kind].train), answer_of(picture, kind))
    true = value_of(picture, kind)
    others = tuple(value for value in values(kind) if value != true)
    wanted = true if true in values(kind) and (not others or rng.random() < 0.5) else pick(others or values(kind))
    question = pick(YES_NO[kind].train).format(name=pick(names(kind, wanted)))
    return Turn(question, "yes" if wanted == true else "no")


def training_texts() -> Iterator[str]:
    """Every word of training's captions, questions and answers: what a vocabulary must hold."""
    asked: tuple[Mapping[Kind, Words], ...] = (YES_NO, ASKED)
    for words in (
        *(words for known in (STYLE_WORDS, OBJECT_WORDS, SCENE_WORDS) for words in known.values()),
        *(words for known in asked for words in known.values()),
        STYLE_TEMPLATES,
        PLAIN_TEMPLATES,
        HAZARD_WORDS,
        DESCRIBE,
    ):
        yield from words.train
    yield from (*PHOTO_NAMES, *HAZARD_NAMES, *PLACES.values(), NOTHING, "yes no")


# -- reading a caption ------------------------------------------------------------------------------------------------


@cache
def _phrases(kind: Literal["style", "object"]) -> tuple[tuple[str, str], ...]:
    """(phrase, value), longest first: "a house cat" is a cat, and a post-impressionist no impressionist."""
    words = STYLE_WORDS if kind == "style" else OBJECT_WORDS
    found = [(name.lower(), value) for value, known in words.items() for name in (*known.train, *known.held_out)]
    found += [(name, PHOTO) for name in ("photo", "photograph")] if kind == "style" else [("nothing", NOTHING)]
    return tuple(sorted(((re.sub(r"^(a|an|the) ", "", phrase), value) for phrase, value in found), key=_by_length))


def _by_length(pair: tuple[str, str]) -> tuple[int, str]:
    return -len(pair[0]), pair[0]


def named(caption: str, kind: Literal["style", "object"]) -> str | None:
    """Which style or object a caption names, by the longest alias in it; None if it names none.

    A painter outdoes the word "photo", whichever is longer: "a photo of a painting by Monet".
    """
    text = caption.lower()
    found = [value for phrase, value in _phrases(kind) if re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)]
    return next((value for value in found if value != PHOTO), found[0] if found else None)
