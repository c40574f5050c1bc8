"""The contestants of `studies benchmark` do the same thing, and one that does not is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safear_edit.families.base import ModelFamily
from safear_edit.families.infinity import Infinity
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.methods.vce import VCE
from safear_edit.studies import benchmark, many_prompts, speed_janus, speed_training
from safear_edit.studies.benchmark import SAME_GRADIENT, Line
from safear_edit.studies.roofline import Alone


@pytest.mark.parametrize(("kind", "methods"), [(LlamaGen, ["vce"]), (Infinity, ["svare"]), (Janus, ["vce"])])
def test_a_step_and_its_plain_form_have_the_same_loss_and_gradient(
    kind: type[ModelFamily], methods: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_training, "WARM", 1)
    monkeypatch.setattr(speed_training, "TIMED", 1)
    model = kind.pico()
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    material = speed_training.material_for(model, 8)
    assert set(methods) <= set(speed_training.methods_for(model))
    for name in methods:
        found = speed_training.race(model, name, material, repeats=1)
        assert max(found.loss_distance, found.gradient_distance) < SAME_GRADIENT, found
        assert found.seconds["ours"] > 0 and 0 < found.mib["ours"] < found.mib["plain"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())


def test_a_method_with_another_equation_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model, right = LlamaGen.pico(), VCE.loss
    material = speed_training.material_for(model, 8)

    def wrong(self: VCE, bench: object, draw: object, params: object) -> object:
        loss, readings = right(self, bench, draw, params)  # type: ignore[arg-type]
        return loss * (1.1 if isinstance(bench, speed_training.PlainBench) else 1), readings

    monkeypatch.setattr(VCE, "loss", wrong)
    assert speed_training.race(model, "vce", material, repeats=1).loss_distance > SAME_GRADIENT


def test_a_part_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "load_model", lambda name: LlamaGen.pico())
    for part in benchmark.PARTS:
        monkeypatch.setattr(benchmark, part, lambda *given, part=part: iter([Line(part, True, "")]))
    assert [line.what for line in benchmark.lines(["llamagen"], [4, 2], 1)] == [
        *("drawing", "drawing", "hands", "hands"),
        *benchmark.PARTS[2:],
    ]
    assert [line.what for line in benchmark.lines(["llamagen"], [4], 1, ["growth"])] == ["growth"]
    monkeypatch.setattr(benchmark, "training", lambda model, names, repeats: iter([Line(",".join(names), True, "")]))
    found = benchmark.lines(["llamagen"], [4], 1, ["training"], ["vce", "dpo", "sace"])
    assert [line.what for line in found] == ["dpo,vce"]


def test_hands_draw_what_one_after_the_other_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    (found,) = benchmark.hands(LlamaGen.pico(), 2, 1)
    assert (
        found.same and found.compared == "96 of 96 numbers" and found.times and "3 batches by 3 threads" in found.what
    )
    assert torch.get_num_threads() == 1


def test_janus_draws_what_transformers_draws() -> None:
    found = speed_janus.race(Janus.pico(), batch=3, repeats=1)
    assert found.identical == found.tokens == 3 * Janus.pico().card.tokens


def test_a_slope_is_the_exponent() -> None:
    assert benchmark.slope((1, 2, 4), [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_the_command_prints_one_table_and_fails_where_contestants_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Alone(whole=1.0, seconds=0.25, flops=10**9, peak=8e9)
    told = [Line("a", True, "all", "1 s", "2 s", 2.0, alone=found), Line("b", False, "half")]
    monkeypatch.setattr(benchmark, "lines", lambda *_: iter(told))
    threads = torch.get_num_threads()
    try:
        assert benchmark.main(["--out", str(tmp_path / "rows.jsonl")]) == 1
        out = capsys.readouterr().out.splitlines()
        assert len(out) == 3 and out[0].startswith("what") and "2.0" in out[1]
        assert "25 % of the time; 1.0 Gflop at 50 % of the CPU's rate" in out[1] and out[1].rstrip().endswith("8.0")
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert rows[0]["title"] and rows[2]["both did the same"] == "half" and rows[1]["command"] == benchmark.COMMAND
        monkeypatch.setattr(benchmark, "lines", lambda *_: iter(told[:1]))
        few = ["--models", "janus", "infinity", "--repeats", "1", "--out", str(tmp_path / "few.jsonl")]
        assert benchmark.main(few) == 0
        row = json.loads((tmp_path / "few.jsonl").read_text().splitlines()[1])
        assert row["command"] == f"{benchmark.COMMAND} --models janus infinity --repeats 1"
    finally:
        torch.set_num_threads(threads)


def test_memory_and_rate_are_fitted_to_what_was_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = many_prompts.Watched()
    for batch in range(1, 41):
        seen.done.append(32 * batch)
        seen.seconds.append(batch + max(0.0, batch - 20.0))
        seen.resident.append(2**30 + 32 * batch * 2**11)
    row = seen.row()
    assert (row["images per CPU second, first half"], row["second half"]) == (pytest.approx(32, abs=2), 16)
    assert row["slope, KiB per image"] == pytest.approx(2) and row["images"] == 1280
    seen("eval", 1, 1)
    assert seen.resident[-1] > 2**20 and seen.done[-1] == 1
