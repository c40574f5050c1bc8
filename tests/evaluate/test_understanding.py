"""Questions about images: right answers are right, nothing is asked twice or by training, and models are compared."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from safear_edit.compiler.questions import refuse_training_questions, topics, training_questions
from safear_edit.errors import SpecError, UsageError
from safear_edit.evaluate.before_after import Pair
from safear_edit.evaluate.mini_world import drawn_source, picture_of
from safear_edit.evaluate.outcomes import WITHHELD
from safear_edit.evaluate.reference_images import Kept, Reference, Source, Wanted
from safear_edit.evaluate.understanding import ABOUT, ROWS, Answer, Exam, answers, ask, exam, paired
from safear_edit.families.base import ModelFamily
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.files import rundir
from safear_edit.gallery import questions
from safear_edit.pipeline import steps
from safear_edit.pipeline.eval import ModelPair, compare_understanding
from safear_edit.progress import silent
from safear_edit.spec.prompts import normalise
from safear_edit.spec.spec import Spec, Understanding
from tests.evaluate.test_likelihood import made_edit, spec


@pytest.fixture(scope="module")
def model() -> Janus:
    return Janus.pico()


def noise(made: Spec, side: int, kept: int) -> Source:
    """Images that show nothing, as if they showed the concept (8) and members of each group (`kept`)."""
    texts = [Kept(group.name, name) for group in made.preserve for name in list(group.members)[:kept]]
    images = torch.randint(0, 256, (8 + len(texts), 3, side, side), generator=torch.Generator().manual_seed(3))
    parts = images.to(torch.uint8).split((8, len(texts)))
    return Source((Reference({"direct": "by Picasso"}, "a photo"),) * 8, parts[0], tuple(texts), parts[1])


@pytest.fixture(scope="module")
def asked(model: Janus) -> Exam:
    return exam(spec(), noise(spec(), model.card.image_size, 10))


# -- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["picasso", "dog", "hazard", "van_gogh"])
def test_evaluation_and_training_ask_in_other_words(name: str) -> None:
    made = spec(name)
    refuse_training_questions(made, name)
    trained = training_questions(made)
    seen = {normalise(text) for text in (*trained.concept, *trained.others)}
    for topic in topics(made):
        every = {normalise(topic.question(number)) for number in range(len(topic.wordings) * len(topic.names))}
        assert len(every) == len(topic.wordings) * len(topic.names) and not every & seen
    assert trained.concept and trained.others and not trained.erase


def test_a_question_that_training_asks_is_refused() -> None:
    mine = Understanding(questions=("Is this in the style of {name}",))
    with pytest.raises(SpecError, match="training never asks"):
        refuse_training_questions(spec().model_copy(update={"understanding": mine}), "spec")


def test_a_spec_may_bring_its_own_questions_and_words() -> None:
    made = spec()
    judge = made.judge.model_copy(update={"use": "clip", "label": "a painting by Picasso | a photograph"})
    group = made.preserve[0].model_copy(update={"questions": ("hand of {name}?",), "members": {"Monet": "x | y"}})
    terms = Understanding(concept="erase", questions=("might {name} have made it?",))
    changed = {"judge": judge, "preserve": (group,), "understanding": terms}
    concept, monet = topics(made.model_copy(update=changed))
    assert concept.names == made.erase.aliases and concept.question(1) == "might Pablo Picasso have made it?"
    assert (monet.names, monet.question(7)) == (("Monet",), "hand of Monet?")
    assert "is this in the style of Monet?" in monet.training()
    assert training_questions(made.model_copy(update=changed)).erase


# -- about which images ---------------------------------------------------------------------------------------------


ASKED_ABOUT = {
    wording.format(name=name): (kind, value)
    for kind in questions.KINDS
    for value in questions.values(kind)
    for name in questions.names(kind, value)
    for wording in questions.YES_NO[kind].held_out
}


@pytest.mark.parametrize("name", ["dog", "hazard"])
def test_what_counts_as_right_is_what_was_drawn(name: str) -> None:
    """The renderer's own description of every image, against the truth of the question."""
    made = spec(name)
    source = drawn_source(made, Wanted(8, 10 * len(made.preserve), 0))
    found = exam(made, source)
    aspect, _, value = made.judge.label.partition("=")
    shown = [replace(picture_of(r.prompts["direct"]), **_value(aspect, value)) for r in source.references]
    shown += [picture_of(kept.prompt) for kept in source.kept]
    for item in found.items:
        kind, wanted = ASKED_ABOUT[item.question]
        assert (questions.value_of(shown[item.row], kind) == wanted) == item.truth, item
    sizes = Counter((item.slice, item.truth) for item in found.items)
    slices = {key for key, _ in sizes}
    assert slices == {"concept", *(group.name for group in made.preserve)}
    assert all(sizes[key, True] == sizes[key, False] >= 4 for key in slices) and not found.unasked
    assert len({item.id for item in found.items}) == len(found.items), "an image is asked once per slice"
    concept = [item for item in found.items if item.slice == "concept"]
    assert all((item.row < len(source.references)) == item.truth for item in concept)
    assert exam(made, source).digest == found.digest


def _value(aspect: str, value: str) -> dict[str, Any]:
    return {"hazard": True} if aspect == "hazard" else {aspect: value}


def test_equal_pictures_and_unknown_ones() -> None:
    made = spec()
    picture = torch.arange(3 * 4 * 4, dtype=torch.uint8).view(1, 3, 4, 4)
    others = torch.cat([picture + i for i in (1, 1, 2, 3, 4)])
    words = ("a house by Monet", "Monet", "a cat in the style of Hokusai", "somebody else", "Leonardo da Vinci: a cat")
    kept = tuple(Kept("other-styles", text) for text in words)
    source = Source((Reference({"direct": "x"}, "y"),) * 2, torch.cat([picture, picture]), kept, others)
    found = exam(made, source)
    assert found.unasked == 1, "nothing is known about the image by somebody else"
    rows = [(item.slice, item.row, item.truth) for item in found.items]
    assert [row[0] for row in rows] == ["concept", "concept", "other-styles", "other-styles"]
    assert rows[0] == ("concept", 0, True) and not rows[1][2]
    assert rows[2:] == [("other-styles", 2, True), ("other-styles", 4, False)], "of equal images the first, no third"


# -- asking -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_both_models_answer_and_the_base_stays(model: Janus, asked: Exam) -> None:
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    edit = made_edit(model, 0.5)
    found = paired(ask(Pair.of_edit(model, edit), asked), "rows")
    assert sum(map(len, found.values())) == len(asked.items)
    for which, lend in (("base", nullcontext), ("edited", partial(edit.apply, model.net))):
        with lend():
            for item in asked.items[:: len(asked.items) // 5]:
                picture = asked.images[item.row][None]
                yes, no = model.answer_logprobs(picture, item.question, ["yes", "no"])[0].double()
                (answer,) = (pair[which == "edited"] for pair in found[item.slice] if pair[0].id == item.id)
                assert answer.yes == pytest.approx(float(yes.exp() / (yes.exp() + no.exp())), abs=1e-4)
                assert answer.truth == ("yes" if item.truth else "no") and answer.question == item.question
    changed = [base.yes != edited.yes for pairs in found.values() for base, edited in pairs]
    assert any(changed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())


def test_an_untouched_model_changes_no_answer(model: Janus, asked: Exam) -> None:
    found = paired(ask(Pair.of_models(model, model), asked), "rows")
    assert all(base.yes == edited.yes for pairs in found.values() for base, edited in pairs)


def test_a_network_that_gives_no_numbers_answers_nothing(asked: Exam) -> None:
    broken = Janus.pico()
    for parameter in broken.net.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(UsageError, match="understanding: expected a network that gives numbers"):
        answers(broken, "edited", asked)


def row(key: str = "a", which: str = "base", **more: Any) -> Answer:
    common = {"slice": "concept", "image": "0", "question": "is it?", "truth": "yes", "yes": 0.9}
    return Answer.model_validate({"id": key, "model": which, **common, **more})


def test_a_row_of_an_older_release_is_read() -> None:
    older = {key: value for key, value in row().model_dump().items() if key != "image"} | {"picture": "0"}
    assert Answer.model_validate(older) == row()


def test_a_tie_is_a_no() -> None:
    assert row(yes=0.5).said == "no" and not row(yes=0.5).right and row(yes=0.500001).right
    assert row(yes=0.2, truth="no").right


@pytest.mark.parametrize(
    "second",
    [
        [],
        [row(which="edited", question="was it?")],
        [row(which="edited", truth="no")],
        [row(which="edited"), row("b", "edited")],
        [row(which="edited"), row(which="edited", yes=0.1)],
    ],
)
def test_rows_that_are_not_of_the_same_questions_are_refused(second: list[Answer]) -> None:
    assert paired([row(), row(which="edited", yes=0.1)], "rows")["concept"][0][1].yes == 0.1
    with pytest.raises(SpecError, match="rows"):
        paired([row(), *second], "rows")


# -- the step ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder of reference images."""
    root, made = tmp_path_factory.mktemp("references"), spec()
    source = noise(made, 40, 4)
    lines = [{"prompts": dict(r.prompts), "neutral": r.neutral} for r in source.references]
    lines += [{"prompt": kept.prompt, "group": kept.group} for kept in source.kept]
    for i, image in enumerate(torch.cat([source.reference_images, source.kept_images])):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / f"{i}.png")
        lines[i]["file"] = f"{i}.png"
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def planned(references: Path | None, concept: str = "keep") -> Any:
    made = spec()
    evaluate = made.evaluate.model_copy(update={"references": str(references) if references else None})
    terms = Understanding.model_validate({"concept": concept})
    made = made.model_copy(update={"evaluate": evaluate, "understanding": terms})
    return SimpleNamespace(spec=made, digest="5" * 64, evaluate=SimpleNamespace(prompts=()))


def test_the_step_asks_once_and_again_for_another_edit(model: Janus, folder: Path, tmp_path: Path) -> None:
    recipe, calls = planned(folder), list[str]()
    with rundir.opened(tmp_path / "out") as run:
        note = partial(_note, calls)
        for strength, more in ((0.1, True), (0.1, False), (0.2, True)):
            calls.clear()
            assert steps.understanding(run, recipe, model, made_edit(model, strength), note) == ""
            assert bool(calls) == more
        assert run.files("understanding") == (ABOUT, ROWS)
        rows = [Answer.model_validate_json(line) for line in (run / ROWS).read_text().splitlines()]
        assert set(paired(rows, "")) == {"concept", *(group.name for group in recipe.spec.preserve)}
        about = json.loads((run / ABOUT).read_text())
        assert (about["skipped"], about["base_digest"], about["unasked"]) == ("", model.card.digest, 0)


def _note(calls: list[str], stage: str, done: int, total: int, info: str = "") -> None:
    calls.append(stage)


def test_a_model_without_pictures_or_without_answers_says_why(model: Janus, tmp_path: Path) -> None:
    cases: list[tuple[ModelFamily, str, str, bool | None]] = [
        (model, "keep", "none of the embedded minis", True),
        (LlamaGen.pico(), "keep", "", None),
        (LlamaGen.pico(), "erase", "answers no questions", False),
    ]
    for number, (family, concept, says, applies) in enumerate(cases):
        recipe: Any = planned(None, concept)
        with rundir.opened(tmp_path / str(number)) as run:
            why = steps.understanding(run, recipe, family, made_edit(family), silent)
            assert re.search(says, why) and bool(why) == (applies is not None)
            assert ("understanding" in steps.measuring(recipe, family)) == (applies is not None)
            assert (run / ABOUT).exists() == (applies is not None)
            if applies is not None:
                about = json.loads((run / ABOUT).read_text())
                assert about["applies"] is applies and about["skipped"] == why and not (run / ROWS).read_text()


def test_two_models_are_compared_without_a_run(model: Janus, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(folder).spec
    pair = ModelPair(("a", "b"), model, lambda: nullcontext(Janus.pico(seed=1)))
    monkeypatch.setattr(ModelPair, "load", lambda models, how: pair)
    monkeypatch.setattr("safear_edit.pipeline.eval.load_spec", lambda path: made)
    names, found = compare_understanding(["a", "b"], spec="picasso")
    assert names == ("a", "b") and found.slices[0].slice == "concept" and found.slices[0].n == 16
    assert not found.silent and all(part.n == 4 for part in found.slices[1:])
    hidden = made.model_copy(update={"kind": "category"})
    monkeypatch.setattr("safear_edit.pipeline.eval.load_spec", lambda path: hidden)
    _, told = compare_understanding(["a", "b"], spec="picasso")
    assert told.slices[0].asked == (WITHHELD,) != found.slices[0].asked
    assert [part.asked for part in told.slices[1:]] == [part.asked for part in found.slices[1:]]


def test_images_of_the_exam_are_the_pictures(asked: Exam) -> None:
    images: Tensor = asked.images
    assert images.dtype == torch.uint8 and max(item.row for item in asked.items) < len(images)
