"""Rounded weights: how far they move, and that they come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safear_edit.attacks.quantise import ROUNDINGS, in_groups, rounded, to_bits


@pytest.mark.parametrize("name", list(ROUNDINGS))
def test_weights_are_rounded_for_a_while(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Embedding(4, 8))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with rounded(net, ROUNDINGS[name]):
        inside = net.state_dict()
        changed = [key for key in before if not torch.equal(before[key], inside[key])]
        assert changed == ["0.weight"] and torch.allclose(before["0.weight"], inside["0.weight"], atol=0.05)
    with pytest.raises(RuntimeError, match="stop"), rounded(net, ROUNDINGS[name]):
        raise RuntimeError("stop")
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


def test_bits_bound_the_error_and_the_values() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    for bits in (8, 4):
        found = to_bits(weight, bits)
        step = weight.abs().amax(1) / (2 ** (bits - 1) - 1)
        assert bool(((found - weight).abs().amax(1) <= step / 2 + 1e-6).all()) and bool((found[2] == 0).all())
        assert all(len(row.unique()) <= 2**bits - 1 for row in found)


def test_a_group_has_a_scale_of_its_own() -> None:
    weight = torch.randn(3, 150, generator=torch.Generator().manual_seed(2))
    weight[:, 70] = 100.0  # spoils its own group only
    whole, grouped = to_bits(weight, 4), in_groups(weight, 4, 64)
    assert torch.equal(grouped[:, :64], to_bits(weight[:, :64], 4)) and grouped.shape == weight.shape
    assert bool((whole[:, :64] == 0).all()) and float((grouped[:, 128:] - weight[:, 128:]).abs().max()) < 0.3
