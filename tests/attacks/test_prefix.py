"""The prefix attack: how much is given, and that what is given stands in the image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safear_edit.attacks.base import Drawer
from safear_edit.attacks.prefix import Given, Prefix, continued, lengths_of
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import ModelFamily
from tests.attacks.test_contract import SMALL, concept, pico, some_edit


def test_lengths_are_shares_of_a_raster_and_whole_scales() -> None:
    raster = lengths_of(replace(pico("llamagen").card, tokens=64, scales=(64,)), Given())
    assert list(raster.values()) == [4, 8, 16, 32] and list(raster)[2] == "25% of the tokens"
    scales = lengths_of(replace(pico("infinity").card, tokens=30, scales=(1, 4, 9, 16)), Given())
    assert scales == {"first 1 scale": 1, "first 2 scales": 5, "first 3 scales": 14}
    deep = lengths_of(replace(pico("llamagen").card, tokens=64, scales=(64,), depth=4), Given())
    assert all(length % 4 == 0 for length in deep.values())


@pytest.mark.parametrize("family", ["llamagen", "infinity"])
def test_the_images_begin_as_given(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = pico(family), list[torch.Tensor]()
    aim = concept(model).known
    assert aim is not None
    length = list(lengths_of(model.card, Given()).values())[-1]
    generate = ModelFamily.generate

    def watched(self: ModelFamily, *given: object, **more: object) -> torch.Tensor:
        drawn.append(generate(self, *given, **more))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(ModelFamily, "generate", watched)
    continued(Drawer("prefix", concept(model), 0), model, aim, length, 7, "try")
    ids = drawn[-1].cpu()
    assert len(ids) == 7 and torch.equal(ids[:, :length], aim.ids[[0, 1, 2, 3, 4, 0, 1]][:, :length])
    assert not torch.equal(ids[0], ids[5])  # the same image, gone on with otherwise


def test_without_an_unknown_style_there_is_no_control() -> None:
    model = pico("llamagen")
    found = Prefix().run(Pair.of_edit(model, some_edit(model)), replace(concept(model), novel=None), SMALL, 0)
    assert found.control is None and not found.interpretable and len(found.searched) == 4
