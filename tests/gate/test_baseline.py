"""Baselines: same folder, same bytes; what was changed is refused; a file edited by hand is read strictly.

`released` makes a released folder without a model; cli/test_gate.py imports it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.evaluate.outcomes import LIKELIHOOD
from safear_edit.gate.baseline import accept, read_baseline
from safear_edit.gate.record import SUITES, Policy, read_folder
from safear_edit.gate.rules import check
from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles
from tests.evaluate.test_likelihood import made_audit
from tests.report.test_build import Row, make_run


def released(root: Path, change: Callable[[Row], Row | None] = lambda row: row) -> Path:
    """The made-up run of report/test_build.py with its report: 1400 scored prompts of five slices."""
    folder = make_run(root, change=change)
    (folder / "report.json").write_text(build_report(RunFiles.find(folder, model=folder)).to_json())
    return folder


def worse(row: Row) -> Row:
    """Forty more direct prompts draw the concept again."""
    number = int(str(row["id"])[-4:])
    again = row["slice"] == "direct" and row["model"] == "edited" and 20 <= number < 60
    return {**row, "present": True, "score": 0.9} if again else row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("released") / "safe")


def test_same_folder_same_bytes_and_back(folder: Path, tmp_path: Path) -> None:
    made = accept(read_folder(folder), SUITES["audit"], "first release")
    path = tmp_path / "a.txt"
    made.save(path)
    first = path.read_bytes()
    accept(read_folder(folder), SUITES["audit"], "first release").save(path)
    assert path.read_bytes() == first
    assert read_baseline(path) == made
    assert len(made.record.rows) == 1400 and len(first) < 200_000
    assert str(folder) not in first.decode()


def test_one_changed_outcome_is_one_changed_line(folder: Path, tmp_path: Path) -> None:
    before = accept(read_folder(folder), SUITES["audit"], "r").to_text().splitlines()
    after = accept(read_folder(released(tmp_path / "b", worse)), SUITES["audit"], "r").to_text().splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 40 and all("\tfound\t0.90\tdirect-" in line for line in changed)


def test_a_suite_takes_the_first_of_each_slice(folder: Path) -> None:
    record = read_folder(folder)
    made = accept(record, SUITES["smoke"], "small")
    counts = {key: len(rows) for (_, key), rows in made.record.slices().items()}
    assert counts == {"direct": 90, "paraphrase": 90, "template": 90, "test-styles": 130, "test-objects": 130}
    assert made.record.rows[:90] == record.rows[:90] and made.policy.margin == 0.20
    found = check(record, {"smoke": made})
    unsure = [finding.id for finding in found.findings if finding.decision == "INCONCLUSIVE"]
    assert (found.verdict, unsure) == ("INCONCLUSIVE", ["floor/testpainter/paraphrase"]), "9 of its first 90 are found"
    assert check(record, {"all": accept(record, SUITES["audit"], "all")}).verdict == "PASS"


def test_nobody_accepts_without_a_reason(folder: Path) -> None:
    with pytest.raises(UsageError, match="--reason"):
        accept(read_folder(folder), SUITES["audit"], "  ")
    with pytest.raises(UsageError, match="printable"):
        accept(read_folder(folder), SUITES["audit"], "a\nb").to_text()


@pytest.mark.parametrize("name", ["outcomes.jsonl", "recipe.json", "judges.json", "pairs/pairs.safetensors"])
def test_a_file_that_is_not_the_reports_is_not_trusted(tmp_path: Path, name: str) -> None:
    folder = released(tmp_path / "safe")
    path = folder / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(TrustError, match=name.replace(".", r"\.")):
        read_folder(folder)
    path.unlink()
    with pytest.raises((TrustError, SpecError), match=name.rpartition("/")[2]):
        read_folder(folder)


def test_outcomes_that_no_report_vouches_for(tmp_path: Path) -> None:
    folder = released(tmp_path / "safe")
    report = json.loads((folder / "report.json").read_text())
    del report["reproduce"]["inputs"]["outcomes.jsonl"]
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(TrustError, match="does not name"):
        read_folder(folder)


def test_likelihood_figures_come_along(tmp_path: Path) -> None:
    folder = released(tmp_path / "safe")
    figures = {"erasure.max_cir_upper[direct]": 0.0312345678}
    (folder / LIKELIHOOD).write_text(json.dumps({"figures": figures, "doubts": []}))
    made = accept(read_folder(folder), SUITES["audit"], "r")
    made.save(tmp_path / "a.txt")
    again = read_baseline(tmp_path / "a.txt")
    assert again.record.figures == {"testpainter/erasure.max_cir_upper[direct]": 0.031235}
    (folder / LIKELIHOOD).write_text(json.dumps({"figures": figures, "doubts": ["too wide"]}))
    assert not accept(read_folder(folder), SUITES["audit"], "r").record.figures, "doubtful figures bind nobody"
    (folder / LIKELIHOOD).write_text('{"figures": {"a": "b"}, "doubts": []}')
    with pytest.raises(SpecError, match="likelihood"):
        read_folder(folder)


def test_what_an_audit_left_out_says_why(tmp_path: Path) -> None:
    """In an audit as evaluate/likelihood.py writes it the figure in doubt is missing; the gate quotes the doubt."""
    folder = released(tmp_path / "safe")
    (folder / LIKELIHOOD).write_text(made_audit(0.05, 0.1, 0.02).to_json())
    made = accept(read_folder(folder), SUITES["audit"], "r")
    figure = "testpainter/erasure.max_cir_upper[direct]"
    assert figure in made.record.figures
    (folder / LIKELIHOOD).write_text(made_audit(0.05, 0.5, 0.02).to_json())
    now = read_folder(folder)
    assert figure not in now.figures and set(now.in_doubt) == {figure}
    (found,) = [one for one in check(now, {"r": made}).findings if one.id == f"likelihood/{figure}"]
    assert found.decision == "INCONCLUSIVE" and "0.50 is wider than 0.4" in found.why
    again = accept(now, SUITES["audit"], "r")
    again.save(tmp_path / "a.txt")
    assert read_baseline(tmp_path / "a.txt") == again


@pytest.mark.parametrize("rows", ["direct", ["direct"], [{"slice": "direct"}], [{"doubts": []}], [{"doubts": "x"}]])
def test_a_damaged_audit_is_one_line(tmp_path: Path, rows: object) -> None:
    folder = released(tmp_path / "safe")
    (folder / LIKELIHOOD).write_text(json.dumps({"figures": {}, "doubts": [], "slices": rows}))
    with pytest.raises(SpecError, match="slices") as caught:
        read_folder(folder)
    assert len(str(caught.value).splitlines()) == 1


EDITS: dict[str, tuple[str, str, str]] = {
    "magic": ("safear-edit baseline 1", "safear-edit baseline 9", ":1"),
    "no table": ("concept\tslice\texpect", "concept slice expect", "the line concept"),
    "a word": ("\tabsent\t0.01\tdirect-0012", "\tgone\t0.01\tdirect-0012", "columns"),
    "a prompt": ("test prompt 9 of direct", "test prompt 9 of indirect", "header names"),
    "a promise": ("margin=0.05", "margin=0", "policy margin"),
    "no promise": ("policy\tmargin=0.05 ", "policy\t", "policy"),
    "nan": ("margin=0.05", "margin=nan", "name=number"),
    "no reason": ("reason\tr\n", "", "one line reason"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_file_edited_by_hand(folder: Path, tmp_path: Path, name: str) -> None:
    old, new, says = EDITS[name]
    text = accept(read_folder(folder), SUITES["audit"], "r").to_text()
    assert old in text
    path = tmp_path / "a.txt"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=says) as caught:
        read_baseline(path)
    assert len(str(caught.value).splitlines()) == 1


def test_not_there_and_not_text(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere"):
        read_baseline(tmp_path / "nowhere.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="UTF-8"):
        read_baseline(tmp_path / "a.txt")


def test_a_promise_is_a_share() -> None:
    with pytest.raises(UsageError, match="margin"):
        Policy(margin=5)


def test_a_byte_order_mark_changes_nothing(folder: Path, tmp_path: Path) -> None:
    made = accept(read_folder(folder), SUITES["smoke"], "small")
    made.save(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.txt").read_bytes())
    assert read_baseline(tmp_path / "b.txt") == made
