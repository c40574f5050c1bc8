"""The script for a borrowed GPU runs here on picos; full sizes are made on the meta device, where they take nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safear_edit.compiler.cost import Speed
from safear_edit.families.llamagen import LlamaGen
from safear_edit.studies import gpu


def test_every_model_draws_by_both_loops_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "step_seconds", lambda model, material, steps, clock: 0.5)
    monkeypatch.setattr(gpu, "speed_of", lambda model: Speed(1e9, 1e9))
    out = tmp_path / "rows.jsonl"
    assert gpu.main(["--tiny", "--batch", "2", "--repeats", "1", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["model"] for row in rows[::2]] == list(gpu.FULL) and capsys.readouterr().out.count("\n") == len(rows)
    assert all(row["images/s"] > 0 and row["times the published loop"] > 0 for row in rows[::2])
    assert all(row["seconds"] == 0.5 for row in rows[1::2])


def test_the_published_sizes_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "random", lambda net: net)
    meta = torch.device("meta")
    for name, least, most in (("llamagen:xl-256", 0.75e9, 0.9e9), ("infinity:2b", 1.9e9, 2.4e9)):
        model = gpu.FULL[name](meta, torch.bfloat16)
        assert model.card.ref == name and least < model.card.parameters < most and model.dtype == torch.bfloat16


def test_reading_is_counted_for_every_token_and_every_batch() -> None:
    model = LlamaGen.pico()
    layers = sum(model.net.get_submodule(name).weight.nbytes for name in model.editable("all"))  # type: ignore[union-attr,operator]
    assert gpu.roofline_seconds(model, 8, Speed(1.0, 1e9)) == pytest.approx(16 * layers / 1e9)
    assert gpu.roofline_seconds(model, 65, Speed(1.0, 1e9)) == pytest.approx(32 * layers / 1e9)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2 and "expected a GPU, got none" in capsys.readouterr().err
