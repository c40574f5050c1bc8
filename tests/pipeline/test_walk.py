"""The whole walk on the real mini with small numbers: resume after kill -9, same weights again, signed, tampered with.

What the numbers are is not tested here (too few images to say); that they are counted, reported and signed is.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safear_edit.cli import main
from safear_edit.editor.edit import Edit
from safear_edit.families.llamagen import LlamaGen
from safear_edit.report.schema import report_schema
from safear_edit.spec.spec import load_spec
from tests import ROOT
from tests.programs import Program

SPEC = ROOT / "concepts" / "picasso.yaml"
VERDICTS = (0, 1, 3)
PART = ".safe.run/concepts/picasso"
"""Where an unfinished run keeps what it made for the concept."""
RELEASED = {
    "README.md", "report.json", "report.html", "evidence.html", "bom.cdx.json", "model.sig", "claims.jsonl",
    "recipe.json",
    "picasso.yaml", "outcomes.jsonl", "likelihood.json", "environment.json", "base.json", "judges.json", "safear.json",
    "edit", "images", "pairs", ".gitattributes",
}  # fmt: skip


def _sets() -> list[str]:
    small = ["construct.pairs=16", "construct.keep=8", "params.steps=4", "params.batch=4", "params.save_every=2"]
    small += ["params.keep_batch=4", "evaluate.n.direct=6", "evaluate.n.paraphrase=6", "evaluate.n.template=4"]
    small += [f"preserve.{group.name}.n=4" for group in load_spec(SPEC).preserve]
    return [word for value in small for word in ("--set", value)]


def _apply(out: Path, *more: str) -> list[str]:
    return ["apply", str(SPEC), "--model", "llamagen", "--device", "cpu", "--out", str(out), *_sets(), *more]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds `keys` and a signed `safe`, made by a run that was killed in the middle and continued."""
    folder = tmp_path_factory.mktemp("walk")
    assert main.run(["keygen", str(folder / "keys")]) == 0
    words = _apply(folder / "safe", "--key", str(folder / "keys/safear.key"), "-q")
    _kill_when(folder / PART / "pairs" / "keep.jsonl", words)
    assert not (folder / "safe").exists()
    pairs = (folder / PART / "pairs" / "pairs.safetensors").stat()
    kept = folder / "pairs-inode"
    kept.write_text(f"{pairs.st_ino} {pairs.st_mtime_ns}")
    assert main.run(words) in VERDICTS
    return folder


def _kill_when(file: Path, words: list[str]) -> None:
    """Run in a process of its own and kill -9 it once the construct step has written its last file and is noted."""
    journal = file.parent.parent / "journal.json"
    process = Program("import sys; from safear_edit.cli import main; sys.exit(main.run(sys.argv[1:]))", *words)
    try:
        for _ in range(3000):
            if journal.exists() and "construct" in journal.read_text():
                break
            assert not process.ended, "the run ended before it could be killed"
            time.sleep(0.1)
    finally:
        process.kill()
        process.done()
    assert file.exists()


def test_everything_is_there_and_nothing_else(signed: Path) -> None:
    names = {path.name for path in (signed / "safe").iterdir()}
    weights = {name for name in names if name.endswith(".safetensors")}
    assert weights and names - weights == RELEASED
    assert {path.name for path in (signed / "safe" / "pairs").iterdir()} == {"pairs.jsonl", "stats.json"}
    assert not list(signed.glob(".safe*")) and [p.name for p in (signed / "safe").rglob(".*")] == [".gitattributes"]
    assert (signed / "safe" / "picasso.yaml").read_bytes() == SPEC.read_bytes()


def test_the_report_is_valid_and_counts_every_prompt(signed: Path) -> None:
    import jsonschema

    report = json.loads((signed / "safe/report.json").read_text())
    jsonschema.validate(report, report_schema())
    slices = {part["slice"]: part["prompts"] for part in report["concepts"][0]["erasure"]}
    assert slices.keys() == {"direct", "paraphrase", "template"}
    pairs = report["concepts"][0]["pairs"]
    assert pairs["made"] == 16 == pairs["kept"] + sum(pairs["reasons"].values())
    assert {"images/pairs.png", "images/before_after.png"} < {sheet["file"] for sheet in report["images"]}
    rows = [json.loads(line) for line in (signed / "safe/outcomes.jsonl").read_text().splitlines()]
    assert {row["model"] for row in rows} == {"base", "edited"}


@pytest.fixture(scope="module")
def again(signed: Path) -> tuple[Path, int, str]:
    """The recipe of `safe` run once more, without a key: the folder, the exit code, and what stderr said."""
    shutil.copy(signed / "safe" / "recipe.json", signed / "recipe.json")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.delenv("SAFEAR_SIGNING_KEY", raising=False)
        words = ["apply", str(signed / "recipe.json"), "--device", "cpu", "--out", str(signed / "again"), "-q"]
        code = main.run(words)
    return signed / "again", code, said.getvalue()


@pytest.mark.soak
def test_same_recipe_same_weights_and_the_killed_run_is_no_other(signed: Path, again: tuple[Path, int, str]) -> None:
    out, *_ = again
    assert Edit.load(out / "edit").digest == Edit.load(signed / "safe" / "edit").digest
    for path in out.glob("*.safetensors"):
        assert path.read_bytes() == (signed / "safe" / path.name).read_bytes()
    assert (out / "outcomes.jsonl").read_bytes() == (signed / "safe" / "outcomes.jsonl").read_bytes()
    assert not (out / "model.sig").exists()


@pytest.mark.soak
def test_without_a_key_all_is_written_and_the_exit_is_not_zero(again: tuple[Path, int, str]) -> None:
    out, code, said = again
    assert code != 0 and "keygen" in said
    assert (out / "report.html").exists() and not (out / "model.sig").exists()


def test_verify_accepts_it_and_any_change_is_refused(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", str(signed / "safe"), "--trust", str(signed / "keys")]
    assert main.run(words) == 0
    weights = sorted((signed / "safe").glob("*.safetensors"))[0]
    for path in (weights, signed / "safe/report.json", signed / "safe/edit/edit.json"):
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        assert main.run(words) == 4
        assert path.name in capsys.readouterr().err
        path.write_bytes(original)
    (signed / "safe" / "extra").mkdir()
    assert main.run(words) == 4
    drawing = ["generate", "--model", str(signed / "safe"), "a cat", *words[2:], "--out", str(signed / "never"), "-q"]
    for verb in (drawing, ["attack", str(signed / "safe"), *words[2:]]):
        assert main.run(verb) == 4
    assert not (signed / "never").exists() and not (signed / "safe-attacks").exists()
    (signed / "safe" / "extra").rmdir()
    assert main.run(words) == 0


def test_the_released_model_draws_and_is_judged_on_own_prompts(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safe = str(signed / "safe")
    words = [
        "generate",
        "--model",
        safe,
        "a house by Picasso",
        "--n",
        "2",
        "--out",
        str(tmp_path / "p"),
        "-q",
        "--json",
    ]
    assert main.run(words) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert len(files) == 2 and all(Image.open(file).size == (40, 40) for file in files)
    keys, other = ["--trust", str(signed / "keys")], ["--out", str(tmp_path / "other"), "--json"]
    assert main.run([*words[:4], *keys, *other]) == 0
    assert "signature verified, by key" in capsys.readouterr().err
    assert main.run(["generate", "--model", "llamagen", "a cat", *keys, *other]) == 2
    assert "a released folder, got none among the models" in capsys.readouterr().err
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a house by Picasso\na dog in the style of Pablo Picasso\n")
    judged = ["eval", safe, "--spec", str(SPEC), "--prompts", str(prompts), "--json"]
    assert main.run(judged) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 2 and [m["model"] for m in found["models"]] == ["llamagen:mini", safe]
    for models in ([safe, "llamagen"], ["llamagen", safe]):
        assert main.run(["eval", *models, *judged[2:]]) == 0
        other = json.loads(capsys.readouterr().out)
        assert other["reference"] == "llamagen", "a model without edits is the reference, in whatever order"
        assert [[r["present"] for r in row["results"]] for row in other["rows"]] == [
            [r["present"] for r in row["results"]] for row in found["rows"]
        ]
    assert main.run(["report", safe]) in VERDICTS


@pytest.mark.soak
def test_a_killed_comparison_continues(
    signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What both models drew before the interruption isn't drawn again, and nothing is left behind at the end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("safear_edit.evaluate.own_prompts.BATCH", 2)
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,sd_seed\n" + "".join(f"a house by Picasso,{seed}\n" for seed in range(6)))
    words = ["eval", str(signed / "safe"), "--spec", str(SPEC), "--prompts", str(prompts), "--json"]
    drawn, generate = list[int](), LlamaGen.generate

    def counted(self: LlamaGen, condition: Any, seeds: Any, *more: Any) -> Any:
        if len(drawn) == 8:
            raise KeyboardInterrupt
        drawn.extend(seeds)
        return generate(self, condition, seeds, *more)

    monkeypatch.setattr(LlamaGen, "generate", counted)
    assert main.run(words) == 130
    assert drawn == [0, 1, 2, 3, 4, 5, 0, 1], "all of the base model's and two of the edited one's"
    drawn.append(-1)
    capsys.readouterr()
    assert main.run(words) == 0
    assert drawn[9:] == [2, 3, 4, 5]
    found = capsys.readouterr()
    assert json.loads(found.out)["n"] == 6 and "seeds from `sd_seed`" in found.err
    assert not list((tmp_path / "cache/safear-edit/eval").iterdir())


def test_the_file_names_are_not_in_the_way_of_a_strict_umask(signed: Path) -> None:
    """Whoever may read one released file may read them all (safetensors writes its own with mode 0600)."""
    modes = {path.stat().st_mode & 0o777 for path in (signed / "safe").rglob("*") if path.is_file()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}
