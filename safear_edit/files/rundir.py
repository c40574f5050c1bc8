"""A run's folder: one process at a time, a journal of finished steps, publishing by one rename.

The folder `.NAME.run` lies beside the output NAME, on the same disk, so that publishing is a rename. A step is done
when the journal holds it with the same inputs and every file it wrote still has the sha256 noted there; anything else
is made again. That is all that resuming means: the same command continues after Ctrl-C, kill -9 or a full disk.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from safear_edit import processes
from safear_edit.errors import UsageError
from safear_edit.files.atomic import digest_of, sha256_file, sync_folder, write_atomic

JOURNAL, LOCK, REPLACED, COPIES = "journal.json", "lock", "replaced", "processes"
MEMORY = "memory.json"
"""Bytes that were free when work on a large model began (pipeline/order.py)."""
MADE = ("recipe.json", "stack.json", "export.json")
"""One of these lies in every folder that this program writes, and may replace."""
GIT_ATTRIBUTES, AS_THEY_ARE = ".gitattributes", b"* -text\n"
"""A file for git and what it says: convert no line ends."""
WAIT = 10.0
"""Seconds in which a change of a few lines is surely over."""
LEAST_FREE = 100 << 20
"""Bytes that must be free before a run starts; one on the embedded mini writes about 40 MiB."""


@dataclass(frozen=True)
class RunDir:
    """The working folder of one output; made by `opened`.

    Of several processes (processes.py) only the main one works in it. Each of the others works in a copy: the main one
    says what is done, and its files are everyone's. `main` is where they lie, None in the main process itself.
    """

    root: Path
    out: Path
    main: Path | None = None

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def part(self, name: str) -> RunDir:
        """A folder inside this one with a journal of its own, for one concept of several."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return RunDir(folder, self.out, self.main and self.main / name)

    def step(self, name: str, inputs: str, files: Sequence[str], make: Callable[[], None]) -> bool:
        """Run `make`, which must write `files`, unless the journal says that it is done; True if it ran.

        `inputs` is a digest of everything that the step depends on. A name in `files` may be a pattern
        ("images/slice-*.png"): at least one file must match it, and each that does is noted. The journal is written
        after the files are.
        """
        if processes.from_main(lambda: self.done(name, inputs)):
            return False
        make()
        noted = processes.from_main(lambda: self._noted(name, inputs, files))
        processes.together(lambda: self._taken(noted))
        return True

    def _noted(self, name: str, inputs: str, files: Sequence[str]) -> list[str]:
        """Put a step that was just made into the journal; the names of what it wrote."""
        written = {pattern: sorted(path for path in self.root.glob(pattern) if path.is_file()) for pattern in files}
        missing = [pattern for pattern, paths in written.items() if not paths]
        if missing:
            raise RuntimeError(f"step {name} did not write {missing}")
        noted = {path.relative_to(self.root).as_posix(): path for paths in written.values() for path in paths}
        journal = self._journal()
        journal[name] = {"inputs": inputs, "files": {file: sha256_file(path) for file, path in noted.items()}}
        write_atomic(self.root / JOURNAL, json.dumps(journal, indent=1))
        return list(noted)

    def _taken(self, files: Sequence[str]) -> None:
        """In a process that isn't the main one: the main one's journal and files instead of its own."""
        if self.main is None:
            return
        for name in (*files, JOURNAL):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.main / name, self.root / name)

    def files(self, name: str) -> tuple[str, ...]:
        """What the finished step `name` wrote, relative to the run, sorted."""
        return tuple(sorted(self._journal()[name]["files"]))

    def done(self, name: str, inputs: str) -> bool:
        """Whether step `name` finished with these inputs and its files are still what it wrote."""
        entry = self._journal().get(name)
        if entry is None or entry.get("inputs") != inputs:
            return False
        files: dict[str, str] = entry["files"]
        return all((self.root / f).is_file() and sha256_file(self.root / f) == digest for f, digest in files.items())

    def digest(self, name: str) -> str:
        """Digest of what a finished step wrote: the input of the steps after it."""
        files: dict[str, str] = self._journal()[name]["files"]
        return digest_of(*(f"{f}:{files[f]}" for f in sorted(files)))

    def publish(self, staged: Path, *, overwrite: bool) -> None:
        """Make the folder `staged` the output, durable and in one rename; then drop the working folder."""
        for path in sorted(staged.rglob("*")):
            if path.is_file():
                _sync_file(path)
            else:
                sync_folder(path)
        sync_folder(staged)
        refuse_existing(self.out, overwrite=overwrite)
        if self.out.exists():
            self.out.rename(self.root / REPLACED)
        try:
            staged.rename(self.out)
        except BaseException:
            self.recover()
            raise
        sync_folder(self.out.parent)
        shutil.rmtree(self.root)

    def recover(self) -> None:
        """Undo or finish a replacement that was cut after its first rename: an output that was there is there again."""
        old = self.root / REPLACED
        if old.exists() and not self.out.exists():
            old.rename(self.out)
        elif old.exists():
            shutil.rmtree(old)

    def _journal(self) -> dict[str, Any]:
        """What is noted as done; an unreadable journal counts as nothing done."""
        try:
            journal = json.loads((self.root / JOURNAL).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return journal if isinstance(journal, dict) else {}


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def refuse_inside_release(path: Path) -> None:
    """UsageError if `path` would lie in a signed release: one file more, and its signature no longer holds."""
    for folder in path.absolute().resolve().parents:
        if (folder / "model.sig").is_file():
            raise UsageError(
                str(path), "a place of its own", f"one inside the signed release {folder}", "choose another"
            )


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """UsageError if `out` is there and may not be replaced, is not a folder that we made, or lies in a release."""
    refuse_inside_release(out)
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise UsageError(str(out), "a new output folder", "one that exists", "choose another --out or pass --overwrite")
    own = out.is_dir() and (any((out / name).is_file() for name in MADE) or not any(out.iterdir()))
    if out.is_symlink() or not own:
        raise UsageError(str(out), "a folder that safear-edit wrote", "something else", "choose another --out")


def require_space(folder: Path, needed: int) -> None:
    """UsageError unless `needed` bytes are free on the disk of `folder`: told before hours of work, not after."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        got = f"{free >> 20} MiB free"
        raise UsageError(str(folder), f"{needed >> 20} MiB on its disk", got, "free some, or choose another --out")


@contextmanager
def opened(out: Path, *, overwrite: bool = False, kind: str = "run") -> Iterator[RunDir]:
    """The working folder for `out`, locked against a second process; it stays when the run fails, for resuming.

    kind: the end of its name; another one for work that isn't a run's, whose unfinished folder stays as it is.
    One that fails before it wrote a file leaves nothing. UsageError if `out` exists (without `overwrite`), if another
    process works on it, or if the disk is nearly full.
    """
    out = out.absolute()
    run = RunDir(out.with_name(f".{out.name}.{kind}"), out)
    lock = FileLock(run.root / LOCK)
    try:
        processes.from_main(lambda: _begin(run, lock, overwrite=overwrite))
        mine = _own(run)
        processes.together(lambda: None)  # nobody writes before all copies are made
        yield mine
    except BaseException:
        if lock.is_locked and not _files(run):
            shutil.rmtree(run.root, ignore_errors=True)  # still locked: nobody else has begun there
        raise
    finally:
        lock.release()


@contextmanager
def changing(out: Path) -> Iterator[None]:
    """A published folder while something is changed in it, under the lock of a run on it, which lies beside it.

    Another such change is waited for, WAIT seconds at most; UsageError for one, or a run, that is still at work then.
    """
    out = out.resolve()
    run = RunDir(out.with_name(f".{out.name}.run"), out)
    lock = FileLock(run.root / LOCK)
    until = time.monotonic() + WAIT
    while not lock.is_locked:
        run.root.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=max(0.0, until - time.monotonic()))
        except FileNotFoundError:  # who had it has just removed its folder
            continue
        except Timeout:
            raise UsageError(str(out), "no other command at work on this folder", "one", "wait for it") from None
    try:
        yield
    finally:
        if not _files(run):
            shutil.rmtree(run.root, ignore_errors=True)  # still locked: who waits makes it again
        lock.release()


def _files(run: RunDir) -> list[Path]:
    """What a run has written so far; its lock is no work."""
    return [path for path in run.root.rglob("*") if path.is_file() and path != run.root / LOCK]


def _begin(run: RunDir, lock: FileLock, *, overwrite: bool) -> None:
    """Take the lock, see that a run can start, and drop what the other processes of an earlier run left."""
    refuse_existing(run.out, overwrite=overwrite)
    run.root.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            str(run.out), "no other run on this output", "one at work", "wait for it, or choose another --out"
        ) from None
    run.recover()
    refuse_existing(run.out, overwrite=overwrite)
    require_space(run.root, LEAST_FREE)
    shutil.rmtree(run.root / COPIES, ignore_errors=True)


def _own(run: RunDir) -> RunDir:
    """The folder that this process works in: the main one's is `run`, each other's a copy inside it."""
    if processes.is_main():
        return run
    mine = run.root / COPIES / str(processes.index())
    shutil.copytree(run.root, mine, ignore=shutil.ignore_patterns(COPIES, LOCK))
    return RunDir(mine, run.out, run.root)


@contextmanager
def growing(out: Path, mark: str, verb: str) -> Iterator[None]:
    """`out` as a folder that calls of one verb add to, locked against a second process; `mark` is a file in it.

    One that was made for this call, which then fails before it wrote anything, is gone again.
    UsageError for a folder that something else wrote, one inside a signed release, and while another process works.
    """
    refuse_inside_release(out)
    if out.exists() and not (out / mark).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(str(out), f"a new folder, or one of `{verb}`", "something else", "choose another --out")
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(str(out), f"no other `{verb}` on this folder", "one at work", "wait for it") from None
    try:
        if not (out / mark).is_file():
            write_atomic(out / mark, json.dumps({"schema_version": 1}) + "\n")
        yield
    except BaseException:
        if new and {path.name for path in out.iterdir()} <= {mark, ".lock", MEMORY}:
            shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        lock.release()


def stage(run: RunDir, files: Iterable[str]) -> Path:
    """A fresh folder with the output's name inside the run, with copies of `files` (names relative to the run).

    `.gitattributes` goes with it: git leaves the bytes of what it names alone, whatever core.autocrlf says.
    """
    staged = run / "release" / run.out.name
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir(parents=True)
    (staged / GIT_ATTRIBUTES).write_bytes(AS_THEY_ARE)
    for name in files:
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / name, target)
    return staged
