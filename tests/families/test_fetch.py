"""Fetching, against a server on loopback that speaks as much of the hub's API as is needed."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE

from safear_edit.cli import main
from safear_edit.cli.pull import allowed
from safear_edit.errors import NotFetchedError, SafearError, TrustError, UsageError
from safear_edit.families import fetch
from safear_edit.families.fetch import home_of, parts_of, pull, pulled
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef, published

XL = ModelRef("llamagen", "xl-256")
COMMIT = "c" * 40


@dataclass
class Hub:
    """Repositories of files, and what the server does wrong; `asked` are the files that were sent."""

    files: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    cut: int = 0
    """How many transfers of weights break after three quarters."""
    lies: dict[str, bytes] = field(default_factory=dict)
    """Other bytes of the same length than the hub says."""
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    def repository(self, path: str) -> str | None:
        return next((name for name in self.files if f"/{name}/" in f"{path}/"), None)


class Server(ThreadingHTTPServer):
    hub: Hub


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        hub, path = self.server.hub, self.path.partition("?")[0]
        repository = hub.repository(path.removeprefix("/api/models"))
        if repository is None:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if repository in hub.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        files = hub.files[repository]
        if path.startswith("/api/models/"):
            rows = [self.row(name, content) for name, content in files.items()]
            text = json.dumps({"id": repository, "sha": COMMIT, "siblings": rows}).encode()
            return self.answer(200, text, {"Content-Type": "application/json"})
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = hub.lies.get(name, files[name])
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(files[name]).hexdigest()}"'}
        if not body:
            return self.answer(200, content, headers, body=False)
        hub.asked.append(f"{repository}/{name}")
        if wanted := self.headers.get("Range"):
            hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return self.answer(206, content[start:], headers | span)
        if hub.cut and name.endswith(".pt"):
            hub.cut -= 1
            self.answer(200, content, headers, stop=len(content) * 3 // 4)
            self.close_connection = True
            return None
        return self.answer(200, content, headers)

    @staticmethod
    def row(name: str, content: bytes) -> dict[str, object]:
        row: dict[str, object] = {"rfilename": name, "size": len(content)}
        if name.endswith((".pt", ".safetensors")):
            row["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return row

    def answer(
        self, code: int, content: bytes, headers: dict[str, str], body: bool = True, stop: int | None = None
    ) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:stop])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    encoder = {"config.json": b"{}", "tokenizer_config.json": b"{}", "spiece.model": b"sp", "flax_model.msgpack": b"no",
               "model.safetensors.index.json": index, "model-1.safetensors": b"one", "model-2.safetensors": b"two",
               "pytorch_model.bin": b"no"}  # fmt: skip
    own = {"t2i_XL_stage1_256.pt": b"weights" * 50_000, "vq_ds16_t2i.pt": b"vq", "t2i_XL_stage2_512.pt": b"not asked",
           "run_me.py": b"no"}  # fmt: skip
    found = Hub({"peizesun/llamagen_t2i": own, "google/flan-t5-xl": encoder})
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = found
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield found
    server.shutdown()
    server.server_close()


def refused(cache: Path, kind: type[SafearError] = UsageError, ref: ModelRef = XL) -> str:
    with pytest.raises(kind) as caught:
        pull(ref, cache=cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_a_variants_files_are_fetched_and_known_again(hub: Hub, tmp_path: Path) -> None:
    cache, seen = tmp_path / "hub", list[str]()
    home = pull(XL, cache=cache, progress=lambda stage, done, total, info: seen.append(info))
    wanted = {"t2i_XL_stage1_256.pt", "vq_ds16_t2i.pt", "pulled.json", "flan-t5-xl"}
    assert home == home_of(XL, cache) == pulled(XL, cache) and {path.name for path in home.iterdir()} == wanted
    encoder = {path.name for path in (home / "flan-t5-xl").iterdir()}
    assert encoder == {"config.json", "tokenizer_config.json", "spiece.model", "model.safetensors.index.json",
                       "model-1.safetensors", "model-2.safetensors"}  # fmt: skip
    assert (home / "t2i_XL_stage1_256.pt").read_bytes() == hub.files["peizesun/llamagen_t2i"]["t2i_XL_stage1_256.pt"]
    assert ModelRef.parse(str(home)).variant == "xl-256" and "t2i_XL_stage1_256.pt" in seen
    assert not [name for name in hub.asked if name.endswith(("512.pt", "run_me.py", "msgpack", ".bin"))]
    hub.asked.clear()
    assert pull(XL, cache=cache) == home and not hub.asked, "nothing twice, and nothing asked of the network"


def test_a_cache_below_the_working_folder_serves_every_other_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = pull(XL, cache=Path("hub")).absolute()
    monkeypatch.chdir("/")
    assert (home / "vq_ds16_t2i.pt").read_bytes() == b"vq"


def test_the_same_encoder_is_there_once(hub: Hub, tmp_path: Path) -> None:
    pull(XL, cache=tmp_path / "hub")
    hub.asked.clear()
    pull(ModelRef("llamagen", "xl-512"), cache=tmp_path / "hub")
    assert hub.asked == ["peizesun/llamagen_t2i/t2i_XL_stage2_512.pt"]


def test_a_broken_transfer_continues(hub: Hub, tmp_path: Path) -> None:
    """Whether the library retries by itself or the person does: only what isn't there yet is sent again.

    The library writes whole chunks; the transfer breaks in the second one.
    """
    whole = b"weights" * (3 * DOWNLOAD_CHUNK_SIZE // 14)
    hub.files["peizesun/llamagen_t2i"]["t2i_XL_stage1_256.pt"] = whole
    hub.cut = 1
    for _ in range(2):
        try:
            home = pull(XL, cache=tmp_path / "hub")
            break
        except UsageError as error:
            assert "\n" not in str(error) and pulled(XL, tmp_path / "hub") is None
    assert (home / "t2i_XL_stage1_256.pt").read_bytes() == whole
    assert hub.ranges and hub.ranges[0].startswith(f"bytes={DOWNLOAD_CHUNK_SIZE}-")


def test_other_bytes_than_the_hub_says_are_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.lies["t2i_XL_stage1_256.pt"] = b"Weights" * 50_000
    assert "expected" in refused(tmp_path / "hub", TrustError) and pulled(XL, tmp_path / "hub") is None
    hub.lies.clear()
    home = pull(XL, cache=tmp_path / "hub")
    assert (home / "t2i_XL_stage1_256.pt").read_bytes() == b"weights" * 50_000, "the cache wasn't poisoned"


def test_files_that_changed_since_are_refused(hub: Hub, tmp_path: Path) -> None:
    home = pull(XL, cache=tmp_path / "hub")
    file = (home / "vq_ds16_t2i.pt").resolve()
    file.chmod(0o644)
    file.write_bytes(b"VQ")
    assert "pull again" in refused(tmp_path / "hub", TrustError)
    assert (pull(XL, cache=tmp_path / "hub") / "vq_ds16_t2i.pt").read_bytes() == b"vq"
    file = (home / "vq_ds16_t2i.pt").resolve()
    file.chmod(0o644)
    file.write_bytes(b"another size")
    with pytest.raises(TrustError, match="2 bytes"):
        pulled(XL, tmp_path / "hub")


def test_a_file_of_another_size_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    """The way out of what is said about it."""
    file = (pull(XL, cache=tmp_path / "hub") / "vq_ds16_t2i.pt").resolve()
    file.chmod(0o644)
    file.write_bytes(b"another size")
    assert "pull again" in refused(tmp_path / "hub", TrustError)
    assert (pull(XL, cache=tmp_path / "hub") / "vq_ds16_t2i.pt").read_bytes() == b"vq"


@pytest.mark.parametrize("name", ["vq_ds16_t2i.pt", "flan-t5-xl/spiece.model"])
def test_a_hub_that_says_otherwise_later_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    """The digests of the first time are the pin, also where the hub gives none, as for files that aren't large."""
    home = pull(XL, cache=tmp_path / "hub")
    for files in hub.files.values():
        files.update(dict.fromkeys(files.keys() & {Path(name).name}, b"ev"))
    fetch._forget(home / name)
    assert "pull again" in refused(tmp_path / "hub", TrustError) and pulled(XL, tmp_path / "hub") is None


def test_repositories_that_cant_be_had(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("google/flan-t5-xl")
    said = refused(tmp_path / "hub")
    assert "access to google/flan-t5-xl, got a gated repository" in said and "/google/flan-t5-xl and set" in said
    hub.gated.clear()
    del hub.files["peizesun/llamagen_t2i"]["vq_ds16_t2i.pt"]
    assert "the file vq_ds16_t2i.pt" in refused(tmp_path / "hub")
    del hub.files["peizesun/llamagen_t2i"]
    assert "404" in refused(tmp_path / "hub")
    assert "emu3:gen: expected a variant with a repository" in refused(tmp_path / "hub", ref=ModelRef("emu3", "gen"))
    assert "ships with this package" in refused(tmp_path / "hub", ref=ModelRef("llamagen", "mini"))


@pytest.mark.parametrize(
    "index",
    [b"{", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"\xff", b"[" * 5000,
     b'{"weight_map": {"a": "../../../../escaped.safetensors"}}'],
)  # fmt: skip
def test_an_index_that_is_none_or_leads_outside_is_one_line(hub: Hub, tmp_path: Path, index: bytes) -> None:
    hub.files["google/flan-t5-xl"]["model.safetensors.index.json"] = index
    hub.files["google/flan-t5-xl"]["../../../../escaped.safetensors"] = b"outside"
    said = refused(tmp_path / "hub", SafearError)
    assert "index.json" in said or "JSON" in said, said
    assert pulled(XL, tmp_path / "hub") is None and not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update({"../../kept.txt": told["vq_ds16_t2i.pt"]}),
        lambda told: told.update({"/etc/hostname": told["vq_ds16_t2i.pt"]}),
        lambda told: told["vq_ds16_t2i.pt"].update(size="2"),
        lambda told: told["vq_ds16_t2i.pt"].update(commit=None),
        lambda told: told.update({"": told["vq_ds16_t2i.pt"]}),
        lambda told: told.update({"a": []}),
    ],
)
def test_a_record_of_what_was_fetched_can_not_name_files_elsewhere(
    hub: Hub, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """Else `pull` would take a file of the user's for a damaged one, and remove it."""
    home = pull(XL, cache=tmp_path / "hub")
    kept = home.parent.parent / "kept.txt"
    kept.write_text("mine")
    told = json.loads((home / fetch.PULLED).read_text())
    change(told)
    (home / fetch.PULLED).write_text(json.dumps(told))
    assert "pull again" in refused(tmp_path / "hub", TrustError)
    assert kept.read_text() == "mine"
    with pytest.raises(TrustError, match="inside its folder"):
        pulled(XL, tmp_path / "hub")


def test_no_room_is_said_before_anything_is_fetched(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = fetch.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    assert "GB of disk" in refused(tmp_path / "hub")
    assert not [name for name in hub.asked if name.endswith(".pt")]


def test_without_network_one_line_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused(tmp_path / "hub")
    assert "hf download peizesun/llamagen_t2i t2i_XL_stage1_256.pt vq_ds16_t2i.pt --local-dir FOLDER" in line


def test_any_verb_fetches_what_it_misses_if_it_is_told_to(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files are no weights, so the verb gets as far as loading them: it has begun again, on the fetched folder."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    words = ["apply", "picasso", "--model", "llamagen:xl-256", "--device", "cpu", "--out", str(tmp_path / "o"), "-q"]
    assert main.run(words) == 2 and "`safear-edit pull llamagen:xl-256` or --pull" in capsys.readouterr().err
    assert not hub.asked and not list(tmp_path.iterdir())
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # the command before set it for its own libraries
    assert main.run([*words, "--pull"]) == 4
    assert str(home_of(XL, tmp_path / "hub")) in capsys.readouterr().err and pulled(XL, tmp_path / "hub")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "safear-edit"], "the refused run left nothing"


def test_a_fetch_that_fails_ends_the_verb_with_its_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.gated.add("peizesun/llamagen_t2i")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main.run(["plan", "picasso", "--model", "llamagen:xl-256", "--device", "cpu", "--pull"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "a gated repository" in said[0]


def test_a_person_is_asked_and_a_program_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    monkeypatch.setattr(click, "confirm", lambda text, err: asked.append(text) or len(asked) > 1)
    with pytest.raises(NotFetchedError) as missing:
        load_model("llamagen:xl-256")
    assert not allowed(missing.value, ["plan"]), "no terminal"
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    assert [allowed(missing.value, ["plan", *more]) for more in ([], [], ["--json"])] == [False, True, False]
    assert (
        asked[0].startswith("llamagen:xl-256 isn't on this machine; fetch it") and "peizesun/llamagen_t2i" in asked[0]
    )
    monkeypatch.setattr("safear_edit.processes.count", lambda: 2)
    assert not allowed(missing.value, ["plan", "--pull"])


def test_every_variant_with_a_repository_has_its_parts() -> None:
    parts = parts_of(XL, LlamaGen.variants["xl-256"])
    assert [part.repository for part in parts] == ["peizesun/llamagen_t2i", "google/flan-t5-xl"]
    mamba = parts_of(ModelRef("omnimamba", "1.3b"), published("omnimamba").variants["1.3b"])
    assert [(part.repository, part.files) for part in mamba] == [
        ("hustvl/OmniMamba", ("OmniMamba-1.3b.pth",)), ("EleutherAI/gpt-neox-20b", ("tokenizer.json",)),
    ]  # fmt: skip
