"""Weights that are merged into a live net now, in their order, and a look at the base model below them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from safear_edit.errors import UsageError


class Applied:
    """A merged edit that can be taken out again; made by `editor.edit.Edit.apply`.

    originals: tensors of the net, as they were.
    """

    def __init__(self, net: nn.Module, originals: list[tuple[Tensor, Tensor]]) -> None:
        self._net, self.originals = net, originals

    def undo(self) -> None:
        """Put the original weights back, bitwise; a second call does nothing.

        Edits of one net are removed in reverse order: UsageError, and nothing is written, if a later one is still on.
        """
        stack = APPLIED.get(self._net, [])
        if self not in stack:
            return
        if stack[-1] is not self:
            above = f"{len(stack) - 1 - stack.index(self)} applied later"
            raise UsageError("undo", "the edit that was applied last", above, "undo the later edits first")
        self.restore()
        stack.pop()

    def restore(self) -> None:
        """Write the originals, whatever lies on top of them; `undo` is the safe way to call this."""
        with torch.no_grad():
            for weight, original in self.originals:
                weight.copy_(original)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


APPLIED: WeakKeyDictionary[nn.Module, list[Applied]] = WeakKeyDictionary()
"""What is merged into each live net, first to last: the order that `undo` has to keep."""


def originals(net: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Every weight of `net` that an edit is merged into, with what it was before the first."""
    first = dict[int, tuple[Tensor, Tensor]]()
    for one in APPLIED.get(net, []):
        for weight, original in one.originals:
            first.setdefault(id(weight), (weight, original))
    return list(first.values())


@contextmanager
def without_edits(net: nn.Module) -> Iterator[None]:
    """`net` without anything that is merged into it, for a look at the base; afterwards bitwise as before."""
    held = [(weight, original, weight.data) for weight, original in originals(net)]
    try:  # the tensors' memory is swapped, not written: a backward pass through the merged weights may be to come
        for weight, original, _ in held:
            weight.data = original.to(weight.device)  # it waits in host memory
        yield
    finally:
        for weight, _, merged in held:
            weight.data = merged
