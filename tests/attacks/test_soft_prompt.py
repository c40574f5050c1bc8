"""Vectors inside the caption: where each family reads text, and what learning them does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safear_edit.attacks.base import Drawer, Target
from safear_edit.attacks.relearn import Relearning, Way, tuned
from safear_edit.attacks.soft_prompt import TEACHING, Learning, SoftPrompt, learning
from safear_edit.attacks.suffix import gradient, likelihood, typable
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.language import LanguageModel
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.tokens import token_logprobs
from safear_edit.judges.base import Judgement
from safear_edit.registry import families
from tests.attacks.test_contract import SMALL, Bright, concept, picasso, pico, some_edit, without_seconds
from tests.evaluate.test_likelihood import SUBJECTS


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico()


@pytest.mark.parametrize("family", [n for n, e in families().items() if "denoising" not in e.load().provides])
def test_an_image_is_drawn_after_vectors_in_its_caption(family: str) -> None:
    """Drawing and scoring read them alike, and an unguided image depends on them."""
    model = pico(family)
    plain = model.condition(["a dog", "a painting of two cats"])
    vectors = 3 * torch.randn(2, plain.features.shape[2], generator=torch.Generator().manual_seed(0))
    condition = model.with_vectors(plain, vectors)
    greedy = type(model.sampling)(1.0, top_k=1)
    ids = model.generate(condition, range(2), greedy)
    with torch.no_grad():
        assert torch.equal(model.logits(condition, ids).argmax(-1), ids)
        assert not torch.equal(model.logits(condition, ids), model.logits(plain, ids))
    assert model.generate(condition, range(2)).shape == ids.shape  # guided, too


@pytest.mark.parametrize("family", ["llamagen", "infinity"])
def test_a_caption_that_fills_its_window_makes_room(family: str) -> None:
    model = pico(family)
    plain = model.condition(["cat " * 60, "a dog"])
    vectors = 3 * torch.randn(4, plain.features.shape[2], generator=torch.Generator().manual_seed(0))
    condition = model.with_vectors(plain, vectors)
    assert condition.mask.shape == plain.mask.shape and condition.mask[0].all()
    assert torch.equal(condition.features[:, -4:], vectors.expand(2, -1, -1))
    assert torch.equal(condition.features[:, :-4], plain.features[:, 4:])
    assert len(model.generate(condition, range(2))) == 2


@pytest.mark.parametrize("family", [n for n, e in families().items() if issubclass(e.load(), LanguageModel)])
def test_vectors_of_a_word_stand_where_the_word_would(family: str) -> None:
    """The embedding of a caption's last letter, given as a vector to the caption without it, gives the same logits."""
    model = pico(family)
    whole, cut = model.condition(["a dogs"]), model.condition(["a dog"])
    tail = model._after_text()
    assert tail >= 1
    letter = whole.features[0, -tail - 1 : whole.features.shape[1] - tail]
    if whole.features.shape == cut.features.shape:  # a window of fixed length
        added = model.with_vectors(cut, letter)
        assert torch.allclose(added.features[:, 2:], whole.features[:, 2:], atol=1e-5)
        return
    assert torch.equal(model.with_vectors(cut, letter).features, whole.features)


def test_vectors_follow_the_captions(model: LlamaGen) -> None:
    """Captions stay right-aligned, and a vector that is a caption's own last state makes that caption longer by it."""
    condition = model.condition(["a cat", "a photo of two fish at sea"])
    added = model.with_vectors(condition, torch.ones(3, condition.features.shape[2]))
    assert added.mask.sum(1).tolist() == [n + 3 for n in condition.mask.sum(1).tolist()]
    assert bool(added.mask[:, -3:].all()) and torch.equal(added.features[:, :-3], condition.features)
    short = model.condition(["a cat"])
    cut = model.with_vectors(type(short).of(short.features[:, :-1], short.mask[:, :-1]), short.features[0, -1:])
    ids = torch.arange(16)[None]
    assert torch.allclose(model.logits(cut, ids), model.logits(short, ids), atol=1e-5)


def test_the_attack_makes_its_pictures_likelier_and_leaves_the_model(model: LlamaGen) -> None:
    captions = tuple(f"a photo of {s}" for s in SUBJECTS[4:])
    ids = model.generate(model.condition([f"{s} by Picasso" for s in SUBJECTS[4:]]), range(len(captions)))
    aim = Target(captions, ids, Bright())
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    settings = Learning(vectors=2, batch=4)
    learnt, again = (list(learning(model, aim, settings, 40, 0)) for _ in range(2))
    vectors, losses = learnt[-1].vectors, [one.loss for one in learnt[1:]]
    assert vectors.shape == (2, 384) and torch.equal(vectors, again[-1].vectors) and len(losses) == 40
    with torch.no_grad():
        plain = model.condition(aim.captions)
        scores = [
            float(token_logprobs(model.logits(c, aim.ids), aim.ids).mean())
            for c in (plain, model.with_vectors(plain, vectors))
        ]
    assert scores[1] > scores[0] + 0.1 and losses[-1] < losses[0] - 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.net.state_dict().items())
    assert all(parameter.grad is None for parameter in model.net.parameters())


def test_images_learnt_from_in_parts_teach_what_they_teach_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """So `attack --memory` changes how much is held, and the order of a sum."""
    model = pico("llamagen")
    aim, typed = concept(model).known, typable(model, picasso())
    assert aim is not None
    few = replace(aim, captions=aim.captions[:5], ids=aim.ids[:5], asked=aim.asked[:5])
    way, held = Way("lora", 5), list[int]()

    def learnt() -> list[torch.Tensor]:
        *_, last = learning(model, few, Learning(vectors=2, batch=5), 2, 0)
        for _ in tuned(model, way, few, Relearning(batch=5), 2, 0):
            held.append(1)
            state = [t.detach().clone() for name, t in sorted(model.net.named_parameters()) if "lora_" in name]
        words = gradient(model, typed, [1, 4], few.captions, likelihood(model, few), torch.arange(5))
        return [last.vectors, words, *state]

    whole = learnt()
    together = model.logits
    monkeypatch.setattr(model, "learnt_together", 2)
    monkeypatch.setattr(model, "logits", lambda c, ids: held.append(len(ids)) or together(c, ids))
    parts = learnt()
    assert max(held) == 2 and len(parts) == len(whole) > 4
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


class Blind(Bright):
    def look(self, images: torch.Tensor) -> list[Judgement]:
        return [Judgement(None, 0.0, "") for _ in images]


def test_a_control_that_nobody_can_read_gives_way_to_random_vectors(model: LlamaGen) -> None:
    aim, pair = concept(model), Pair.of_edit(model, some_edit(model))
    assert aim.novel is not None
    plain = SoftPrompt(Learning(curves=()))
    taught = plain.run(pair, aim, SMALL, 0)
    assert taught.control_is == TEACHING and taught.cost.steps == 3 * SMALL.steps and taught.cost.images == 9
    blind = replace(aim, novel=replace(aim.novel, judge=Blind()))
    random = plain.run(pair, blind, SMALL, 0)
    assert "can't read 3 of 3" in random.control_is and random.control is not None and random.cost.images == 12
    assert random.edited == taught.edited and random.control.unreadable == 0
    none = plain.run(pair, replace(aim, novel=None), SMALL, 0)
    assert none.control == random.control and "there is none here" in none.control_is


def test_success_is_followed_step_by_step(model: LlamaGen) -> None:
    aim, pair = concept(model), Pair.of_edit(model, some_edit(model))
    found = SoftPrompt(Learning(curves=(2,))).run(pair, aim, SMALL, 0)
    (followed,) = found.curves
    assert followed.name == "2 images" and [mark.steps for mark in followed.marks] == [0, 2]
    assert all(mark.edited.n == 3 and mark.control is not None for mark in followed.marks)
    assert found.cost.steps == 5 * SMALL.steps
    steps = list(learning(model, aim.known, Learning(batch=2), 3, 0))  # type: ignore[arg-type]
    assert [one.step for one in steps] == [0, 1, 2, 3] and len({tuple(one.vectors[0].tolist()) for one in steps}) == 4


def test_a_killed_attack_goes_on_after_its_last_look(
    model: LlamaGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the curve's third look: what was finished before isn't learnt again, nor the steps before its second.

    Finished are the attack and its control; the images that they drew are counted as if they were drawn now."""
    aim, pair = concept(model), Pair.of_edit(model, some_edit(model))
    soft, budget = SoftPrompt(Learning(vectors=2, batch=2, curves=(2,))), replace(SMALL, steps=6)
    whole = soft.run(pair, aim, budget, 0)
    look, step, steps = Drawer.look, torch.optim.Adam.step, list[int]()

    def killed(self: Drawer, model: object, prompts: object, purpose: str, **more: object) -> object:
        if purpose == "attack, 2 images, 6 steps":
            raise KeyboardInterrupt
        return look(self, model, prompts, purpose, **more)  # type: ignore[arg-type]

    def counted(self: torch.optim.Adam, *given: object) -> object:
        steps.append(1)
        return step(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Drawer, "look", killed)
        with pytest.raises(KeyboardInterrupt):
            soft.run(pair, aim, budget, 0, store=tmp_path)
    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    again = soft.run(pair, aim, budget, 0, store=tmp_path)
    assert without_seconds(again) == without_seconds(whole)
    assert len(steps) == (6 - 5) + 6 + 6, "from the look at 5 on, the curve's control, and the base model's"
