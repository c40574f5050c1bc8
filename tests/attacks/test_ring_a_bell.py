"""Ring-A-Bell: the concept's direction, and that breeding comes nearer to it."""

from __future__ import annotations

import torch

from safear_edit.attacks.ring_a_bell import Genetic, bred, direction, embedded
from safear_edit.attacks.suffix import Typable
from tests.attacks.test_contract import CAPTIONS, pico

ASKED = tuple(f"{text} by Picasso" for text in CAPTIONS)


def test_the_direction_is_what_naming_the_concept_adds() -> None:
    model = pico("llamagen")
    away = direction(model, ASKED, CAPTIONS)
    assert away.shape == (384,) and torch.allclose(direction(model, CAPTIONS, CAPTIONS), torch.zeros(384), atol=1e-5)
    one = embedded(model, [ASKED[0]])  # pads and other captions change nothing
    assert torch.allclose(embedded(model, [*CAPTIONS, ASKED[0]])[-1:], one, atol=1e-5)


def test_breeding_comes_nearer() -> None:
    model = pico("llamagen")
    table, tokenizer = model.word_table()
    texts = ("cubist", "painting", "cat", "blue", "stone", "guitar", "of", "art", "river", "seven")
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids[0] for text in texts])
    words = Typable(ids, tuple(f" {text}" for text in texts), table.weight.detach()[ids])
    away, settings, shown = direction(model, ASKED, CAPTIONS), Genetic(words=3, population=8, elite=3, eta=1.0), []
    found = bred(model, words, CAPTIONS, away, settings, 12, 0, lambda stage, done, total, info: shown.append(info))
    again = bred(model, words, CAPTIONS, away, settings, 12, 0)
    distances = [float(info.removeprefix("distance ")) for info in shown]
    assert found == again and distances == sorted(distances, reverse=True) and distances[-1] < distances[0]
