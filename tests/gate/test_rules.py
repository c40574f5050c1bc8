"""The gate's rules on made-up records, that it errs as seldom as it says, and that every refusal names what differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from safear_edit.errors import SafearError, TrustError, UsageError
from safear_edit.evaluate import stats
from safear_edit.gate import rules
from safear_edit.gate.baseline import Baseline
from safear_edit.gate.record import (
    ERASURE_FLIPS,
    PLANNED_POWER,
    PLANNED_TESTS,
    PRESERVE_FLIPS,
    SUITES,
    Policy,
    Presence,
    Record,
    Row,
)
from safear_edit.gate.simulate import holds, planned_shapes, self_test

SIZES = {"direct": 250, "neighbours": 400}


def record(
    lost: dict[str, int] | None = None, gained: dict[str, int] | None = None, unclear: int = 0, **changes: object
) -> Record:
    """A good model, but for the first images of a slice (lost); the baseline's bad ones are the last 20 (gained)."""
    rows = [
        _row(key, i, n, (lost or {}).get(key, 0), (gained or {}).get(key, 0), unclear)
        for key, n in SIZES.items()
        for i in range(n)
    ]
    made = Record(
        model="m",
        digest="a" * 64,
        base="family:mini aa",
        machine="cpu, torch 2",
        floors={"picasso": 0.9},
        sampler={"picasso": "guidance=1.5"},
        judges={"gallery@0.5": "b" * 64},
        rows=tuple(rows),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def _row(key: str, i: int, n: int, lost: int, gained: int, unclear: int) -> Row:
    erased = key == "direct"
    good: Presence = "absent" if erased else "found"
    bad: Presence = "found" if erased else "absent"
    usually_bad = not erased and i >= n - 20
    outcome = bad if (i < lost or usually_bad) and not (usually_bad and i >= n - gained) else good
    if erased and lost <= i < lost + unclear:
        outcome = "unclear"
    expect = "absent" if erased else "present"
    return Row("picasso", key, expect, str(2**62 + i), outcome, "0.50", f"{key}-{i}", f"prompt {i}")  # type: ignore[arg-type]


def accepted(policy: Policy | None = None, **changes: object) -> Baseline:
    return Baseline(record(**changes), policy or Policy(), "audit", "test")  # type: ignore[arg-type]


def decisions(conclusion: rules.Conclusion) -> dict[str, str]:
    return {finding.id: finding.decision for finding in conclusion.findings}


def test_the_same_model_passes() -> None:
    found = rules.check(record(), {"first": accepted()})
    assert (found.verdict, found.exit_code) == ("PASS", 0)
    assert set(decisions(found)) == {
        "likelihood", "floor/picasso/direct", "drop/picasso/direct", "drop/picasso/neighbours",
        "readable/picasso/direct",
    }  # fmt: skip
    assert decisions(found)["likelihood"] == "SKIPPED" and "holds no likelihood" in found.findings[0].why
    assert "the weights are those of the baseline" in found.notes


def test_a_folder_whose_own_report_says_fail_does_not_pass() -> None:
    """Attacks, answers about images and members against the base model are in no baseline."""
    found = rules.check(record(verdict="FAIL"), {"first": accepted()})
    assert (found.verdict, found.exit_code, decisions(found)["report"]) == ("FAIL", 1, "FAIL")
    known = replace(accepted(), despite="the old one is worse")
    assert rules.check(record(verdict="FAIL"), {"first": accepted(), "last": known}).verdict == "FAIL"
    found = rules.check(record(verdict="FAIL"), {"last": known})
    assert found.verdict == "PASS" and decisions(found)["report"] == "SKIPPED"
    found = rules.check(record(verdict="INCONCLUSIVE"), {"first": accepted()})
    assert found.verdict == "PASS" and "the folder's own report says INCONCLUSIVE" in found.notes


@pytest.mark.parametrize(
    ("lost", "gained", "verdict", "code"),
    [
        ({"direct": 3}, {}, "PASS", 0),
        ({"direct": 12}, {}, "FAIL", 1),
        ({"neighbours": 20}, {}, "FAIL", 1),
        ({"neighbours": 20}, {"neighbours": 12}, "PASS", 0),
        ({"neighbours": 26}, {"neighbours": 15}, "INCONCLUSIVE", 3),
    ],
)
def test_three_words(lost: dict[str, int], gained: dict[str, int], verdict: str, code: int) -> None:
    found = rules.check(record(lost, gained), {"first": accepted()})
    assert (found.verdict, found.exit_code) == (verdict, code), found.findings


def test_a_failure_says_what_was_lost_and_doubt_says_what_to_do() -> None:
    failed = rules.check(record({"direct": 40}), {"first": accepted()})
    drop = next(f for f in failed.findings if f.id == "drop/picasso/direct")
    assert "lost 40, gained 0 of 250" in drop.observed and drop.prompts[0] == "direct-0" and len(drop.prompts) == 5
    assert decisions(failed)["floor/picasso/direct"] == "FAIL"
    unsure = rules.check(record({"neighbours": 26}, {"neighbours": 15}), {"first": accepted()})
    why = next(f.why for f in unsure.findings if f.decision == "INCONCLUSIVE")
    needed = stats.pairs_to_decide(26, 15, 400, 0.05, tests=3)
    assert f"about {needed} pairs would decide with 80 % chance, if in truth 6.5 % lost" in why


def test_what_would_decide_is_more_than_there_was() -> None:
    """As many flips with nothing lost on balance would need fewer pairs than were there."""
    open_ = rules.check(record({"neighbours": 34}, {"neighbours": 20}), {"first": accepted(Policy(margin=0.06))})
    why = next(f.why for f in open_.findings if f.id == "drop/picasso/neighbours" and f.decision == "INCONCLUSIVE")
    assert int(why.removeprefix("about ").split()[0]) > SIZES["neighbours"] > stats.pairs_needed(54 / 400, 0.06)


def test_the_floor_needs_evidence_on_both_sides() -> None:
    small = replace(accepted(), record=replace(accepted().record, rows=record().rows[:20]))
    found = rules.check(record(), {"first": small})
    assert decisions(found)["floor/picasso/direct"] == "INCONCLUSIVE"
    assert "it takes 29" in next(f.why for f in found.findings if f.id.startswith("floor"))


def test_mush_is_no_erasure() -> None:
    found = rules.check(record(unclear=40), {"first": accepted()})
    assert decisions(found)["readable/picasso/direct"] == "FAIL" and found.exit_code == 1
    assert decisions(found)["drop/picasso/direct"] == "PASS"
    assert rules.check(record(unclear=10), {"first": accepted()}).verdict == "PASS"


def test_mush_that_may_be_chance_is_no_pass() -> None:
    """Three of 40 images are a rise of 7.5 points, and chance in one case of eight."""
    few = replace(accepted(), record=replace(accepted().record, rows=record().rows[:40]))
    found = rules.check(record(unclear=3), {"first": few})
    (readable,) = [one for one in found.findings if one.id == "readable/picasso/direct"]
    assert readable.decision == "INCONCLUSIVE" and "too few prompts to tell the rise" in readable.why
    assert (found.verdict, found.exit_code) == ("INCONCLUSIVE", 3)
    assert decisions(rules.check(record(unclear=2), {"first": few}))["readable/picasso/direct"] == "PASS"


@pytest.mark.parametrize(("n", "lost", "word"), [(40, 0, "PASS"), (40, 4, "INCONCLUSIVE"), (40, 9, "FAIL"),
                                                 (8, 0, "INCONCLUSIVE")])  # fmt: skip
def test_a_member_about_which_nothing_is_shown_is_no_pass(n: int, lost: int, word: str) -> None:
    """Four of 40 are more than it may lose, and chance; of eight images none that is lost shows nothing."""
    small = rules.Lost(rules.Flips(n, lost, 0), tuple(map(str, range(lost))), n)
    other = rules.Lost(rules.Flips(400, 0, 0), (), 400)
    part = rules.Counts("x", 400, 400, lost, 0, 0, 0, 0.05, None, members={"style=b": other, "style=a": small})
    (found,) = [rules._worded(one) for one in rules.decide_all([part]) if one.rule == "member"]
    assert found.decision == word and len(found.prompts) == (min(lost, rules.NAMED) if word != "PASS" else 0)
    assert ("too few prompts of style=a" in found.why) == (word == "INCONCLUSIVE")
    assert rules.conclude([found]).exit_code == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}[word]


def test_inconclusive_can_be_a_warning_and_regressed_cannot() -> None:
    unsure = record({"neighbours": 26}, {"neighbours": 15})
    found = rules.check(unsure, {"first": accepted()}, tolerate_inconclusive=True)
    assert (found.verdict, found.exit_code) == ("INCONCLUSIVE", 0)
    assert rules.check(record({"direct": 40}), {"first": accepted()}, tolerate_inconclusive=True).exit_code == 1


def test_small_steps_down_meet_the_released_baseline() -> None:
    """Each step is inside the margin; together they are not."""
    step = replace(accepted(lost={"neighbours": 9}), reason="first step")
    now = record({"neighbours": 21})
    assert rules.check(now, {"last": step}).verdict == "PASS"
    found = rules.check(now, {"last": step, "released": accepted()})
    assert found.verdict == "FAIL"
    assert decisions(found)["drop/released: picasso/neighbours"] == "FAIL"


def test_one_lucky_number_of_many_names_no_culprit() -> None:
    """p = 0.01 alone is FAIL; as one of 40 comparisons it is a reason to look again."""
    part = rules.Counts("x", 100, 90, 9, 1, 0, 0, 0.05, None)
    quiet = [replace(part, name=f"s{i}", lost=1, gained=1) for i in range(40)]
    assert rules.decide_all([part])[0].decision == "FAIL"
    assert rules.decide_all([part, *quiet])[0].decision == "INCONCLUSIVE"


CHANGES: dict[str, tuple[Callable[[Record], Record], str]] = {
    "sampler": (lambda r: replace(r, sampler={"picasso": "guidance=9"}), "guidance=1.5"),
    "judge": (lambda r: replace(r, judges={"gallery@0.5": "c" * 64}), "judge gallery@0.5"),
    "prompt": (lambda r: replace(r, rows=(replace(r.rows[0], prompt="other"), *r.rows[1:])), "direct-0"),
    "seed": (lambda r: replace(r, rows=(replace(r.rows[0], seed="7"), *r.rows[1:])), "1 of 650 missing"),
    "fewer": (lambda r: replace(r, rows=r.rows[:100]), "550 of 650 missing"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_unlike_things_are_not_compared(name: str) -> None:
    change, says = CHANGES[name]
    with pytest.raises(UsageError, match=says):
        rules.check(change(record()), {"first": accepted()})


def test_another_machine_is_a_note() -> None:
    found = rules.check(record(machine="cuda, torch 2"), {"first": accepted()})
    assert found.exit_code == 0 and any("machine differs" in note for note in found.notes)


FIGURE, KL = "picasso/erasure.max_cir_upper[direct]", "picasso/keep.kl_upper[neighbours]"


@pytest.mark.parametrize(
    ("then", "now", "doubts", "decision"),
    [
        ({FIGURE: 0.02}, {FIGURE: 0.0205}, (), "PASS"),
        ({FIGURE: 0.02}, {FIGURE: 0.022}, (), "FAIL"),
        ({FIGURE: -0.2}, {FIGURE: -0.1}, (), "PASS"),
        ({FIGURE: 0.09995}, {FIGURE: 0.1003}, (), "FAIL"),
        ({KL: 0.02}, {KL: 0.0201}, (), "PASS"),
        ({KL: 0.029}, {KL: 0.0302}, (), "FAIL"),
        ({FIGURE: 0.554}, {FIGURE: 0.5541}, (), "PASS"),
        ({FIGURE: 0.554}, {FIGURE: 0.56}, (), "FAIL"),
        ({FIGURE: 0.02}, {}, (), "INCONCLUSIVE"),
        ({FIGURE: 0.02}, {FIGURE: 0.0}, ("KL above 0.1",), "INCONCLUSIVE"),
        ({}, {FIGURE: 0.5}, (), "SKIPPED"),
    ],
)
def test_likelihood_comes_first(
    then: dict[str, float], now: dict[str, float], doubts: tuple[str, ...], decision: str
) -> None:
    found = rules.check(record(figures=now, doubts=doubts), {"first": accepted(figures=then)})
    assert found.findings[0].decision == decision and found.findings[0].id.startswith("likelihood")


def test_what_is_accepted_above_the_promise_is_named() -> None:
    """Otherwise an unchanged model would be FAIL against its own baseline for ever."""
    baseline = accepted(figures={FIGURE: 0.554, KL: 0.01})
    (line,) = rules.accepted_above(baseline)
    assert line.startswith(f"{FIGURE} is 0.5540, above the promise of 0.1")
    found = rules.check(record(figures={FIGURE: 0.554, KL: 0.01}), {"first": baseline})
    assert found.verdict == "PASS" and "accepted above the promise of 0.1" in found.findings[0].needed


def test_a_figure_in_doubt_says_which_doubt() -> None:
    doubtful = record(in_doubt={FIGURE: "an interval of 0.60 is wider than 0.4"})
    found = rules.check(doubtful, {"first": accepted(figures={FIGURE: 0.02, KL: 0.01})}).findings
    by_name = {finding.id: finding for finding in found}
    cir, kl = by_name[f"likelihood/{FIGURE}"], by_name[f"likelihood/{KL}"]
    assert (cir.decision, cir.observed) == ("INCONCLUSIVE", "in doubt") and "0.60 is wider" in cir.why
    assert "run the likelihood audit" not in cir.why
    assert (kl.decision, kl.observed) == ("INCONCLUSIVE", "not measured") and "run the likelihood audit" in kl.why


def test_one_function_gives_verdict_and_exit_code() -> None:
    errors: list[tuple[SafearError, int]] = [(UsageError("a", "b", "c", "d"), 2), (TrustError("a", "b", "c", "d"), 4)]
    for error, code in errors:
        refused = rules.conclude([], refused=error)
        assert (refused.verdict, refused.exit_code) == ("REFUSED", code)
    assert rules.conclude([]).exit_code == 3, "nothing shown is no pass"
    only_skipped = rules.Finding("likelihood", "SKIPPED", "", "")
    assert rules.conclude([only_skipped]).exit_code == 3


@pytest.mark.parametrize("name", SUITES)
def test_sizes_are_what_the_calculation_gives(name: str) -> None:
    """Enough, and ten fewer are not: nobody tuned them."""
    suite = SUITES[name]
    margin = suite.policy.margin
    for n, flips in ((suite.erasure, ERASURE_FLIPS), (suite.preserve, PRESERVE_FLIPS)):
        reached = [
            stats.chances(size, margin + flips / 2, flips / 2, margin, p_alpha=stats.ALPHA / PLANNED_TESTS).regressed
            for size in (n, n - 10)
        ]
        assert reached[0] >= PLANNED_POWER > reached[1], (n, reached)


def test_it_finds_five_points_and_leaves_an_unchanged_model_alone() -> None:
    """The figures of the default suite: 200 simulated checks each, six slices, Holm and all."""
    found = self_test(planned_shapes(SUITES["audit"]), runs=200, seed=0)
    assert [one.runs for one in found] == [200, 200, 200] and holds(found)
    assert found[0].regressed <= 2 and all(one.regressed >= 180 for one in found[1:])
    for one in found[1:]:
        assert one.expected_regressed == pytest.approx(one.regressed / 200, abs=0.05)


def test_the_self_test_can_fail() -> None:
    """At a quarter of the size the promise does not hold, and it says so."""
    few = [replace(shape, n=shape.n // 4) for shape in planned_shapes(SUITES["audit"])]
    assert not holds(self_test(few, runs=60, seed=0))
