"""Two methods on a tiny random model, compared; what a table says of counts, by hand. A coin judges the images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safear_edit import registry
from safear_edit.cli import main
from safear_edit.errors import UsageError
from safear_edit.families.llamagen import LlamaGen
from safear_edit.pipeline import compare, compared
from safear_edit.pipeline import run as run_module
from safear_edit.pipeline.compared import Span, Summary, front
from safear_edit.studies.ablation import VARIANTS
from tests import coin
from tests.pipeline.test_run import SETS

METHODS = ["sft", "vce:anchor_weight=0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_third_party", coin.third_party)
    monkeypatch.chdir(tmp_path)
    coin.make_world(tmp_path, "picasso", n=8)
    return tmp_path


def words(*methods: str, out: str = "out") -> list[str]:
    sets = [word for key, value in SETS.items() for word in ("--set", f"{key}={value}")]
    end = ["--methods", *methods, "--out", out, "--device", "cpu", *sets]
    return ["compare", "picasso.yaml", "--model", "./base", *end]


def test_methods_side_by_side(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    generate = LlamaGen.generate
    monkeypatch.setattr(LlamaGen, "generate", lambda *given: drawn.append(len(given[2])) or generate(*given))  # type: ignore[func-returns-value]
    assert main.run(words(METHODS[0])) == 0
    first = sum(drawn)
    capsys.readouterr()
    assert main.run([*words(*METHODS), "--json"]) == 0
    again = sum(drawn) - first
    assert again < first, "what the base model drew is not drawn again"
    said = json.loads(capsys.readouterr().out)
    out = folder / "out"
    assert {path.name for path in out.iterdir()} >= {"rows.csv", "table.md", "pareto.svg", "pareto.png", "index.html"}
    rows = list(csv.DictReader((out / "rows.csv").read_text().splitlines()))
    assert [row["method"] for row in said["rows"]] == [row["method"] for row in rows] and not said["failed"]
    assert {row["method"] for row in rows} == set(METHODS)
    assert {row["name"] for row in rows if row["part"] == "slice"} == {"direct", "paraphrase", "template"}
    folders = list((out / "runs").iterdir())
    reports = [json.loads((one / "report.json").read_text()) for one in folders]
    for one in folders:
        assert (one / "edit/adapter_model.safetensors").is_file() and not list(one.glob("*.safetensors"))
    by_name = {(r["method"], r["name"]): r for r in rows}
    for report in reports:
        measured = report["concepts"][0]
        method = METHODS[0] if measured["edit"]["method"] == "sft" else METHODS[1]
        for part in measured["erasure"]:
            if part["erased"]:
                row = by_name[method, part["slice"]]
                assert (int(row["k"]), int(row["n"])) == (part["erased"]["k"], part["erased"]["n"])
    page = (out / "index.html").read_text()
    assert page.count("/report.html") == 2 and "sheet-picasso.png" in page and "http" not in page
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    drawn.clear()
    assert main.run(words(*METHODS)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert sum(drawn) <= 3 * 2 * compared.SHOWN, "a finished comparison draws its contact sheet only"


def test_an_interrupted_run_goes_on_whatever_was_finished_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = folder / "out" / compare.WORK
    walk = run_module.walk

    def stopped(load: Any, out: Path, options: Any) -> Any:
        if out.name.startswith("picasso-vce"):
            (out / "pairs").mkdir(parents=True)
            raise KeyboardInterrupt
        return walk(load, out, options)

    monkeypatch.setattr(run_module, "walk", stopped)
    assert main.run(words(METHODS[1])) == 130
    (left,) = work.iterdir()
    assert main.run(words(METHODS[0])) == 0
    assert (left / "pairs").is_dir(), "another run's work"
    (finished,) = (folder / "out/runs").iterdir()
    before = (finished / "report.json").stat().st_mtime_ns
    monkeypatch.setattr(compare, "readers", lambda *given: ("another judge",))
    assert main.run(words(METHODS[0])) == 0
    assert len([*(folder / "out/runs").iterdir()]) == 2, "what another judge read is no row of this one"
    assert (finished / "report.json").stat().st_mtime_ns == before


def test_bad_words_are_one_line_before_any_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(given: list[str]) -> str:
        capsys.readouterr()
        assert main.run(given) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1, err
        return err

    assert "did you mean 'vce'" in refused(words("vcee"))
    assert "NAME:key=value" in refused(words("vce:steps"))
    assert "params step" in refused(words("sft", "vce:step=3")).replace(".", " ")
    assert "a family with scales" in refused(words("sft", "sace"))
    assert "a number, got '1e-4 '" in refused(words("vce:beta='1e-4 '"))
    assert "true or false, got 'no'" in refused(words("vce:adversarial=no"))
    for wrong in ("beta=2,beta=3", "beta=2,params.beta=3", "1=2", "beta=&a 2", "beta=2}"):
        assert "NAME:key=value" in refused(words(f"vce:{wrong}")), wrong
    sets = words("sft")[words("sft").index("--set") :]
    assert (
        main.run(["plan", "picasso.yaml", "--model", "./base", "--out", "picasso.json", "--device", "cpu", *sets]) == 0
    )
    finished = ["compare", "picasso.json", "--model", "./base", "--methods", "sft", "vce", "--out", "out"]
    assert "expected specs to compile, got the finished recipe picasso.json" in refused(finished)
    assert not (folder / "out/runs").exists()
    (folder / "mine").mkdir()
    (folder / "mine/notes.txt").write_text("keep")
    assert "one of `compare`" in refused(words("sft", out="mine"))


def test_a_method_may_come_with_numbers_of_its_own() -> None:
    assert compare.variant("svare") == compare.Variant("svare", "svare")
    found = compare.variant("sace:erase_scales=[0,1],keep_weight=4.0,construct.pairs=64")
    assert found.overrides == ("params.erase_scales=[0, 1]", "params.keep_weight=4.0", "construct.pairs=64")
    assert compare.variant("vce:learning_rate=1e-4").overrides == ("params.learning_rate=0.0001",)
    assert [compare.variant(name).method for name in VARIANTS][-2:] == ["dpo", "sft"]
    assert compare.variant("vce:construct.captioner=😀").overrides == ('construct.captioner="😀"',)
    with pytest.raises(UsageError, match="did you mean 'svare'"):
        compare.variant("svar")


def _ratios(cir: float, level: float, doubts: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(cir=SimpleNamespace(estimate=cir), abs_cir=SimpleNamespace(estimate=level), doubts=doubts)


def run(seed: int, erased: tuple[int, int], drop: float, status: str) -> Any:
    rate = SimpleNamespace(k=erased[0], n=erased[1], estimate=erased[0] / erased[1], low=0.5, high=1.0)
    slices = [SimpleNamespace(slice="direct", erased=rate, cannot_tell_edited=1)]
    members = [
        SimpleNamespace(name="dog", drop=drop, upper=drop + 0.1),
        SimpleNamespace(name="cat", drop=0, upper=0.1),
    ]
    measured = SimpleNamespace(
        erasure=slices,
        preservation=[SimpleNamespace(members=members)],
        likelihoods=SimpleNamespace(slices=[_ratios(0.25, 0.1), _ratios(0.1, 0.4), _ratios(0.9, 0.9, doubts=("few",))]),
        edit=SimpleNamespace(minutes=2.0 + seed),
    )
    environment = SimpleNamespace(packages={"torch": f"2.{seed}"})
    report = SimpleNamespace(verdict=SimpleNamespace(status=status), concepts=[measured], environment=environment)
    return compared.Ran("picasso", "vce", seed, Path("x"), report)  # type: ignore[arg-type]


def test_a_line_over_seeds_by_hand() -> None:
    (line,) = compared.summaries([run(0, (9, 10), 0.1, "PASS"), run(1, (10, 10), 0.2, "FAIL")])
    assert line.slices == {"direct": (19, 20)} and line.verdicts == "1 FAIL, 1 PASS" and line.minutes == 2.5
    assert line.worst_slice.words() == "95.0 (90.0 to 100.0) [50.0, 100.0]"
    assert line.worst_member.words() == "15.0 (10.0 to 20.0), at most 30.0" and line.members == "dog"
    assert line.unreadable == (2, 20) and line.cir == (0.1, 0.4)
    assert "| 19 of 20 |" in compared.table([line])
    assert compared.mixed([run(0, (9, 10), 0.1, "PASS")]) == ""
    assert compared.mixed([run(seed, (9, 10), 0.1, "PASS") for seed in (0, 1)]).startswith("2 sets of versions")


def test_the_front_is_what_nothing_beats() -> None:
    def line(name: str, erased: float, lost: float) -> Summary:
        spans = [Span(value, value, value, value, value) for value in (erased, lost)]
        return Summary("c", name, 1, "", {}, spans[0], spans[1], "", (0, 0), None, None)

    lines = [line("best", 0.9, 0.05), line("gentle", 0.5, 0.01), line("beaten", 0.8, 0.06), line("same", 0.9, 0.05)]
    assert [one.method for one in front(lines)] == ["gentle", "best", "same"]


def test_a_torch_seed_is_not_touched() -> None:
    """Figures are drawn without any random number."""
    state = torch.random.get_rng_state()
    one = Summary("c", "m", 1, "", {}, Span.of([(1, 1, 1)]), Span.of([(0, 0, 0)]), "", (0, 0), None, 1.0)
    first, second = compared.pareto([one]), compared.pareto([one])
    assert first == second and torch.equal(state, torch.random.get_rng_state())
    assert first["svg"].startswith(b"<?xml") and first["png"].startswith(b"\x89PNG")
