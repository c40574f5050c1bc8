"""The suffix: its words, its gradient, and that the search makes the images likelier."""

from __future__ import annotations

import pytest
import torch

from safear_edit.attacks.suffix import Search, Typable, gradient, likelihood, searched, typable
from safear_edit.families.tokens import token_logprobs
from safear_edit.registry import families
from tests.attacks.test_contract import concept, picasso, pico

FEW = Search(words=3, batch=4, candidates=6, top=8)


@pytest.fixture(scope="module")
def words() -> Typable:
    return typable(pico("llamagen"), picasso())


def test_words_are_one_token_each_wherever_they_stand(words: Typable) -> None:
    _, tokenizer = pico("llamagen").word_table()
    assert len(words.texts) > 10_000 and len(set(words.texts)) == len(words.texts)
    for chosen in ([0, 1, 2], [500, 500, 9000]):
        ids = tokenizer.encode("a photo of a cat" + words.text(chosen), add_special_tokens=False).ids
        assert [i for i in ids if i][-3:] == words.ids[chosen].tolist()
    assert not {"picasso", "cubist", "cubism", "pablo"} & {text.strip() for text in words.texts}
    assert {"paint", "violin"} <= {text.strip() for text in words.texts}


@pytest.mark.parametrize("family", [n for n, e in families().items() if "denoising" not in e.load().provides])
def test_the_gradient_is_that_of_the_words_own_embeddings(family: str) -> None:
    """Moving the looked-up rows of the suffix a little changes the loss as the gradient says."""
    model = pico(family)
    aim, typed = concept(model).known, typable(model, picasso())
    assert aim is not None
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    slope = gradient(model, typed, [1, 4, 2], aim.captions[:2], likelihood(model, aim), torch.arange(2))
    assert slope.shape == (3, typed.rows.shape[1]) and bool((slope.abs().sum(1) > 0).all())
    assert not torch.allclose(slope[0], slope[1])
    state = model.net.state_dict()
    assert all(torch.equal(before[name], state[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.net.parameters())


def test_a_small_step_against_the_gradient_lowers_the_loss(words: Typable) -> None:
    model = pico("llamagen")
    aim = concept(model).known
    assert aim is not None
    chosen, captions, ids = [3, 77, 4000], list(aim.captions[:3]), aim.ids[:3]
    slope = gradient(model, words, chosen, captions, likelihood(model, aim), torch.arange(3))
    table, _ = model.word_table()
    rows, step = words.ids[chosen], 0.02 / slope.norm()

    def loss() -> float:
        with torch.no_grad():
            condition = model.open_condition([text + words.text(chosen) for text in captions])  # remembers nothing
            return -float(token_logprobs(model.logits(condition, ids), ids).double().mean())

    at = loss()
    with torch.no_grad():
        kept = table.weight[rows].clone()
        table.weight[rows] -= step * slope
        moved = loss()
        table.weight[rows] = kept
    assert moved < at and moved - at == pytest.approx(-float(step * slope.pow(2).sum()), rel=0.2)


def test_the_search_makes_the_images_likelier(words: Typable) -> None:
    model = pico("llamagen")
    aim = concept(model).known
    assert aim is not None
    losses: list[str] = []
    objective = likelihood(model, aim)
    found = searched(model, words, aim, objective, FEW, 6, 0, lambda done, info: losses.append(info))
    assert found == searched(model, words, aim, objective, FEW, 6, 0, lambda done, info: None) and len(found) == 3
    values = [float(line.removeprefix("loss ")) for line in losses]
    assert min(values[3:]) < values[0]
