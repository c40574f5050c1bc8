"""Mamba-2 layers: against transformers' Mamba2, chunks against single steps, memory, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Mamba2Config, Mamba2Model

from safear_edit.families.layers import mamba
from safear_edit.families.layers.mamba import Block, MambaSizes, Memory, Norm

SIZES = MambaSizes(width=32, state=16, head=8, rank=4)


class Layers(nn.Module):
    def __init__(self, sizes: MambaSizes, tasks: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(sizes, tasks) for _ in range(2))
        self.norm_f = Norm(sizes.width)


def spread(net: nn.Module) -> None:
    """Weights of which every one matters, and states that forget at several speeds."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in net.named_parameters():
            nn.init.normal_(parameter, mean=float("norm" in name), std=0.3 if parameter.dim() > 1 else 0.5)


@pytest.fixture(scope="module")
def theirs() -> Any:
    sizes = {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1, "expand": 2}
    net = Mamba2Model(Mamba2Config(**sizes, num_hidden_layers=2, vocab_size=8, chunk_size=16)).eval()
    spread(net)
    return net


@pytest.fixture(scope="module")
def own(theirs: Any) -> Layers:
    net = Layers(SIZES)
    rest = net.load_state_dict(theirs.state_dict(), strict=False)
    assert not rest.missing_keys and rest.unexpected_keys == ["embeddings.weight"]  # the names are the published ones
    return net.eval()


@pytest.fixture(scope="module")
def said() -> Tensor:
    """Two rows, 150 tokens: two whole chunks and a part of one."""
    return torch.randn(2, 150, 32, generator=torch.Generator().manual_seed(1))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def by_steps(net: Any, h: Tensor, memory: list[Memory], task: str | None = None) -> Tensor:
    with torch.no_grad():
        return torch.stack([mamba.step(net, h[:, i], memory, task) for i in range(h.shape[1])], 1)


@torch.no_grad()
def test_states_are_those_of_transformers(theirs: Any, own: Layers, said: Tensor) -> None:
    wanted = theirs(inputs_embeds=said).last_hidden_state
    close(mamba.read(own, said, None, None)[0], wanted)
    assert wanted.std() > 0.3


@torch.no_grad()
def test_single_steps_say_what_chunks_say(own: Layers, said: Tensor) -> None:
    whole, after = mamba.read(own, said, None, None)
    fresh = [layer.mixer.fresh(2) for layer in own.layers]
    close(by_steps(own, said, fresh), whole)
    for stepped, left in zip(fresh, after, strict=True):
        close(stepped.state, left.state)
        close(stepped.window, left.window)


@pytest.mark.parametrize("cut", [1, 2, 64, 149])
@torch.no_grad()
def test_a_sequence_goes_on_from_what_was_kept(own: Layers, said: Tensor, cut: int) -> None:
    whole, _ = mamba.read(own, said, None, None)
    before, memory = mamba.read(own, said[:, :cut], None, None)
    close(before, whole[:, :cut])
    kept = [(m.window.clone(), m.state.clone()) for m in memory]
    close(mamba.read(own, said[:, cut:], memory, None)[0], whole[:, cut:])
    assert all(
        torch.equal(m.state, state) for m, (_, state) in zip(memory, kept, strict=True)
    )  # reading writes nothing
    swapped = [m.rows(torch.tensor([1, 0, 1])) for m in memory]
    close(by_steps(own, said[[1, 0, 1], cut : cut + 3], swapped), whole[[1, 0, 1], cut : cut + 3])
    assert all(torch.equal(m.window, window) for m, (window, _) in zip(memory, kept, strict=True))  # rows are copies


@torch.no_grad()
def test_the_size_of_a_chunk_changes_no_number(own: Layers, said: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = mamba.read(own, said, None, None)
    monkeypatch.setattr(mamba, "CHUNK", 7)
    close(mamba.read(own, said, None, None)[0], whole)


def test_gradients_flow_through_what_is_kept(own: Layers, said: Tensor) -> None:
    first, rest = said[:1, :70].clone().requires_grad_(), said[:1, 70:90].clone().requires_grad_()
    _, memory = mamba.read(own, first, None, None)
    mamba.read(own, rest, [m.rows(torch.tensor([0])) for m in memory], None)[0].square().sum().backward()
    whole = said[:1, :90].clone().requires_grad_()
    mamba.read(own, whole, None, None)[0][:, 70:].square().sum().backward()
    assert first.grad is not None and rest.grad is not None and whole.grad is not None
    assert first.grad[:, 60:].abs().max() > 0.1
    close(torch.cat([first.grad, rest.grad], 1), whole.grad, 1e-3)


@torch.no_grad()
def test_each_task_has_a_correction_of_its_own(said: Tensor) -> None:
    net = Layers(SIZES, ("a", "b"))
    spread(net)
    found = {task: mamba.read(net, said[:, :20], None, task)[0] for task in ("a", "b", None)}
    assert not torch.allclose(found["a"], found["b"], atol=1e-2) and not torch.allclose(
        found["a"], found[None], atol=1e-2
    )
    close(by_steps(net, said[:, :20], [layer.mixer.fresh(2) for layer in net.layers], "a"), found["a"])
    for layer in net.layers:
        mixer, correction = layer.mixer, layer.mixer.tasks["a"]
        mixer.in_proj.weight += SIZES.scale * correction.up.weight @ correction.down.weight
    close(mamba.read(net, said[:, :20], None, None)[0], found["a"])
