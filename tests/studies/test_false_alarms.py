"""Real draws of an unchanged model: kept, read again instead of drawn, and judged as a release would be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from safear_edit.gate.baseline import Baseline, accept
from safear_edit.gate.record import SUITES, Record, read_folder
from safear_edit.gate.rules import cut
from safear_edit.progress import silent
from safear_edit.studies import false_alarms
from safear_edit.studies.__main__ import main as studies
from tests.gate.test_baseline import released, worse


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `good` and `bad` (40 direct prompts lost), and runs of both as `trial` keeps them."""
    root = tmp_path_factory.mktemp("trial")
    released(root / "good")
    released(root / "bad", worse)
    return root


def kept(world: Path, names: list[str]) -> tuple[Path, Baseline]:
    """A folder of finished runs of `good` whose outcomes are those of the folders in `names`."""
    folder, told = world / "-".join(names), read_folder(world / "good")
    baseline = accept(told, SUITES["ci"], "trial")
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names, 1):
        rows = read_folder(world / name).rows
        record = cut(replace(baseline, record=replace(told, rows=rows)), SUITES["ci"]).record
        Baseline(replace(record, figures={}), baseline.policy, "ci", "run").save(folder / f"run-{number:03d}.txt")
    return folder, baseline


def test_kept_runs_are_read_and_not_drawn(world: Path) -> None:
    """The folder holds no weights, so anything that was drawn would fail."""
    folder, baseline = kept(world, ["good", "bad"])
    seen: list[Record] = list(false_alarms.kept_runs(world / "good", baseline, 2, folder, "cpu", silent))
    runs = [false_alarms.judged(number, record, baseline) for number, record in enumerate(seen, 1)]
    assert [run.verdict for run in runs] == ["PASS", "FAIL"]
    assert runs[0].erasure[0] == runs[0].kept[0] == 0 and runs[1].erasure[0] > 0
    assert any(why.startswith("FAIL drop/") for why in runs[1].why)
    said = false_alarms.told(runs)
    assert "2 runs of an unchanged model: 1 PASS, 0 INCONCLUSIVE, 1 FAIL" in said
    assert any(line.startswith("erasure:") for line in said)


def test_a_run_of_something_else_is_not_taken(world: Path) -> None:
    folder, baseline = kept(world, ["good"])
    told, path = read_folder(world / "good"), folder / "run-001.txt"
    assert false_alarms._read(path, told, baseline) is not None
    assert false_alarms._read(path, replace(told, digest="0" * 64), baseline) is None
    fewer = replace(baseline, record=replace(baseline.record, rows=baseline.record.rows[:-1]))
    assert false_alarms._read(path, told, fewer) is None
    path.write_text(path.read_text()[:-40])
    assert false_alarms._read(path, told, baseline) is None
    assert false_alarms._read(folder / "run-009.txt", told, baseline) is None


@pytest.mark.soak
def test_the_command(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names, code in ((["good", "good"], 0), (["good", "bad"], 1)):
        folder, _ = kept(world, names)
        words = [str(world / "good"), "--suite", "ci", "--runs", "2", "--folder", str(folder)]
        assert false_alarms.main(words) == code
        assert "runs of an unchanged model" in capsys.readouterr().out
        assert false_alarms.main([*words, "--json"]) == code
        assert len(json.loads(capsys.readouterr().out)) == 2
    assert studies(["false_alarms", str(world / "nowhere"), "--folder", str(world / "x")]) == 2
    assert "report.json" in capsys.readouterr().err
