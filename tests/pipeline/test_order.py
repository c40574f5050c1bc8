"""What orders name is settled once: an interrupted run of a large model goes on with the memory that it began with."""

from __future__ import annotations

from pathlib import Path

import pytest

from safear_edit.families.llamagen import LlamaGen
from safear_edit.pipeline import order
from safear_edit.pipeline.order import Order, settled


def test_the_memory_that_a_run_began_with_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, orders = LlamaGen.pico(), [Order("picasso", "llamagen"), Order("dog", "llamagen", memory=7)]
    assert settled(orders, model, tmp_path) == orders and not [*tmp_path.iterdir()], "a small one isn't asked about"
    monkeypatch.setattr(order, "LARGE", 0)
    for free in (2**33, 2**32):
        monkeypatch.setattr(order, "free_bytes", lambda device, free=free: free)
        assert [one.memory for one in settled(orders, model, tmp_path)] == [2**33, 7]
