"""extend: short specs become the full form; what is one's own wins, and the concept leaves what is preserved."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import load_base_recipe
from safear_edit.errors import SpecError
from safear_edit.files.records import parse
from safear_edit.files.strict import parse_yaml
from safear_edit.registry import builtin_folder, find_builtin
from safear_edit.spec.extend import full_form, set_names
from safear_edit.spec.spec import Spec, load_spec
from tests.compiler.test_compile import NEXT_SCALE, Card, Numbers

SHORT = """\
schema_version: 1
extends: gallery/style
name: hokusai
kind: style
description: Hokusai's woodblock manner, removed at the estate's request.
erase: {concept: Hokusai, aliases: [Hokusai, Katsushika Hokusai]}
paraphrases:
  train: [the painter of The Great Wave]
  held_out: [K. Hokusai, the ukiyo-e master]
preserve:
  add: {woodblock: {Hiroshige: "a print by Hiroshige"}}
judge: {label: style=hokusai}
governance: {responsible: image platform team, reviewer: content safety board}
"""


def loaded(text: str) -> Spec:
    return parse(Spec, full_form(parse_yaml(text, "short.yaml")))


def members(spec: Spec) -> dict[str, dict[str, str]]:
    return {group.name: group.members for group in spec.preserve}


def test_fifteen_lines_are_a_whole_spec() -> None:
    spec = loaded(SHORT)
    groups = members(spec)
    assert list(groups) == ["other-styles", "objects", "plain", "woodblock"]
    assert "style=hokusai" not in groups["other-styles"].values() and "Van Gogh" in groups["other-styles"]
    assert groups["woodblock"] == {"Hiroshige": "a print by Hiroshige"}
    assert spec.preserve[3].templates == spec.preserve[0].templates and spec.preserve[3].role == "neighbour"
    assert (spec.judge.use, spec.judge.label, spec.judge.threshold) == ("gallery", "style=hokusai", 0.5)
    assert len(spec.erase.templates) == 8 and spec.governance.reviewer == "content safety board"


def test_one_that_extends_nothing_stays_as_it_is() -> None:
    document = parse_yaml("schema_version: 1\nname: x\npreserve: [{name: a}]\n", "full.yaml")
    assert full_form(document) is document


def test_what_a_spec_states_replaces_the_set() -> None:
    own = "  templates: ['{subject}, {alias}']\n  subjects: [a boat]\n"
    spec = loaded(SHORT.replace("erase: {concept: Hokusai, aliases: [Hokusai, Katsushika Hokusai]}\n",
                                f"erase:\n  concept: Hokusai\n  aliases: [Hokusai]\n{own}"))  # fmt: skip
    assert spec.erase.templates == ("{subject}, {alias}",) and spec.erase.subjects == ("a boat",)
    small = loaded(SHORT + "evaluate: {n: {template: 120}}\ngates: {erasure_floor: 0.85}\n")
    assert small.evaluate.n.model_dump() == {"direct": 250, "paraphrase": 250, "template": 120}
    assert small.gates.erasure_floor == 0.85 and small.gates.erasure_direct == 0.97


def test_changes_to_what_stays() -> None:
    changes = "preserve: {add: {objects: {a lighthouse: object=tower}}, drop: [plain, Monet, style=warhol], n: 120}\n"
    head, _, tail = SHORT.partition("preserve:\n")
    spec = loaded(head + changes + tail.split("\n", 1)[1])
    groups = members(spec)
    assert list(groups) == ["other-styles", "objects"] and groups["objects"]["a lighthouse"] == "object=tower"
    assert (
        not {"Monet", "Warhol", "Andy Warhol"} & set(groups["other-styles"])
        and "Claude Monet" in groups["other-styles"]
    )
    assert {group.n for group in spec.preserve} == {120}
    whole = "  add: {boats: {members: {a boat: boat}, role: object, templates: ['{member}'], subjects: [], n: 7}}\n"
    added = loaded(SHORT.replace(SHORT[SHORT.index("  add:") : SHORT.index("judge:")], whole + "  n: {plain: 9}\n"))
    assert (added.preserve[3].role, added.preserve[3].n, added.preserve[2].n) == ("object", 7, 9)


def test_more_images_of_what_is_drawn_unreliably() -> None:
    whole = loaded(SHORT).preserve[1]
    assert whole.images_per_prompt == {"object=sailboat": 3}
    more = loaded(SHORT.replace("  add:", "  images_per_prompt: {object=cat: 2, style=monet: 2}\n  add:"))
    assert [group.images_per_prompt for group in more.preserve[:2]] == [
        {"style=monet": 2},
        {"object=sailboat": 3, "object=cat": 2},
    ]
    for word in ("drop: [object=sailboat]", "drop: [a sailboat, a sailing boat, a yacht]"):
        assert loaded(SHORT.replace("  add:", f"  {word}\n  add:")).preserve[1].images_per_prompt == {}
    own = SHORT[: SHORT.index("preserve:")] + SHORT[SHORT.index("judge:") :]
    own += "preserve: [{extends: gallery/preserve/objects, members: {a dog: object=dog}}]\n"
    assert loaded(own).preserve[0].images_per_prompt == {}, "what the set says of members that it alone has"
    boat = SHORT.replace("style=hokusai", "object=sailboat")
    assert loaded(boat).preserve[1].images_per_prompt == {}, "the concept's own label leaves by itself"


def test_a_whole_group_under_the_name_of_the_sets_keeps_the_sets_members() -> None:
    before = loaded(SHORT).preserve[0]
    whole = "  add: {other-styles: {members: {a friend: style=friend}, n: 7}}\n"
    after = loaded(SHORT.replace(SHORT[SHORT.index("  add:") : SHORT.index("judge:")], whole)).preserve[0]
    assert after == before.model_copy(update={"members": {**before.members, "a friend": "style=friend"}, "n": 7})


def test_the_specs_own_anchor_counts_in_either_form() -> None:
    by_word = loaded(SHORT + "anchor: {alias: an unknown painter}\n")
    assert by_word.anchor.templates[0] == "{subject} in the style of an unknown painter"
    hazard = find_builtin("concepts", "hazard").read_text()
    by_template = loaded(hazard + "anchor: {templates: ['{subject} on a plate']}\n")
    assert by_template.anchor.templates == ("{subject} on a plate",)
    with pytest.raises(SpecError, match=r"anchor\.templates: expected alias or templates, got both"):
        loaded(SHORT + "anchor: {alias: a friend, templates: ['{subject}']}\n")


def test_groups_of_ones_own_may_start_from_shared_ones() -> None:
    head, _, tail = SHORT.partition("preserve:\n")
    listed = "preserve: [{extends: gallery/preserve/styles, name: painters, role: neighbour, n: 60}]\n"
    (group,) = loaded(head + listed + tail.split("\n", 1)[1]).preserve
    assert (group.name, group.n) == ("painters", 60) and "Hokusai" not in group.members


def test_an_anchor_may_be_one_word_in_every_template() -> None:
    dog = load_spec(find_builtin("concepts", "dog"))
    assert dog.anchor.templates[0] == "a cat {subject}" and len(dog.anchor.templates) == len(dog.erase.templates)
    assert not any("dog" in subject for group in dog.preserve for subject in group.subjects)
    assert load_spec(find_builtin("concepts", "hazard")).anchor.templates[:2] == ("{subject}", "a photo of {subject}")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("gallery/style", "gallery/stile", r"short.yaml:2 extends: .*did you mean 'gallery/style'"),
        ("gallery/style", "../picasso", r"short.yaml:2 extends: expected one of"),
        ("kind: style", "kind: object", r"short.yaml:4 kind: expected style, as gallery/style has it"),
        ("  add: {woodblock:", "  drop: [Monets]\n  add: {woodblock:", r"short.yaml:11 .*did you mean 'Monet'"),
        ("  add: {woodblock:", "  n: {plane: 3}\n  add: {woodblock:", r"short.yaml:11 .*did you mean 'plain'"),
        ("  add: {wood", "  images_per_prompt: {object=cow: 3}\n  add: {wood", r"short.yaml:11 .* a label of the set"),
        ("  add: {woodblock:", "  ad: {woodblock:", r"short.yaml:11 .*did you mean 'add'"),
        ('Hiroshige: "a print', 'Hokusai: "a print', r"short.yaml:11 preserve\[3\]: .* names 'hokusai'"),
        ('"a print by Hiroshige"', "style=hokusai", r"short.yaml:11 preserve\[3\].members.Hiroshige: .*preserved"),
        ("judge: {label", "jugde: {label", r"short.yaml:12 jugde: expected one of .*did you mean 'judge'"),
        (
            '  add: {woodblock: {Hiroshige: "a print by Hiroshige"}}',
            "  add: [a, b]",
            r"short.yaml:11 preserve.add: expected keys and values",
        ),
        ("[the painter of The Great Wave]", "['a {subject}']", r"short.yaml:8 .*\[0\]: expected a name without braces"),
        ("[Hokusai, ", "['{subject}', ", r"short.yaml:6 erase.aliases\[0\]: expected a name without braces"),
        ("{Hiroshige: ", "{'{subject}': ", r"members.*: expected a name without braces, got '{subject}'"),
        ("{concept: Hokusai,", "{concept: Hokusai, subjects: ['a {dog}'],", r"subjects\[0\]: expected a name with"),
        (
            'woodblock: {Hiroshige: "a print by Hiroshige"}',
            "woodblock: {members: {a: b}, templates: ['{member}']}",
            r"or say `subjects: \[\]`",
        ),
        ("aliases: [Hokusai, Katsushika Hokusai]", "aliases: Hokusai", r"aliases: expected a list, got 'Hokusai'; wr"),
    ],
)  # fmt: skip
def test_mistakes_are_told_where_they_stand(old: str, new: str, says: str) -> None:
    assert old in SHORT
    with pytest.raises(SpecError, match=says):
        loaded(SHORT.replace(old, new))


def test_every_problem_of_a_file_is_told_at_once() -> None:
    wrong = SHORT.replace("held_out: [K. Hokusai,", "held_out: [Hokusai, K. Hokusai,")
    wrong += "anchor: {templates: ['{subject} by Hokusai']}\n"
    with pytest.raises(SpecError, match=r"\(1 more\)") as caught:
        loaded(wrong)
    lines = [str(caught.value), *map(str, caught.value.others)]
    assert len(lines) == 2 and all(line.count("\n") == 0 for line in lines)
    assert {line.split()[1] for line in lines} == {"anchor.templates[0]:", "paraphrases.held_out[0]:"}
    with pytest.raises(SpecError) as caught:
        loaded(SHORT.replace("name: hokusai", "name: 5").replace("name: 5\n", "name: 5\nnme: x\n"))
    assert len(caught.value.others) == 1


def test_another_judge_takes_nothing_of_the_sets() -> None:
    spec = loaded(SHORT.replace("judge: {label: style=hokusai}", "judge: {use: clip, label: a print | a photo}"))
    assert spec.judge.threshold is None


def test_a_measured_judge_brings_its_own_thresholds() -> None:
    numbers = "present_from: 0.6, absent_below: 0.4, n_pos: 20, true_pos: 19, n_neg: 20, true_neg: 20, data: mine"
    card = f"card: {{detector: {'a' * 64}, {numbers}}}"
    spec = loaded(SHORT.replace("{label: style=hokusai}", f"{{label: style=hokusai, {card}}}"))
    assert spec.judge.threshold is None and spec.judge.card and spec.judge.card.present_from == 0.6
    with pytest.raises(SpecError, match=r"the card's thresholds, got 0\.7 beside them"):
        loaded(SHORT.replace("{label: style=hokusai}", f"{{label: style=hokusai, threshold: 0.7, {card}}}"))


def test_sets_are_no_concepts_and_all_can_be_read() -> None:
    assert set_names() == [
        "gallery/category", "gallery/object", "gallery/preserve/objects", "gallery/preserve/plain",
        "gallery/preserve/styles", "gallery/style", "real/category", "real/logo", "real/object",
        "real/preserve/logos", "real/preserve/objects", "real/preserve/painters", "real/preserve/people",
        "real/preserve/plain", "real/style",
    ]  # fmt: skip
    assert all((builtin_folder("concepts") / "sets" / f"{name}.yaml").is_file() for name in set_names())


@pytest.mark.usefixtures("beside_own_prompts")
@pytest.mark.parametrize("path", sorted(builtin_folder("concepts").glob("*.yaml")), ids=lambda path: path.stem)
def test_built_in_concepts_are_short_and_their_full_form_is_the_same(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 18
    spec = load_spec(path)
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    assert parse(Spec, parse_yaml(text, "resolved")) == spec


DIGESTS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "recipe_digests.json").read_text())
CARDS = {"llamagen": Card(), "infinity": NEXT_SCALE, "janus": replace(Card(), ref="janus:mini", family="janus")}


@pytest.mark.parametrize("name", DIGESTS)
@pytest.mark.parametrize("family", CARDS)
def test_recipes_are_those_of_the_long_specs(name: str, family: str) -> None:
    """Recorded from the specs of 152 to 175 lines; left out are the predicted cost, which may be calibrated anew, and
    the method's numbers, which no spec says. Those specs had 400 prompts of objects, 33 of each, one image of each, and
    100 in held-out forms: too few to decide."""
    spec = load_spec(find_builtin("concepts", name))
    few = {"n": 400, "images_per_prompt": {}}
    groups = [one.model_copy(update=few) if one.name.endswith("objects") else one for one in spec.preserve]
    sizes = spec.evaluate.model_copy(update={"n": spec.evaluate.n.model_copy(update={"template": 100})})
    spec = spec.model_copy(update={"preserve": tuple(groups), "evaluate": sizes})
    recipe = compile_recipe(spec, CARDS[family], load_base_recipe("vce"), sampling=Numbers())
    assert digest_of(recipe.model_dump(mode="json")) == DIGESTS[name][family]


def digest_of(recipe: dict[str, Any]) -> str:
    told = {key: value for key, value in recipe.items() if key not in ("predicted", "method")}
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
