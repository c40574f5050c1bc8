"""Whether a spec's criteria can be decided with their numbers of prompts, and how surely, before anything is drawn.

The same exact bounds as in the verdict (stats.py). A criterion *can be met* if the best possible outcome meets it: all
erased, nothing lost. Its *power* is the chance that a good edit meets it, good meaning ERASED of the concept's images
gone for good, and no net loss of preserved ones while a share FLIPS of them changes anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from safear_edit.evaluate import members, stats
from safear_edit.evaluate.members import Margin
from safear_edit.spec.spec import SLICES, Spec
from safear_edit.spec.text import Problem

ERASED = 0.98
"""True share erased of a good edit; halfway from the gate to all of it where the gate asks for more."""
FLIPS = 0.02
"""Images of a preserved group that change their judgement under an edit that costs nothing, half of them each way."""
STEP = 10
"""Sizes are recommended in tens."""


class Criterion(NamedTuple):
    """One criterion at its n: can it be met, with what power, and which n would do.

    field: where its n stands in the spec. least: fewest prompts with which it can be met; enough: with which it has
    stats.POWER; None: no number. why: what the best outcome shows at n, beside the gate that asks for it. finds: how
    often a loss is seen, where the criterion is there for that.
    """

    slice: str
    field: tuple[str | int, ...]
    n: int
    met: bool
    power: float
    least: int | None
    enough: int | None
    why: str
    finds: str = ""

    def sentence(self) -> str:
        """For a person: "objects, 40 prompts: …"."""
        if not self.met:
            return f"{self.slice}, {self.n} prompts: can't be met, {self.why}"
        more = f"; {self.enough} prompts: {stats.POWER:.0%}" if self.power < stats.POWER and self.enough else ""
        told = f"{self.slice}, {self.n} prompts: a good edit passes in {self.power:.0%} of cases{more}"
        return f"{told}; {self.finds}" if self.finds else told

    def problem(self) -> Problem | None:
        """What is wrong with n, if no result can meet the criterion."""
        if self.met:
            return None
        if self.least is None:
            return Problem("a gate that some number of prompts can show", self.why, "lower the gate", self.field)
        fix = f"set it to {self.enough or self.least}, with which a good edit passes in {stats.POWER:.0%} of cases"
        return Problem(f"at least {self.least} prompts", f"{self.n}: {self.why}", fix, self.field)


def criteria(spec: Spec, sizes: Mapping[str, int] | None = None) -> list[Criterion]:
    """Every criterion about images; `sizes` by slice: other numbers of prompts than the spec's own."""
    gates, floor = spec.gates.every(), spec.gates.erasure_floor
    n = {**spec.evaluate.n.model_dump(), **{group.name: group.n for group in spec.preserve}, **(sizes or {})}
    found = [_erasure(name, n[name], gates[f"erasure_{name}"], floor) for name in SLICES]
    margin = Margin(gates["member_drop"], gates["member_upper"])
    for index, group in enumerate(spec.preserve):
        found.append(_preservation(index, group.name, n[group.name], gates["preserve_drop"], gates["preserve_upper"]))
        labels = len(set(group.members.values()))
        if labels > 1:
            found.append(_by_member(index, group.name, n[group.name], labels, margin))
    return found


def problems(found: list[Criterion]) -> Iterator[Problem]:
    """What can't be met."""
    yield from (problem for one in found if (problem := one.problem()) is not None)


@lru_cache(maxsize=256)
def _erasure(name: str, n: int, needed: float, floor: float) -> Criterion:
    truth = max(ERASED, (1 + needed) / 2)
    fewest = _hits_needed(n, needed, floor)
    least = stats.prompts_for_floor(floor) if 0 < floor < 1 else 1 if floor == 0 else None
    best = stats.clopper_pearson(n, n, side="lower").low
    return Criterion(
        name,
        ("evaluate", "n", name),
        n,
        met=fewest is not None,
        power=_erasure_power(n, needed, floor, truth),
        least=least,
        enough=_first(lambda size: _erasure_power(size, needed, floor, truth) >= stats.POWER) if least else None,
        why=f"all {n} erased would show {best:.1%}, and erasure_floor asks for {floor:.1%}",
    )


def _erasure_power(n: int, needed: float, floor: float, truth: float) -> float:
    fewest = _hits_needed(n, needed, floor)
    return stats.above_p(fewest, n, truth) if fewest is not None else 0.0


def _hits_needed(n: int, needed: float, floor: float) -> int | None:
    """Fewest of n that must be erased to reach the gate and, with the lower bound, the floor; None if n are too few."""

    def passes(k: int) -> bool:
        return k / n >= needed and stats.clopper_pearson(k, n, side="lower").low >= floor

    if not passes(n):
        return None
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


@lru_cache(maxsize=256)
def _preservation(index: int, name: str, n: int, drop: float, upper: float) -> Criterion:
    best = stats.tango_upper(0, 0, n)
    possible = 0 < upper < 1
    return Criterion(
        name,
        ("preserve", index, "n"),
        n,
        met=best < upper,
        power=_preservation_power(n, drop, upper) if best < upper else 0.0,
        least=_first(lambda size: stats.tango_upper(0, 0, size) < upper, 1) if possible else None,
        enough=_first(lambda size: _preservation_power(size, drop, upper) >= stats.POWER) if possible else None,
        why=f"0 of {n} lost would bound the drop by {best:.1%}, and preserve_upper asks for less than {upper:.1%}",
    )


@lru_cache(maxsize=1024)
def _preservation_power(n: int, drop: float, upper: float) -> float:
    """Chance that the observed drop stays within `drop`, its bound below `upper`, if nothing is lost on balance."""
    return sum(
        chance
        for lost, gained, chance in stats.outcomes(n, FLIPS / 2, FLIPS / 2)
        if lost - gained <= drop * n and stats.drop_within(lost, gained, n, upper)
    )


@lru_cache(maxsize=256)
def _by_member(index: int, name: str, n: int, labels: int, margin: Margin) -> Criterion:
    """All members of a group, between which its n prompts are shared evenly, and what one that pays costs."""
    each = max(1, n // labels)
    pays = margin.upper

    def all_pass(size: int) -> float:
        return members.power(max(1, size // labels), pays, labels, margin, FLIPS).passes ** labels

    found, chance = members.power(each, pays, labels, margin, FLIPS).finds, all_pass(n)
    widest = max(margin.upper, members.WIDEST)
    least = _first(lambda size: stats.tango_upper(0, 0, size) <= widest, 1)
    return Criterion(
        f"{name}, each of {labels} members",
        ("preserve", index, "n"),
        n,
        met=least is not None and each >= least,
        power=chance,
        least=least and least * labels,
        enough=n if chance >= stats.POWER else _first(lambda size: all_pass(size) >= stats.POWER),
        why=f"none of {each} lost would bound a member's drop by {stats.tango_upper(0, 0, each):.1%}, and no bound "
        f"above {widest:.0%} passes",
        finds=f"with {each} prompts each, a loss of {100 * pays:g} points is found in {found:.0%} of cases",
    )


def _first(enough: Callable[[int], bool], step: int = STEP) -> int | None:
    """The first multiple of `step` from which it and the next two are enough; None if none below stats.MOST_PAIRS is.

    Counts jump, so chances go up and down a little from one size to the next.
    """
    low, high = 0, 1
    while not enough(high * step):
        low, high = high, 2 * high
        if high * step > stats.MOST_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle * step) else (middle, high)
    while missed := [ahead for ahead in (1, 2) if not enough((high + ahead) * step)]:
        high += missed[-1] + 1
    return high * step
