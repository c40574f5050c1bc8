"""The verb `tune`: a method's numbers for one concept and model; main.py attaches VERBS."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from safear_edit.cli.options import (
    NEW,
    SOURCE,
    ByMethod,
    OnDevice,
    Seeded,
    Shown,
    option,
    print_json,
    print_table,
    shown_progress,
    taking,
    typed_command,
)

UNITS = {"s": 1 / 60, "min": 1.0, "h": 60.0}


def minutes(text: str) -> float:
    """A time such as 90s, 30min or 2h, in minutes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text.strip())
    if match is None or not float(match[1]):
        raise click.BadParameter(f"expected a time such as 90s, 30min or 2h, got {text!r}")
    return float(match[1]) * UNITS[match[2]]


@dataclass(frozen=True)
class TuneOptions(ByMethod, Seeded, OnDevice, Shown):
    model: str = option("--model", "-m", required=True, help="family[:variant] or a directory.")
    budget: float = option("--budget", type=minutes, default="30min", show_default=True, help="Time to search for.")
    trials: int | None = option("--trials", type=click.IntRange(min=1), help="No more trials than that in this call.")
    sets: tuple[str, ...] = option("--set", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe.")
    out: Path = option("--out", "-o", type=NEW, required=True, help="The folder to write, or to go on with.")


@click.command()
@click.argument("spec", type=SOURCE)
@taking(TuneOptions)
def tune(spec: str, given: TuneOptions) -> int:
    """Search a method's numbers with training prompts alone, and write the best as a recipe.

    The ranges stand in the method's recipe under `tune:`. Hopeless trials end early; the same command goes on with the
    search. Needs Optuna: pip install 'safear-edit[tune]'.

    \b
    safear-edit tune concepts/dog.yaml --model janus --budget 30min --out tuned
    safear-edit apply concepts/dog.yaml --model janus --method tuned/best.yaml --out safe-janus
    """
    from safear_edit.pipeline.order import Order
    from safear_edit.pipeline.tune import cells
    from safear_edit.pipeline.tune import tune as search

    order = Order(spec, given.model, given.method, given.seed, given.sets, given.device)
    with shown_progress(given) as progress:
        found = search(
            order, given.out, minutes=given.budget, trials=given.trials, command=typed_command(), progress=progress
        )
    if given.as_json:
        print_json({"trials": [asdict(one) for one in found.trials], "best": found.best and found.best.number})
        return 0
    head, *rows = cells(found.trials)
    print_table(head, rows)
    if found.best and found.recipe:
        print(f"best: trial {found.best.number}, {found.recipe}")
    else:
        print("no trial was finished; give it a longer --budget")
    return 0


VERBS: tuple[click.Command, ...] = (tune,)
