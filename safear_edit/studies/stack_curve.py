"""How a stack ages: concepts erased one after another, measured at several heights, as rows for examples/results.

    python -m safear_edit.studies stack_curve CONCEPT… --model llamagen --out FOLDER [--joint] [--heights 1 2 3 5 8]

Edits are found by their recipes' defaults, each on the model with those below it (or all in one, with --joint). At each
height every concept erased so far is drawn and judged (20 prompts by name, 20 by held-out names, 10 in held-out forms),
and so are the first concept's preserved groups, without what later concepts erase: 40 images of each member, against
the same prompts and seeds in the base model. A killed study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from safear_edit.compiler.recipe import Recipe
from safear_edit.evaluate.members import Member, members, worst
from safear_edit.evaluate.outcomes import Outcome, read_outcomes
from safear_edit.files import rundir
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline.order import Order, compile_recipes, read_sources
from safear_edit.pipeline.run import additions
from safear_edit.pipeline.state import RunOptions, StackState, base_part, loaded, measured_part
from safear_edit.pipeline.steps import evaluate
from safear_edit.progress import Progress, mode_for
from safear_edit.report.criteria import Slice, by_slice, member_flips
from safear_edit.spec.spec import Spec
from safear_edit.studies.arguments import command, positive
from safear_edit.studies.members import SLICES
from safear_edit.studies.rows import ROWS, Row, made, read_rows, write_rows

HEIGHTS = (1, 2, 3, 5, 8, 10)
ASKED = {"direct": 20, "paraphrase": 20, "template": 10}
"""Prompts by which each erased concept is asked for, by slice."""
EACH = 40
"""Prompts of each preserved member: a loss of 5 points is two images."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the rows."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies stack_curve", description=__doc__)
    parser.add_argument("concepts", metavar="CONCEPT", nargs="+", help="specs or built-in names, in order")
    parser.add_argument("--model", default="llamagen")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {ROWS} and the run")
    parser.add_argument("--joint", action="store_true", help="one edit for all concepts")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `safear-edit apply`")
    parser.add_argument("--heights", type=positive, nargs="+", default=list(HEIGHTS), help="numbers of concepts")
    parser.add_argument("--commit", help="in which the rows are recorded")
    chosen = parser.parse_args(arguments)
    first = [*chosen.concepts, *(word for one in chosen.set for word in ("--set", one))]
    origin = made(command(parser, chosen, ("model", "out", "joint", "heights"), first), chosen.commit)
    with Progress(mode_for(sys.stderr, quiet=False)) as progress:
        options = RunOptions(progress=progress, say=lambda line: print(line, file=sys.stderr))
        orders = [Order(one, chosen.model, overrides=tuple(chosen.set), device="cpu") for one in chosen.concepts]
        for row in curve(orders, chosen.heights, chosen.out, options, joint=chosen.joint, origin=origin):
            print(json.dumps(row))
    return 0


def curve(
    asked: Sequence[Order],
    heights: Sequence[int],
    out: Path,
    options: RunOptions,
    *,
    joint: bool = False,
    origin: Row | None = None,
) -> list[Row]:
    """A row per height that there is, new ones with their `origin`.

    UsageError for a concept that is unknown or named twice.

    The orders' own `--set` words go before those that size the measurement.
    """
    specs = [source.spec for source in read_sources(asked)]
    orders = [replace(one, overrides=one.overrides + _sizes(spec, first=spec is specs[0]))
              for one, spec in zip(asked, specs, strict=True)]  # fmt: skip
    told = {
        "model": asked[0].model,
        "order": ", ".join(spec.name for spec in specs),
        "edits": "one" if joint else "each",
    }
    rows = read_rows(out / ROWS, **told)
    with rundir.opened(out / "stack") as run:
        sources = read_sources(orders)
        state = loaded(orders[0], sources[0])
        recipes = compile_recipes(state.model, state.ref, (), orders, sources, joint=joint)
        for change in additions(list(zip(sources, recipes, strict=True)), joint=joint):
            state = change.make(run, state, options)
            height = len(state.members)
            if (joint or height in heights) and all(row["height"] != height for row in rows):
                rows.append(told | {"height": height} | measured(run, state, options) | (origin or {}))
                write_rows(out / ROWS, rows)
    return rows


def _sizes(spec: Spec, *, first: bool) -> tuple[str, ...]:
    """`--set` words: few prompts by which a concept is asked for, and what must stay in the first concept's spec."""
    words = [f"evaluate.n.{name}={n}" for name, n in ASKED.items()]
    words += [f"preserve.{one.name}.n={EACH * len(set(one.members.values())) if first else 1}" for one in spec.preserve]
    return tuple(words)


def measured(run: RunDir, state: StackState, options: RunOptions) -> Row:
    """What the stack's model shows of each erased concept, and what it lost of the first concept's groups."""
    asked, kept = defaultdict[str, list[tuple[str, Outcome]]](list), list[Member]()
    for member in state.members:
        part, (recipe, left_out) = measured_part(run, state, member.name), state.measured_by(member)
        drawn = base_part(run, member.name)
        evaluate(part, member.recipe, state.model, state.stack, options.progress_of(member.name),
                 leave_out=left_out, base_images=drawn)  # fmt: skip
        for one in _slices(part.root, recipe):
            if one.expect == "absent":
                asked[SLICES[one.key]] += [(member.name, edited) for _, edited in one.pairs]
            elif member is state.members[0]:
                kept += members(member_flips(one))
    shown = [(name, row) for rows in asked.values() for name, row in rows]
    return {
        **{name: _not_found(rows) for name, rows in asked.items()},
        "found again": _counted(name for name, row in shown if row.present is True),
        "unreadable": _counted(name for name, row in shown if row.present is None),
        "kept": f"-{sum(m.lost for m in kept)} +{sum(m.gained for m in kept)} of {sum(m.n for m in kept)}",
        "worst member": _words(worst([(m, m) for m in kept])[0]) if kept else None,
        "more than 5 points lost": "; ".join(_words(m) for m in kept if m.drop > 0.05),
    }


def _not_found(rows: Sequence[tuple[str, Outcome]]) -> dict[str, int]:
    return {"k": sum(row.present is not True for _, row in rows), "n": len(rows)}


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())


def _slices(folder: Path, recipe: Recipe) -> list[Slice]:
    path = folder / "outcomes.jsonl"
    return by_slice(read_outcomes(path), recipe, path)


def _words(member: Member) -> str:
    return f"{member.name} -{member.lost} +{member.gained} of {member.n}"
