"""Frozen layers dealt out to the processes while an adapter trains: FSDP, where accelerate's configuration asks for it.

A model of 7 or 8 billion parameters is 14 to 16 GB in bfloat16, in every process the same, and training only reads it.
Under `accelerate launch --use_fsdp …` each process holds its share of every layer, and a layer is whole only while it
runs, forward and back (torch's `fully_shard`). The adapter and what stands outside the layers stay whole everywhere.
Loading and drawing are as without: the model must fit into each device once. Ours is the choice of what to shard and
the way back; gradients of the adapter are shared as without (fine_tune.py).

Tried with two processes on the CPU; on a GPU this was not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from safear_edit import processes
from safear_edit.editor.modules import attributes_of, restore

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

FLAG = "ACCELERATE_USE_FSDP"
"""By which accelerate's launcher tells its configuration to the processes."""


def dealt_out(net: nn.Module, passes: Sequence[tuple[nn.Module, str]]) -> AbstractContextManager[None]:
    """Inside, each process holds a share of the layers in `passes` (`ModelFamily.passes`), if there are several and
    accelerate was told so; afterwards `net` is as it was found. Nothing but these methods of a layer may be called."""
    from accelerate.utils import parse_flag_from_env

    if processes.count() == 1 or not parse_flag_from_env(FLAG):
        return nullcontext()
    return _sharded(net, passes)


def agreed(net: nn.Module, mine: bool) -> bool:
    """Whether all processes say so, where they share `net`: a layer is put together by all of them or none, so that
    one which went back through it alone would wait for ever. Elsewhere what this one says, and nobody is asked."""
    if processes.count() == 1:
        return mine
    from torch.distributed.fsdp import FSDPModule

    if not any(isinstance(part, FSDPModule) for part in net.modules()):
        return mine
    return all(processes.together(lambda: mine))


@contextmanager
def _sharded(net: nn.Module, passes: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    processes.meet()
    layers = dict.fromkeys(layer for layer, _ in passes)
    found = [(one, type(one), attributes_of(one)) for one in {part for layer in layers for part in layer.modules()}]
    whole = [(tensor, tensor.device, tensor.detach().cpu()) for layer in layers for tensor in layer.parameters()]
    mesh = init_device_mesh(next(net.parameters()).device.type, (processes.count(),))
    try:
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        for layer, name in passes:
            if name != "forward":
                register_fsdp_forward_method(layer, name)
        for tensor, _, copy in whole:
            tensor.data = torch.empty(0, dtype=copy.dtype, device=tensor.device)
        yield
    finally:
        for module, kind, attributes in found:
            module.__class__ = kind
            restore(module, attributes)
        for tensor, device, copy in whole:
            tensor.data = copy.to(device)
