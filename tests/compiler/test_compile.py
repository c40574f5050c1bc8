"""compiler: recipes are complete, deterministic, separate and checked; overrides, misfits, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel

from safear_edit.compiler.compile import (
    SCREENING_RESERVE,
    compile_recipe,
    cut_lines,
    recipe_warnings,
    refuse_unstated,
    seen_names,
)
from safear_edit.compiler.cost import Work, declared, predict
from safear_edit.compiler.recipe import (
    BaseRecipe,
    Recipe,
    load_base_recipe,
    load_recipe,
    read_map,
    recipe_schema,
    save_recipe,
)
from safear_edit.errors import SpecError, UsageError
from safear_edit.files.records import parse
from safear_edit.files.strict import parse_yaml
from safear_edit.registry import builtin_folder, lookup
from safear_edit.spec.prompts import normalise, overlap, side, unaccented
from safear_edit.spec.spec import Images, Spec, load_spec
from tests.test_registry import add_plugin


@dataclass(frozen=True)
class Card:
    ref: str = "llamagen:mini"
    family: str = "llamagen"
    digest: str = "0" * 64
    parameters: int = 5_000_000
    tokens: int = 100
    scales: tuple[int, ...] = (100,)
    images: Images = "gallery"


@dataclass(frozen=True)
class Numbers:
    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


REMBRANDT = Path(__file__).parent.parent / "spec" / "rembrandt.yaml"
SEURAT = REMBRANDT.read_text().replace("Rembrandt", "Seurat").replace("rembrandt", "seurat")
SMALL = ("construct.pairs=16", "construct.keep=6", "evaluate.n.direct=10", "evaluate.n.paraphrase=10")


def concept(name: str) -> Spec:
    return load_spec(builtin_folder("concepts") / f"{name}.yaml")


@pytest.fixture(scope="module")
def picasso() -> Recipe:
    return compile_recipe(concept("picasso"), Card(), load_base_recipe("vce"), sampling=Numbers())


@pytest.fixture(scope="module")
def draft() -> Spec:
    return parse(Spec, parse_yaml(SEURAT, "draft"))


def test_the_same_input_gives_the_same_bytes(picasso: Recipe) -> None:
    again = compile_recipe(concept("picasso"), Card(), load_base_recipe("vce"), sampling=Numbers())
    assert again.digest == picasso.digest
    assert compile_recipe(concept("picasso"), Card(), load_base_recipe("sft")).digest != picasso.digest


def test_everything_is_resolved(picasso: Recipe) -> None:
    assert picasso.method.params["beta"] == 5.0 and picasso.method.params["save_every"] > 0
    assert picasso.evaluate.sampling is not None and picasso.evaluate.sampling.guidance == 3.0
    assert len(picasso.construct.pairs) == 160 and len(picasso.keep) == 192
    assert picasso.gates.erasure_direct == 0.97
    assert picasso.predicted.trainable > 100_000 and 0 < picasso.predicted.minutes < 60


@pytest.mark.parametrize(
    ("name", "method"), [("picasso", "sft"), ("picasso", "dpo"), ("van_gogh", "vce"), ("dog", "vce"), ("hazard", "vce")]
)
def test_built_in_concepts_and_recipes_compile_with_full_reserve(name: str, method: str) -> None:
    recipe = compile_recipe(concept(name), Card(), load_base_recipe(method))
    known = ["'the Dutch post-impressionist' in 16 of 406"] if name == "van_gogh" else []
    warned = recipe_warnings(recipe)
    assert len(warned) == len(known) and all(part in line for part, line in zip(known, warned, strict=True))
    assert len(recipe.slice("direct")) == len(recipe.slice("paraphrase")) == 313 == -(-250 * SCREENING_RESERVE // 1)
    assert not overlap(recipe.training_prompts, [p.prompt for p in recipe.evaluate.prompts])
    ids = [p.id for p in recipe.evaluate.prompts]
    assert len(set(ids)) == len(ids)
    assert all(p.seed != p.screen_seed for p in recipe.evaluate.prompts)


def test_a_label_may_have_several_images_of_each_prompt(picasso: Recipe) -> None:
    """What llamagen:mini draws nine times of ten: 40 images of it can't tell whether an edit loses it."""
    boats = [prompt for prompt in picasso.slice("objects") if prompt.judge_label == "object=sailboat"]
    by_text = {text: [one for one in boats if one.prompt == text] for text in {one.prompt for one in boats}}
    assert by_text and all(len({one.seed for one in same}) == 3 for same in by_text.values())
    assert all([one.id.removeprefix(same[0].id) for one in same] == ["", "-2", "-3"] for same in by_text.values())
    assert not {one.seed for one in boats} & {one.screen_seed for one in boats}
    first = picasso.slice("objects")[: picasso.evaluate.n["objects"]]
    assert len({one.prompt for one in first}) == 480, "the group's number is of prompts"
    assert picasso.evaluate.n["objects"] == 480 + 2 * len({one.prompt for one in first if one in boats}) > 550
    more = [*SMALL, "preserve.objects.n=36", "preserve.objects.images_per_prompt={object=cat: 2}"]
    changed = compile_recipe(concept("picasso"), Card(), load_base_recipe("vce"), overrides=more)
    assert changed.evaluate.n["objects"] == 36 + 3, "three names of a cat, no longer of a sailboat"


def test_expectations_and_labels(picasso: Recipe) -> None:
    for prompt in picasso.evaluate.prompts:
        erased = prompt.slice in ("direct", "paraphrase", "template")
        assert prompt.expect == ("absent" if erased else "present")
        assert (prompt.judge_label == "style=picasso") == erased
    cottage = next(p for p in picasso.slice("objects") if "cottage" in p.prompt)
    assert cottage.judge_label == "object=house"


def test_the_safe_prompt_keeps_the_subject() -> None:
    hazard = compile_recipe(concept("hazard"), Card(), load_base_recipe("vce"), overrides=SMALL)
    aliases = (*hazard.spec.erase.aliases, *hazard.spec.paraphrases.train)
    for pair in hazard.construct.pairs:
        alias = next(alias for alias in sorted(aliases, key=len, reverse=True) if alias in pair.unsafe)
        assert normalise(pair.unsafe.replace(alias, "")) == normalise(pair.safe)


def test_the_seed_changes_training_and_not_evaluation(draft: Spec) -> None:
    one, two = (compile_recipe(draft, Card(), load_base_recipe("vce"), seed=s, overrides=SMALL) for s in (1, 2))
    assert one.construct != two.construct and one.keep != two.keep
    erased = [[p for p in r.evaluate.prompts if p.expect == "absent"] for r in (one, two)]
    assert erased[0] == erased[1]
    with pytest.raises(UsageError, match="seed"):
        compile_recipe(draft, Card(), load_base_recipe("vce"), seed=2**63)


def test_fewer_prompts_are_a_subset(draft: Spec) -> None:
    small = compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=SMALL)
    large = compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=["evaluate.n.direct=100"])
    assert {p.id for p in small.slice("direct")} <= {p.id for p in large.slice("direct")}


def test_overrides(draft: Spec) -> None:
    sets = [*SMALL, "params.beta=2", "params.average=token", "gates.min_obeyed=0.25", "judge.threshold=0.6"]
    sets += ["preserve.objects.n=12"]
    recipe = compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=sets)
    assert recipe.method.params["beta"] == 2.0 and recipe.method.params["average"] == "token"
    assert recipe.gates.min_obeyed == 0.25 and recipe.spec.judge.threshold == 0.6
    assert len(recipe.slice("objects")) == 15 and len(recipe.construct.pairs) == 16
    assert (
        recipe.spec.evaluate.references is None and "references" not in recipe.spec.model_dump(mode="json")["evaluate"]
    )
    named = compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, "evaluate.references=pictures"])
    assert named.spec.evaluate.references == "pictures" and named.digest != recipe.digest


def test_what_a_spec_leaves_out_can_be_set_all_the_same(draft: Spec) -> None:
    sets = ["evaluate.attacks=ci", "preserve.objects.questions=['does it show {name}?']"]
    sets += ["judge.members={use: clip, options: {model: gallery}, zero_shot: {}}"]
    spec = compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, *sets]).spec
    objects = next(group for group in spec.preserve if group.name == "objects")
    assert spec.evaluate.attacks == "ci" and objects.questions == ("does it show {name}?",)
    assert spec.judge.members and spec.judge.members.zero_shot is None and "prompts" in spec.judge.members.options


def test_answers_are_held_in_place_only_where_there_are_any(draft: Spec, picasso: Recipe) -> None:
    """And what nobody changed is in no recipe, so that those from before understanding keep their digests."""
    assert "understanding_weight" not in picasso.method.params
    data = picasso.model_dump(mode="json")
    assert "understanding" not in data["spec"] and not any("understanding" in name for name in data["gates"])
    assert not any("questions" in group for group in data["spec"]["preserve"])
    unified = replace(Card(), family="janus", ref="janus:mini")
    kept = compile_recipe(draft, unified, load_base_recipe("vce"), overrides=SMALL)
    assert kept.method.params["understanding_weight"] == 1.0
    assert (
        kept.predicted.minutes
        > compile_recipe(
            draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, "params.depth=0.0"]
        ).predicted.minutes
    )
    weight = "params.understanding_weight=0.5"
    changed = compile_recipe(draft, unified, load_base_recipe("vce"), overrides=[*SMALL, weight])
    assert changed.method.params["understanding_weight"] == 0.5
    with pytest.raises(UsageError, match="answers questions, got llamagen"):
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, weight])


def test_what_is_to_be_understood_can_be_set(draft: Spec) -> None:
    sets = [*SMALL, "understanding.concept=erase", "gates.understanding_left=0.7"]
    recipe = compile_recipe(draft, Card(), load_base_recipe("sft"), overrides=sets)
    assert recipe.spec.understanding.concept == "erase" and recipe.gates.understanding_left == 0.7
    data = recipe.model_dump(mode="json")
    assert data["spec"]["understanding"] == {"concept": "erase", "questions": []}
    assert data["gates"]["understanding_left"] == 0.7 and "understanding_drop" not in data["gates"]
    with pytest.raises(SpecError, match="training never asks"):
        asked = ["understanding.questions=['was this painted by {name}?']"]
        compile_recipe(draft, Card(), load_base_recipe("sft"), overrides=[*SMALL, *asked])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("construct.pears=3", "did you mean 'pairs'"),
        ("params.bet=3", "did you mean 'beta'"),
        ("params.beta=much", "params beta"),
        ("params.beta=-1", "greater than 0"),
        ("params.steps=0", "steps"),
        ("evaluate.n.direct=0", "evaluate.n.direct"),
        ("evaluate.n.direct.x=0", "--set evaluate.n.direct.x=0"),
        ("gates.erasure_direct=2", "gates.erasure_direct"),
        ("gates=2", "expected gates.KEY=VALUE, got gates alone; its keys: erasure_direct"),
        ("judge.real.use=clip", "expected one of card, label"),
        ("construct.pairs=16\nparams.beta: 2", "one value"),
        ("spec.name=x", "--set spec.name=x"),
        ("preserve.objets.n=3", "did you mean 'objects'"),
        ("construct.pairs", "KEY=VALUE"),
        ("params.beta=[1", "--set params.beta=[1"),
    ],
)
def test_bad_overrides(draft: Spec, override: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, override])
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("construct.pairs=90000", "construct.pairs="),
        ("construct.keep=90000", "construct.keep="),
        ("evaluate.n.direct=90000", "evaluate.n.direct="),
        ("preserve.objects.n=90000", "preserve.objects.n="),
    ],
)
def test_too_few_prompts_say_how_many_there_are(draft: Spec, override: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[override])
    key, _, most = str(caught.value).rpartition("--set ")[2].partition("=")
    fixed = [*SMALL, f"{key}={most}"]
    recipe = compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=fixed)
    warned = [line for line in recipe_warnings(recipe) if "candidates instead of" in line]
    assert len(warned) == (0 if key.startswith("construct") else 1)


def test_no_number_is_offered_where_none_would_do(draft: Spec) -> None:
    few = draft.erase.model_copy(update={"templates": draft.erase.templates[:1], "subjects": ("a fox", "an owl")})
    trained = next(text for text in ("a fox", "a hen", "an elk", "a bee", "an ant") if side(text) == "train")
    alone = {"members": {trained: "object=dog"}, "templates": ("{member}",), "subjects": ()}
    lone = draft.preserve[0].model_copy(update=alone)
    for part, says in (({"erase": few}, "add subjects or templates"), ({"preserve": (lone,)}, "add words to combine")):
        with pytest.raises(SpecError, match=says) as caught:
            compile_recipe(
                draft.model_copy(update=part), Card(), load_base_recipe("vce"), overrides=["construct.keep=0"]
            )
        assert "--set" not in str(caught.value)


def test_a_weight_on_nothing_is_noted() -> None:
    sizes = [*SMALL, "construct.keep=0", "evaluate.n.template=10"]
    recipe = compile_recipe(concept("picasso"), Card(), load_base_recipe("vce"), overrides=sizes)
    assert recipe_warnings(recipe) == ["params.keep_weight keeps nothing: construct.keep is 0"]


def test_held_out_names_that_training_reads_are_noted() -> None:
    """Monet's and Warhol's own: training has "the French impressionist Monet"; the initial of "A. Warhol" is no
    article."""
    monet, warhol = (
        compile_recipe(concept(name), Card(), load_base_recipe("vce"), overrides=SMALL) for name in ("monet", "warhol")
    )
    (line,) = (line for line in recipe_warnings(monet) if "held-out names" in line)
    assert "1 held-out names" in line and "'a French impressionist' in " in line
    (line,) = (line for line in recipe_warnings(warhol) if "held-out names" in line)
    assert "'a pop artist'" in line and "A. Warhol" not in line
    hidden = monet.model_copy(update={"spec": monet.spec.model_copy(update={"kind": "category"})})
    assert "impressionist" not in " ".join(recipe_warnings(hidden))


def test_training_prompts_are_brought_into_one_form_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, told = compile_recipe(concept("monet"), Card(), load_base_recipe("vce"), overrides=SMALL), list[str]()

    def counting(text: str) -> str:
        told.append(text)
        return unaccented(text)

    for module in ("compile", "recipe"):
        monkeypatch.setattr(f"safear_edit.compiler.{module}.unaccented", counting, raising=False)
    assert seen_names(recipe) and seen_names(recipe)
    assert len(told) == len(recipe.training_prompts) + 2 * len(recipe.spec.paraphrases.held_out)


def test_words_that_meet_in_one_sentence_are_refused() -> None:
    """An alias and a held-out name can give the same prompt through different templates."""
    text = SEURAT.replace("the manner of Seurat", '"Seurat, the Frenchman"')
    text = text.replace('"an artwork of {subject} inspired by {alias}"', '"{subject} by {alias}, the Frenchman"')
    spec = parse(Spec, parse_yaml(text, "draft"))
    sizes = ["construct.pairs=500", "evaluate.n.paraphrase=700"]
    with pytest.raises(SpecError, match=r"among the training prompts, got .*by Seurat, the Frenchman"):
        compile_recipe(spec, Card(), load_base_recipe("vce"), overrides=sizes)


def test_unknown_method_and_judge(draft: Spec) -> None:
    with pytest.raises(UsageError, match="did you mean 'vce'"):
        load_base_recipe("vcee")
    with pytest.raises(UsageError, match="did you mean 'gallery'"):
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=["judge.use=galery"])
    with pytest.raises(UsageError, match="options that it knows"):
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=["judge.options.models=x"])


def test_labels_that_the_judge_does_not_know_are_told_before_anything_is_drawn(draft: Spec) -> None:
    with pytest.raises(SpecError, match=r"judge.label: .* got 'seurrat'; did you mean 'seurat'"):
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=["judge.label=style=seurrat"])
    with pytest.raises(SpecError, match=r"PHRASE \| CONTRAST") as caught:
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=["judge.use=clip", "judge.label='a | b'"])
    labels = {label for group in draft.preserve for label in group.members.values()}
    assert len(caught.value.others) == len(labels) - 1


def test_gates_that_any_result_passes_or_none_can_are_refused(draft: Spec) -> None:
    none = [f"gates.erasure_{name}=0.0" for name in ("direct", "paraphrase", "template", "floor")]
    with pytest.raises(SpecError, match="gates: expected an erasure gate above 0"):
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, *none])
    assert (
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, *none[:3]]).gates.erasure_direct == 0
    )
    for gate in ("preserve_upper=0", "preserve_upper=1", "erasure_floor=1"):
        with pytest.raises(SpecError, match=f"gates.{gate.partition('=')[0]}"):
            compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, f"gates.{gate}"])


def test_fewer_pairs_than_the_construct_step_takes_are_refused_at_once(draft: Spec) -> None:
    with pytest.raises(UsageError, match=r"construct\.pairs: expected at least 8, got 6"):
        compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, "construct.pairs=6"])


def test_a_method_that_does_not_fit_names_those_that_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, draft: Spec
) -> None:
    code = """
from pydantic import BaseModel
class Flat:
    name, provides = "flat", frozenset({"codebook"})
class Needy:
    name, needs = "needy", frozenset({"scales"})
    class Params(BaseModel):
        pass
"""
    points = "[safear_edit.families]\nflat = toy_plugin:Flat\n[safear_edit.methods]\nneedy = toy_plugin:Needy\n"
    add_plugin(monkeypatch, tmp_path, points, code)
    with pytest.raises(UsageError, match=r"flat, which lacks scales; take .*sft, .*vce"):
        compile_recipe(draft, replace(Card(), family="flat"), load_base_recipe("needy"))


def test_a_method_that_reads_likelihoods_does_not_fit_a_family_that_denoises(draft: Spec) -> None:
    card = replace(Card(), family="diffusion", ref="diffusion:mini")
    says = "likelihoods, got diffusion, which denoises latents; take dpo, esd, sft, uce, vce"
    for name in ("svare", "obliviate", "ear"):
        with pytest.raises(UsageError, match=says):
            compile_recipe(draft, card, load_base_recipe(name))
    assert compile_recipe(draft, card, load_base_recipe("uce"), overrides=SMALL).predicted.minutes < 5
    with pytest.raises(UsageError, match="a family with denoising, got llamagen, which lacks denoising"):
        compile_recipe(draft, Card(), load_base_recipe("uce"))


def test_base_recipes_state_every_number_of_their_method() -> None:
    """Defaults in code may differ from a recipe only in what is about memory and checkpoints."""
    for name in ("vce", "dpo", "sft"):
        base = load_base_recipe(name)
        known = set(lookup("methods", name).load().Params.model_fields)
        assert known - set(base.params) <= {"accumulate", "recompute", "save_every", "keep_batch", "keep_parts"}
        text = (builtin_folder("recipes") / f"{name}.yaml").read_text()
        lines = text.partition("\ntune:")[0].splitlines()  # what `tune` searches between is no number of a run
        assert all("#" in line for line in lines if line.startswith("  ") and name == "vce")


def test_base_recipe_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: vce\nparams: {beta: 1}\n")
    assert load_base_recipe(str(path)) == BaseRecipe(method="vce", params={"beta": 1})
    path.write_text("methods: vce\n")
    with pytest.raises(SpecError, match="did you mean 'method'"):
        load_base_recipe(str(path))


def test_recipe_file_round_trip(picasso: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    save_recipe(picasso, path)
    assert load_recipe(path) == picasso
    data = json.loads(path.read_text())
    assert data["digest"] == picasso.digest and isinstance(data["construct"]["pairs"][0]["seed"], str)
    jsonschema.validate(data, recipe_schema())
    assert list(tmp_path.iterdir()) == [path]


def test_an_edited_recipe_is_refused(draft: Spec, tmp_path: Path) -> None:
    recipe = compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=SMALL)
    path = tmp_path / "recipe.json"
    save_recipe(recipe, path)
    data = json.loads(path.read_text())

    def refused(change: dict[str, object], says: str) -> None:
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(SpecError, match=says):
            load_recipe(path)

    refused({"gates": {**data["gates"], "erasure_direct": 0.1}}, "digest: .* compile it again")
    refused({"digest": None}, "digest: .* compile it again")
    refused({"sed": 1}, "did you mean 'seed'")
    refused({"seed": 1.5}, "seed")
    refused({"seed": "-1"}, "seed")
    path.write_text("[]")
    with pytest.raises(SpecError):
        load_recipe(path)
    path.write_text(json.dumps(data)[:-20])
    with pytest.raises(SpecError, match="valid JSON"):
        load_recipe(path)


def test_a_recipe_that_leaves_a_number_out_is_another_versions(draft: Spec) -> None:
    """What was `obliviate` once trained whole captions; its recipes have no roll-outs."""
    recipe = compile_recipe(draft, Card(), load_base_recipe("obliviate"), overrides=["construct.pairs=24"])
    refuse_unstated(recipe, "recipe.json")
    params = {name: value for name, value in recipe.method.params.items() if name != "rollouts"}
    old = recipe.model_copy(update={"method": recipe.method.model_copy(update={"params": params})})
    with pytest.raises(SpecError, match=r"no rollouts.*--method obliviate or obliviate_pairs"):
        refuse_unstated(old, "recipe.json")


def test_the_prompt_of_a_method_is_a_training_prompt(draft: Spec) -> None:
    """It is drawn and learnt from, so what is refused for pairs is refused for it."""
    base = load_base_recipe("obliviate")
    plain = compile_recipe(draft, Card(), base, overrides=SMALL)
    assert plain.training_prompts[-1] == draft.erase.concept
    assert compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=SMALL).concept_prompt == ()
    evaluated = plain.slice("direct")[0].prompt
    held_out = draft.paraphrases.held_out[0]
    for prompt, says in ((evaluated, "no evaluation prompt among the training prompts"), ("a nude child", "minors")):
        with pytest.raises(SpecError, match=says):
            compile_recipe(draft, Card(), base, overrides=[*SMALL, f"params.prompt={prompt}"])
    seen = compile_recipe(draft, Card(), base, overrides=[*SMALL, f"params.prompt={held_out}"])
    assert seen_names(seen) and not seen_names(plain)


def test_a_recipe_made_elsewhere_must_keep_training_and_evaluation_apart(draft: Spec, tmp_path: Path) -> None:
    recipe = compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=SMALL)
    prompts = recipe.evaluate.prompts
    path = tmp_path / "recipe.json"
    for text, says in ((recipe.construct.pairs[0].unsafe, "among the training"), ("a nude child", "minors")):
        bad = (prompts[0].model_copy(update={"prompt": text}), *prompts[1:])
        save_recipe(recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"prompts": bad})}), path)
        with pytest.raises(SpecError, match=says):
            load_recipe(path)


def test_near_duplicates_are_warned_of(picasso: Recipe) -> None:
    def similarity(a: list[str], b: list[str]) -> list[list[float]]:
        return [[0.99 if "Ruiz" in x else 0.5] * len(b) for x in a]

    (line,) = recipe_warnings(picasso, similarity)
    assert line.startswith("paraphrase: ") and "nearly equal" in line and "Ruiz" in line


def work_of(method: str, card: Card, pairs: int, **params: object) -> Work:
    """What a method declares to cost with these numbers."""
    kind = lookup("methods", method).load()
    found: Work = kind().work(kind.Params(**params), card, pairs)
    return found


def test_only_prompts_that_ask_for_the_concept_are_screened(picasso: Recipe) -> None:
    asked = [p for p in picasso.evaluate.prompts if p.expect == "absent"]
    sizes = {"pairs": len(picasso.construct.pairs), "keep": len(picasso.keep), "n": picasso.evaluate.n}
    work = work_of("vce", Card(), len(picasso.construct.pairs), **picasso.method.params)
    assert picasso.predicted == predict(Card(), work, candidates=len(asked), **sizes)


@pytest.mark.parametrize(("steps", "plain", "minutes"), [(100, 100, 2.95), (100, 100, 3.93), (120, 200, 5.48)])
def test_the_prediction_is_within_a_factor_of_two_of_real_runs(steps: int, plain: int, minutes: float) -> None:
    """concepts/picasso.yaml on llamagen:mini by VCE, two cores: alone, beside little, and beside other work."""
    params = load_base_recipe("vce").params | {"steps": steps, "understanding_weight": 0.0}
    n = {"direct": 250, "paraphrase": 250, "template": 100, "other-styles": 400, "objects": 400, "plain": plain}
    card = replace(Card(), parameters=3_957_579)
    found = predict(
        card,
        work_of("vce", card, 160, **params),
        pairs=160,
        keep=192,
        candidates=751,
        n=n,
    )
    assert minutes / 2 < found.minutes < minutes * 2
    assert abs(found.minutes - 2.95) < 0.2 or steps != 100, "calibrated on the run that had the machine to itself"
    assert 1.4 < found.memory_gib < 2.8, "1.41 GiB were measured after sampling and training alone"


def test_prediction_grows_with_the_work() -> None:
    work = work_of("vce", Card(), 100)
    sizes = dict(pairs=100, keep=10, candidates=100, n={"direct": 80})
    small, wide = predict(Card(), work, **sizes), predict(replace(Card(), parameters=775_000_000), work, **sizes)
    more = predict(Card(), work, **{**sizes, "pairs": 4000})
    assert wide.minutes > small.minutes < more.minutes
    assert wide.memory_gib > small.memory_gib and wide.trainable > small.trainable
    adapters = 36 * 16 * (1280 * (1 + 3) + 1280 * 2 + 3 * (1280 + 3584))
    assert wide.trainable == pytest.approx(adapters, rel=0.1)


def test_each_method_declares_its_rows() -> None:
    """Rows that train, in whole images: winner and loser, one caption, or the first scales; kept rows are run twice."""
    numbers = {"batch": 8, "steps": 10}
    held = {"keep_weight": 1.0, "keep_batch": 12}
    assert work_of("dpo", Card(), 9, **numbers) == Work(10, 16, 0, 16 * 17)
    assert work_of("sft", Card(), 9, **numbers, **held) == Work(10, 20, 12, 16 * 17, read=1)
    assert work_of("vce", Card(), 9, **numbers, keep_weight=0, anchor="safe").rows == 24
    assert [work_of("svare", Card(), 9, **numbers, mode=mode).rows for mode in ("paper", "released")] == [16, 8]
    first = work_of("sace", NEXT_SCALE, 9, **numbers, preserve_scales=(1,))
    assert first.rows == pytest.approx(8 * (1 + 5) / 139)
    rounds = work_of("safe_cb", Card(), 20, rounds=3, epochs=2, batch=8, keep_weight=1.0, probe=50)
    assert rounds == Work(3 * 2 * 3, 16, 8, drawn=2 * 20 * 2 + 50 * 4)


class BareParams(BaseModel):
    """Of a method that has no numbers."""


def test_a_method_that_declares_nothing_counts_as_one_pass_over_the_pairs() -> None:
    assert declared(object(), BareParams(), Card(), 7) == Work(7, 2)


NEXT_SCALE = Card("infinity:mini", "infinity", "1" * 64, tokens=139, scales=(1, 4, 9, 25, 100))


def written_map(folder: Path, **changes: object) -> Path:
    """As `safear-edit map` writes it, with more in it than a recipe reads."""
    about = {"model": "infinity:mini", "model_digest": "1" * 64, "concept": "Picasso", "kind": "scale", "locked_in": 1}
    folder.mkdir(exist_ok=True)
    (folder / "map.json").write_text(json.dumps({**about, "advice": "at scale 1", "groups": [], **changes}))
    return folder


def test_scales_follow_the_map(tmp_path: Path) -> None:
    spec, base = concept("picasso"), load_base_recipe("sace")
    plain = compile_recipe(spec, replace(NEXT_SCALE, ref="infinity:2b"), base, overrides=SMALL)
    assert plain.method.params["erase_scales"] == [0] and "not measured" in (plain.method.scales_because or "")
    mini = compile_recipe(spec, NEXT_SCALE, base, overrides=SMALL).method.params
    assert (mini["erase_scales"], mini["strength"], mini["keep_weight"]) == ([0], 4.0, 4.0)
    found = compile_recipe(spec, NEXT_SCALE, base, overrides=SMALL, located=read_map(written_map(tmp_path)))
    assert found.method.params["erase_scales"] == [0, 1] and found.method.params["preserve_scales"] == [2, 3, 4]
    assert found.method.scales_because == "measured, not at scale 0 alone, as the paper has it: at scale 1"
    last = compile_recipe(
        spec, NEXT_SCALE, base, overrides=SMALL, located=read_map(written_map(tmp_path, locked_in=4) / "map.json")
    )
    assert last.method.params["erase_scales"] == [0, 1, 2, 3, 4]
    assert last.method.params["preserve_scales"] == [0, 1, 2, 3, 4], "no scale after them is left to hold"
    save_recipe(found, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == found
    assert "scales_because" not in compile_recipe(spec, Card(), load_base_recipe("vce")).model_dump()["method"]


@pytest.mark.parametrize("changes", [{"concept": "Monet"}, {"model_digest": "2" * 64}, {"kind": "row"}])
def test_a_map_of_something_else_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    located = read_map(written_map(tmp_path, **changes))
    with pytest.raises(UsageError, match="a map of Picasso on infinity:mini"):
        compile_recipe(concept("picasso"), NEXT_SCALE, load_base_recipe("sace"), overrides=SMALL, located=located)


@pytest.mark.parametrize(
    ("method", "card", "wrong", "says"),
    [
        ("sace", NEXT_SCALE, "params.erase_scales=[5]", "scales 0 to 4 of this model, got 5"),
        ("ear", Card(), "params.window=101", "at most 100 in mode released, got 101"),
        ("ear", NEXT_SCALE, "params.window=4", "paper for a next-scale model"),
    ],
)
def test_what_a_model_lacks_is_said_before_anything_is_drawn(method: str, card: Card, wrong: str, says: str) -> None:
    released = ("params.mode=released",) if method == "ear" else ()
    with pytest.raises(UsageError, match=says):
        compile_recipe(concept("picasso"), card, load_base_recipe(method), overrides=(*SMALL, *released, wrong))


def test_a_map_is_for_methods_that_choose_scales(tmp_path: Path) -> None:
    located = read_map(written_map(tmp_path))
    with pytest.raises(UsageError, match="--map: expected a method that edits chosen scales"):
        compile_recipe(concept("picasso"), NEXT_SCALE, load_base_recipe("svare"), overrides=SMALL, located=located)
    with pytest.raises(SpecError, match="locked_in"):
        read_map(written_map(tmp_path, locked_in="first"))


def test_a_model_takes_its_own_numbers_and_later_patterns_win(draft: Spec) -> None:
    base = BaseRecipe.model_validate(
        {
            "method": "vce",
            "params": {"steps": 1000, "rank": 8},
            "construct": {"pairs": 24, "keep": 6},
            "models": {
                "llamagen": {"params": {"steps": 500}},
                "*:mini": {"params": {"steps": 120}, "construct": {"pairs": 12}},
                "janus:*": {"params": {"steps": 7}},
            },
        }
    )
    few = SMALL[2:]
    taken = {}
    for ref, family in (("llamagen:mini", "llamagen"), ("llamagen:xl-256", "llamagen"), ("infinity:2b", "infinity")):
        recipe = compile_recipe(draft, replace(Card(), ref=ref, family=family), base, overrides=few)
        taken[ref] = (recipe.method.params["steps"], recipe.method.params["rank"], len(recipe.construct.pairs))
    assert taken == {"llamagen:mini": (120, 8, 12), "llamagen:xl-256": (500, 8, 24), "infinity:2b": (1000, 8, 24)}


def test_what_a_model_takes_instead_is_checked_and_set_wins_over_it(draft: Spec) -> None:
    wrong = BaseRecipe.model_validate({"method": "vce", "models": {"*:mini": {"construct": {"pears": 3}}}})
    with pytest.raises(SpecError, match="pears"):
        compile_recipe(draft, Card(), wrong, overrides=SMALL)
    recipe = compile_recipe(draft, Card(), load_base_recipe("vce"), overrides=[*SMALL, "params.steps=3"])
    assert recipe.method.params["steps"] == 3
    published = replace(Card(), ref="llamagen:xl-256")
    assert compile_recipe(draft, published, load_base_recipe("vce"), overrides=SMALL).method.params["steps"] == 1000


# -- captions that a model cuts ---------------------------------------------------------------------------------------


def window(size: int) -> Callable[[Sequence[str]], list[tuple[int, int]]]:
    """A model that reads the first `size` words."""
    return lambda texts: [(len(text.split()), min(size, len(text.split()))) for text in texts]


def test_captions_that_the_model_cuts_are_not_evaluated(picasso: Recipe) -> None:
    spec, base = concept("picasso"), load_base_recipe("vce")
    longest = max(len(prompt.prompt.split()) for prompt in picasso.evaluate.prompts)
    whole = compile_recipe(spec, Card(), base, sampling=Numbers(), lengths=window(longest))
    assert whole.digest == picasso.digest and cut_lines(whole, window(longest)) == []
    found = compile_recipe(spec, Card(), base, sampling=Numbers(), lengths=window(longest - 1))
    texts = [prompt.prompt for prompt in found.evaluate.prompts]
    assert found.digest != picasso.digest and max(len(text.split()) for text in texts) < longest
    slices = {prompt.slice for prompt in picasso.evaluate.prompts if len(prompt.prompt.split()) == longest}
    assert found.evaluate.cut.keys() == slices and not {*chain(*found.evaluate.cut.values())} & {*texts}
    lines = [line for line in cut_lines(found, window(longest - 1)) if "aren't evaluated" in line]
    assert {line.partition(":")[0] for line in lines} == slices
    assert Recipe.model_validate_json(found.model_dump_json()).digest == found.digest


def test_captions_that_an_older_recipe_evaluates_all_the_same_are_named(picasso: Recipe) -> None:
    lines = cut_lines(picasso, window(5))
    assert lines[0].startswith("training: ") and all("images say nothing about the rest" in line for line in lines)
    assert {line.partition(":")[0] for line in lines[1:]} <= set(picasso.evaluate.n)


def test_cut_captions_that_ask_for_a_category_are_counted_and_not_shown(picasso: Recipe) -> None:
    cut = {"direct": ("a secret wording",), "objects": ("a photo of a plain dog",)}
    evaluation = picasso.evaluate.model_copy(update={"cut": cut})
    style = picasso.model_copy(update={"evaluate": evaluation})
    hidden = style.model_copy(update={"spec": picasso.spec.model_copy(update={"kind": "category"})})
    shown, told = cut_lines(style, window(5)), cut_lines(hidden, window(5))
    assert "direct: 1 captions are longer than the model reads and aren't evaluated: 'a secret wording'" in shown
    assert [line.split(":")[0] for line in told] == [line.split(":")[0] for line in shown]
    for line in told:
        asks = line.partition(":")[0] in ("training", "direct", "paraphrase", "template")
        assert line.endswith("'") != asks, line


def test_too_few_captions_that_are_read_whole(picasso: Recipe) -> None:
    with pytest.raises(SpecError, match=r"slice direct: expected 250 prompts .*, got \d+, and \d+ that the"):
        compile_recipe(concept("picasso"), Card(), load_base_recipe("vce"), lengths=window(3))
