"""Merging with the base and pruning: what becomes of the weights, and that they come back."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from safear_edit.attacks.merge import edit_as, shrunk
from safear_edit.attacks.prune import pruned
from tests.attacks.test_contract import pico, some_edit


@pytest.mark.parametrize(("share", "directions"), [(0.5, 0), (None, 1)])
def test_what_is_left_of_an_edit(share: float | None, directions: int) -> None:
    model = pico("llamagen")
    edit = some_edit(model)
    name = edit.weights[0]
    base = model.net.get_parameter(name).detach().clone()
    delta = edit.delta(name)
    change = partial(torch.mul, other=share) if share else partial(shrunk, directions=directions)
    with edit.apply(model.net):
        merged = model.net.get_parameter(name).detach().clone()
        with edit_as(model.net, change):
            left = model.net.get_parameter(name).detach() - base
            wanted = delta * share if share else delta - torch.linalg.svd(delta).S[0] * _first(delta)
            assert torch.allclose(left, wanted, atol=1e-6) and not torch.allclose(left, delta, atol=1e-3)
            assert share or torch.linalg.matrix_rank(left, atol=1e-4) == 1  # of rank 2
        assert torch.equal(model.net.get_parameter(name), merged)
    assert torch.equal(model.net.get_parameter(name), base)
    with edit_as(model.net, change):  # no edit, nothing to change
        assert torch.equal(model.net.get_parameter(name), base)


def _first(delta: torch.Tensor) -> torch.Tensor:
    u, _, v = torch.linalg.svd(delta, full_matrices=False)
    return torch.outer(u[:, 0], v[0])


def test_the_smallest_numbers_go() -> None:
    weight = torch.tensor([[0.1, -0.2, 3.0], [0.0, -4.0, 0.2]])
    assert torch.equal(pruned(weight, 0.5), torch.tensor([[0, 0, 3.0], [0, -4.0, 0.2]]))  # of two equal ones, the first
    assert torch.equal(pruned(weight, 0.0), weight)
    assert pruned(torch.full((4, 4), 0.5), 0.25).count_nonzero() == 12
