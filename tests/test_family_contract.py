"""What every registered family must keep, on its `pico()`: the promises that methods and evaluation build on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safear_edit.errors import UsageError
from safear_edit.families.base import ModelFamily, Sampling
from safear_edit.registry import ModelRef, families

PROMPTS = ["a house by Picasso", "a dog", "a cat in the snow, in the style of Claude Monet", "a dog"] * 2
SEEDS = [11, 12, 13, 14, 15, 16, 2**63 - 1, 0]


@pytest.fixture(scope="module", params=sorted(families()))
def model(request: pytest.FixtureRequest) -> ModelFamily:
    family: type[ModelFamily] = families()[request.param].load()
    return family.pico()


def test_the_one_shape_rule(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    ids = model.generate(condition, SEEDS)
    assert len(ids) == len(condition) == 8 and ids.shape[1] == model.card.tokens == sum(model.card.scales)
    assert model.logits(condition, ids).shape == (*ids.shape, model.card.choices)
    assert 0 <= int(ids.min()) and int(ids.max()) < model.card.choices
    assert len(set(map(tuple, ids.flatten(1).tolist()))) == 8  # eight seeds, eight images


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=1), Sampling(1.0, temperature=0.0)])
def test_greedy_is_the_argmax_of_the_logits_at_every_position(model: ModelFamily, sampling: Sampling) -> None:
    condition = model.condition(PROMPTS)
    ids = model.generate(condition, SEEDS, sampling)
    with torch.no_grad():
        assert torch.equal(model.logits(condition, ids).argmax(-1), ids)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_depends_on_its_prompt_and_seed_only(model: ModelFamily, guidance: float) -> None:
    sampling, condition = Sampling(guidance, 0.9, 20, 0.95), model.condition(PROMPTS)
    together = model.generate(condition, SEEDS, sampling)
    alone = [model.generate(model.condition([p]), [s], sampling)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert torch.equal(torch.stack(alone), together)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    shuffled = model.generate(condition.rows(order), [SEEDS[i] for i in order], sampling)
    assert torch.equal(shuffled, together[order])


def test_generating_reports_progress_and_leaves_the_model_and_the_global_stream(model: ModelFamily) -> None:
    before, seen = torch.random.get_rng_state(), []
    weights = {k: v.clone() for k, v in model.net.state_dict().items()}
    model.generate(model.condition(PROMPTS * 10), [*SEEDS] * 10, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 80 and len(seen) > 1
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(v, weights[k]) for k, v in model.net.state_dict().items())
    assert model.generate(model.condition([]), []).shape == (0, model.card.tokens)


def test_generated_tokens_can_be_trained_on(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    ids = model.generate(condition, SEEDS)
    model.logits(condition, ids).gather(-1, ids.unsqueeze(-1)).sum().backward()
    names = model.editable("all")
    gradients = [model.net.get_submodule(name).weight.grad for name in names]
    model.net.zero_grad()
    assert all(g is not None and bool(g.any()) for g in gradients)


def test_dropped_rows_forget_their_caption_and_no_other_row_moves(model: ModelFamily) -> None:
    condition, rows = model.condition(PROMPTS), torch.arange(8) % 2 == 0
    ids = model.generate(condition, SEEDS)
    with torch.no_grad():
        plain, mixed = (model.logits(c, ids) for c in (condition, model.dropped(condition, rows)))
        every = model.logits(model.dropped(condition, torch.ones(8, dtype=torch.bool)), ids)
    torch.testing.assert_close(mixed[~rows], plain[~rows], rtol=0, atol=2e-5)
    torch.testing.assert_close(mixed[rows], every[rows], rtol=0, atol=2e-5)
    assert (mixed[rows] - plain[rows]).abs().amax((1, 2)).min() > 1e-3
    assert not condition.dropped.any()


def test_saved_and_loaded_it_is_the_same_model(model: ModelFamily, tmp_path: Path) -> None:
    model.export(tmp_path)
    again = type(model).load(ModelRef.parse(str(tmp_path)))
    assert all(torch.equal(v, model.net.state_dict()[k]) for k, v in again.net.state_dict().items())
    assert again.sampling == model.sampling and again.card.tokens == model.card.tokens
    assert torch.equal(again.generate(again.condition(PROMPTS), SEEDS), model.generate(model.condition(PROMPTS), SEEDS))
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_pictures_in_and_out(model: ModelFamily) -> None:
    side = model.card.image_size
    images = torch.randint(0, 256, (3, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    ids = model.encode(images)
    assert ids.shape[:2] == (3, model.card.tokens) and ids.dtype == torch.int64
    decoded = model.decode(ids)
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8
    assert torch.equal(model.decode(ids), decoded) and torch.equal(model.encode(images), ids)
    assert torch.equal(model.encode(images[1:2])[0], ids[1])


def test_editable_names_are_linear_layers_and_their_weights_in_the_state_dict(model: ModelFamily) -> None:
    for part in ("attention", "ffn", "text", "all", "layers[0:1]", "attention+ffn"):
        names = model.editable(part)
        assert names and len(set(names)) == len(names)
        assert all(isinstance(model.net.get_submodule(name), torch.nn.Linear) for name in names)
        assert {f"{name}.weight" for name in names} <= model.net.state_dict().keys()
    for wrong in ("", "attention+", "layers[1:0]", "layers[0:99]", "layers[a:b]"):
        with pytest.raises(UsageError):
            model.editable(wrong)


def test_two_picos_of_a_seed_are_one_and_seeds_differ(model: ModelFamily) -> None:
    again, other = type(model).pico(), type(model).pico(seed=1)
    assert again.card == model.card and other.card.digest != model.card.digest
