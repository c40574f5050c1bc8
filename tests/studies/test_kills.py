"""kills: what it compares, how a process ends that it kills, and which walks remain."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from safear_edit.errors import UsageError
from safear_edit.release import keys
from safear_edit.studies import kills
from safear_edit.studies.rows import write_rows
from tests.studies.test_tamper import release  # noqa: F401  (a fixture)


def test_what_differs_is_named(release: Path) -> None:  # noqa: F811
    expected, trust = kills.contents(release), release.parent / "trust"
    assert kills.faults_of(release, expected, trust) == []
    assert expected["report.json"] == "" != expected["outcomes.jsonl"]
    other = {**expected, "outcomes.jsonl": "0" * 64, "gone.json": "1"}
    left = release.parent / f".{release.name}.partial"
    left.mkdir()
    try:
        found = kills.faults_of(release, other, trust)
    finally:
        left.rmdir()
    assert found == ["gone.json is in one of the two only", "outcomes.jsonl differs", f"{left.name} was left"]


def test_a_signature_that_does_not_hold_is_a_fault(release: Path, tmp_path: Path) -> None:  # noqa: F811
    keys.throwaway(tmp_path)
    (said,) = kills.faults_of(release, kills.contents(release), tmp_path)
    assert "signature of a trusted key" in said


@pytest.mark.parametrize("number", list(kills.SIGNALS))
def test_each_signal_ends_a_command_in_its_way(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that works until it is stopped."""

    def work(**words: object) -> int:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            sum(range(10_000))
        return 0

    monkeypatch.setattr("safear_edit.cli.main.verbs", SimpleNamespace(main=work))
    at, code = kills.killed(["apply"], 0.05, number, tmp_path / "log")
    assert code == kills.SIGNALS[number] and 0.05 <= at < 30


def test_a_command_that_ends_before_its_moment_is_not_killed(tmp_path: Path) -> None:
    at, code = kills.killed(["--version"], 1000.0, signal.SIGKILL, tmp_path / "log")
    assert (at, code) == (1000.0, 0)


def test_a_walk_that_is_killed_behind_its_publication_is_not_started_again(
    release: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(release.parent / "trust", tmp_path / "keys")
    walk = kills.Walk("single", "llamagen", ("apply",))
    monkeypatch.setattr(kills, "undisturbed", lambda walk, folder: (9.0, kills.contents(release)))
    sent = []

    def killed(words: list[str], after: float, number: signal.Signals, log: Path) -> tuple[float, int]:
        sent.append(number)
        shutil.copytree(release, Path(words[-1]))
        return after, kills.SIGNALS[number]

    monkeypatch.setattr(kills, "killed", killed)
    row = kills.torment(walk, 0, tmp_path)
    assert len(sent) == len(row["kills"]) == 1 and row["faults"] == []


def test_rows_of_the_other_size_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"size": "mini", "walk": "single", "model": "llamagen", "number": 0}])
    with pytest.raises(UsageError, match="a row of this study with these settings"):
        kills.main(["--pico", "--out", str(tmp_path)])


def test_the_next_call_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    found = kills.walks(["llamagen", "janus"], tmp_path, pico=False)
    assert [(walk.shape, walk.model) for walk in found][:3] == [
        ("single", "llamagen"),
        ("single", "janus"),
        ("stacked", "llamagen"),
    ]
    kill = {"signal": "SIGTERM", "at": 1.0, "share": 0.5, "exit": 143}
    rows = [{"walk": "single", "model": "llamagen", "number": 0, "seconds": 2.0, "kills": [kill] * 2, "faults": []}]
    left = kills.rounds(found, 2, rows)
    walk, number = next(left)
    assert (walk.shape, walk.model, number) == ("single", "janus", 0)
    rows.append({**rows[0], "model": "janus", "faults": ["x differs"]})
    assert next(left, None) is None
    first, second = kills.table(rows, "mini")
    assert first["kills"] == first["SIGTERM"] == 2
    assert [line["walks that ended as undisturbed"] for line in (first, second)] == [{"k": 1, "n": 1}, {"k": 0, "n": 1}]
