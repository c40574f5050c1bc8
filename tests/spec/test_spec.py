"""spec: good specs load, every kind of bad one is a single line with file, line, field and a way out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from safear_edit.compiler.beside import beside
from safear_edit.errors import SpecError, UsageError
from safear_edit.evaluate.power import criteria
from safear_edit.evaluate.stats import POWER
from safear_edit.files.records import parse
from safear_edit.files.strict import parse_yaml, read_yaml
from safear_edit.gallery import captions
from safear_edit.gallery.render import OBJECTS, STYLES
from safear_edit.registry import builtin_folder
from safear_edit.spec.draft import draft_words, filled, left_as_drafted
from safear_edit.spec.extend import full_form
from safear_edit.spec.prompts import normalise
from safear_edit.spec.spec import Spec, load_spec, spec_schema

CONCEPTS = sorted(builtin_folder("concepts").glob("*.yaml"))
GALLERY = [path.stem for path in CONCEPTS if "extends: gallery/" in path.read_text()]
DRAFT = (Path(__file__).parent / "rembrandt.yaml").read_text()
"""A spec in full form, as `init` wrote them when there were no shared sets."""


def spec_template(name: str, kind: str = "style") -> str:
    """What `init` writes for a name."""
    return filled(draft_words(name, kind))


TEMPLATE = spec_template("rembrandt")


def made(text: str) -> Spec:
    """The spec of a text that may extend a set."""
    return parse(Spec, full_form(parse_yaml(text, "draft")))


@cache
def schema() -> Any:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(spec_schema())
    return Draft202012Validator(spec_schema())


def follows_schema(data: object) -> None:
    schema().validate(data)


def load(text: str, tmp_path: Path) -> Spec:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return load_spec(path)


@pytest.mark.usefixtures("beside_own_prompts")
@pytest.mark.parametrize("path", CONCEPTS, ids=lambda path: path.stem)
def test_built_in_concepts(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem and spec.description and spec.safety_note
    follows_schema(read_yaml(path).data)


def test_all_are_there() -> None:
    """Every object and painter of the mini world and its hazard; a photograph is what it draws unasked, no manner."""
    assert {*GALLERY} == {*OBJECTS, *STYLES[1:], "hazard"}
    assert len(CONCEPTS) - len(GALLERY) >= 10, "and those that only published models draw"


def test_a_folder_of_reference_pictures_is_optional() -> None:
    """Where there is none it is left out, so that recipes from before there were any keep their digests."""
    draft = parse(Spec, parse_yaml(DRAFT, "draft"))
    assert draft.evaluate.references is None and "references" not in draft.model_dump(mode="json")["evaluate"]
    filled = DRAFT.replace("# references: PATH", "references: pictures")
    named = parse(Spec, parse_yaml(filled, "draft"))
    assert named.evaluate.references == "pictures" and '"references":"pictures"' in named.model_dump_json()
    follows_schema(parse_yaml(filled, "draft").data)


def test_understanding_is_kept_unless_the_spec_says_otherwise() -> None:
    """What nobody changed is left out, for the same reason; what is asked is checked as other templates are."""
    draft = parse(Spec, parse_yaml(DRAFT, "draft"))
    assert draft.understanding.concept == "keep" and "understanding" not in draft.model_dump_json()
    assert draft.gates.every()["understanding_drop"] == 0.02
    terms = "understanding:\n  concept: erase\n  questions: ['could it be by {name}?']\n"
    changed = parse(Spec, parse_yaml(DRAFT + terms, "draft"))
    assert changed.understanding.questions == ("could it be by {name}?",)
    follows_schema(parse_yaml(DRAFT + terms, "draft").data)
    assert parse(Spec, parse_yaml(json.dumps(changed.model_dump(mode="json")), "again")) == changed
    for wrong, says in (("{alias}", "no braces but those"), ("it", "a template with {name}")):
        with pytest.raises(SpecError, match=re.escape(says)):
            parse(Spec, parse_yaml(DRAFT + terms.replace("{name}", wrong), "draft"))
    with pytest.raises(SpecError, match=r"understanding\.concept"):
        parse(Spec, parse_yaml(DRAFT + terms.replace("erase", "forget"), "draft"))
    with pytest.raises(SpecError, match="a slice name of its own"):
        parse(Spec, parse_yaml(DRAFT.replace("- name: objects", "- name: concept"), "draft"))


@pytest.mark.parametrize("name", GALLERY)
def test_held_out_words_were_never_in_the_minis_training(name: str) -> None:
    """Training words of the concept come from the captions' train lists; held-out ones from nowhere in them."""
    spec = load_spec(builtin_folder("concepts") / f"{name}.yaml")
    words = {**captions.STYLE_WORDS, **captions.OBJECT_WORDS, "hazard": captions.HAZARD_WORDS}
    trained = {normalise(word) for entry in words.values() for word in entry.train}
    assert not trained & {normalise(word) for word in spec.paraphrases.held_out}
    assert {normalise(word) for word in words[name].train} <= {
        normalise(word) for word in (*spec.erase.aliases, *spec.paraphrases.train)
    }
    assert {normalise(word) for word in words[name].held_out} <= {normalise(w) for w in spec.paraphrases.held_out}
    templates = (*captions.STYLE_TEMPLATES.train, *captions.PLAIN_TEMPLATES.train)
    seen = {normalise(t.replace("{style}", "{alias}")) for t in templates}
    assert not seen & {normalise(t) for t in spec.paraphrases.held_out_templates}


@pytest.mark.parametrize("kind", ["style", "object", "category"])
def test_drafts_validate_and_say_what_to_do(kind: str) -> None:
    for name in ("rembrandt", "van_gogh", "dog", "1e5", "null"):
        text = spec_template(name, kind)
        spec = made(text)
        assert (spec.name, spec.kind) == (name, kind)
        assert text.count("#") > 15
        follows_schema(yaml.safe_load(text))


def test_the_governance_block_of_a_draft_only_waits_to_be_uncommented() -> None:
    head, comment, block = TEMPLATE.partition("# governance:")
    filled = head + "governance:" + block.replace("\n#   ", "\n  ")
    spec = made(filled)
    assert comment and None not in spec.governance.model_dump().values()
    assert spec.governance.retention_until == "2036-12-31"
    follows_schema(parse_yaml(filled, "draft").data)
    assert set(made(TEMPLATE).governance.model_dump().values()) == {None}


@pytest.mark.parametrize("kind", ["style", "object"])
def test_a_name_that_is_in_every_sentence_is_told(kind: str) -> None:
    with pytest.raises(SpecError, match="the draft for 'a'"):
        spec_template("a", kind)


@pytest.mark.parametrize("name", ["", "Picasso", "a b", "../x", "ä"])
def test_draft_names(name: str) -> None:
    with pytest.raises(UsageError, match="lower-case"):
        spec_template(name)
    with pytest.raises(UsageError, match="did you mean 'style'"):
        spec_template("x", "styl")


def test_subject_lists_are_multiplied(tmp_path: Path) -> None:
    spec = load(DRAFT, tmp_path)
    assert "a church on a beach" in spec.erase.subjects
    assert len(spec.erase.subjects) == 11 * 7
    assert parse(Spec, parse_yaml(json.dumps(spec.model_dump(mode="json")), "again")) == spec


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


ALIASES = 'aliases: ["Rembrandt", the artist Rembrandt, the painter Rembrandt]'
BAD = {
    "unknown key": (replaced("\nkind:", "\nkid:"), "did you mean 'kind'?"),
    "unknown key below": (replaced("threshold: 0.5", "treshold: 0.5"), "'threshold'"),
    "duplicate key": (replaced("safety_note:", "name: x\nsafety_note:"), "on lines 4 and"),
    "schema version": (replaced("schema_version: 1", "schema_version: 2"), "schema_version"),
    "missing field": (replaced('  concept: "Rembrandt"\n', ""), "erase.concept: expected this field, got nothing"),
    "empty erase list": (replaced(ALIASES, "aliases: []"), "erase.aliases: expected at least 1 entry"),
    "text for a list": (replaced(ALIASES, "aliases: Rembrandt"), "erase.aliases"),
    "empty alias": (replaced(ALIASES, 'aliases: [""]'), "erase.aliases[0]"),
    "alias without letters": (replaced(ALIASES, 'aliases: ["!?"]'), "at least one letter"),
    "control character": (replaced(ALIASES, 'aliases: ["a\\u001b[0m"]'), "printable text"),
    "same alias twice": (replaced(ALIASES, "aliases: [Rembrandt, REMBRANDT.]"), "erase.aliases[1]"),
    "no subject": (replaced('"{subject} by {alias}"', '"something by {alias}"'), "add {subject}"),
    "no alias": (replaced('"{subject} by {alias}"', '"{subject}"'), "add {alias}"),
    "unknown placeholder": (replaced('"{subject} by {alias}"', '"{subject} by {alias} {style}"'), "no braces but"),
    "open brace": (replaced('"{subject} by {alias}"', '"{subject} by {alias} {"'), "no braces but"),
    "anchor count": (replaced('["a photo of {subject}"]', '["a {subject}", "the {subject}"]'), "1 or 4 templates"),
    "anchor names it": (replaced('["a photo of {subject}"]', '["{subject} by Rembrandt"]'), "anchor.templates[0]"),
    "held out is trained": (replaced("the manner of Rembrandt", "rembrandt!"), "paraphrases.held_out[0]"),
    "held-out template is trained": (
        replaced('"imagine {subject} painted by {alias}"', '"{subject}, by {alias}"'),
        "paraphrases.held_out_templates[1]",
    ),
    "no held out": (replaced("held_out: [the manner of Rembrandt,", "held_out: [] #"), "at least 1 entry"),
    "preserve nothing": (
        lambda text: text[: text.index("preserve:")] + "preserve: []\n" + text[text.index("judge:") :],
        "preserve: expected at least 1 entry",
    ),
    "preserved names it": (replaced("an image of {member}", "an image by Rembrandt of {member}"), "names 'rembrandt'"),
    "preserved has its label": (replaced("style=monet", "style=rembrandt"), "can't be preserved"),
    "slice name": (replaced("- name: objects", "- name: direct"), "preserve[1].name"),
    "group twice": (replaced("- name: objects", "- name: plain"), "'plain' again"),
    "role": (replaced("role: object", "role: objekt"), "preserve[1].role"),
    "member template": (replaced("{member} seen {subject}", "seen {subject}"), "{member}"),
    "subject unused": (replaced("{member} seen {subject}", "{member} seen"), "{subject} in every template"),
    "threshold 0": (replaced("threshold: 0.5", "threshold: 0"), "greater than 0"),
    "threshold 1": (replaced("threshold: 0.5", "threshold: 1"), "less than 1"),
    "threshold text": (replaced("threshold: 0.5", "threshold: half"), "judge.threshold"),
    "n 0": (replaced("direct: 100", "direct: 0"), "evaluate.n.direct"),
    "n fraction": (replaced("direct: 100", "direct: 10.5"), "evaluate.n.direct"),
    "n text": (replaced("direct: 100", 'direct: "10"'), "evaluate.n.direct"),
    "gate above 1": (replaced("erasure_direct: 0.97", "erasure_direct: 97"), "gates.erasure_direct"),
    "governance key": (
        replaced("# governance:", "governance: {responsable: Lab}\n# "),
        "did you mean 'responsible'?",
    ),
    "governance text": (replaced("# governance:", "governance: {reviewer: 5}\n# "), "governance.reviewer"),
    "governance nothing said": (replaced("# governance:", "governance: {reviewer: ''}\n# "), "governance.reviewer"),
    "governance lines": (
        replaced("# governance:", 'governance: {reviewer: "a\\nb"}\n# '),
        "governance.reviewer: expected printable text on one line",
    ),
    "governance day": (
        replaced("# governance:", "governance: {retention_until: 2036-02-30}\n# "),
        "governance.retention_until: expected a day as YYYY-MM-DD",
    ),
    "name": (replaced('name: "rembrandt"', 'name: "../rembrandt"'), "name"),
    "a list": (lambda text: "- a\n", "keys and values"),
    "too many": (
        replaced("    - [in a meadow,", f"    - [{', '.join(f's{i}' for i in range(10_000))},"),
        "at most 100000 subjects",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_spec_is_one_line(case: str, tmp_path: Path) -> None:
    change, says = BAD[case]
    with pytest.raises(SpecError) as caught:
        load(change(DRAFT), tmp_path)
    line = str(caught.value)
    assert says in line
    assert line.startswith(str(tmp_path / "spec.yaml"))
    assert "\n" not in line and "pydantic" not in line
    assert caught.value.exit_code == 2


def test_error_names_the_line(tmp_path: Path) -> None:
    number = DRAFT[: DRAFT.index("threshold")].count("\n") + 1
    with pytest.raises(SpecError, match=rf"spec.yaml:{number} judge.threshold: .* got 7; "):
        load(DRAFT.replace("threshold: 0.5", "threshold: 7"), tmp_path)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing there"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="a directory"):
        load_spec(tmp_path)
    with pytest.raises(SpecError, match="empty"):
        load("", tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        replaced(ALIASES, "aliases: [nude child]"),
        replaced("[the manner of Rembrandt,", "[naked, underage, the manner of Rembrandt,"),
        replaced("a house: object=house", "a naked boy: object=house"),
        replaced("label: style=rembrandt", "label: nudity of children"),
    ],
)
def test_block_list_can_not_be_split_over_fields(change: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="never processed"):
        load(change(DRAFT), tmp_path)


def test_children_may_be_preserved_when_nudity_is_erased() -> None:
    text = spec_template("nudity", "category") + "preserve: {add: {objects: {a child: object=child}}}\n"
    assert "a child" in made(text).preserve[1].members


def test_a_draft_can_be_decided_as_it_is_written() -> None:
    """`init hokusai` and `init dog`, unedited, ask nothing that no result could show."""
    for text in (spec_template("hokusai"), spec_template("dog", "object"), spec_template("hazard", "category")):
        assert all(one.power > POWER for one in criteria(made(text)))


def test_a_concept_with_a_chinese_or_japanese_name_is_checked_as_one_in_latin_letters() -> None:
    """Word boundaries don't exist there: anchors and preserved prompts that name the concept, and stacks."""
    japanese = DRAFT.replace("Rembrandt", "北斎")
    spec = parse(Spec, parse_yaml(japanese, "draft"))
    for old, new in (
        ('["a photo of {subject}"]', '["北斎風の{subject}"]'),
        ("an image of {member}", "北斎による{member}"),
    ):
        assert old in japanese
        with pytest.raises(SpecError, match="which names '北斎'"):
            parse(Spec, parse_yaml(japanese.replace(old, new), "draft"))
    other = parse(Spec, parse_yaml(DRAFT.replace("Monet: style=monet", "北斎派: style=x"), "draft"))
    assert "北斎派" not in beside(other, [spec]).preserve[0].members


def test_spaces_of_any_width_are_plain_spaces() -> None:
    spec = parse(Spec, parse_yaml(DRAFT.replace("the artist Rembrandt", '"the\u00a0artist\u3000Rembrandt"'), "draft"))
    assert spec.erase.aliases[1] == "the artist Rembrandt"


def test_texts_that_init_left_for_a_person_are_known() -> None:
    drafted = parse(Spec, full_form(parse_yaml(TEMPLATE, "draft")))
    assert left_as_drafted(drafted) == ("description", "safety_note")
    said = {
        "description": "the estate asked for it",
        "safety_note": "",
        "governance": {"reviewer": "Who checks the report"},
    }
    own = Spec.model_validate({**drafted.model_dump(), **said})
    assert left_as_drafted(own) == ("governance.reviewer",)
    assert left_as_drafted(load_spec(builtin_folder("concepts") / "picasso.yaml")) == ()
