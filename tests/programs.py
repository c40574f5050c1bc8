"""Programs in processes of their own, which are forked from one that has imported torch: seconds less for each of them.

What only an interpreter's start decides (its locale, what it imports, its exit on a closed stream) needs a new one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from tests import ROOT

END = b"\0"
COMMANDS = """
import json, sys
from safear_edit.cli import main, terminal
terminal.be_a_program()
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["safear-edit", *words]
    codes.append(main.run(words))
    for stream in (sys.stdout, sys.stderr):
        print("\\0", end="", file=stream, flush=True)
sys.exit(json.dumps(codes))
"""
IMPORTED = ("torch", "torch.distributed.tensor", "accelerate", "peft", "scipy.stats", "scipy.optimize",
            "transformers.modeling_utils", "safear_edit.cli.main",
            "safear_edit.families.llamagen")  # fmt: skip
"""What most of them import, and what takes long."""


class Done(NamedTuple):
    """How one of them ended, and what it said."""

    code: int
    out: bytes
    err: bytes


class Program:
    """One that runs: its code as of `python -c`, which finds the words that follow in sys.argv."""

    def __init__(self, code: str, *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        """env: all of its environment; None: this process's."""
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(list(IMPORTED))
        self._said = tempfile.TemporaryDirectory()
        self._files = [Path(self._said.name) / name for name in ("out", "err")]
        place, environ = str(cwd or Path.cwd()), dict(os.environ if env is None else env)
        handed = (code, list(words), place, environ, [str(path) for path in self._files])
        self._process: ForkServerProcess = server.Process(target=_run, args=handed, daemon=True)
        self._process.start()

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self._process.exitcode is not None

    def kill(self) -> None:
        """With SIGKILL, if it still runs."""
        self._process.kill()

    def done(self, timeout: float = 600) -> Done:
        """Once it has ended; AssertionError after that many seconds. The code of a killed one is minus the signal."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"it still runs after {timeout} seconds"
        out, err = (path.read_bytes() if path.exists() else b"" for path in self._files)
        self._said.cleanup()
        return Done(self._process.exitcode, out, err)


def _run(code: str, words: list[str], cwd: str, env: dict[str, str], files: list[str]) -> None:
    """In the forked process: stand where a new one would, and run the code."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = ["", *env.get("PYTHONPATH", "").split(os.pathsep)]
    encoding, _, errors = env.get("PYTHONIOENCODING", "utf-8").partition(":")
    for number, (path, name) in enumerate(zip(files, ("stdout", "stderr"), strict=True), 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        told = errors or ("backslashreplace" if name == "stderr" else "strict")
        setattr(sys, name, open(number, "w", encoding=encoding, errors=told, closefd=False))  # noqa: SIM115
    sys.argv = ["-c", *words]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def two(code: str, *words: str, timeout: float = 600, **more: str) -> list[Done]:
    """Two programs of this code that find each other as ranks 0 and 1, as accelerate starts them on a CPU.

    more: what else their environment has.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    env = {**os.environ, **told, "PYTHONPATH": str(ROOT), **more}
    started = [Program(code, *words, env={**env, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    try:
        return [program.done(timeout) for program in started]
    finally:
        for program in started:
            program.kill()


def run_all(commands: Sequence[Sequence[str]], cwd: Path, env: Mapping[str, str], *, new: bool = False) -> list[Done]:
    """Run the words after `safear-edit` of each command, in order, in one process; a failure of one doesn't end the
    others. new: in an interpreter that starts with this environment."""
    words = json.dumps(commands)
    if new:
        command = [sys.executable, "-c", COMMANDS, words]
        ran = subprocess.run(command, cwd=cwd, env=env, capture_output=True, check=False)
        done = Done(ran.returncode, ran.stdout, ran.stderr)
    else:
        done = Program(COMMANDS, words, cwd=cwd, env=env).done()
    outs, errs = done.out.split(END), done.err.split(END)
    assert len(outs) == len(errs) == len(commands) + 1, done.err.decode(errors="replace")
    codes: list[int] = json.loads(errs[-1])
    return [Done(*row) for row in zip(codes, outs[:-1], errs[:-1], strict=True)]
