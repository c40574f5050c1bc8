"""The verb `attack`: try to bring an erased concept back, with controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safear_edit.cli.options import FOLDER, NEW, print_json, print_table, shared, shown_progress
from safear_edit.errors import UsageError

if TYPE_CHECKING:
    from safear_edit.attacks.record import Attacks, Count, Leaks


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--spec", help="The concept to bring back (default: the release's own, if it has one).")
@click.option("--attack", "names", multiple=True, metavar="NAME", help="See: safear-edit ls attacks (default: all).")
@click.option("--tier", type=click.Choice(["quick", "standard", "full"]), default="quick", show_default=True)
@click.option("--budget", type=float, metavar="MINUTES", help="No attack begins after so many minutes.")
@click.option("--out", type=NEW, help="Where results are kept (default: DIR-attacks beside it).")
@shared("seed", "device", "json", "quiet")
def attack(
    folder: Path,
    spec: str | None,
    names: tuple[str, ...],
    tier: str,
    budget: float | None,
    out: Path | None,
    seed: int,
    device: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Try to bring a concept back from a release, each attack beside its control of the same budget.

    Found or not, the exit code is 0: this informs and decides nothing. The same call goes on where it was killed.

    \b
    safear-edit attack safe-llamagen --tier standard
    """
    from safear_edit.pipeline.attack import attack as run

    if budget is not None and not budget > 0:
        raise UsageError("--budget", "minutes above 0", str(budget), "leave it out for no limit")
    where = out or folder.absolute().parent / f"{folder.absolute().name}-attacks"
    with shown_progress(as_json=as_json, quiet=quiet) as progress:
        found = run(
            folder,
            spec=spec,
            names=names,
            tier=tier,
            minutes=budget,
            seed=seed,
            device=device,
            out=where,
            progress=progress,
        )
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print(found, where)
    return 0


def _print(found: Attacks, where: Path) -> None:
    columns = ("attack", "access", "edited", "base", "control", "excess [95 %]", "p (Holm)", "cost", "")
    print_table(columns, [_row(leaks) for leaks in found.found])
    for leaks in found.found:
        print(f"control of {leaks.attack}: {leaks.control_is}")
    for one in found.not_run:
        print(f"{one.attack}: not run, {one.why}")
    print(f"concept {found.concept}, judge {found.judge}; found of all images, unreadable ones in brackets")
    print(where / "attacks.json")


def _row(leaks: Leaks) -> tuple[str, ...]:
    excess, p = leaks.excess, leaks.p_holm
    return (
        leaks.attack,
        leaks.access,
        _counted(leaks.edited),
        _counted(leaks.base),
        _counted(leaks.control) if leaks.control else "none",
        f"{excess.estimate:+.2f} [{excess.low:+.2f}, {excess.high:+.2f}]" if excess else "–",
        f"{p:.3g}" if p is not None else "–",
        f"{leaks.cost.images} images, {leaks.cost.steps} steps, {leaks.cost.seconds:.0f} s",
        leaks.sentence(),
    )


def _counted(count: Count) -> str:
    unreadable = f" ({count.unreadable})" if count.unreadable else ""
    return f"{count.found}/{count.n}{unreadable}"


VERBS: tuple[click.Command, ...] = (attack,)
"""What main.py adds to its group."""
