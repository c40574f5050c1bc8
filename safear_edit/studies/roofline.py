"""What the arithmetic of a run takes by itself: no way of doing the same arithmetic is faster.

Every matrix product, convolution and fused attention that a run hands to the CPU is noted with what it was given, and
these are done again, alone and in the same order: without what stands between them, from norms to Python. The rate of a
large product in the same process tells how far the products themselves are from what the CPU can do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from safear_edit.studies.contest import alternately

SQUARE = 1024
"""Side of the product that stands for what the CPU can do."""


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: object, out_val: object, **__: object) -> int:
    """Flop of the two products for queries (B, H, L, d), keys (B, H, S, d) and values (B, H, S, d')."""
    return 2 * q.shape[:-1].numel() * k.shape[2] * (q.shape[3] + v.shape[3])


def _attention_back(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *__: object, out_val: object, **___: object) -> int:
    """The scores again, and two products for each of the two."""
    return _attention(q, k, v, out_val=None) * 5 // 2


COUNTED: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}
"""Operations that are arithmetic, with the flop of a call."""


@dataclass(frozen=True)
class Alone:
    """CPU seconds of a run and of its arithmetic, its flop, and the flop/s of a large product in the same process."""

    whole: float
    seconds: float
    flops: int
    peak: float

    @property
    def share_of(self) -> float:
        """How many times as fast the run would be without all else."""
        return self.whole / self.seconds

    def __str__(self) -> str:
        share, rate = self.seconds / self.whole, self.flops / self.seconds / self.peak
        return f"{100 * share:.0f} % of the time; {self.flops / 1e9:.1f} Gflop at {100 * rate:.0f} % of the CPU's rate"


class _Noted(TorchDispatchMode):
    """Keeps each operation that has flop to count, and counts them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.calls, self.flops = list[tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]](), 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, kind = kwargs or {}, func.overloadpacket
        if kind not in COUNTED:
            with self:  # in inference mode a layer arrives whole
                found = func.decompose(*args, **given)
            return func(*args, **given) if found is NotImplemented else found
        found = func(*args, **given)
        self.flops += int(COUNTED[kind](*args, **given, out_val=found))
        self.calls.append((func, args, given))
        return found


def alone(run: Callable[[], object], repeats: int) -> Alone:
    """Run once with every operation noted, then time its arithmetic; all that it works on stays in memory meanwhile."""
    with _Noted() as noted:
        run()

    @torch.inference_mode()
    def again() -> None:
        for func, args, given in noted.calls:
            func(*args, **given)

    square = torch.ones(SQUARE, SQUARE)
    again()
    _, seconds = alternately({"whole": run, "arithmetic": again, "square": lambda: square @ square}, repeats)
    return Alone(seconds["whole"], seconds["arithmetic"], noted.flops, 2 * SQUARE**3 / seconds["square"])
