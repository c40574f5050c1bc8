"""The verbs about what was released: `stack ls`, `remove` and `reweight`, and `export`; cli.py attaches VERBS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from safear_edit.errors import UsageError

if TYPE_CHECKING:
    from safear_edit.pipeline import Result
    from safear_edit.stack import Released
    from safear_edit.stacking import Terms

FOLDER = click.Path(path_type=Path)
F = TypeVar("F", bound=Callable[..., object])


def _ending(function: F) -> F:
    """Options of a verb that publishes a folder."""
    for option in reversed(
        (
            click.option("--out", type=FOLDER, required=True, help="The folder to write; it must not exist."),
            click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
            click.option("--key", help="Private signing key: PEM file or KMS URI (default: SAFEAR_SIGNING_KEY)."),
            click.option("--unsigned", is_flag=True, help="Leave the result unsigned on purpose."),
            click.option("--overwrite", is_flag=True, help="Replace an existing output."),
            click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, no progress."),
            click.option("--quiet", "-q", is_flag=True, help="No progress."),
        )
    ):
        function = option(function)
    return function


@click.group()
def stack() -> None:
    """List, take off or weigh anew the edits of a released model.

    \b
    safear-edit stack remove safer-llamagen dog --out safe-again --key keys/safear.key
    """


@stack.command("ls")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_(folder: Path, as_json: bool) -> int:
    """List the edits of a released folder, first one first, and what they do to each other's concepts.

    \b
    safear-edit stack ls safer-llamagen
    """
    from safear_edit import cli
    from safear_edit.stack import Released

    released = Released.read(folder)
    rows = [
        (member.name, member.layer.edit.info.method, f"{member.layer.strength:g}", member.layer.edit.digest[:12],
         member.recipe.digest[:12], f"{len(member.layer.edit.weights)}")
        for member in released.members
    ]  # fmt: skip
    columns = ("concept", "method", "strength", "edit", "recipe", "weights")
    if as_json:
        cli._print_json({"base": released.ref, "edits": [dict(zip(columns, row, strict=True)) for row in rows]})
        return 0
    print(f"base {released.ref}")
    cli._table(columns, rows)
    _print_matrix(released)
    return 0


def _print_matrix(released: Released) -> None:
    """Rows: an edit by itself. Columns: in how many pictures that ask for a concept it is still found."""
    from safear_edit import cli

    names = [member.name for member in released.members]
    if not released.alone:
        return
    found = {(cell.edit, cell.concept): f"{cell.found} of {cell.asked}" for cell in released.alone}
    cli._table(("edit alone, concept found", *names), [(a, *(found.get((a, b), "") for b in names)) for a in names])


@stack.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("name")
@_ending
def remove(
    folder: Path,
    name: str,
    out: Path,
    device: str,
    key: str | None,
    unsigned: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Take one concept's edit off, measure the others again and say what changed; DIR stays as it is.

    \b
    safear-edit stack remove safer-llamagen dog --out safe-llamagen
    """

    def walk(terms: Terms) -> Result:
        from safear_edit import stacking

        return stacking.remove(folder, name, out, terms, device)

    return _run(walk, out, key, unsigned, overwrite, as_json, quiet)


@stack.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("weights", metavar="NAME=STRENGTH...", nargs=-1, required=True)
@_ending
def reweight(
    folder: Path,
    weights: tuple[str, ...],
    out: Path,
    device: str,
    key: str | None,
    unsigned: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Merge some edits more or less strongly (1 as found, 0 not at all), measure everything again; DIR stays as it is.

    \b
    safear-edit stack reweight safer-llamagen dog=0.5 --out softer-llamagen
    """
    strengths = dict(_strength(text) for text in weights)
    if len(strengths) < len(weights):
        raise UsageError("stack reweight", "each concept once", "one of them twice", "leave one out")

    def walk(terms: Terms) -> Result:
        from safear_edit import stacking

        return stacking.reweight(folder, strengths, out, terms, device)

    return _run(walk, out, key, unsigned, overwrite, as_json, quiet)


def _strength(text: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, float(number)
    except ValueError:
        raise UsageError("stack reweight", "NAME=NUMBER", repr(text), "for instance dog=0.5") from None


def _run(
    walk: Callable[[Terms], Result],
    out: Path,
    key: str | None,
    unsigned: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    from safear_edit import cli
    from safear_edit.rundir import refuse_existing

    refuse_existing(out, overwrite=overwrite)
    signer = cli._signer(key, None, unsigned, out)
    from safear_edit.stacking import Terms

    with cli._progress(as_json=as_json, quiet=quiet) as progress:
        terms = Terms(signer, unsigned, overwrite, cli._command(), progress, progress.say)
        result = walk(terms)
    return cli.show_result(result, as_json)


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--layout", required=True, help="upstream, transformers or peft; what there is depends on the family.")
@click.option("--out", type=FOLDER, required=True, help="The folder to write; it must not exist.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def export(folder: Path, layout: str, out: Path, overwrite: bool, as_json: bool) -> int:
    """Write a released model in the layout of the code it came from, or its edits as peft adapters.

    \b
    safear-edit export safe-llamagen --layout upstream --out for-llamagen
    """
    from safear_edit import cli
    from safear_edit.export import export as write

    made = write(folder, layout, out, overwrite=overwrite)
    if as_json:
        cli._print_json(made.as_json())
    else:
        print("\n".join(f"{digest[:12]}  {name}" for name, digest in made.files.items()))
        print(f"to check: {made.check}")
    return 0


VERBS: tuple[click.Command, ...] = (stack, export)
"""What cli.py adds to its group."""
