"""The verbs about what was released: `stack ls`, `remove` and `reweight`, and `export`; main.py attaches VERBS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safear_edit.cli.options import (
    FOLDER,
    print_json,
    print_result,
    print_table,
    shared,
    shown_progress,
    signing_key,
    typed_command,
)
from safear_edit.errors import UsageError

if TYPE_CHECKING:
    from safear_edit.pipeline.run import Terms
    from safear_edit.pipeline.steps import Result
    from safear_edit.release.released import Member, Released


TOGETHER = "in one edit with"
_ending = shared("out", "device", "key", "unsigned", "overwrite", "json", "quiet")
"""Options of a verb that publishes a folder."""


@click.group()
def stack() -> None:
    """List, remove or reweight the edits of a released model.

    \b
    safear-edit stack remove safer-llamagen dog --out safe-again --key keys/safear.key
    """


@stack.command("ls")
@click.argument("folder", metavar="DIR", type=FOLDER)
@shared("json")
def list_(folder: Path, as_json: bool) -> int:
    """List the edits of a released folder, first one first, and what they do to each other's concepts.

    \b
    safear-edit stack ls safer-llamagen
    """
    from safear_edit.release.released import Released

    released = Released.read(folder)
    rows = [_row(member) for member in released.members]
    if as_json:
        print_json({"base": released.ref, "edits": rows})
        return 0
    joint = [layer for layer in released.stack.layers if len(layer.concepts) > 1]
    columns = [name for name in rows[0] if joint or name != TOGETHER]
    print(f"base {released.ref}")
    print_table(columns, [[row[name] for name in columns] for row in rows])
    for layer in joint:
        print(f"{layer.name} is a joint edit: `stack remove` and `reweight` take it as a whole, by that name")
    _print_matrix(released)
    return 0


def _row(member: Member) -> dict[str, str]:
    layer, edit = member.layer, member.layer.edit
    return {
        "concept": member.name,
        TOGETHER: " and ".join(name for name in layer.concepts if name != member.name),
        "method": edit.info.method,
        "strength": f"{layer.strength:g}",
        "edit": edit.digest[:12],
        "recipe": member.recipe.digest[:12],
        "weights": str(len(edit.weights)),
    }


def _print_matrix(released: Released) -> None:
    """Rows: an edit by itself. Columns: in how many images that ask for a concept it is still found."""
    edits, names = [layer.name for layer in released.stack.layers], released.stack.names
    if not released.alone:
        return
    found = {(cell.edit, cell.concept): f"{cell.found} of {cell.asked}" for cell in released.alone}
    print_table(("edit alone, concept found", *names), [(a, *(found.get((a, b), "") for b in names)) for a in edits])


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
    """Take one edit off by its concept's name, measure the others again and say what changed; DIR stays as it is.

    \b
    safear-edit stack remove safer-llamagen dog --out safe-llamagen
    """

    def walk(terms: Terms) -> Result:
        from safear_edit.pipeline import amend

        return amend.remove(folder, name, out, terms, device)

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
        from safear_edit.pipeline import amend

        return amend.reweight(folder, strengths, out, terms, device)

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
    from safear_edit.files.rundir import refuse_existing

    refuse_existing(out, overwrite=overwrite)
    signer = signing_key(key, None, unsigned, out)
    from safear_edit.pipeline.run import Terms

    with shown_progress(as_json=as_json, quiet=quiet) as progress:
        terms = Terms(signer, unsigned, overwrite, typed_command(), progress, progress.say)
        result = walk(terms)
    return print_result(result, as_json)


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--layout", required=True, help="upstream, transformers or peft; what there is depends on the family.")
@shared("out", "overwrite", "json")
def export(folder: Path, layout: str, out: Path, overwrite: bool, as_json: bool) -> int:
    """Write a released model in the layout of the code it came from, or its edits as peft adapters.

    \b
    safear-edit export safe-llamagen --layout upstream --out for-llamagen
    """
    from safear_edit.release.export import export as write

    made = write(folder, layout, out, overwrite=overwrite)
    if as_json:
        print_json(made.as_json())
    else:
        print("\n".join(f"{digest[:12]}  {name}" for name, digest in made.files.items()))
        print(f"to check: {made.check}")
    return 0


VERBS: tuple[click.Command, ...] = (stack, export)
"""What main.py adds to its group."""
