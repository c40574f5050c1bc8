"""The attacker's images and captions, and the style that no model knows."""

from __future__ import annotations

import pytest
import torch

from safear_edit import registry
from safear_edit.attacks.targets import TurnedBack, apart, turned_over, unknown_style
from safear_edit.errors import UsageError
from safear_edit.evaluate.mini_world import drawn_source
from safear_edit.evaluate.reference_images import Reference, Source, Wanted
from safear_edit.families.llamagen import LlamaGen
from safear_edit.gallery import render
from safear_edit.judges.base import make_judge
from safear_edit.spec.spec import load_spec
from tests.evaluate.test_likelihood import SUBJECTS


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico()


def test_the_attacker_and_the_scored_share_nothing() -> None:
    source = drawn_source(load_spec(registry.find_builtin("concepts", "picasso")), Wanted(60, 3, 20))
    attacked, scored = apart(source)
    assert len(attacked.references) >= 10 and len(scored.references) >= 30
    captions = [{r.neutral for r in part.references} for part in (attacked, scored)]
    pixels = [{image.numpy().tobytes() for image in part.reference_images} for part in (attacked, scored)]
    assert not captions[0] & captions[1] and not pixels[0] & pixels[1]
    assert attacked.reference_images.shape[0] == len(attacked.references) and scored.kept == source.kept
    same = Source(source.references[:1] * 4, source.reference_images[:1].repeat(4, 1, 1, 1), (), source.kept_images)
    with pytest.raises(UsageError, match="two reference images to attack with"):
        apart(same)


def test_a_style_that_no_model_knows(model: LlamaGen) -> None:
    plain = tuple(f"a photo of {s}" for s in SUBJECTS[4:])
    ids = model.generate(model.condition([f"{s} by Picasso" for s in SUBJECTS[4:]]), range(len(plain)))
    unknown = unknown_style(model, Source(tuple(Reference({}, p) for p in plain), ids, (), ids), 0)
    images = torch.from_numpy(render.draw(render.Picture("house", "photo", "plain"))).permute(2, 0, 1)[None]
    turned = turned_over(images)
    assert torch.equal(turned_over(turned), images) and not torch.equal(turned, images)
    judge = make_judge("gallery", "style=photo")
    assert judge.look(images)[0].present is True and judge.look(turned)[0].present is not True
    assert isinstance(unknown.judge, TurnedBack)
    assert unknown.ids.shape == ids.shape
