"""approve: the release is verified first, and verify tells who approved what and when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from safear_edit.cli import main
from safear_edit.release import keys
from safear_edit.release.approve import APPROVAL_TYPE
from safear_edit.release.claims import statement_about, write_claims
from safear_edit.release.signing import CLAIMS, SIGNATURE, sign_folder, sign_statement
from safear_edit.release.verify import verify_folder
from tests.release.test_claims import inputs
from tests.release.test_verify import Release

ADA = ("--name", "Ada Example", "--role", "safety board")


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """Signed with a key that is kept, unlike the other tests'."""
    made = Release(tmp_path)
    pair = keys.generate(tmp_path / "kept", "safear", None)
    signer = keys.find_signer(pair.private, {})
    assert signer is not None
    for name in (SIGNATURE, CLAIMS):
        (made.folder / name).unlink()
    write_claims(made.folder, sign_folder(made.folder, signer), inputs(), signer)
    shutil.copy(pair.public, made.trust)
    return made


def private(release: Release) -> Path:
    return release.trust.parent / "kept" / "safear.key"


def test_approved_by_whom_and_when(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    verify = ["verify", str(release.folder), "--trust", str(release.trust)]
    assert main.run(verify) == 0 and "not approved: nobody" in capsys.readouterr().out
    words = ["approve", str(release.folder), *ADA, "--note", "minis only", "--key", str(private(release))]
    assert main.run(words) == 0
    said = capsys.readouterr().out
    assert "approved by Ada Example, safety board, 2" in said and "trust folder" in said
    assert main.run(verify) == 0
    shown = capsys.readouterr().out
    assert "approved by Ada Example, safety board, 2" in shown and ": minis only" in shown
    assert "not approved" not in shown and "the key that signed the release: minis only" in shown
    assert main.run([*verify, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["approvals"]
    assert (found["name"], found["role"], found["note"]) == ("Ada Example", "safety board", "minis only")


def test_names_of_files_and_keys_move_no_cursor(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    (public,) = (path for path in release.trust.iterdir() if path.stem == "safear")
    public.rename(public.with_name("a\x1b[2Jkey.pub"))
    (release.folder / "._\x1b]0;title\x07").write_text("a system's own")
    (release.folder / "report.json").chmod(0o666)
    words = ["verify", str(release.folder), "--trust", str(release.trust), "--ignore-foreign"]
    assert main.run(words) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert r"as signed by a\x1b[2Jkey (key" in out and r"ignored: ._\x1b]0;title\x07" in out


def test_a_changed_release_is_not_approved(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    (release.folder / "added.txt").write_text("new")
    before = release.lines()
    assert main.run(["approve", str(release.folder), *ADA, "--key", str(private(release))]) == 4
    assert release.lines() == before and "added.txt" in capsys.readouterr().err


def test_a_key_that_did_not_sign_needs_trust(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = keys.generate(tmp_path / "board", "board", None)
    words = ["approve", str(release.folder), *ADA, "--key", str(pair.private)]
    assert main.run(words) == 4 and len(release.lines()) == 2
    assert "with --trust" in capsys.readouterr().err
    assert main.run([*words, "--trust", str(release.trust), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == pair.hint and len(release.lines()) == 3


def test_no_key_is_one_line(
    release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(keys.KEY_VARIABLE, raising=False)
    assert main.run(["approve", str(release.folder), *ADA]) == 2
    assert "--key" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "\x1b[2J", "x" * 501, "\udcff"])
def test_a_name_that_is_none_is_one_line_and_nothing_is_signed(
    release: Release, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = release.lines()
    words = ["approve", str(release.folder), "--name", name, "--role", "r", "--key", str(private(release))]
    assert main.run(words) == 2 and release.lines() == before
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "--name" in said and said.strip().isprintable()


@pytest.mark.parametrize(
    "change",
    [{"note": "fine\n::error::x"}, {"approver": {"name": "\x1b[2Jx", "role": "r"}}, {"approver": "Ada"},
     {"approvedOn": 3}, {"note": "x" * 501}, {"approver": {"name": "Ada"}}],
)  # fmt: skip
def test_an_approval_that_a_trusted_key_bent_is_one_line(
    release: Release, capsys: pytest.CaptureFixture[str], change: dict[str, object]
) -> None:
    signer = keys.find_signer(private(release), {})
    assert signer is not None
    files = verify_folder(release.folder, release.trust).files
    plain = {"approver": {"name": "Ada", "role": "r"}, "note": "", "approvedOn": "2026-01-01T00:00:00Z"}
    line = sign_statement(statement_about(files, APPROVAL_TYPE, {**plain, **change}), signer)
    (release.folder / CLAIMS).write_text("\n".join([*release.lines(), line]) + "\n")
    assert main.run(["verify", str(release.folder), "--trust", str(release.trust)]) == 4
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "approval" in said and said.strip().isprintable()
