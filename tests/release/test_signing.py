"""signing.py: what is signed verifies with model-signing's own verifier, and what can't be signed is refused."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import model_signing
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from safear_edit.errors import UsageError
from safear_edit.release import keys
from safear_edit.release.signing import CLAIMS, SIGNATURE, hash_folder, root_digest, sign_folder

SOME_PEM = b"-----BEGIN PRIVATE KEY-----\nMIGH"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "safe model"
    (folder / "vq").mkdir(parents=True)
    (folder / "gpt.safetensors").write_bytes(b"weights")
    (folder / "vq" / "vq.safetensors").write_bytes(b"more weights")
    (folder / "README.md").write_text("card")
    return folder


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    return tmp_path / "trust"


def payload(folder: Path) -> dict[str, object]:
    bundle = json.loads((folder / SIGNATURE).read_text())
    decoded: dict[str, object] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return decoded


def test_model_signing_verifies_it_with_its_own_defaults(model: Path, trust: Path) -> None:
    signed = sign_folder(model, keys.throwaway(trust))
    public = next(trust.glob("*.pub"))
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifier.verify(model, model / SIGNATURE)
    assert list(signed.files) == ["README.md", "gpt.safetensors", "vq/vq.safetensors"]
    (model / "README.md").write_text("changed")
    with pytest.raises(ValueError, match="Hash mismatch"):
        model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public).verify(model, model / SIGNATURE)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_model_signing_verifies_the_longer_curves(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curve: ec.EllipticCurve
) -> None:
    key = ec.generate_private_key(curve)
    monkeypatch.setattr(ec, "generate_private_key", lambda _: key)
    sign_folder(model, keys.throwaway(tmp_path))
    public = next(tmp_path.glob("*.pub"))
    model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public).verify(model, model / SIGNATURE)


def test_the_statement_says_what_was_signed_and_nothing_else(model: Path, trust: Path) -> None:
    key = keys.throwaway(trust)
    signed = sign_folder(model, key)
    statement = payload(model)
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    assert statement["subject"] == [{"name": "safe model", "digest": {"sha256": signed.root}}]
    predicate = statement["predicate"]
    assert isinstance(predicate, dict)
    assert predicate["serialization"]["ignore_paths"] == [".gitattributes", CLAIMS, SIGNATURE]
    assert {item["name"]: item["digest"] for item in predicate["resources"]} == signed.files
    sign_folder(model, key, replace=True)
    assert payload(model) == statement


def test_names_are_covered_though_the_root_digest_does_not_cover_them(model: Path) -> None:
    before = hash_folder(model)
    (model / "README.md").rename(model / "READYOU.md")
    after = hash_folder(model)
    assert root_digest(before) == root_digest(after)
    assert before != after


def test_git_files_are_signed_like_all_others(model: Path, trust: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("x")
    assert ".git/config" in sign_folder(model, keys.throwaway(trust)).files


def test_an_existing_signature_is_kept(model: Path, trust: Path) -> None:
    sign_folder(model, keys.throwaway(trust))
    before = (model / SIGNATURE).read_bytes()
    with pytest.raises(UsageError, match="an unsigned folder"):
        sign_folder(model, keys.throwaway(trust))
    assert (model / SIGNATURE).read_bytes() == before


def spoil(folder: Path, how: str) -> None:
    match how:
        case "symlink":
            (folder / "link.bin").symlink_to("/etc/hostname")
        case "symlinked folder":
            (folder / "linked").symlink_to(folder / "vq")
        case "fifo":
            os.mkfifo(folder / "pipe")
        case "empty directory":
            (folder / "vq" / "empty").mkdir()
        case "no weights":
            (folder / "gpt.safetensors").unlink()
            (folder / "vq" / "vq.safetensors").rename(folder / "vq" / "vq.txt")
        case "zero-byte weights":
            (folder / "gpt.safetensors").write_bytes(b"")
            (folder / "vq" / "vq.safetensors").write_bytes(b"")
        case "private key":
            (folder / "vq" / "backup.txt").write_bytes(SOME_PEM)
        case "ignored directory":
            (folder / CLAIMS).mkdir()
            (folder / CLAIMS / "evil.py").write_text("x")
        case "bad name":
            (folder / os.fsdecode(b"bad\xff.txt")).write_text("x")
        case _:
            raise ValueError(how)


SPOILED = {
    "symlink": "a symbolic link",
    "symlinked folder": "a symbolic link",
    "fifo": "a pipe",
    "empty directory": "an empty directory",
    "no weights": "at least one weight file",
    "zero-byte weights": "at least one weight file",
    "private key": "got a private key",
    "ignored directory": "got a directory",
    "bad name": "a name in UTF-8",
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_a_manifest_cannot_vouch_for_is_refused(model: Path, trust: Path, how: str) -> None:
    spoil(model, how)
    with pytest.raises(UsageError, match=SPOILED[how]):
        sign_folder(model, keys.throwaway(trust))
    assert not (model / SIGNATURE).exists()


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path, trust: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, got in (("empty", "an empty directory"), ("absent", "nothing"), ("file", "a file")):
        with pytest.raises(UsageError, match=got):
            sign_folder(tmp_path / name, keys.throwaway(trust))


def test_nothing_is_left_when_signing_fails(model: Path, trust: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(model.rglob("*"))
    key = keys.throwaway(trust)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        sign_folder(model, key)
    assert sorted(model.rglob("*")) == before
