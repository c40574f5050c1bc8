"""Which dtype frozen weights get, and that what is trained stays float32 on top of any."""

from __future__ import annotations

from pathlib import Path
from weakref import ref

import pytest
import torch
from torch import Tensor

from safear_edit import registry
from safear_edit.construct.pairs import Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.errors import UsageError
from safear_edit.families import load
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.load import load_model, resolve_dtype
from safear_edit.families.reference import ModelRef
from safear_edit.files.weights import Stored
from safear_edit.methods.vce import VCE
from safear_edit.progress import silent

MINI = ModelRef("llamagen", "mini")


@pytest.mark.parametrize("name", registry.families())
def test_a_tensor_of_the_file_is_gone_before_the_next_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading a 7B in bfloat16 takes its 14 GB and one tensor, not the file's 28 beside them."""
    registry.lookup("families", name).load().pico().export(tmp_path)
    read, seen, most = Stored.__getitem__, list[tuple[str, ref[Tensor]]](), 0

    def watched(self: Stored, tensor: str) -> Tensor:
        nonlocal most
        alive = [own for own, one in seen if one() is not None and own not in getattr(model, "kept", ())]
        most = max(most, len(alive))
        found = read(self, tensor)
        seen.append((tensor, ref(found)))
        return found

    model = load_model(str(tmp_path))
    monkeypatch.setattr(Stored, "__getitem__", watched)
    again = load_model(str(tmp_path), dtype="bfloat16")
    assert len(seen) > 20 and most <= 1  # two where a codebook or a head is compared with its double
    assert again.dtype == torch.bfloat16


def test_the_original_layout_of_janus_comes_in_tensor_by_tensor_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fused layers are split as they are read."""
    Janus.pico().export(tmp_path, "upstream")
    read, alive, most = Stored.__getitem__, list[ref[Tensor]](), list[int]()

    def watched(self: Stored, tensor: str) -> Tensor:
        most.append(sum(one() is not None for one in alive))
        found = read(self, tensor)
        alive.append(ref(found))
        return found

    monkeypatch.setattr(Stored, "__getitem__", watched)
    again, own = load_model(str(tmp_path), dtype="bfloat16"), Janus.pico().net.state_dict()
    assert len(most) > 20 and max(most) <= 1
    for name, tensor in again.net.state_dict().items():
        assert name == "image_table" or torch.equal(tensor, own[name].to(tensor.dtype)), name


def test_an_export_is_read_in_the_dtype_it_was_written_in(tmp_path: Path) -> None:
    model = LlamaGen.pico()
    model.net.bfloat16()
    model.export(tmp_path)
    again = load_model(str(tmp_path))
    assert again.dtype == torch.bfloat16 and {p.dtype for p in again.vq.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    assert load_model(str(tmp_path), dtype="float32").dtype == torch.float32


def test_auto_is_float32_on_a_cpu_and_a_shipped_minis_half_precision_file_says_nothing() -> None:
    assert resolve_dtype("auto", MINI, "cpu") == torch.float32
    folder = ModelRef("llamagen", "mini", load.PACKAGE / "minis" / "llamagen")
    assert resolve_dtype("auto", folder, "cpu") == torch.float32


def test_a_gpu_gets_published_weights_in_what_it_computes_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published = ModelRef("llamagen", "xl-256", tmp_path)
    for lacking, found in ((set(), torch.bfloat16), ({torch.bfloat16}, torch.float16)):
        monkeypatch.setattr(load, "_computes", lambda kind, device, lacking=lacking: kind not in lacking)
        assert resolve_dtype("auto", published, "cuda") == found
        assert resolve_dtype("auto", MINI, "cuda") == torch.float32


def test_a_dtype_that_is_none_or_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"auto, float32.*'int8'"):
        resolve_dtype("int8", MINI, "cpu")
    monkeypatch.setattr(load, "_computes", lambda kind, device: False)
    with pytest.raises(UsageError, match=r"--dtype float16.*one that it lacks"):
        resolve_dtype("float16", MINI, "cpu")


def test_an_edit_of_half_precision_weights_is_float32_and_leaves_them_as_they_were() -> None:
    model = LlamaGen.pico()
    model.net.bfloat16()
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    ids = model.generate(model.condition([f"a {i}" for i in range(16)]), range(16))
    pairs = Pairs(["a cat"] * 8, ["a dog"] * 8, list(range(8)), ids[:8], ids[8:], PairStats(8, 8, {}))
    params = VCE.Params(steps=8, batch=4, rank=2, keep_weight=0, learning_rate=1e-2, warmup=1)
    edit = VCE().fit(model, Material("cat", pairs, None), params, seed=0, progress=silent)
    assert {tensor.dtype for tensor in edit.tensors.values()} == {torch.float32}
    assert edit.info.losses[-1] < edit.info.losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())
