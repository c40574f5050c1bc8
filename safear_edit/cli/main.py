"""The command line: the group of verbs, and what a failure looks like.

The verbs stand in one file per group; each parses, calls one function, prints, and returns an exit code. stdout carries
results only (one JSON document with `--json`); progress and everything else goes to stderr. Expected failures are one
line and the exit code of their class (errors.py). Whatever a verb needs is imported inside it, so that `--help` answers
at once.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from safear_edit import processes
from safear_edit.cli import (
    apply,
    approve,
    attack,
    audit,
    compare,
    doctor,
    evaluate,
    gate,
    judge,
    listing,
    pull,
    specs,
    stack,
    terminal,
    tune,
    view,
)
from safear_edit.errors import EXIT_CODES, NotFetchedError, SafearError, SpecError, UsageError

OFFLINE = "HF_HUB_OFFLINE"
QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    OFFLINE: "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Libraries read these when they are first imported: no bars and tables between ours; nothing but `pull` fetches, which
another verb starts with the person's own OFFLINE."""


def main() -> NoReturn:
    """The program; __main__.py imports and starts it."""
    terminal.be_a_program()
    code = run(sys.argv[1:])
    gc.freeze()  # else the interpreter looks for garbage in all that ends with it, for half a second after torch
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command; every failure becomes one line on stderr and an exit code of errors.EXIT_CODES."""
    offline = os.environ.get(OFFLINE, "0")
    for name, value in QUIET_LIBRARIES.items():
        if list(arguments[:1]) != ["pull"] or name != OFFLINE:
            os.environ.setdefault(name, value)
    with terminal.shown_streams() if processes.is_main() else terminal.unheard():
        return _run(list(arguments), offline)


def _run(arguments: list[str], offline: str) -> int:
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if processes.count() > 1 and verb not in terminal.SHARED:
        fix = "start it without a launcher"
        return terminal.fail(str(UsageError(verb or "safear-edit", "one process", str(processes.count()), fix)), 2)
    if any(word.startswith("--suite") for word in arguments):  # nothing is drawn then, so eval keeps nothing
        verb = None
    try:
        code = _called(arguments, offline)
        return code if isinstance(code, int) else 0
    except SafearError as error:
        code = terminal.fail(str(error), error.exit_code)
        for other in error.others if isinstance(error, SpecError) else ():
            terminal.fail(str(other), code)
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)  # the help of a group of verbs, as it is
        return terminal.UNUSABLE
    except click.ClickException as error:
        said = " ".join(error.format_message().split()).removesuffix(".")
        context = error.ctx if isinstance(error, click.UsageError) else None
        return terminal.fail(f"{said}; see `{context.command_path} --help`" if context else said, terminal.UNUSABLE)
    except (KeyboardInterrupt, click.Abort):
        return terminal.fail(f"interrupted; {terminal.what_is_kept(verb)}", terminal.INTERRUPTED)
    except terminal.Ended as error:
        return terminal.fail(f"ended by {error}; {terminal.what_is_kept(verb)}", 128 + error.number)
    except (MemoryError, OSError) as error:
        return terminal.fail(terminal.refused_by_machine(error), terminal.UNUSABLE, own=True)
    except Exception as error:
        return terminal.unexpected(error)


def _called(arguments: list[str], offline: str) -> object:
    """What the verb returns; published weights that it misses are fetched if that is allowed, and it begins again."""
    fetched = set[str]()
    while True:
        try:
            return verbs.main(args=arguments, prog_name="safear-edit", standalone_mode=False)
        except NotFetchedError as missing:
            if missing.model in fetched or not pull.allowed(missing, arguments):
                raise
            fetched.add(missing.model)
            if code := pull.apart(missing.model, arguments, {OFFLINE: offline}):
                return code


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib import metadata

        print(f"safear-edit {metadata.version('safear-edit')}")
        context.exit(0)


# -- verbs ------------------------------------------------------------------------------------------------------------


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExit codes:\n" + "\n".join(f"{code:>4}  {meaning}" for code, meaning in EXIT_CODES.items()),
)
@click.option(
    "--version", "-v", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def verbs(context: click.Context) -> None:
    """Erase a named concept from an autoregressive image generator, measure what happened, sign the result.

    \b
    safear-edit plan  concepts/picasso.yaml --model llamagen
    safear-edit apply concepts/picasso.yaml --model llamagen --out safe-llamagen --key keys/safear.key
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


for _file in (
    apply,
    compare,
    tune,
    view,
    specs,
    pull,
    listing,
    evaluate,
    attack,
    audit,
    approve,
    gate,
    judge,
    stack,
    doctor,
):
    for _verb in _file.VERBS:
        verbs.add_command(_verb)
