"""The script for a borrowed GPU runs here on picos; full sizes are made on the meta device, where they take nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.cost import Speed, stage_bytes
from safear_edit.compiler.recipe import BaseRecipe, Recipe
from safear_edit.families.base import ModelCard
from safear_edit.families.llamagen import LlamaGen
from safear_edit.spec.spec import Spec
from safear_edit.studies import gpu


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take half a second each, a device that nobody measures, and one recipe for all models."""
    recipes = list[Recipe]()

    def compiled(spec: Spec, card: ModelCard, base: BaseRecipe) -> Recipe:
        recipes.extend([] if recipes else [compile_recipe(spec, card, base)])
        return recipes[0]

    monkeypatch.setattr(gpu, "compile_recipe", compiled)
    monkeypatch.setattr(gpu, "step_seconds", lambda model, material, numbers, steps, clock: 0.5)
    monkeypatch.setattr(gpu, "speed_of", lambda model: Speed(1e9, 1e9))
    monkeypatch.setattr("safear_edit.compiler.cost.speed_of", lambda model: Speed(1e9, 1e9))


def test_every_model_draws_by_both_loops_trains_and_foretells_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    assert gpu.main(["--tiny", "--batch", "2", "--repeats", "1", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["model"] for row in rows[::3]] == list(gpu.FULL) and capsys.readouterr().out.count("\n") == len(rows)
    assert all(row["images/s"] > 0 and row["times the published loop"] > 0 for row in rows[::3])
    assert all(row["seconds"] == 0.5 and row["parts"] == 1 for row in rows[1::3])
    for drawn, trained, run in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        images, steps = (int(word) for word in run["what"].split() if word.isdigit())
        each = 1 / drawn["images/s"] + drawn["seconds to decode one"]
        assert images > 1000 and steps > 10 and run["predicted minutes"] > 0
        assert 60 * run["minutes"] == pytest.approx(images * each + steps * trained["seconds"], abs=1)


def test_what_fails_is_a_row_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: object, steps: int) -> object:
        raise torch.OutOfMemoryError("no\nroom")

    monkeypatch.setattr(gpu, "training", full)
    rows = list(gpu.measured("llamagen:xl-256", True, torch.float32, [1, 2], 1))
    assert [gpu.FAILED in row for row in rows] == [False, False, True]
    assert rows[2]["what"] == "a step of VCE" and rows[2][gpu.FAILED] == "OutOfMemoryError: no room"
    monkeypatch.setattr(gpu, "measured", lambda *_: iter(rows))
    assert gpu.main(["--tiny", "--models", "llamagen:xl-256"]) == 1


def test_a_step_that_the_device_has_no_room_for_is_cut_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaGen.pico()
    params, needed = gpu.recipe_of(model), list[int]()
    for parts in (1, 4):
        one = params.model_copy(update={"recompute": True, "accumulate": parts})
        needed.append(stage_bytes(model, one, gpu._work(model)(one), gpu._trainable(model))["training"])
    monkeypatch.setattr(gpu, "free_bytes", lambda device: sum(needed) // 2)
    row = gpu.training(model, 2)
    assert row["layers again"] and 1 < row["parts"] <= 4


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
