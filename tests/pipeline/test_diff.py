"""Strengths are found again from weights, ranks are those of the change, and rounding is no change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.editor.stack import Layer
from safear_edit.pipeline.diff import Part, _changed, fitted, rank


def layer(name: str, seed: int, width: int = 12) -> Layer:
    random = torch.Generator().manual_seed(seed)
    shapes = {"w.lora_A": (2, width), "w.lora_B": (9, 2)}
    factors = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    info = EditInfo(method="m", params={}, concept=name, base_digest="d", seed=seed, steps=1, losses=(), minutes=0.0,
                    rank=2, alpha=2.0)  # fmt: skip
    return Layer(name, Edit("lora", factors, info))


BASE = torch.randn(9, 12, generator=torch.Generator().manual_seed(9))


def merged(*parts: tuple[Layer, float]) -> Tensor:
    weight = BASE.clone()
    for one, strength in parts:
        weight = weight + strength * one.edit.delta("w.weight")
    return weight


def test_strengths_are_found_in_the_weights() -> None:
    a, b = layer("a", 1), layer("b", 2)
    deltas = {"w.weight": merged((a, 0.5), (b, -1.0)) - BASE}
    found = fitted(deltas, [a, b])
    assert found == pytest.approx({a.edit.digest: 0.5, b.edit.digest: -1.0}, abs=1e-5)
    (row,) = [_changed("w.weight", BASE, deltas["w.weight"], (found,), [a, b])]
    assert row and row.rank == 4 and row.edits == ("a", "b") and row.left == 0
    assert fitted(deltas, [a, a]) == {}, "the same change twice can't be told apart"


def test_what_no_edit_explains_is_left() -> None:
    a = layer("a", 1)
    extra = torch.zeros_like(BASE)
    extra[0, 0] = 0.01
    delta = merged((a, 1.0)) + extra - BASE
    row = _changed("w.weight", BASE, delta, (fitted({"w.weight": delta}, [a]),), [a])
    assert row and row.left == pytest.approx(0.01, rel=0.2) and row.rank == 3
    assert _changed("w.weight", BASE, torch.zeros_like(BASE), ({},), []) is None


def test_a_fit_that_tampering_draws_off_blames_no_other_tensor() -> None:
    a = layer("a", 1)
    delta = merged((a, 1.0)) - BASE
    off = {a.edit.digest: 1.01}
    untouched = _changed("w.weight", BASE, delta, ({a.edit.digest: 1.0}, off), [a])
    assert untouched and untouched.left == 0
    only_fit = _changed("w.weight", BASE, delta, (off,), [a])
    assert only_fit and only_fit.left > 0


def test_a_model_kept_in_half_precision_is_not_tampered_with() -> None:
    a = layer("a", 1)
    delta = merged((a, 1.0)).bfloat16().float() - BASE
    stated = ({a.edit.digest: 1.0},)
    coarse = _changed("w.weight", BASE, delta, stated, [a], torch.finfo(torch.bfloat16).eps)
    assert coarse and coarse.left == 0
    fine = _changed("w.weight", BASE, delta, stated, [a])
    assert fine and fine.left > 0, "in float32 that is no rounding"


def test_rounding_has_no_rank() -> None:
    weight = torch.randn(60, 50, generator=torch.Generator().manual_seed(3))
    rounded = weight.bfloat16().float() - weight
    assert rank(rounded, torch.finfo(torch.bfloat16).eps * float(weight.norm())) == 0


def test_a_strength_that_the_weights_dont_have_is_told() -> None:
    from safear_edit.pipeline.diff import Difference

    lines = Difference(("x", "y"), (), (Part("a", "0" * 64, 1.0, 0.5),), ()).lines()
    assert lines[0] == "a (000000000000): strength +1 as stated, +0.5 in the weights"
