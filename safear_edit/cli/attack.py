"""The verb `attack`: try to bring an erased concept back, with controls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safear_edit.cli.options import (
    FOLDER,
    NEW,
    SOURCE,
    Drawing,
    OnDevice,
    Seeded,
    Shown,
    Trusting,
    checked_signatures,
    option,
    print_json,
    print_table,
    say_signatures,
    shown_progress,
    taking,
)
from safear_edit.errors import UsageError

if TYPE_CHECKING:
    from safear_edit.attacks.counts import Count
    from safear_edit.attacks.record import Attacks, Leaks


@dataclass(frozen=True)
class AttackOptions(Seeded, OnDevice, Drawing, Trusting, Shown):
    spec: str | None = option(
        "--spec", type=SOURCE, help="The concept to bring back (default: the release's own, if it has one)."
    )
    names: tuple[str, ...] = option(
        "--attack", multiple=True, metavar="NAME", help="See: safear-edit ls attacks (default: all)."
    )
    tier: str = option(
        "--tier",
        type=click.Choice(["quick", "standard", "full", "smoke", "ci", "audit"]),
        default="quick",
        show_default=True,
        help="How much; smoke, ci and audit are suites, and the last two gate black-box attacks.",
    )
    budget: float | None = option(
        "--budget", type=float, metavar="MINUTES", help="No attack begins after so many minutes."
    )
    lock: Path | None = option(
        "--lock", type=NEW, metavar="FILE", help="Freeze there what was found, for check --attacks."
    )
    out: Path | None = option("--out", "-o", type=NEW, help="Where results are kept (default: DIR-attacks beside it).")


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@taking(AttackOptions)
def attack(folder: Path, given: AttackOptions) -> int:
    """Try to bring a concept back from a release, each attack beside a control where nothing can come back.

    The same call goes on where it was killed. What the base model shows is kept in the user's cache for a month, so
    that another edit of it is attacked without drawing that again; the column cost says how many images that was. The
    exit code is 0 whatever is found, but for the suites ci and audit: 1 if a black-box attack finds more than they
    allow, 3 if that is not shown either way, also because --budget was spent before. White-box attacks never decide.

    \b
    safear-edit attack safe-llamagen --tier standard
    """
    from safear_edit.pipeline.attack import attack as run

    if given.budget is not None and not given.budget > 0:
        raise UsageError("--budget", "minutes above 0", str(given.budget), "leave it out for no limit")
    known = checked_signatures([folder], given.trust)
    where = given.out or folder.absolute().parent / f"{folder.absolute().name}-attacks"
    with shown_progress(given) as progress:
        found = run(
            folder,
            spec=given.spec,
            names=given.names,
            tier=given.tier,
            minutes=given.budget,
            seed=given.seed,
            device=given.device,
            dtype=given.dtype,
            memory=given.memory,
            out=where,
            lock=given.lock,
            progress=progress,
        )
    say_signatures(known, given)
    if given.as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print(found, where)
    return _code(found)


def _code(found: Attacks) -> int:
    """1 where a gated attack found too much, 3 where it can't be told or was left out for time, else 0."""
    from safear_edit.attacks.suites import decision
    from safear_edit.evaluate.verdict import EXIT_CODES, overall

    decided = [word for leaks in found.found if (word := decision(leaks, found.black_box_upper))]
    decided += ["INCONCLUSIVE" for one in found.not_run if one.undecided]
    return EXIT_CODES[overall(decided)] if decided else 0


def _print(found: Attacks, where: Path) -> None:
    columns = ("attack", "access", "edited", "base", "control", "excess [95 %]", "p (Holm)", "cost", "")
    print_table(columns, [_row(leaks, found.black_box_upper) for leaks in found.found])
    for leaks in found.found:
        print(f"control of {leaks.attack}: {leaks.control_is}")
        for part in leaks.left_out:
            print(f"  {part.name}: left out, the base model shows it in {part.count.found} of {part.count.n}")
        for curve in leaks.curves:
            print(f"  {curve.name}: {curve.sentence()}")
    for one in found.not_run:
        print(f"{one.attack}: not run, {one.why}")
    print(f"concept {found.concept}, judge {found.judge}; found of all images, unreadable ones in brackets")
    print(where / "attacks.html")


def _row(leaks: Leaks, upper: float | None) -> tuple[str, ...]:
    from safear_edit.attacks.suites import decision

    excess, p, decided = leaks.excess, leaks.p_holm, decision(leaks, upper)
    return (
        leaks.attack,
        leaks.access,
        _counted(leaks.edited),
        _counted(leaks.base),
        _counted(leaks.control) if leaks.control else "none",
        f"{excess.estimate:+.2f} [{excess.low:+.2f}, {excess.high:+.2f}]" if excess else "–",
        f"{p:.3g}" if p is not None else "–",
        _cost(leaks),
        f"{decided}: {leaks.sentence()}" if decided else leaks.sentence(),
    )


def _cost(leaks: Leaks) -> str:
    cost = leaks.cost
    reused = f" ({cost.reused} of them drawn before)" if cost.reused else ""
    return f"{cost.images} images{reused}, {cost.steps} steps, {cost.seconds:.0f} s"


def _counted(count: Count) -> str:
    unreadable = f" ({count.unreadable})" if count.unreadable else ""
    return f"{count.found}/{count.n}{unreadable}"


VERBS: tuple[click.Command, ...] = (attack,)
"""What main.py adds to its group."""
