"""`pull`, and fetching for any other verb that misses published weights: where `--pull` or the person allows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import click

from safear_edit import processes
from safear_edit.cli.options import Shown, print_json, shown_progress, taking
from safear_edit.errors import NotFetchedError


@click.command()
@click.argument("model")
@taking(Shown)
def pull(model: str, given: Shown) -> int:
    """Fetch a published model's files from its hub, or check those that were fetched.

    Only what the variant lists, resumed where it broke off, with HF_ENDPOINT, HF_HOME and HF_TOKEN as the hub's own
    tools read them. Then --model takes its name.

    \b
    safear-edit pull llamagen:xl-256
    """
    from safear_edit.families import fetch
    from safear_edit.families.reference import ModelRef

    with shown_progress(given) as progress:
        folder = fetch.pull(ModelRef.parse(model), progress=progress)
    if given.as_json:
        print_json({"model": model, "folder": str(folder)})
    else:
        print(folder)
    return 0


def allowed(missing: NotFetchedError, arguments: Sequence[str]) -> bool:
    """Whether the command, or the person at its terminal, wants the missing weights fetched; never asked of several
    processes, of a program, or where nobody could answer."""
    if processes.count() > 1:
        return False
    if "--pull" in arguments:
        return True
    if "--json" in arguments or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return click.confirm(f"{missing.model} isn't on this machine; fetch {missing.what}?", err=True)


def apart(model: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """`pull` in a process of its own, with `environment`: this one's libraries were told to ask no network. Its exit
    code; it prints its own progress and its own failure."""
    quiet = ["-q"] if {"-q", "--quiet", "--json"} & set(arguments) else []
    command = [sys.executable, "-m", "safear_edit", "pull", model, *quiet]
    own = {**os.environ, **environment}
    return subprocess.run(command, env=own, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode


VERBS: tuple[click.Command, ...] = (pull,)
