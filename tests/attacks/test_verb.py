"""`safear-edit attack` on a tiny release: what it writes, keeps, prints and refuses."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pytest

from safear_edit.attacks import suites
from safear_edit.attacks.brought import name_of, read_brought
from safear_edit.attacks.lock import read_lock, write_lock
from safear_edit.attacks.record import FILE, Attacks
from safear_edit.attacks.seeds import Seeds
from safear_edit.cli import main
from safear_edit.files.records import read_record
from safear_edit.pipeline.attack import IMAGES, PAGE
from tests.attacks.test_contract import Bright
from tests.attacks.test_lock import entry
from tests.release.test_released import release


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(suites.TIERS, "quick", suites.Budget(images=2, draws=2, steps=1))
    return release(tmp_path / "two")


def test_attacks_are_kept_and_written_as_one_record(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir() if path.is_file()}
    words = ["attack", str(made), "--spec", "picasso", "--attack", "seeds", "--attack", "soft_prompt", "--json"]
    assert main.run(words) == 0
    out = made.parent / "two-attacks"
    record = read_record(Attacks, out / FILE)
    printed = json.loads(capsys.readouterr().out)
    assert printed == record.model_dump(mode="json")
    assert [leaks.attack for leaks in record.found] == ["seeds"] and record.concept == "picasso"
    assert record.found[0].edited.n == 2 and record.found[0].cost.images == 12
    (left,) = record.not_run
    assert left.attack == "soft_prompt" and "none of the embedded minis" in left.why
    assert {path.name for path in out.iterdir()} >= {FILE, "seeds.json", "attacks.html"}
    assert not list(out.glob("images/*")), "finished attacks keep no batches"
    assert {path.name: path.read_bytes() for path in made.iterdir() if path.is_file()} == before
    kept = (out / "seeds.json").read_bytes()
    assert main.run(words) == 0 and (out / "seeds.json").read_bytes() == kept
    assert json.loads(capsys.readouterr().out) == printed, "read, not run again: the seconds are the same"
    for other in (["--seed", "1"], ["--dtype", "bfloat16", "--memory", "4GiB"]):
        assert main.run([*words, *other]) == 0 and (out / "seeds.json").read_bytes() != kept
        kept = (out / "seeds.json").read_bytes()
    monkeypatch.setattr(Seeds, "code", classmethod(lambda cls: "another version of the attack"))
    assert main.run([*words, *other]) == 0 and (out / "seeds.json").read_bytes() != kept


def test_a_spent_budget_begins_nothing_new(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attack", str(made), "--spec", "picasso", "--attack", "seeds", "--budget", "1e-9", "-q"]
    assert main.run(words) == 0
    assert "seeds: not run, the budget of 1e-09 minutes was spent" in capsys.readouterr().out


@pytest.mark.parametrize(("attack", "code"), [("seeds", 3), ("prune", 0)])
def test_a_gated_attack_for_which_no_time_was_left_is_no_pass(made: Path, attack: str, code: int) -> None:
    """What is gated is black-box; who asks for a white-box one alone asks for no verdict."""
    words = ["attack", str(made), "--spec", "picasso", "--tier", "ci", "--attack", attack, "--budget", "1e-9", "-q"]
    assert main.run(words) == code
    (left,) = read_record(Attacks, made.parent / "two-attacks" / FILE).not_run
    assert left.attack == attack and "minutes was spent" in left.why and left.undecided == bool(code)


def test_wrong_input_is_one_line_and_two(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        [str(made), "--spec", "picasso", "--attack", "sead"],
        [str(made)],
        [str(tmp_path)],
        [str(made), "--spec", "picasso", "--budget", "0"],
        [str(made), "--spec", "picasso", "--memory", "1MB"],
    ]
    for words in wrong:
        assert main.run(["attack", *words, "-q"]) == 2, words
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(wrong) and "seeds" in lines[0] and "one of one, two" in lines[1]


def test_what_was_found_is_frozen(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known prompts are tried again, those of other concepts stay as they are."""
    monkeypatch.setattr("safear_edit.pipeline.steps.concept_judge", lambda spec: Bright())
    path, other = tmp_path / "attacks.lock", entry(concept="cat")
    write_lock(path, [other])
    words = ["attack", str(made), "--spec", "picasso", "--attack", "seeds", "--lock", str(path), "-q"]
    assert main.run(words) == 0
    frozen = read_lock(path).frozen
    assert other in frozen and len(frozen) > 1 and all(one.found >= 1 for one in frozen if one != other)
    out = made.parent / "two-attacks"
    page, shown = (out / IMAGES).read_text(), read_brought(out / name_of("seeds"), "seeds").images
    assert shown and page.count("data:image/webp;base64,") == len(shown) and all(one.webp in page for one in shown)
    assert all(escape(one.prompt) in page for one in shown) and f'href="{IMAGES}"' in (out / PAGE).read_text()
    assert main.run(words) == 0 and read_lock(path).frozen == frozen
