"""What the command line's files share: options by name, and how results, tables and progress are shown.

Nothing heavy is imported here, and no verb: the files of verbs all build on it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from safear_edit.cli.terminal import harmless_json
from safear_edit.errors import UsageError
from safear_edit.redact import redact

if TYPE_CHECKING:
    from safear_edit.pipeline.steps import Result
    from safear_edit.progress import Progress
    from safear_edit.release.keys import SigningKey


F = TypeVar("F", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path)


class NewPath(click.Path):
    """A path to be written: never inside a signed release, which it would break."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        from safear_edit.files.rundir import refuse_inside_release

        path = Path(str(super().convert(value, param, context)))
        refuse_inside_release(path)
        return path


NEW = NewPath()
SEED = click.IntRange(0, 2**63 - 1)
OPTIONS: dict[str, Callable[[F], F]] = {
    "out": click.option("--out", type=NEW, required=True, help="The folder to write; it must not exist."),
    "seed": click.option("--seed", type=SEED, default=0, help="Root of every random number."),
    "device": click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
    "json": click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, no progress."),
    "quiet": click.option("--quiet", "-q", is_flag=True, help="No progress."),
    "overwrite": click.option("--overwrite", is_flag=True, help="Replace an existing output."),
    "model": click.option("--model", required=True, help="family[:variant] or a directory."),
    "method": click.option("--method", default="vce", show_default=True, help="See: safear-edit ls methods."),
    "set": click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe."),
    "map": click.option("--map", "found", type=FOLDER, help="What `safear-edit map` wrote: edit the scales it found."),
    "key": click.option("--key", help="Private signing key: PEM file or KMS URI (default: SAFEAR_SIGNING_KEY)."),
    "unsigned": click.option("--unsigned", is_flag=True, help="Leave the result unsigned on purpose."),
    "trust": click.option(
        "--trust", type=FOLDER, help="Verify the folder's signature first, against the *.pub files there."
    ),
    "joint": click.option("--joint", is_flag=True, help="One edit for all concepts instead of one after another."),
}


def shared(*names: str) -> Callable[[F], F]:
    """Decorate a verb with options of OPTIONS, in that order of help."""

    def decorate(function: F) -> F:
        for name in reversed(names):
            function = OPTIONS[name](function)
        return function

    return decorate


def shown_progress(*, as_json: bool, quiet: bool) -> Progress:
    """Progress on stderr; none if the result is for a program."""
    from safear_edit.progress import Progress, mode_for

    return Progress(mode_for(sys.stderr, quiet=quiet or as_json))


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    wide = (sys.stdout.encoding or "utf-8").lower().replace("-", "").startswith("utf")
    print(harmless_json(json.dumps(document, indent=1, ensure_ascii=not wide)))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout that also reads well in a log."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console.print(table)


def print_result(result: Result, as_json: bool) -> int:
    """Print what a finished walk left; its exit code."""
    if as_json:
        print_json(result.as_json())
    else:
        print("\n".join(result.lines))
    if result.advice:
        print(f"safear-edit: {result.advice}", file=sys.stderr)
    return result.exit_code


def signing_key(key: str | None, throwaway: Path | None, unsigned: bool, out: Path) -> SigningKey | None:
    """The key to sign with, found before any work is done; None if there is none or none is wanted."""
    from safear_edit.release.keys import find_signer
    from safear_edit.release.keys import throwaway as throwaway_key

    if sum((key is not None, throwaway is not None, unsigned)) > 1:
        raise UsageError("signing", "one of --key, --throwaway-key and --unsigned", "several", "leave the others out")
    if unsigned:
        return None
    if throwaway is None:
        return find_signer(key, os.environ)
    print(f"signing with a throw-away key: it shows that {out} is unchanged, not who made it", file=sys.stderr)
    return throwaway_key(throwaway)


def refuse_beside_recipe(sources: Sequence[str], *names: str) -> None:
    """UsageError if an option of `names` was typed beside a finished recipe, which would go on without it."""
    recipes = [source for source in sources if source.endswith(".json")]
    typed = click.get_current_context().get_parameter_source
    for name in names:
        if recipes and typed(name) is click.core.ParameterSource.COMMANDLINE:
            fix = f"leave it out, or compile the spec again with --{name}"
            raise UsageError(f"--{name}", "a spec to compile", f"the finished recipe {recipes[0]}", fix)


def typed_command() -> str:
    """The command as it was typed, for the report; a secret in it is hidden."""
    return redact(shlex.join(["safear-edit", *sys.argv[1:]]))
