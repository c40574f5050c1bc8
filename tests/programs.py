"""Command lines run as a person's, one after another in one process of their own: it imports torch once for all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

END = b"\0"
PROGRAM = """
import json, sys
from safear_edit.cli import main, terminal
terminal.be_a_program()
codes = []
for words in json.load(open(sys.argv[1], encoding="utf-8")):
    sys.argv = ["safear-edit", *words]
    codes.append(main.run(words))
    for stream in (sys.stdout, sys.stderr):
        print("\\0", end="", file=stream, flush=True)
sys.exit(json.dumps(codes))
"""


class Done(NamedTuple):
    """How one of them ended, and what it said."""

    code: int
    out: bytes
    err: bytes


def run_all(commands: Sequence[Sequence[str]], cwd: Path, env: Mapping[str, str]) -> list[Done]:
    """Run the words after `safear-edit` of each command, in order; a failure of one doesn't end the others."""
    asked = cwd / "commands.json"
    asked.write_text(json.dumps(commands), encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(asked)]
    done = subprocess.run(command, cwd=cwd, env=dict(env), capture_output=True, check=False)
    asked.unlink()
    outs, errs = done.stdout.split(END), done.stderr.split(END)
    assert len(outs) == len(errs) == len(commands) + 1, done.stderr.decode(errors="replace")
    codes: list[int] = json.loads(errs[-1])
    return [Done(*row) for row in zip(codes, outs[:-1], errs[:-1], strict=True)]
