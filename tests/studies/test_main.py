"""The door of the studies: each can be called, and what can't be used is one line whichever is asked."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest

from safear_edit.studies.__main__ import main, names
from safear_edit.studies.arguments import command, positive


@pytest.mark.parametrize("name", names())
def test_every_study_can_be_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"safear_edit.studies.{name}").main(["--help"])
    assert ended.value.code == 0 and f"python -m safear_edit.studies {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("speed_training", "expected one of ablation, attacks"),
        ("tables --folder none", "a folder with tables"),
        ("papers --folder none", "a row"),
        ("speed_llamagen sampling --model none", "family"),
        ("gate_cost none", "a released folder"),
        ("tamper none --trust none", "a release that"),
        ("fuzz --minutes 0 --only none", "a part of one of"),
        ("fuzz --release none", "No such file"),
        ("scale_erasure none", "none"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
def test_numbers_start_at_one(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert positive("12") == 12
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", "--repeats", text])
    assert ended.value.code == 2 and f"a whole number above 0, got '{text}'" in capsys.readouterr().err


def test_a_row_names_the_command_that_made_it() -> None:
    parser = argparse.ArgumentParser(prog="python -m x")
    parser.add_argument("--models", nargs="+", default=("a", "b"))
    parser.add_argument("--load-only", action="store_true")
    parser.add_argument("--word")
    parser.add_argument("--repeats", type=positive, default=3)
    names = ("models", "load_only", "word", "repeats")
    assert command(parser, parser.parse_args(["--models", "a", "b"]), names) == "python -m x"
    chosen = parser.parse_args(["--word", "two words", "--load-only", "--models", "a", "--repeats", "1"])
    assert command(parser, chosen, names) == "python -m x --models a --load-only --word 'two words' --repeats 1"
