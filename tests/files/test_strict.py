"""Strict YAML and JSON: what is refused, where the error points, and that plain data survives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from safear_edit.errors import SpecError, UsageError
from safear_edit.files.strict import MAX_YAML_BYTES, parse_json, parse_value, parse_yaml, read_json, read_yaml
from tests import ROOT


def test_scalars_follow_json_not_yaml_folklore() -> None:
    text = "[no, on, yes, 012, 1:30, 2026-01-01, 1_0, 1e-4, .5, -3, 1.5e3, ~, null, '', '5', true, e5, .]"
    expected = ["no", "on", "yes", "012", "1:30", "2026-01-01", "1_0", 1e-4, 0.5, -3, 1500.0, None, None, "", "5", True]
    assert parse_yaml(text, "f").data == [*expected, "e5", "."]
    assert isinstance(parse_value("1e-4", "--set"), float)


def test_where_names_file_line_and_field() -> None:
    document = parse_yaml("a:\n  b:\n    - x\n    - y\nc: 1\n", "spec.yaml")
    assert document.where(("a", "b", 1)) == "spec.yaml:4 a.b[1]"
    assert document.where(("a", "missing")) == "spec.yaml:1 a.missing"
    assert document.where(("c",)) == "spec.yaml:5 c"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: 2\na: 3", 3, "'a' on lines 1 and 3"),
        ("a: &x 1\nb: *x", 1, "anchor"),
        ("a: 1\nb: *x", 2, "alias"),
        ("a: 1\n<<: {b: 1}", 2, "merge key"),
        ("a: !!python/object/apply:os.system [x]", 1, "tag"),
        ("a: .nan", 1, ".nan"),
        ("a: -.Inf", 1, ".Inf"),
        ("a: 1e999", 1, "1e999"),
        ("5: 1", 1, "text key"),
        ("null: 1", 1, "text key"),
        ("? [a]\n: 1", 1, "text key"),
        ("a:\n\tb: 1", 2, "indent with spaces"),
        ("a: b: c", 1, "not allowed"),
        ('a: "\\ud800"', 1, "surrogate"),
        ("[" * 51 + "]" * 51, 1, "50 levels"),
        ("[" * 20_000, 1, "50 levels"),
    ],
)
def test_refused_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "f")
    assert str(caught.value).startswith(f"f:{line}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("---\na: 1\n---\nb: 2\n", "second one"),
        ("a: \x00", "control"),
        ("a" * (MAX_YAML_BYTES + 1), "at most"),
    ],
)
def test_refused_as_a_whole(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_yaml(text, "f")


def test_fifty_levels_are_allowed() -> None:
    assert parse_yaml("[" * 50 + "]" * 50, "f").data is not None


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing there"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match="a directory"):
        read_yaml(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(SpecError, match=r"latin.yaml:2: expected UTF-8 text, got byte 0xe9"):
        read_yaml(latin)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    with pytest.raises(SpecError, match="larger file"):
        read_yaml(large)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', "[NaN]", "[-Infinity]", "[1e999]", "[" * 100_000, "{", "9" * 5000]
)
def test_json_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_json(text, "f")


def test_json_half_a_character(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="surrogate"):
        parse_json('["\\ud800"]', "f")
    path = tmp_path / "good.json"
    path.write_text('{"a": ["\\ud83d\\ude00"]}')
    assert read_json(path).data == {"a": ["😀"]}


texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=20)
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.filter("<<".__ne__), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(plain)
def test_json_is_yaml(data: object) -> None:
    """Whatever JSON says in text, both readers give back as it was."""
    text = json.dumps(data, ensure_ascii=False)
    assert parse_yaml(text, "f").data == parse_json(text, "f").data == data


def test_a_colon_in_plain_text_says_to_quote_it() -> None:
    with pytest.raises(SpecError, match=r"x:2: .*; put text that has a colon and a space in it into quotes"):
        parse_yaml("schema_version: 1\ndescription: Note: asked for by legal\n", "x")


@pytest.mark.parametrize(
    "text", ["a: 'b'\nc: [1, {d: é}]\n", "a: |\n  two\n  lines\n", "a: *b\n", "a: 1\n a: 2\n", "{", "a: \ufeff"]
)
def test_libyaml_and_pyyaml_are_read_alike(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> object:
        try:
            return parse_yaml(text, "x")
        except SpecError as error:
            return str(error)

    with_libyaml = read()
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert read() == with_libyaml


def test_the_packages_own_yaml_is_read_alike_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [*ROOT.glob("concepts/**/*.yaml"), *ROOT.glob("recipes/*.yaml")]
    by_libyaml = [read_yaml(path) for path in paths]
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert len(paths) > 20 and [read_yaml(path) for path in paths] == by_libyaml
