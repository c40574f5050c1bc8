"""Mamba-2 layers in plain PyTorch: whole sequences by chunks, sampling token by token in place, the same numbers.

Source of the semantics: https://arxiv.org/abs/2405.21060 (equations 1 and 2, section 6 for the chunks) and
https://github.com/state-spaces/mamba (mamba_ssm/modules/mamba2.py), whose names the layers have in a state dict. One
group of keys and queries for all heads, as every published Mamba-2 has. Beside it, what OmniMamba adds: low-rank
corrections of the input projection, one per task. Their names avoid "lora_", by which peft knows its own.

Per head a layer keeps a matrix h: h <- exp(dt A) h + dt x k', and says h q + D x. Upstream calls k and q B and C.
`memory` is what a layer keeps of the tokens before: h, and the last inputs of its short convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError

CHUNK = 64
"""Tokens whose pairs are compared at once: no number depends on it, memory for a gradient does."""
EPS = 1e-5
"""Of every norm in the published models."""


@dataclass(frozen=True)
class MambaSizes:
    """Sizes of a layer; the defaults are those of OmniMamba's 1.3B; `rank` is a correction's."""

    width: int = 2048
    state: int = 128
    head: int = 64
    conv: int = 4
    expand: int = 2
    rank: int = 8
    scale: float = 4.0
    """What a task's correction is multiplied with: lora_alpha 32 over rank 8."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.state, self.head, self.conv - 1, self.expand, self.rank)
        if min(sizes) < 1 or self.expand * self.width % self.head:
            expected = "positive sizes, a convolution of 2 or more, whole heads"
            raise UsageError("Mamba's sizes", expected, str(self), "take the configuration of a trained model")

    @property
    def inner(self) -> int:
        """Channels of x."""
        return self.expand * self.width

    @property
    def heads(self) -> int:
        return self.inner // self.head

    @property
    def mixed(self) -> int:
        """Channels that the convolution mixes: x, k and q."""
        return self.inner + 2 * self.state


@dataclass(frozen=True)
class Memory:
    """What one layer keeps of the past: window (B, conv - 1, mixed), state (B, H, P, N) in float32; `step` writes."""

    window: Tensor
    state: Tensor

    def rows(self, index: Tensor) -> Memory:
        """A copy of these rows, any order, repeats allowed; differentiable."""
        return Memory(self.window[index], self.state[index])


class Norm(nn.Module):
    """Root-mean-square norm in float32, of x or of x times silu(gate), given back in the dtype of the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        x = x.float() if gate is None else x.float() * F.silu(gate.float())
        return F.rms_norm(x, self.weight.shape, self.weight.float(), EPS).to(self.weight.dtype)


class Correction(nn.Module):
    """A low-rank correction of a projection, as published models keep it for a task."""

    def __init__(self, width_in: int, rank: int, width_out: int) -> None:
        super().__init__()
        self.down = nn.Linear(width_in, rank, bias=False)
        self.up = nn.Linear(rank, width_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Mixer(nn.Module):
    """One Mamba-2 layer. `task` names the correction in use; None: the projection as it is."""

    def __init__(self, sizes: MambaSizes, tasks: Sequence[str] = ()) -> None:
        super().__init__()
        self.sizes = sizes
        projected = sizes.inner + sizes.mixed + sizes.heads
        self.in_proj = nn.Linear(sizes.width, projected, bias=False)
        self.conv1d = nn.Conv1d(sizes.mixed, sizes.mixed, sizes.conv, groups=sizes.mixed)
        self.dt_bias = nn.Parameter(torch.zeros(sizes.heads))
        self.A_log = nn.Parameter(torch.zeros(sizes.heads))
        self.D = nn.Parameter(torch.ones(sizes.heads))
        self.norm = Norm(sizes.inner)
        self.out_proj = nn.Linear(sizes.inner, sizes.width, bias=False)
        self.tasks = nn.ModuleDict({task: Correction(sizes.width, sizes.rank, projected) for task in tasks})

    def fresh(self, rows: int) -> Memory:
        """The memory of nothing."""
        sizes, like = self.sizes, self.conv1d.weight
        window = like.new_zeros(rows, sizes.conv - 1, sizes.mixed)
        state = torch.zeros(rows, sizes.heads, sizes.head, sizes.state, device=like.device)
        return Memory(window, state)

    def _projected(self, x: Tensor, task: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """gate (…, inner), what the convolution mixes (…, mixed), dt and dt A (…, H) in float32."""
        projected = self.in_proj(x)
        if task is not None:
            projected = projected + self.tasks[task](x) * self.sizes.scale
        gate, mixed, dt = projected.split([self.sizes.inner, self.sizes.mixed, self.sizes.heads], -1)
        dt = F.softplus(dt.float() + self.dt_bias.float())
        return gate, mixed, dt, -dt * self.A_log.float().exp()

    def _parts(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (…, H, P), k and q (…, N) after the convolution, in float32."""
        x, k, q = F.silu(mixed).float().split([self.sizes.inner, self.sizes.state, self.sizes.state], -1)
        return x.unflatten(-1, (self.sizes.heads, self.sizes.head)), k, q

    def _said(self, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        """Heads (…, H, P) with the skipped x, normed under the gate and projected, (…, D)."""
        whole = (y + self.D.float().unsqueeze(-1) * x).flatten(-2)
        return self.out_proj(self.norm(whole, gate))

    def forward(self, x_BLD: Tensor, memory: Memory, task: str | None = None) -> tuple[Tensor, Memory]:
        """The next L tokens of each row, and the memory after them; the memory before stays as it is."""
        gate, mixed, dt, decay = self._projected(x_BLD, task)
        window = torch.cat([memory.window, mixed], 1)
        x, k, q = self._parts(self.conv1d(window.transpose(1, 2)).transpose(1, 2))
        y, state = scan(x * dt.unsqueeze(-1), decay, k, q, memory.state)
        return self._said(y, x, gate), Memory(window[:, x_BLD.shape[1] :], state)

    def step(self, x_BD: Tensor, memory: Memory, task: str | None = None) -> Tensor:
        """The next token of each row; the memory is written in place. Without gradients."""
        gate, mixed, dt, decay = self._projected(x_BD, task)
        window = torch.cat([memory.window, mixed.unsqueeze(1)], 1)
        memory.window.copy_(window[:, 1:])
        assert self.conv1d.bias is not None
        x, k, q = self._parts((window * self.conv1d.weight.squeeze(1).T).sum(1) + self.conv1d.bias)
        state = memory.state.mul_(decay.exp()[..., None, None]).flatten(1, 2)
        state.baddbmm_((x * dt.unsqueeze(-1)).flatten(1).unsqueeze(2), k.unsqueeze(1))
        return self._said(torch.bmm(state, q.unsqueeze(2)).view_as(x), x, gate)


def scan(x_BLHP: Tensor, decay_BLH: Tensor, k_BLN: Tensor, q_BLN: Tensor, state_BHPN: Tensor) -> tuple[Tensor, Tensor]:
    """What the states say over L tokens, (B, L, H, P), and the state after them; all in float32, differentiable.

    x has its dt already, `decay` is dt A, at most 0. Inside a chunk every pair of places meets, with the decay between
    them; earlier chunks come in through the state.
    """
    said = []
    causal = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x_BLHP.device).tril()
    for x, decay, k, q in zip(*(part.split(CHUNK, 1) for part in (x_BLHP, decay_BLH, k_BLN, q_BLN)), strict=True):
        x, count = x.transpose(1, 2), x.shape[1]
        since = decay.transpose(1, 2).cumsum(-1)  # logarithm of what is left of the state before the chunk, (B, H, l)
        between = since.unsqueeze(-1) - since.unsqueeze(-2)
        between = between.masked_fill(~causal[:count, :count], float("-inf")).exp()
        k, q = k.unsqueeze(1), q.unsqueeze(1)
        inside = (q @ k.transpose(2, 3) * between) @ x
        said.append(inside + q @ state_BHPN.transpose(2, 3) * since.exp().unsqueeze(-1))
        left = (since[..., -1:] - since).exp().unsqueeze(-1)
        state_BHPN = state_BHPN * since[..., -1].exp()[..., None, None] + (x * left).transpose(2, 3) @ k
    return torch.cat(said, 2).transpose(1, 2), state_BHPN


class Block(nn.Module):
    """A norm and a mixer; what they say is added to the sum of all layers before, which stays in float32."""

    def __init__(self, sizes: MambaSizes, tasks: Sequence[str] = ()) -> None:
        super().__init__()
        self.norm = Norm(sizes.width)
        self.mixer = Mixer(sizes, tasks)


def read(net: Any, h_BLD: Tensor, memory: Sequence[Memory] | None, task: str | None) -> tuple[Tensor, list[Memory]]:
    """Embeddings through `net.layers` and `net.norm_f`: states (B, L, D), and each layer's memory after them.

    memory: of what came before; None: nothing did. Rows have no pads: Mamba has no mask, whatever is read counts.
    """
    h, after = h_BLD.float(), []
    for i, layer in enumerate(net.layers):
        before = layer.mixer.fresh(len(h)) if memory is None else memory[i]
        said, left = layer.mixer(layer.norm(h), before, task)
        h = h + said
        after.append(left)
    return net.norm_f(h), after


def step(net: Any, h_BD: Tensor, memory: Sequence[Memory], task: str | None) -> Tensor:
    """One more token per row through all layers: states (B, D); `memory` is written in place."""
    h = h_BD.float()
    for layer, kept in zip(net.layers, memory, strict=True):
        h = h + layer.mixer.step(layer.norm(h), kept, task)
    return net.norm_f(h)
