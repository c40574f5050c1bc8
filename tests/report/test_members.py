"""A member's loss can't hide in its group, and every number of a report is recounted here from the rows alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from safear_edit.evaluate import stats
from safear_edit.report import bom
from safear_edit.report.build import build_report, verify_command
from safear_edit.report.evidence import RunFiles
from safear_edit.report.html import render_html
from safear_edit.report.model_card import model_card
from safear_edit.report.schema import Clustered, Criterion, Report, Scope
from safear_edit.report.sentences import preservation_criterion, summary, worst_slice
from safear_edit.spec.spec import Gates
from tests.report.test_build import FLIPS, Row, built, make_run, relabel

LABELS = ("style=one", "style=two", "style=three", "style=four", "style=five")
GOES = "style=two"
"""The member that pays: eight of the eight that its group loses."""


def paying(root: Path) -> Path:
    """A run whose group of styles has five members; one of them loses eight of its eighty images."""

    def change(row: Row) -> Row:
        lost, number = FLIPS["test-styles"][0], int(str(row["id"])[-4:]) - 7
        if row["slice"] != "test-styles" or row["phase"] != "score" or row["model"] != "edited":
            return row
        gone = number % len(LABELS) == 1 and number < lost * len(LABELS)
        if row["present"] is False or gone:
            return {**row, "present": None if gone and number < 20 else not gone, "score": 0.98, "why": "style 0.98"}
        return row

    make_run(root, change=change)
    styles = "test-styles"
    relabel(root, lambda one: LABELS[(int(one["id"][-4:]) - 7) % len(LABELS)] if one["slice"] == styles else None)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paying(tmp_path_factory.mktemp("members") / "run")


@pytest.fixture(scope="module")
def report(root: Path) -> Report:
    return build_report(RunFiles.find(root))


def test_a_member_fails_the_verdict_where_its_group_passes(report: Report) -> None:
    lines = {line.id: line for line in report.verdict.criteria}
    assert lines["preservation/testpainter/test-styles"].decision == "PASS"
    found = lines["members/testpainter/test-styles"]
    assert (found.decision, report.verdict.status) == ("FAIL", "FAIL") and GOES in found.why
    assert f"{GOES}: lost 8, gained 0 of 80" in found.observed and f"{GOES}: lost 8" in report.verdict.summary
    assert lines["members/testpainter/test-objects"].decision == "PASS"
    styles = report.concepts[0].preservation[0]
    assert styles.members[0].name == GOES and len(styles.members) == len(LABELS)


def test_every_rate_is_what_the_rows_say(root: Path, report: Report) -> None:
    """Counted by code that shares nothing with the report's: erasure, preservation, members."""
    rows = [json.loads(line) for line in (root / "outcomes.jsonl").read_text().splitlines()]
    label = {p["id"]: p["judge_label"] for p in json.loads((root / "recipe.json").read_text())["evaluate"]["prompts"]}
    now = {r["id"]: r for r in rows if r["phase"] == "score" and r["model"] == "edited"}
    then = {r["id"]: r for r in rows if r["phase"] == "score" and r["model"] == "base"}
    concept = report.concepts[0]
    for part in concept.erasure:
        said = Counter(str(now[key]["present"]) for key in then if then[key]["slice"] == part.slice)
        assert part.erased and part.erased_strict and part.edited_found
        assert (part.scored, part.edited_found.k) == (said.total(), said["True"])
        assert (part.erased.k, part.erased_strict.k) == (said["False"] + said["None"], said["False"])
    for group in concept.preservation:
        keys = [key for key in then if then[key]["slice"] == group.group]
        lost = Counter(label[k] for k in keys if then[k]["present"] is True and now[k]["present"] is not True)
        gained = Counter(label[k] for k in keys if then[k]["present"] is not True and now[k]["present"] is True)
        assert group.change and (group.change.lost, group.change.gained) == (lost.total(), gained.total())
        n = Counter(label[k] for k in keys)
        counted = {one.name: (one.n, one.lost, one.gained) for one in group.members}
        assert counted == {name: (n[name], lost[name], gained[name]) for name in n}


def test_report_card_bom_and_page_say_the_same(root: Path, report: Report) -> None:
    card, page, parts = model_card(report), render_html(report, root), bom.to_json(report)
    styles = report.concepts[0].preservation[0]
    for one in styles.members:
        assert f"| {one.name} | test-styles | {one.lost} / {one.gained} of {one.n} |" in card
        assert f"{one.name}: lost {one.lost}, gained {one.gained} of {one.n}" in parts
        assert f'<strong>{one.name}</strong></td><td>test-styles</td><td class="num">{one.lost} / {one.gained}<' in page
    assert page.index(f"<strong>{GOES}</strong>") == min(page.index(f"<strong>{name}</strong>") for name in LABELS)
    assert "Drop of each member in points" in page and f">{GOES}</text>" in page
    assert f"worst member is {GOES}" in page and f"worst member is {GOES}" in card


def test_a_lost_image_says_what_the_judge_said(report: Report, root: Path) -> None:
    """A score of 0.98 beside a lost image was read as a mistake: it could not be told."""
    reasons = Counter(row.reason for row in report.concepts[0].preservation[0].lost_examples)
    assert reasons == {"cannot tell: style 0.98": 3, "not found: style 0.98": 5}
    assert "<td>cannot tell: style 0.98</td>" in render_html(report, root)


def test_reports_without_members_are_read(tmp_path: Path) -> None:
    old: dict[str, Any] = json.loads(built(tmp_path).to_json())
    for group in old["concepts"][0]["preservation"]:
        del group["members"]
        group["lost_examples"] = [{k: v for k, v in row.items() if k != "reason"} for row in group["lost_examples"]]
    old["verdict"]["criteria"] = [line for line in old["verdict"]["criteria"] if "members" not in line["id"]]
    read = Report.model_validate_json(json.dumps(old))
    assert read.concepts[0].preservation[0].members == () and "Each member" not in render_html(read, tmp_path)
    assert "member, worst first" not in model_card(read)


def test_the_worst_slice_has_the_smallest_bound(root: Path, report: Report) -> None:
    """A hundred of a hundred show less than 249 of 250."""
    concept = report.concepts[0]
    best = {part.slice: part.erased_lower95 for part in concept.erasure}
    assert worst_slice(concept).slice == min(best, key=lambda name: best[name] or 0.0)
    few, many = concept.erasure[2], concept.erasure[0]
    perfect = few.model_copy(update={"erased": stats.clopper_pearson(100, 100), "erased_lower95": 0.970})
    other = many.model_copy(update={"erased": stats.clopper_pearson(249, 250), "erased_lower95": 0.981})
    assert worst_slice(concept.model_copy(update={"erasure": (other, perfect)})).slice == "template"


def _with_note(report: Report, text: str) -> Scope:
    concepts = tuple(one.model_copy(update={"safety_note": text}) for one in report.scope.concepts)
    return report.scope.model_copy(update={"concepts": concepts})


def test_what_page_and_card_say_follows_from_the_counts(report: Report, root: Path) -> None:
    """Losses are of what the base model drew; a bound by content that reads like the plain one isn't told twice."""
    concept = report.concepts[0]
    lost = sum(group.change.lost for group in concept.preservation if group.change)
    drawn = sum(group.base_kept.k for group in concept.preservation if group.base_kept)
    harm = next(risk for risk in report.residual_risks if "harms other images" in risk.risk)
    assert harm.evidence.startswith(f"{lost} of {drawn} preserved prompts")
    group = concept.preservation[0]
    assert group.change and drawn < sum(one.scored for one in concept.preservation)
    for bound, told in ((group.change.upper95 + 0.00001, False), (group.change.upper95 + 0.01, True)):
        clustered = Clustered(clusters=9, design_effect=1.1, bound=bound)
        line = preservation_criterion("x", group.model_copy(update={"clustered": clustered}), Gates())
        assert ("by content" in line.observed) is told
    noted = report.model_copy(update={"scope": _with_note(report, "Asked for by <the> estate.")})
    page, card = render_html(noted, root), model_card(noted)
    assert "Asked for by &lt;the&gt; estate." in page and r"Asked for by \<the\> estate." in card
    assert (
        "`" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
        and "<code>safear-edit approve</code>" in page
    )


def test_a_slice_that_failed_is_worse_than_one_with_a_few_prompts(report: Report) -> None:
    """20 of 20 have a smaller bound than 230 of 250, which are the reason for FAIL."""
    concept = report.concepts[0]
    part, few = concept.erasure[0], concept.erasure[1]
    rates = stats.clopper_pearson(230, 250), stats.clopper_pearson(20, 20)
    failed = part.model_copy(update={"erased": rates[0], "erased_lower95": 0.886, "decision": "FAIL"})
    thin = few.model_copy(update={"erased": rates[1], "erased_lower95": 0.861, "decision": "INCONCLUSIVE"})
    told = concept.model_copy(update={"erasure": (thin, failed)})
    assert worst_slice(told).slice == failed.slice
    lines = [
        Criterion(
            id=f"erasure/x/{one.slice}", concept="x", claim="", needed="", observed="", decision=one.decision, why=""
        )
        for one in (thin, failed)
    ]
    said = summary([told], lines, ())
    assert f"never measured, in 230 of 250 images of the worst slice ({failed.slice})" in said
    assert f"0 of 2 criteria are met; not met: {lines[1].id}; undecided: {lines[0].id}." in said


def test_every_bound_says_its_side_and_unreadable_images_count(report: Report) -> None:
    for line in report.verdict.criteria:
        for text in (line.needed, line.observed):
            assert text.count("95 %") == text.count("one-sided 95 %") + text.count("two-sided 95 %"), text
        if line.id.startswith("erasure/"):
            assert "if unreadable ones count as found" in line.observed
    assert "two-sided 95 % interval" in report.verdict.summary and "count as found" in report.verdict.summary


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("safear-edit apply x.yaml --out safe --key keys/a.key", "safear-edit verify safe --trust keys"),
        ("safear-edit apply x.yaml --throwaway-key t --out=o/safe", "safear-edit verify o/safe --trust t"),
        ("safear-edit apply x.yaml --out 'my safe' --key awskms:1", "safear-edit verify 'my safe' --trust KEYDIR"),
        ("not stated", "safear-edit verify FOLDER --trust KEYDIR"),
        ("an 'open quote", "safear-edit verify FOLDER --trust KEYDIR"),
    ],
)
def test_the_verify_command_is_the_runs(command: str, says: str) -> None:
    assert verify_command(command) == says


def test_the_first_screen_says_what_is_open(report: Report, root: Path) -> None:
    """Verdict, model, date, approval and the verify command; what is not met before what is, which is folded."""
    page, card = render_html(report, root), model_card(report)
    first = page[page.index('id="verdict"') : page.index('id="not-tested"')]
    for text in (
        "not approved when this page was made",
        "2030-01-02 03:04:05 UTC",
        "safear-edit verify test-out --trust",
    ):
        assert text in first
    _, open_, met = re.split("not met, or undecided|<details>", first)
    assert "members/testpainter/test-styles" in open_ and "erasure/testpainter/direct" not in open_
    assert "erasure/testpainter/direct" in met and "members/testpainter/test-styles" not in met
    rule = "drop of each member at most 8.0 points and no more than chance explains, or below 12.0 with one-sided 95"
    assert f"worst first. Needed: {rule}" in page and f"Needed of members: {rule}" in card
    assert "**Not approved**" in card and "safear-edit verify test-out --trust KEYDIR" in card
