"""speed_infinity: what both ways drew is compared, and times of another drawing are no result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safear_edit.families.infinity import Infinity
from safear_edit.studies import speed_infinity
from safear_edit.studies.roofline import Alone


def test_other_bits_end_it_with_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = Infinity.pico()
    seconds = {"ours": 1.0, "plain": 2.0}
    found = speed_infinity.Race(2, (2.0, 1.0), 1000, 1000, seconds, 2.0, 2.0, Alone(1.0, 0.5, 10**9, 8e9))
    threads = torch.get_num_threads()
    monkeypatch.setattr(speed_infinity, "load_model", lambda name: model)
    try:
        for identical, code in ((found.bits, 0), (found.bits // 2, 1)):
            other = replace(found, identical=identical)
            monkeypatch.setattr(speed_infinity, "race", lambda *_, other=other: other)
            assert speed_infinity.main(["--batch", "2", "--repeats", "1"]) == code
            assert f"{identical} of {found.bits} bits identical" in capsys.readouterr().out
    finally:
        torch.set_num_threads(threads)
