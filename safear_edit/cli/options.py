"""What the command line's files share: options as dataclasses, and how results, tables and progress are shown.

An option is declared once, as a field. A verb names a class that has the fields it wants, most of them inherited from
the classes here, and gets one filled instance. Nothing heavy is imported here, and no verb.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safear_edit import processes
from safear_edit.cli.terminal import harmless_json
from safear_edit.errors import UsageError, printable
from safear_edit.redact import redact

if TYPE_CHECKING:
    from safear_edit.pipeline.publish import Result
    from safear_edit.pipeline.state import RunOptions
    from safear_edit.progress import Progress
    from safear_edit.release.keys import SigningKey
    from safear_edit.report.schema import Criterion


WIDE = 110
"""Columns from which a verdict's table has a column for what was needed."""
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


class Source(click.types.StringParamType):
    """A spec or recipe, a path or a built-in concept's name; one that isn't there is told before torch is imported."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        from safear_edit.files.strict import missing
        from safear_edit.pipeline.order import source_path

        if not (path := source_path(str(value))).exists():
            raise missing(path)
        return str(value)


def size(text: str) -> int:
    """A size such as 16GiB or 500MB, in bytes."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{text!r} is no size; write for instance 16GiB")
    power = " KMGT".index(found[2].upper() or " ")
    return round(float(found[1]) * (1024 if found[3] else 1000) ** power)


NEW = NewPath()
SOURCE = Source()
SEED = click.IntRange(0, 2**63 - 1)

# -- options as fields ------------------------------------------------------------------------------------------------


def option(*flags: str, **settings: Any) -> Any:
    """A field that click fills from the command line; `flags` and `settings` are those of click.option."""
    return field(metadata={"flags": flags, "settings": settings})


def taking(kind: type[Any]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a verb with the options that the dataclass `kind` declares; it gets them as one instance, `given`.

    In the help a class's own options stand before those that it inherits.
    """
    declared = {part.name: part for part in fields(kind)}
    names = dict.fromkeys(name for base in kind.__mro__ for name in getattr(base, "__annotations__", {}))

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def verb(**values: Any) -> int:
            given = kind(**{name: values.pop(name) for name in names})
            return function(**values, given=given)

        for name in reversed(names):
            about = declared[name].metadata
            verb = click.option(*about["flags"], name, **about["settings"])(verb)
        return verb

    return decorate


@dataclass(frozen=True)
class ForProgram:
    as_json: bool = option("--json", is_flag=True, help="One JSON document on stdout, no progress.")


@dataclass(frozen=True)
class Shown(ForProgram):
    quiet: bool = option("--quiet", "-q", is_flag=True, help="No progress.")


@dataclass(frozen=True)
class OnDevice:
    device: str = option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
    pull: bool = option("--pull", is_flag=True, help="Fetch published weights that aren't here; a terminal is asked.")


@dataclass(frozen=True)
class InDtype:
    dtype: str = option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        help="Of the frozen weights; auto: bfloat16 for published ones on a GPU, else float32.",
    )


@dataclass(frozen=True)
class Drawing(InDtype):
    memory: int | None = option("--memory", type=size, help="Memory to stay within, as 16GiB: fewer images at a time.")


@dataclass(frozen=True)
class Seeded:
    seed: int = option("--seed", type=SEED, default=0, help="Root of every random number.")


@dataclass(frozen=True)
class Replacing:
    overwrite: bool = option("--overwrite", is_flag=True, help="Replace an existing output.")


@dataclass(frozen=True)
class Writing(Replacing):
    out: Path = option("--out", "-o", type=NEW, required=True, help="The folder to write; it must not exist.")


@dataclass(frozen=True)
class Trusting:
    trust: Path | None = option(
        "--trust", type=FOLDER, help="Verify the folder's signature first, against the *.pub files there."
    )


@dataclass(frozen=True)
class OfModel:
    model: str | None = option("--model", "-m", help="family[:variant] or a directory; a recipe names its own.")


@dataclass(frozen=True)
class ByMethod:
    method: str = option("--method", default="vce", show_default=True, help="See: safear-edit ls methods.")


@dataclass(frozen=True)
class Compiling(OfModel, ByMethod, Seeded, OnDevice, InDtype):
    """What a spec is compiled with."""

    sets: tuple[str, ...] = option("--set", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe.")
    captioner: str | None = option(
        "--captioner", metavar="MODEL", help="Who says what unsafe images show: a model reference or a folder."
    )
    memory: int | None = option(
        "--memory", type=size, help="What training may take, as 16GiB: layers run again, batches in parts."
    )
    found: Path | None = option("--map", type=FOLDER, help="What `safear-edit map` wrote: edit the scales it found.")

    @property
    def overrides(self) -> tuple[str, ...]:
        """Every --set, and what other options change of the recipe."""
        named = (f"construct.captioner={json.dumps(self.captioner, ensure_ascii=False)}",) if self.captioner else ()
        return (*self.sets, *named)


@dataclass(frozen=True)
class Publishing(Writing, OnDevice, Shown):
    """How a walk ends."""

    key: str | None = option("--key", help="Private signing key: PEM file or KMS URI (default: SAFEAR_SIGNING_KEY).")
    unsigned: bool = option("--unsigned", is_flag=True, help="Leave the result unsigned on purpose.")


# -- a walk -----------------------------------------------------------------------------------------------------------


@contextmanager
def run_options(given: Publishing, throwaway: Path | None = None) -> Iterator[RunOptions]:
    """What a walk is told; UsageError for an output that exists or a key that isn't there, before any work is done."""
    from safear_edit.files.rundir import refuse_existing
    from safear_edit.pipeline.state import RunOptions

    refuse_existing(given.out, overwrite=given.overwrite)
    signer = signing_key(given.key, throwaway, given.unsigned, given.out) if processes.is_main() else None
    with shown_progress(given) as progress:
        yield RunOptions(signer, given.unsigned, given.overwrite, typed_command(), progress, progress.say)


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


def typed_command() -> str:
    """The command as it was typed, for the report; a secret in it is hidden."""
    return redact(shlex.join(["safear-edit", *sys.argv[1:]]))


def refuse_beside_recipe(sources: Sequence[str], *names: str) -> None:
    """UsageError if an option of `names` was typed beside a finished recipe, which would go on without it."""
    recipes = [source for source in sources if source.endswith(".json")]
    typed = click.get_current_context().get_parameter_source
    for name in names:
        if recipes and typed(name) is click.core.ParameterSource.COMMANDLINE:
            fix = f"leave it out, or compile the spec again with --{name}"
            raise UsageError(f"--{name}", "a spec to compile", f"the finished recipe {recipes[0]}", fix)


def checked_signatures(models: Iterable[str | Path], trust: Path | None) -> list[str]:
    """What is known of each released folder's signature, asked before anything in it is read.

    TrustError for one that doesn't verify against the keys in `trust`; UsageError if none of the models is a release
    and there are keys to verify against.
    """
    from safear_edit.files.layout import looks_released

    released = [path for model in models if looks_released(path := Path(model).expanduser())]
    if trust is not None and not released:
        raise UsageError("--trust", "a released folder", "none among the models", "leave it out")
    if not released:
        return []
    from safear_edit.release.verify import signature_of  # its library takes a while to import

    return [f"{path}: signature {signature_of(path, trust)}" for path in released]


def say_signatures(known: Iterable[str], given: Shown) -> None:
    """On stderr, once the work is done: what is refused says one line and no more."""
    for line in () if given.quiet else known:
        print(printable(line), file=sys.stderr)


def refuse_existing_file(path: Path, *, overwrite: bool) -> None:
    """UsageError for a file that is there and may not be replaced."""
    if path.exists() and not overwrite:
        raise UsageError(str(path), "a new file", "one that exists", "choose another --out or pass --overwrite")


# -- what is shown ----------------------------------------------------------------------------------------------------


def shown_progress(given: Shown) -> Progress:
    """Progress on stderr; none if the result is for a program."""
    from safear_edit.progress import Progress, mode_for

    return Progress(mode_for(sys.stderr, quiet=given.quiet or given.as_json))


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    wide = (sys.stdout.encoding or "utf-8").lower().replace("-", "").startswith("utf")
    print(harmless_json(json.dumps(document, indent=1, ensure_ascii=not wide)))


def print_json_list(document: dict[str, Any], name: str, rows: Iterable[Any]) -> None:
    """`document` with a list `name` at its end, as `print_json` would print it; no more than one row is in memory."""
    wide = (sys.stdout.encoding or "utf-8").lower().replace("-", "").startswith("utf")
    head = json.dumps(document, indent=1, ensure_ascii=not wide)
    print(harmless_json(head.removesuffix("\n}")), end=f',\n "{name}": [')
    for number, row in enumerate(rows):
        text = json.dumps(row, indent=1, ensure_ascii=not wide).replace("\n", "\n  ")
        print(",\n  " if number else "\n  ", harmless_json(text), sep="", end="")
    print("\n ]\n}")


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], whole: Collection[str] = (), width: int | None = None
) -> None:
    """A plain table on stdout that also reads well in a log; whole: columns whose cells stay on one line.

    Nothing is cut: long words break, and in a terminal too narrow for the longest of them a row is a few lines of its
    own. width: in characters; the terminal's, or 160 in a log.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [["\n".join(map(printable, cell.split("\n"))) for cell in row] for row in rows]
    console = Console(highlight=False, width=width or (None if sys.stdout.isatty() else 160))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name in whole, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    unbroken = console.measure(table, options=console.options.update_width(sys.maxsize)).minimum
    if console.width < WIDE and unbroken > console.width:
        print("\n".join(_row_by_row(columns, rows, console.width)))
    else:
        console.print(table)


def _row_by_row(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """A table's rows one below the other: the first cell, then the others under it with their columns' names."""
    for first, *others in rows:
        yield first
        for name, cell in zip(columns[1:], others, strict=True):
            if cell:
                yield textwrap.fill(f"{name}: {cell}", width, initial_indent="  ", subsequent_indent="    ")


def print_criteria(criteria: Sequence[Criterion], width: int | None = None) -> None:
    """A verdict as one aligned table: what is not met first, then undecided, then met; no word is cut.

    In a terminal narrower than WIDE what was needed is told only of what is not met. width: in characters; the
    terminal's, or 160 in a log.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from safear_edit.evaluate.verdict import WORST_FIRST

    console = Console(highlight=False, width=width or (None if sys.stdout.isatty() else 160))
    wide, colours = console.width >= WIDE, {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, whole in (("result", True), ("criterion", True), ("observed", False), ("needed", False)):
        if wide or name != "needed":
            table.add_column(name, no_wrap=whole)
    for one in sorted(criteria, key=lambda one: WORST_FIRST.index(one.decision)):
        needed = "" if wide or one.decision == "PASS" else f" (needed: {one.needed})"
        cells = [
            Text(one.decision, colours[one.decision]),
            Text(printable(one.id)),
            Text(printable(one.observed + needed)),
        ]
        table.add_row(*cells, *([Text(printable(one.needed))] if wide else []))
    console.print(table)


def print_result(result: Result, as_json: bool) -> int:
    """Print what a finished walk left; its exit code."""
    if as_json:
        print_json(result.as_json())
    else:
        print_criteria(result.report.verdict.criteria)
        print("\n".join(map(printable, result.lines)))
        if result.signed and not result.signature:
            print(printable(f"next: {result.report.subject.verify}"))
    if result.advice:
        print(f"safear-edit: {result.advice}", file=sys.stderr)
    return result.exit_code
