"""`ls`, `params` and `completion` say what the recipes, the registry and click know."""

from __future__ import annotations

import json

import pytest

from safear_edit.cli import main
from safear_edit.cli.listing import numbers, type_words
from safear_edit.compiler.sources import comments
from safear_edit.errors import UsageError


def test_ls_informs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ls", "methods", "--json"]) == 0
    methods = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert methods["sace"]["needs"] == "scales" and methods["safe_cb"]["needs"] == "codebook"
    assert methods["vce"]["needs"] == "any family" and methods["svare"]["needs"] == "image tokens"
    assert (methods["uce"]["needs"], methods["uce"]["edits"]) == ("denoising", "keys and values of captions")
    assert methods["vce"]["paper"] == "arXiv:2509.16986" and methods["vce"]["edits"].endswith("linear layers: all")
    assert methods["safe_cb"]["edits"] == "the table of image tokens"
    assert (
        methods["sace"]["search, minutes"] == "infinity:mini 3.4"
        and methods["dpo"]["search, minutes"] == "not measured"
    )
    assert main.run(["ls", "models", "--json"]) == 0
    models = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (models["llamagen:mini"]["here"], models["llamagen:xl-256"]["here"]) == ("yes", "pull llamagen:xl-256")
    assert models["llamagen:xl-256"]["licence"] == "MIT" and models["llamagen:xl-256"]["weights, GB"].startswith("3.4")


def test_what_set_takes_and_where_each_number_is_from() -> None:
    found = {one.key: one for one in numbers("sace", "infinity")}
    assert found["params.steps"].default == "100" and found["params.steps"].source.startswith("*:mini: ours")
    assert found["params.entropy_max"].default == "0.4" and found["params.entropy_max"].source == "paper"
    assert found["params.target"].type == "one of frozen, student"
    assert found["params.strength"].type == "number, above 0 or search"
    assert found["params.accumulate"].source == "the method's default"
    assert found["construct.keep"].default == "192"
    published = {one.key: one for one in numbers("sace", "infinity:2b")}
    assert published["params.steps"].default == "400" and published["params.steps"].source == "not in the paper"
    with pytest.raises(UsageError, match="did you mean 'sace'"):
        numbers("sacee", "infinity")


def test_types_in_words() -> None:
    assert type_words({"type": "integer", "minimum": 1}) == "whole number, at least 1"
    assert type_words({"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}) == "text or null"
    assert type_words({"type": "array", "items": {"type": "integer"}}) == "list of whole numbers"


def test_comments_go_on_in_lines_of_their_own() -> None:
    lines = ["params: # all", "  a: 1 # one", "    # more", "  b: 2", "  # not beside a key", "models:"]
    text = "\n".join([*lines, '  "*:mini": # ours', "    x: 1 # in"])
    assert comments(text) == {"params.a": "one more", "models.*:mini": "ours"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_the_shells_own(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == 0
    assert "_SAFEAR_EDIT_COMPLETE" in capsys.readouterr().out
