"""fuzz_guided: its targets are there, take their samples, and a reader's own fault reaches the fuzzer."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from safear_edit.errors import UsageError
from safear_edit.studies import fuzz, fuzz_guided
from safear_edit.studies.fuzz_guided import ON_RELEASE, TARGETS, main, reading


def test_every_target_takes_its_sample_and_refuses_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    found = {target.name: target for target in fuzz.file_targets(tmp_path / "samples")}
    for name in TARGETS:
        one = reading(found[name], tmp_path)
        one((found[name].sample / found[name].file).read_bytes())
        one(b"\xff\x00{")


def test_a_fault_of_the_reader_is_not_caught(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        raise KeyError(path.read_text())

    with pytest.raises(KeyError, match="abc"):
        reading(fuzz.Target("x", tmp_path / "x.txt", fuzz.break_text, read), tmp_path)(b"abc")


def test_without_atheris_one_line_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit) as ended:
        main(["spec", "--corpus", str(tmp_path / "corpus")])
    assert ended.value.code == 2 and "safear-edit[fuzz]" in capsys.readouterr().err
    assert not (tmp_path / "corpus").exists()


def test_a_release_is_asked_for_where_the_target_is_one_of_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([ON_RELEASE[0], "--corpus", str(tmp_path / "corpus")])
    assert ended.value.code == 2 and "--release" in capsys.readouterr().err


def test_a_release_without_the_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which no baseline can be accepted, for instance."""
    monkeypatch.setitem(sys.modules, "atheris", SimpleNamespace(instrument_imports=lambda include: nullcontext()))
    monkeypatch.setattr(fuzz_guided, "release_targets", lambda release, folder: [])
    (work := tmp_path / "work").mkdir()
    monkeypatch.setattr(fuzz_guided.tempfile, "mkdtemp", lambda prefix: str(work))
    (release := tmp_path / "release").mkdir()
    (release / "model.sig").touch()
    with pytest.raises(UsageError, match="a release that has baseline"):
        main(["baseline", "--release", str(release), "--corpus", str(tmp_path / "corpus")])
