"""An edit at several strengths: on a pico model in parts, and once end to end on the mini."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from safear_edit import registry
from safear_edit.attacks.base import Target
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import load_base_recipe, save_recipe
from safear_edit.errors import UsageError
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.load import load_model
from safear_edit.judges.base import Judge, Judgement
from safear_edit.spec.spec import load_spec
from safear_edit.studies import strength_sweep
from safear_edit.studies.__main__ import main as studies
from safear_edit.studies.strength_sweep import Case, Settings
from tests.evaluate.test_likelihood import SUBJECTS, drawn_pack, made_edit

SMALL = Settings(prompts=4, vectors=2, steps=3, batch=4)


class Bright(Judge):
    """Sees what it looks for in every image whose upper half is brighter than its lower one."""

    id, digest, threshold = "bright@test", "b" * 64, 0.5

    def look(self, images: torch.Tensor) -> list[Judgement]:
        upper, lower = (half.float().mean((1, 2, 3)) for half in images.chunk(2, 2))
        return [Judgement(bool(found), float(found), "") for found in upper > lower]


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico()


@pytest.fixture(scope="module")
def case(model: LlamaGen) -> Case:
    """The attacker's images are the model's own for a named concept; captions don't name it."""
    asked = tuple(f"{s} by Picasso" for s in SUBJECTS[:4])
    plain = tuple(f"a photo of {s}" for s in SUBJECTS[4:])
    pictures = model.generate(model.condition([f"{s} by Picasso" for s in SUBJECTS[4:]]), range(4))
    concept = Target(plain, pictures, Bright())
    unknown = Target(plain, pictures.flip(0), Bright())
    neutral = tuple(f"a photo of {s}" for s in SUBJECTS[:4])
    return Case(model, made_edit(model, 0.005), drawn_pack(model), asked, neutral, concept, unknown)


def test_rows_are_measured_once(case: Case, model: LlamaGen, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    none, full = strength_sweep.sweep(case, (0.0, 1.0), SMALL, tmp_path)
    assert none["cir"][0] == pytest.approx(1) and none["abs_cir"][0] == pytest.approx(1)
    assert full["cir"][0] != pytest.approx(1, abs=1e-3)
    assert none["direct"]["n"] == none["attack"]["n"] == none["teaching"]["n"] == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.net.state_dict().items())
    path = tmp_path / strength_sweep.ROWS
    first, text = path.read_text().splitlines()[0], path.read_text()
    assert strength_sweep.sweep(case, (1.0, 0.0), SMALL, tmp_path) == [full, none] and path.read_text() == text
    path.write_text(first + "\n")  # killed after one strength
    again = strength_sweep.sweep(case, (0.0, 1.0), SMALL, tmp_path)
    assert again[0] == none and {**again[1], "seconds": 0} == {**full, "seconds": 0}
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: expected a row of this study with these settings"):
        strength_sweep.sweep(case, (0.5,), Settings(prompts=4, vectors=2, steps=4, batch=4), tmp_path)
    path.write_text(first[:50] + "\n")
    with pytest.raises(UsageError, match=r"rows\.jsonl:1"):
        strength_sweep.sweep(case, (0.0,), SMALL, tmp_path)


def test_the_table_shows_counts_and_no_doubtful_ratio() -> None:
    row = {
        "strength": 0.2,
        "cir": [0.76, 0.73, 0.79],
        "abs_cir": [0.43, 0.4, 0.46],
        "doubts": [],
        "direct": {"n": 50, "erased": 46, "unclear": 1},
        "attack": {"n": 50, "found": 48, "unclear": 0, "shown": [29, 30]},
        "teaching": {"n": 50, "found": 0, "unclear": 3, "shown": [2, 30]},
    }
    head, rule, line, doubtful, _, note = strength_sweep.table([row, {**row, "doubts": ["wide"]}]).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") == 7
    assert line.startswith(
        "| 0.2 | 0.76 [0.73, 0.79] | 0.43 [0.40, 0.46] | 0.92 (46 of 50, 1 unreadable) [0.81, 0.98] |"
    )
    assert "0.96 (48 of 50, 0 unreadable)" in line and "0.00 (0 of 50, 3 unreadable) [0.00, 0.07]" in line
    assert note.endswith("recognises 29 of 30 of the concept, 2 of 30 of the unknown style.")
    assert doubtful.startswith("| 0.2 | – | – | 0.92")


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert studies(["strength_sweep", str(tmp_path), "--spec", "picasso", *out]) == 2
    assert studies(["strength_sweep", str(tmp_path), "--spec", "picasso", "--steps", "0", *out]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "recipe.json" in lines[0] and "steps" in lines[1]


@pytest.mark.soak
def test_a_release_of_the_mini_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mini = load_model("llamagen")
    made = load_spec(registry.find_builtin("concepts", "picasso"))
    recipe = compile_recipe(
        made, mini.card, load_base_recipe("vce"), seed=0, sampling=mini.sampling, model_ref=mini.card.ref
    )
    save_recipe(recipe, tmp_path / "recipe.json")
    made_edit(mini, 0.002).save(tmp_path / "edit")
    data = made.model_dump(mode="json")
    data["evaluate"]["n"]["direct"] = 12
    data["preserve"] = [group | {"n": 1} for group in data["preserve"]]
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(data))
    words = ["--out", str(tmp_path / "out"), "--strengths", "0", "--prompts", "3", "--steps", "1"]
    assert strength_sweep.main([str(tmp_path), "--spec", str(small), *words]) == 0
    printed = capsys.readouterr().out.splitlines()
    row = json.loads((tmp_path / "out" / strength_sweep.ROWS).read_text())
    assert len(printed) == 5 and printed[2].startswith("| 0 | ") and row["strength"] == 0
    assert row["direct"]["n"] >= 1 and row["teaching"]["found"] == 0, "nobody was taught anything in one step"
    assert studies(["strength_sweep", str(tmp_path), "--spec", "van_gogh", *words]) == 2
    assert "expected an edit of van_gogh" in capsys.readouterr().err
