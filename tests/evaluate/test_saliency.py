"""Saliency: attention is a probability and the one that is used, increments only add, words are told apart."""

from __future__ import annotations

import pytest
import torch

from safear_edit.construct.pairs import Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.evaluate import cartography
from safear_edit.evaluate.saliency import increments, saliency, split_words
from safear_edit.families.infinity import Infinity
from safear_edit.families.llamagen import LlamaGen

UNSAFE, SAFE = ["a house by Picasso", "a dog in the snow by Picasso"], ["a photo of a house", "a dog in the snow"]


@pytest.fixture(scope="module")
def model() -> Infinity:
    return Infinity.pico()


@pytest.fixture(scope="module")
def pairs(model: Infinity) -> Pairs:
    ids = [model.generate(model.condition(prompts), [5, 6]) for prompts in (UNSAFE, SAFE)]
    return Pairs(UNSAFE, SAFE, [5, 6], ids[0], ids[1], PairStats(2, 2, {}))


def test_attention_is_what_the_model_weighs_its_caption_by(model: Infinity, pairs: Pairs) -> None:
    """Rows sum to one over a caption's own pieces, whatever the other captions' lengths; and the mean over layers of
    the probabilities times the values is what each layer's attention gives."""
    for prompt, scales in zip(UNSAFE, model.text_attention(UNSAFE, pairs.unsafe_ids), strict=True):
        assert [scale.shape for scale in scales] == [(side, side, len(model.pieces(prompt))) for side in (1, 2, 4)]
        for scale in scales:
            torch.testing.assert_close(scale.sum(-1), torch.ones(scale.shape[:2]))
    alone = model.text_attention(UNSAFE[:1], pairs.unsafe_ids[:1])[0]
    for one, other in zip(alone, model.text_attention(UNSAFE, pairs.unsafe_ids)[0], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_probabilities_are_those_of_the_layer(model: Infinity) -> None:
    """One head: probabilities times values, projected, is the layer's output."""
    attention = model.net.layers[0].ca
    x, text = torch.randn(1, 3, 48), torch.randn(1, 5, 48)
    keys, values = attention.keys_values(text)
    bias = torch.tensor([float("-inf"), 0, 0, 0, 0]).view(1, 1, 1, 5)
    found = attention.probabilities(x, keys, bias)
    assert found[..., 0].abs().max().item() == 0
    scores = attention.queries(x) @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5 + bias
    mixed = attention.proj((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, keys, values, bias), mixed, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, scores.softmax(-1).mean(1))


def test_increments_by_hand() -> None:
    coarse, fine = torch.tensor([[[0.3, 0.1]]]), torch.tensor([[[0.5, 0.0], [0.2, 0.9]], [[0.3, 0.0], [0.4, 0.0]]])
    first, second = increments([coarse, fine], [0])
    torch.testing.assert_close(first, torch.tensor([[0.3]]))
    torch.testing.assert_close(second, torch.tensor([[0.2, 0.0], [0.0, 0.1]]))


def test_words_that_only_the_unsafe_caption_has() -> None:
    unsafe, safe = ["[CLS]", "a", "dog", "by", "picasso", "[SEP]"], ["[CLS]", "a", "dog", "[SEP]"]
    assert split_words(unsafe, safe) == ([3, 4], [1, 2])


def test_a_value_per_scale_and_none_without_cross_attention(model: Infinity, pairs: Pairs) -> None:
    found = saliency(model, pairs)
    assert found is not None and len(found.target) == len(found.neutral) == 3 and min(found.target) >= 0
    by_hand = [
        increments(scales, split_words(model.pieces(u), model.pieces(s))[0])[0].mean().item()
        for u, s, scales in zip(UNSAFE, SAFE, model.text_attention(UNSAFE, pairs.unsafe_ids), strict=True)
    ]
    assert found.target[0] == pytest.approx(sum(by_hand) / 2)
    assert saliency(LlamaGen.pico(), pairs) is None


def test_the_figure_shows_it(model: Infinity, pairs: Pairs) -> None:
    groups = tuple(cartography.Group(f"scale {i}", 1, 1.0, 0.1, 1, 2) for i in range(3))
    found = cartography.ConceptMap("m", "d", "c", "scale", 2, 0, groups, (("layer 0", 1.0),), saliency(model, pairs))
    assert cartography.figure(found).startswith(b"\x89PNG") and '"saliency"' in found.to_json()
