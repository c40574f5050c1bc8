"""Check a signed model folder: who signed it, that nothing changed, and what the claims beside it say.

Two readers must agree. model-signing verifies `model.sig` against the folder; around it stand the checks that it
leaves out: no `.git` smuggled in, no empty directory, no wider list of ignored files, one weight file at least, and
claims about these very files, each under a trusted signature. A good signature on a model that failed its tests is
still a good signature: that is a warning in the result, for the caller to act on.
"""

from __future__ import annotations

import base64
import binascii
import re
import stat
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import model_signing

from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.files.strict import parse_json
from safear_edit.release.claims import REPORTS, REQUIRED, RESULT_OF, RESULTS, TEST_RESULT_TYPE
from safear_edit.release.keys import PublicKey, load_trust
from safear_edit.release.signing import (
    BUNDLE_TYPE,
    CLAIMS,
    OUTSIDE,
    PAYLOAD_TYPE,
    SIGNATURE,
    SIGNATURE_TYPE,
    STATEMENT_TYPE,
    foreign,
    hash_folder,
    hashing_config,
    pae,
    refuse_unsignable,
    root_digest,
)
from safear_edit.report.versions import upgraded

LARGEST_SIGNATURE = 64 << 20
"""Bytes of model.sig and of claims.jsonl that are read at most; four files make two kilobytes."""
SHOWN = 5
FRESH = "get a fresh copy from whoever signed it"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class UnknownKeyError(TrustError):
    """A signature of a key that is not among the trusted ones."""


@dataclass(frozen=True)
class Claim:
    """One line of claims.jsonl that verified: its type, what it says, and the trusted key that signed it."""

    type: str
    predicate: Mapping[str, Any]
    key: str


@dataclass(frozen=True)
class Verification:
    """What is known of a folder that verified.

    `warnings` is empty only for a model that passed all its tests, in files of ordinary modes; `ignored` names the
    foreign files that were left out because the caller said so, and the hub's links that were followed.
    """

    key: str
    hint: str
    files: Mapping[str, str]
    root: str
    claims: tuple[Claim, ...]
    result: str
    warnings: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def verify_folder(folder: Path, trust: Path, *, ignore_foreign: bool = False) -> Verification:
    """Verify `folder`, or what a link of this name leads to, against the public keys in the folder `trust`.

    ignore_foreign: leave out what git, a hub or an operating system put there (signing.FOREIGN), and follow the links
    of a hub's cache. It loosens nothing for the files that were signed.

    TrustError (exit 4), in one line that names the file and the digests, for any change to what was signed, a
    signature or claim that is missing, cut, of an untrusted key or about other files. UsageError if `folder` or
    `trust` can't be used at all, or the keys lie in the very folder: whoever made it chose them.
    """
    if folder.is_dir() and folder.resolve() in (home := trust.resolve(), *home.parents):
        got, fix = "a folder that came with it", "get the signer's *.pub file another way, and keep it elsewhere"
        raise UsageError(str(trust), f"keys from elsewhere than {folder}", got, fix)
    keys = load_trust(trust)
    folder = folder.resolve() if folder.is_dir() else folder
    strangers = foreign(folder)
    refuse_unsignable(folder, TrustError, strangers, links=ignore_foreign)
    path = folder / SIGNATURE
    text = _read(path, "sign it with `safear-edit apply --key FILE`, or don't trust it")
    statement, key = _open(text, keys, str(path))
    files, root = _signed_files(statement, str(path))
    if signed := [name for name in strangers if any(PurePosixPath(file).is_relative_to(name) for file in files)]:
        strangers = tuple(name for name in strangers if name not in signed)
        refuse_unsignable(folder, TrustError, strangers, links=ignore_foreign)
    if strangers and not ignore_foreign:
        _explain(folder, files, strangers)
    _check_contents(folder, key, files, strangers, links=ignore_foreign)
    claims = _read_claims(folder / CLAIMS, keys, files, key)
    result, warnings = _verdict(claims, str(folder / CLAIMS))
    _require_same_verdict(folder, result)
    links = [f"{name} (a link of a hub's cache, followed)" for name in files if (folder / name).is_symlink()]
    warnings += _modes(folder, (*files, *OUTSIDE))
    return Verification(key.name, key.hint, files, root, claims, result, warnings, (*strangers, *links))


def signature_of(folder: Path, trust: Path | None, *, ignore_foreign: bool = False) -> str:
    """What is known of a folder's signature, in words for a person; TrustError if it doesn't verify against `trust`.

    ignore_foreign: as `verify_folder`'s; what was left out is named.
    """
    if trust is None:
        signed = (folder / SIGNATURE).is_file()
        return "not verified (no --trust was given)" if signed else "none: the folder is unsigned"
    found = verify_folder(folder, trust, ignore_foreign=ignore_foreign)
    without = f", leaving out {', '.join(found.ignored)}" if found.ignored else ""
    return f"verified, by key {found.key} ({found.hint[:16]}){without}"


def _check_contents(
    folder: Path, key: PublicKey, files: Mapping[str, str], strangers: Sequence[str], *, links: bool
) -> None:
    """model-signing's own verdict, on our hashing configuration; its reasons are replaced by readable ones."""
    verifier = model_signing.verifying.Config()  # type: ignore[no-untyped-call]
    verifier.use_elliptic_key_verifier(public_key=key.path)
    try:
        verifier.set_hashing_config(hashing_config(strangers, links=links)).verify(folder, folder / SIGNATURE)
    except Exception as error:  # it lets parser, key and OS errors through as they are
        _explain(folder, files, strangers, links=links)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TrustError(str(folder), "a folder that model-signing verifies", reason, FRESH) from error


def _explain(folder: Path, signed: Mapping[str, str], strangers: Sequence[str], *, links: bool = False) -> None:
    """TrustError that says which files were changed, added, removed or renamed; returns if none was."""
    found = hash_folder(folder, strangers, links=links)
    changed = [
        f"{name} changed (signed {signed[name]}, found {found[name]})"
        for name in sorted(signed.keys() & found.keys())
        if signed[name] != found[name]
    ]
    added, removed = found.keys() - signed.keys(), signed.keys() - found.keys()
    renamed = _normalised(added, removed)
    differences = [
        *changed,
        *(f"{name} added" for name in sorted(added - set(renamed.values()))),
        *(f"{name} removed" for name in sorted(removed - set(renamed))),
        *(f"{name!a} is {new!a} here, the same name in another Unicode normalisation"
          for name, new in renamed.items()),
    ]  # fmt: skip
    fix = FRESH if len(differences) > len(renamed) else "copy it again with a program that keeps names as they are"
    if strangers and not links:
        fix = fix if differences else "remove what git, a hub or the system put there, or pass --ignore-foreign"
        differences += [f"{name} added, a foreign file" for name in _files_of(folder, strangers)]
    if differences:
        raise TrustError(str(folder), "the files that were signed", _some(differences), fix)


def _files_of(folder: Path, strangers: Sequence[str]) -> list[str]:
    """The files in foreign folders; a folder without any by itself."""
    found = []
    for name in strangers:
        below = [path for path in sorted((folder / name).rglob("*")) if not path.is_dir()]
        found += [path.relative_to(folder).as_posix() for path in below] or [name]
    return found


def _normalised(added: Collection[str], removed: Collection[str]) -> dict[str, str]:
    """Removed name → added name where the two differ only in how é is written (macOS takes it apart)."""
    composed = {unicodedata.normalize("NFC", name): name for name in added}
    pairs = ((name, composed.get(unicodedata.normalize("NFC", name))) for name in sorted(removed))
    return {name: new for name, new in pairs if new is not None}


def _modes(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """A line for each kind of file mode that a signature can't cover and nobody should take over."""
    modes = {name: (folder / name).stat().st_mode for name in sorted(names) if (folder / name).exists()}
    lines = []
    for bits, words in ((stat.S_ISUID | stat.S_ISGID, "setuid or setgid"), (stat.S_IWOTH, "writable by everyone")):
        if found := [name for name, mode in modes.items() if mode & bits]:
            lines.append(f"{words}: {_some(found)}; file modes are not signed, so set them yourself")
    return tuple(lines)


def _open(text: str, keys: Sequence[PublicKey], where: str) -> tuple[dict[str, Any], PublicKey]:
    """The statement in one sigstore bundle, after its signature was found good, and the trusted key that made it."""
    bundle = _json(text, where)
    envelope = _field(bundle, "dsseEnvelope", dict, where)
    material = _field(bundle, "verificationMaterial", dict, where)
    hint = _field(_field(material, "publicKey", dict, where), "hint", str, where)
    for name, owner, value in (("mediaType", bundle, BUNDLE_TYPE), ("payloadType", envelope, PAYLOAD_TYPE)):
        if _field(owner, name, str, where) != value:
            raise TrustError(where, f"{name} {value}", owner[name], FRESH)
    signatures = _field(envelope, "signatures", list, where)
    if len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise TrustError(where, "one signature", f"{len(signatures)}", FRESH)
    payload = _base64(_field(envelope, "payload", str, where), where)
    signature = _base64(_field(signatures[0], "sig", str, where), where)
    key = next((key for key in keys if key.hint == hint), None)
    if key is None:
        known = ", ".join(f"{key.name} ({key.hint[:16]}…)" for key in keys)
        got = f"one of key {hint[:16]}…"
        fix = "add its .pub file only if you trust it"
        raise UnknownKeyError(where, f"a signature of a trusted key: {known}", got, fix)
    if not key.verifies(signature, pae(payload)):
        raise TrustError(where, f"a signature of key {key.name}", "one that doesn't fit what is signed", FRESH)
    try:
        return _json(payload.decode(), where), key
    except UnicodeDecodeError:
        raise TrustError(where, "a statement in UTF-8", "other bytes", FRESH) from None


def _signed_files(statement: dict[str, Any], where: str) -> tuple[dict[str, str], str]:
    """File → sha256 and root digest of an OMS statement; TrustError unless it was made as `sign_folder` makes it."""
    predicate = _predicate(statement, SIGNATURE_TYPE, where)
    how = _field(predicate, "serialization", dict, where)
    for name, value in (("method", "files"), ("hash_type", "sha256"), ("allow_symlinks", False)):
        if how.get(name) != value:
            raise TrustError(where, f"serialization {name} {value}", str(how.get(name)), "sign it with safear-edit")
    ignored = how.get("ignore_paths", [])
    if not isinstance(ignored, list) or not {str(name) for name in ignored} <= OUTSIDE:
        expected = f"nothing unsigned but {', '.join(sorted(OUTSIDE))}"
        raise TrustError(where, expected, f"ignore_paths {ignored}", "ask for a signature that covers every file")
    files: dict[str, str] = {}
    for item in _field(predicate, "resources", list, where):
        name, digest = (_field(item, part, str, where) for part in ("name", "digest"))
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/") or name in files or item.get("algorithm") != "sha256":
            raise TrustError(where, "each file once, by its path inside the folder, with sha256", repr(name), FRESH)
        files[name] = _digest(digest, where)
    root = root_digest(files)
    if [s.get("digest") for s in _subjects(statement, where)] != [{"sha256": root}]:
        raise TrustError(where, f"root digest {root}", "another one", FRESH)
    return files, root


def _read_claims(
    path: Path, keys: Sequence[PublicKey], files: Mapping[str, str], signer: PublicKey
) -> tuple[Claim, ...]:
    """Every line of claims.jsonl: each verified, each about exactly these files, the required types once each.

    Those are what the release says of itself, so `signer`, whose key signed the files, must have signed them; anything
    else (an approval) may come from any trusted key.
    """
    text = _read(path, "ask whoever signed the model for its claims")
    claims = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        where = f"{path}:{number}"
        statement, key = _open(line, keys, where)
        kind = _field(statement, "predicateType", str, where)
        about = {
            _field(subject, "name", str, where): _field(subject, "digest", dict, where).get("sha256")
            for subject in _subjects(statement, where)
        }
        if about != files:
            raise TrustError(where, "a claim about this model", f"one about other files ({kind})", FRESH)
        if kind in REQUIRED and key.hint != signer.hint:
            expected = f"{kind} of the key that signed the files, {signer.name}"
            raise TrustError(where, expected, f"one of key {key.name}", FRESH)
        claims.append(Claim(kind, _predicate(statement, kind, where), key.name))
    kinds = [claim.type for claim in claims]
    for kind in REQUIRED:
        if kinds.count(kind) != 1:
            raise TrustError(str(path), f"one claim {kind}", f"{kinds.count(kind)}", FRESH)
    return tuple(claims)


def _verdict(claims: Sequence[Claim], where: str) -> tuple[str, tuple[str, ...]]:
    """The test result that the claims state, and a line for everything in it that isn't a pass."""
    predicate = next(claim.predicate for claim in claims if claim.type == TEST_RESULT_TYPE)
    result = predicate.get("result")
    if result not in RESULTS:
        raise TrustError(where, f"a test result of {', '.join(RESULTS)}", repr(result), FRESH)
    failed, warned = predicate.get("failedTests", []), predicate.get("warnedTests", [])
    if not (isinstance(failed, list) and isinstance(warned, list)):
        raise TrustError(where, "lists of test names", "something else", FRESH)
    warnings = [f"test result {result}"] if result != "PASSED" else []
    warnings += [f"failed: {test}" for test in failed] + [f"inconclusive or weak: {test}" for test in warned]
    return result, tuple(warnings)


def _require_same_verdict(folder: Path, result: str) -> None:
    """TrustError where the claims' test result is not that of the report which was signed with them."""
    path = folder / REPORTS[0]
    try:
        report = upgraded(parse_json(path.read_text(encoding="utf-8"), str(path)).data) if path.is_file() else None
    except (SpecError, UnicodeDecodeError):  # no report of ours
        return
    verdict = report.get("verdict") if isinstance(report, dict) else None
    status = verdict.get("status") if isinstance(verdict, dict) else None
    stated = next((word for said, word in RESULT_OF.items() if said == status), None)
    if stated not in (None, result):
        raise TrustError(str(folder / CLAIMS), f"the test result of {path.name}, {stated}", result, FRESH)


def _predicate(statement: dict[str, Any], kind: str, where: str) -> dict[str, Any]:
    for name, value in (("_type", STATEMENT_TYPE), ("predicateType", kind)):
        if statement.get(name) != value:
            raise TrustError(where, f"{name} {value}", str(statement.get(name)), FRESH)
    predicate: dict[str, Any] = _field(statement, "predicate", dict, where)
    return predicate


def _subjects(statement: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The subjects of a statement, no name twice."""
    subjects: list[dict[str, Any]] = _field(statement, "subject", list, where)
    names = [_field(subject, "name", str, where) for subject in subjects]
    if len(set(names)) < len(names):
        raise TrustError(where, "each subject once", "one twice", FRESH)
    return subjects


def _field(owner: Any, name: str, kind: type, where: str) -> Any:
    """`owner[name]` if it is of `kind`; hostile files have anything anywhere."""
    value = owner.get(name) if isinstance(owner, dict) else None
    if not isinstance(value, kind):
        raise TrustError(where, f"a signed statement with '{name}'", "something else", FRESH)
    return value


def _digest(text: str, where: str) -> str:
    if not _SHA256.fullmatch(text):
        raise TrustError(where, "64 hexadecimal digits", repr(text[:80]), FRESH)
    return text


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise TrustError(where, "base64", "something else", FRESH) from None


def _json(text: str, where: str) -> dict[str, Any]:
    """A JSON object; what is wrong with it (cut short, keys twice, nested too deep) becomes a TrustError."""
    try:
        data = parse_json(text, where).data
    except SpecError as error:
        raise TrustError(
            where, "a whole signature in JSON", f"text that is cut or damaged ({error.got})", FRESH
        ) from None
    if not isinstance(data, dict):
        raise TrustError(where, "a JSON object", type(data).__name__, FRESH)
    return data


def _read(path: Path, fix: str) -> str:
    """Text of a file in the folder, which is known to hold plain files only."""
    if not path.exists():
        raise TrustError(str(path), "a file", "nothing", fix)
    if (size := path.stat().st_size) > LARGEST_SIGNATURE:
        raise TrustError(str(path), f"at most {LARGEST_SIGNATURE} bytes", f"{size}", FRESH)
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise TrustError(str(path), "text in UTF-8", "other bytes", FRESH) from None


def _some(items: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more
