"""A stack goes on in order and comes off bitwise, says what it is, and is read back from a release."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import load_base_recipe, save_recipe
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.evaluate.interference_record import Interference
from safear_edit.families.base import ModelFamily
from safear_edit.families.llamagen import LlamaGen
from safear_edit.files.layout import FOUND_BY, INTERFERENCE
from safear_edit.files.names import EXPORTED
from safear_edit.files.weights import write_weights
from safear_edit.pipeline import publish
from safear_edit.pipeline.generate import generate
from safear_edit.registry import find_builtin
from safear_edit.release.released import Released, save_base, save_stack
from safear_edit.spec.spec import load_spec

STRENGTHS = {"one": 1.0, "two": 0.5}


def edit(model: ModelFamily, seed: int, part: str = "attention") -> Edit:
    """An adapter that nobody trained."""
    random, tensors = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name in model.editable(part):
        out, width = model.net.get_parameter(f"{name}.weight").shape
        tensors[f"{name}.lora_A"] = torch.randn(2, width, generator=random)
        tensors[f"{name}.lora_B"] = 0.1 * torch.randn(out, 2, generator=random)
    info = EditInfo(method="vce", params={}, concept="x", base_digest=model.card.digest, rank=2, alpha=2.0, seed=seed,
                    steps=1, losses=(0.7,), minutes=0.1)  # fmt: skip
    return Edit("lora", tensors, info)


def stack_of(model: ModelFamily) -> Stack:
    return Stack(tuple(Layer(name, edit(model, i), s) for i, (name, s) in enumerate(STRENGTHS.items())))


def release(folder: Path, model: ModelFamily | None = None, stack: Stack | None = None) -> Path:
    """What a walk releases, but for evidence; by default two edits of a LlamaGen."""
    spec = load_spec(find_builtin("concepts", "picasso"))
    model = model or LlamaGen.pico(seed=0)
    stack = stack or stack_of(model)
    recipe = compile_recipe(spec, model.card, load_base_recipe("vce"), overrides=["construct.pairs=8"])
    for layer in stack.layers:
        target = folder / "concepts" / layer.name
        layer.edit.save(target / "edit")
        named = type(recipe).model_validate({**recipe.model_dump(mode="json"), "spec": {
            **recipe.spec.model_dump(mode="json"), "name": layer.name}})  # fmt: skip
        save_recipe(named, target / FOUND_BY)
    publish.write_json(folder / "base.json", publish.base_card(model))
    empty = Interference(history=(), alone=(), overlaps=())
    (folder / INTERFERENCE).write_text(empty.model_dump_json())
    save_base(folder, model.net, stack.weights)
    save_stack(folder, stack, model.net)
    with stack.apply(model.net):
        model.export(folder)
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return release(tmp_path / "two")


def test_edits_are_merged_in_order_by_strength_and_come_off_bitwise() -> None:
    model = LlamaGen.pico(seed=0)
    stack, before = stack_of(model), {k: v.clone() for k, v in model.net.state_dict().items()}
    name = stack.weights[0]
    total = sum(layer.strength * layer.edit.delta(name) for layer in stack.layers)
    with stack.apply(model.net):
        torch.testing.assert_close(model.net.state_dict()[name], before[name] + total)
    assert all(torch.equal(tensor, before[k]) for k, tensor in model.net.state_dict().items())


def test_digest_and_fingerprints_tell_edits_orders_and_strengths_apart() -> None:
    model = LlamaGen.pico(seed=0)
    one, two = stack_of(model).layers
    stacks = [Stack(()), Stack((one,)), Stack((one, two)), Stack((two, one)), Stack((one, Layer("two", two.edit)))]
    assert len({stack.digest for stack in stacks}) == len(stacks)
    marks = [stack.fingerprints(model.net) for stack in stacks]
    assert marks[2][0] == marks[1][0] and len({mark[-1] for mark in marks[1:3]} | {marks[4][-1]}) == 3


def test_a_release_is_read_back_with_its_base(made: Path) -> None:
    released = Released.read(made)
    assert released.stack.names == ("one", "two") and released.ref == "llamagen:pico"
    assert [layer.strength for layer in released.stack.layers] == [1.0, 0.5]
    model, wanted = released.base(), LlamaGen.pico(seed=0)
    assert all(torch.equal(t, wanted.net.state_dict()[k]) for k, t in model.net.state_dict().items())
    assert model.card.digest == wanted.card.digest
    assert released.stack.fingerprints(model.net) == released.fingerprints
    assert released.base(dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(UsageError, match="did you mean 'one'"):
        released.member("onne")


def test_an_edit_that_another_recipe_found_is_not_read(made: Path) -> None:
    """As those here, an edit from before it named its recipe says nothing, and is."""
    folder = made / "concepts/two"
    edit, recipe = Edit.load(folder / "edit"), json.loads((folder / FOUND_BY).read_text())["digest"]
    assert edit.recipes == () and Released.read(made)
    replace(edit, recipes=(recipe,)).save(folder / "edit")
    assert Released.read(made).members[1].layer.edit.digest == edit.digest, "it is the same edit"
    replace(edit, recipes=("a" * 64,)).save(folder / "edit")
    with pytest.raises(TrustError, match=r"concepts/two, recipe: expected that of its edit, aaaaaaaaaaaa…"):
        Released.read(made)


def test_a_run_of_compare_without_its_weights_is_put_on_the_base_of_its_name(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safear_edit.release.released.load_model", lambda ref, *how: LlamaGen.pico(seed=0))
    for name in ("base.safetensors", *EXPORTED):
        (made / name).unlink(missing_ok=True)
    released, wanted = Released.read(made), LlamaGen.pico(seed=0)
    model = released.base()
    assert all(torch.equal(t, wanted.net.state_dict()[k]) for k, t in model.net.state_dict().items())
    assert released.stack.fingerprints(model.net) == released.fingerprints
    name = released.stack.weights[0]
    with released.edited() as edited, released.stack.apply(wanted.net):
        assert torch.equal(edited.net.state_dict()[name], wanted.net.state_dict()[name])
    how: dict[str, Any] = {"count": 1, "seed": 3, "device": "cpu", "out": made.parent / "drawn", "overwrite": False}
    ref, (drawn,) = generate(str(made), ["a house"], **how)
    assert ref == "llamagen:pico"
    with released.stack.apply(wanted.net):
        image = wanted.decode(wanted.generate(wanted.condition(["a house"]), [3]))[0]
    assert (np.asarray(Image.open(drawn)) == image.permute(1, 2, 0).numpy()).all(), "the edited model's"
    monkeypatch.setattr("safear_edit.pipeline.generate.load_model", lambda ref, *how: LlamaGen.pico(seed=0))
    with pytest.raises(UsageError, match="that this command didn't write"):
        generate("llamagen", ["a house"], **how)
    card = json.loads((made / "base.json").read_text())
    (made / "base.json").write_text(json.dumps(card | {"files": dict.fromkeys(card["files"], "0" * 64)}))
    with pytest.raises(TrustError, match=r"expected its base model, digest .*, got llamagen:pico, digest"):
        Released.read(made).base()


def test_weights_without_what_the_edits_changed_are_refused(made: Path) -> None:
    (made / "base.safetensors").unlink()
    with pytest.raises(UsageError, match=r"a released folder with base\.safetensors"):
        Released.read(made)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda told: told["edits"].reverse(), TrustError),
        (lambda told: told["edits"][0].update(edit="0" * 64), TrustError),
        (lambda told: told["edits"][0].update(strength=0.9), TrustError),
        (lambda told: told.pop("edits"), SpecError),
        (lambda told: told.update(more=1), SpecError),
    ],
)
def test_a_stack_file_that_was_changed_is_refused(made: Path, change: Any, error: type[Exception]) -> None:
    path = made / "stack.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))
    with pytest.raises(error):
        Released.read(made).base()


def test_edits_of_weights_that_the_model_lacks_are_refused(made: Path) -> None:
    told = json.loads((made / "stack.json").read_text())
    stack = Released.read(made).stack
    for one, layer in zip(told["edits"], stack.layers, strict=True):
        info = layer.edit.info.model_copy(update={"rank": None, "alpha": None})
        folder = made / "concepts" / one["name"] / "edit"
        for path in folder.glob("adapter_*"):
            path.unlink()
        other = Edit("delta", {"elsewhere.weight": torch.zeros(3)}, info)
        other.save(folder)
        one["edit"] = other.digest
    (made / "stack.json").write_text(json.dumps(told))
    write_weights(made / "base.safetensors", {"elsewhere.weight": torch.zeros(3)})
    with pytest.raises(TrustError, match="1 weights that the edits change, got others"):
        Released.read(made).base()


def test_what_is_no_release_is_refused(tmp_path: Path) -> None:
    LlamaGen.pico(seed=0).export(tmp_path)
    with pytest.raises(UsageError, match="something else"):
        Released.read(tmp_path)
