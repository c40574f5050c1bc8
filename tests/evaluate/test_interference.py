"""Counts are the report's, overlaps are 1 for an edit with itself and 0 for one that works elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.editor.stack import Layer
from safear_edit.errors import SpecError
from safear_edit.evaluate import interference
from safear_edit.evaluate.interference import leading, measured, overlap
from safear_edit.evaluate.interference_record import After, Cell, Interference, read_interference
from safear_edit.evaluate.outcomes import Outcome

INFO: dict[str, Any] = {"method": "m", "params": {}, "concept": "c", "base_digest": "d", "seed": 0, "steps": 1,
                        "losses": (), "minutes": 0.0}  # fmt: skip


def lora(a: Tensor, b: Tensor, name: str = "w") -> Layer:
    info = EditInfo(**INFO, rank=a.shape[0], alpha=float(a.shape[0]))
    return Layer(name, Edit("lora", {"w.lora_A": a, "w.lora_B": b}, info))


def test_an_edit_lies_in_its_own_space_and_not_in_an_orthogonal_one() -> None:
    eye = torch.eye(8)
    first = lora(eye[:2], eye[:, :2], "first")
    same = overlap(first, lora(2 * eye[:2], eye[:, :2], "same"), {})
    assert (same.column, same.row, same.cosine) == pytest.approx((1, 1, 1))
    assert (same.chance_column, same.chance_row) == (0.25, 0.25) and same.shared == same.of == 1
    other = overlap(first, lora(eye[2:4], eye[:, 2:4]), {})
    assert (other.column, other.row, other.cosine) == (0, 0, 0)
    crossed = overlap(first, lora(eye[2:4], eye[:, :2]), {})
    assert (crossed.column, crossed.row) == pytest.approx((1, 0))


def test_edits_of_different_weights_share_nothing() -> None:
    one = lora(torch.eye(8)[:2], torch.eye(8)[:, :2], "one")
    two = Layer("two", Edit("delta", {"v.weight": torch.ones(4, 4)}, EditInfo(**INFO, rank=None, alpha=None)))
    found = overlap(one, two, {})
    assert (found.shared, found.of, found.column) == (0, 1, 0)


def test_codebook_rows_that_both_rewrite_are_counted() -> None:
    table, info = torch.ones(6, 4), EditInfo(**INFO, rank=None, alpha=None)
    rows = [torch.zeros(6, 4), torch.zeros(6, 4)]
    rows[0][:3], rows[1][2:], rows[1][0] = 0.5, 0.5, 1e-6
    first, second = (Layer(str(i), Edit("delta", {"table": part}, info)) for i, part in enumerate(rows))
    assert overlap(first, second, {"table": table}).codebook_rows == 1


def test_leading_directions_are_orthonormal_and_no_more_than_the_rank() -> None:
    random = torch.Generator().manual_seed(0)
    space = leading(torch.randn(40, 3, generator=random) @ torch.randn(3, 30, generator=random))
    assert space.columns.shape == (40, 3) and space.rows.shape == (30, 3)
    torch.testing.assert_close(space.columns.T @ space.columns, torch.eye(3), atol=1e-5, rtol=0)


def row(id: str, which: str, present: bool | None, part: str = "direct", expect: str = "absent") -> Outcome:
    told: dict[str, Any] = {"id": id, "slice": part, "prompt": id, "seed": "1", "model": which, "phase": "score",
                            "present": present, "expect": expect}  # fmt: skip
    return Outcome(**told)


def test_counts_and_changes() -> None:
    rows = [row(i, "base", True) for i in "abc"] + [row("a", "edited", True), row("b", "edited", None)]
    rows += [row("c", "edited", False)]
    for id, before, after in (("k", True, True), ("l", True, None), ("g", False, True)):
        rows += [row(id, "base", before, "kept", "present"), row(id, "edited", after, "kept", "present")]
    found = measured(rows)
    assert found.slices["direct"].model_dump() == {"n": 3, "found": 1, "unsure": 1}
    assert found.groups["kept"].model_dump() == {"n": 3, "base": 2, "edited": 2, "lost": 1, "gained": 1}
    worse = measured([*rows[:4], row("b", "edited", True), *rows[5:]])
    before, after = (After(event=e, concepts={"x": m}) for e, m in (("then", found), ("now", worse)))
    assert interference.changes(before, after) == [("x", "direct", "found in 1 of 3", "found in 2 of 3")]
    assert interference.changes(before, After(event="now", concepts={"new": found})) == []


def test_a_forecast_in_an_older_record_is_left_out(tmp_path: Path) -> None:
    cell = Cell(edit="a", concept="a", asked=48, found=0)
    today, path = Interference(history=(), alone=(cell,), overlaps=()), tmp_path / "interference.json"
    older = json.loads(today.model_dump_json()) | {"forecast": [{"first": "a"}], "foretold": [], "agreement": []}
    path.write_text(json.dumps(older))
    assert read_interference(path) == today
    path.write_text(json.dumps(older | {"unheard": []}))
    with pytest.raises(SpecError, match="unheard"):
        read_interference(path)
