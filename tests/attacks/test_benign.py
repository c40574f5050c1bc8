"""Benign fine-tuning: on images of other things only, and its control asks the same model for something else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safear_edit.attacks import benign
from safear_edit.attacks.base import Drawer, Target
from safear_edit.attacks.benign import CONTROL, NONE, Benign, Harmless
from safear_edit.attacks.relearn import Way, tuned
from safear_edit.evaluate.before_after import Pair
from tests.attacks.test_contract import SMALL, concept, pico, some_edit


def test_only_other_things_are_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    model, learnt, asked = pico("llamagen"), list[Target](), dict[str, tuple[str, ...]]()
    aim = concept(model)
    assert aim.known is not None and aim.plain is not None
    aim = replace(aim, plain=replace(aim.plain, asked=tuple(f"a photo of {n} cats" for n in range(5))))
    look = Drawer.look

    def watched_tuning(model: object, way: Way, shown: Target, *rest: object) -> object:
        learnt.append(shown)
        return tuned(model, way, shown, *rest)  # type: ignore[arg-type]

    def watched(self: Drawer, model: object, prompts: tuple[str, ...], purpose: str, **more: object) -> object:
        asked[purpose] = tuple(prompts)
        return look(self, model, prompts, purpose, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(benign, "tuned", watched_tuning)
    monkeypatch.setattr(Drawer, "look", watched)
    ways = (Way("lora", 4, benign=True), Way("full", 4, benign=True))
    found = Benign(Harmless(ways=ways)).run(Pair.of_edit(model, some_edit(model)), aim, SMALL, 0)
    assert len(learnt) == 3 and all(shown is aim.plain for shown in learnt)
    best = next(part.name for part in found.searched if part.count.found == max(p.count.found for p in found.searched))
    assert asked[f"attack, {best}"] == aim.known.scored[:3] == asked["base"]
    assert asked[f"control, {best}"] == aim.captions[:3] and found.control_is == CONTROL
    assert found.cost.steps == 3 * SMALL.steps


def test_without_other_images_it_is_left_out() -> None:
    model = pico("llamagen")
    pair = Pair.of_edit(model, some_edit(model))
    assert Benign().unfit(pair, replace(concept(model), plain=None)) == NONE
    assert Benign().unfit(pair, concept(model)) == ""
