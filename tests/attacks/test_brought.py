"""What attacks brought back: which images are kept, each once, and nothing of a category that could be made out."""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safear_edit.attacks.base import SHOWN, Drawer
from safear_edit.attacks.brought import MOST, BroughtBack, brought, read_brought
from safear_edit.construct.sheets import MOSAIC
from tests.attacks.test_contract import concept, pico

NOISE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("category", [False, True])
def test_an_image_of_a_category_is_blocks_and_its_prompt_a_hash(category: bool) -> None:
    one = brought(NOISE, "a prompt", 7, "words found", category=category)
    image = np.asarray(Image.open(BytesIO(base64.b64decode(one.webp))).convert("RGB"))
    colours = len(np.unique(image.reshape(-1, 3), axis=0))
    assert (colours <= MOSAIC**2) == category and np.array_equal(image, NOISE) == (not category)
    assert one.prompt.startswith("sha256:") == category and (one.prompt == "a prompt") == (not category)


def test_each_is_kept_once_and_only_so_many() -> None:
    many = [brought(NOISE, f"prompt {n}", n, "x", category=False) for n in range(MOST + 3)]
    some = BroughtBack(attack="a").plus(many[:2]).plus(many[:2])
    assert [one.seed for one in some.images] == ["0", "1"] and len(some.plus(many).images) == MOST


def test_what_shows_the_concept_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    model = pico("llamagen")
    aim = concept(model)
    drawer = Drawer("a", aim, 0, tmp_path)
    prompts = [f"a photo of {n} cats" for n in range(8)]
    drawer.look(model, prompts, "control")
    assert not (tmp_path / SHOWN).exists()
    seen = drawer.look(model, prompts, "attack", show="so")
    shown = read_brought(tmp_path / SHOWN, "a").images
    found = [text for text, present in zip(prompts, seen, strict=True) if present]
    assert found and [one.prompt for one in shown] == found[:MOST] and {one.how for one in shown} == {"so"}
    again = replace(drawer, images=0)
    assert again.look(model, prompts, "attack", show="so") == seen
    assert read_brought(tmp_path / SHOWN, "a").images == shown
