"""Two processes (gloo, on the CPU) that share the frozen layers find the edit that one process finds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safear_edit.editor.fine_tune import Draw, Readings, Tuning, fine_tune
from safear_edit.families.base import ModelFamily
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.tokens import token_logprobs
from safear_edit.methods.vce import VCE
from safear_edit.studies.contest import material_of
from tests.programs import two

KINDS: dict[type[ModelFamily], bool] = {LlamaGen: True, Janus: False}
"""Families whose layers are run by methods of their own or by `forward`, and whether they run again going back."""
CHILD = """
import json, sys
from pathlib import Path
from tests.editor.test_sharding import KINDS, edit_of
print(json.dumps([edit_of(kind, Path(sys.argv[1])) for kind in KINDS]))
"""

OVERFLOWING = """
from tests.editor.test_sharding import overflowing
print(overflowing())
"""


def held(model: ModelFamily) -> int:
    """Bytes of the layers' frozen weights in this process."""
    parts = {part for layer, _ in model.passes() for part in layer.parameters() if not part.requires_grad}
    return sum((part.to_local() if hasattr(part, "to_local") else part).nbytes for part in parts)


def edit_of(kind: type[ModelFamily], folder: Path) -> tuple[int, int, bool]:
    """Write the edit of two steps on a pico; bytes held before, and while the main process trains, and whether the
    model is as it was."""
    model, shares = kind.pico(), list[int]()
    material = material_of(model, 4)
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    kinds, whole = [type(part) for part in model.net.modules()], sum(p.nbytes for p in _layers(model))
    numbers = {"steps": 2, "batch": 4, "accumulate": 2, "keep_weight": 0, "rank": 2, "warmup": 0}
    params = VCE.Params.model_validate({**numbers, "recompute": KINDS[kind]})
    edit = VCE().fit(model, material, params, seed=0, progress=lambda stage, *_: shares.append(held(model)))
    save_file(edit.tensors, folder / f"{kind.name}-{os.environ.get('RANK', 'alone')}.safetensors")
    same = all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())
    return whole, shares[-1] if shares else 0, same and kinds == [type(part) for part in model.net.modules()]


def overflowing() -> list[float]:
    """The losses of two steps through float16 layers, where the second part alone, which is the second process's of
    two, has a loss that overflows with the first factors."""
    model = LlamaGen.pico()
    model.net.half()
    condition, ids = model.condition(["a house", "a dog"]), torch.zeros(2, model.card.tokens, dtype=torch.long)

    def loss(draw: Draw) -> tuple[Tensor, Readings]:
        value = -token_logprobs(model.logits(condition, ids), ids).mean()
        return value * (1e4 if draw.part == 1 else 1.0), {}

    tuning, modules = Tuning(rank=2, steps=2, batch=2, accumulate=2, warmup=0), model.editable(Tuning().part)
    given = {"seed": 0, "identity": "", "passes": model.passes()}
    return [*fine_tune(model.net, modules, loss, tuning, progress=lambda *_: None, **given).losses]


def _layers(model: ModelFamily) -> set[torch.nn.Parameter]:
    return {part for layer, _ in model.passes() for part in layer.parameters()}


@pytest.mark.soak
def test_shared_layers_give_the_same_edit_and_half_the_weights_each(tmp_path: Path) -> None:
    for kind in KINDS:
        assert edit_of(kind, tmp_path)[2]
    ended = two(CHILD, str(tmp_path), timeout=300, ACCELERATE_USE_FSDP="true")
    first, second = (json.loads(one.out.splitlines()[-1]) for one in ended)
    for kind, (whole, share, same), (*_, other) in zip(KINDS, first, second, strict=True):
        assert same and other, "each process has its model back"
        assert share < 0.6 * whole, kind
        alone = load_file(tmp_path / f"{kind.name}-alone.safetensors")
        for rank in range(2):
            found = load_file(tmp_path / f"{kind.name}-{rank}.safetensors")
            for name, tensor in alone.items():
                torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-7)


@pytest.mark.soak
def test_through_shared_layers_of_float16_all_go_back_as_often() -> None:
    """One that tried another factor alone would wait for the others' shares until a timeout."""
    first, second = two(OVERFLOWING, timeout=60, ACCELERATE_USE_FSDP="true")
    assert first.code == 0 and json.loads(first.out) == json.loads(second.out)
    assert json.loads(first.out) == pytest.approx(overflowing(), rel=1e-3)
