"""A folder whose files don't agree with its report is refused, whichever digest was put right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from safear_edit.errors import SpecError, TrustError
from safear_edit.files.atomic import sha256_file
from safear_edit.report.build import build_report, digest_of_files
from safear_edit.report.evidence import RunFiles
from safear_edit.report.rebuild import rebuild
from safear_edit.report.schema import File
from tests.report.test_build import Row, make_run, write_recipe

FORGE = """import json,sys,hashlib; from pathlib import Path
f=Path(sys.argv[1]); p=f/"outcomes.jsonl"; rows=[json.loads(l) for l in p.read_text().splitlines()]
for r in rows:
    if r["model"]=="edited" and r["phase"]=="score": r["present"]=r["expect"]=="present"
p.write_text("".join(json.dumps(r)+"\\n" for r in rows)); r=json.loads((f/"report.json").read_text())
r["reproduce"]["inputs"]["outcomes.jsonl"]=hashlib.sha256(p.read_bytes()).hexdigest()
(f/"report.json").write_text(json.dumps(r))"""
"""Outcomes made good, and their digest in report.json kept right."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = make_run(tmp_path / "safe")
    (root / "model.safetensors").write_bytes(b"weights")
    (root / "report.json").write_text(build_report(RunFiles.find(root, model=root)).to_json())
    return root


def stated(folder: Path) -> Row:
    found: Row = json.loads((folder / "report.json").read_text())
    return found


def test_a_whole_folder_gives_its_report(folder: Path) -> None:
    assert json.loads(rebuild(folder).to_json()) == stated(folder)


@pytest.mark.parametrize("name", ["outcomes.jsonl", "judges.json", "recipe.json"])
def test_a_release_without_one_of_its_files_is_no_unfinished_run(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(TrustError, match=rf"{name}: expected a file that the report names.*whole copy"):
        rebuild(folder)


def test_outcomes_made_good_are_found_out(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", FORGE, str(folder)], check=True)
    with pytest.raises(TrustError, match=r"report\.id") as caught:
        rebuild(folder)
    assert caught.value.exit_code == 4 and len(str(caught.value).splitlines()) == 1


def test_and_also_with_the_id_put_right(folder: Path) -> None:
    from tests.gate.test_baseline import vouch

    subprocess.run([sys.executable, "-c", FORGE, str(folder)], check=True)
    vouch(folder, "outcomes.jsonl")
    with pytest.raises(TrustError, match="counts"):
        rebuild(folder)


def test_exchanged_weights_are_found_out(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(TrustError, match=r"model\.safetensors"):
        rebuild(folder)
    report = stated(folder)
    for file in report["subject"]["files"]:
        file["sha256"] = sha256_file(folder / file["name"])
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(TrustError, match="weights_digest"):
        rebuild(folder)
    now = digest_of_files([File(**file) for file in report["subject"]["files"]])
    report["subject"]["weights_digest"] = now
    (folder / "report.json").write_text(json.dumps(report))
    assert rebuild(folder).subject.weights_digest == now, "whose weights these are only a signature can say"


@pytest.mark.parametrize("name", ["other.safetensors", "model.safetensors.index.json", "net/pytorch_model.bin"])
def test_a_file_that_could_be_loaded_instead_is_found_out(folder: Path, name: str) -> None:
    (folder / "net").mkdir()
    (folder / "notes.txt").write_text("of a reader's own")
    rebuild(folder)
    (folder / name).write_bytes(b"others")
    with pytest.raises(TrustError, match="does not name"):
        rebuild(folder)


def test_a_recipe_without_a_floor_is_found_out(folder: Path) -> None:
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["gates"]["erasure_floor"] = 0.0
    (folder / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(TrustError, match=r"recipe\.json"):
        rebuild(folder)
    report = stated(folder)
    report["reproduce"]["inputs"]["recipe.json"] = sha256_file(folder / "recipe.json")
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(SpecError, match=r"recipe\.json digest"):
        rebuild(folder)
    write_recipe(folder / "recipe.json", recipe)
    report["reproduce"]["inputs"]["recipe.json"] = sha256_file(folder / "recipe.json")
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(TrustError, match=r"report\.id"):
        rebuild(folder)


def test_a_sheet_that_is_missing_or_ill_typed_is_told(folder: Path) -> None:
    note = folder / "images" / "random.json"
    original = note.read_text()
    for text in ('{"pictures": 7}', '{"caption": 5}', '{"redaction": "a bit"}', "[]", "{", '{"a": 1}'):
        note.write_text(text)
        with pytest.raises(SpecError, match=r"random\.json"):
            rebuild(folder)
    note.write_text(original)
    (folder / "images" / "random.png").unlink()
    with pytest.raises(TrustError, match=r"random\.png"):
        rebuild(folder)


ENVIRONMENTS = ['{"packages": 7}', '{"packages": {"torch": 2}}', '{"git": "c0ffee"}', '{"started": NaN}', "[]"]


@pytest.mark.parametrize("text", ENVIRONMENTS)
def test_an_ill_typed_environment_is_one_line(tmp_path: Path, text: str) -> None:
    root = make_run(tmp_path)
    (root / "environment.json").write_text(text)
    with pytest.raises(SpecError, match=r"environment\.json") as caught:
        build_report(RunFiles.find(root))
    assert len(str(caught.value).splitlines()) == 1


def test_gates_of_nothing_are_one_line_or_a_report(tmp_path: Path) -> None:
    """A margin of 0 can never be shown; before, that was an internal error."""
    root = make_run(tmp_path)
    recipe = json.loads((root / "recipe.json").read_text())
    recipe["gates"] = dict.fromkeys(recipe["gates"], 0.0)
    write_recipe(root / "recipe.json", recipe)
    with pytest.raises(SpecError, match="preserve_upper") as caught:
        build_report(RunFiles.find(root))
    assert len(str(caught.value).splitlines()) == 1


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    root = make_run(tmp_path)
    text = (root / "outcomes.jsonl").read_text()
    for bad in ("NaN", "Infinity", "1e999", '"0.9"'):
        (root / "outcomes.jsonl").write_text(text.replace('"score": 0.97', f'"score": {bad}', 1))
        with pytest.raises(SpecError, match=r"outcomes\.jsonl:\d+"):
            build_report(RunFiles.find(root))


def test_what_a_run_says_of_its_machine_is_what_the_report_reads(tmp_path: Path) -> None:
    """The walk writes environment.json and base.json with the classes that read them; the commit is this checkout's."""
    from datetime import UTC, datetime

    from safear_edit.families.llamagen import LlamaGen
    from safear_edit.pipeline.environment import environment
    from safear_edit.pipeline.publish import base_card, write_json
    from tests import ROOT

    model = LlamaGen.pico()
    root = make_run(tmp_path)
    write_json(root / "environment.json", environment(model, [], "a command", datetime.now(UTC), None))
    write_json(root / "base.json", base_card(model))
    report = build_report(RunFiles.find(root))
    assert report.environment.other == {} and report.environment.packages["torch"] != "not installed"
    assert (len(report.environment.git.split()[0]) == 40) == (ROOT / ".git").exists()
    assert report.base_model.reference == model.card.ref and report.base_model.digest == model.card.digest
