"""The resumable training loop that every gallery asset uses: state on disk, data a function of the step number.

A killed run continues from its last checkpoint and ends with the same weights on the same machine, because each
step draws its batch from `(seed, step)` and the optimiser state is saved with the weights.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from safear_edit.errors import UsageError

STATE = "state.pt"
Report = dict[str, float]


def one_cycle(step: int, total: int, warmup: int) -> float:
    """Learning-rate factor in [0, 1]: linear warm-up, then cosine to 1 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


class Average:
    """Exponential moving average of a module's floating-point state, with the usual start-up correction."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)


def run(
    folder: Path,
    module: nn.Module,
    optimizers: list[Optimizer],
    step: Callable[[int], Report],
    total: int,
    *,
    warmup: int = 100,
    average: Average | None = None,
    save_every: int = 250,
    log_every: int = 50,
    on_save: Callable[[int], None] | None = None,
) -> float:
    """Run `step(i)` for i in [0, total) with a one-cycle schedule; returns the minutes spent over all sessions.

    `step` computes loss and gradients (the loop steps the optimisers) and returns numbers to log. State lives in
    `folder/state.pt`; the log, one line per `log_every` steps, in `folder/log.txt`. What `on_save` does is done again
    for the state that a continued run begins with: it may have been cut off in it. UsageError for the state of another
    module, or of more steps than `total`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STATE
    first, minutes = 0, 0.0
    if path.exists():
        saved = _read(path, module)
        if saved["step"] > total:
            fix = "ask for more steps or give another folder"
            raise UsageError(str(path), f"at most {total} steps", str(saved["step"]), fix)
        module.load_state_dict(saved["module"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        if average is not None:
            average.state = saved["average"]
        first, minutes = saved["step"], saved["minutes"]
        if on_save is not None:
            on_save(first)
    peaks = [[group.setdefault("peak", group["lr"]) for group in o.param_groups] for o in optimizers]
    start = time.monotonic()
    for i in range(first, total):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = lr * one_cycle(i, total, warmup)
        report = step(i)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update(module, i)
        spent = minutes + (time.monotonic() - start) / 60
        if (i + 1) % log_every == 0 or i + 1 == total:
            line = f"step {i + 1}/{total}  {spent:.1f} min  " + "  ".join(f"{k} {v:.4f}" for k, v in report.items())
            print(line, flush=True)
            with (folder / "log.txt").open("a") as log:
                log.write(line + "\n")
        if (i + 1) % save_every == 0 or i + 1 == total:
            state = {
                "module": module.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "average": average.state if average else {},
                "step": i + 1,
                "total": total,
                "minutes": spent,
            }
            torch.save(state, path.with_suffix(".partial"))
            os.replace(path.with_suffix(".partial"), path)
            if on_save is not None:
                on_save(i + 1)
    return minutes + (time.monotonic() - start) / 60


def _read(path: Path, module: nn.Module) -> dict[str, Any]:
    """A saved state; UsageError unless it is of a module like this one."""
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    sizes = [{name: tensor.shape for name, tensor in state.items()} for state in (saved["module"], module.state_dict())]
    if sizes[0] != sizes[1]:
        raise UsageError(str(path), "the state of this asset's training", "another's", "give another folder")
    return saved


def finished(folder: Path, module: nn.Module) -> None:
    """Fill a module with the average that a training in `folder` ended with; UsageError unless it ran to its end."""
    path = folder / STATE
    saved = _read(path, module) if path.exists() else None
    if saved is None or saved["step"] < saved["total"]:
        got = f"step {saved['step']} of {saved['total']}" if saved else "none"
        raise UsageError(str(folder), "a finished training", got, "train the tokenizer there first")
    module.load_state_dict(saved["average"])
    module.eval()


def clip(module: nn.Module, limit: float) -> float:
    """Clip the gradient norm; returns the norm before clipping, raises on a non-finite one."""
    norm: Tensor = nn.utils.clip_grad_norm_(module.parameters(), limit, error_if_nonfinite=True)
    return float(norm)
