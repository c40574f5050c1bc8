"""The fine-tune loop that all adapter methods share: LoRA through peft, AdamW, accelerate, resumable, deterministic.

A method brings an objective `(Draw) -> (loss, readings)`; everything random in it comes from the `Draw`, a function of
seed and step alone. So a killed run continues to the same weights, and several processes (processes.py) compute the
gradient of the same global batch, each of some of its parts (but for what is decided part by part: an adapter's
dropout, an attacker's vectors, EAR's masks). Where the recipe cuts a batch into as many parts as there are processes
the weights are bitwise those of one process; else its sums are rounded elsewhere. The net stays in eval mode and is
given back as it was found.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from safear_edit import processes
from safear_edit.editor.edit import exactly
from safear_edit.editor.gradients import backward, in_float16
from safear_edit.editor.modules import attributes_of, restore
from safear_edit.editor.sharding import FLAG, agreed, dealt_out
from safear_edit.errors import SafearError, UsageError
from safear_edit.files.weights import write_weights
from safear_edit.progress import Callback

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft.tuners.lora import LoraLayer


ADAPTER = "default"
Readings = dict[str, float]


class Tuning(BaseModel):
    """How to fine-tune; a method's Params extend it.

    The papers leave most of it open: the defaults are ours, and so are, for every recipe, AdamW's betas (0.9 and 0.95,
    as LlamaGen was trained) and the rate's cosine to 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str = Field("all", description="which linear layers may change (the family's editable parts)")
    rank: int = Field(16, ge=1, description="LoRA rank: more can erase more, and can break more")
    alpha: int = Field(16, ge=1, description="LoRA scale; the update is alpha / rank times B A")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        exclude_if=lambda share: share == 0,  # recipes from before there was one keep their digests
        description="share of an adapter's inputs that a training step leaves out",
    )
    steps: int = Field(300, ge=1, description="optimiser steps")
    batch: int = Field(8, ge=1, description="pairs per optimiser step, over all processes")
    accumulate: int = Field(1, ge=1, description="parts a batch is cut into, one after the other, to save memory")
    recompute: bool = Field(
        False,
        exclude_if=lambda again: not again,  # recipes from before there was one keep their digests
        description="layers run again in the backward pass, which saves memory for a third more time; the same edit",
    )
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(20, ge=0, description="steps of linear warm-up; then a cosine to 0")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    save_every: int = Field(25, ge=1, description="steps between checkpoints")


@dataclass(frozen=True)
class Draw:
    """Everything random in one part of one step, the same on any number of processes.

    This part is rows `part::parts` of the step's global batch; parts count accumulation and processes together.
    """

    seed: int
    step: int
    part: int = 0
    parts: int = 1

    def rows(self, name: str, pool: int, count: int) -> Tensor:
        """This part's share of the `count` rows that the step takes from a pool of `pool` rows, int64.

        The pool is passed through in a fresh order each time; `name` separates streams.
        """
        start = self.step * count
        epochs = range(start // pool, (start + count - 1) // pool + 1)
        orders = [torch.randperm(pool, generator=self._generator(name, epoch)) for epoch in epochs]
        first = start - epochs.start * pool
        return self._share(torch.cat(orders)[first : first + count])

    def uniform(self, name: str, count: int, width: int) -> Tensor:
        """Numbers in [0, 1) for this part's share of `count` rows, (share, width) float32."""
        return self._share(torch.rand(count, width, generator=self._generator(name, self.step)))

    def number(self, name: str) -> int:
        """A seed of this part of this step: what it decides depends on how many parts there are."""
        return self._generator(f"{name}|{self.part}|{self.parts}", self.step).initial_seed()

    def _share(self, rows: Tensor) -> Tensor:
        """Equal shares only, so that the mean of the parts' means is the batch's mean."""
        if len(rows) % self.parts:
            fix = f"choose a multiple of {self.parts}"
            raise UsageError("batch", f"a multiple of processes x accumulate = {self.parts}", str(len(rows)), fix)
        return rows[self.part :: self.parts]

    def _generator(self, name: str, index: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}|{name}|{index}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


Objective = Callable[[Draw], tuple[Tensor, Readings]]
"""The loss of one part of a step, and what to show; a loss without gradient asks for no update (and none is made, also
not by momentum, if all parts of the step say so)."""


@dataclass(frozen=True)
class Tuned:
    """The adapter after training: `<module>.lora_A` and `.lora_B`, float32 on the CPU; one loss per step."""

    tensors: dict[str, Tensor]
    losses: tuple[float, ...]
    minutes: float


def fine_tune(
    net: nn.Module,
    modules: Collection[str],
    objective: Objective,
    tuning: Tuning,
    *,
    seed: int,
    identity: str,
    progress: Callback,
    checkpoint: Path | None = None,
    stage: str = "edit",
    passes: Sequence[tuple[nn.Module, str]] = (),
) -> Tuned:
    """Train a LoRA adapter on the linear layers `modules` of `net`; `net` is left as it was found, whatever happens.

    `objective` returns the mean loss over its share of the batch, to be minimised, and readings to show.
    `checkpoint` is a file: written every `tuning.save_every` steps, continued from if it carries the same `identity`
    (a digest of everything that decides the result), started over otherwise. `passes` are what `tuning.recompute` runs
    again, and what several processes may share out (`ModelFamily.passes`).
    UsageError if the loss or its gradient stops being finite, or the batch can't be divided among the processes.
    """
    share = Share.of(tuning)
    accelerator = _accelerator(net, share)
    with dealt_out(net, passes), borrowed(net, writes=()):
        net.eval()
        weights = adapter_weights(inject(net, modules, tuning, seed))
        if tuning.recompute:
            run_again(passes)
        optimizer = torch.optim.AdamW(
            weights.values(), tuning.learning_rate, betas=(0.9, 0.95), weight_decay=tuning.weight_decay
        )
        state = _State.continued(checkpoint, identity, weights, optimizer)
        prepared = accelerator.prepare(optimizer)
        start, before = time.monotonic(), state.minutes
        for step in range(len(state.losses), tuning.steps):
            for group in optimizer.param_groups:
                group["lr"] = tuning.learning_rate * schedule(step, tuning.steps, tuning.warmup)
            loss, info = _step(accelerator, net, objective, weights, prepared, tuning, share, Draw(seed, step), stage)
            state.losses.append(loss)
            state.minutes = before + (time.monotonic() - start) / 60
            done = step + 1
            if accelerator.is_main_process and checkpoint and (done % tuning.save_every == 0 or done == tuning.steps):
                state.write(checkpoint, identity, weights, optimizer)
            if accelerator.is_main_process:
                progress(stage, done, tuning.steps, info)
        tensors = {name: weight.detach().float().cpu().clone() for name, weight in weights.items()}
    return Tuned(tensors, tuple(state.losses), state.minutes)


def run_again(passes: Iterable[tuple[nn.Module, str]]) -> None:
    """From now on these methods of modules keep nothing for the backward pass but their arguments, and are called
    again there. Call inside `borrowed`, which takes it back.

    They give the same numbers both times, so loss and gradients are those without (bit for bit where a kernel gives the
    same bits twice).
    """
    from torch.utils.checkpoint import checkpoint

    for module, name in passes:
        setattr(module, name, partial(checkpoint, getattr(module, name), use_reentrant=False))


@contextmanager
def _chance(draw: Draw, tuning: Tuning, device: torch.device) -> Iterator[None]:
    """Dropout's random numbers from this part of the step alone; those of the program go on afterwards as before."""
    if not tuning.dropout:
        yield
        return
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(draw.number("dropout"))
        yield


@dataclass(frozen=True)
class Share:
    """Which parts of a step's batch this process computes, of how many that all of them compute together.

    alone: the batch can't be divided among the processes, so each computes all of it, and the gradient is nobody's
    mean.
    """

    mine: range
    parts: int
    alone: bool = False

    @classmethod
    def of(cls, tuning: Tuning) -> Share:
        """`accumulate` parts where the processes can divide those; else so many for each process.

        So no part is larger than on one process.
        """
        count, parts = processes.count(), tuning.accumulate
        if parts % count:
            parts *= count
        sizes = [size for name, size in tuning if name == "batch" or name.endswith("_batch")]
        if any(size % parts for size in sizes):
            return cls(range(tuning.accumulate), tuning.accumulate, alone=True)
        each = parts // count
        return cls(range(each * processes.index(), each * (processes.index() + 1)), parts)


def _accelerator(net: nn.Module, share: Share) -> Accelerator:
    """What sums gradients over the processes. Layers are sharded by `dealt_out`, so it is not told of that; nor of
    mixed precision, whatever a launcher's settings say: `--dtype` is what the model computes in."""
    from accelerate import Accelerator
    from accelerate.utils import patch_environment

    on_cpu = next(net.parameters()).device.type == "cpu"
    with patch_environment(**{FLAG: "false"}):
        return Accelerator(
            cpu=on_cpu,
            device_placement=False,
            mixed_precision="no",
            gradient_accumulation_steps=len(share.mine),
        )


def _step(
    accelerator: Accelerator,
    net: nn.Module,
    objective: Objective,
    weights: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tuning: Tuning,
    share: Share,
    step: Draw,
    stage: str,
) -> tuple[float, str]:
    """One optimiser step over all parts of the batch; its mean loss, and a line to show."""
    shown = Readings()
    for part in share.mine:
        with accelerator.accumulate(net):
            own = replace(step, part=part, parts=share.parts)
            with _chance(own, tuning, next(net.parameters()).device):
                loss, readings = objective(own)
            _finite(accelerator.gather(loss.detach().float().reshape(1)), "loss", stage, step.step, tuning)
            if loss.requires_grad and in_float16(net):
                backward(net, loss / len(share.mine), list(weights.values()), partial(agreed, net))
            elif loss.requires_grad:
                accelerator.backward(loss)
            if accelerator.sync_gradients:
                if not share.alone:
                    _share_gradients(accelerator, weights)
                norm = nn.utils.clip_grad_norm_(weights.values(), tuning.clip)
                _finite(norm, "gradient", stage, step.step, tuning)
            optimizer.step()
            optimizer.zero_grad()
        for name, value in {"loss": float(loss.detach()), **readings}.items():
            shown[name] = shown.get(name, 0.0) + value / len(share.mine)
    mean = accelerator.reduce(torch.tensor(list(shown.values()), device=accelerator.device), "mean").tolist()
    return mean[0], "  ".join(f"{name} {value:.3f}" for name, value in zip(shown, mean, strict=True))


def _share_gradients(accelerator: Accelerator, weights: Mapping[str, nn.Parameter]) -> None:
    """Mean over the processes. The adapter is small and inside a family's own forward: no wrapper is needed."""
    if accelerator.num_processes == 1:
        return
    asked = any(weight.grad is not None for weight in weights.values())
    if accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum") > 0:
        for weight in weights.values():
            weight.grad = accelerator.reduce(torch.zeros_like(weight) if weight.grad is None else weight.grad, "mean")


def _finite(values: Tensor, what: str, stage: str, step: int, tuning: Tuning) -> None:
    """UsageError if one of these isn't. They are those of all processes, so that all of them end with the same words;
    one that ended alone would leave the others waiting for it."""
    broken = values.detach().reshape(-1)[~values.detach().reshape(-1).isfinite()]
    if len(broken):
        fix = f"lower learning_rate (it is {tuning.learning_rate:g}) or clip (it is {tuning.clip:g}) in the recipe"
        raise UsageError(f"{stage}, step {step + 1}", f"a finite {what}", str(float(broken[0])), fix)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor in (0, 1]: linear over `warmup` steps, then a cosine that would reach 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# -- the adapter ------------------------------------------------------------------------------------------------------


def inject(net: nn.Module, modules: Collection[str], tuning: Tuning, seed: int) -> dict[str, LoraLayer]:
    """Wrap the named nn.Linear modules in float32 peft LoRA layers (B = 0, A from `seed`); all else is frozen.

    Call inside `borrowed(net)`. UsageError if a name is not a linear layer of `net` or the list is empty.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = {name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    if not modules or not set(modules) <= linear:
        got = ", ".join(sorted(set(modules) - linear)[:3]) or "none"
        raise UsageError(f"part {tuning.part!r}", "linear layers of this model", got, "choose another part")
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=exactly(sorted(modules)),
        bias="none",
    )
    device = next(net.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, net, ADAPTER)
    layers = {name: cast("LoraLayer", net.get_submodule(name)) for name in sorted(modules)}
    for weight in adapter_weights(layers).values():
        weight.data = weight.data.float()  # peft gives them the frozen weights' dtype, in which small steps are lost
    return layers


def adapter_weights(layers: Mapping[str, LoraLayer]) -> dict[str, nn.Parameter]:
    """The trainable factors by the names that an Edit gives them."""
    return {
        f"{name}.{factor}": factors[ADAPTER].get_parameter("weight")
        for name, layer in layers.items()
        for factor, factors in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B))
    }


@contextmanager
def adapter_off(net: nn.Module) -> Iterator[None]:
    """`net` as it was before `inject`, without gradients: the reference policy needs no second model in memory."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in net.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def borrowed(net: nn.Module, writes: Collection[str] | None = None) -> Iterator[nn.Module]:
    """Lend `net`; afterwards, also after an error, it is as it was found.

    The same module and parameter objects under the same names, hooks, requires_grad, gradients, train or eval mode,
    and bitwise the same numbers. `writes` names the state-dict tensors whose numbers the borrower may write in place;
    copies of them wait in host memory. None means any: a whole second net in memory. An adapter writes none, hence ().
    """
    modules = {module: attributes_of(module) for module in net.modules()}
    tensors = [*net.named_parameters(), *net.named_buffers()]
    found = [(t, t.data, t.requires_grad, t.grad) for _, t in tensors]
    copies = [(t.data, t.detach().to("cpu", copy=True)) for name, t in tensors if writes is None or name in writes]
    try:
        yield net
    finally:
        for module, attributes in modules.items():
            restore(module, attributes)
        for tensor, data, requires_grad, gradient in found:
            tensor.data = data
            tensor.requires_grad_(requires_grad)
            tensor.grad = gradient
        for data, copy in copies:
            data.copy_(copy)


# -- resuming ---------------------------------------------------------------------------------------------------------


@dataclass
class _State:
    """What a checkpoint holds beside the adapter and the optimiser's moments."""

    losses: list[float]
    minutes: float

    @classmethod
    def continued(
        cls, path: Path | None, identity: str, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
    ) -> _State:
        """Load adapter and optimiser from `path`; a fresh state if there is none, or it is damaged or another run's."""
        try:
            with safe_open(path or "", "pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                if about.get("identity") != identity:
                    return cls([], 0.0)
                saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (FileNotFoundError, SafetensorError, ValueError):
            return cls([], 0.0)
        moments = {}
        for i, (name, weight) in enumerate(weights.items()):
            weight.data.copy_(saved[f"weight|{name}"])
            if f"step|{name}" in saved:  # none before the first update: every step until then may have been masked
                moments[i] = {key: saved[f"{key}|{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return cls(about["losses"], about["minutes"])

    def write(
        self, path: Path, identity: str, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
    ) -> None:
        """Replace `path` in one step by a safetensors file (never a pickle)."""
        tensors: dict[str, Tensor] = {}
        for name, weight in weights.items():
            tensors[f"weight|{name}"] = weight
            for key, value in optimizer.state[weight].items():
                tensors[f"{key}|{name}"] = value
        about = json.dumps({"identity": identity, "losses": self.losses, "minutes": self.minutes})
        write_weights(path, tensors, {"about": about})


def identity_of(*parts: object) -> str:
    """Digest of everything that decides a result: JSON values, and tensors by shape and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            tensor = part.detach().cpu().contiguous()
            digest.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.view(torch.uint8).numpy().tobytes())
        else:
            try:
                digest.update(json.dumps(part, sort_keys=True).encode())
            except TypeError:
                raise SafearError("identity_of", "JSON or a tensor", type(part).__name__, "report this") from None
    return digest.hexdigest()
