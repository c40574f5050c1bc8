"""check: `validate` and `plan` find what a run would fail by, before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from safear_edit.cli import main
from safear_edit.files.atomic import json_digest
from safear_edit.files.strict import parse_yaml
from safear_edit.pipeline.check import check
from safear_edit.registry import builtin_names, find_builtin
from safear_edit.spec.spec import load_spec


def written(folder: Path, **changes: object) -> Path:
    """A spec of one's own from a shared set."""
    text: dict[str, object] = {
        "schema_version": 1,
        "extends": "gallery/style",
        "name": "mine",
        "erase": {"concept": "Seurat", "aliases": ["Seurat", "pointillism"]},
        "paraphrases": {"held_out": ["a pointillist artist", "G. Seurat", "the pointillist movement"]},
        "judge": {"label": "style=seurat"},
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**text, **changes}))
    return path


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    capsys.readouterr()
    assert main.run(list(words)) == code
    out, err = capsys.readouterr()
    assert not out
    return err


@pytest.mark.usefixtures("beside_own_prompts")
def test_built_in_names_are_taken_and_every_criterion_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    names = builtin_names("concepts")
    assert main.run(["validate", *names]) == 0
    out = capsys.readouterr().out
    assert out.count(" is valid for llamagen:mini\n") == 20 and out.count(" is valid for ") == len(names) >= 30
    assert "objects, 480 prompts: a good edit passes" in out
    assert "candidates instead of" not in out, "every slice has its full reserve"
    assert "1 of 241 prompts of i2p_benchmark.csv were left out (minors are mentioned in 1)" in out
    assert "picaso" in told(capsys, "validate", "picaso")


def test_a_concept_is_checked_for_what_draws_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("picasso", "dog", "hazard"):
        found = check(find_builtin("concepts", name), "llamagen:xl-256", "vce")
        assert all(one.met for one in found.criteria) and not found.warnings
    refused = told(capsys, "plan", "rembrandt", "--model", "llamagen")
    assert "reads real images" in refused and "take a published model" in refused and refused.count("\n") == 1


def test_a_category_needs_a_file_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = told(capsys, "validate", "nudity")
    assert "no i2p_benchmark.csv here" in line and "columns prompt and categories" in line and line.count("\n") == 1


def test_the_full_form_is_printed_and_valid(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main.run(["validate", "dog", "cat", "--resolved"]) == 2
    assert "--resolved: expected one spec, got 2" in capsys.readouterr().err
    assert main.run(["validate", "dog", "--resolved"]) == 0
    path = tmp_path / "dog.yaml"
    path.write_text(capsys.readouterr().out)
    assert "extends" not in parse_yaml(path.read_text(), "dog").data
    assert load_spec(path) == load_spec(find_builtin("concepts", "dog"))


def test_wrong_labels_and_too_few_prompts_are_told_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = {"add": {"other-styles": {"Turner": "style=monnet"}}, "n": {"plain": 40}}
    path = written(tmp_path, preserve=wrong)
    for verb in (["validate"], ["plan", "--model", "llamagen"]):
        lines = told(capsys, *verb, str(path)).splitlines()
        assert len(lines) == 2 and "did you mean 'monet'" in lines[0] and "at least 52 prompts, got 40" in lines[1]


def test_other_numbers_by_set_are_a_trial_and_warned_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["--set", "preserve.plain.n=40", "--set", "evaluate.n.template=40"]
    assert main.run(["plan", str(written(tmp_path)), "--model", "llamagen", *small]) == 0
    out, err = capsys.readouterr()
    assert "a good edit passes    direct 96%" in out and "plain 0%" in out
    assert "note: plain, 40 prompts: can't be met" in err and "note: template, 40 prompts: a good edit passes in" in err


def test_what_a_model_or_method_lacks_is_told_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(written(tmp_path))
    assert main.run(["validate", path, "--model", "infinity", "--method", "sace"]) == 0
    assert main.run(["validate", path, "--model", "llamagen", "--method", "ear_released"]) == 0
    assert "lacks scales" in told(capsys, "validate", path, "--method", "sace")
    assert "did you mean 'llamagen'" in told(capsys, "validate", path, "--model", "llamagem")
    assert "judge" in told(capsys, "validate", str(written(tmp_path, judge={"use": "galery", "label": "style=seurat"})))
    few = written(tmp_path, evaluate={"n": {"paraphrase": 5000}})
    assert "evaluate.n.paraphrase=" in told(capsys, "validate", str(few))


def test_a_recipe_that_leaves_a_number_out_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    assert main.run(["plan", "picasso", "--model", "llamagen", "--method", "sft", "--out", str(path), "-q"]) == 0
    capsys.readouterr()
    assert main.run(["validate", str(path)]) == 0
    data = json.loads(path.read_text())
    del data["digest"], data["method"]["params"]["batch"]
    path.write_text(json.dumps({"digest": json_digest(data), **data}))
    assert "every number of sft: a recipe is complete" in told(capsys, "validate", str(path))


def test_checking_a_spec_imports_no_torch() -> None:
    """Seconds of imports; only a model or a method that is named needs it."""
    program = (
        "import sys; from safear_edit.cli import main; code = main.run(['validate', 'picasso', 'hazard', '--json']); "
        "sys.exit(code or len({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and '"picasso"' in done.stdout


def test_init_makes_the_folder_that_it_is_told_to_write_in(tmp_path: Path) -> None:
    assert main.run(["init", "hokusai", "--out", str(tmp_path / "new" / "x.yaml")]) == 0
    assert (tmp_path / "new" / "x.yaml").is_file()


def test_captions_that_a_named_model_cuts_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The mini reads 32 tokens; without --model no model is loaded and nothing is known of it."""
    long = "Georges Seurat, and then a great many more words about light and colour and dots and points and patience"
    path = written(tmp_path, paraphrases={"held_out": ["a pointillist artist", "G. Seurat", long]})
    assert main.run(["validate", str(path)]) == 0
    assert "longer than the model reads" not in capsys.readouterr().out
    assert main.run(["validate", str(path), "--model", "llamagen"]) == 0
    assert "paraphrase: " in (out := capsys.readouterr().out) and "longer than the model reads and aren't" in out
