"""The gate's verbs, what they leave for a CI system, and the example script run as a CI system runs it."""

from __future__ import annotations

import hashlib
import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from safear_edit.cli import main
from safear_edit.cli.gate import SUMMARY, VERBS, WORKFLOW, baseline, junit, markdown, workflow_commands
from safear_edit.compiler.recipe import load_recipe
from safear_edit.gate.record import WORDS, read_folder
from safear_edit.gate.redraw import measure_again
from safear_edit.gate.rules import Conclusion, Finding
from safear_edit.pipeline.publish import sign
from safear_edit.release.keys import find_signer, generate
from safear_edit.report.build import build_report, read_report
from safear_edit.report.evidence import RunFiles
from safear_edit.report.html import render_html
from tests import ROOT
from tests.gate.test_baseline import released, worse

CI = ROOT / "examples" / "ci"


@pytest.fixture(autouse=True)
def attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbs as cli/main.py has them, and no CI system around."""
    for verb in VERBS:
        monkeypatch.setitem(main.verbs.commands, str(verb.name), verb)
    for name in (SUMMARY, WORKFLOW):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `good`, `bad` (40 direct prompts lost) and good's baseline `last.txt`."""
    root = tmp_path_factory.mktemp("world")
    released(root / "good")
    released(root / "bad", worse)
    for name in ("good", "bad"):
        page = render_html(read_report(root / name / "report.json"), root / name)
        (root / name / "report.html").write_text(page)
    words = ["baseline", "accept", str(root / "good"), "--out", str(root / "last.txt"), "--reason", "first release"]
    code = baseline.main(words[1:], standalone_mode=False)
    assert code == 0
    return root


def test_accept_says_what_it_can_show(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sub" / "b.txt"
    words = ["baseline", "accept", str(world / "good"), "--out", str(out), "--reason", "x", "--margin", "0.1"]
    assert main.run([*words, "--json"]) == 0
    slices = {row["slice"]: row for row in json.loads(capsys.readouterr().out)["slices"]}
    assert slices["testpainter/direct"]["n"] == 250
    assert slices["testpainter/direct"]["planned"] == 190, "for a drop of 10 points"
    assert "margin=0.1 " in out.read_text()
    assert main.run([*words[:-1], "7"]) == 2
    assert main.run(words) == 0
    said = capsys.readouterr().out
    assert "review it" in said and "prompts for 94%" in said


@pytest.mark.parametrize(("name", "code", "verdict"), [("good", 0, "PASS"), ("bad", 1, "FAIL")])
def test_check(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, verdict: str
) -> None:
    words = ["check", str(world / name), "--baseline", str(world / "last.txt"), "--junit", str(tmp_path / "g.xml")]
    assert main.run([*words, "--summary", str(tmp_path / "s.md"), "-q"]) == code
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith(verdict) and "lost" in printed
    assert main.run([*words, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["exit_code"]) == (verdict, code) and found["schema_version"] == 2
    suite = ElementTree.parse(tmp_path / "g.xml").getroot()
    assert int(suite.attrib["tests"]) == len(found["findings"]) == len(suite.findall("testcase"))
    told = {part.attrib["name"]: part.attrib["value"] for part in suite.iter("property")}
    assert told["baseline last"] == hashlib.sha256((world / "last.txt").read_bytes()).hexdigest()
    assert (suite.attrib["failures"] == "0") == (code == 0) and suite.attrib["skipped"] == "1"
    assert verdict in (tmp_path / "s.md").read_text()


def test_refusals_are_results_too(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SUMMARY, str(tmp_path / "summary.md"))
    monkeypatch.setenv(WORKFLOW, "true")
    bad = world / "bad" / "outcomes.jsonl"
    original = bad.read_bytes()
    bad.write_bytes(original.replace(b"true", b"false", 1))
    words = ["check", str(world / "bad"), "--baseline", str(world / "last.txt"), "--junit", str(tmp_path / "g.xml")]
    assert main.run([*words, "--json"]) == 4
    bad.write_bytes(original)
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "REFUSED" and err.splitlines()[-1].startswith("safear-edit: ")
    assert "::error title=safear-edit check::" in err
    assert ElementTree.parse(tmp_path / "g.xml").getroot().find("testcase/error") is not None
    assert "REFUSED" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "good"], "--baseline"),
        (["check", "good", "--baseline", "nowhere.txt"], "nowhere.txt"),
        (["check", "nowhere", "--baseline", "last.txt"], "report.json"),
        (["check", "good", "--baseline", "last.txt", "--baseline", "./last.txt"], "two of one name"),
        (["check", "good", "--baseline", "last.txt", "--trust", "nowhere"], "nowhere"),
        (["check", "good", "--baseline", "good/report.json"], "safear-edit baseline 3"),
        (["check", "good", "--baseline", "last.txt", "--require-signature"], "--trust"),
        (["baseline", "accept", "bad", "--out", "no.txt", "--reason", "x"], "--despite"),
        (["baseline", "diff", "last.txt", "nowhere.txt"], "nowhere.txt"),
        (["power", "--drop", "5"], "--drop"),
        (["power", "--flips", "0.99"], "--flips"),
        (["power", "--flips", "nan"], "--flips"),
        (["power", "--margin", "0"], "--margin"),
        (["power", "--margin", "-0.1"], "--margin"),
        (["power", "--margin", "nan"], "--margin"),
        (["power", "--margin", "inf"], "--margin"),
    ],
)
def test_bad_input_is_one_line(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(world)
    assert main.run([*words, "-q"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and says in err


def test_every_output_says_whether_a_signature_was_verified(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "safe"
    shutil.copytree(world / "good", folder)
    words = ["check", str(folder), "--baseline", str(world / "last.txt"), "--junit", str(tmp_path / "g.xml"), "-q"]
    words += ["--summary", str(tmp_path / "s.md")]

    def told() -> set[str]:
        """What each output says of the signature; all must say the same."""
        (tmp_path / "s.md").unlink(missing_ok=True)
        assert main.run(words) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("signature: "))
        assert main.run([*words, "--json"]) == 0
        subject = json.loads(capsys.readouterr().out)["subject"]
        root = ElementTree.parse(tmp_path / "g.xml").getroot()
        properties = {part.attrib["name"]: part.attrib["value"] for part in root.iter("property")}
        (page,) = {line for line in (tmp_path / "s.md").read_text().splitlines() if line.startswith("Signature: ")}
        said = {line.removeprefix("signature: "), subject["signature"], properties["signature"]}
        return {*said, html.unescape(page.removeprefix("Signature: "))}

    assert told() == {"none: the folder is unsigned"}
    keys = generate(tmp_path / "keys", "safear", None)
    key = find_signer(keys.private, {})
    assert key is not None
    report = read_report(folder / "report.json")
    recipe = load_recipe(folder / "recipe.json")
    sign(folder, report, [recipe], key)
    assert told() == {"not verified (no --trust was given)"}
    words += ["--trust", str(tmp_path / "keys"), "--require-signature"]
    assert told() == {f"verified, by key safear ({keys.hint[:16]})"}
    (folder / ".DS_Store").write_bytes(b"a system's own")
    assert main.run(words) == 4 and ".DS_Store" in capsys.readouterr().err
    words.append("--ignore-foreign")
    assert told() == {f"verified, by key safear ({keys.hint[:16]}), leaving out .DS_Store"}
    words.pop()
    (folder / ".DS_Store").unlink()
    assert main.run(["report", str(folder)]) == 0
    assert "(signature not verified" in capsys.readouterr().out
    assert main.run(["report", str(folder), "--trust", str(tmp_path / "keys"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["signed"] is True and found["signature"].startswith("signature verified, by key safear")
    (folder / "outcomes.jsonl").write_bytes((world / "bad" / "outcomes.jsonl").read_bytes())
    for verb in (["report", str(folder)], ["report", str(folder), "--trust", str(tmp_path / "keys")], words):
        assert main.run(verb) == 4
        assert "signed" not in capsys.readouterr().out.replace("unsigned", "")


def test_a_baseline_is_compared_with_the_one_before(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = str(tmp_path / "new.txt")
    words = ["baseline", "accept", str(world / "bad"), "--out", new, "--reason", "second"]
    assert main.run([*words, "--despite", "known and mended next week"]) == 0
    capsys.readouterr()
    assert main.run(["baseline", "diff", str(world / "last.txt"), new, "--json"]) == 0
    told = {row["what"]: row["after"] for row in json.loads(capsys.readouterr().out)}
    assert told["despite"] == "known and mended next week"
    assert told["testpainter/direct: no longer as they must be"] == "40"
    assert main.run(["baseline", "diff", new, new]) == 0 and "nothing differs" in capsys.readouterr().out


def test_a_small_suite_says_what_it_did_not_see(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", str(world / "good"), "--baseline", str(world / "last.txt"), "--suite", "smoke", "-q"]
    assert main.run(words) in (0, 3)
    out = capsys.readouterr().out
    assert "NOT COMPARED: 160 of the 250 prompts of testpainter/direct" in out
    assert out.splitlines()[-1].endswith("870 prompts unseen")


def test_power(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["power", "--drop", "0.1", "--flips", "0.02", "--power", "0.8", "--n", "100", "--json"]
    assert main.run(words) == 0
    rows = {row["claim"]: row["answer"] for row in json.loads(capsys.readouterr().out)}
    assert rows["90.0 % erased with 95 % confidence, no failure"] == "29 prompts"
    assert rows["McNemar alone finds a drop of 10 points (80.0 %)"] == "81 prompts"
    assert any(claim.startswith("100 prompts, nothing changed") and "PASS" in rows[claim] for claim in rows)


def test_self_test(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a baseline it tells what that baseline can find; nothing is read from the folder."""
    words = ["check", "nowhere", "--self-test", "--baseline", str(world / "last.txt"), "--runs", "20", "--seed", "3"]
    assert main.run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seed"] == "3" and [one["runs"] for one in found["simulations"]] == [20, 20, 20]
    assert main.run(words) == 0
    assert "assumed to flip anyway" in capsys.readouterr().out


def test_text_of_strangers_stays_text() -> None:
    finding = Finding("drop/a|b", "FAIL", "<b>", "lost | all\x1b[31m", "why, 100%\nnew: line", ("id`1",))
    found = Conclusion("FAIL", 1, "FAIL: 1", (finding,), ("a <script>",))
    page = markdown(found, "x|y ![i](https://example.org/i.png) @someone")
    assert "](" not in page and "https://" not in page and "@someone" not in page
    assert "<script>" not in page and "<b>" not in page and "drop/a&#124;b" in page
    assert ElementTree.fromstring(junit(found)).find("testcase/failure") is not None
    (line,) = workflow_commands(found)
    assert line.startswith("::error title=drop/a|b::") and "%0A" in line and "100%25" in line and "\n" not in line


# -- the example ------------------------------------------------------------------------------------------------------


def _gate(folder: Path, world: Path, results: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """examples/ci/gate.sh with a `safear-edit` on its PATH that is this checkout's."""
    bin_ = results / "bin"
    bin_.mkdir(parents=True)
    attach = "from safear_edit.cli.main import main; main()"
    (bin_ / "safear-edit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{attach}" "$@"\n')
    (bin_ / "safear-edit").chmod(0o755)
    own = {"PATH": f"{bin_}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RESULTS": str(results)}
    words = [str(CI / "gate.sh"), str(folder), str(world / "last.txt")]
    return subprocess.run(words, env={**os.environ, **own, **environment}, capture_output=True, text=True, check=False)


def test_the_script_blocks_a_regression(world: Path, tmp_path: Path) -> None:
    page = tmp_path / "summary.md"
    done = _gate(world / "bad", world, tmp_path / "results", GITHUB_STEP_SUMMARY=str(page), GITHUB_ACTIONS="true")
    assert done.returncode == 1 and "regressed" in done.stderr and "::error" in done.stderr, done.stderr
    assert json.loads((tmp_path / "results" / "gate.json").read_text())["verdict"] == "FAIL"
    assert (tmp_path / "results" / "gate.xml").exists() and "FAIL" in page.read_text()


def test_the_script_lets_the_same_model_through(world: Path, tmp_path: Path) -> None:
    done = _gate(world / "good", world, tmp_path / "results", SUITE="smoke", INCONCLUSIVE="warn")
    assert done.returncode == 0, done.stderr
    assert "gate lets" in done.stdout


def test_action_and_workflow_hang_together() -> None:
    action = yaml.safe_load((CI / "action.yml").read_text())
    (step,) = action["runs"]["steps"]
    assert "gate.sh" in step["run"] and "${{" not in step["run"], "inputs must not become code"
    script = (CI / "gate.sh").read_text()
    for name in ("INCONCLUSIVE", "SUITE", "TRUST", "REQUIRE_SIGNATURE", "FRESH", "RESULTS"):
        assert f"${{{name}:-" in script and name in step["env"]
    workflow = yaml.safe_load((CI / "workflow.yml").read_text())
    gate = next(part for part in workflow["jobs"]["gate"]["steps"] if part.get("uses") == "./examples/ci")
    assert set(gate["with"]) <= set(action["inputs"])
    assert all(name in gate["with"] for name, about in action["inputs"].items() if about.get("required"))


# -- a real model -----------------------------------------------------------------------------------------------------


def test_drawing_again_gives_what_the_folder_says(tmp_path: Path) -> None:
    """A released mini with an edit that nobody trained: --fresh gives the very outcomes; other seeds give others."""
    from safear_edit import registry
    from safear_edit.compiler.compile import compile_recipe
    from safear_edit.compiler.recipe import load_base_recipe, save_recipe
    from safear_edit.evaluate.sampled import evaluate
    from safear_edit.families.load import load_model
    from safear_edit.spec.spec import load_spec
    from tests.evaluate.test_sampled import made_edit

    spec = load_spec(registry.find_builtin("concepts", "picasso"))
    model = load_model("llamagen")
    sizes = ["evaluate.n.direct=4", "evaluate.n.paraphrase=1", "evaluate.n.template=1", "construct.pairs=8"]
    sizes += ["construct.keep=4", *(f"preserve.{group.name}.n=2" for group in spec.preserve)]
    recipe = compile_recipe(
        spec, model.card, load_base_recipe("vce"), overrides=sizes, sampling=model.sampling, model_ref="llamagen"
    )
    folder, edit = tmp_path / "safe", made_edit(model, 0.02)
    folder.mkdir()
    save_recipe(recipe, folder / "recipe.json")
    evaluate(model, edit, recipe, folder)
    edit.save(folder / "edit")
    for name in ("environment", "base"):
        about = {"family": "llamagen", "variant": "mini"} if name == "base" else {}
        (folder / f"{name}.json").write_text(json.dumps(about))
    with edit.apply(model.net):
        model.export(folder)
    (folder / "report.json").write_text(build_report(RunFiles.find(folder, model=folder)).to_json())
    told = read_folder(folder)
    again = measure_again(folder, told.rows)
    assert [row.key for row in again.rows] == [row.key for row in told.rows]
    assert [row.outcome for row in again.rows] == [row.outcome for row in told.rows]
    assert told.judges.items() <= again.judges.items()
    other = measure_again(folder, told.rows, replicate=1)
    assert [row.score for row in other.rows] != [row.score for row in told.rows]
    assert {row.outcome for row in other.rows} <= set(WORDS.values())
