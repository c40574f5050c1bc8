"""Gradients through float16 weights: small ones survive, what overflows is scaled less; other weights as ever."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from safear_edit.editor import gradients as scaled
from safear_edit.editor.gradients import backward, gradients, in_float16
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.tokens import token_logprobs


def _slope(model: LlamaGen, times: float) -> Tensor:
    """Of `times` a mean over the tokens of two images, for what is added to their captions."""
    condition = model.condition(["a house", "a dog"])
    added = torch.zeros(2, condition.features.shape[-1], requires_grad=True)
    ids = torch.zeros(2, model.card.tokens, dtype=torch.long)
    loss = -token_logprobs(model.logits(model.with_vectors(condition, added), ids), ids).mean() * times
    return gradients(model.net, loss, [added])[0]


def test_what_a_small_loss_says_survives_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = _slope(LlamaGen.pico(seed=0), 1.0)
    narrow = LlamaGen.pico(seed=0)
    narrow.net.to(torch.float16)
    assert in_float16(narrow.net)
    found = _slope(narrow, 1e-5) * 1e5
    assert float((found - exact).norm() / exact.norm()) < 0.05
    monkeypatch.setattr(scaled, "FACTORS", (1.0,))
    lost = _slope(narrow, 1e-5) * 1e5
    assert float((lost - exact).norm() / exact.norm()) > 0.3, "without it, most is lost"


def test_what_overflows_is_scaled_less() -> None:
    """A product of 200: 2^16 times that is no float16, a sixteenth of it is."""
    net = nn.Linear(1, 1, bias=False).half()
    with torch.no_grad():
        net.weight.fill_(200.0)
    x = torch.ones(1, 1, requires_grad=True)
    (slope,) = gradients(net, net(x.half()).float().sum(), [x])
    assert float(slope) == 200.0
    (endless,) = gradients(net, net(x.half()).float().sum() * math.inf, [x])
    assert not bool(endless.isfinite().all()), "for the caller to refuse"


def test_a_factor_that_another_process_refuses_is_given_up() -> None:
    """Though nothing overflowed here: a layer that is shared out can't be gone through by one process alone."""
    told, asked = iter([False, True]), list[bool]()

    def agreed(mine: bool) -> bool:
        asked.append(mine)
        return next(told)

    net, x = nn.Linear(1, 1).half(), torch.ones(1, 1, requires_grad=True)
    (slope,) = gradients(net, net(x.half()).float().sum() / 8, [x], agreed)
    assert asked == [True, True]
    assert float(slope) == net.weight.item() / 8


def test_other_weights_are_differentiated_as_ever_and_unused_ones_have_none() -> None:
    net, unused = nn.Linear(3, 2), nn.Parameter(torch.ones(2))
    x = torch.randn(4, 3)
    net(x).square().mean().backward()
    expected = [weight.grad.clone() for weight in net.parameters() if weight.grad is not None]
    net.zero_grad()
    for _ in range(2):
        backward(net, net(x).square().mean(), [*net.parameters(), unused])
    for weight, gradient in zip(net.parameters(), expected, strict=True):
        assert weight.grad is not None and torch.equal(weight.grad, gradient + gradient)
    assert unused.grad is not None and not unused.grad.any()
