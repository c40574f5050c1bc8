"""The long run of fuzz: what it found is found again by the number that it printed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from safear_edit.studies import fuzz


def test_the_printed_seed_finds_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sample").write_text("x")

    def damage(path: Path, chance: random.Random) -> None:
        path.write_text(str(chance.random()))

    def read(path: Path) -> None:
        raise ValueError(path.read_text())

    monkeypatch.setattr(fuzz, "file_targets", lambda folder: [fuzz.Target("one", tmp_path / "sample", damage, read)])
    monkeypatch.setattr(fuzz, "model_targets", lambda folder: iter(()))
    monkeypatch.setattr(fuzz, "_bound", lambda: None)
    assert fuzz.main(["--seed", "7", "--minutes", "0.001"]) == 1
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("seed 7: ") and second.startswith("seed 8: ")
    assert fuzz.main(["--seed", "8", "--minutes", "0.001"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == second
