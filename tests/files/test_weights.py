"""files/weights.py: every way a weight file goes wrong, made here, is refused in words that say which; no code runs."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from safear_edit.errors import TrustError, UsageError
from safear_edit.files import weights
from safear_edit.files.weights import (
    _convert,
    _plain_tensors,
    _refuse_zip,
    assign_strict,
    fill,
    filled,
    opened,
    read_weights,
    stored_dtype,
    write_weights,
)
from tests.programs import Program

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
GOOD = save(TENSORS)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_written_weights_read_back_the_same(tmp_path: Path) -> None:
    tensors = {**TENSORS, "half": torch.ones(2, dtype=torch.bfloat16), "scalar": torch.tensor(3.0)}
    write_weights(tmp_path / "w.safetensors", tensors, {"format": "pt"})
    assert same(read_weights(tmp_path / "w.safetensors"), tensors)


BAD: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "an empty file"),
    "four bytes": (b"abcd", "cut short"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
    "HTML page": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "JSON error": (b'{"error": "not found", "code": 404}', "a JSON text"),
    "pickle": (pickle.dumps({"a": [1.0] * 9}), "a pickle under a false name"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, "a zip file"),
    "header cut": (GOOD[:40], "cut short"),
    "data cut": (GOOD[:-3], "cut short"),
    "header of 2**64 - 1": (b"\xff" * 8 + b"{" + b"x" * 50, "a safetensors file"),
    "header too large": ((200_000_000).to_bytes(8, "little") + b"{" + b"x" * 50, "a safetensors file"),
    "trailing bytes": (GOOD + b"\0\0\0\0", "a sound safetensors file"),
    "overlap": (raw({"a": entry(), "b": entry()}, b"\0" * 4), "a sound safetensors file"),
    "out of range": (raw({"a": entry(shape=[2**62], offsets=[0, 2**64 - 1])}, b"\0" * 4), "cut short"),
    "shape overflow": (raw({"a": entry(shape=[2**33, 2**33])}, b"\0" * 4), "a sound safetensors file"),
    "unknown dtype": (raw({"a": entry("Q7")}, b"\0" * 4), "safetensors|dtypes"),
    "not a tensor": (raw({"a": 3}), "a sound safetensors file"),
    "negative offset": (raw({"a": entry(offsets=[-4, 0])}), "a sound safetensors file"),
    "a name twice": (raw(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), b"\0" * 4), "'a' twice"),
    "no tensors": (raw({"__metadata__": {"x": "y"}}), "1 to 100000 tensors, got 0"),
    "name with escapes": (raw({"a\x1b[2J\n": entry()}, b"\0" * 4), r"printable tensor names, got 'a\\x1b\[2J\\n'"),
    "name of a megabyte": (raw({"a" * 10**6: entry()}, b"\0" * 4), "printable tensor names"),
    "header no JSON": (raw(b"{nonsense}"), "valid JSON"),
    "header deep": (raw(b'{"a":' + b"[" * 100_000), "a header with"),
    "header no UTF-8": (raw(b'{"\xff": 1}'), "a header in UTF-8"),
    "NaN": (save({"x": torch.tensor([1.0, float("nan")])}), "x: expected finite weights"),
    "Inf in half": (save({"x": torch.tensor([1.0, float("-inf")]).half()}), "x: expected finite weights"),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_safetensors_are_refused_by_name(tmp_path: Path, how: str) -> None:
    data, message = BAD[how]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(TrustError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_million_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MOST_TENSORS", 10)
    (tmp_path / "m.safetensors").write_bytes(save({str(i): torch.zeros(1) for i in range(11)}))
    with pytest.raises(TrustError, match="1 to 10 tensors, got 11"):
        read_weights(tmp_path / "m.safetensors")


@pytest.mark.parametrize("length", [0x3C, 0x5B, 0x7B, 0x20 + 0x3C00])
def test_a_header_length_that_looks_like_text_is_no_mishap(tmp_path: Path, length: int) -> None:
    text = json.dumps({"a": entry()}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw(text.ljust(max(length, len(text))), b"\0" * 4))
    assert read_weights(path)["a"].item() == 0


def test_what_is_no_weight_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    for name, got in (
        ("absent.safetensors", "nothing"),
        ("", "a folder"),
        ("pipe.safetensors", "a pipe"),
        ("notes.txt", "'.txt'"),
    ):
        with pytest.raises(UsageError, match=got):
            read_weights(tmp_path / name)


# -- shards


def sharded(folder: Path, places: dict[str, Any]) -> Path:
    (folder / "one.safetensors").write_bytes(save({"a": torch.ones(1)}))
    (folder / "two.safetensors").write_bytes(save({"b": torch.zeros(2)}))
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    return path


def test_shards_are_put_together(tmp_path: Path) -> None:
    path = sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert same(read_weights(path), {"a": torch.ones(1), "b": torch.zeros(2)})


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "../one.safetensors"}, "beside the index"),
        ({"a": "/etc/one.safetensors"}, "beside the index"),
        ({"a": "..\\one.safetensors"}, "beside the index"),
        ({"a": "one.bin"}, "beside the index"),
        ({"a": "three.safetensors"}, "three.safetensors: expected a shard"),
        ({"a": "one.safetensors", "c": "one.safetensors"}, "others: c"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "others: b, c"),
        ({"a": 3}, "weight_map"),
        ({}, "weight_map"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, places: dict[str, Any], message: str) -> None:
    with pytest.raises(TrustError, match=message):
        read_weights(sharded(tmp_path, places))


# -- pickles


class Payload:
    """What runs when an unguarded unpickler meets it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


class Resolver(Payload):
    """The same by a way that block-lists missed."""

    def __reduce__(self) -> Any:
        import pkgutil

        return pkgutil.resolve_name, ("os:system",)


def test_pickles_need_permission(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "m.pt")
    with pytest.raises(TrustError, match="allow_pickle=True"):
        read_weights(tmp_path / "m.pt")
    (tmp_path / "m.pt").rename(tmp_path / "m.safetensors")
    with pytest.raises(TrustError, match="a zip file"):
        read_weights(tmp_path / "m.safetensors", allow_pickle=True)


def test_a_checkpoint_is_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The real way, once, for a checkpoint as LlamaGen publishes it, and once for a payload."""
    torch.save({"model": OrderedDict(TENSORS), "steps": 3}, tmp_path / "good.pt")
    assert same(read_weights(tmp_path / "good.pt", allow_pickle=True), TENSORS)
    torch.save({"model": Payload(tmp_path / "marker")}, tmp_path / "evil.pt")
    with pytest.raises(TrustError, match=r"evil.pt: expected plain tensors, got more than tensors") as caught:
        read_weights(tmp_path / "evil.pt", allow_pickle=True)
    assert not (tmp_path / "marker").exists()
    assert "weights_only" not in str(caught.value)


def test_a_trainers_checkpoint_is_read_without_its_arguments(tmp_path: Path) -> None:
    """LlamaGen's training program saves weights, optimiser, steps and the argparse.Namespace of the run."""
    more = {"optimizer": {"state": {}, "param_groups": []}, "steps": 3, "args": argparse.Namespace(lr=1e-4, out="x")}
    torch.save({"model": TENSORS, **more}, tmp_path / "t2i.pt")
    assert same(read_weights(tmp_path / "t2i.pt", allow_pickle=True), TENSORS)


@pytest.mark.soak
def test_the_way_out_of_another_class_works(tmp_path: Path) -> None:
    """The advice is followed to the letter, in a program that has such a network."""
    path, net = tmp_path / "t2i.pt", nn.Linear(2, 2)
    torch.save({"model": net.state_dict(), "args": Fraction(1, 3)}, path)
    with pytest.raises(TrustError, match="save the weights alone") as caught:
        read_weights(path, allow_pickle=True)
    exec(caught.value.fix.partition(": ")[2], {"torch": torch, "net": net, "FILE": path})
    assert same(read_weights(path, allow_pickle=True), net.state_dict())


def test_a_dtype_that_torch_has_no_arithmetic_for_is_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    (tmp_path / "f4.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    with pytest.raises(TrustError, match=r"f4\.safetensors a: expected one of BF16, .*, got 'F4'") as caught:
        read_weights(tmp_path / "f4.safetensors")
    assert "\n" not in str(caught.value)


def convert(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the other process would say, without paying for its start."""
    monkeypatch.setattr(weights, "_bound_memory", lambda extra: None)
    _refuse_zip(path)
    with pytest.raises(SystemExit) as caught:
        _convert(path, path.with_name("out.safetensors"))
    assert caught.value.code == 1 and not path.with_name("out.safetensors").exists()
    return capsys.readouterr().out


REFUSED: dict[str, tuple[Any, str]] = {
    "whole module": (nn.Linear(2, 2), "more than tensors"),
    "bare list": ([torch.ones(2)], "list instead of a state dict"),
    "int keys": ({1: torch.ones(2)}, "no text"),
    "other values": ({"a": torch.ones(2), "lr": 0.1}, "'lr', which is float"),
    "nothing": ({"model": {}}, "dict instead of a state dict"),
    "stride 0": ({"a": torch.zeros(1).expand(10**12)}, "with 1000000000000 elements on 4 bytes"),
    "sparse": ({"a": torch.eye(2).to_sparse()}, "no plain tensor"),
    "many tied": (dict.fromkeys(map(str, range(50)), torch.ones(1000)), "bytes of tensors"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_more_than_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    content, message = REFUSED[how]
    torch.save(content, tmp_path / "m.pt")
    assert message in convert(tmp_path / "m.pt", capsys, monkeypatch)


@pytest.mark.parametrize("kind", [Payload, Resolver])
def test_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: type[Payload]
) -> None:
    torch.save({"a": kind(tmp_path / "marker")}, tmp_path / "m.pt")
    assert "more than tensors" in convert(tmp_path / "m.pt", capsys, monkeypatch)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_the_state_dict_is_found_where_upstream_looks(wrapper: str | None) -> None:
    loaded = {wrapper: TENSORS, "args": 1} if wrapper else TENSORS
    assert same(_plain_tensors(loaded, 10**6), TENSORS)


def test_the_first_wrapper_wins() -> None:
    loaded = {"state_dict": {"x": torch.ones(1)}, "module": {"y": torch.ones(1)}, "model": TENSORS}
    assert same(_plain_tensors(loaded, 10**6), TENSORS)


def zipped(path: Path, names: list[str], how: int = zipfile.ZIP_STORED, size: int = 10) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name in names:
            archive.writestr(name, b"\0" * size)
    return path


@pytest.mark.parametrize(
    ("names", "how", "size", "message"),
    [
        (["m/data.pkl"], zipfile.ZIP_DEFLATED, 10**7, "stored entries"),
        (["m/../../x"], zipfile.ZIP_STORED, 10, "names inside the archive"),
        (["/etc/x"], zipfile.ZIP_STORED, 10, "names inside the archive"),
    ],
)
def test_zips_that_torch_did_not_write(tmp_path: Path, names: list[str], how: int, size: int, message: str) -> None:
    with pytest.raises(TrustError, match=message):
        read_weights(zipped(tmp_path / "m.pt", names, how, size), allow_pickle=True)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_room_to_convert_is_said_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk made the file "more than tensors, or a broken file"."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "m.pt")
    full = weights.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: full)
    with pytest.raises(UsageError, match=r"GB to convert m\.pt, got 0\.0 GB free; free some, or set TMPDIR"):
        read_weights(tmp_path / "m.pt", allow_pickle=True)


def test_other_broken_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "twice": (zipped(tmp_path / "twice.pt", ["m/a", "m/a"]).read_bytes(), "each entry once"),
        "cut": (zipped(tmp_path / "cut.pt", ["m/a"]).read_bytes()[:-10], "a whole zip file"),
        "legacy": (pickle.dumps({"a": 1}), "a pickle under a false name"),
        "page": (b"<html>404</html>", "a web page"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / f"{name}.pt").write_bytes(data)
        with pytest.raises(TrustError, match=message):
            read_weights(tmp_path / f"{name}.pt", allow_pickle=True)
    monkeypatch.setattr(weights, "torch_version", lambda: (2, 9))
    with pytest.raises(TrustError, match="upgrade torch"):
        read_weights(tmp_path / "twice.pt", allow_pickle=True)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_the_bound_on_memory_holds() -> None:
    code = "from safear_edit.files.weights import _bound_memory; _bound_memory(1 << 26); bytearray(1 << 28)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "MemoryError" in done.stderr


# -- assigning


def net() -> nn.Module:
    return nn.Sequential(OrderedDict(a=nn.Linear(3, 2), b=nn.BatchNorm1d(2)))


def test_weights_are_assigned_in_the_nets_dtype() -> None:
    source, target = net(), net().half()
    assign_strict(target, source.state_dict(), "here")
    assert target.a.weight.dtype == torch.float16
    assert torch.equal(target.a.weight, source.a.weight.half())


def test_another_architecture_is_named_and_nothing_is_written() -> None:
    target = net()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    weights = {name: torch.full_like(tensor, 7) for name, tensor in before.items()}
    del weights["a.bias"]
    weights["b.bias"] = torch.ones(5)
    weights["b.num_batches_tracked"] = torch.tensor(1.5)
    weights |= {f"c\x1b{number}": torch.ones(1) for number in range(7)}
    with pytest.raises(UsageError) as caught:
        assign_strict(target, weights, "m.safetensors")
    text = str(caught.value)
    assert text.startswith("m.safetensors: ") and caught.value.exit_code == 2
    assert "1 missing: a.bias" in text
    assert r"7 extra: c\x1b0, c\x1b1, c\x1b2, c\x1b3, c\x1b4 and 2 more" in text
    assert "b.bias (5,) for (2,)" in text and "b.num_batches_tracked torch.float32 for torch.int64" in text
    assert same(dict(target.state_dict()), before)


def test_ignored_names_may_be_missing_or_left_over() -> None:
    source, target = net(), net()
    weights = {**source.state_dict(), "codebook_used": torch.ones(3)}
    del weights["b.num_batches_tracked"]
    assign_strict(target, weights, "here", ignore=("codebook_used", "b.num_batches_tracked"))
    assert torch.equal(target.a.weight, source.a.weight)


# -- filling a network that takes no memory before


def test_a_network_is_filled_in_the_dtype_asked_for_and_keeps_its_buffers(tmp_path: Path) -> None:
    source = net().half()
    source.b.running_mean += 3
    write_weights(tmp_path / "w.safetensors", source.state_dict())

    def make() -> nn.Module:
        made = net()
        made.register_buffer("angles", torch.arange(4.0), persistent=False)
        made.a.bias.requires_grad_(False)
        return made

    with opened(tmp_path / "w.safetensors") as stored:
        found = filled(make, 1, stored, "here", dtype=torch.bfloat16)
    assert found.a.weight.dtype == torch.bfloat16 and torch.equal(found.a.weight, source.a.weight.bfloat16())
    assert torch.equal(found.b.running_mean, source.b.running_mean.bfloat16())
    assert torch.equal(found.angles.float(), torch.arange(4.0)) and not found.angles.is_meta
    assert found.a.weight.requires_grad and not found.a.bias.requires_grad


def test_tensors_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path / "w.safetensors", {"a": torch.ones(3), "b": torch.zeros(2), "c": torch.full((1,), 4.0)})
    monkeypatch.setattr(weights, "MAPPED", 0)  # every tensor from a file that is opened anew
    with opened(tmp_path / "w.safetensors") as stored:
        assert {name: tuple(one.shape) for name, one in stored.like.items()} == {"a": (3,), "b": (2,), "c": (1,)}
        assert all(one.is_meta for one in stored.like.values())
        assert stored["c"].item() == 4 and stored["a"].sum() == 3 and stored["a"].data_ptr() != stored["a"].data_ptr()


def test_two_names_for_one_tensor_are_filled_apart() -> None:
    shared = torch.ones(2, 2)
    target = nn.Sequential(OrderedDict(a=nn.Linear(2, 2, bias=False), b=nn.Linear(2, 2, bias=False)))
    fill(target, {"a.weight": shared, "b.weight": shared})
    with torch.no_grad():
        target.a.weight.zero_()
    assert target.b.weight.sum() == 4


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_notes_what_a_half_precision_model_computes_in(tmp_path: Path, kind: torch.dtype) -> None:
    write_weights(tmp_path / "w.safetensors", {"a": torch.ones(9, dtype=kind), "counter": torch.tensor(1)})
    assert stored_dtype(tmp_path / "w.safetensors") == str(kind).removeprefix("torch.")


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="smaps")
def test_loading_takes_one_copy_in_the_target_dtype_and_reads_each_tensor_once(tmp_path: Path) -> None:
    """32 tensors of 8 MiB in float32, 256 MiB: in bfloat16 they take 128 MiB, and two copies would take 512.

    Counted whenever a tensor is read: the process's own pages and those of the mapped file. The libraries' pages, which
    the kernel takes and brings back as it likes, don't count.
    """
    code = """
import sys, torch
from pathlib import Path
from torch import nn
from safear_edit.files import weights
from safear_edit.files.weights import filled, opened, write_weights
path = Path(sys.argv[1])
make = lambda: nn.Sequential(*(nn.Linear(2048, 1024, bias=False) for _ in range(32)))
if not path.exists():
    write_weights(path, make().state_dict())
    sys.exit()
weights.MAPPED, weights.LARGE = 1 << 24, 1 << 27

def held():
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        kind, *rest = line.split()
        if not kind.endswith(":"):
            counts = len(rest) < 5 or rest[4].startswith("[") or rest[4] == str(path)
        elif kind == "Rss:" and counts:
            total += int(rest[0])
    return total >> 10

class Watched(weights.Stored):
    def __getitem__(self, name):
        tensor = super().__getitem__(name)
        seen.append(held())
        return tensor

small = lambda: nn.Linear(1, 1)
filled(small, 1, small().state_dict(), "here")  # what is imported at first use
weights.Stored, seen = Watched, [held()]
with opened(path) as stored:
    net = filled(make, 1, stored, "here", dtype=torch.bfloat16)
    seen.append(held())
print(max(seen) - seen[0], len(seen))
"""
    path = str(tmp_path / "w.safetensors")
    assert Program(code, path).done().code == 0
    grown, times = map(int, Program(code, path).done().out.split())
    assert times == 34 and 120 < grown < 220


def test_sizes_are_compared_without_torchs_compiler(tmp_path: Path) -> None:
    """It takes seconds to import."""
    code = """
import sys, torch
from torch import nn
from safear_edit.files.weights import filled
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.start = nn.Linear(3, 2), nn.Parameter(torch.empty(2, 3).normal_(std=0.5))
        self.register_buffer("other", torch.empty(4).normal_(std=0.1))
net = filled(Net, 1, {name: torch.ones_like(own) for name, own in Net().state_dict().items()}, "a release's file")
assert all(bool((tensor == 1).all()) for tensor in net.state_dict().values())
print("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


# -- writing


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_the_files_mode_is_the_users(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_weights(tmp_path / "w.safetensors", TENSORS)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o640


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    """safetensors orders metadata by a random hash: nine keys come out sorted once in 362 880 times."""
    metadata = {name: 'é\n\x1f"' for name in "ihgfedcba"}
    write_weights(tmp_path / "w.safetensors", TENSORS, metadata)
    data = (tmp_path / "w.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == sorted(metadata) and header["__metadata__"] == metadata
    assert same(read_weights(tmp_path / "w.safetensors"), TENSORS)


def test_views_and_tied_tensors_are_written_out(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"all": base, "again": base, "row": base[1], "turned": base.T}
    write_weights(tmp_path / "w.safetensors", tensors)
    assert same(read_weights(tmp_path / "w.safetensors"), tensors)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, bad: float) -> None:
    with pytest.raises(UsageError, match=r"a.weight: expected finite weights"):
        write_weights(tmp_path / "w.safetensors", {"a.weight": torch.tensor([bad])})
    assert not list(tmp_path.iterdir())


def test_the_old_file_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, TENSORS)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_weights(path, {"a": torch.zeros(9)})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
