"""The questions of janus:mini: right answers, wordings that never meet, captions that are read back."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from safear_edit.gallery import captions, render
from safear_edit.gallery.captions import OBJECT_WORDS, STYLE_WORDS, Words
from safear_edit.gallery.questions import (
    ASKED,
    DESCRIBE,
    KINDS,
    PHOTO,
    YES_NO,
    answer_of,
    named,
    names,
    short_caption,
    training_texts,
    turn,
    value_of,
    values,
)
from safear_edit.gallery.render import NOTHING, OBJECTS, SCENES, STYLES, Picture
from safear_edit.gallery.world import World

DOG = Picture("dog", "picasso", "snow", hazard=True)


def bare(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def wordings(part: str) -> set[str]:
    every: list[Words] = [*YES_NO.values(), *ASKED.values(), DESCRIBE]
    return {bare(text) for words in every for text in getattr(words, part)}


def test_training_and_measuring_never_ask_in_the_same_words() -> None:
    assert not wordings("train") & wordings("held_out")
    assert all(words.train and words.held_out for words in (*YES_NO.values(), *ASKED.values(), DESCRIBE))


def test_captions_say_everything_and_are_read_back() -> None:
    assert short_caption(DOG) == "a dog in the snow with a hazard symbol in the style of picasso"
    assert short_caption(Picture("cat", PHOTO, "plain")) == "a photo of a cat"
    for name in (*OBJECTS, NOTHING):
        for style in STYLES:
            for scene in SCENES:
                text = short_caption(Picture(name, style, scene, hazard=True))
                assert (named(text, "object"), named(text, "style")) == (name, style), text


@pytest.mark.parametrize("kind, known", [("style", STYLE_WORDS), ("object", OBJECT_WORDS)])
def test_every_alias_names_its_thing(kind: str, known: dict[str, Words]) -> None:
    for value, words in known.items():
        for alias in (*words.train, *words.held_out):
            assert named(f"well, {alias.upper()}.", kind) == value, alias  # type: ignore[arg-type]


def test_a_caption_may_name_nothing_and_a_part_of_a_word_is_no_name() -> None:
    assert named("some carpet, scattered", "object") is None
    assert named("a photo of a painting by Monet", "style") == "monet"
    assert named("a carpet", "style") is None


def test_answers_are_those_of_the_picture() -> None:
    assert [answer_of(DOG, kind) for kind in ("style", "object", "scene")] == ["picasso", "a dog", "the snow"]
    assert answer_of(Picture(NOTHING, PHOTO, "plain"), "object") == "nothing"
    assert answer_of(Picture(NOTHING, PHOTO, "plain"), "style") == "a photo"


def test_yes_and_no_are_true_and_about_equally_frequent() -> None:
    rng, said = np.random.default_rng(0), Counter[str]()
    for picture in World(hazard_share=0.3).sample(rng, 1500):
        asked = turn(picture, rng)
        said[asked.answer] += 1
        if asked.answer in ("yes", "no"):
            mentioned = {
                (kind, value)
                for kind in KINDS
                for value in values(kind)
                for name in names(kind, value)
                if any(asked.question == wording.format(name=name) for wording in YES_NO[kind].train)
            }
            ((kind, value),) = {(k, v) for k, v in mentioned}
            assert (value_of(picture, kind) == value) == (asked.answer == "yes"), asked
    assert 0.4 < said["yes"] / (said["yes"] + said["no"]) < 0.55
    assert 0.35 < (said["yes"] + said["no"]) / 1500 < 0.65


def test_the_vocabulary_covers_what_training_says() -> None:
    known = {word for text in training_texts() for word in bare(text).split()}
    rng = np.random.default_rng(1)
    for picture in World(hazard_share=0.3).sample(rng, 300):
        asked = turn(picture, rng)
        assert not set(bare(asked.question + " " + asked.answer).split()) - known


def test_every_thing_of_the_world_has_words() -> None:
    assert {*render.OBJECTS, render.NOTHING} == set(OBJECT_WORDS)
    assert set(render.STYLES[1:]) == set(STYLE_WORDS) and set(render.SCENES) == set(captions.SCENE_WORDS)
