"""Sign a model folder: every file's sha256 in an OpenSSF Model Signing (OMS) v1.0 statement, in `model.sig`.

The manifest comes from model-signing; the statement around it is built here, as canonical JSON with sorted lists,
and signed as a DSSE envelope in a sigstore bundle (v0.3), so that any OMS verifier accepts it. What model-signing
accepts silently (an empty folder, `.git`, empty directories, an existing signature) is refused here
(OMS: https://github.com/ossf/model-signing-spec, spec/v1.0.md).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import model_signing
import rfc8785

from safear_edit.errors import SafearError, TrustError, UsageError
from safear_edit.files.atomic import write_atomic
from safear_edit.files.rundir import AS_THEY_ARE, GIT_ATTRIBUTES
from safear_edit.release.keys import SigningKey

SIGNATURE, CLAIMS = "model.sig", "claims.jsonl"
OUTSIDE = frozenset({SIGNATURE, CLAIMS, GIT_ATTRIBUTES})
"""The only files of a signed folder that `model.sig` doesn't cover.

The claims carry signatures of their own. `.gitattributes` must read as `stage` writes it (verifiers of OMS leave it
out anyway, and a model hub writes its own); with other content it is foreign.
"""
FOREIGN = frozenset({".DS_Store", ".cache", ".git", ".gitattributes", ".github", ".gitignore", ".huggingface",
                     "__MACOSX", "Thumbs.db", "desktop.ini"})  # fmt: skip
"""What git, a model hub's client or an operating system leaves in a folder; `._NAME` is macOS's as well."""
WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx"})
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGNATURE_TYPE = "https://model_signing/signature/v1.0"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@dataclass(frozen=True)
class SignedManifest:
    """What a signature covers: `files` maps each path (POSIX, relative) to its sha256; `root` hashes those digests."""

    name: str
    files: Mapping[str, str]
    root: str
    hint: str
    path: Path


def sign_folder(folder: Path, key: SigningKey, *, replace: bool = False) -> SignedManifest:
    """Write `folder/model.sig` in one step; UsageError, with nothing written, for a folder that can't be signed.

    An existing signature is kept unless `replace`. Every file must be in place before: a later change breaks it.
    """
    refuse_unsignable(folder, UsageError)
    path = folder / SIGNATURE
    if path.exists() and not replace:
        raise UsageError(str(path), "an unsigned folder", "a signature", "sign a fresh folder or replace it on purpose")
    files = hash_folder(folder)
    root = root_digest(files)
    name = folder.resolve().name
    write_atomic(path, sign_statement(_statement(name, files, root), key) + "\n")
    return SignedManifest(name, files, root, key.hint, path)


def hashing_config(ignored: Iterable[str] = (), *, links: bool = False) -> model_signing.hashing.Config:
    """How the folder is read, for signing and verifying alike; `files` and sha256 are what round-trips in 1.1.1.

    ignored: foreign files and folders to leave out; links: follow symbolic links, which were looked at before.
    """
    config = model_signing.hashing.Config()  # type: ignore[no-untyped-call]
    config = config.use_file_serialization(hashing_algorithm="sha256").set_allow_symlinks(links)
    return config.set_ignored_paths(paths=sorted(OUTSIDE.union(ignored)), ignore_git_paths=False)


def hash_folder(folder: Path, ignored: Iterable[str] = (), *, links: bool = False) -> dict[str, str]:
    """Path → sha256 of every file that a signature covers, sorted; the bytes are read once."""
    manifest = hashing_config(ignored, links=links).hash(folder)
    return {item.identifier: item.digest.digest_hex for item in manifest.resource_descriptors()}


def root_digest(files: Mapping[str, str]) -> str:
    """OMS's one digest of a model: sha256 over the file digests in order. It doesn't cover names; `files` does."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in files.values())).hexdigest()


def pae(payload: bytes) -> bytes:
    """What DSSE signs: type and payload with their lengths (github.com/secure-systems-lab/dsse, protocol.md)."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def sign_statement(statement: Mapping[str, Any], key: SigningKey) -> str:
    """One in-toto statement as a sigstore bundle with its DSSE envelope, on one line."""
    payload = rfc8785.dumps(dict(statement))
    signature = key.sign(pae(payload))
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":"))


def foreign(folder: Path) -> tuple[str, ...]:
    """Files and folders (POSIX, relative, sorted) that others than the signer leave behind; not what is in them."""
    found = []
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(at) / name
            if _is_foreign(name) and not (path == folder / GIT_ATTRIBUTES and _keeps_bytes(path)):
                found.append(path.relative_to(folder).as_posix())
        folders[:] = [name for name in folders if not _is_foreign(name)]
    return tuple(sorted(found))


def _is_foreign(name: str) -> bool:
    return name in FOREIGN or name.startswith("._")


def _keeps_bytes(path: Path) -> bool:
    """Whether a `.gitattributes` is the one that travels with a release."""
    plain = stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size == len(AS_THEY_ARE)
    return plain and path.read_bytes() == AS_THEY_ARE


def refuse_unsignable(
    folder: Path, failure: type[UsageError] | type[TrustError], skip: Collection[str] = (), *, links: bool = False
) -> None:
    """Raise `failure` for what a manifest of files can't describe or must not hold, before anything is hashed.

    Symlinks, pipes, sockets and devices; empty directories; names that aren't UTF-8; private keys; no weight file.
    skip: foreign files and folders, not looked at. links: symbolic links of a hub's cache are files.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise UsageError(str(folder), "a model's folder", got, "check the path")
    weights = 0
    for path in _walk(folder, failure, {folder / name for name in skip}, links):
        if path.name.encode(errors="replace").decode() != path.name:
            raise failure(ascii(str(path)), "a name in UTF-8", "other bytes", "rename it")
        if _holds_private_key(path):
            raise failure(str(path), "files to publish", "a private key", "move it away; if it was shared, replace it")
        weights += path.suffix.lower() in WEIGHTS and path.stat().st_size > 0
    if not weights:
        expected = f"at least one weight file ({', '.join(sorted(WEIGHTS))})"
        raise failure(str(folder), expected, "none", "is this a model's folder?")


def _walk(folder: Path, failure: type[SafearError], skip: Collection[Path], links: bool) -> Iterator[Path]:
    """Every file below `folder`; nothing but plain files in directories that hold something."""
    entries = sorted((entry for entry in os.scandir(folder) if Path(entry) not in skip), key=lambda entry: entry.name)
    if not entries:
        raise failure(str(folder), "files in every directory", "an empty directory", "remove it")
    for entry in entries:
        path, mode = Path(entry.path), entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) and entry.name in OUTSIDE:
            # the library would leave it out of the hashes, with everything in it
            raise failure(str(path), "a file", "a directory", "remove it")
        if stat.S_ISDIR(mode):
            yield from _walk(path, failure, skip, links)
        elif stat.S_ISREG(mode) or (links and is_hub_link(path)):
            yield path
        else:
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "a pipe, socket or device"
            fix = "pass --ignore-foreign to follow a hub cache's links" if is_hub_link(path) else "put a copy there"
            raise failure(str(path), "plain files and directories", kind, fix)


def is_hub_link(path: Path) -> bool:
    """Whether this is a link as a hub's cache has them: snapshots/REVISION/… to a plain file in blobs/."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    cache = target.parent.parent
    inside = target.parent.name == "blobs" and (cache / "snapshots") in path.absolute().parents
    return inside and target.is_file() and not target.is_symlink()


def _holds_private_key(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    return head.lstrip().startswith(b"-----BEGIN") and b"PRIVATE KEY-----" in head


def _statement(name: str, files: Mapping[str, str], root: str) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": SIGNATURE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted(OUTSIDE),  # a set in the library: sorted, so that the payload is reproducible
            },
            "resources": [{"name": n, "algorithm": "sha256", "digest": digest} for n, digest in files.items()],
        },
    }
