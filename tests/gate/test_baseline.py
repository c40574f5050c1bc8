"""Baselines: same folder, same bytes; what was changed is refused; a file edited by hand is read strictly.

`released` makes a released folder without a model; cli/test_gate.py imports it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.evaluate.outcomes import LIKELIHOOD
from safear_edit.gate.baseline import FIRST, MAGIC, SEAL, SECOND, Baseline, accept, changes, read_baseline
from safear_edit.gate.record import SUITES, Policy, Record, read_folder
from safear_edit.gate.record import Row as GateRow
from safear_edit.gate.rules import check
from safear_edit.report.build import build_report, digest_of_inputs
from safear_edit.report.evidence import RunFiles
from tests.evaluate.test_likelihood import made_audit
from tests.report.test_build import Row, make_run

REPORTS: dict[Callable[[Row], Row | None], str] = {}
"""Of the folders that `released` made: the same files have the same report."""


def released(root: Path, change: Callable[[Row], Row | None] = lambda row: row) -> Path:
    """The made-up run of report/test_build.py with its report: 1400 scored prompts of five slices."""
    folder = make_run(root, change=change)
    if change not in REPORTS:
        REPORTS[change] = build_report(RunFiles.find(folder, model=folder)).to_json()
    (folder / "report.json").write_text(REPORTS[change])
    return folder


def report_again(folder: Path) -> None:
    """The report of what now lies in the folder, as `apply` would have written it."""
    (folder / "report.json").write_text(build_report(RunFiles.find(folder, model=folder)).to_json())


def vouch(folder: Path, *names: str) -> None:
    """What a careful forger does: the digests of these files, and the id that follows from all, put right."""
    report = json.loads((folder / "report.json").read_text())
    inputs = report["reproduce"]["inputs"]
    inputs |= {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    report["report"]["id"] = digest_of_inputs(inputs)
    (folder / "report.json").write_text(json.dumps(report))


def worse(row: Row) -> Row:
    """Forty more direct prompts draw the concept again."""
    number = int(str(row["id"])[-4:])
    again = row["slice"] == "direct" and row["model"] == "edited" and 20 <= number < 60
    return {**row, "present": True, "score": 0.9} if again else row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("released") / "safe")


@pytest.fixture(scope="module")
def record(folder: Path) -> Record:
    return read_folder(folder)


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


def test_one_changed_outcome_is_one_changed_line(record: Record, tmp_path: Path) -> None:
    before = accept(record, SUITES["audit"], "r", despite="d").to_text().splitlines()
    bad = read_folder(released(tmp_path / "b", worse))
    after = accept(bad, SUITES["audit"], "r", despite="d").to_text().splitlines()
    changed = [new for old, new in zip(before[:-1], after[:-1], strict=True) if old != new]
    assert len(changed) == 40 and all("\tfound\t0.90\tdirect-" in line for line in changed)


def test_a_suite_takes_the_first_of_each_slice(record: Record) -> None:
    made = accept(record, SUITES["smoke"], "small")
    counts = {key: len(rows) for (_, key), rows in made.record.slices().items()}
    assert counts == {"direct": 90, "paraphrase": 90, "template": 90, "test-styles": 130, "test-objects": 130}
    assert made.record.rows[:90] == record.rows[:90] and made.policy.margin == 0.20
    found = check(record, {"smoke": made})
    unsure = [finding.id for finding in found.findings if finding.decision == "INCONCLUSIVE"]
    assert (found.verdict, unsure) == ("INCONCLUSIVE", ["floor/testpainter/paraphrase"]), "9 of its first 90 are found"
    assert check(record, {"all": accept(record, SUITES["audit"], "all")}).verdict == "PASS"


def test_nobody_accepts_without_a_reason(record: Record) -> None:
    with pytest.raises(UsageError, match="--reason"):
        accept(record, SUITES["audit"], "  ")
    with pytest.raises(UsageError, match="printable"):
        accept(record, SUITES["audit"], "a\nb").to_text()


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


def test_an_edit_names_the_recipe_that_found_it(tmp_path: Path) -> None:
    """And an older one, as `released` makes it, names none."""
    folder = released(tmp_path / "safe")
    path, recipe = folder / "edit/edit.json", json.loads((folder / "recipe.json").read_text())["digest"]
    older = json.loads(path.read_text())
    for recipes in ([recipe], ["a" * 64, recipe]):
        path.write_text(json.dumps({**older, "recipes": recipes}))
        report_again(folder)
        read_folder(folder)
    path.write_text(json.dumps({**older, "recipes": ["a" * 64]}))
    vouch(folder, "edit/edit.json")
    with pytest.raises(TrustError, match=rf"safe, recipe: expected that of its edit, aaaaaaaaaaaa…, got {recipe[:12]}"):
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
    figure = "testpainter/erasure.max_cir_upper[direct]"
    made_audit(0.0312345678 - 0.05, 0.1, 0.02).save(folder)
    with pytest.raises(TrustError, match="does not name"):
        read_folder(folder)
    report_again(folder)
    made = accept(read_folder(folder), SUITES["audit"], "r")
    made.save(tmp_path / "a.txt")
    again = read_baseline(tmp_path / "a.txt")
    assert again == made and again.record.packs
    assert again.record.figures == {figure: 0.031235, "testpainter/keep.kl_upper[near]": 0.022}
    other = read_folder(folder)
    other = replace(other, packs={"testpainter": "images that are easier to forget"})
    (one,) = [one for one in check(other, {"a": again}).findings if one.id == f"likelihood/{figure}"]
    assert one.decision == "INCONCLUSIVE" and "other reference images" in one.why
    made_audit(0.05, 0.1, 0.2).save(folder)
    report_again(folder)
    assert not accept(read_folder(folder), SUITES["audit"], "r").record.figures, "doubtful figures bind nobody"
    (folder / LIKELIHOOD).write_text('{"figures": {"a": "b"}, "doubts": []}')
    vouch(folder, LIKELIHOOD)
    with pytest.raises(SpecError, match="likelihood"):
        read_folder(folder)


def test_what_an_audit_left_out_says_why(tmp_path: Path) -> None:
    """In an audit as evaluate/likelihood.py writes it the figure in doubt is missing; the gate quotes the doubt."""
    folder = released(tmp_path / "safe")
    (folder / LIKELIHOOD).write_text(made_audit(0.05, 0.1, 0.02).to_json())
    report_again(folder)
    made = accept(read_folder(folder), SUITES["audit"], "r")
    figure = "testpainter/erasure.max_cir_upper[direct]"
    assert figure in made.record.figures
    (folder / LIKELIHOOD).write_text(made_audit(0.05, 0.5, 0.02).to_json())
    report_again(folder)
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
    whole = json.loads(made_audit(0.05, 0.1, 0.02).to_json())
    (folder / LIKELIHOOD).write_text(json.dumps({**whole, "slices": rows}))
    vouch(folder, LIKELIHOOD)
    with pytest.raises(SpecError, match="slices") as caught:
        read_folder(folder)
    assert len(str(caught.value).splitlines()) == 1


EDITS: dict[str, tuple[str, str, str]] = {
    "magic": ("safear-edit baseline 3", "safear-edit baseline 9", ":1"),
    "no table": ("concept\tslice\tmember", "concept slice expect", "the line concept"),
    "a word": ("\tabsent\t0.01\tdirect-0012", "\tgone\t0.01\tdirect-0012", "columns"),
    "a prompt": ("test prompt 9 of direct", "test prompt 9 of indirect", "header names"),
    "a promise": ("margin=0.05", "margin=0", "policy margin"),
    "no promise": ("policy\tmargin=0.05 ", "policy\t", "policy"),
    "nan": ("margin=0.05", "margin=nan", "name=number"),
    "a promise twice": ("margin=0.05 ", "margin=0.05 margin=0.5 ", "each name once"),
    "a judge twice": ("judge\tgallery@test", "judge\tgallery@test\tc\njudge\tgallery@test", "one line for each judge"),
    "no reason": ("reason\tr\n", "", "one line reason"),
    "no floor": ("floor=0.9", "floor=0", "above 0"),
    "a floor below nothing": ("floor=0.9", "floor=-5", "above 0"),
    "an outcome": ("\tfound\t0.50\tdirect-0008", "\tabsent\t0.50\tdirect-0008", "changed by hand"),
    "a score": ("\tabsent\t0.01\tdirect-0012", "\tabsent\t1.01\tdirect-0012", "from 0 to 1"),
    "a score of words": ("\tabsent\t0.01\tdirect-0012", "\tabsent\tnan\tdirect-0012", "from 0 to 1"),
    "a judge less": ("judge\tgallery@test", "# judge\tgallery@test", "changed by hand"),
    "another margin": ("margin=0.05", "margin=0.5", "changed by hand"),
    "another reason": ("reason\tr\n", "reason\ta better one\n", "changed by hand"),
    "no seal": ("sha256\t", "# sha256\t", "changed by hand"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_file_edited_by_hand(record: Record, tmp_path: Path, name: str) -> None:
    old, new, says = EDITS[name]
    text = accept(record, SUITES["audit"], "r").to_text()
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


def test_a_byte_order_mark_changes_nothing(record: Record, tmp_path: Path) -> None:
    made = accept(record, SUITES["smoke"], "small")
    made.save(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.txt").read_bytes())
    assert read_baseline(tmp_path / "b.txt") == made


def test_a_line_more_at_the_end_is_noticed_too(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = accept(record, SUITES["audit"], "r").to_text()
    for added in ("# a remark\n", "\n", text.splitlines()[-2] + "\n"):
        path.write_text(text + added)
        with pytest.raises(SpecError):
            read_baseline(path)


def test_a_baseline_of_the_first_format_is_read_and_said_to_be_unprotected(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    lines = accept(record, SUITES["audit"], "r").to_text().replace(MAGIC, FIRST, 1).splitlines(keepends=True)
    assert lines[-1].startswith(f"{SEAL}\t")
    path.write_text("".join(lines[:-1]))
    old = read_baseline(path)
    assert not old.sealed and old.record.rows
    found = check(record, {"old": old})
    assert found.verdict == "PASS" and any(note.startswith("UNPROTECTED") for note in found.notes)


def test_what_a_baseline_does_not_compare_is_named(record: Record) -> None:
    made = accept(record, SUITES["audit"], "r")
    assert check(record, {"all": made}).summary.endswith("skipped"), "everything is compared"
    rows = tuple(row for row in made.record.rows if row.slice != "template")
    short = replace(made, record=replace(made.record, rows=rows, judges={}))
    found = check(record, {"short": short})
    assert "NOT COMPARED at all: 100 of the 100 prompts of testpainter/template" in found.notes
    assert "NOT COMPARED at all: judge gallery@test" in found.notes
    assert found.summary.endswith("100 prompts unseen")
    small = check(record, {"all": made}, only=SUITES["smoke"])
    assert "NOT COMPARED: 160 of the 250 prompts of testpainter/direct" in small.notes
    assert small.summary.endswith(f"{1400 - 3 * 90 - 2 * 130} prompts unseen")
    alone = replace(record, rows=small_rows(made))
    again = check(alone, {"all": made}, only=SUITES["smoke"])
    assert again.summary == small.summary, "drawn afresh, the model has no more rows than were asked for"


def small_rows(made: Baseline) -> tuple[GateRow, ...]:
    return made.record.first(SUITES["smoke"]).rows


def test_a_model_that_failed_is_accepted_only_with_a_reason(tmp_path: Path) -> None:
    bad = read_folder(released(tmp_path / "bad", worse))
    assert bad.verdict.upper() == "FAIL"
    with pytest.raises(UsageError, match=r"own report says FAIL.*--despite"):
        accept(bad, SUITES["audit"], "r")
    made = accept(bad, SUITES["audit"], "r", despite="the old one is worse still")
    made.save(tmp_path / "a.txt")
    assert "despite\tthe old one is worse still\n" in (tmp_path / "a.txt").read_text()
    assert read_baseline(tmp_path / "a.txt") == made
    assert any("the old one is worse still" in note for note in check(bad, {"a": made}).notes)


def test_a_model_that_nobody_can_read_is_accepted_only_with_a_reason(record: Record) -> None:
    rows = tuple(replace(row, outcome="unclear") if row.slice == "direct" else row for row in record.rows)
    with pytest.raises(UsageError, match="no image of testpainter/direct can be read"):
        accept(replace(record, rows=rows), SUITES["audit"], "r")
    with pytest.raises(UsageError, match="above 0"):
        accept(replace(record, floors={"testpainter": 0.0}), SUITES["audit"], "r")


def test_what_a_new_baseline_changes_is_told_line_by_line(record: Record, tmp_path: Path) -> None:
    old = accept(record, SUITES["audit"], "first")
    bad = accept(read_folder(released(tmp_path / "bad", worse)), SUITES["audit"], "second", Policy(0.1), "known")
    rows = tuple(row for row in bad.record.rows if row.slice != "template")
    new = replace(bad, record=replace(bad.record, rows=rows, judges={}))
    told = {what: (then, now) for what, then, now in changes(old, new)}
    assert told["reason"] == ("first", "second") and told["policy margin"] == ("0.05", "0.1")
    assert told["despite"] == ("", "known") and told["judge gallery@test"] == ("b" * 64, "nothing")
    assert told["testpainter/direct: no longer as they must be"] == ("of 250", "40")
    assert told["testpainter/template: prompts no longer there"] == ("of 100", "100")
    assert changes(old, old) == []


def test_a_member_that_pays_is_named(record: Record, tmp_path: Path) -> None:
    """Ten lost images of one member of five: 2.5 points of the group, 12.5 of the member."""

    def named(record: Record, lost: int = 0) -> Record:
        rows, left = [], lost
        for i, row in enumerate(record.rows):
            member = f"style={i % 5}" if row.slice == "test-styles" else ""
            gone = member == "style=2" and row.good and left > 0
            left -= gone
            rows.append(replace(row, member=member, outcome="absent" if gone else row.outcome))
        return replace(record, rows=tuple(rows))

    before = accept(named(record), SUITES["ci"], "r")
    before.save(tmp_path / "a.txt")
    assert read_baseline(tmp_path / "a.txt") == before and before.to_text().startswith(MAGIC)
    now = named(record, lost=10)
    found = {one.id: one for one in check(now, {"a": read_baseline(tmp_path / "a.txt")}).findings}
    pays = found["member/testpainter/test-styles"]
    assert pays.decision == "FAIL" and "style=2: lost 10, gained 0 of 70" in pays.observed and len(pays.prompts) == 5
    assert not any("by member" in note for note in check(now, {"a": before}).notes)
    few = [replace(row, member=f"style={i}") if row.member else row for i, row in enumerate(before.record.rows)]
    alone = replace(before, record=replace(before.record, rows=tuple(few)))
    (told,) = [note for note in check(now, {"a": alone}).notes if "by member" in note]
    assert told.startswith("NOT COMPARED by member: 350 of the 350 members of testpainter/test-styles have too few")
    same = {one.id: one.decision for one in check(named(record), {"a": before}).findings}
    assert same["member/testpainter/test-styles"] == "PASS"


def test_an_older_baseline_takes_its_members_from_the_model(record: Record, tmp_path: Path) -> None:
    """The second format has no column for them; it is read, and written as it was."""
    plain = record
    plain = replace(plain, rows=tuple(replace(row, member="") for row in plain.rows))
    old = accept(plain, SUITES["audit"], "r")
    old.save(tmp_path / "old.txt")
    text = (tmp_path / "old.txt").read_text()
    assert (
        text.startswith(SECOND) and "\tmember\t" not in text and read_baseline(tmp_path / "old.txt").to_text() == text
    )
    styled = [replace(row, member=f"m{i % 4}") if row.expect == "present" else row for i, row in enumerate(plain.rows)]
    found = check(replace(plain, rows=tuple(styled)), {"old": read_baseline(tmp_path / "old.txt")})
    assert {"member/testpainter/test-styles", "member/testpainter/test-objects"} <= {one.id for one in found.findings}
    assert found.verdict == "PASS"
