"""Signing keys: made, found and loaded here, and never printed.

A key is an ECDSA key on P-256, P-384 or P-521: what OMS signatures allow and model-signing verifies. The private half
is a PEM file that only its owner may read, PEM text in SAFEAR_SIGNING_KEY (CI), or stays in a cloud KMS or HSM that is
reached through securesystemslib. The public halves that a reader trusts are the `*.pub` files of one folder, so a key
is rotated by adding the new one, signing again, and removing the old one.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Signer, SSlibKey  # type: ignore[attr-defined]

from safear_edit.errors import UsageError
from safear_edit.files.atomic import sync_folder, write_atomic
from safear_edit.redact import redact

THROWAWAY = "a throw-away key"
"""Origin of a key that nobody can have kept."""
KEY_VARIABLE, PASSWORD_VARIABLE = "SAFEAR_SIGNING_KEY", "SAFEAR_SIGNING_KEY_PASSWORD"
PUBLIC_VARIABLE = "SAFEAR_SIGNING_PUBLIC_KEY"
"""Path of the public key that belongs to a key URI: a KMS signs, it doesn't say whom to trust."""
KEY_SCHEMES = ("awskms", "gcpkms", "azurekms", "hsm")
HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
"""Curve → hash of the message, as sigstore bundles pair them."""
LARGEST_PEM = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class KeyPair:
    """Two files of `generate`; `hint` is the sha256 of the public PEM, by which signatures name the key."""

    private: Path
    public: Path
    hint: str


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with; `name` is its file's stem."""

    name: str
    path: Path
    hint: str
    key: ec.EllipticCurvePublicKey = field(repr=False)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` (DER) was made over `message` by the private half."""
        return _verifies(self.key, signature, message)


@dataclass(frozen=True)
class SigningKey:
    """Something that signs: `origin` says where it came from (never what it is)."""

    origin: str
    hint: str
    signer: Signer = field(repr=False)
    public: ec.EllipticCurvePublicKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """DER signature over `message`; UsageError if the signer fails or its public key isn't the one given for it."""
        try:
            signature = bytes.fromhex(self.signer.sign(message).signature)
        except Exception as error:  # KMS and HSM clients raise whatever their network or driver raises
            raise UsageError(
                self.origin, "a signature", type(error).__name__, "check the key service's set-up"
            ) from error
        if not _verifies(self.public, signature, message):
            fix = f"point {PUBLIC_VARIABLE} to the public half of this very key"
            raise UsageError(self.origin, f"a signature of key {self.hint[:16]}…", "one of another key", fix)
        return signature


def generate(folder: Path, name: str = "safear", password: bytes | None = None) -> KeyPair:
    """Make a P-256 pair, `folder/name.key` (mode 0600, encrypted if a password is given) and `folder/name.pub`.

    UsageError if either exists, or if `folder` or one around it holds a model: a private key must not be published
    with one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError("key name", "letters, digits, '.', '_' or '-'", repr(name), "choose another --name")
    if password is not None and not password:
        raise UsageError("key password", "at least one character", "none", "give one, or ask for no encryption")
    pair = (folder / f"{name}.key", folder / f"{name}.pub")
    for path in pair:
        if path.exists() or path.is_symlink():
            fix = "choose another --name, or move the old key away yourself"
            raise UsageError(str(path), "a new file", "one that exists", fix)
    around = folder.absolute().resolve()
    if any((place / sign).exists() for place in (around, *around.parents) for sign in ("model.sig", "safear.json")):
        raise UsageError(str(folder), "a folder for keys", "a model's folder", "keep keys apart from what is published")
    key = ec.generate_private_key(ec.SECP256R1())
    locked: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    folder.mkdir(parents=True, exist_ok=True)
    public = public_pem(key.public_key())
    _write_new(pair, (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked), public), (0o600, 0o644))
    return KeyPair(*pair, hint=hashlib.sha256(public).hexdigest())


def throwaway(trust: Path) -> SigningKey:
    """A key that lives in memory only; its public half goes into the folder `trust`, so that one can verify.

    Anyone who can run the program can make such a signature: it shows that files are unchanged, not who made them.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    pem = public_pem(key.public_key())
    hint = hashlib.sha256(pem).hexdigest()
    trust.mkdir(parents=True, exist_ok=True)
    write_atomic(trust / f"throwaway-{hint[:8]}.pub", pem)
    return _local(key, THROWAWAY, hint)


def find_signer(key: str | Path | None, environ: Mapping[str, str]) -> SigningKey | None:
    """The key to sign with: `key` (a PEM file or a key URI), else SAFEAR_SIGNING_KEY (PEM text), else None.

    SAFEAR_SIGNING_KEY_PASSWORD opens an encrypted PEM (for an HSM it is the PIN). An empty variable counts as unset,
    because CI systems hand out missing secrets as empty text. UsageError for anything that can't sign.
    """
    password = environ.get(PASSWORD_VARIABLE) or None
    if key is not None:
        _refuse_secret(str(key))
        if str(key).startswith(tuple(f"{scheme}:" for scheme in KEY_SCHEMES)):
            return _remote(str(key), environ.get(PUBLIC_VARIABLE), password)
        return _from_pem(_read_private(Path(key)), str(key), password)
    text = environ.get(KEY_VARIABLE, "").strip()
    if not text:
        return None
    if not text.startswith("-----BEGIN"):
        raise UsageError(KEY_VARIABLE, "the text of a PEM key", "something else", "for a file pass --key FILE")
    if "\n" not in text:  # CI systems store a multi-line secret with its line ends escaped
        text = text.replace("\\r", "").replace("\\n", "\n")
    return _from_pem(_bytes_of(text), KEY_VARIABLE, password)


def _refuse_secret(given: str) -> None:
    """UsageError, which doesn't repeat it, for a key or a pin where the name of a key belongs.

    A command line stands in the process list and in the shell's history, so such a secret is known to others.
    """
    if "-----BEGIN" in given:
        fix = f"pass the path of the file, or the text in {KEY_VARIABLE}; others may have seen this one, so replace it"
        raise UsageError("--key", "the path of a PEM file or a key URI", "the text of a key", fix)
    if redact(given, {}, ()) != given:
        fix = f"put it in {PASSWORD_VARIABLE}; others may have seen this one, so change it"
        raise UsageError("--key", "a key URI without a secret", "one with a pin, password or token", fix)
    scheme = given.partition(":")[0]
    if scheme == "pkcs11" or (scheme not in KEY_SCHEMES and given.startswith(f"{scheme}://")):
        fix = f"name a PEM file or a URI of {', '.join(KEY_SCHEMES)}"
        raise UsageError("--key", "a key that can be reached", f"a URI of kind {scheme}", fix)


def load_trust(folder: Path) -> tuple[PublicKey, ...]:
    """Every `*.pub` of a folder, by name; UsageError if there is none or one is no usable public key."""
    fix = "name the folder that holds your trusted *.pub files (`safear-edit keygen` makes one)"
    if not folder.is_dir():
        raise UsageError(str(folder), "a folder of public keys", "a file" if folder.exists() else "nothing", fix)
    found = tuple(load_public(path) for path in sorted(folder.glob("*.pub")))
    if not found:
        raise UsageError(str(folder), "at least one *.pub file", "none", fix)
    return found


def load_public(path: Path) -> PublicKey:
    """One public PEM file; UsageError if it is none, or of a type or curve that OMS signatures don't use."""
    pem = _read(path)
    if b"PRIVATE KEY-----" in pem:
        raise UsageError(str(path), "a public key", "a private key", "move it away: this folder is meant to be shared")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(str(path), "a public key in PEM", "something else", "remove or replace it") from None
    _curve(key, str(path))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return PublicKey(path.stem, path, hashlib.sha256(public_pem(key)).hexdigest(), key)


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """The canonical PEM of a public key, whose sha256 is the key's hint."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _local(key: ec.EllipticCurvePrivateKey, origin: str, hint: str) -> SigningKey:
    return SigningKey(origin, hint, CryptoSigner(key), key.public_key())


def _remote(uri: str, public: str | None, pin: str | None) -> SigningKey:
    """A key that never leaves its KMS or HSM.

    The hand-over to securesystemslib is tested with a stand-in signer; the services themselves (awskms, gcpkms,
    azurekms) and an HSM were not exercised by this project's tests. Each needs securesystemslib's own extra.
    """
    if not public:
        fix = "export the public key from the service and set it to that file"
        raise UsageError(PUBLIC_VARIABLE, f"the path of the public key of {uri}", "nothing", fix)
    known = load_public(Path(public))

    def secret(name: str) -> str:
        if pin is None:
            raise UsageError(uri, f"the {name} in {PASSWORD_VARIABLE}", "nothing", "set it")
        return pin

    try:
        signer = Signer.from_priv_key_uri(uri, SSlibKey.from_crypto(known.key), secret)
    except Exception as error:  # a missing extra, no network, no token: each client has its own exceptions
        fix = f"install securesystemslib[{uri.partition(':')[0]}] and check the service's set-up"
        raise UsageError(uri, "a reachable signing key", type(error).__name__, fix) from error
    return SigningKey(uri, known.hint, signer, known.key)


def _from_pem(pem: bytes, where: str, password: str | None) -> SigningKey:
    """A private key from PEM bytes; the errors of the parser are replaced, for they may quote what they read."""
    try:
        key = load_pem_private_key(pem, _bytes_of(password) if password else None)
    except TypeError:
        if password:  # the only other reason for a TypeError: a password for a key that has none
            return _from_pem(pem, where, None)
        raise UsageError(where, f"its password in {PASSWORD_VARIABLE}", "none", "set that variable") from None
    except (ValueError, UnsupportedAlgorithm):
        if b"ENCRYPTED" in pem:
            fix = f"correct {PASSWORD_VARIABLE}"
            raise UsageError(where, "the password that opens the key", "a wrong one", fix) from None
        raise UsageError(
            where, "a private key in PEM", "something else", "make one with `safear-edit keygen`"
        ) from None
    _curve(key.public_key(), where)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return _local(key, where, hashlib.sha256(public_pem(key.public_key())).hexdigest())


def _bytes_of(text: str) -> bytes:
    """What stood in an environment variable; bytes that aren't UTF-8 are surrogates in the text."""
    return text.encode(errors="surrogateescape")


def _curve(key: object, where: str) -> None:
    """UsageError unless `key` is an elliptic-curve key that model-signing can verify."""
    curve = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else None
    if curve in HASHES:
        return
    got = f"curve {curve}" if curve else type(key).__name__.strip("_").removesuffix("PublicKey") + " key"
    raise UsageError(where, "an ECDSA key on P-256, P-384 or P-521", got, "make one with `safear-edit keygen`")


def _verifies(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, ec.ECDSA(HASHES[key.curve.name]()))
    except InvalidSignature:
        return False
    return True


def _read_private(path: Path) -> bytes:
    """Bytes of a private key file that nobody but its owner can read."""
    pem = _read(path)
    if os.name == "posix" and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        raise UsageError(str(path), "a key that only its owner can read", f"mode {mode:04o}", f"chmod 600 {path}")
    return pem


def _read(path: Path) -> bytes:
    """A small regular file; UsageError if there is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(str(path), "a key file", "a folder, pipe or device", "give the path of a PEM file")
        if path.stat().st_size > LARGEST_PEM:
            raise UsageError(str(path), "a PEM key", f"{path.stat().st_size} bytes", "is this the right file?")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(str(path), "a readable key file", error.strerror or "an error", "check the path") from None


def _write_new(paths: tuple[Path, Path], contents: tuple[bytes, bytes], modes: tuple[int, int]) -> None:
    """Create both files or none; never over an existing one, never readable by others even for a moment."""
    made: list[Path] = []
    try:
        for path, content, mode in zip(paths, contents, modes, strict=True):
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
                made.append(path)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(paths[0].parent)
    except OSError:
        for path in made:
            with suppress(OSError):
                path.unlink()
        raise
