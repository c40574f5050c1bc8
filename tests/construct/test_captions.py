"""Captions lose the concept by the spec's own templates, or give way to the template's; and no image is drawn twice.

Janus.pico is random, so what it says is no text; a family that says what it is told to shows the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safear_edit.compiler.beside import refuse_own_captions
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from safear_edit.construct.captions import (
    EVALUATED,
    FORBIDDEN,
    NO_TEMPLATE,
    STILL_NAMED,
    UNREADABLE,
    Refiner,
    SafeCaption,
    refiner_of,
)
from safear_edit.construct.pairs import Pairs, build_pairs
from safear_edit.construct.pairs_record import Captions
from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.files.rundir import RunDir
from safear_edit.judges.base import Judge, Judgement
from safear_edit.pipeline import steps
from safear_edit.progress import silent
from safear_edit.registry import builtin_folder
from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles
from safear_edit.report.html import render_html
from safear_edit.report.model_card import model_card
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import fill, mention_of
from safear_edit.spec.spec import Spec, concept_names, load_spec
from tests.report.test_build import make_run

SAFE = "a photo of the template"
SMALL = ["construct.pairs=12", "construct.keep=0", "evaluate.n.direct=10", "evaluate.n.paraphrase=10",
         "evaluate.n.template=10", "preserve.objects.n=10", "preserve.plain.n=10"]  # fmt: skip


def concept(name: str) -> Spec:
    return load_spec(builtin_folder("concepts") / f"{name}.yaml")


@pytest.fixture(scope="module")
def model() -> Janus:
    return Janus.pico(seed=0)


def recipe_for(model: Janus | LlamaGen, *overrides: str) -> Recipe:
    own = ["preserve.other-styles.n=10", *SMALL, *overrides]
    return compile_recipe(concept("picasso"), model.card, load_base_recipe("vce"), overrides=own)


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "safe"),
    [
        ("picasso", "a house in a meadow in the style of picasso", "a photo of a house in a meadow"),
        ("picasso", " A painting of an old horse by  Pablo Picasso. ", "a photo of an old horse"),
        ("picasso", "picasso : a red car at night", "a photo of a red car at night"),
        ("picasso", "The cubist master Picasso painting of a dog", "a photo of a dog"),
        ("picasso", "a fish , pablo picasso , the spanish cubist style", "a photo of a fish"),
        ("picasso", "a fish by Pablo Ruiz y Picasso", "a photo of a fish"),
        ("picasso", "a photo of a cat on a beach", "a photo of a cat on a beach"),
        ("picasso", "a cat on a beach in the style of monet", "a cat on a beach in the style of monet"),
        ("dog", "a photo of a dog", "a photo of a cat"),
        ("dog", "the dog in the snow in the style of Monet", "a cat in the snow in the style of Monet"),
        ("dog", "a puppy sleeping on a sofa", "a cat sleeping on a sofa"),
        ("hazard", "a photo of a car at night with a hazard symbol", "a photo of a car at night"),
        ("hazard", "a tree with a hazard symbol in the style of picasso", "a tree in the style of Picasso"),
        ("hazard", "a tree with a hazard symbol in the style of rembrandt", "a tree in the style of rembrandt"),
    ],
)
def test_a_caption_loses_the_concept_and_nothing_else(name: str, said: str, safe: str) -> None:
    told = Refiner.of(concept(name), ()).rewrite(said, SAFE)
    assert told == SafeCaption(" ".join(said.split()), safe, "")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Picasso: cubism everywhere", STILL_NAMED),
        ("a house that Picasso might have liked", NO_TEMPLATE),
        ("a photo of a picasso", NO_TEMPLATE),
        ("a painting of cubism by picasso", STILL_NAMED),
        ("a Photo, of a horse", EVALUATED),
        ("a horse in the style of Picasso", EVALUATED),
        ("a nude child", FORBIDDEN),
        ("a nude child in the style of picasso", FORBIDDEN),
        ("", UNREADABLE),
        ("...", UNREADABLE),
        ("a house\ufffd", UNREADABLE),
        ("a \x00house", UNREADABLE),
        ("a house " * 60, UNREADABLE),
    ],
)
def test_what_cant_be_rewritten_gives_way_to_the_template(said: str, why: str) -> None:
    told = Refiner.of(concept("picasso"), ["a photo of a horse"]).rewrite(said, SAFE)
    assert (told.safe, told.why) == (SAFE, why)
    assert told.said == ("" if why in (FORBIDDEN, UNREADABLE) else said)


@pytest.mark.parametrize("name", ["picasso", "van_gogh", "dog", "hazard"])
def test_every_training_prompt_read_backwards_is_its_own_anchor(name: str) -> None:
    """Written by a template, found by it: for each alias, template and a subject that the spec doesn't have."""
    spec = concept(name)
    refiner, anchors = Refiner.of(spec, ()), spec.anchor.templates
    for index, template in enumerate(spec.erase.templates):
        for alias in (*spec.erase.aliases, *spec.paraphrases.held_out):
            said = fill(template, alias=alias, subject="in a wide valley").upper()
            told = refiner.rewrite(said, SAFE)
            wanted = fill(anchors[index % len(anchors)], subject="in a wide valley")
            assert told.why == "" and told.safe.lower() == wanted.lower(), said


def test_a_subject_twice_and_words_with_signs_of_their_own() -> None:
    spec = concept("picasso")
    erase = spec.erase.model_copy(
        update={"aliases": ("C++ (art)",), "templates": ("{subject} and {subject}, by {alias}",)}
    )
    refiner = Refiner.of(spec.model_copy(update={"erase": erase}), ())
    assert refiner.rewrite("a fish and a fish, by c++ ( art )", SAFE).safe == "a photo of a fish"
    assert refiner.rewrite("a fish and a dog, by C++ (art)", SAFE).why == NO_TEMPLATE


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_the_default_leaves_no_trace_in_a_recipe(model: Janus) -> None:
    plain, own = recipe_for(model), recipe_for(model, "construct.refine=self")
    assert "refine" not in plain.model_dump(mode="json")["construct"] and refiner_of(plain) is None
    assert plain.digest == recipe_for(model, "construct.refine=template").digest != own.digest
    assert own.model_dump(mode="json")["construct"]["refine"] == "self" and refiner_of(own) is not None
    assert own.construct.pairs == plain.construct.pairs and own.evaluate == plain.evaluate
    assert Recipe.model_validate_json(own.model_dump_json()) == own


def test_a_family_that_says_nothing_is_refused_in_one_line(model: Janus) -> None:
    wanted = r"construct\.refine=self: expected a family .* got llamagen; take .*janus"
    with pytest.raises(UsageError, match=wanted) as refused:
        recipe_for(LlamaGen.pico(), "construct.refine=self")
    assert "\n" not in str(refused.value)
    with pytest.raises(SpecError, match="refine"):
        recipe_for(model, "construct.refine=me")


def test_not_beside_other_concepts(model: Janus) -> None:
    plain, own = recipe_for(model), recipe_for(model, "construct.refine=self")
    refuse_own_captions([own])
    refuse_own_captions([plain, plain])
    with pytest.raises(UsageError, match="stack: expected safe captions"):
        refuse_own_captions([plain, own])


# -- images ---------------------------------------------------------------------------------------------------------


class Telling(Janus):
    """Says what it is told to, in the order of the images, and counts what it draws and decodes."""

    captions: Sequence[str]
    shown: list[Tensor]
    drawn: int
    decoded: int

    def describe(self, images: Tensor) -> list[str]:
        first = len(self.shown)
        self.shown += list(images)
        return [self.captions[i % len(self.captions)] for i in range(first, len(self.shown))]

    def _draw(self, condition, seeds, sampling, prefix):  # type: ignore[no-untyped-def]
        self.drawn += len(seeds)
        return super()._draw(condition, seeds, sampling, prefix)

    def decode(self, ids: Tensor) -> Tensor:
        self.decoded += len(ids)
        return super().decode(ids)


class Sees(Judge):
    """The concept is in every other image, as in pairs that are told apart; keeps what it saw."""

    id, digest, threshold = "sees", "0", 0.5

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def look(self, images: Tensor) -> list[Judgement]:
        first = len(self.seen)
        self.seen += list(images)
        return [Judgement(i % 2 == 0, 0.5, "") for i in range(first, len(self.seen))]


SAID = [
    "a horse in the style of picasso",  # rewritten
    "a bright yellow sunflower",  # as it is
    "a house as Picasso saw it",  # in no template
    "a nude child",  # dropped with its pair
]


@dataclass(frozen=True)
class Built:
    model: Telling
    judge: Sees
    recipe: Recipe
    wanted: list[tuple[str, str, int]]
    pairs: Pairs


@pytest.fixture(scope="module")
def built() -> Built:
    model = Telling.pico(seed=0)
    assert isinstance(model, Telling)
    model.captions, model.shown, model.drawn, model.decoded = SAID, [], 0, 0
    recipe, judge = recipe_for(model, "construct.refine=self"), Sees()
    wanted = [(pair.unsafe, pair.safe, pair.seed) for pair in recipe.construct.pairs]
    refiner = refiner_of(recipe)
    return Built(
        model, judge, recipe, wanted, build_pairs(model, wanted, judge, progress=silent, batch=5, refiner=refiner)
    )


def test_the_model_writes_the_safe_captions_it_can(built: Built) -> None:
    pairs, wanted = built.pairs, built.wanted
    kept = [i for i in range(12) if i % 4 != 3]
    safe = {0: "a photo of a horse", 1: "a bright yellow sunflower"}
    assert pairs.safe == [safe.get(i % 4, wanted[i][1]) for i in kept]
    assert list(zip(pairs.unsafe, pairs.seeds, strict=True)) == [(wanted[i][0], wanted[i][2]) for i in kept]
    assert pairs.stats.captions == Captions(6, {NO_TEMPLATE: 3, FORBIDDEN: 3})
    assert (pairs.stats.made, pairs.stats.kept, pairs.stats.reasons) == (12, 9, {FORBIDDEN: 3})
    mention = mention_of(concept_names(built.recipe.spec))
    assert not any(map(mention, pairs.safe))


def test_no_picture_is_drawn_or_decoded_twice(built: Built) -> None:
    assert built.model.drawn == built.model.decoded == 2 * len(built.wanted)
    assert torch.equal(torch.stack(built.model.shown), torch.stack(built.judge.seen[0::2]))


def test_unsafe_pictures_are_those_of_the_template_way(built: Built, model: Janus) -> None:
    plain = build_pairs(model, built.wanted, Sees(), progress=silent, batch=5)
    kept = [i for i in range(12) if i % 4 != 3]
    assert torch.equal(plain.unsafe_ids[kept], built.pairs.unsafe_ids)
    fallen = [place for place, i in enumerate(kept) if i % 4 == 2]
    same = (plain.safe_ids[kept] == built.pairs.safe_ids).all(1)
    assert same[fallen].all() and not same.all(), "only other captions make other safe images"
    own = model.generate(model.condition([built.pairs.safe[0]]), [built.pairs.seeds[0]])
    assert torch.equal(own[0], built.pairs.safe_ids[0])
    assert plain.told is None and plain.stats.captions is None


def test_what_was_said_survives_the_disk(built: Built, tmp_path: Path) -> None:
    built.pairs.save(tmp_path)
    again = Pairs.load(tmp_path)
    assert again.told == built.pairs.told and again.stats == built.pairs.stats and again.safe == built.pairs.safe
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert (rows[0]["said"], rows[0]["safe"], rows[0]["why"]) == (SAID[0], "a photo of a horse", "")
    assert rows[2]["why"] == NO_TEMPLATE and "child" not in (tmp_path / "pairs.jsonl").read_text()
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows[:-1], {"unsafe": "u"})))
    with pytest.raises(TrustError, match="said"):
        Pairs.load(tmp_path)


def test_evaluation_prompts_never_become_training_prompts(model: Janus) -> None:
    """The captions are the very prompts that this recipe evaluates, or that one with more prompts would."""
    recipe = recipe_for(model, "construct.refine=self")
    refiner = refiner_of(recipe)
    assert refiner is not None
    for prompt in recipe.evaluate.prompts:
        told = refiner.rewrite(prompt.prompt.upper(), SAFE)
        if prompt.expect == "present":
            assert (told.safe, told.why) == (SAFE, EVALUATED)
        else:
            assert told.safe not in {p.prompt for p in recipe.evaluate.prompts}
    kept = pools(recipe.spec).preserve["objects"]
    assert len(kept) > 10 and {refiner.rewrite(prompt.text, SAFE).why for prompt in kept} == {EVALUATED}


def test_a_random_model_says_nothing_that_could_be_a_prompt(
    model: Janus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the construct step: nearly every caption falls back, and stats.json says so."""
    monkeypatch.setattr(steps, "concept_judge", lambda spec: Sees())
    recipe = recipe_for(model, "construct.refine=self")
    run = RunDir(tmp_path, tmp_path / "out")
    steps.construct(run, recipe, model, silent)
    stats = json.loads((tmp_path / "pairs" / "stats.json").read_text())
    captions = stats["captions"]
    assert captions["fallbacks"][UNREADABLE] >= 9
    assert captions["refined"] + sum(captions["fallbacks"].values()) == stats["made"] == 12
    found = Pairs.load(tmp_path / "pairs")
    assert found.told is not None
    for told, safe, pair in zip(found.told, found.safe, recipe.construct.pairs, strict=True):
        assert told.why == "" or safe == pair.safe


def test_the_report_says_who_wrote_the_captions(tmp_path: Path) -> None:
    root = make_run(tmp_path)
    before = build_report(RunFiles.find(root))
    assert before.concepts[0].pairs is not None and before.concepts[0].pairs.captions is None
    assert "afe captions" not in render_html(before, root) + model_card(before)
    stats = json.loads((root / "pairs" / "stats.json").read_text())
    stats["captions"] = {"refined": 101, "fallbacks": {NO_TEMPLATE: 27, EVALUATED: 2}}
    (root / "pairs" / "stats.json").write_text(json.dumps(stats))
    report = build_report(RunFiles.find(root))
    for text in (render_html(report, root), model_card(report)):
        assert "afe captions: 101 of 130" in text and f"27 {NO_TEMPLATE}" in text and f"2 {EVALUATED}" in text
    stats["captions"]["refined"] = 100
    (root / "pairs" / "stats.json").write_text(json.dumps(stats))
    with pytest.raises(SpecError, match="130 safe captions"):
        build_report(RunFiles.find(root))
