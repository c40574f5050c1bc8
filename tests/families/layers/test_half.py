"""Layers in half precision on a CPU that lacks it: float32's product, rounded once, with its gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from safear_edit.families.janus import Janus
from safear_edit.families.layers import half
from safear_edit.families.load import load_model

BIAS = [False, True]


@pytest.fixture(autouse=True)
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without arithmetic for bfloat16, and blocks of three rows."""
    monkeypatch.setattr(half, "emulated", lambda kind: kind == torch.bfloat16)
    monkeypatch.setattr(half, "BLOCK", 3 * 8)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("biased", BIAS)
def test_result_and_gradient_are_those_of_float32_rounded_once(biased: bool) -> None:
    x, weight, up = random(2, 9, 8, seed=0), random(7, 8, seed=1), random(2, 9, 7, seed=2)
    bias = random(7, seed=3) if biased else None
    wide = x.float().requires_grad_()
    expected = F.linear(wide, weight.float(), None if bias is None else bias.float())
    expected.backward(up.float())
    found = half.linear(x.requires_grad_(), weight, bias)
    found.backward(up)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.detach(), rtol=2**-8, atol=1e-6)
    assert wide.grad is not None and x.grad is not None
    torch.testing.assert_close(x.grad.float(), wide.grad, rtol=2**-8, atol=1e-6)


def test_a_result_may_be_written_in() -> None:
    x, weight = random(2, 9, 8, seed=0).requires_grad_(), random(7, 8, seed=1)
    found = half.linear(x, weight)
    found[:, 0] = 0
    found.sum().backward()
    assert x.grad is not None and not x.grad[:, 0].any() and x.grad[:, 1].any()


def test_nothing_wide_waits_for_the_backward_pass() -> None:
    weight, kept = random(7, 8, seed=1), list[torch.Tensor]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        half.linear(random(20, 8, seed=0).requires_grad_(), weight)
    assert [tensor.data_ptr() for tensor in kept] == [weight.data_ptr()]


@pytest.mark.parametrize("masked", ["not", "bool", "bias"])
@pytest.mark.parametrize("heads", [4, 2])
def test_attention_has_torchs_value_and_the_gradient_of_float32(masked: str, heads: int) -> None:
    q, k, v = random(2, 4, 5, 8, seed=0), random(2, heads, 6, 8, seed=1), random(2, heads, 6, 8, seed=2)
    seen = {"not": None, "bool": torch.ones(5, 6).tril(1).bool(), "bias": random(2, 1, 5, 6, seed=3)}[masked]
    up, grouped = random(2, 4, 5, 8, seed=4), heads != 4
    wide = tuple(x.float().requires_grad_() for x in (q, k, v))
    bias = seen.float() if seen is not None and seen.is_floating_point() else seen
    F.scaled_dot_product_attention(wide[0], wide[1], wide[2], bias, scale=0.3, enable_gqa=grouped).backward(up.float())
    plain = F.scaled_dot_product_attention(q, k, v, seen, scale=0.3, enable_gqa=grouped)
    found = half.attention(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), seen, scale=0.3, grouped=grouped)
    found.backward(up)
    assert torch.equal(found, plain)
    for x, expected in zip((q, k, v), wide, strict=True):
        assert x.grad is not None and x.grad.dtype == torch.bfloat16 and expected.grad is not None
        torch.testing.assert_close(x.grad.float(), expected.grad, rtol=2**-8, atol=1e-6)


def test_attention_gives_gradients_to_what_asks_for_them_alone() -> None:
    q, k, v = (random(1, 2, 3, 8, seed=seed) for seed in range(3))
    half.attention(q, k, v.requires_grad_()).sum().backward()
    assert v.grad is not None and q.grad is None and k.grad is None


def test_few_rows_and_weights_that_learn_go_torchs_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(half._Widened, "apply", refused)
    weight = random(7, 8, seed=1)
    half.linear(random(half.FEWEST - 1, 8, seed=0), weight)
    half.linear(random(20, 8, seed=0), weight.requires_grad_()).sum().backward()
    assert weight.grad is not None
    half.linear(torch.ones(20, 8), torch.ones(7, 8))
    for x in (random(20, 8, seed=0), random(1, 8, seed=0).requires_grad_()):
        with pytest.raises(AssertionError):
            half.linear(x, weight.detach())


def test_a_model_loaded_in_half_precision_computes_so_and_one_in_float32_does_not(tmp_path: Path) -> None:
    model = Janus.pico()
    model.export(tmp_path)

    def layers(dtype: str) -> set[type]:
        net = load_model(str(tmp_path), dtype=dtype).net
        return {type(module) for module in net.modules() if isinstance(module, nn.Linear)}

    assert layers("bfloat16") == {half.Linear}
    assert layers("float32") == {nn.Linear}


def test_a_model_of_transformers_learns_by_it_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Janus.pico().export(tmp_path)
    asked, apply = list[torch.Tensor](), half._Attended.apply

    def counted(q: torch.Tensor, *rest: object) -> object:
        asked.append(q)
        return apply(q, *rest)

    def logits() -> torch.Tensor:
        model = load_model(str(tmp_path), dtype="bfloat16")
        condition = model.condition(["a cat", "a dog"])
        condition.features.requires_grad_()
        return model.logits(condition, torch.zeros(2, *model.token_shape, dtype=torch.long))

    monkeypatch.setattr(half._Attended, "apply", counted)
    ours, layers = logits(), len(asked)
    monkeypatch.setattr(half, "_known_to_transformers", lambda: "sdpa")
    torchs = logits()
    assert layers == 2 and len(asked) == layers and torch.equal(ours, torchs)
    ours.sum().backward()
