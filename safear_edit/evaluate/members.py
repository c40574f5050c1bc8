"""What an edit costs each member of a preserved group: a style or an object that must stay, not the pool of them all.

A group's pooled drop can hide that one member pays for it: 8 images of Van Gogh lost among 400 of six styles are 2
points of the pool and 12 points of Van Gogh. Every member is therefore tested by itself, on the same prompts and seeds
before and after, exactly, with Holm's correction over the members of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

from safear_edit.evaluate import stats
from safear_edit.evaluate.verdict import WORST_FIRST, Verdict

T = TypeVar("T")


class Flips(NamedTuple):
    """Prompts of one member: of `n`, how many the base model drew and the edit lost, and how many came; `effect`: what
    prompts of one content do to the variance of the drop (`stats.design_effect`); `drawn`: how many the base model
    drew, None where nobody asks."""

    n: int
    lost: int
    gained: int
    effect: float = 1.0
    drawn: int | None = None


class Margin(NamedTuple):
    """What one member may lose, in shares: an observed `drop`, or a 95 % upper bound of it below `upper`."""

    drop: float = 0.08
    upper: float = 0.12


MARGIN = Margin()
"""With it and 66 prompts of one among six members, a loss of 12 points is not passed in 80 % of cases, one of 15 points
in 93 %, and a member that loses nothing passes (`power`; 2 % of images flip anyway)."""
WIDEST = 0.25
"""However small the drop that was seen, a member passes only if its 95 % bound is no wider: three images, none of them
lost, leave a loss of 47 points open; nine of which none is lost pass."""


class Member(BaseModel):
    """One member's loss, in shares.

    p, p_holm: exact one-sided McNemar, alone and among its group. upper95: one-sided Tango bound of the drop;
    by_content: that bound with prompts of one content taken together; drawn: how many of n the base model drew. Both
    None in older reports.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    n: int
    drawn: int | None = None
    lost: int
    gained: int
    drop: float
    upper95: float
    by_content: float | None = None
    p: float
    p_holm: float
    verdict: Verdict

    @property
    def upper(self) -> float:
        """The bound that decides: the larger of the two."""
        return self.upper95 if self.by_content is None else max(self.upper95, self.by_content)


def members(flips: Mapping[str, Flips], margin: Margin = MARGIN, least_drawn: float = 0.0) -> tuple[Member, ...]:
    """Every member that has prompts, worst first: failed before undecided, then by plain upper bound and name (the one
    by content is wide where images of one content came, too).

    least_drawn: share of its prompts that the base model must have drawn for a member to pass: what was never drawn
    can't be lost, and so can't be shown to stay.
    """
    there = {name: one for name, one in flips.items() if one.n}
    p_values = [stats.mcnemar_p(one.lost, one.gained) for one in there.values()]
    adjusted = stats.holm(p_values)
    found = [_member(name, there[name], p, q, margin) for name, p, q in zip(there, p_values, adjusted, strict=True)]
    return tuple(sorted((_if_drawn(one, least_drawn) for one in found), key=_worst_first))


def worst(found: Iterable[tuple[Member, T]]) -> tuple[Member, T]:
    """Of several groups' members with what they belong to, the one that a verdict has to name."""
    return min(found, key=lambda pair: _worst_first(pair[0]))


def _worst_first(one: Member) -> tuple[int, float, str]:
    return WORST_FIRST.index(one.verdict), -one.upper95, one.name


def drawn_too_rarely(one: Member, least: float) -> bool:
    """Whether the base model drew too few of a member's prompts for what the edit lost of them to say anything."""
    return one.drawn is not None and one.drawn < least * one.n


def _if_drawn(one: Member, least: float) -> Member:
    open_ = one.verdict == "PASS" and drawn_too_rarely(one, least)
    return one.model_copy(update={"verdict": "INCONCLUSIVE"}) if open_ else one


def _member(name: str, one: Flips, p: float, p_holm: float, margin: Margin) -> Member:
    drop, upper = (one.lost - one.gained) / one.n, stats.tango_upper(one.lost, one.gained, one.n)
    by_content = stats.clustered_upper(one.lost, one.gained, one.n, one.effect)
    verdict = decide(drop, max(upper, by_content), p_holm, margin)
    return Member(
        name=name,
        n=one.n,
        drawn=one.drawn,
        lost=one.lost,
        gained=one.gained,
        drop=drop,
        upper95=upper,
        by_content=by_content,
        p=p,
        p_holm=p_holm,
        verdict=verdict,
    )


def decide(drop: float, upper: float, p: float, margin: Margin) -> Verdict:
    """PASS when the bound excludes the margin, or when a drop within it can't be told from chance and is bounded by
    WIDEST; FAIL when a drop beyond it can; INCONCLUSIVE when only more prompts could say."""
    if _passes(drop, p, margin, lambda most: upper <= most):
        return "PASS"
    return "FAIL" if drop > margin.drop and p <= stats.ALPHA else "INCONCLUSIVE"


def _passes(drop: float, p: float, margin: Margin, bounded: Callable[[float], bool]) -> bool:
    return bounded(margin.upper) or (drop <= margin.drop and p > stats.ALPHA and bounded(WIDEST))


class Power(NamedTuple):
    """How often `decide` says PASS of a member that loses nothing, and anything else of one that loses `drop`."""

    passes: float
    finds: float


@lru_cache(maxsize=1024)
def power(n: int, drop: float, members: int, margin: Margin = MARGIN, flips: float = 0.02) -> Power:
    """Exact over all outcomes of `n` prompts of one among `members`, when a share `flips` of images changes anyway.

    Half of `flips` is lost and half gained; a true `drop` comes on top, as far as there is more to lose.
    Holm is taken at its strictest step, p times `members`, so `finds` is never above what a group really has.
    """
    half = flips / 2
    lost = min(drop + half, 1 - half)
    return Power(_pass_chance(n, half, half, members, margin), 1 - _pass_chance(n, lost, half, members, margin))


def _pass_chance(n: int, lost: float, gained: float, members: int, margin: Margin) -> float:
    total = 0.0
    for down, up, chance in stats.outcomes(n, lost, gained):
        p = min(1.0, members * stats.mcnemar_p(down, up))
        within = partial(stats.drop_within, down, up, n)
        total += chance if _passes((down - up) / n, p, margin, within) else 0.0
    return total
