"""Tables of claims: up to date with the rows, findings that follow the figures, and nothing said without a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safear_edit.errors import UsageError
from safear_edit.studies import papers
from safear_edit.studies.paper_claims import PAPERS, Cell, Claim, least, most
from safear_edit.studies.tables import FOLDER
from tests import ROOT

MADE = {"command": "safear-edit ls models", "commit": "0123abc", "date": "2026-11-29"}
CLAIM = Claim("less is lost", {"ours": Cell("one", {"method": "vce"}, "loss")}, lambda f: most(f["ours"]) <= 3)


def _rows(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "one.jsonl").write_text("".join(json.dumps({**row, **MADE}) + "\n" for row in rows))


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_the_tables_are_up_to_date(paper: Any) -> None:
    written = (ROOT / FOLDER / f"paper-{paper.name}.jsonl").read_text()
    assert written == papers.table(paper, ROOT / FOLDER), f"run {papers.COMMAND}"
    for row in map(json.loads, written.splitlines()[1:]):
        several = "together" in row["measured here"]
        assert not (several and row["why, or how far"].startswith("One seed")), row["claim"]
    for claim in paper.claims:
        assert bool(claim.cells) == (claim.holds is not None), f"{claim.text}: a finding without figures, or none"
        assert claim.why


@pytest.mark.parametrize(("loss", "finding"), [(2.5, papers.HOLDS), ({"mean": 2, "from": 1, "to": 4}, papers.FAILS)])
def test_a_finding_follows_the_figures(tmp_path: Path, loss: Any, finding: str) -> None:
    _rows(tmp_path, {"method": "vce", "loss": 9}, {"method": "dpo", "loss": 7}, {"method": "vce", "loss": loss})
    row = papers.row(CLAIM, tmp_path)
    assert row["finding"] == finding and row["from"] == "one.jsonl" and row["date"] == MADE["date"]
    assert papers.row(Claim("more", why="no data"), tmp_path)["finding"] == papers.UNTESTED


def test_a_claim_without_its_row_is_refused(tmp_path: Path) -> None:
    _rows(tmp_path, {"method": "dpo", "loss": 7})
    with pytest.raises(UsageError, match=r"one\.jsonl"):
        papers.row(CLAIM, tmp_path)


def test_a_cell_that_two_methods_have_is_refused(tmp_path: Path) -> None:
    """A later row of another method once stood for the one that was meant."""
    _rows(tmp_path, {"method": "sace", "concept": "dog", "loss": 9}, {"method": "vce", "concept": "dog", "loss": 1})
    ours = Claim("less", {"dog": Cell("one", {"concept": "dog"}, "loss")}, lambda f: True)
    with pytest.raises(UsageError, match="method sace and vce"):
        papers.row(ours, tmp_path)


def test_seeds_are_put_together(tmp_path: Path) -> None:
    """The last row of each; a row without a seed is one by itself."""
    lost = {"loss": "-9 +0 of 60", "found": {"k": 9, "n": 60}, "KL": 9.0}
    seeds = [lost, {"loss": "-7 +1 of 60", "found": {"k": 3, "n": 60}, "KL": 0.25}, {**lost, "KL": 0.5}]
    _rows(tmp_path, *({"method": "vce", "seed": seed, **row} for seed, row in zip((0, 0, 1), seeds, strict=True)))
    cells = [Cell("one", {"method": "vce"}, column) for column in ("loss", "found", "KL")]
    found = [papers.cell_of(cell, tmp_path) for cell in cells]
    assert [one.value for one in found] == ["-16 +1 of 120", {"k": 12, "n": 120}, 0.375]
    assert {one.seeds for one in found} == {frozenset({0, 1})}
    assert papers.together(["PASS", "PASS", "PASS"]) == "PASS"
    for unlike in (["style=monet -3", "style=warhol -1"], ["PASS", "FAIL"], ["PASS", "PASS", "INCONCLUSIVE"]):
        with pytest.raises(ValueError, match="put together"):
            papers.together(unlike)


def test_figures_of_a_claim_have_the_same_seeds(tmp_path: Path) -> None:
    rows = [{"method": method, "seed": seed, "loss": 2} for method, seed in (("vce", 0), ("vce", 1), ("dpo", 0))]
    both = Claim("less", {one: Cell("one", {"method": one}, "loss") for one in ("vce", "dpo")}, lambda f: True)
    _rows(tmp_path, *rows, {"method": "dpo", "seed": 1, "loss": 4})
    assert papers.row(both, tmp_path)["measured here"] == "vce: 2.0; dpo: 3.0; seeds 0, 1 together"
    _rows(tmp_path, *rows)
    with pytest.raises(UsageError, match="the same seeds"):
        papers.row(both, tmp_path)


def test_the_ends_of_a_cell() -> None:
    assert least({"mean": 2, "from": 1, "to": 4}) == 1 and most({"mean": 2, "from": 1, "to": 4}) == 4
    assert least({"k": 1, "n": 4}) == 25 and least(3) == most(3) == 3
