"""What every family promises (families/base.py), on its tiny random model: a new family is held to it by being found.

What only some families have, such as a codebook, is asked of those that say that they provide it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.editor.fine_tune import Tuning, adapter_weights, borrowed, inject, run_again
from safear_edit.errors import UsageError
from safear_edit.families.base import Condition, ModelFamily, Sampling
from safear_edit.families.language import LanguageModel
from safear_edit.families.load import load_model
from safear_edit.families.tokens import token_logprobs
from safear_edit.registry import families

PROMPTS = ["a house by Picasso", "a dog", "a cat in the snow", "a dog"]
GREEDY = Sampling(1.0, top_k=1)
KINDS: dict[str, type[ModelFamily]] = {name: entry.load() for name, entry in sorted(families().items())}


def that(capability: str) -> pytest.MarkDecorator:
    """Only families that provide this."""
    return _of([name for name, kind in KINDS.items() if capability in kind.provides])


def _of(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model", names, indirect=True)


by_token = _of([name for name, kind in KINDS.items() if "denoising" not in kind.provides])
"""Only families that draw token after token or scale after scale, and give likelihoods."""


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest) -> ModelFamily:
    return KINDS[request.param].pico()


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def same(model: ModelFamily, found: Tensor, wanted: Tensor) -> bool:
    """Tokens: equal; numbers of a latent: but for rounding, which differs with the height of a matrix product."""
    return torch.allclose(found, wanted, rtol=0, atol=1e-4) if found.is_floating_point() else torch.equal(found, wanted)


def said(model: ModelFamily, condition: Condition, ids: Tensor) -> Tensor:
    """What the network says of images: logits, or the noise that it finds in them."""
    if "denoising" not in model.provides:
        return model.logits(condition, ids)
    noise = torch.randn(ids.shape, generator=torch.Generator().manual_seed(2))
    return model.noise_prediction(condition, ids, noise, torch.full((len(ids),), 0.6))


def objective(model: ModelFamily, condition: Condition, ids: Tensor) -> Tensor:
    """Something to be trained on: likelihoods, or the size of the noise that is found."""
    if "denoising" in model.provides:
        return said(model, condition, ids).square()
    return token_logprobs(model.logits(condition, ids), ids)


def pictures(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def greedy_is_argmax(model: ModelFamily) -> bool:
    condition = model.condition(PROMPTS)
    ids = model.generate(condition, range(4), GREEDY)
    with torch.no_grad():
        return torch.equal(model.logits(condition, ids).argmax(-1), ids)


# -- drawing and scoring ----------------------------------------------------------------------------------------------


@by_token
def test_greedy_generation_is_the_argmax_of_the_logits_everywhere(model: ModelFamily) -> None:
    assert greedy_is_argmax(model)


@by_token
def test_logits_are_of_every_choice_at_every_token(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    assert len(condition) == 4 and len(condition.features) == 3  # equal prompts once
    ids = model.generate(condition, range(4))
    with torch.no_grad():
        logits = model.logits(condition, ids)
    assert ids.shape == (4, *model.token_shape) and ids.shape[1] == model.card.tokens
    assert logits.shape == (*ids.shape, model.card.choices) and logits.dtype == torch.float32
    assert int(ids.max()) < model.card.choices


def test_an_image_depends_on_its_prompt_and_seed_only(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    together = model.generate(condition, [5, 6, 7, 8])
    for row in range(4):
        assert same(model, model.generate(model.condition([PROMPTS[row]]), [5 + row])[0], together[row])
    order = torch.tensor([2, 0, 3, 1])
    assert same(model, model.generate(condition.rows(order), [5 + int(i) for i in order]), together[order])
    assert not torch.equal(together[1], together[3])  # same prompt, other seed


@by_token
def test_a_picture_continued_from_its_own_prefix_is_the_same(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    ids = model.generate(condition, range(4))
    for length in (0, 1, 5, 6, ids.shape[1]):
        assert torch.equal(model.generate(condition, range(4), prefix=ids[:, :length]), ids)
    other = (ids[:, :5] + 1) % model.card.choices
    continued = model.generate(condition, range(4), prefix=other)
    assert torch.equal(continued[:, :5], other) and not torch.equal(continued[:, 5:], ids[:, 5:])


@by_token
def test_hidden_states_read_what_comes_before_them(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    ids = model.generate(condition, range(4))
    with torch.no_grad():
        states, logits = model.hidden(condition, ids), model.logits(condition, ids)
        for length in (1, 5, 7):
            close(model.hidden(condition, ids[:, :length]), states[:, :length])
        if isinstance(model, LanguageModel):
            close(model.image_logits(states), logits)


def test_a_dropped_caption_changes_its_own_picture_only(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    ids = model.generate(condition, range(4))
    with torch.no_grad():
        mixed = said(model, model.dropped(condition, torch.tensor([True, False, False, True])), ids)
        plain = said(model, condition, ids)
    close(mixed[1:3], plain[1:3])
    assert not torch.allclose(mixed[0], plain[0], atol=1e-2) and not torch.allclose(mixed[3], plain[3], atol=1e-2)


# -- layers that adapters edit ----------------------------------------------------------------------------------------


def test_adapters_reach_scoring_and_sampling_alike_and_all_learn(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    before = model.generate(condition, range(4))
    with borrowed(model.net, ()):
        weights = adapter_weights(inject(model.net, model.editable("all"), Tuning(), seed=0))
        trained = {id(weight) for weight in weights.values()}
        assert {id(p) for p in model.net.parameters() if p.requires_grad} == trained
        objective(model, condition, before).sum().backward()
        firsts = [weight.grad for name, weight in weights.items() if name.endswith("lora_B")]
        assert all(g is not None and bool(torch.isfinite(g).all()) and g.norm() > 0 for g in firsts)
        for name, weight in weights.items():
            torch.nn.init.normal_(weight, std=0.1 if name.endswith("lora_B") else 1.0)
        assert "denoising" in model.provides or greedy_is_argmax(model)
        assert not torch.equal(model.generate(condition, range(4)), before)
    assert torch.equal(model.generate(condition, range(4)), before)


def test_layers_that_are_run_again_give_the_same_gradients_and_keep_less(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    ids = model.generate(condition, range(4))

    def step(recompute: bool) -> tuple[Tensor, list[Tensor], int]:
        kept = dict[int, int]()

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
            return tensor

        held = list[Tensor]()
        with borrowed(model.net, ()):
            weights = adapter_weights(inject(model.net, model.editable("all"), Tuning(), seed=0))
            if recompute:
                run_again(model.passes())
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                loss = objective(model, condition, ids).mean()
            size = sum(kept.values())
            loss.backward()
            found = [weight.grad for weight in weights.values() if weight.grad is not None]
        return loss.detach(), found, size

    (loss, plain, kept), (again, gradients, less) = step(False), step(True)
    assert torch.equal(loss, again) and len(plain) == len(gradients)
    for one, other in zip(plain, gradients, strict=True):
        close(other, one, 1e-6)
    assert less < 0.7 * kept if model.passes() else less == kept


def test_parts_are_linear_layers_and_an_unknown_one_names_them(model: ModelFamily) -> None:
    linear = {name for name, module in model.net.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(model.editable("layers[0:1]")) < set(model.editable("all")) < linear
    for wrong in ("everything", "layers[0:99]", "layers[1:1]", ""):
        with pytest.raises(UsageError, match=r"expected .*all.* or layers\[0:"):
            model.editable(wrong)


# -- images ---------------------------------------------------------------------------------------------------------


def test_pictures_become_tokens_and_tokens_pictures(model: ModelFamily) -> None:
    ids = model.encode(pictures())
    assert ids.shape == (3, *model.token_shape) and len(ids.unique(dim=0)) == 3
    images = model.decode(ids)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(model.decode(ids[1:2])[0], images[1]) and not torch.equal(images[0], images[1])
    with pytest.raises(UsageError, match="resize"):
        model.encode(pictures()[:, :, :8])


def test_training_mode_changes_no_picture(model: ModelFamily) -> None:
    ids = model.encode(pictures())
    images = model.decode(ids)
    with borrowed(model.net, ()):
        model.net.train()
        assert torch.equal(model.encode(pictures()), ids) and torch.equal(model.decode(ids), images)


# -- files ------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(model: ModelFamily, tmp_path: Path) -> None:
    model.export(tmp_path)
    again = load_model(str(tmp_path))
    assert type(again) is type(model) and (again.card.family, again.card.variant) == (model.name, "pico")
    assert {path for path in again.card.files if (tmp_path / path).is_file()} == set(again.card.files)
    assert again.sampling == model.sampling and again.card.tokens == model.card.tokens
    own = model.net.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.net.state_dict().items())
    ids = model.generate(model.condition(PROMPTS), range(4))
    assert torch.equal(again.generate(again.condition(PROMPTS), range(4)), ids)
    assert torch.equal(again.decode(ids), model.decode(ids))
    assert torch.equal(again.encode(pictures()), model.encode(pictures()))
    if "understanding" in model.provides:
        assert again.answer(pictures(), "what?", limit=6) == model.answer(pictures(), "what?", limit=6)
        assert again.describe(pictures(1)) == model.describe(pictures(1))


# -- questions --------------------------------------------------------------------------------------------------------


@that("understanding")
def test_answers_look_at_the_picture_and_are_scored(model: ModelFamily) -> None:
    replies = model.answer(pictures(), "what is it?", limit=6)
    assert replies[1:2] == model.answer(pictures()[1:2], "what is it?", limit=6)
    assert len(model.describe(pictures(1))) == 1
    found = model.answer_logprobs(pictures(), "is it?", ["yes", "n"])
    assert found.shape == (3, 2) and bool((found < 0).all()) and len(found[:, 0].unique()) == 3
    with pytest.raises(UsageError, match="at least one token"):
        model.answer_logprobs(pictures(), "is it?", [])


@_of([name for name, kind in KINDS.items() if "understanding" not in kind.provides])
def test_others_say_that_they_answer_no_questions(model: ModelFamily) -> None:
    asks = (
        lambda: model.answer(pictures(), "what is it?"),
        lambda: model.describe(pictures()),
        lambda: model.answer_logprobs(pictures(), "is it?", ["yes"]),
    )
    for ask in asks:
        with pytest.raises(UsageError, match="one that answers questions about images, got none"):
            ask()


# -- models that denoise -----------------------------------------------------------------------------------------------


@that("denoising")
def test_a_model_that_denoises_has_no_likelihoods_and_says_so(model: ModelFamily) -> None:
    condition = model.condition(PROMPTS)
    latents = model.generate(condition, range(4))
    assert latents.shape == (4, *model.token_shape) and latents.dtype == torch.float32
    for ask in (lambda: model.logits(condition, latents), lambda: model.generate(condition, range(4), prefix=latents)):
        with pytest.raises(UsageError, match="take a next-token or next-scale family"):
            ask()
    with pytest.raises(UsageError, match=r"guidance alone.*temperature 0\.5"):
        model.generate(condition, range(4), Sampling(2.0, temperature=0.5))


@by_token
def test_others_find_no_noise(model: ModelFamily) -> None:
    condition, ids = model.condition(PROMPTS), model.encode(pictures(1))
    with pytest.raises(UsageError, match="one that denoises latents, got none"):
        model.noise_prediction(condition, ids, ids, torch.zeros(1))


# -- the codebook -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_table(model: ModelFamily) -> Iterator[Tensor]:
    yield model.image_table().detach().clone()
    model.set_image_table(None)


@that("codebook")
def test_a_replaced_table_is_read_everywhere_and_taken_back_exactly(model: ModelFamily, own_table: Tensor) -> None:
    condition = model.condition(PROMPTS)
    ids, seen = model.generate(condition, range(4), GREEDY), model.encode(pictures())
    images, state = model.decode(ids), {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    with torch.no_grad():
        before = model.logits(condition, ids)
        model.set_image_table(own_table)
        close(model.logits(condition, ids), before)
        changed = own_table.clone()
        changed[ids[0, 3]] += 3
        model.set_image_table(changed)
        assert torch.equal(model.image_table(), changed)
        after = model.logits(condition, ids)
        first = int((ids[0] == ids[0, 3]).nonzero()[0])
        close(after[0, : first + 1], before[0, : first + 1])
        assert (after[0, first + 1] - before[0, first + 1]).abs().max() > 1e-2
        assert greedy_is_argmax(model)
        assert torch.equal(model.encode(pictures()), seen) and torch.equal(model.decode(ids), images)
        model.set_image_table(None)
        assert torch.equal(model.logits(condition, ids), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.net.state_dict().items())
    with pytest.raises(UsageError, match=rf"\({own_table.shape[0]}, {own_table.shape[1]}\)"):
        model.set_image_table(own_table[:5])


@that("codebook")
def test_a_table_can_be_trained_and_travels_with_the_model(
    model: ModelFamily, own_table: Tensor, tmp_path: Path
) -> None:
    condition = model.condition(PROMPTS[:1])
    ids = model.generate(condition, [0])
    trained = torch.nn.Parameter(own_table + 0.5)
    with borrowed(model.net, ()):
        model.set_image_table(trained)
        assert not any(p is trained for p in model.net.parameters())
        token_logprobs(model.logits(condition, ids), ids).sum().backward()
        assert trained.grad is not None and trained.grad[ids[0, 0]].norm() > 0
        model.export(tmp_path)
        scored = model.logits(condition, ids).detach()
    again = load_model(str(tmp_path))
    assert torch.equal(again.image_table(), trained) and torch.equal(again.decode(ids), model.decode(ids))
    assert torch.equal(model.image_table(), own_table)
    with torch.no_grad():
        close(again.logits(again.condition(PROMPTS[:1]), ids), scored)


@that("codebook")
def test_an_edit_of_the_table_is_an_edit_of_its_tensor(model: ModelFamily, own_table: Tensor, tmp_path: Path) -> None:
    ids = model.encode(pictures())
    with table_edit(model, torch.ones_like(own_table)).apply(model.net):
        close(model.image_table(), own_table + 1, 1e-6)
        assert torch.equal(model.encode(pictures()), ids)
        model.export(tmp_path)
    assert torch.equal(model.image_table(), own_table)
    close(load_model(str(tmp_path)).image_table(), own_table + 1, 1e-6)


def table_edit(model: ModelFamily, change: Tensor) -> Edit:
    info = EditInfo(method="safe_cb", params={}, concept="x", base_digest="", rank=None, alpha=None, seed=0, steps=1,
                    losses=(), minutes=0.0)  # fmt: skip
    return Edit("delta", {model.table_name: change}, info)


def test_nothing_is_drawn_from_what_is_no_number(model: ModelFamily) -> None:
    """Some token comes out of NaN as well, and such images would count as ones without the concept."""
    weight = model.net.get_submodule(model.editable("layers[0:1]")[0]).get_parameter("weight")
    kept, condition = weight.detach().clone(), model.condition(PROMPTS[:2])
    weight.data.fill_(float("nan"))
    try:
        greedy = [] if "denoising" in model.provides else [Sampling(2.0, top_k=1), Sampling(1.0, top_p=0.9)]
        for sampling in (None, *greedy):
            with pytest.raises(UsageError, match="drawing: expected a network that gives numbers, got NaN"):
                model.generate(condition, [1, 2], sampling)
    finally:
        weight.data.copy_(kept)


def test_every_image_has_a_seed(model: ModelFamily) -> None:
    with pytest.raises(UsageError, match="a seed for each of 2 images, got 1"):
        model.generate(model.condition(PROMPTS[:2]), [1])
