"""The attacker's images and captions, and the style that no model knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safear_edit import registry
from safear_edit.attacks.targets import apart, concept_of, taught
from safear_edit.attacks.unknown import NAMED, PixelProbe, turned_over, unknown_style
from safear_edit.errors import UsageError
from safear_edit.evaluate.mini_world import drawn_source
from safear_edit.evaluate.reference_images import Kept, Source, Wanted
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.load import load_model
from safear_edit.gallery import render
from safear_edit.spec.spec import load_spec
from tests.attacks.test_contract import Bright


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
    texts = (*captions[0], *captions[1], *(r.prompts["direct"] for r in scored.references), "something else")
    kept = tuple(Kept("objects", text) for text in texts)
    others, _ = apart(replace(source, kept=kept, kept_images=source.reference_images[:1].repeat(len(kept), 1, 1, 1)))
    assert {one.prompt for one in others.kept} == {*captions[0], "something else"} and len(others.kept_images) == len(
        others.kept
    ), "other things under a caption that is scored would be learnt for it"
    same = Source(source.references[:1] * 4, source.reference_images[:1].repeat(4, 1, 1, 1), (), source.kept_images)
    with pytest.raises(UsageError, match="two reference images to attack with"):
        apart(same)


def renders(style: str) -> torch.Tensor:
    drawn = [render.draw(render.Picture(thing, style, "plain")) for thing in ("house", "cat", "tree", "car", "fish")]
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in drawn])


def test_a_style_that_no_model_knows(model: LlamaGen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody draws it, its own judge sees it, and in nothing else."""
    plain, other = renders("photo"), renders("picasso")
    assert torch.equal(turned_over(turned_over(plain)), plain) and not torch.equal(turned_over(plain), plain)
    monkeypatch.setattr(LlamaGen, "encode", lambda self, images: images)
    monkeypatch.setattr(LlamaGen, "decode", lambda self, ids: ids)
    unknown = unknown_style(model, tuple("abcde"), plain, other)
    assert unknown is not None and unknown.asked == tuple(f"{letter} {NAMED}" for letter in "abcde")
    assert [one.present for one in unknown.judge.look(turned_over(plain))] == [True] * 5
    assert [one.present for one in unknown.judge.look(torch.cat([plain, other]))] == [False] * 10
    assert isinstance(unknown.judge, PixelProbe) and unknown.judge.card is not None
    assert (unknown.judge.card.n_pos, unknown.judge.card.n_neg) == (2, 5)
    assert unknown_style(model, tuple("abcde"), plain, turned_over(plain)) is None  # nothing to tell it by


def test_what_a_real_mini_is_attacked_with() -> None:
    model = load_model("llamagen:mini")
    spec = load_spec(registry.find_builtin("concepts", "picasso"))
    fewer = spec.evaluate.model_copy(update={"n": spec.evaluate.n.model_copy(update={"direct": 90})})
    found = concept_of(model, spec.model_copy(update={"evaluate": fewer}), Bright(), None, 0)
    assert found.known is not None and found.novel is not None and found.plain is not None
    assert len(found.known.asked) == len(found.known.ids) and all(
        "icasso" in t or "cub" in t for t in found.known.asked
    )
    assert not set(found.known.asked) & set(found.known.scored) and len(found.known.scored) >= 100
    assert all(text.endswith(NAMED) for text in found.novel.asked + found.novel.scored)
    card = found.novel.judge.card
    assert card is not None and card.sensitivity > 0.9 and card.specificity > 0.95
    bare = concept_of(model, spec, Bright(), None, 0, images=False)
    assert (bare.known, bare.novel, bare.plain, bare.captions) == (None, None, None, ())


def test_a_users_folder_teaches_its_preserved_images_turned_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("llamagen:mini")
    monkeypatch.setattr(model, "card", replace(model.card, variant="xl-256"))
    source = drawn_source(load_spec(registry.find_builtin("concepts", "picasso")), Wanted(20, 48, 2))
    found = taught(model, source, 0)
    assert found is not None and found.captions == tuple(kept.prompt for kept in source.kept)
    assert torch.equal(found.ids, model.encode(turned_over(source.kept_images)))
    assert taught(model, replace(source, kept=(), kept_images=source.kept_images[:0]), 0) is None
