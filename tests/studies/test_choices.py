"""Choices are made on training prompts alone and once, and a row tells both rates. A coin judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from safear_edit import registry
from safear_edit.families.llamagen import LlamaGen
from safear_edit.pipeline.compare import variant
from safear_edit.pipeline.order import Order
from safear_edit.pipeline.state import load_state
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import normalise
from safear_edit.spec.spec import load_spec
from safear_edit.studies import choices
from safear_edit.studies.__main__ import main as studies
from safear_edit.studies.tables import Table
from tests import coin

SMALL = "construct.pairs=60,construct.keep=4,params.batch=2,params.keep_batch=2,params.rank=2,params.steps=1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_third_party", coin.third_party)
    monkeypatch.chdir(tmp_path)
    coin.make_world(tmp_path, "picasso")
    return tmp_path


def test_choices_see_no_evaluation_prompt_and_are_made_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    condition = LlamaGen.condition

    def spying(model: LlamaGen, prompts: Sequence[str]) -> Any:
        read.update(map(normalise, prompts))
        return condition(model, prompts)

    monkeypatch.setattr(LlamaGen, "condition", spying)
    words = ["picasso.yaml", "--model", "./base", "--prompts", "5", "--folder", "out", "--methods", f"sft:{SMALL}"]
    assert choices.main(words) == 0
    line = capsys.readouterr().out
    Path("rows.jsonl").write_text(line)
    (recorded,), row = Table.read(Path("rows.jsonl")).rows, json.loads(line)
    options = f"--model ./base --methods {words[-1]} --folder out --prompts 5"
    assert recorded.command == f"python -m safear_edit.studies choices picasso.yaml {options}"
    spec = load_spec(Path("picasso.yaml"))
    drawn = pools(spec)
    evaluated = [*drawn.direct, *drawn.paraphrase, *drawn.template, *(p for g in drawn.preserve.values() for p in g)]
    assert read and not read & {normalise(prompt.text) for prompt in evaluated}

    for name in (choices.NAMED, choices.OTHERS):
        assert 0 < row[name]["n"] <= 5 and 0 <= row[name]["k"] <= row[name]["n"]
    assert {"other-styles", "objects", "CIR", "KL of what stays", "worst member"} <= row.keys()
    pairs = [json.loads(line)["unsafe"] for path in Path("out/pairs").rglob("pairs.jsonl") for line in path.open()]
    left_out = spec.erase.aliases[-choices.LEFT_OUT :]
    assert pairs and not [text for text in pairs for name in left_out if name in text]

    read.clear()
    assert choices.main(words) == 0 and json.loads(capsys.readouterr().out) == row
    assert not read, "a finished choice is read, not made again"


def test_a_built_in_object_without_two_of_its_names_compiles() -> None:
    """Its held-out forms are then too few for the evaluation, which isn't drawn; what is trained on is the same."""
    state, one = load_state("llamagen", "cpu"), variant("vce")
    recipe, left_out = choices.compiled(state.model, state.ref, Order("dog", "llamagen"), one)
    assert left_out and not {normalise(p.text) for p in left_out} & {*map(normalise, recipe.training_prompts)}
    known = [
        choices.compiled(state.model, state.ref, order, one)[0]
        for order in (Order("picasso", "llamagen"), Order("picasso", "llamagen", overrides=["evaluate.n.template=150"]))
    ]
    assert len({recipe.digest for recipe in known}) == 2 and known[0].construct == known[1].construct


def test_a_spec_with_few_names_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = yaml.safe_load(Path("picasso.yaml").read_text())
    data["erase"]["aliases"] = data["erase"]["aliases"][: choices.LEFT_OUT]
    Path("few.yaml").write_text(yaml.safe_dump(data))
    assert studies(["choices", "few.yaml", "--model", "./base", "--folder", "out", "--methods", "sft"]) == 2
    err = capsys.readouterr().err
    assert "add aliases" in err and len(err.splitlines()) == 1
