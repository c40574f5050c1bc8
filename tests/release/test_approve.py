"""An approval is one more signed claim about the same files; it changes none of them and can't be moved or forged."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safear_edit.errors import TrustError, UsageError
from safear_edit.files import rundir
from safear_edit.files.atomic import write_atomic
from safear_edit.release import keys
from safear_edit.release.approve import APPROVAL_TYPE, approvals, approve
from safear_edit.release.signing import CLAIMS, SIGNATURE, hash_folder
from safear_edit.release.verify import verify_folder
from tests.release.test_verify import Release


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


def test_a_release_is_not_approved_until_somebody_does(release: Release) -> None:
    before, signature = hash_folder(release.folder), (release.folder / SIGNATURE).read_bytes()
    verified = verify_folder(release.folder, release.trust)
    assert approvals(verified) == ()
    given = approve(release.folder, verified, release.key, name=" Ada Example ", role="content safety board", note="ok")
    (found,) = approvals(verify_folder(release.folder, release.trust))
    assert (found.name, found.role, found.note, found.when) == ("Ada Example", "content safety board", "ok", given.when)
    assert hash_folder(release.folder) == before and (release.folder / SIGNATURE).read_bytes() == signature


def test_an_approver_has_a_key_of_their_own(release: Release, tmp_path: Path) -> None:
    key = keys.throwaway(tmp_path / "board")
    approve(release.folder, verify_folder(release.folder, release.trust), key, name="Ada", role="board")
    with pytest.raises(TrustError, match="a signature of a trusted key"):
        verify_folder(release.folder, release.trust)
    for path in (tmp_path / "board").iterdir():
        shutil.copy(path, release.trust)
    (found,) = approvals(verify_folder(release.folder, release.trust))
    assert found.key != verify_folder(release.folder, release.trust).key


def test_an_approval_of_other_files_is_refused(release: Release, tmp_path: Path) -> None:
    other = Release(tmp_path, "other")
    approve(other.folder, verify_folder(other.folder, other.trust), release.key, name="Ada", role="board")
    release.write_lines([*release.lines(), other.lines()[-1]])
    with pytest.raises(TrustError, match="about other files"):
        verify_folder(release.folder, release.trust)


def test_approvals_add_up(release: Release) -> None:
    for name in ("Ada", "Ben"):
        verified = verify_folder(release.folder, release.trust)
        approve(release.folder, verified, release.key, name=name, role="board")
    found = verify_folder(release.folder, release.trust)
    assert [one.name for one in approvals(found)] == ["Ada", "Ben"]
    assert [claim.type for claim in found.claims].count(APPROVAL_TYPE) == 2
    release.write_lines([*release.lines(), release.lines()[-1]])
    assert [one.name for one in approvals(verify_folder(release.folder, release.trust))] == ["Ada", "Ben"], "a copy"


def test_approvals_at_once_are_all_kept(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads the claims before another has written, unless it waits."""

    def slowly(path: Path, data: str) -> None:
        time.sleep(0.1)
        write_atomic(path, data)

    monkeypatch.setattr("safear_edit.release.approve.write_atomic", slowly)
    verified, names = verify_folder(release.folder, release.trust), ["Ada", "Ben", "Cem", "Dot"]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: approve(release.folder, verified, release.key, name=name, role="board"), names))
    assert {one.name for one in approvals(verify_folder(release.folder, release.trust))} == {*names}
    assert not list(release.folder.parent.glob(".*")), "nothing is left beside it"


def test_a_folder_on_which_a_run_is_at_work_is_not_approved(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "WAIT", 0.05)
    verified = verify_folder(release.folder, release.trust)
    (release.folder / "recipe.json").write_text("{}")  # a folder of ours, which a run may replace
    with (
        rundir.opened(release.folder, overwrite=True),
        pytest.raises(UsageError, match="model: expected no other command at work on this folder, got one; wait"),
    ):
        approve(release.folder, verified, release.key, name="Ada", role="board")
    assert len(release.lines()) == 2


@pytest.mark.parametrize(("name", "role"), [("", "board"), ("Ada", " "), ("A" * 501, "board"), ("Ada\x1b[0m", "board")])
def test_who_approves_must_be_said(release: Release, name: str, role: str) -> None:
    verified, before = verify_folder(release.folder, release.trust), (release.folder / CLAIMS).read_bytes()
    with pytest.raises(UsageError, match="printable characters"):
        approve(release.folder, verified, release.key, name=name, role=role)
    assert (release.folder / CLAIMS).read_bytes() == before
