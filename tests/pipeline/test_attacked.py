"""A spec that asks for a suite of attacks, walked, stacked and reweighed: each report is about its own model's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from safear_edit import registry
from safear_edit.attacks import suites
from safear_edit.attacks.base import Budget
from safear_edit.attacks.suites import Suite
from safear_edit.cli import main
from safear_edit.errors import SpecError
from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles
from tests import coin
from tests.pipeline.test_run import VERDICTS, apply


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`, an edit whose spec has a suite, and `two`, with another such concept after it."""
    root = tmp_path_factory.mktemp("attacked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_third_party", coin.third_party)
        patch.setitem(suites.SUITES, "smoke", Suite(Budget(2, 2, 1), ("seeds",)))  # type: ignore[index]
        patch.chdir(root)
        coin.make_world(root, "picasso", "van_gogh", n=4)
        for name in ("picasso", "van_gogh"):
            spec = yaml.safe_load((root / f"{name}.yaml").read_text())
            spec["evaluate"]["attacks"] = "smoke"
            (root / f"{name}.yaml").write_text(yaml.safe_dump(spec))
        assert main.run(apply("one", "picasso.yaml", "--model", "./base", "--unsigned")) in VERDICTS
        assert main.run(apply("two", "van_gogh.yaml", "--model", "one", "--unsigned")) in VERDICTS
        reweigh = ["stack", "reweight", "two", "picasso=0.5", "--out", "less", "--unsigned", "--device", "cpu", "-q"]
        assert main.run(reweigh) in VERDICTS
    return root


@pytest.mark.parametrize(("release", "concepts"), [("one", 1), ("two", 2), ("less", 2)])
def test_every_report_tells_of_its_own_models_attacks(
    folder: Path, release: str, concepts: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    report = json.loads((folder / release / "report.json").read_text())
    found = [concept["attacks"] for concept in report["concepts"]]
    assert len(found) == concepts and all([one["attack"] for one in part["found"]] == ["seeds"] for part in found)
    assert len({part["change"] for part in found}) == 1
    assert main.run(["report", release]) in VERDICTS, "built again, it says so still"
    capsys.readouterr()


def test_attacks_on_another_edit_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "two", tmp_path / "two")
    shutil.copy(folder / "less/concepts/picasso/attacks.json", tmp_path / "two/concepts/picasso/attacks.json")
    with pytest.raises(SpecError, match="attacks on this very model"):
        build_report(RunFiles.find(tmp_path / "two"))
