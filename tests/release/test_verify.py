"""verify.py: a good folder verifies; each way to tamper with one is refused in words that name what was done."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_signing
import pytest
import rfc8785

from safear_edit.errors import TrustError, UsageError
from safear_edit.release import keys, signing
from safear_edit.release.claims import PROVENANCE_TYPE, TEST_RESULT_TYPE, ClaimInputs, write_claims
from safear_edit.release.signing import CLAIMS, SIGNATURE, sign_folder, sign_statement
from safear_edit.release.verify import verify_folder
from tests.release.test_claims import inputs


class Release:
    """A signed model, the key that signed it, and the folder of trusted keys."""

    def __init__(self, root: Path, name: str = "model", about: ClaimInputs | None = None) -> None:
        self.folder, self.trust = root / name, root / f"{name}-trust"
        (self.folder / "vq").mkdir(parents=True)
        (self.folder / "gpt.safetensors").write_bytes(f"weights of {name}".encode())
        (self.folder / "vq" / "vq.safetensors").write_bytes(b"more weights")
        (self.folder / "report.json").write_text("{}")
        self.key = keys.throwaway(self.trust)
        write_claims(self.folder, sign_folder(self.folder, self.key), about or inputs(), self.key)

    def lines(self, name: str = CLAIMS) -> list[str]:
        return (self.folder / name).read_text().splitlines()

    def write_lines(self, lines: list[str], name: str = CLAIMS) -> None:
        (self.folder / name).write_text("\n".join(lines) + "\n")

    def statement(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(
            base64.b64decode(json.loads(self.lines(SIGNATURE)[0])["dsseEnvelope"]["payload"])
        )
        return decoded

    def sign_again(self, statement: dict[str, Any]) -> None:
        """As someone would who holds a trusted key but doesn't follow the rules."""
        self.write_lines([sign_statement(statement, self.key)], SIGNATURE)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


def test_a_good_folder_verifies(release: Release) -> None:
    found = verify_folder(release.folder, release.trust)
    assert found.key.startswith("throwaway-") and found.hint == release.key.hint
    assert set(found.files) == {"gpt.safetensors", "vq/vq.safetensors", "report.json"}
    assert {claim.type for claim in found.claims} == {PROVENANCE_TYPE, TEST_RESULT_TYPE}
    assert found.result == "WARNED"
    assert found.warnings == ("test result WARNED", "inconclusive or weak: preservation/objects")


def test_moving_and_renaming_the_folder_changes_nothing(release: Release, tmp_path: Path) -> None:
    shutil.copytree(release.folder, tmp_path / "elsewhere")
    assert (
        verify_folder(tmp_path / "elsewhere", release.trust).root == verify_folder(release.folder, release.trust).root
    )


@pytest.mark.parametrize("verdict", ["PASSED", "FAILED"])
def test_a_failed_test_is_a_warning_under_a_good_signature(tmp_path: Path, verdict: Any) -> None:
    test = "erasure/picasso/direct"
    release = Release(tmp_path, about=replace(inputs(), verdict=verdict, tests={test: verdict}))
    found = verify_folder(release.folder, release.trust)
    assert found.result == verdict
    assert found.warnings == (() if verdict == "PASSED" else ("test result FAILED", f"failed: {test}"))


@pytest.mark.parametrize(("status", "agrees"), [("INCONCLUSIVE", True), ("inconclusive", True), ("FAIL", False)])
def test_a_test_result_that_its_own_report_contradicts_is_refused(tmp_path: Path, status: str, agrees: bool) -> None:
    """Whoever holds the key can sign both; a reader who sees only one of them must not be misled."""
    release = Release(tmp_path)
    report = {"schema_version": 1 if status.islower() else 3, "verdict": {"status": status, "criteria": []}}
    (release.folder / "report.json").write_text(json.dumps(report))
    write_claims(release.folder, sign_folder(release.folder, release.key, replace=True), inputs(), release.key)
    if agrees:
        assert verify_folder(release.folder, release.trust).result == "WARNED"
    else:
        with pytest.raises(TrustError, match=r"the test result of report\.json, FAILED, got WARNED"):
            verify_folder(release.folder, release.trust)


def flip(folder: Path) -> None:
    data = bytearray((folder / "gpt.safetensors").read_bytes())
    data[3] ^= 1
    (folder / "gpt.safetensors").write_bytes(data)


def swap(folder: Path) -> None:
    one, two = folder / "gpt.safetensors", folder / "vq" / "vq.safetensors"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def smuggle(name: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")

    return add


def link(folder: Path) -> None:
    (folder / "report.json").unlink()
    (folder / "report.json").symlink_to("/etc/hostname")


TAMPERING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a byte flipped": (flip, r"gpt.safetensors changed \(signed [0-9a-f]{64}, found [0-9a-f]{64}\)"),
    "two swapped": (swap, "gpt.safetensors changed .* vq/vq.safetensors changed"),
    "file added": (smuggle("evil.py"), "evil.py added"),
    "file removed": (lambda folder: (folder / "report.json").unlink(), "report.json removed"),
    "renamed": (lambda f: (f / "report.json").rename(f / "r.json"), "r.json added; report.json removed"),
    ".git": (smuggle(".git/config"), ".git/config added"),
    ".github": (smuggle(".github/x.yml"), ".github/x.yml added"),
    ".gitattributes": (smuggle(".gitattributes"), ".gitattributes added"),
    "terminal escape": (smuggle("a\x1b[2Jb\nc"), r"a\\x1b\[2Jb\\nc added"),
    "empty directory": (lambda folder: (folder / "empty").mkdir(), "an empty directory"),
    "symlink": (link, "a symbolic link"),
    "fifo": (lambda folder: os.mkfifo(folder / "pipe"), "a pipe"),
    "signature removed": (lambda folder: (folder / SIGNATURE).unlink(), "model.sig: expected a file, got nothing"),
    "signature cut": (lambda f: os.truncate(f / SIGNATURE, 500), "model.sig: .* cut or damaged"),
    "signature emptied": (lambda f: os.truncate(f / SIGNATURE, 0), "model.sig: .* cut or damaged"),
    "signature binary": (lambda f: (f / SIGNATURE).write_bytes(b"\xff\xfe"), "text in UTF-8"),
    "signature of JSON": (lambda f: (f / SIGNATURE).write_text("[]"), "a JSON object, got list"),
    "claims removed": (lambda folder: (folder / CLAIMS).unlink(), "claims.jsonl: expected a file, got nothing"),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_refused_and_named(release: Release, how: str) -> None:
    spoil, message = TAMPERING[how]
    spoil(release.folder)
    with pytest.raises(TrustError, match=message) as caught:
        verify_folder(release.folder, release.trust)
    assert str(caught.value).isprintable() and caught.value.exit_code == 4


def test_many_changes_are_summed_up(release: Release) -> None:
    for number in range(12):
        (release.folder / f"extra{number:02}.txt").write_text("x")
    with pytest.raises(TrustError, match=r"extra04.txt added; and 7 more"):
        verify_folder(release.folder, release.trust)


@pytest.mark.parametrize("place", [".", "keys"])
def test_keys_that_came_with_the_folder_are_no_trust(place: str, tmp_path: Path) -> None:
    """Whoever swapped the weights signed them again, and put a key of their own beside them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "gpt.safetensors").write_bytes(b"other weights")
    key = keys.throwaway(folder / place)
    write_claims(folder, sign_folder(folder, key), inputs(), key)
    with pytest.raises(UsageError, match=r"expected keys from elsewhere than .*, got a folder that came with it"):
        verify_folder(folder, folder / place)
    (tmp_path / "link").symlink_to(folder / place)
    with pytest.raises(UsageError, match="keys from elsewhere"):
        verify_folder(folder, tmp_path / "link")


def test_an_untrusted_key_is_refused(release: Release, tmp_path: Path) -> None:
    other = keys.throwaway(tmp_path / "others")
    with pytest.raises(
        TrustError, match=f"trusted key: throwaway-{other.hint[:8]}.*got one of key {release.key.hint[:16]}"
    ):
        verify_folder(release.folder, tmp_path / "others")


def test_rotation_several_trusted_keys(release: Release) -> None:
    keys.throwaway(release.trust)
    assert verify_folder(release.folder, release.trust).hint == release.key.hint


def test_a_borrowed_hint_does_not_help(release: Release, tmp_path: Path) -> None:
    """Signed by another key, and claiming the trusted one's hint."""
    forger = replace(keys.throwaway(tmp_path / "others"), hint=release.key.hint)
    sign_folder(release.folder, forger, replace=True)
    with pytest.raises(TrustError, match="doesn't fit what is signed"):
        verify_folder(release.folder, release.trust)


def test_a_changed_payload_is_refused(release: Release) -> None:
    flip(release.folder)
    statement = release.statement()
    files = signing.hash_folder(release.folder)
    statement["subject"][0]["digest"]["sha256"] = signing.root_digest(files)
    for item in statement["predicate"]["resources"]:
        item["digest"] = files[item["name"]]
    bundle = json.loads(release.lines(SIGNATURE)[0])
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(rfc8785.dumps(statement)).decode()
    release.write_lines([json.dumps(bundle)], SIGNATURE)
    with pytest.raises(TrustError, match="doesn't fit what is signed"):
        verify_folder(release.folder, release.trust)


def edited(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(statement: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        target: Any = statement
        for part in parents:
            target = target[int(part)] if part.isdecimal() else target[part]
        target[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited("predicate.serialization.ignore_paths", [SIGNATURE, "evil"]), "nothing unsigned but .* ignore_paths"),
        (edited("predicate.serialization.ignore_paths", ["."]), "ignore_paths"),
        (edited("predicate.serialization.ignore_paths", "model.sig"), "ignore_paths"),
        (edited("predicate.serialization.allow_symlinks", True), "allow_symlinks False"),
        (edited("predicate.serialization.method", "shards"), "method files"),
        (edited("predicate.serialization.hash_type", "md5"), "hash_type sha256"),
        (edited("predicate.resources.0.name", "../outside"), r"inside the folder.*'../outside'"),
        (edited("predicate.resources.0.name", "/etc/passwd"), "inside the folder"),
        (edited("predicate.resources.0.name", "report.json"), "each file once"),
        (edited("predicate.resources.0.digest", "ff"), "64 hexadecimal digits"),
        (edited("predicate.resources", {}), "'resources'"),
        (edited("subject.0.digest", {"sha256": "0" * 64}), "root digest"),
        (edited("subject", []), "root digest"),
        (edited("predicateType", TEST_RESULT_TYPE), "predicateType"),
        (edited("_type", "x"), "_type"),
    ],
)
def test_a_trusted_key_cannot_bend_the_rules(release: Release, edit: Callable[[Any], None], message: str) -> None:
    statement = release.statement()
    edit(statement)
    release.sign_again(statement)
    with pytest.raises(TrustError, match=message):
        verify_folder(release.folder, release.trust)


def test_an_empty_model_is_refused_even_if_signed(release: Release) -> None:
    for name in ("gpt.safetensors", "report.json", "vq/vq.safetensors"):
        (release.folder / name).unlink()
    (release.folder / "vq").rmdir()
    statement = release.statement()
    statement["predicate"]["resources"] = []
    statement["subject"][0]["digest"]["sha256"] = signing.root_digest({})
    release.sign_again(statement)
    with pytest.raises(TrustError, match="at least one weight file"):
        verify_folder(release.folder, release.trust)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_removed_claim_is_missed(release: Release, kept: int) -> None:
    missing = (TEST_RESULT_TYPE, PROVENANCE_TYPE)[kept]
    release.write_lines([release.lines()[kept]])
    with pytest.raises(TrustError, match=f"one claim {missing}, got 0"):
        verify_folder(release.folder, release.trust)


def test_two_results_for_one_model_are_ambiguous(release: Release) -> None:
    release.write_lines([*release.lines(), release.lines()[1]])
    with pytest.raises(TrustError, match=f"one claim {TEST_RESULT_TYPE}, got 2"):
        verify_folder(release.folder, release.trust)


@pytest.mark.parametrize("junk", ["", "junk", "{}", '{"a":1,"a":2}', "[" * 20_000])
def test_a_junk_line_is_refused(release: Release, junk: str) -> None:
    release.write_lines([*release.lines(), junk])
    with pytest.raises(TrustError, match=r"claims.jsonl:3"):
        verify_folder(release.folder, release.trust)


def test_claims_of_another_model_are_refused(release: Release, tmp_path: Path) -> None:
    other = Release(tmp_path, "other", replace(inputs(), verdict="PASSED", tests={}))
    shutil.copy(next(other.trust.glob("*.pub")), release.trust)
    release.write_lines(other.lines())
    with pytest.raises(TrustError, match=r"claims.jsonl:1: expected a claim about this model"):
        verify_folder(release.folder, release.trust)


def test_a_claim_of_an_untrusted_key_is_refused(release: Release, tmp_path: Path) -> None:
    stranger = keys.throwaway(tmp_path / "others")
    write_claims(release.folder, sign_folder(release.folder, release.key, replace=True), inputs(), stranger)
    with pytest.raises(TrustError, match=r"claims.jsonl:1: expected a signature of a trusted key"):
        verify_folder(release.folder, release.trust)


@pytest.mark.parametrize("line", [0, 1])
def test_what_a_release_says_of_itself_is_signed_by_its_own_key(release: Release, line: int) -> None:
    """Any other trusted key, an approver's for instance, can't put words into the signer's mouth."""
    other = keys.throwaway(release.trust)
    own = release.lines()
    write_claims(release.folder, sign_folder(release.folder, release.key, replace=True), inputs(), other)
    forged = release.lines()[line]
    release.write_lines([forged if i == line else text for i, text in enumerate(own)])
    with pytest.raises(TrustError, match=rf"claims.jsonl:{line + 1}: .* of the key that signed the files, throwaway-"):
        verify_folder(release.folder, release.trust)
    release.write_lines([*own, forged])
    with pytest.raises(TrustError, match=rf"claims.jsonl:3: .* got one of key throwaway-{other.hint[:8]}"):
        verify_folder(release.folder, release.trust)


def test_a_further_claim_of_another_trusted_key_is_kept(release: Release) -> None:
    files = verify_folder(release.folder, release.trust).files
    reviewer = keys.throwaway(release.trust)
    review = {
        "_type": signing.STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in files.items()],
        "predicateType": "https://example.com/review/v1",
        "predicate": {"by": "someone"},
    }
    release.write_lines([*release.lines(), sign_statement(review, reviewer)])
    found = verify_folder(release.folder, release.trust)
    assert found.claims[2].predicate == {"by": "someone"}
    assert found.claims[2].key == f"throwaway-{reviewer.hint[:8]}"


def test_a_path_that_is_no_folder_is_the_callers_mistake(release: Release, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a model's folder"):
        verify_folder(tmp_path / "absent", release.trust)
    with pytest.raises(UsageError, match="public keys"):
        verify_folder(release.folder, tmp_path / "absent")


# -- what others leave in a folder, and how folders are reached ------------------------------------------------------


def test_through_a_symbolic_link_to_the_folder(release: Release, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(release.folder)
    assert verify_folder(tmp_path / "link", release.trust) == verify_folder(release.folder, release.trust)


FOREIGN = (
    ".DS_Store",
    ".cache/huggingface/download/a.metadata",
    ".git/config",
    "vq/._vq.safetensors",
    ".gitattributes",
)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_named_and_may_be_ignored(release: Release, name: str) -> None:
    clean = verify_folder(release.folder, release.trust)
    (release.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (release.folder / name).write_text("*.safetensors filter=lfs -text")
    with pytest.raises(TrustError, match=f"{name} added, a foreign file; .*--ignore-foreign"):
        verify_folder(release.folder, release.trust)
    found = verify_folder(release.folder, release.trust, ignore_foreign=True)
    assert found.files == clean.files and len(found.ignored) == 1 and name.startswith(found.ignored[0])


def test_an_empty_foreign_folder_is_foreign(release: Release) -> None:
    (release.folder / ".git" / "refs" / "tags").mkdir(parents=True)
    with pytest.raises(TrustError, match=r".git added, a foreign file"):
        verify_folder(release.folder, release.trust)
    assert verify_folder(release.folder, release.trust, ignore_foreign=True).ignored == (".git",)


def test_ignoring_what_is_foreign_loosens_nothing_else(release: Release) -> None:
    smuggle(".DS_Store")(release.folder)
    smuggle("evil.py")(release.folder)
    for ignore in (False, True):
        with pytest.raises(TrustError, match=r"evil.py added"):
            verify_folder(release.folder, release.trust, ignore_foreign=ignore)
    (release.folder / "evil.py").unlink()
    flip(release.folder)
    with pytest.raises(TrustError, match=r"gpt.safetensors changed"):
        verify_folder(release.folder, release.trust, ignore_foreign=True)


def test_a_signed_file_with_a_foreign_name_counts(tmp_path: Path) -> None:
    release = Release(tmp_path)
    smuggle(".gitignore")(release.folder)
    write_claims(release.folder, sign_folder(release.folder, release.key, replace=True), inputs(), release.key)
    assert ".gitignore" in verify_folder(release.folder, release.trust).files
    (release.folder / ".gitignore").write_text("y")
    for ignore in (False, True):
        with pytest.raises(TrustError, match=r".gitignore changed"):
            verify_folder(release.folder, release.trust, ignore_foreign=ignore)


def hub_cache(release: Release, root: Path) -> Path:
    """The release as huggingface_hub keeps it: snapshots/REVISION/ full of links to blobs/."""
    snapshot, blobs = root / "hub" / "snapshots" / "abc", root / "hub" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in release.folder.rglob("*") if p.is_file())):
        shutil.copyfile(path, blobs / str(number))
        link = snapshot / path.relative_to(release.folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    return snapshot


def test_links_of_a_hub_cache_are_followed_when_asked(release: Release, tmp_path: Path) -> None:
    snapshot = hub_cache(release, tmp_path)
    with pytest.raises(TrustError, match=r"a symbolic link; pass --ignore-foreign"):
        verify_folder(snapshot, release.trust)
    found = verify_folder(snapshot, release.trust, ignore_foreign=True)
    assert found.files == verify_folder(release.folder, release.trust).files and len(found.ignored) == len(found.files)
    (snapshot / "report.json").unlink()
    (snapshot / "report.json").symlink_to("/etc/hostname")
    with pytest.raises(TrustError, match=r"a symbolic link"):
        verify_folder(snapshot, release.trust, ignore_foreign=True)


def test_a_changed_blob_of_a_hub_cache_is_refused(release: Release, tmp_path: Path) -> None:
    snapshot = hub_cache(release, tmp_path)
    (snapshot / "gpt.safetensors").resolve().write_bytes(b"other")
    with pytest.raises(TrustError, match=r"gpt.safetensors changed"):
        verify_folder(snapshot, release.trust, ignore_foreign=True)


def test_the_git_attributes_of_a_release_travel_with_it(tmp_path: Path) -> None:
    release = Release(tmp_path)
    (release.folder / ".gitattributes").write_bytes(b"* -text\n")
    found = verify_folder(release.folder, release.trust)
    assert not found.ignored and ".gitattributes" not in found.files
    stock = model_signing.verifying.Config()
    stock.use_elliptic_key_verifier(public_key=next(release.trust.glob("*.pub")))
    stock.verify(release.folder, release.folder / SIGNATURE)


def test_a_name_in_another_normalisation_is_told_as_that(tmp_path: Path) -> None:
    release = Release(tmp_path)
    (release.folder / "\u00e9.txt").write_text("x")
    write_claims(release.folder, sign_folder(release.folder, release.key, replace=True), inputs(), release.key)
    verify_folder(release.folder, release.trust)
    (release.folder / "\u00e9.txt").rename(release.folder / "e\u0301.txt")
    with pytest.raises(TrustError, match=r"same name in another Unicode normalisation.*keeps names") as caught:
        verify_folder(release.folder, release.trust)
    assert "added" not in str(caught.value) and "removed" not in str(caught.value)


@pytest.mark.parametrize(("mode", "words"), [(0o4755, "setuid"), (0o2755, "setuid"), (0o666, "writable by everyone")])
def test_dangerous_modes_are_warned_of(release: Release, mode: int, words: str) -> None:
    before = verify_folder(release.folder, release.trust).warnings
    (release.folder / "report.json").chmod(mode)
    (warning,) = set(verify_folder(release.folder, release.trust).warnings) - set(before)
    assert words in warning and "report.json" in warning
