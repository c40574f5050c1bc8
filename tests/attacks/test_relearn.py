"""Relearning: what changes, for how long, and what the durability curve says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from safear_edit.attacks.base import Drawer
from safear_edit.attacks.benign import Harmless
from safear_edit.attacks.checkpoint import Checkpoint
from safear_edit.attacks.counts import Count
from safear_edit.attacks.curve import Curve, Mark, marks_within
from safear_edit.attacks.relearn import BENIGN, TEACHING, Relearn, Relearning, Way, tuned
from safear_edit.attacks.soft_prompt import Learning, learning
from safear_edit.editor.edit import Edit
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.tokens import token_logprobs
from safear_edit.report.charts import durability_image
from tests.attacks.test_contract import SMALL, concept, pico, some_edit, without_seconds


def curve(own: list[int], taught: list[int] | None) -> Curve:
    steps = (0, 5, 10, 20)
    marks = [
        Mark(
            steps=at,
            edited=Count(n=10, found=own[i], unreadable=0),
            control=Count(n=10, found=taught[i], unreadable=0) if taught else None,
        )
        for i, at in enumerate(steps)
    ]
    return Curve(name="LoRA, 8 images", marks=tuple(marks))


@pytest.mark.parametrize(
    ("own", "taught", "cost", "teaching", "says"),
    [
        ([0, 1, 5, 9], [0, 0, 1, 5], 7.5, 15.0, "0.50 times its cost"),
        ([0, 0, 0, 2], [0, 0, 0, 8], None, 13.75, "not 30% of images within 20 steps; a new style after 14"),
        ([4, 9, 9, 9], [0, 0, 0, 0], 0.0, None, "after 0 steps; a new style not within 20"),
        ([0, 0, 0, 0], [0, 0, 0, 0], None, None, "nor a new style"),
        ([0, 0, 3, 3], None, 10.0, None, "30% of images after 10 steps"),
    ],
)
def test_the_cost_of_coming_back(
    own: list[int], taught: list[int] | None, cost: float | None, teaching: float | None, says: str
) -> None:
    found = curve(own, taught)
    assert (found.cost(), found.teaching()) == (pytest.approx(cost), pytest.approx(teaching))
    assert says in found.sentence()


def test_the_curve_is_drawn() -> None:
    assert durability_image([curve([0, 1, 5, 9], [0, 0, 1, 5]), curve([0, 0, 3, 3], None)]).startswith(b"\x89PNG")


def test_marks_end_with_the_budget() -> None:
    assert marks_within(60) == (0, 5, 10, 20, 50, 60) and marks_within(2) == (0, 2)


@pytest.mark.parametrize("way", [*Relearning().ways[1:], Harmless().ways[0]], ids=lambda way: way.name)
def test_learning_makes_the_images_likelier_and_gives_the_model_back(way: Way) -> None:
    model = pico("llamagen")
    known = concept(model).known
    assert known is not None
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    asked, scores = model.condition(known.asked), []
    with torch.no_grad():
        scores.append(float(token_logprobs(model.logits(asked, known.ids), known.ids).mean()))
    for step in tuned(model, way, known, Relearning(), 8, 0):
        if step == 8:
            with torch.no_grad():
                scores.append(float(token_logprobs(model.logits(asked, known.ids), known.ids).mean()))
    assert scores[1] > scores[0] + 1e-4
    state = model.net.state_dict()
    assert state.keys() == before.keys() and all(torch.equal(before[name], state[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.net.parameters())


def test_a_table_that_was_edited_is_learnt_anew_with_all_weights() -> None:
    """Safe-CB changes nothing else; an attacker who has the weights would not leave just that as it is."""
    model = pico("llamagen")
    known, info = concept(model).known, some_edit(model).info.model_copy(update={"rank": None, "alpha": None})
    assert known is not None
    before = model.image_table().clone()
    with Edit("delta", {model.table_name: torch.ones_like(before)}, info).apply(model.net):
        merged = model.image_table().clone()
        for step in tuned(model, Way("full", 8), known, Relearning(), 2, 0):
            assert not torch.equal(model.image_table(), merged), step
        for _ in tuned(model, Way("lora", 8), known, Relearning(), 1, 0):
            assert torch.equal(model.image_table(), merged)
        assert torch.equal(model.image_table(), merged)
    for _ in tuned(model, Way("full", 8), known, Relearning(), 1, 0):
        assert torch.equal(model.image_table(), before), "no edit changed it"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_as_well(dtype: torch.dtype) -> None:
    """In float16 Adam's moments were 0 and what was learnt no number; in bfloat16 most of each step was lost."""

    def learnt(kind: torch.dtype) -> tuple[float, float]:
        model = LlamaGen.pico()  # one of its own: it is rounded
        known = concept(model).known
        assert known is not None
        model.net.to(kind)
        *_, vectors = learning(model, known, Learning(vectors=2, batch=4), 10, 0)
        for step in tuned(model, Way("full", 8), known, Relearning(), 20, 0):
            if step == 20:
                with torch.no_grad():
                    logits = model.logits(model.condition(known.asked[:8]), known.ids[:8])
        return vectors.loss, float(-token_logprobs(logits, known.ids[:8]).mean())

    for half, whole in zip(learnt(dtype), learnt(torch.float32), strict=True):
        assert half == pytest.approx(whole, rel=0.1)


def test_the_control_without_a_style_that_no_model_knows() -> None:
    model = pico("llamagen")
    aim, pair = concept(model), Pair.of_edit(model, some_edit(model))
    few = Relearn(Relearning(ways=(Way("lora", 8),)))
    taught = few.run(pair, aim, SMALL, 0)
    assert taught.control_is == TEACHING and taught.cost.steps == 3 * SMALL.steps
    assert [mark.steps for mark in taught.curves[0].marks] == [0, 2] and taught.curves[0].marks[0].control is not None
    other = few.run(pair, replace(aim, novel=None), SMALL, 0)
    assert other.control_is == BENIGN and other.edited == taught.edited and other.control is not None
    none = few.run(pair, replace(aim, novel=None, plain=None), SMALL, 0)
    assert none.control is None and "no control" in none.why and none.curves[0].marks[1].control is None


@pytest.mark.parametrize(
    ("lora", "full", "figure"),
    [((1, 3), (0, 2), 3), ((1, 1), (2, 2), 2), ((0, 3), (0, 1), 1)],
    ids=["its own", "the same", "nothing tells them apart"],
)
def test_the_control_chooses_its_way_as_the_attack_does(
    lora: tuple[int, int], full: tuple[int, int], figure: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By finds before the last look (here the first number of two): the attack's best way is all weights."""
    model, ways = pico("llamagen"), (Way("lora", 8), Way("full", 8))
    aim, pair = concept(model), Pair.of_edit(model, some_edit(model))

    def curves(self: Relearn, drawer: object, model: object, shown: object, *more: object) -> dict[Way, object]:
        found = (lora, full) if shown is aim.novel else ((0, 3), (1, 2))
        looks = [[[True] * count + [False] * (3 - count) for count in counts] for counts in found]
        return {way: {0: early, 2: last} for way, (early, last) in zip(ways, looks, strict=True)}

    monkeypatch.setattr(Relearn, "_curves", curves)
    found = Relearn(Relearning(ways=ways)).run(pair, aim, SMALL, 0)
    assert found.edited.found == 2 and found.best[0].endswith("[all weights, 8 images]")
    assert found.control is not None and found.control.found == figure


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_killed_run_goes_on_after_its_last_mark(
    weights: Literal["lora", "full"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the second mark of the first way: the steps before the first mark aren't taken again."""
    model = pico("llamagen")
    aim, pair = replace(concept(model), novel=None, plain=None), Pair.of_edit(model, some_edit(model))
    few, budget = Relearn(Relearning(ways=(Way(weights, 8),))), replace(SMALL, steps=8)
    whole = few.run(pair, aim, budget, 0)
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    look, step, steps = Drawer.look, torch.optim.AdamW.step, list[int]()

    def killed(self: Drawer, model: object, prompts: object, purpose: str, **more: object) -> object:
        if "8 steps" in purpose:
            raise KeyboardInterrupt
        return look(self, model, prompts, purpose, **more)  # type: ignore[arg-type]

    def counted(self: torch.optim.AdamW, *given: object) -> object:
        steps.append(1)
        return step(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Drawer, "look", killed)
        with pytest.raises(KeyboardInterrupt):
            few.run(pair, aim, budget, 0, store=tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.net.state_dict().items())
    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    again = few.run(pair, aim, budget, 0, store=tmp_path)
    assert without_seconds(again) == without_seconds(whole)
    assert len(steps) == (8 - 5) + 8, "from the mark at 5 on, and the base model's"
    steps.clear()
    assert without_seconds(few.run(pair, aim, budget, 0, store=tmp_path)) == without_seconds(whole) and not steps


def test_a_damaged_file_of_looks_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"no weights")
    assert Checkpoint.at(path, {5}).seen == {} and not Checkpoint.at(path, {5}).finished
