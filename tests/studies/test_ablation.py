"""The ablation looks in batches, judges each label once per batch, and compares what it saw."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safear_edit.errors import UsageError
from safear_edit.evaluate.understanding import Exam, Item, answers
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.judges.base import Judge, Judgement
from safear_edit.judges.draw import BATCH
from safear_edit.spec.spec import CONCEPT
from safear_edit.studies.ablation import ERASED, _known, changed, compared, draw, table, variant


class Yes(Judge):
    """Always answers alike; counts the images of each call."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer
        self.calls: list[int] = []

    def look(self, images: torch.Tensor) -> list[Judgement]:
        self.calls.append(len(images))
        return [Judgement(self.answer, 1.0, "") for _ in images]


def recipe(count: int) -> Any:
    """`count` prompts in the slice "objects", every third with another label."""
    labels = ["a" if i % 3 else "b" for i in range(count)]
    prompts = [SimpleNamespace(prompt="a house", seed=i, judge_label=label) for i, label in enumerate(labels)]
    evaluate = SimpleNamespace(sampling=None)
    return SimpleNamespace(slice=lambda name: prompts if name == "objects" else [], evaluate=evaluate)


def test_pictures_are_judged_together_and_each_for_its_label() -> None:
    judges = {"a": Yes(True), "b": Yes(False)}
    found = draw(LlamaGen.pico(), judges, recipe(BATCH + 9), "objects", BATCH + 6)
    assert found == tuple(bool(i % 3) for i in range(BATCH + 6))
    assert [len(judge.calls) for judge in judges.values()] == [2, 2], "one call per label and batch"
    assert sum(judges["a"].calls) + sum(judges["b"].calls) == BATCH + 6


def test_a_slice_that_the_recipe_lacks_is_one_line() -> None:
    with pytest.raises(UsageError, match="slice other-styles: expected prompts in the recipe"):
        draw(LlamaGen.pico(), {}, recipe(3), "other-styles", 3)


def test_compared() -> None:
    before, after = ((True, True, False, None)), ((False, True, True, None))
    assert compared(before, after, "erased") == 0.5
    assert compared(before, after, "kept") == 0


def test_a_method_may_come_with_numbers_of_its_own() -> None:
    assert variant("svare") == ("svare", {})
    wanted = {"erase_scales": [0, 1], "keep_weight": 4.0, "mode": "released"}
    assert variant("sace:erase_scales=[0,1],keep_weight=4.0,mode=released") == ("sace", wanted)


def test_the_table_has_the_concepts_own_groups() -> None:
    rows = [{"variant": "sace", "seed": seed, "minutes": 1.0, "pairs": 9, "direct": 1.0, "styles": -0.01 * seed}
            for seed in (1, 3)]  # fmt: skip
    head, _, line = table(rows, ["sace"]).splitlines()
    assert head == "| variant | seeds | direct | styles | minutes |"
    assert line == "| sace | 2 | 100.0 (100.0 to 100.0) | -2.0 (-3.0 to -1.0) | 1.0 |"


def test_likelihoods_are_shown_as_they_are_and_what_a_row_lacks_is_left_empty() -> None:
    rows = [
        {"variant": "vce", "seed": 0, "minutes": 1.0, "pairs": 9, "direct": 0.5, "unreadable": 0.25, "CIR, most": 0.07},
        {"variant": "ear", "seed": 0, "minutes": 2.0, "pairs": 9, "direct": 1.0},
    ]
    head, _, first, second = table(rows, ["vce", "ear"]).splitlines()
    assert head == "| variant | seeds | direct | unreadable | CIR, most | minutes |"
    assert first == "| vce | 1 | 50.0 | 25.0 | 0.07 | 1.0 |"
    assert second == "| ear | 1 | 100.0 |  |  | 2.0 |"


def test_unreadable_counts_only_what_the_base_drew() -> None:
    base = {name: ((True, True, True, False)) for name in ERASED}
    edited = {name: ((None, False, None, None)) for name in ERASED}
    assert changed(base, edited) == {"direct": 1.0, "paraphrase": 1.0, "unreadable": 2 / 3}


def test_a_model_that_answers_is_asked_about_the_concept_and_about_the_rest() -> None:
    model = Janus.pico()
    side = model.card.image_size
    images = torch.randint(256, (3, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    slices = (CONCEPT, "objects", "objects")
    items = tuple(Item(str(i), where, str(i), f"is this {i}?", i != 1, i) for i, where in enumerate(slices))
    asked = Exam(items, images, 0, "pack")
    concept, first, second = (answer.right for answer in answers(model, "edited", asked))
    assert first != second, "one of them is to be right, whatever a random model says"
    assert _known(model, asked) == {"concept known": concept, "others known": 0.5}
    assert _known(model, None) == {}
