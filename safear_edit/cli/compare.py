"""The verb `compare`: methods on the same concepts, model, prompts and seeds; main.py attaches VERBS."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from safear_edit.cli.options import (
    NEW,
    SOURCE,
    OnDevice,
    Shown,
    option,
    print_json,
    print_table,
    shown_progress,
    taking,
    typed_command,
)


class ManyValues(click.Command):
    """A command whose --methods takes every word up to the next option: `--methods vce svare` is two of them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread, listing = list[str](), False
        for word in args:
            if word == "--methods":
                listing = True
            elif listing and not word.startswith("-"):
                spread += ["--methods", word]
            else:
                listing = False
                spread.append(word)
        return super().parse_args(ctx, spread)


@dataclass(frozen=True)
class CompareOptions(OnDevice, Shown):
    model: str = option("--model", "-m", required=True, help="family[:variant] or a directory: the base of every run.")
    methods: tuple[str, ...] = option(
        "--methods", multiple=True, required=True, metavar="NAME...", help="Methods, or NAME:key=value,… of one."
    )
    seeds: int = option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Seeds 0 … N-1.")
    sets: tuple[str, ...] = option("--set", multiple=True, metavar="KEY=VALUE", help="Change one value in every run.")
    out: Path = option("--out", "-o", type=NEW, required=True, help="The folder to write, or to go on with.")


@click.command(cls=ManyValues)
@click.argument("concepts", metavar="SPEC...", nargs=-1, required=True, type=SOURCE)
@taking(CompareOptions)
def compare(concepts: tuple[str, ...], given: CompareOptions) -> int:
    """Erase concepts with several methods and lay the reports side by side: counts, table, plot, images.

    Every run is a whole `apply` without a signature. The same command continues; with more concepts, methods or seeds
    it adds to what is there.

    \b
    safear-edit compare picasso dog --model llamagen --methods vce svare ear --seeds 3 --out compared
    """
    from safear_edit.pipeline import compared
    from safear_edit.pipeline.compare import compare as run

    with shown_progress(given) as progress:
        found = run(
            concepts,
            given.model,
            given.methods,
            given.out,
            seeds=given.seeds,
            sets=given.sets,
            device=given.device,
            command=typed_command(),
            progress=progress,
            say=progress.say,
        )
    if given.as_json:
        failed = [{"run": name, "why": why} for name, why in found.failed]
        print_json({"rows": [asdict(row) for row in compared.rows(found.ran)], "failed": failed})
    else:
        head, *body = compared.cells(compared.summaries(found.ran))
        print_table(head, body)
        if found.ran:
            print(found.out / "index.html")
    for name, why in found.failed:
        print(f"not compared, {name}: {why}", file=sys.stderr)
    return 0 if not found.failed else 2


VERBS: tuple[click.Command, ...] = (compare,)
