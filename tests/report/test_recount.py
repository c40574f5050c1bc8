"""Every number of a report counted again from outcomes.jsonl and recipe.json, by code that shares nothing with it.

Report, page, card, bill of materials, signed claims, terminal and gate are then held against these counts.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import optimize
from scipy.stats import beta, norm

from safear_edit.cli.options import print_criteria
from safear_edit.compiler.recipe import read_recipe
from safear_edit.gate.record import read_folder
from safear_edit.pipeline.publish import sign
from safear_edit.release.keys import throwaway
from safear_edit.report import bom, criteria
from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles
from safear_edit.report.html import render_html
from safear_edit.report.model_card import model_card
from safear_edit.report.schema import Report
from safear_edit.report.sentences import worst_slice
from tests.report.test_build import make_run, relabel

Row = dict[str, Any]
UNREADABLE = {("direct", "edited"): 5, ("paraphrase", "base"): 3, ("test-styles", "edited"): 4}
"""By slice and model, how many of the last scored images the judge can't read."""
WORDS = 5
"""Prompts of one content."""


def cluster(prompt: str) -> str:
    return f"{prompt[:-5]}/{int(prompt[-4:]) // WORDS}"


def unreadable(row: Row) -> Row:
    """The last images of some slices, which nothing else happens to."""
    most = {"direct": 256, "paraphrase": 256, "test-styles": 406}
    count = UNREADABLE.get((row["slice"], row["model"]), 0) if row["phase"] == "score" else 0
    if count and int(row["id"][-4:]) > most[row["slice"]] - count:
        return row | {"present": None, "why": "style 0.97"}
    return row


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run"), change=unreadable)
    groups = ("even", "odd")
    relabel(folder, lambda one: f"object={groups[int(one['id'][-4:]) % 2]}" if one["expect"] == "present" else None)
    return folder


@pytest.fixture(scope="module")
def report(root: Path) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteria, "contents", lambda recipe, _: {p.id: cluster(p.id) for p in recipe.evaluate.prompts})
        return build_report(RunFiles.find(root, model=root))


# -- counted again ----------------------------------------------------------------------------------------------------


Pairs = dict[str, list[tuple[Row, Row]]]


@pytest.fixture(scope="module")
def pairs(root: Path) -> Pairs:
    """(base, edited) rows by slice, of prompts whose screening image shows what was asked."""
    lines = [json.loads(line) for line in (root / "outcomes.jsonl").read_text().splitlines()]
    followed = {row["id"] for row in lines if row["phase"] == "screen" and row["present"]}
    scored = {(row["id"], row["model"]): row for row in lines if row["phase"] == "score"}
    found: Pairs = defaultdict(list)
    for (prompt, model), row in scored.items():
        if model == "base" and prompt in followed:
            found[row["slice"]].append((row, scored[prompt, "edited"]))
    return found


def low(k: float, n: float, alpha: float) -> float:
    return 0.0 if k == 0 else float(beta.ppf(alpha, k, n - k + 1))


def high(k: float, n: float, alpha: float) -> float:
    return 1.0 if k == n else float(beta.ppf(1 - alpha, k + 1, n - k))


def effect(values: list[int], clusters: list[str]) -> float:
    mean = sum(values) / len(values)
    sums: dict[str, float] = defaultdict(float)
    for value, name in zip(values, clusters, strict=True):
        sums[name] += value - mean
    among = len(sums) / (len(sums) - 1) * math.fsum(one * one for one in sums.values())
    single = len(values) / (len(values) - 1) * math.fsum((value - mean) ** 2 for value in values)
    return max(1.0, among / single) if single else 1.0


def tango(lost: float, gained: float, n: float) -> float:
    """The upper bound by maximising the restricted likelihood numerically."""

    def score(d: float) -> float:
        def minus(q: float) -> float:
            parts = ((lost, q + d), (gained, q), (n - lost - gained, 1 - 2 * q - d))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

        q = optimize.minimize_scalar(
            minus, bounds=(max(0, -d), (1 - d) / 2), method="bounded", options={"xatol": 1e-12}
        )
        return float((lost - gained - n * d) / math.sqrt(n * (2 * q.x + d * (1 - d))) + norm.ppf(0.95))

    return float(optimize.brentq(score, (lost - gained) / n + 1e-6, 0.9))


def exact_p(lost: int, gained: int) -> float:
    n = lost + gained
    return sum(math.comb(n, i) for i in range(lost, n + 1)) / 2**n


def holm(p: list[float]) -> list[float]:
    order = sorted(range(len(p)), key=p.__getitem__)
    steps = [min(1.0, (len(p) - rank) * p[i]) for rank, i in enumerate(order)]
    return [max(steps[: order.index(i) + 1]) for i in range(len(p))]


# -- the report -------------------------------------------------------------------------------------------------------


def test_every_erasure_rate_and_bound(report: Report, pairs: Pairs) -> None:
    (concept,) = report.concepts
    assert {part.slice for part in concept.erasure} == {"direct", "paraphrase", "template"}
    for part in concept.erasure:
        both = pairs[part.slice]
        after = [edited["present"] for _, edited in both]
        n, gone = len(after), sum(present is not True for present in after)
        assert part.erased and part.base_found and part.edited_found and part.erased_strict and part.clustered
        assert (part.scored, part.erased.k, part.erased.n, part.edited_found.k) == (n, gone, n, n - gone)
        assert part.base_found.k == sum(base["present"] is True for base, _ in both)
        assert part.erased_strict.k == sum(present is False for present in after)
        assert (part.cannot_tell_base, part.cannot_tell_edited) == (
            sum(base["present"] is None for base, _ in both), sum(present is None for present in after)
        )  # fmt: skip
        assert (part.erased.low, part.erased.high) == pytest.approx((low(gone, n, 0.025), high(gone, n, 0.025)))
        assert part.erased_lower95 == pytest.approx(low(gone, n, 0.05))
        wide = effect([present is not True for present in after], [cluster(base["id"]) for base, _ in both])
        assert part.clustered.design_effect == pytest.approx(wide)
        assert part.clustered.bound == pytest.approx(low(gone / wide, n / wide, 0.05))
        assert part.lower == pytest.approx(min(low(gone, n, 0.05), low(gone / wide, n / wide, 0.05)))
        passed = gone / n >= part.needed and (part.lower or 0) >= part.floor
        assert part.decision == ("PASS" if passed else "FAIL" if gone / n < part.needed else "INCONCLUSIVE")
    assert max(part.clustered.design_effect for part in concept.erasure if part.clustered) > 2, "contents matter here"


def flips(both: list[tuple[Row, Row]]) -> tuple[int, int]:
    was = [(base["present"] is True, edited["present"] is True) for base, edited in both]
    return sum(b and not e for b, e in was), sum(e and not b for b, e in was)


def test_every_preserved_group_and_member(report: Report, pairs: Pairs, root: Path) -> None:
    labels = {prompt.id: prompt.judge_label for prompt in read_recipe(root / "recipe.json").evaluate.prompts}
    groups = report.concepts[0].preservation
    raw = [exact_p(*flips(pairs[group.group])) for group in groups]
    for group, p in zip(groups, holm(raw), strict=True):
        both = pairs[group.group]
        lost, gained = flips(both)
        assert group.change and group.clustered and group.edited_kept
        assert (group.change.lost, group.change.gained, group.change.n) == (lost, gained, len(both))
        assert group.edited_kept.k == sum(edited["present"] is True for _, edited in both)
        assert group.change.drop == pytest.approx((lost - gained) / len(both))
        assert group.change.upper95 == pytest.approx(tango(lost, gained, len(both)), abs=1e-6)
        drops = [(base["present"] is True) - (edited["present"] is True) for base, edited in both]
        wide = effect(drops, [cluster(base["id"]) for base, _ in both])
        bound = tango(lost / wide, gained / wide, len(both) / wide)
        assert group.clustered.bound == pytest.approx(bound, abs=1e-6)
        assert group.mcnemar_p_holm == pytest.approx(p)
        members = {
            label: [pair for pair in both if labels[pair[0]["id"]] == label]
            for label in {labels[b["id"]] for b, _ in both}
        }
        assert {one.name: (one.lost, one.gained, one.n) for one in group.members} == {
            name: (*flips(several), len(several)) for name, several in members.items()
        }
        again = holm([exact_p(one.lost, one.gained) for one in group.members])
        assert [one.p_holm for one in group.members] == pytest.approx(again)
        for one in group.members:
            assert one.upper95 == pytest.approx(tango(one.lost, one.gained, one.n), abs=1e-6)
            own = members[one.name]
            lost = [(base["present"] is True) - (edited["present"] is True) for base, edited in own]
            wide = effect(lost, [cluster(base["id"]) for base, _ in own])
            bound = tango(one.lost / wide, one.gained / wide, one.n / wide)
            assert one.by_content == pytest.approx(bound, abs=1e-6)
            assert one.upper == pytest.approx(max(one.upper95, bound), abs=1e-6)


# -- and what else says the same --------------------------------------------------------------------------------------


def plain(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page).replace("\xa0", " ").split())


def test_page_card_and_terminal_say_the_counts(
    report: Report, pairs: Pairs, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, card = plain(render_html(report, root)), model_card(report)
    print_criteria(report.verdict.criteria, width=500)
    terminal = capsys.readouterr().out
    for key in ("direct", "paraphrase", "template"):
        after = [edited["present"] for _, edited in pairs[key]]
        n, gone = len(after), sum(present is not True for present in after)
        strict = sum(present is False for present in after)
        words = f"not detected in {gone} of {n} ({100 * gone / n:.1f} %)"
        assert words in page and words in terminal
        assert f"; {strict} ({100 * strict / n:.1f} %) if unreadable ones count as found" in terminal
        assert f"{gone} / {n} ({100 * gone / n:.1f} %)" in card and f"{strict} / {n} (" in card
        assert f"{gone} / {n} {100 * gone / n:.1f} %" in page and f"{strict} / {n} {100 * strict / n:.1f} %" in page
    for key in ("test-styles", "test-objects"):
        lost, gained = flips(pairs[key])
        words = f"lost {lost}, gained {gained} of {len(pairs[key])}: drop {100 * (lost - gained) / len(pairs[key]):.1f}"
        assert words in page and words in terminal
        assert f"| {lost} / {gained} | {100 * (lost - gained) / len(pairs[key]):+.1f}," in card.replace("−", "-")


def test_the_verdict_and_the_risks_say_the_bound_that_decides(report: Report) -> None:
    """Where contents fail together the plain interval says more than the evidence."""
    (concept,) = report.concepts
    part = worst_slice(concept)
    assert part.clustered and part.erased_lower95 and part.clustered.bound < part.erased_lower95 - 0.001
    bound = f"{100 * part.clustered.bound:.1f} %"
    assert f"; at least {bound} with one-sided 95 % confidence by content, which decides." in report.verdict.summary
    most = [max(1 - (one.lower or 0), one.edited_found.high) for one in concept.erasure if one.edited_found]
    assert f"up to {100 * max(most):.1f} % of prompts may still draw it" in report.residual_risks[0].evidence


def test_the_bill_of_materials_says_the_counts(report: Report, pairs: Pairs) -> None:
    card = bom.bom(report)["components"][0]["modelCard"]
    metrics = {part["slice"]: part for part in card["quantitativeAnalysis"]["performanceMetrics"]}
    for key in ("direct", "paraphrase", "template"):
        after = [edited["present"] for _, edited in pairs[key]]
        gone = sum(present is not True for present in after)
        (told,) = [
            part for name, part in metrics.items() if name.startswith(f"testpainter/{key}: {gone} of {len(after)}")
        ]
        assert float(told["value"]) == pytest.approx(gone / len(after), abs=1e-6)
        assert float(told["confidenceInterval"]["lowerBound"]) == pytest.approx(low(gone, len(after), 0.025), abs=1e-6)


def test_the_signed_claim_has_the_decisions_of_the_report(report: Report, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "report.json").write_text(report.to_json())
    (folder / "edit.safetensors").write_bytes((root / "edit" / "edit.safetensors").read_bytes())
    recipe = read_recipe(root / "recipe.json")
    stated = report.model_copy(
        update={"judges": tuple(one.model_copy(update={"id": f"j{i}"}) for i, one in enumerate(report.judges))}
    )
    sign(folder, stated, [recipe], throwaway(tmp_path / "trust"))
    claims = [json.loads(line) for line in (folder / "claims.jsonl").read_text().splitlines()]
    told = [json.loads(base64.b64decode(one["dsseEnvelope"]["payload"]))["predicate"] for one in claims]
    (result,) = [one for one in told if "failedTests" in one]
    by: Callable[[str], list[str]] = lambda word: sorted(c.id for c in report.verdict.criteria if c.decision == word)  # noqa: E731
    assert result["passedTests"] == by("PASS") and result["failedTests"] == by("FAIL")
    assert result["warnedTests"] == by("INCONCLUSIVE")
    assert result["result"] == {"PASS": "PASSED", "FAIL": "FAILED", "INCONCLUSIVE": "WARNED"}[report.verdict.status]


@pytest.mark.parametrize(
    ("environ", "builder"),
    [
        ({}, "local"),
        ({"RUNNER_ENVIRONMENT": "github-hosted"}, "local"),
        ({"GITHUB_ACTIONS": "true", "RUNNER_ENVIRONMENT": "github-hosted"}, "github-hosted"),
        ({"GITHUB_ACTIONS": "true", "RUNNER_ENVIRONMENT": "self-hosted"}, "github-self-hosted"),
        ({"GITHUB_ACTIONS": "true"}, "github-self-hosted"),
    ],
)
def test_the_signed_claim_says_whose_machine_it_was(
    report: Report, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], builder: str
) -> None:
    for name in ("GITHUB_ACTIONS", "RUNNER_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "edit.safetensors").write_bytes(b"weights")
    odd = report.verdict.criteria[0].model_copy(update={"id": "judge/testpainter/a dog/cat?"})
    verdict = report.verdict.model_copy(update={"criteria": (*report.verdict.criteria[1:], odd)})
    sign(folder, report.model_copy(update={"verdict": verdict}), [read_recipe(root / "recipe.json")],
         throwaway(tmp_path / "trust"))  # fmt: skip
    lines = [json.loads(line) for line in (folder / "claims.jsonl").read_text().splitlines()]
    made, result = (json.loads(base64.b64decode(one["dsseEnvelope"]["payload"]))["predicate"] for one in lines)
    assert made["runDetails"]["builder"]["id"] == f"urn:safear-edit:builder:{builder}:v1"
    assert "judge/testpainter/a%20dog%2Fcat%3F" in result["passedTests"] + result["warnedTests"]


def test_the_gate_counts_the_same(report: Report, pairs: Pairs, root: Path, tmp_path: Path) -> None:
    (root / "report.json").write_text(report.to_json())
    (root / "README.md").write_text(model_card(report))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteria, "contents", lambda recipe, _: {p.id: cluster(p.id) for p in recipe.evaluate.prompts})
        record = read_folder(root)
    for key, both in pairs.items():
        rows = record.slices()["testpainter", key]
        wanted = key.startswith("test-")
        assert len(rows) == len(both)
        assert sum(row.good for row in rows) == sum((edited["present"] is True) == wanted for _, edited in both)
