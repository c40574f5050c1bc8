"""keys.py: pairs on disk, who may read them, which keys are taken, and that none is ever shown."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner  # type: ignore[attr-defined]

from safear_edit.errors import UsageError
from safear_edit.release import keys

CURVES = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())


def pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def private_file(path: Path, key: PrivateKeyTypes) -> Path:
    path.write_bytes(pem(key))
    path.chmod(0o600)
    return path


def test_a_new_pair_signs_and_its_public_half_verifies(tmp_path: Path) -> None:
    pair = keys.generate(tmp_path / "new" / "folder")
    assert pair.private.name == "safear.key" and pair.public.name == "safear.pub"
    assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600
    signer = keys.find_signer(pair.private, {})
    (trusted,) = keys.load_trust(tmp_path / "new" / "folder")
    assert signer and signer.hint == trusted.hint == pair.hint
    signature = signer.sign(b"message")
    assert trusted.verifies(signature, b"message")
    assert not trusted.verifies(signature, b"another message")


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    pair = keys.generate(tmp_path, password=b"correct horse")
    assert b"ENCRYPTED" in pair.private.read_bytes()
    assert keys.find_signer(pair.private, {keys.PASSWORD_VARIABLE: "correct horse"})
    with pytest.raises(UsageError, match=f"its password in {keys.PASSWORD_VARIABLE}"):
        keys.find_signer(pair.private, {})
    with pytest.raises(UsageError, match="got a wrong one"):
        keys.find_signer(pair.private, {keys.PASSWORD_VARIABLE: "battery staple"})
    with pytest.raises(UsageError, match="at least one character"):
        keys.generate(tmp_path, "other", password=b"")


def test_a_password_in_the_environment_does_not_lock_out_a_plain_key(tmp_path: Path) -> None:
    pair = keys.generate(tmp_path)
    assert keys.find_signer(pair.private, {keys.PASSWORD_VARIABLE: "for another key"})


@pytest.mark.parametrize("taken", ["safear.key", "safear.pub"])
def test_generate_never_overwrites(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(UsageError, match="a new file"):
        keys.generate(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "precious"


@pytest.mark.parametrize("name", ["", "../key", ".hidden", "a/b", "a b"])
def test_generate_refuses_odd_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="key name"):
        keys.generate(tmp_path, name)


def test_generate_keeps_out_of_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "safear.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "keys"):
        with pytest.raises(UsageError, match="keep keys apart"):
            keys.generate(folder)
    assert not (tmp_path / "keys").exists()


@pytest.mark.skipif(os.name != "posix", reason="file modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    pair = keys.generate(tmp_path)
    pair.private.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}; chmod 600"):
        keys.find_signer(pair.private, {})


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_the_three_curves_sign(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    signer = keys.find_signer(private_file(tmp_path / "k.key", key), {})
    (tmp_path / "k.pub").write_bytes(keys.public_pem(key.public_key()))
    assert signer and keys.load_trust(tmp_path)[0].verifies(signer.sign(b"m"), b"m")


@pytest.mark.parametrize(
    ("key", "got"),
    [
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (rsa.generate_private_key(65537, 2048), "RSA"),
        (ec.generate_private_key(ec.SECP256K1()), "curve secp256k1"),
    ],
    ids=["ed25519", "rsa", "secp256k1"],
)
def test_other_key_types_are_named_and_refused(tmp_path: Path, key: PrivateKeyTypes, got: str) -> None:
    with pytest.raises(UsageError, match=f"P-256, P-384 or P-521, got {got}"):
        keys.find_signer(private_file(tmp_path / "k.key", key), {})
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "k.pub").write_bytes(public)
    with pytest.raises(UsageError, match=got):
        keys.load_trust(tmp_path)


def test_the_file_goes_before_the_environment(tmp_path: Path) -> None:
    mine, others = keys.generate(tmp_path, "mine"), keys.generate(tmp_path, "others")
    environ = {keys.KEY_VARIABLE: others.private.read_text()}
    from_file, from_environment = keys.find_signer(mine.private, environ), keys.find_signer(None, environ)
    assert from_file and from_file.hint == mine.hint
    assert from_environment and from_environment.hint == others.hint
    assert keys.find_signer(None, {}) is None
    assert keys.find_signer(None, {keys.KEY_VARIABLE: "\n"}) is None


def test_no_error_and_no_repr_shows_a_key(tmp_path: Path) -> None:
    pair = keys.generate(tmp_path)
    text = pair.private.read_text()
    secret = text.splitlines()[1]
    signer = keys.find_signer(pair.private, {})
    assert secret not in repr(signer) and secret not in repr(pair)
    for broken in (text[: len(text) // 2], text.replace("BEGIN PRIVATE", "BEGIN WRONG"), secret):
        with pytest.raises(UsageError) as caught:
            keys.find_signer(None, {keys.KEY_VARIABLE: broken})
        assert secret not in str(caught.value)


def test_what_is_no_key_file(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (keys.LARGEST_PEM + 1))
    for name, got in (("absent", "No such file"), ("", "a folder"), ("big", "bytes")):
        with pytest.raises(UsageError, match=got):
            keys.find_signer(tmp_path / name, {})


def test_the_trust_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got nothing"):
        keys.load_trust(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"at least one \*.pub"):
        keys.load_trust(tmp_path)
    pair = keys.generate(tmp_path, "a")
    keys.generate(tmp_path, "b")
    assert [key.name for key in keys.load_trust(tmp_path)] == ["a", "b"]
    with pytest.raises(UsageError, match="a file"):
        keys.load_trust(pair.public)
    (tmp_path / "c.pub").write_text("no key")
    with pytest.raises(UsageError, match=r"c.pub: expected a public key"):
        keys.load_trust(tmp_path)
    (tmp_path / "c.pub").write_bytes(pair.private.read_bytes())
    with pytest.raises(UsageError, match="got a private key"):
        keys.load_trust(tmp_path)


def test_a_throwaway_key_leaves_only_its_public_half(tmp_path: Path) -> None:
    signer = keys.throwaway(tmp_path / "trust")
    (trusted,) = keys.load_trust(tmp_path / "trust")
    assert [p.name for p in (tmp_path / "trust").iterdir()] == [f"throwaway-{signer.hint[:8]}.pub"]
    assert trusted.verifies(signer.sign(b"m"), b"m")
    assert keys.throwaway(tmp_path / "trust").hint != signer.hint


class TokenSigner(CryptoSigner):  # type: ignore[misc]
    """Stands for a hardware token: the URI names it, the PIN opens it."""

    key = ec.generate_private_key(ec.SECP256R1())

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: object, secrets_handler: object = None) -> CryptoSigner:
        assert priv_key_uri == "hsm:2?label=safear" and callable(secrets_handler)
        if secrets_handler("pin") != "1234":
            raise PermissionError
        return CryptoSigner(cls.key)


def test_a_key_uri_goes_through_securesystemslib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "hsm", TokenSigner)
    uri, public = "hsm:2?label=safear", tmp_path / "token.pub"
    public.write_bytes(keys.public_pem(TokenSigner.key.public_key()))
    environ = {keys.PUBLIC_VARIABLE: str(public), keys.PASSWORD_VARIABLE: "1234"}
    signer = keys.find_signer(uri, environ)
    assert signer and keys.load_public(public).verifies(signer.sign(b"m"), b"m")
    with pytest.raises(UsageError, match="a reachable signing key, got PermissionError"):
        keys.find_signer(uri, {**environ, keys.PASSWORD_VARIABLE: "0000"})
    with pytest.raises(UsageError, match=keys.PUBLIC_VARIABLE):
        keys.find_signer(uri, {})
    other = keys.generate(tmp_path, "other")
    mixed_up = keys.find_signer(uri, {**environ, keys.PUBLIC_VARIABLE: str(other.public)})
    assert mixed_up
    with pytest.raises(UsageError, match="one of another key"):
        mixed_up.sign(b"m")


def test_a_key_or_pin_on_the_command_line_is_refused_without_repeating_it(tmp_path: Path) -> None:
    text = keys.generate(tmp_path).private.read_text()
    given = {
        text: "the text of a key",
        "-----BEGIN": "the text of a key",
        "hsm:1?label=x&pin=83517": "a pin",
        "pkcs11:object=k;pin-value=s3cret": "a pin",
        "pkcs11:object=k": "pkcs11",
        "vault://somewhere/k": "vault",
    }
    for key, got in given.items():
        with pytest.raises(UsageError, match=got) as caught:
            keys.find_signer(key, {})
        said = str(caught.value)
        assert not any(secret in said for secret in (text.splitlines()[1], "83517", "s3cret"))


def test_a_key_whose_line_ends_a_ci_system_escaped(tmp_path: Path) -> None:
    pair = keys.generate(tmp_path)
    escaped = pair.private.read_text().replace("\n", "\\n")
    signer = keys.find_signer(None, {keys.KEY_VARIABLE: escaped})
    assert signer and signer.hint == pair.hint


@pytest.mark.parametrize(
    "text", ["-----BEGIN \udcff", "-----BEGIN PRIVATE KEY-----\n\udc80\n-----END PRIVATE KEY-----"]
)
def test_bytes_in_the_environment_that_are_no_text_are_one_line(text: str) -> None:
    for environ in ({keys.KEY_VARIABLE: text}, {keys.KEY_VARIABLE: text, keys.PASSWORD_VARIABLE: "\udcff"}):
        with pytest.raises(UsageError, match="a private key in PEM"):
            keys.find_signer(None, environ)
