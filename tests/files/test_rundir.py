"""A run's folder: skipping what is done, one process at a time, whole files or none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safear_edit.errors import UsageError
from safear_edit.files import rundir
from safear_edit.files.atomic import digest_of, json_digest, write_atomic


def _step(run: rundir.RunDir, inputs: str = "a", text: str = "made") -> bool:
    return run.step("one", inputs, ["one.txt"], lambda: (run / "one.txt").write_text(text) and None)


def test_a_finished_step_is_skipped_also_by_the_next_process(tmp_path: Path) -> None:
    with rundir.opened(tmp_path / "out") as run:
        assert _step(run)
    with rundir.opened(tmp_path / "out") as run:
        assert not _step(run, text="again")
        assert (run / "one.txt").read_text() == "made"


def test_other_inputs_a_changed_file_or_a_lost_journal_make_it_again(tmp_path: Path) -> None:
    with rundir.opened(tmp_path / "out") as run:
        _step(run)
        assert _step(run, inputs="b")
        (run / "one.txt").write_text("meddled")
        assert _step(run, inputs="b")
        (run / rundir.JOURNAL).write_text("{ half a jour")
        assert _step(run, inputs="b")


def test_a_step_that_fails_is_not_done(tmp_path: Path) -> None:
    def half() -> None:
        (tmp_path / ".out.run" / "one.txt").write_text("half")
        raise OSError("disk")

    with rundir.opened(tmp_path / "out") as run:
        with pytest.raises(OSError, match="disk"):
            run.step("one", "a", ["one.txt"], half)
        assert not run.done("one", "a")
        with pytest.raises(RuntimeError, match="two"):
            run.step("two", "a", ["two.txt"], lambda: None)


def test_digest_depends_on_what_was_written(tmp_path: Path) -> None:
    with rundir.opened(tmp_path / "out") as run:
        _step(run)
        before = run.digest("one")
        _step(run, inputs="b", text="other")
        assert run.digest("one") != before
    assert digest_of("ab", "c") != digest_of("a", "bc")


def test_files_of_a_pattern_are_noted_and_a_lost_one_is_made_again(tmp_path: Path) -> None:
    def make() -> None:
        for name in ("one.txt", "sheet-a.png", "sheet-b.png"):
            (run / name).write_text(name)

    with rundir.opened(tmp_path / "out") as run:
        patterns = ["one.txt", "sheet-*.png"]
        assert run.step("draw", "a", patterns, make) and not run.step("draw", "a", patterns, make)
        assert run.files("draw") == ("one.txt", "sheet-a.png", "sheet-b.png")
        (run / "sheet-b.png").unlink()
        assert run.step("draw", "a", patterns, make) and (run / "sheet-b.png").exists()
        with pytest.raises(RuntimeError, match=r"none-\*"):
            run.step("other", "a", ["none-*"], make)


def test_canonical_json_has_one_digest() -> None:
    assert json_digest({"a": 1, "ä": [1.5]}) == json_digest({"ä": [1.5], "a": 1})
    assert json_digest({"a": 1}) != json_digest({"a": "1"})


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from safear_edit.files import rundir\n"
        "try:\n    rundir.opened(Path(sys.argv[1])).__enter__()\nexcept Exception as e: print(e)"
    )
    with rundir.opened(tmp_path / "out"):
        out = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert "no other run on this output" in out.stdout


def test_a_run_that_fails_before_its_first_file_leaves_nothing_and_one_at_work_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too little"), rundir.opened(tmp_path / "out") as run:
        run.part("concepts/picasso")
        raise UsageError("--memory", "more", "too little", "give more")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="killed"), rundir.opened(tmp_path / "out") as run:
        _step(run)
        with pytest.raises(UsageError, match="one at work"), rundir.opened(tmp_path / "out"):
            pass
        raise UsageError("a run", "an end", "killed", "go on")
    with rundir.opened(tmp_path / "out") as run:
        assert run.done("one", "a")


def test_publish_is_whole_and_leaves_no_litter(tmp_path: Path) -> None:
    with rundir.opened(tmp_path / "out") as run:
        _step(run)
        run.publish(rundir.stage(run, ["one.txt"]), overwrite=False)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".gitattributes", "one.txt", "out"]


def test_an_existing_output_is_refused_or_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.json").write_text("old")
    with pytest.raises(UsageError, match="--overwrite"), rundir.opened(out):
        pass
    with rundir.opened(out, overwrite=True) as run:
        _step(run)
        run.publish(rundir.stage(run, ["one.txt"]), overwrite=True)
    assert {p.name for p in out.iterdir()} == {"one.txt", ".gitattributes"}


def test_a_replacement_that_fails_or_is_cut_leaves_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", Path.rename
    out.mkdir()
    (out / "recipe.json").write_text("old")

    def broken(self: Path, target: Path) -> Path:
        if self.parent.name == "release":
            raise KeyboardInterrupt
        return rename(self, target)

    with rundir.opened(out, overwrite=True) as run:
        _step(run)
        staged = rundir.stage(run, ["one.txt"])
        monkeypatch.setattr(Path, "rename", broken)
        with pytest.raises(KeyboardInterrupt):
            run.publish(staged, overwrite=True)
        monkeypatch.undo()
        assert (out / "recipe.json").read_text() == "old"
    out.rename(tmp_path / ".out.run" / rundir.REPLACED)  # what kill -9 between the two renames leaves
    with pytest.raises(UsageError, match="--overwrite"), rundir.opened(out):
        pass
    assert (out / "recipe.json").read_text() == "old"
    with rundir.opened(out, overwrite=True) as run:
        assert not _step(run), "what was done before is not made again"
        run.publish(rundir.stage(run, ["one.txt"]), overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".gitattributes", "one.txt", "out"]


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UsageError, match="MiB free") as caught:
        rundir.require_space(tmp_path, free + (1 << 40))
    assert caught.value.exit_code == 2
    monkeypatch.setattr(rundir, "LEAST_FREE", free + (1 << 40))
    with pytest.raises(UsageError, match="MiB free"), rundir.opened(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [lambda p: p.write_text("mine"), lambda p: (p.mkdir(), (p / "mine").touch())])
def test_overwrite_never_removes_what_is_not_ours(tmp_path: Path, make: object) -> None:
    out = tmp_path / "out"
    make(out)  # type: ignore[operator]
    with pytest.raises(UsageError, match="something else"), rundir.opened(out, overwrite=True):
        pass
    assert out.exists()


def test_what_the_disk_refuses_is_told_of_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError) as nowhere:
        write_atomic(tmp_path / "nowhere" / "a.txt", "new")
    assert nowhere.value.filename == str(tmp_path / "nowhere" / "a.txt")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.txt'"):
        write_atomic(tmp_path / "a.txt", "new")
    assert not list(tmp_path.iterdir())


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_into_a_signed_release(tmp_path: Path) -> None:
    release = tmp_path / "release"
    release.mkdir()
    (release / "model.sig").write_text("{}")
    (tmp_path / "link").symlink_to(release)
    for inside in (release / "out", release / "a" / "b.txt", tmp_path / "link" / "out", release / "x" / ".." / "out"):
        with pytest.raises(UsageError, match="inside the signed release"):
            rundir.refuse_inside_release(inside)
        with pytest.raises(UsageError, match="inside the signed release"):
            rundir.refuse_existing(inside, overwrite=True)
    rundir.refuse_inside_release(release)
    rundir.refuse_inside_release(tmp_path / "beside")


def test_git_leaves_the_bytes_of_a_release_alone(tmp_path: Path) -> None:
    with rundir.opened(tmp_path / "out") as run:
        staged = rundir.stage(run, ())
        assert (staged / ".gitattributes").read_bytes() == b"* -text\n"
