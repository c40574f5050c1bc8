"""ScaleErasure guides what it should and nothing else: scales, tokens and bits outside its window are the model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safear_edit.errors import UsageError
from safear_edit.families.infinity import Infinity, ScaleSampling
from safear_edit.families.llamagen import LlamaGen
from safear_edit.spec.spec import load_spec
from safear_edit.studies.scale_erasure import ScaleErasure, Window, Words, relevance, told

WORDS = Words("picasso", "a photo", ("a dog", "a long sentence about houses"))
PROMPTS, SEEDS = ["a dog in the style of picasso", "a cat"], [3, 4]
EVERYTHING = Window(1, 2, token_threshold=0.0, bit_threshold=1e9, layers=(0, 1))


def drawn(model: Infinity, sampling: ScaleSampling | None = None) -> torch.Tensor:
    return model.generate(model.condition(PROMPTS), SEEDS, sampling)


def test_only_what_the_window_holds_is_guided() -> None:
    model = Infinity.pico()
    plain, first = drawn(model), model.schedule.spans[1][0]
    guided = drawn(ScaleErasure(model, WORDS, EVERYTHING))
    assert torch.equal(guided[:, :first], plain[:, :first]), "scales before the window are drawn as ever"
    assert not torch.equal(guided, plain)
    assert torch.equal(drawn(ScaleErasure(model, WORDS, replace(EVERYTHING, token_threshold=1.0))), plain)
    assert torch.equal(drawn(ScaleErasure(model, WORDS, replace(EVERYTHING, bit_threshold=0.0))), plain)
    assert torch.equal(drawn(model), plain), "nothing stays behind in the model"


def test_a_picture_depends_on_its_own_prompt_and_seed() -> None:
    guarded = ScaleErasure(Infinity.pico(), WORDS, EVERYTHING)
    alone = [guarded.generate(guarded.condition([p]), [s]) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert torch.equal(drawn(guarded), torch.cat(alone))


def test_scales_after_the_window_may_be_unguided() -> None:
    model = Infinity.pico()
    count = len(model.schedule.grids)
    sampling = ScaleSampling(guidance=2.0, guidances=(2.0,) * (count - 1) + (1.0,))
    unmoved = ScaleErasure(model, WORDS, replace(EVERYTHING, token_threshold=1.0))
    assert torch.equal(drawn(unmoved, sampling), drawn(model, sampling))


def test_guided_bits_follow_the_safe_words_away_from_the_unsafe_ones() -> None:
    model = Infinity.pico()
    same = replace(WORDS, safe=WORDS.unsafe)
    sampling = ScaleSampling(guidance=3.0)
    found = drawn(ScaleErasure(model, same, replace(EVERYTHING, first=0, last=len(model.schedule.grids))), sampling)
    condition = model.dropped(model.condition(PROMPTS), torch.tensor([True, True]))
    unguided = model.generate(condition, SEEDS, ScaleSampling(guidance=1.0))
    assert torch.equal(found, unguided), "safe - unsafe is nothing here, so what is left is the dropped caption"


def test_relevance_is_a_share_among_the_words() -> None:
    queries, keys = torch.randn(2, 4, 5, 8), torch.randn(3, 4, 8)
    shares = [relevance([queries], [keys.roll(-i, 0)]) for i in range(3)]
    assert torch.allclose(sum(shares[1:], shares[0]), torch.ones(2, 5))


def test_words_and_window_come_from_the_spec_and_the_model() -> None:
    words = Words.of(load_spec(Path("concepts/picasso.yaml")))
    assert words.unsafe == "Pablo Picasso" or "icasso" in words.unsafe
    assert "{" not in words.safe and len(words.unrelated) > 3
    assert Window.scaled(13, 32, 3) == Window(2, 8, 1 / 3, 0.1, (1, 2, 3, 4, 5))
    usual = Window.scaled(5, 6, 4)
    assert usual == Window(2, 3, 1 / 4, 0.1, (1,)) == usual.changed("{}", 6)
    assert usual.changed("{first: 0, layers: [0, 5]}", 6) == Window(0, 3, 1 / 4, 0.1, (0, 5))
    for text in ("{foo: 1}", "{first: many}", "{layers: [6]}", "{layers: []}", "first", "{first: [", "3", ""):
        with pytest.raises(UsageError, match="--window"):
            usual.changed(text, 6)


def test_other_families_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="expected an Infinity, got llamagen"):
        ScaleErasure(LlamaGen.pico(), WORDS)


def test_what_is_lost_and_gained_is_counted() -> None:
    assert told((True, True, False), (None, True, True)) == "found in 2, then in 2 of 3; lost 1, gained 1"
