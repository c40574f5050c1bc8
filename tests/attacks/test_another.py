"""Another one like this: what stands in the prompt, how often which image is shown, and which models can't."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from safear_edit.attacks.another import Another, Shows, read
from safear_edit.attacks.base import Drawer
from safear_edit.evaluate.before_after import Pair
from tests.attacks.test_contract import SMALL, concept, pico, some_edit


@pytest.mark.parametrize("family", ["janus", "emu3"])
def test_the_image_stands_between_its_marks_inside_the_prompt(family: str) -> None:
    model = pico(family)
    aim = concept(model)
    assert aim.known is not None
    vectors = read(model, aim.known, 1)
    seen = model.seen(model.decode(aim.known.ids[1:2]))[0]  # type: ignore[attr-defined]
    before, after = model.frame()  # type: ignore[attr-defined]
    assert len(before) >= 1 and torch.equal(vectors[len(before) : -len(after)], seen)
    plain = model.condition(["a cat"])
    held = model.with_vectors(plain, vectors)
    assert held.features.shape[1] == plain.features.shape[1] + len(vectors)
    assert torch.equal(held.features[0, -1], plain.features[0, -1]), "the mark that an image begins with stays last"


def test_every_image_is_shown_as_often_as_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = pico("janus"), Counter[str]()
    look = Drawer.look

    def watched(self: Drawer, model: object, prompts: list[str], purpose: str, **more: object) -> object:
        asked[purpose] += len(prompts)
        return look(self, model, prompts, purpose, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Drawer, "look", watched)
    pair, budget = Pair.of_edit(model, some_edit(model)), replace(SMALL, images=4)
    found = Another(Shows(images=3)).run(pair, concept(model), budget, 0)
    assert {k: n for k, n in asked.items() if k.startswith("attack")} == {
        "attack, image 1": 2,
        "attack, image 2": 1,
        "attack, image 3": 1,
    }
    assert found.edited.n == 4 and [part.name for part in found.searched] == ["another one like this", "its caption"]
    alone = Another().run(pair, replace(concept(model), novel=None), SMALL, 0)
    assert alone.control is None and not alone.interpretable


def test_a_model_that_reads_no_images_is_left_out() -> None:
    model = pico("llamagen")
    assert "reads no images" in Another().unfit(Pair.of_edit(model, some_edit(model)), concept(model))
