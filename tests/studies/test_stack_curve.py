"""The curve of a stack, on a tiny model that a coin judges."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from safear_edit import registry
from safear_edit.errors import UsageError
from safear_edit.pipeline.order import Order
from safear_edit.pipeline.state import RunOptions
from safear_edit.studies import stack_curve
from tests import coin

SMALL = ("construct.pairs=48", "construct.keep=4", "params.steps=2", "params.batch=4", "params.keep_batch=2")


@pytest.mark.soak
def test_each_height_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_third_party", coin.third_party)
    monkeypatch.setattr(stack_curve, "ASKED", {"direct": 4, "paraphrase": 3, "template": 2})
    monkeypatch.setattr(stack_curve, "EACH", 2)
    coin.make_world(tmp_path, "picasso", "van_gogh", n=2)
    orders = [Order(str(tmp_path / f"{name}.yaml"), str(tmp_path / "base"), overrides=SMALL, device="cpu")
              for name in ("picasso", "van_gogh")]  # fmt: skip
    first, both = stack_curve.curve(orders, (1, 2), tmp_path / "out", RunOptions(), origin={"date": "2026-11-29"})
    assert both["date"] == "2026-11-29", "a row that is read again keeps the day on which it was measured"
    assert [first["height"], both["height"]] == [1, 2] and first["order"] == "picasso, van_gogh"
    assert first["by name"]["n"] == 4 < both["by name"]["n"], "both concepts are asked for"
    kept, fewer = (int(re.findall(r"of (\d+)", row["kept"])[0]) for row in (first, both))
    assert kept - fewer == 2, "the style that the second concept erases is no longer asked to stay"
    seen = (tmp_path / "out" / "rows.jsonl").read_bytes()
    monkeypatch.setattr(stack_curve, "measured", None)
    assert stack_curve.curve(orders, (1, 2), tmp_path / "out", RunOptions()) == [first, both]
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == seen
    with pytest.raises(UsageError, match="study"):
        stack_curve.curve(orders[::-1], (1, 2), tmp_path / "out", RunOptions())
