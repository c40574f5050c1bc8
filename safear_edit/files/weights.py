"""Weights in and out of files, safely: nothing in a checkpoint is run, guessed or half written.

safetensors is read after its header was checked for what the library accepts and shouldn't (a name twice, NaN and Inf,
no tensors), and after the first bytes told the usual mishaps apart (Git LFS pointer, error page, pickle under a false
name), which the library all calls "header too large". Pickles (.pt, .pth, .bin, .ckpt) need the user's word; they are
opened by torch.load(weights_only=True) in a process of their own with bounded memory and time, which hands the tensors
back as safetensors.

A network is filled tensor by tensor (`opened`, `filled`), so that loading takes the memory of the network in its own
dtype and of one tensor more, however many files and whatever dtype the checkpoint has.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.files.atomic import replacing, sync_folder
from safear_edit.files.atomic import sha256_file as sha256_file  # the name under which readers of weights look for it
from safear_edit.files.memory import LARGE, keep_no_large_blocks
from safear_edit.files.strict import parse_json, read_json
from safear_edit.redact import clean_environment

PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt"})
LARGEST_HEADER = 100_000_000
"""safetensors' own limit in bytes."""
MOST_TENSORS = 100_000
LONGEST_NAME = 512
SAFE_TORCH = (2, 10)
"""Earlier releases can be made to run code by torch.load(weights_only=True): CVE-2025-32434, GHSA-63cw-57p8-fm3p."""
WRAPPERS = ("trainer", "gpt_fsdp", "vae", "model", "module", "state_dict")
"""Keys under which upstream programs put a state dict, outermost first: an Infinity trainer has trainer, gpt_fsdp,
LlamaGen's trainers one of the last three, in their order of looking (autoregressive/sample/sample_t2i.py)."""
COMPUTED_IN = "dtype"
"""Key of the metadata under which a half precision model's file says so."""
SHOWN = 5
AGAIN = "download it again and compare its sha256"
CONVERT = 'save the weights alone in the program that made it: torch.save({"model": net.state_dict()}, FILE)'
RENAME = "save it again with other names or dtypes"
IMPOSSIBLE = (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError)
"""How torch says that no tensor has such sizes and no activation such a name."""
CONFIGURE = "take the configuration that belongs to these weights"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Of the format's dtypes, those that torch computes or converts with."""
MAPPED = 1 << 28
"""Bytes that are read from a file before it is opened anew: what was read stays mapped into memory until then."""
NOT_READ = ("argparse.Namespace",)
"""Classes that trainers put beside the weights (LlamaGen's: the run's arguments). The reader makes an empty object of
its own in their place, and their code isn't run."""
_CHUNK = 1 << 22
N = TypeVar("N", bound=nn.Module)


class _Lazy(Mapping[str, Tensor]):
    """Tensors that are read when asked for; whether a name is there is told without reading (`Mapping`'s own
    `in` reads)."""

    _places: Mapping[str, Any]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Stored(_Lazy):
    """The tensors of a checkpoint, on the CPU, in the file's own dtypes; each is read when asked for, and not kept.

    like: the same as meta tensors, which have name, shape and dtype and take no memory. TrustError for a tensor that
    isn't finite, when it is read.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]]) -> None:
        """files: safetensors files whose headers were checked, each with the file that the user named, for errors."""
        self.like: dict[str, Tensor] = {}
        self._places: dict[str, tuple[Path, Path]] = {}
        self._file: Any = None
        self._opened, self._read = Path(), 0
        for path, shown in files:
            file = _opened(path, shown)
            for name in file.keys():  # noqa: SIM118 (not a dict)
                entry = file.get_slice(name)
                self.like[name] = torch.empty(entry.get_shape(), dtype=DTYPES[entry.get_dtype()], device="meta")
                self._places[name] = (path, shown)

    def __getitem__(self, name: str) -> Tensor:
        path, shown = self._places[name]
        if path != self._opened or self._read > MAPPED:
            self.close()
            self._file, self._opened = _opened(path, shown), path
        try:
            tensor: Tensor = self._file.get_tensor(name).clone()
        except (SafetensorError, OSError) as error:
            raise TrustError(str(shown), "a sound safetensors file", str(error)[:200], AGAIN) from None
        self._read += tensor.nbytes
        if not _finite(tensor):
            raise TrustError(f"{shown} {name}", "finite weights", "NaN or Inf", AGAIN)
        return tensor

    def close(self) -> None:
        """Give back what is mapped; a tensor that is asked for later opens its file again."""
        self._file, self._opened, self._read = None, Path(), 0


@dataclass(frozen=True)
class Place:
    """Where a tensor is: a mapping that has it, its name there, and what is made of it (None: nothing)."""

    weights: Mapping[str, Tensor]
    name: str
    made: Callable[[Tensor], Tensor] | None = None

    def of(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The tensor, from `weights` in place of the mapping."""
        return weights[self.name] if self.made is None else self.made(weights[self.name])


class Renamed(_Lazy):
    """Tensors of other mappings under names of their own, each still read when asked for, and not kept."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places: dict[str, Place] = dict(places)

    @property
    def like(self) -> dict[str, Tensor]:
        """As `Stored.like`, where they are tensors of files."""
        return {name: place.of(like(place.weights)) for name, place in self._places.items()}

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        return place.of(place.weights)


def places(weights: Mapping[str, Tensor], rename: Callable[[str], str | None] = str) -> dict[str, Place]:
    """What `Renamed` takes: every tensor under what `rename` makes of its name; None leaves it out."""
    named = ((rename(name), name) for name in weights)
    return {new: Place(weights, name) for new, name in named if new is not None}


def like(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors with the names, shapes and dtypes of these, for which nothing is read from a file."""
    return weights.like if isinstance(weights, Stored | Renamed) else weights


@contextmanager
def opened(path: Path, allow_pickle: bool = False) -> Iterator[Stored]:
    """A checkpoint, to be read tensor by tensor inside the `with` block.

    `path` is a .safetensors file, a sharded `*.index.json`, or with `allow_pickle` a .pt, .pth, .bin or .ckpt zip of
    plain tensors (unwrapped from any of WRAPPERS), which is converted into a temporary safetensors file. TrustError
    (exit 4) for whatever isn't exactly that: broken, disguised, not finite, or more than weights. UsageError (exit 2)
    if there is no such file.
    """
    with ExitStack() as stack:
        files = _shards(path, allow_pickle, stack) if path.name.endswith(".index.json") else None
        yield stack.enter_context(closing(Stored(files or [_readable(path, allow_pickle, stack)])))


def read_weights(path: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU, in the file's own dtypes; arguments and errors are those of `opened`."""
    with opened(path, allow_pickle) as stored:
        return dict(stored)


def _readable(path: Path, allow_pickle: bool, stack: ExitStack) -> tuple[Path, Path]:
    """A safetensors file with the content of `path`, its header checked, and `path`."""
    _refuse_no_file(path)
    if path.suffix.lower() == ".safetensors":
        _refuse_header(path, str(path))
        return path, path
    if path.suffix.lower() in PICKLES:
        return _converted(path, allow_pickle, stack), path
    expected = f".safetensors, .index.json or {', '.join(sorted(PICKLES))}"
    raise UsageError(str(path), f"a weight file ({expected})", f"suffix {path.suffix!r}", "check the path")


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that appears whole or not at all, durable, with the user's ordinary file mode.

    The same tensors and metadata give the same bytes. Views and shared tensors are written out as copies. What a half
    precision model computes in is noted in the metadata (`stored_dtype`). UsageError for NaN or Inf: an edit that made
    them must not be published.
    """
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        data = tensor.detach().cpu().contiguous()
        if not _finite(data):
            fix = "lower the learning rate or the strength"
            raise UsageError(f"{path} {name}", "finite weights", "NaN or Inf", fix)
        storage = data.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != data.nbytes:
            data = data.clone()
        seen.add(data.untyped_storage().data_ptr())
        plain[name] = data
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # what the umask leaves; save_file makes 0600 of it
        save_file(plain, partial, {**(metadata or {}), **_half(plain)})
        _sort_metadata(partial)
        partial.chmod(mode)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except SafetensorError as error:
        raise UsageError(str(path), "room for the weights", str(error), "free some disk space and try again") from error
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def stored_dtype(path: Path) -> str:
    """What the model computed in whose weights `write_weights` wrote: "bfloat16", "float16", or "float32".

    A shipped mini is stored in half precision and computes in float32; its file says nothing, so the note decides.
    """
    _refuse_header(path, str(path))
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(COMPUTED_IN, "float32")


def _half(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The note in the metadata: the dtype of most numbers where that is half of float32's width, else nothing."""
    numbers = Counter[torch.dtype]()
    for tensor in tensors.values():
        numbers[tensor.dtype] += tensor.numel()
    most = max(numbers, key=lambda kind: numbers[kind], default=torch.float32)
    half = most in (torch.bfloat16, torch.float16)
    return {COMPUTED_IN: str(most).removeprefix("torch.")} if half else {}


def write_pickle(path: Path, content: Mapping[str, Tensor | Mapping[str, Tensor]]) -> None:
    """Write what torch.load reads back, for layouts that are published so: tensors, or named groups of them.

    Each is on the CPU, without what else its storage holds. The file appears whole or not at all.
    """

    def plain(value: Tensor | Mapping[str, Tensor]) -> Any:
        if not isinstance(value, Tensor):
            return {key: plain(part) for key, part in value.items()}
        data = value.detach().cpu()
        return data if data.untyped_storage().nbytes() == data.nbytes else data.clone()

    with replacing(path) as file:
        torch.save({name: plain(value) for name, value in content.items()}, file)


def assign_strict(net: nn.Module, weights: Mapping[str, Tensor], where: str, ignore: Collection[str] = ()) -> None:
    """Load `weights` into `net`, in the dtypes of `net`; every name and shape must fit, and is checked before a write.

    `ignore` names tensors that may be missing or left over (buffers that only training uses). UsageError (exit 2)
    that names the first few of each fault: a checkpoint of another architecture or size.
    """
    own = net.state_dict()
    refuse_misfit(own, weights, where, ignore)
    net.load_state_dict({name: weights[name] for name in own if name in weights and name not in ignore}, strict=False)


def refuse_misfit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str, ignore: Collection[str]
) -> None:
    """UsageError unless `weights` have the names, shapes and kinds of `own`, but for those that are ignored."""
    missing = sorted(own.keys() - weights.keys() - set(ignore))
    extra = sorted(weights.keys() - own.keys() - set(ignore))
    shared = [name for name in own if name in weights and name not in ignore]
    shapes = [name for name in shared if own[name].shape != weights[name].shape]
    kinds = [name for name in shared if own[name].is_floating_point() != weights[name].is_floating_point()]
    misfits = [f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}" for name in shapes]
    misfits += [f"{name} {weights[name].dtype} for {own[name].dtype}" for name in kinds if name not in shapes]
    lists = (("missing", missing), ("extra", extra), ("misfit", misfits))
    faults = [f"{len(names)} {word}: {_some(names)}" for word, names in lists if names]
    if faults:
        fix = "take the checkpoint that belongs to this model variant"
        raise UsageError(where, f"{len(own)} tensors that fit the model", "; ".join(faults), fix)


def refuse_sizes(
    make: Callable[[], nn.Module], layers: int, weights: Mapping[str, Tensor], where: str, ignore: Collection[str] = ()
) -> None:
    """UsageError unless the network that `make` gives has these weights; no memory is taken for it.

    Sizes come from a configuration that anybody may have written: `layers`, how many of them it asks for, must not be
    more than there are tensors, and then the network's names and shapes are compared on the meta device. The other
    arguments are `assign_strict`'s.
    """
    if layers > len(weights):
        expected = f"at most as many layers as the weights have tensors, {len(weights)}"
        raise UsageError(where, expected, f"{layers}", CONFIGURE)
    with torch.device("meta"), _Unfilled():
        try:
            own = make().state_dict()
        except IMPOSSIBLE as error:
            said = " ".join(str(error).split())[:120]
            raise UsageError(where, "the configuration of a network with these weights", said, CONFIGURE) from None
    refuse_misfit(own, weights, where, ignore)


def filled(
    make: Callable[[], N],
    layers: int,
    weights: Mapping[str, Tensor],
    where: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    ignore: Collection[str] = (),
) -> N:
    """The network that `make` gives, with these weights, on `device`; sizes are compared before memory is taken.

    dtype: of its floating-point weights; None: as `make` has them. `weights` of files are read one at a time.
    The network never has the random weights that `make` would give it. The other arguments are `refuse_sizes`'.
    """
    refuse_sizes(make, layers, like(weights), where, ignore)
    net = unfilled(make)
    if dtype is not None:
        net.to(dtype)
    fill(net, weights, device, ignore)
    return net.to(device)


def unfilled(make: Callable[[], N]) -> N:
    """The network that `make` gives, its parameters on the meta device; buffers are as it makes them."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False), _Unfilled():
        return make()


INITIALISERS = ("torch.nn.init", "transformers.initialization")
"""Modules of functions that fill weights; transformers puts its own in the place of torch's while it makes a model."""


class _Unfilled(TorchFunctionMode):
    """Modules leave weights without memory as they are: to fill them torch would import its compiler, which takes
    seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") in INITIALISERS or func in (Tensor.normal_, Tensor.uniform_):
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)


def fill(
    net: nn.Module, weights: Mapping[str, Tensor], device: str | torch.device = "cpu", ignore: Collection[str] = ()
) -> None:
    """Put `weights`, whose names and shapes were compared, into `net` one by one, in its dtypes and on `device`.

    No two of its tensors share memory afterwards, and a large network on a CPU leaves no freed blocks between them.
    """
    if torch.device(device).type == "cpu" and sum(tensor.nbytes for tensor in net.parameters()) >= LARGE:
        keep_no_large_blocks()
    taken: set[int] = set()
    for name, own in net.state_dict(keep_vars=True).items():
        if name not in weights or name in ignore:
            continue
        tensor = weights[name].detach().to(device, own.dtype)
        if (place := tensor.untyped_storage().data_ptr()) in taken:
            tensor = tensor.clone()
        taken.add(place)
        owner, leaf = net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if isinstance(own, nn.Parameter):
            owner.register_parameter(leaf, nn.Parameter(tensor, own.requires_grad))
        else:
            owner._buffers[leaf] = tensor


# -- safetensors -----------------------------------------------------------------------------------------------------


def _opened(path: Path, shown: Path) -> Any:
    """safetensors' reader of `path`, whose header was checked; `shown` is the file that the user named, for errors."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise TrustError(str(shown), "a sound safetensors file", str(error)[:200], AGAIN) from None


def _refuse_header(path: Path, where: str) -> None:
    """TrustError unless the header is whole and names at least one tensor, each once, and the file is that long."""
    size, head = path.stat().st_size, _head(path)
    length = int.from_bytes(head[:8], "little")
    if (kind := _sniff(head, size)) is not None:
        raise TrustError(where, "a safetensors file", kind, AGAIN)
    if length > LARGEST_HEADER or head[8:9] != b"{":
        raise TrustError(where, "a safetensors file", f"other bytes (a header of {length})", AGAIN)
    if length > size - 8:
        raise TrustError(where, f"a header of {length} bytes", f"{size} bytes in all: it is cut short", AGAIN)
    with path.open("rb") as file:
        file.seek(8)
        raw = file.read(length)
    try:
        header = parse_json(raw.decode(), where).data
    except UnicodeDecodeError:
        raise TrustError(where, "a header in UTF-8", "other bytes", AGAIN) from None
    except SpecError as error:
        raise TrustError(where, f"a header with {error.expected}", error.got, AGAIN) from None
    names = [name for name in header if name != "__metadata__"]
    if not 0 < len(names) <= MOST_TENSORS:
        raise TrustError(where, f"1 to {MOST_TENSORS} tensors", f"{len(names)}", AGAIN)
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
            raise TrustError(where, "printable tensor names", ascii(name[:80]), RENAME)
        kind = header[name].get("dtype") if isinstance(header[name], dict) else None
        if isinstance(kind, str) and kind not in DTYPES:
            raise TrustError(f"{where} {name}", f"one of {', '.join(sorted(DTYPES))}", repr(kind[:40]), RENAME)
    ends = [_end(header[name]) for name in names]
    if (promised := 8 + length + max(ends)) > size:
        raise TrustError(where, f"{promised} bytes as its header says", f"{size}: it is cut short", AGAIN)


def _end(entry: Any) -> int:
    """Where a tensor's bytes end; 0 for an entry that isn't one, which safetensors then refuses in its own words."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    end = offsets[-1] if isinstance(offsets, list) and offsets else 0
    return end if isinstance(end, int) else 0


def _sort_metadata(path: Path) -> None:
    """Rewrite the header with sorted metadata: safetensors writes them in the random order of a hash table."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) != length:
            raise RuntimeError(f"header of {path} changed its length")
        file.seek(8)
        file.write(text)


def _finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or Inf, looked at in pieces so that a large tensor needs no copy of its size."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    narrow = tensor.is_floating_point() and tensor.element_size() == 1  # float8 has no isfinite of its own
    pieces = torch.split(tensor.reshape(-1), _CHUNK)
    return all(bool(torch.isfinite(piece.float() if narrow else piece).all()) for piece in pieces)


def weight_map(path: Path) -> dict[str, str]:
    """Tensor name → name of its file, as an index says; TrustError for a file that is none."""
    try:
        index = read_json(path).data
    except SpecError as error:
        raise TrustError(str(path), error.expected, error.got, AGAIN) from None
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise TrustError(str(path), "a 'weight_map' of tensor names to files", "none", AGAIN)
    return places


def _shards(path: Path, allow_pickle: bool, stack: ExitStack) -> list[tuple[Path, Path]]:
    """A Hugging Face index: `weight_map` says which file beside it holds which tensor, and must be right about it."""
    places = weight_map(path)
    kinds = (".bin",) if allow_pickle and path.name.startswith("pytorch_model") else (".safetensors",)
    files: list[tuple[Path, Path]] = []
    for shard in sorted(set(places.values())):
        if PurePosixPath(shard).parts != (shard,) or "\\" in shard or not shard.endswith(kinds):
            expected = f"shards named {' or '.join(f'*{kind}' for kind in kinds)} beside the index"
            raise TrustError(str(path), expected, repr(shard[:200]), AGAIN)
        if not (path.parent / shard).is_file():
            raise TrustError(str(path.parent / shard), "a shard that the index names", "nothing", AGAIN)
        files.append(_readable(path.parent / shard, allow_pickle, stack))
        found = Stored(files[-1:])
        wanted = {name for name, place in places.items() if place == shard}
        if found.keys() != wanted:
            got = f"others: {_some(sorted(found.keys() ^ wanted))}"
            raise TrustError(str(path.parent / shard), "the tensors that the index names", got, AGAIN)
    return files


# -- pickles ---------------------------------------------------------------------------------------------------------


def _converted(path: Path, allowed: bool, stack: ExitStack) -> Path:
    """A temporary safetensors file with the tensors of a pickle, as long as `stack` is open."""
    if not allowed:
        fix = "give the safetensors file, or pass allow_pickle=True to read it in a process of its own"
        raise TrustError(str(path), "safetensors", "a pickle format, which can hide a program", fix)
    if torch_version() < SAFE_TORCH:
        raise TrustError(str(path), "torch 2.10 or later to open pickles", torch.__version__, "upgrade torch")
    if not (head := _head(path)).startswith(b"PK\x03\x04"):
        kind = _sniff(head, path.stat().st_size) or "other bytes"
        raise TrustError(str(path), "a zip file as torch.save writes it", kind, CONVERT)
    _refuse_zip(path)
    where, size = Path(tempfile.gettempdir()), path.stat().st_size
    if (free := shutil.disk_usage(where).free) < size:
        fix = "free some, or set TMPDIR to a larger disk"
        raise UsageError(str(where), f"{size / 1e9:.1f} GB to convert {path.name}", f"{free / 1e9:.1f} GB free", fix)
    converted = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="safear-edit-"))) / "weights.safetensors"
    _convert_apart(path, converted)
    _refuse_header(converted, str(path))
    return converted


def torch_version() -> tuple[int, int]:
    """(major, minor) of the torch that is running."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _refuse_zip(path: Path) -> None:
    """TrustError for a zip that torch.save didn't write: compressed (a bomb), paths that leave it, a name twice."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise TrustError(str(path), "a whole zip file", str(error)[:200], AGAIN) from None
    names = [entry.filename for entry in entries]
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        if entry.filename.startswith("/") or ".." in parts or "\\" in entry.filename:
            raise TrustError(str(path), "names inside the archive", repr(entry.filename[:200]), CONVERT)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise TrustError(str(path), "stored entries", f"{entry.filename[:200]!r} compressed or encrypted", CONVERT)
    if len(set(names)) < len(names) or len(names) > MOST_TENSORS:
        raise TrustError(str(path), "each entry once", f"{len(names) - len(set(names))} twice of {len(names)}", CONVERT)
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > 1.05 * size:
        raise TrustError(str(path), f"at most {size} bytes of content", f"{total}", CONVERT)


def _convert_apart(path: Path, converted: Path) -> None:
    """Run `_convert` in a process of its own, so that a fault in the unpickler can't reach this one."""
    code = "import sys; from pathlib import Path; from safear_edit.files.weights import _convert; "
    code += "_convert(Path(sys.argv[1]), Path(sys.argv[2]))"
    size = path.stat().st_size
    environment = {
        **clean_environment(),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
    }
    command = [sys.executable, "-c", code, str(path.absolute()), str(converted)]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=300 + size / 1e7
        )
    except subprocess.TimeoutExpired:
        raise TrustError(str(path), "weights that load in minutes", "none after that time", CONVERT) from None
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip()[:500]
        raise TrustError(str(path), "plain tensors", said or f"a crash of the reader ({done.returncode})", CONVERT)


def _convert(path: Path, converted: Path) -> None:
    """The other process: load with bounds, check, write safetensors; what is wrong goes to stdout, status 1."""
    size = path.stat().st_size
    _bound_memory(4 * size + (1 << 30))
    try:
        with torch.serialization.safe_globals([(_NotRead, name) for name in NOT_READ]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        save_file(_plain_tensors(loaded, size), converted)
    except _RefusedError as error:
        sys.exit(_say(str(error)))
    except MemoryError:
        sys.exit(_say("more than the file can hold"))
    except Exception as error:  # torch's own text advises weights_only=False: never pass it on
        sys.exit(_say(f"more than tensors, or a broken file ({type(error).__name__})"))


class _NotRead:
    """What stands in a loaded checkpoint for one of NOT_READ."""


class _RefusedError(Exception):
    """What a loaded checkpoint holds besides plain weights."""


def _plain_tensors(loaded: object, size: int) -> dict[str, Tensor]:
    """The state dict inside a checkpoint; _RefusedError for anything but str → tensors with storage."""
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise _RefusedError(f"{type(loaded).__name__} instead of a state dict")
    total = 0
    for name, tensor in loaded.items():
        if not isinstance(name, str):
            raise _RefusedError(f"the key {name!r}, which is no text")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise _RefusedError(f"{name[:80]!r}, which is {type(tensor).__name__}, no plain tensor")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise _RefusedError(
                f"{name[:80]!r} with {tensor.numel()} elements on {tensor.untyped_storage().nbytes()} bytes"
            )
        total += tensor.nbytes
    if total > 2 * size:  # tied weights are counted twice, and seldom are many
        raise _RefusedError(f"{total} bytes of tensors in a file of {size}")
    return _apart(loaded)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, none sharing memory with another; what already has its own is not copied."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        data, storage = tensor.detach(), tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != data.nbytes or not data.is_contiguous():
            data = data.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        found[name] = data
    return found


def _say(reason: str) -> int:
    print(reason)
    return 1


def _bound_memory(extra: int) -> None:
    """Let this process grow by `extra` bytes and no more (Linux; other systems don't count address space alike)."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# -- any file --------------------------------------------------------------------------------------------------------


def _refuse_no_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise UsageError(str(path), "a weight file", "a folder", "name the file inside it")
    got = "a pipe, socket or device" if path.exists() else "nothing"
    raise UsageError(str(path), "a weight file", got, "check the path")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise UsageError(str(path), "a readable file", error.strerror or "an error", "check its permissions") from None


def _sniff(head: bytes, size: int) -> str | None:
    """What a file that should hold weights is instead, for the mishaps that are common; None if nothing stands out."""
    if not size:
        return "an empty file"
    if head[8:9] == b"{" and not any(head[4:8]):
        return None  # the length of a safetensors header may look like anything in its first bytes
    text = head.lstrip().lower()
    signs: Sequence[tuple[bool, str]] = (
        (head.startswith(b"version https://git-lfs"), "a Git LFS pointer (run `git lfs pull`)"),
        (text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<")), "a web page (an error saved as a file?)"),
        (text.startswith((b"{", b"[")), "a JSON text (an error saved as a file?)"),
        (head.startswith(b"PK\x03\x04"), "a zip file (a .pt checkpoint under a false name?)"),
        (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05", "a pickle under a false name"),
        (size < 10, f"{size} bytes: it is cut short"),
    )
    return next((kind for found, kind in signs if found), None)


def _some(names: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:LONGEST_NAME] for name in names[:SHOWN]) + more
