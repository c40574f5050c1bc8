"""An edit goes on and comes off exactly, refuses what it doesn't fit, and is what peft understands by it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from safear_edit.editor.edit import (
    FILES,
    PEFT_CONFIG,
    PEFT_TENSORS,
    TENSORS,
    Edit,
    EditInfo,
    exactly,
    stacked,
)
from safear_edit.editor.method_log import LOG, MethodLog
from safear_edit.errors import TrustError, UsageError
from safear_edit.families.merged import APPLIED, Applied, without_edits
from tests import ROOT

RANK = 3


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.ModuleDict({"deep": nn.Linear(8, 4, bias=False)})["deep"])


def edit(
    seed: int = 1, modules: tuple[tuple[str, int, int], ...] = (("0", 8, 6), ("2", 4, 8)), minutes: float = 1.0
) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, out, width in modules:
        tensors[f"{name}.lora_A"] = torch.randn(RANK, width, generator=generator)
        tensors[f"{name}.lora_B"] = torch.randn(out, RANK, generator=generator)
    info = EditInfo(
        method="vce", params={"beta": 5.0}, concept="Picasso", base_digest="ab", rank=RANK, alpha=6.0, seed=seed,
        steps=2, losses=(0.7, 0.6), minutes=minutes,
    )  # fmt: skip
    return Edit("lora", tensors, info)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_apply_adds_the_scaled_product_and_undo_is_bitwise() -> None:
    model, it = net(), edit()
    before = state(model)
    with it.apply(model, 0.5):
        expected = before["0.weight"] + 0.5 * (6.0 / RANK) * it.tensors["0.lora_B"] @ it.tensors["0.lora_A"]
        torch.testing.assert_close(model[0].weight.detach(), expected)
        assert torch.equal(model[0].bias, before["0.bias"])
        assert not torch.equal(model[2].weight, before["2.weight"])
    assert same(state(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edits_compose_in_any_number_and_come_off_bitwise(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    before = state(model)
    with stacked(model, [(edit(1), 1.0), (edit(2), 0.5), (edit(3), 1.0)]):
        total = sum(by * edit(seed).delta("2.weight") for seed, by in ((1, 1.0), (2, 0.5), (3, 1.0)))
        tolerance = 1e-5 if dtype == torch.float32 else 0.2
        torch.testing.assert_close(
            model[2].weight.detach().float(), before["2.weight"].float() + total, atol=tolerance, rtol=0.05
        )
    assert same(state(model), before)


def test_the_base_can_be_looked_at_below_its_edits() -> None:
    model = net()
    before = state(model)
    with stacked(model, [(edit(1), 1.0), (edit(2), 0.5)]):
        merged = state(model)
        with without_edits(model):
            assert same(state(model), before)
        with pytest.raises(RuntimeError, match="boom"), without_edits(model):
            raise RuntimeError("boom")
        assert same(state(model), merged) and not same(merged, before)
    with without_edits(model):
        assert same(state(model), before)


def test_the_base_model_below_an_edit_is_where_the_model_is() -> None:
    """Originals wait in host memory; a net elsewhere (here: nowhere) must not be left with half of it there."""
    away = nn.Linear(2, 3, device="meta")
    APPLIED[away] = [Applied(away, [(away.weight, torch.zeros(3, 2))])]
    merged = away.weight.data
    with without_edits(away):
        assert away.weight.device.type == "meta" and away.weight.data is not merged
    assert away.weight.device.type == "meta"


def test_an_error_inside_takes_the_edit_off() -> None:
    model = net()
    before = state(model)
    with pytest.raises(RuntimeError, match="boom"), edit().apply(model):
        raise RuntimeError("boom")
    assert same(state(model), before)


def test_edits_come_off_in_reverse_order_only() -> None:
    model = net()
    before = state(model)
    first, second = edit(1).apply(model), edit(2).apply(model)
    both = state(model)
    with pytest.raises(UsageError, match="undo the later edits first"):
        first.undo()
    assert same(state(model), both)
    second.undo()
    first.undo()
    first.undo()
    assert same(state(model), before)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("9", 4, 8), "no such module"),
        (("1", 4, 8), "GELU"),
        (("2", 4, 7), r"\(4, 8\)"),
    ],
)
def test_nothing_is_written_unless_everything_fits(wrong: tuple[str, int, int], words: str) -> None:
    model = net()
    before = state(model)
    with pytest.raises(UsageError, match=words):
        edit(modules=(("0", 8, 6), wrong)).apply(model)
    assert same(state(model), before)


def test_strength_must_be_finite() -> None:
    with pytest.raises(UsageError, match="finite strength"):
        edit().apply(net(), float("nan"))


def test_an_edit_is_complete_or_refused() -> None:
    tensors = edit().tensors
    with pytest.raises(UsageError, match=r"0\.lora_B"):
        Edit("lora", {k: v for k, v in tensors.items() if k != "0.lora_B"}, edit().info)
    with pytest.raises(UsageError, match="rank 3"):
        Edit("lora", {**tensors, "0.lora_A": torch.zeros(2, 6)}, edit().info)
    with pytest.raises(UsageError, match="nan"):
        Edit("lora", {**tensors, "0.lora_A": torch.full((3, 6), float("inf"))}, edit().info)


@pytest.mark.parametrize("odd", [torch.zeros(3, 6).to(torch.float8_e4m3fn), torch.zeros(3, 6).long(), torch.zeros(())])
def test_tensors_that_no_edit_has_are_one_line(odd: Tensor, tmp_path: Path) -> None:
    """torch knows no finite float8, and no bytes of a single number."""
    with pytest.raises(UsageError, match=r"0\.lora_A: expected float32 numbers with a shape|factors of rank"):
        Edit("lora", {**edit().tensors, "0.lora_A": odd}, edit().info)
    weight = Edit("delta", {"0.weight": torch.zeros(3, 6)}, edit().info)
    weight.save(tmp_path)
    save_file({"0.weight": odd}, tmp_path / "edit.safetensors")
    with pytest.raises(TrustError, match="float32 numbers with a shape"):
        Edit.load(tmp_path)


@pytest.mark.parametrize("change", [{"alpha": None}, {"rank": 0}])
def test_factors_have_a_rank_and_an_alpha(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="the rank and alpha of its factors"):
        Edit("lora", edit().tensors, edit().info.model_copy(update=change))


def test_the_digest_is_of_the_content() -> None:
    assert edit().digest == edit(minutes=9.0).digest, "minutes are not content"
    changed = edit()
    changed.tensors["2.lora_A"][0, 0] += 1e-6
    others = [changed, edit(2), Edit("lora", edit().tensors, edit().info.model_copy(update={"concept": "Monet"}))]
    assert len({edit().digest, *(other.digest for other in others)}) == 4


def test_save_and_load(tmp_path: Path) -> None:
    edit().save(tmp_path / "e")
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == sorted(FILES["lora"])
    loaded = Edit.load(tmp_path / "e")
    assert loaded.info == edit().info and same(loaded.tensors, edit().tensors)


def test_weights_are_written_in_one_place_and_the_same_twice(tmp_path: Path) -> None:
    """safetensors writes metadata in the order of a random hash: `write_weights` puts it in order."""
    for name in ("a", "b"):
        edit().save(tmp_path / name)
    for file in FILES["lora"]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    package = ROOT / "safear_edit"
    writers = re.compile(r"from safetensors(\.torch)? import .*\bsave(_file)?\b")
    for module in ("editor/edit", "editor/fine_tune", "construct/pairs", "evaluate/sampled"):
        assert not writers.search((package / f"{module}.py").read_text()), module


def test_an_adapter_saved_before_in_a_file_of_its_own_is_read(tmp_path: Path) -> None:
    """Until November 2026 `save` wrote TENSORS beside peft's file, and that one was read."""
    edit().save(tmp_path)
    assert not (tmp_path / TENSORS).exists(), "each tensor is stored once"
    (tmp_path / PEFT_TENSORS).unlink()
    save_file(edit().tensors, tmp_path / TENSORS)
    assert Edit.load(tmp_path).digest == edit().digest


LOG_OF = MethodLog(
    title="Found in rounds", columns=("round", "kept"), rows=((1, True), (2, None)), caption="No evidence."
)


def test_a_methods_log_travels_with_its_edit_and_changes_no_digest(tmp_path: Path) -> None:
    told = replace(edit(), log=LOG_OF, figure=b"\x89PNG")
    assert told.digest == edit().digest
    told.save(tmp_path)
    assert (Edit.load(tmp_path).log, Edit.load(tmp_path).figure) == (LOG_OF, b"\x89PNG")
    (tmp_path / LOG).write_text('{"title": "x", "columns": ["a"], "rows": [[1, 2]]}')
    with pytest.raises(TrustError, match="a method's log"):
        Edit.load(tmp_path)


def test_it_names_its_recipes_and_older_ones_are_read(tmp_path: Path) -> None:
    named = replace(edit(), recipes=("a" * 64,))
    named.save(tmp_path)
    assert Edit.load(tmp_path).recipes == named.recipes and named.digest == edit().digest
    about = json.loads((tmp_path / "edit.json").read_text())
    del about["recipes"]
    (tmp_path / "edit.json").write_text(json.dumps(about))
    assert Edit.load(tmp_path).recipes == ()


def test_load_refuses_what_was_changed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        Edit.load(tmp_path)
    edit().save(tmp_path)
    content = (tmp_path / PEFT_TENSORS).read_bytes()
    for data in (content[:-8], b"\x80\x04pickle", content[:-1] + bytes([content[-1] ^ 1])):
        (tmp_path / PEFT_TENSORS).write_bytes(data)
        with pytest.raises(TrustError):
            Edit.load(tmp_path)
    (tmp_path / PEFT_TENSORS).write_bytes(content)
    about = json.loads((tmp_path / "edit.json").read_text())
    for document in ({**about, "info": {**about["info"], "rank": "x"}}, {"kind": "lora"}, [], {**about, "digest": "0"}):
        (tmp_path / "edit.json").write_text(json.dumps(document))
        with pytest.raises(TrustError):
            Edit.load(tmp_path)


def test_peft_loads_it_and_means_the_same(tmp_path: Path) -> None:
    from peft import PeftModel

    edit().save(tmp_path)
    assert {PEFT_CONFIG, PEFT_TENSORS} < set(FILES["lora"])
    x = torch.randn(5, 6)
    with edit().apply(merged := net()):
        expected = merged(x)
    torch.testing.assert_close(PeftModel.from_pretrained(net(), tmp_path)(x), expected)


def test_exactly_is_the_names_and_no_others() -> None:
    pattern = exactly(["layers.1.wo", "layers.10.wo"])
    names = ["layers.1.wo", "layers.10.wo", "layers.2.wo", "x.layers.1.wo", "layersx1.wo"]
    assert [name for name in names if re.fullmatch(pattern, name)] == names[:2]


def table_edit(scale: float = 1.0) -> Edit:
    info = edit().info.model_copy(update={"rank": None, "alpha": None})
    return Edit("delta", {"0.weight": scale * torch.ones(4, 6)}, info)


def test_a_weight_edit_adds_its_delta_and_comes_off_bitwise(tmp_path: Path) -> None:
    model = net()
    before = state(model)
    shape = before["0.weight"].shape
    made = Edit("delta", {"0.weight": torch.full(tuple(shape), 0.25)}, table_edit().info)
    assert made.weights == ["0.weight"] and made.modules == []
    with made.apply(model, 2.0):
        torch.testing.assert_close(model[0].weight.detach(), before["0.weight"] + 0.5)
        with edit(1).apply(model):
            assert not same(state(model), before)
    assert same(state(model), before)
    made.save(tmp_path / "e")
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == sorted(FILES["delta"])
    again = Edit.load(tmp_path / "e")
    assert again.digest == made.digest and again.kind == "delta"


def test_a_weight_edit_of_another_shape_or_name_changes_nothing() -> None:
    model = net()
    before = state(model)
    for tensors, words in (
        ({"0.weight": torch.zeros(3, 3)}, "a weight of shape"),
        ({"nowhere.weight": torch.zeros(3, 3)}, "no such module"),
    ):
        with pytest.raises(UsageError, match=words):
            Edit("delta", tensors, table_edit().info).apply(model)
    with pytest.raises(UsageError, match="a weight to change"):
        Edit("delta", {}, table_edit().info)
    assert same(state(model), before)
