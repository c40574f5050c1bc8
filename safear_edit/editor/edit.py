"""What a method found: a frozen, content-addressed object that can be looked at, saved, applied and removed exactly.

An adapter edit ("lora") keeps LoRA factors per nn.Linear beside the model; `apply` merges
W += strength * (alpha / rank) * B A. A weight edit ("delta") keeps what is added to a weight, for instance to a
codebook's table. Every name and shape is checked before the first write, and `undo` puts the saved originals back, bit
for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from safear_edit.editor.edit_record import EditInfo, EditRecord, Kind
from safear_edit.editor.method_log import FIGURE, LOG, MethodLog
from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.families.merged import APPLIED, Applied
from safear_edit.files.atomic import write_atomic
from safear_edit.files.records import read_record
from safear_edit.files.weights import write_weights

TENSORS, INFO = "edit.safetensors", "edit.json"
PEFT_TENSORS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FILES: dict[Kind, tuple[str, ...]] = {"lora": (PEFT_TENSORS, PEFT_CONFIG, INFO), "delta": (TENSORS, INFO)}
"""What `save` writes, in this order: INFO comes last, so where it lies the others are complete. Each tensor is stored
once, an adapter's in peft's own format; edits saved before had TENSORS beside it, which `load` still prefers."""
PEFT_PREFIX = "base_model.model."
NUMBERS = (torch.float32, torch.float16, torch.bfloat16)
"""What peft may have saved factors in; we save float32."""


class Change(Protocol):
    """What can be merged into a net and removed again: one edit, or a stack of them."""

    @property
    def digest(self) -> str:
        """Identifies everything that it does to a net."""
        ...

    def apply(self, net: nn.Module) -> AbstractContextManager[object]:
        """Merge into `net`; at the end of the `with` block the net is bitwise as before."""
        ...


@dataclass(frozen=True)
class Edit:
    """float32 tensors on the CPU, by state-dict name; log and figure (PNG) are what the method tells of its search,
    recipes (digests) what it was searched by: no part of what it does to a net, and so of no digest.

    lora: `<module>.lora_A` (rank, in) and `<module>.lora_B` (out, rank); info holds their rank and alpha.
    delta: `<weight>` in the weight's own shape.
    """

    kind: Kind
    tensors: dict[str, Tensor]
    info: EditInfo
    log: MethodLog | None = None
    figure: bytes | None = None
    recipes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "lora":
            self._check_factors()
        elif not self.tensors:
            raise UsageError("edit", "a weight to change", "no tensors", "fit the edit again")
        for name, tensor in sorted(self.tensors.items()):
            if tensor.dtype not in NUMBERS or not tensor.dim():
                got = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
                raise UsageError(f"edit, {name}", "float32 numbers with a shape", got, "fit the edit again")
            if not tensor.isfinite().all():
                raise UsageError(f"edit, {name}", "finite numbers", "nan or infinity", "fit the edit again")

    def _check_factors(self) -> None:
        if not self.info.rank or self.info.alpha is None:
            got = f"rank {self.info.rank}, alpha {self.info.alpha}"
            raise UsageError("edit", "the rank and alpha of its factors", got, "save the edit again")
        names = {key.rpartition(".")[0] for key in self.tensors}
        wanted = {f"{name}.{factor}" for name in names for factor in ("lora_A", "lora_B")}
        if not names or set(self.tensors) != wanted:
            got = ", ".join(sorted(set(self.tensors) ^ wanted)[:3]) or "no tensors"
            raise UsageError("edit", "lora_A and lora_B for every module", got, "save the edit again")
        for name in sorted(names):
            a, b = self.tensors[f"{name}.lora_A"], self.tensors[f"{name}.lora_B"]
            if a.dim() != 2 or b.dim() != 2 or a.shape[0] != self.info.rank or b.shape[1] != self.info.rank:
                got = f"{tuple(a.shape)} and {tuple(b.shape)}"
                raise UsageError(f"edit, {name}", f"factors of rank {self.info.rank}", got, "save the edit again")

    @property
    def modules(self) -> list[str]:
        """Names of the nn.Linear modules that an adapter edit changes, sorted; none for a weight edit."""
        return sorted(key.removesuffix(".lora_A") for key in self.tensors if key.endswith(".lora_A"))

    @property
    def weights(self) -> list[str]:
        """State-dict names of what the edit changes, sorted."""
        return [f"{name}.weight" for name in self.modules] if self.kind == "lora" else sorted(self.tensors)

    @property
    def parameters(self) -> int:
        """Numbers in the edit."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def digest(self) -> str:
        """sha256 over kind, info (without minutes) and every tensor's name, type, shape and bytes."""
        about = {"kind": self.kind, "info": self.info.model_dump(mode="json", exclude={"minutes"})}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def apply(self, net: nn.Module, strength: float = 1.0) -> Applied:
        """Merge into `net` (or a weaker, stronger or, below 0, opposite version of it); undo with the returned handle.

        Every name and shape is checked before the first write: UsageError, and the net unchanged, if one is wrong.
        The originals of the changed weights wait in host memory. `with edit.apply(net): …` undoes at the end.
        """
        if not math.isfinite(strength):
            raise UsageError("edit", "a finite strength", str(strength), "1.0 applies the edit as it was fitted")
        weights = {name: self._weight_in(net, name) for name in self.weights}
        originals = [(weight, weight.detach().to("cpu", copy=True)) for weight in weights.values()]
        applied = Applied(net, originals)
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_((weight.float() + strength * self.delta(name).to(weight.device)).to(weight.dtype))
        except BaseException:
            applied.restore()
            raise
        APPLIED.setdefault(net, []).append(applied)
        return applied

    def delta(self, weight: str) -> Tensor:
        """What the edit adds to the weight of that name at strength 1, in its shape, float32."""
        if self.kind == "delta":
            return self.tensors[weight].float()
        name = weight.removesuffix(".weight")
        factors = self.tensors[f"{name}.lora_B"].float() @ self.tensors[f"{name}.lora_A"].float()
        assert self.info.rank is not None and self.info.alpha is not None
        return factors * (self.info.alpha / self.info.rank)

    def _weight_in(self, net: nn.Module, name: str) -> Tensor:
        """The weight called `name` of `net`; UsageError if it is missing, of another kind or of other shape."""
        shape = self._shape(name)
        what, where = ("a linear layer" if self.kind == "lora" else "a weight"), name.removesuffix(".weight")
        fix = "apply the edit to the model it was made for"
        try:
            module = net.get_submodule(name.rpartition(".")[0])
        except AttributeError:
            raise UsageError(f"edit, {where}", f"{what} {shape}", "no such module in this model", fix) from None
        weight = getattr(module, name.rpartition(".")[2], None)
        if not isinstance(weight, Tensor) or (self.kind == "lora" and not isinstance(module, nn.Linear)):
            raise UsageError(f"edit, {where}", f"{what} {shape}", type(module).__name__, fix)
        if tuple(weight.shape) != shape:
            raise UsageError(f"edit, {where}", f"a weight of shape {shape}", str(tuple(weight.shape)), fix)
        return weight

    def _shape(self, name: str) -> tuple[int, ...]:
        if self.kind == "delta":
            return tuple(self.tensors[name].shape)
        module = name.removesuffix(".weight")
        return (self.tensors[f"{module}.lora_B"].shape[0], self.tensors[f"{module}.lora_A"].shape[1])

    def save(self, folder: Path) -> None:
        """Write `FILES` into `folder`, and the method's log where it kept one; `PeftModel.from_pretrained` loads an
        adapter from there.

        The same edit gives the same bytes, but for `minutes` in INFO.
        """
        folder.mkdir(parents=True, exist_ok=True)
        about = EditRecord(kind=self.kind, digest=self.digest, info=self.info, recipes=self.recipes)
        if self.log is not None:
            write_atomic(folder / LOG, self.log.model_dump_json(indent=1) + "\n")
        if self.figure is not None:
            write_atomic(folder / FIGURE, self.figure)
        if self.kind == "delta":
            write_weights(folder / TENSORS, self.tensors, {"digest": self.digest})
        else:
            renamed = {f"{PEFT_PREFIX}{name}.weight": tensor for name, tensor in self.tensors.items()}
            write_weights(folder / PEFT_TENSORS, renamed, {"format": "pt", "digest": self.digest})
            write_atomic(folder / PEFT_CONFIG, json.dumps(self._peft_config(), indent=2, sort_keys=True) + "\n")
        write_atomic(folder / INFO, json.dumps(about.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")

    def _peft_config(self) -> dict[str, Any]:
        """adapter_config.json: what peft can't default; target_modules is a regular expression that it full-matches."""
        return {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "r": self.info.rank,
            "lora_alpha": self.info.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": exactly(self.modules),
        }

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; UsageError if it is not there, TrustError if it is not what was saved."""
        weights = weights_file(folder)
        for path in (folder / INFO, weights):
            if not path.is_file():
                raise UsageError(str(folder), f"an edit with {path.name}", "no such file", "give the folder of an edit")
        where, fix = str(folder / INFO), "restore the file from its source"
        try:
            about = read_record(EditRecord, folder / INFO)
        except SpecError as error:
            got = f"{error.got} instead of {error.expected}"
            raise TrustError(error.where, "the description of an edit", got, fix) from None
        kind = next((known for known in FILES if known == about.kind), None)
        if kind is None:
            raise UsageError(where, f"an edit of kind {' or '.join(FILES)}", repr(about.kind), "update safear-edit")
        try:
            tensors = load_tensors(weights.read_bytes())
        except SafetensorError as error:
            raise TrustError(str(weights), "a safetensors file", str(error), fix) from None
        if weights.name == PEFT_TENSORS:
            tensors = {key.removeprefix(PEFT_PREFIX).removesuffix(".weight"): value for key, value in tensors.items()}
        try:
            edit = cls(kind, tensors, about.info, *_told(folder), about.recipes)
        except UsageError as error:
            raise TrustError(str(weights), error.expected, error.got, fix) from None
        if edit.digest != about.digest:
            raise TrustError(str(folder), f"an edit with digest {about.digest[:12]}…", f"{edit.digest[:12]}…", fix)
        return edit


def weights_file(folder: Path) -> Path:
    """Where the tensors of the edit in `folder` lie: TENSORS, or for an adapter peft's own file."""
    names = (TENSORS, PEFT_TENSORS)
    return next((folder / name for name in names if (folder / name).is_file()), folder / TENSORS)


def _told(folder: Path) -> tuple[MethodLog | None, bytes | None]:
    """The log and the figure in the folder of an edit; TrustError for a log that is none."""
    log, figure = folder / LOG, folder / FIGURE
    try:
        found = read_record(MethodLog, log) if log.is_file() else None
    except SpecError as error:
        got = f"{error.got} instead of {error.expected}"
        raise TrustError(error.where, "a method's log", got, "restore the file from its source") from None
    return found, figure.read_bytes() if figure.is_file() else None


@contextmanager
def stacked(net: nn.Module, edits: Sequence[tuple[Edit, float]]) -> Iterator[None]:
    """`net` with all `edits` merged in order, each at its own strength; afterwards bitwise as before."""
    with ExitStack() as stack:
        for edit, strength in edits:
            stack.enter_context(edit.apply(net, strength))
        yield


def exactly(names: Sequence[str]) -> str:
    """The regular expression that full-matches these module names and no other (peft's lists match by suffix)."""
    return "|".join(name.replace(".", r"\.") for name in sorted(names))
