"""`python -m safear_edit.minis`: what can't be used is one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from safear_edit.minis.__main__ import main


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("measure --folder F --model none", "family"),
        ("llamagen --folder F --vq F", "a finished training"),
        ("janus --folder F --vq F", "a finished training"),
        ("infinity --folder F --bsq F", "a finished training"),
        ("sheet --folder taken", "exists"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1 and not Path("F").exists()


def test_no_steps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["judge", "--folder", str(tmp_path / "F"), "--steps", "0"])
    assert ended.value.code == 2 and "above 0" in capsys.readouterr().err
