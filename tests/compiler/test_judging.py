"""judging: one concept, for minis and published models; the judge follows the images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safear_edit.compiler.beside import beside
from safear_edit.compiler.checks import clip_options, problems
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.judging import judged_for
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from safear_edit.errors import SpecError, UsageError
from safear_edit.evaluate.sampled import judges_of
from safear_edit.families.reference import images_of
from safear_edit.files.records import parse
from safear_edit.files.strict import parse_yaml
from safear_edit.judges.base import judge_for
from safear_edit.judges.clip import GALLERY, PUBLISHED
from safear_edit.pipeline.plan import judge_lines
from safear_edit.registry import find_builtin
from safear_edit.spec.extend import full_form
from safear_edit.spec.spec import Spec, load_spec
from tests.compiler.test_compile import Card, Numbers
from tests.judges.test_clip import open_clip as open_clip
from tests.judges.test_clip import tiny as tiny
from tests.spec.test_extend import SHORT

XL = replace(Card(), ref="llamagen:xl-256", images="real")


def builtin(name: str) -> Spec:
    return load_spec(find_builtin("concepts", name))


def compiled(spec: Spec, card: Card, *overrides: str) -> Recipe:
    return compile_recipe(spec, card, load_base_recipe("vce"), sampling=Numbers(), overrides=overrides)


def short(judge: str) -> Spec:
    text = SHORT.replace("judge: {label: style=hokusai}", f"judge: {judge}").replace("a print by Hiro", "style=hiro")
    return parse(Spec, full_form(parse_yaml(text, "short.yaml")))


def test_what_variants_draw() -> None:
    assert {images_of("llamagen", "mini"), images_of("emu3", "pico")} == {"gallery"}
    published = [("llamagen", "xl-256"), ("infinity", "2b"), ("janus", "pro-1b"), ("emu3", "a folder of mine")]
    assert {images_of(*one) for one in published} == {"real"}


def test_a_built_in_concept_has_a_judge_for_minis_and_one_for_published_models() -> None:
    mini, real = compiled(builtin("picasso"), Card()), compiled(builtin("picasso"), XL)
    assert mini.spec.judge.model_dump(mode="json") == {
        "use": "gallery", "label": "style=picasso", "threshold": 0.5, "options": {}
    }  # fmt: skip
    judge = real.spec.judge
    assert (judge.use, judge.label, judge.threshold, judge.real) == ("clip", "style=picasso", None, None)
    prompts = judge.options["prompts"]
    assert isinstance(prompts, dict)
    assert "a painting by Pablo Picasso" in prompts["style"]["style=picasso"]
    assert prompts["style"]["style=photo"][0] == "a photograph", "what the set says instead of members' words"
    assert "a photo of a puppy" in prompts["object"]["object=dog"]
    asked = {prompt.judge_label for prompt in real.evaluate.prompts}
    assert asked <= {label for sort in prompts.values() for label in sort}, "CLIP has a prompt for whatever is judged"
    assert real.evaluate.prompts == mini.evaluate.prompts, "the same prompts and seeds"
    assert Recipe.model_validate_json(real.model_dump_json()) == real and judged_for(real.spec, "real") is real.spec


def test_judges_that_cannot_read_a_models_images_are_refused_in_one_line() -> None:
    gallery = builtin("picasso")
    gallery = gallery.model_copy(update={"judge": gallery.judge.model_copy(update={"real": None})})
    with pytest.raises(
        SpecError, match=r"judge\.use: expected a judge that reads real images, got gallery.*judge\.real"
    ):
        compiled(gallery, XL)
    for text in ("{use: nudity, label: strict}", f"{{use: clip, label: a | b, options: {{model: {PUBLISHED}}}}}"):
        with pytest.raises(SpecError, match=r"reads gallery images, got .*take a published model"):
            compiled(short(text), Card())
    with pytest.raises(
        SpecError, match=f"by its model 'gallery'; name a CLIP under options.model, such as {PUBLISHED}"
    ):
        compiled(short("{use: clip, label: a | b}"), XL)


def test_another_detector_for_real_images_leaves_members_to_the_sets() -> None:
    judge = judged_for(short("{label: style=hokusai, real: {use: imagenet, label: church}}"), "real").judge
    assert (judge.use, judge.label, judge.options) == ("imagenet", "church", {})
    assert judge.members is not None and judge.members.use == "clip"
    prompts = judge.members.options["prompts"]
    assert isinstance(prompts, dict) and "style=hokusai" in prompts["style"], "it still competes with its neighbours"
    with pytest.raises(SpecError, match=r"judge\.label: expected an ImageNet class"):
        compiled(short("{label: style=hokusai, real: {use: imagenet, label: a manner}}"), XL)


def test_prompts_of_ones_own_replace_names_and_add_contrasts() -> None:
    real = "{zero_shot: {prompts: {style=hokusai: [a woodblock print], style=none: [a doodle]}}}"
    prompts = judged_for(short(f"{{label: style=hokusai, real: {real}}}"), "real").judge.options["prompts"]
    assert isinstance(prompts, dict)
    assert prompts["style"]["style=hokusai"] == ("a woodblock print",) and prompts["style"]["style=none"] == (
        "a doodle",
    )


def test_stacked_concepts_know_each_other_by_their_resolved_labels() -> None:
    dog, church = (judged_for(builtin(name), "real") for name in ("dog", "church"))
    left = {label for group in beside(dog, [church]).preserve for label in group.members.values()}
    assert "object=church" not in left and "object=cat" in left


def test_what_another_judge_looks_for_in_real_images_can_not_stay(tiny: Path) -> None:
    """Refused before a recipe is made: one with it could not be read again."""
    picasso = load_spec(find_builtin("concepts", "picasso"))
    assert picasso.judge.real is not None
    judge = picasso.judge.model_copy(update={"real": picasso.judge.real.model_copy(update={"label": "style=monet"})})
    spec = judged_for(picasso.model_copy(update={"judge": judge}), "real")
    (problem,) = problems(spec, "real")
    assert problem.got == "'style=monet'" and problem.at[-1] in ("Monet", "Claude Monet")


def test_a_plan_says_what_a_judge_lacks_and_that_it_was_never_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    lacking, unmeasured = judge_lines(compiled(builtin("dog"), XL).spec, "real")
    assert f"hf download {PUBLISHED}" in lacking and "judge calibrate" in unmeasured
    assert judge_lines(compiled(builtin("dog"), Card()).spec, "gallery") == []


def test_a_card_comes_by_set_and_excludes_a_threshold() -> None:
    card = "{detector: " + 64 * "a" + ", present_from: 0.6, absent_below: 0.4, n_pos: 20, true_pos: 19, n_neg: 20, " \
        "true_neg: 20, data: mine}"  # fmt: skip
    recipe = compiled(builtin("dog"), XL, f"judge.card={card}")
    assert recipe.spec.judge.card is not None and recipe.spec.judge.card.true_pos == 19
    with pytest.raises(SpecError, match="leave threshold or card out"):
        compiled(builtin("dog"), XL, f"judge.card={card}", "judge.threshold=0.5")


def test_every_label_of_a_recipe_gets_its_reader(tiny: Path) -> None:
    """With an open_clip folder in place of the published weights."""
    judges = judges_of(compiled(builtin("dog"), XL, f"judge.options.model={tiny}"))
    assert judges["object=dog"].id == f"clip[{tiny.name}]:object=dog@0.5" and "style=monet" in judges
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert all(0 <= one.score <= 1 for judge in judges.values() for one in judge.look(images))
    judge = judged_for(builtin("parachute"), "real").judge
    assert judge.members is not None
    members = judge.members.model_copy(update={"options": {**judge.members.options, "model": str(tiny)}})
    both = judge.model_copy(update={"members": members})
    found = [judge_for(both, label).id.partition(":")[0] for label in ("object=cat", "parachute")]
    assert found == [f"clip[{tiny.name}]", "imagenet"]


def test_prompts_for_clip_stand_under_the_block_list() -> None:
    with pytest.raises(SpecError, match="never processed"):
        short("{label: style=hokusai, real: {zero_shot: {prompts: {style=hokusai: [a nude, a child]}}}}")


def test_the_clip_that_pairs_are_filtered_by_follows_the_judge() -> None:
    mini, real = builtin("picasso"), judged_for(builtin("picasso"), "real")
    assert clip_options(mini, "gallery", "it") == (GALLERY, None) and clip_options(real, "real", "it")[0] == PUBLISHED
    assert compiled(mini, Card()).digest == compiled(mini, Card(), "construct.text_align=null").digest
    own = compiled(mini, XL, "construct.text_align=0.25")
    assert own.construct.text_align == 0.25 and own.digest != compiled(mini, XL).digest
    none = mini.model_copy(update={"judge": mini.judge.model_copy(update={"use": "imagenet", "real": None})})
    with pytest.raises(UsageError, match=r"construct\.text_align=0\.25: expected a CLIP .* got judge imagenet"):
        clip_options(none, "real", "construct.text_align=0.25")
    with pytest.raises(SpecError, match="text_align"):
        compiled(mini, Card(), "construct.text_align=1.5")
