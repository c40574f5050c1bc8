"""The verbs about the edits of a release: `stack …` and `export`; main.py attaches VERBS."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safear_edit.cli.options import (
    FOLDER,
    ForProgram,
    OnDevice,
    Publishing,
    Shown,
    Trusting,
    Writing,
    checked_signatures,
    option,
    print_json,
    print_result,
    print_table,
    run_options,
    say_signatures,
    shown_progress,
    taking,
)
from safear_edit.errors import UsageError

if TYPE_CHECKING:
    from safear_edit.release.released import Member, Released


TOGETHER = "in one edit with"


@dataclass(frozen=True)
class Amending(Publishing, Trusting):
    """A release made of another one."""


@click.group()
def stack() -> None:
    """List, remove, reweight, reorder or explain the edits of a released model.

    \b
    safear-edit stack remove safer-llamagen dog --out safe-again --key keys/safear.key
    """


@stack.command("ls")
@click.argument("folder", metavar="DIR", type=FOLDER)
@taking(ForProgram)
def list_(folder: Path, given: ForProgram) -> int:
    """List the edits of a released folder, first one first, and what they do to each other's concepts.

    \b
    safear-edit stack ls safer-llamagen
    """
    from safear_edit.release.released import Released

    released = Released.read(folder)
    rows = [_row(member) for member in released.members]
    if given.as_json:
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
@taking(Amending)
def remove(folder: Path, name: str, given: Amending) -> int:
    """Remove one edit by its concept's name, measure the others again and say what changed; DIR stays as it is.

    \b
    safear-edit stack remove safer-llamagen dog --out safe-llamagen
    """
    from safear_edit.pipeline import amend

    known = checked_signatures([folder], given.trust)
    with run_options(given) as options:
        result = amend.remove(folder, name, given.out, options, given.device)
    say_signatures(known, given)
    return print_result(result, given.as_json)


@stack.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("weights", metavar="NAME=STRENGTH...", nargs=-1, required=True)
@taking(Amending)
def reweight(folder: Path, weights: tuple[str, ...], given: Amending) -> int:
    """Merge some edits more or less strongly (1 as found, 0 not at all), measure everything again; DIR stays as it is.

    \b
    safear-edit stack reweight safer-llamagen dog=0.5 --out softer-llamagen
    """
    from safear_edit.pipeline import amend

    strengths = dict(_strength(text) for text in weights)
    if len(strengths) < len(weights):
        raise UsageError("stack reweight", "each concept once", "one of them twice", "leave one out")
    known = checked_signatures([folder], given.trust)
    with run_options(given) as options:
        result = amend.reweight(folder, strengths, given.out, options, given.device)
    say_signatures(known, given)
    return print_result(result, given.as_json)


def _strength(text: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, float(number)
    except ValueError:
        raise UsageError("stack reweight", "NAME=NUMBER", repr(text), "for instance dog=0.5") from None


@stack.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@taking(Amending)
def reorder(folder: Path, names: tuple[str, ...], given: Amending) -> int:
    """Merge the edits in another order, first one first, measure everything again; DIR stays as it is.

    \b
    safear-edit stack reorder safer-llamagen dog picasso --out reordered
    """
    from safear_edit.pipeline import amend

    known = checked_signatures([folder], given.trust)
    with run_options(given) as options:
        result = amend.reorder(folder, names, given.out, options, given.device)
    say_signatures(known, given)
    return print_result(result, given.as_json)


# -- explaining -------------------------------------------------------------------------------------------------------


@stack.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@taking(ForProgram)
def diff(first: str, second: str, given: ForProgram) -> int:
    """Which tensors differ between two models, which edits explain that, and what none explains.

    A and B are released folders or model references. What is left is other training, or tampering.

    \b
    safear-edit stack diff llamagen safer-llamagen
    """
    from safear_edit.pipeline.diff import diff as compare

    found = compare(first, second)
    if given.as_json:
        print_json(asdict(found))
        return 0
    rows = [
        (c.tensor, f"{c.norm:.3g}", f"{c.relative:.2%}", str(c.rank), ", ".join(c.edits), f"{c.left:.3g}")
        for c in found.changed
    ]
    if rows:
        print_table(("tensor", "change, norm", "of A's", "rank", "changed by", "unexplained"), rows)
    print("\n".join(found.lines()))
    return 0


@stack.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("tensor")
@taking(ForProgram)
def blame(folder: Path, tensor: str, given: ForProgram) -> int:
    """Which edits of a release changed a tensor, and by how much.

    \b
    safear-edit stack blame safer-llamagen layers.0.attention.wqkv.weight
    """
    from safear_edit.pipeline.diff import blame as explain

    found = explain(folder, tensor)
    if given.as_json:
        print_json(asdict(found))
        return 0
    if not found.edits:
        print(f"no edit changes {tensor}")
        return 0
    rows = [
        (one.name, f"{one.strength:g}", f"{one.norm:.3g}", f"{one.relative:.2%}", str(one.rank), f"{one.share:.0%}")
        for one in found.edits
    ]
    print_table(("edit", "strength", "change, norm", "of the base's", "rank", "share of all change"), rows)
    if found.left:
        print(f"no edit explains a change of norm {found.left:.3g}: other training, or tampering")
    return 0


@dataclass(frozen=True)
class BisectOptions(OnDevice, Shown):
    count: int = option(
        "--n", "-n", type=click.IntRange(8, 1000), default=48, show_default=True, help="Prompts per try."
    )


@stack.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("label")
@taking(BisectOptions)
def bisect(folder: Path, label: str, given: BisectOptions) -> int:
    """Find the edit with which most of a label's loss came, by halving the stack; nothing is written.

    LABEL is what a judge reads, for instance style=seurat; the prompts are those of the release's own evaluation.

    \b
    safear-edit stack bisect safer-llamagen style=seurat
    """
    from safear_edit.pipeline.diff import bisect as halve
    from safear_edit.pipeline.order import resolve_device

    with shown_progress(given) as progress:
        found = halve(folder, label, count=given.count, device=resolve_device(given.device), progress=progress)
    if given.as_json:
        print_json(asdict(found))
        return 0
    rows = [(str(step.edits), f"{step.found} of {step.n}") for step in found.steps]
    print_table(("edits merged", f"{label} found in"), rows)
    told = f"lost {found.lost}, gained {found.gained}, p {found.p:.3g}"
    print(f"{found.culprit}: most of the loss came with this edit ({told})" if found.culprit else f"no loss: {told}")
    return 0


# -- export -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportOptions(Writing, ForProgram):
    layout: str = option(
        "--layout", required=True, help="upstream, transformers or peft; what there is depends on the family."
    )


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@taking(ExportOptions)
def export(folder: Path, given: ExportOptions) -> int:
    """Write a released model in the layout of the code it came from, or its edits as peft adapters.

    \b
    safear-edit export safe-llamagen --layout upstream --out for-llamagen
    """
    from safear_edit.release.export import export as write

    made = write(folder, given.layout, given.out, overwrite=given.overwrite)
    if given.as_json:
        print_json(made.as_json())
    else:
        print("\n".join(f"{digest[:12]}  {name}" for name, digest in made.files.items()))
        print(f"to check: {made.check}")
    return 0


VERBS: tuple[click.Command, ...] = (stack, export)
