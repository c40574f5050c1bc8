"""The numbers behind a verdict: exact intervals for a rate, paired tests for a change, and how many prompts are enough.

It knows no model, concept or file. The unit is one prompt with one seed: several seeds of one prompt are not
independent (counted as if they were, they give 8-17 % false alarms instead of 5 %), so count prompts, never pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Literal

import numpy as np
from pydantic import ConfigDict, with_config
from scipy import optimize, stats

Side = Literal["two-sided", "lower", "upper"]
Decision = Literal["PASS", "REGRESSED", "INCONCLUSIVE"]

ALPHA = 0.05
"""Error of each one-sided statement: a bound is exceeded by chance at most this often."""
POWER = 0.8
"""Chance that a change of nothing is recognised as such; `Paired.n_needed` aims at it."""
LEAST_YOUDEN = 0.6
"""A judge with sensitivity + specificity - 1 below this says too little for a correction (and for a gate)."""
MOST_PAIRS = 20_000
"""Where the search for a sample size gives up; nobody generates more pictures for one group."""


@with_config(ConfigDict(extra="forbid"))  # reports hold these as they are, and take no field they don't know
@dataclass(frozen=True)
class Rate:
    """k of n with its interval; a one-sided `method` leaves the other end at 0 or 1."""

    k: int
    n: int
    estimate: float
    low: float
    high: float
    confidence: float
    method: str


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Paired:
    """What changed on the same prompts and seeds: `lost` were good and no longer are, `gained` the reverse.

    `drop` is (lost - gained) / n; `upper95` and `lower95` are its one-sided 95 % Tango score bounds. `n_needed` pairs
    would show a drop below `margin` with 80 % power if in truth nothing were lost and as many pairs flipped as here.
    """

    n: int
    lost: int
    gained: int
    drop: float
    upper95: float
    lower95: float
    mcnemar_p: float
    margin: float
    decision: Decision
    n_needed: int


def clopper_pearson(k: int, n: int, confidence: float = 0.95, side: Side = "two-sided") -> Rate:
    """The exact binomial interval: true rates outside it would give k or worse with less than the error left over.

    Exact rather than bootstrap because 0 of n must not become [0, 0]. ValueError unless 0 <= k <= n and n >= 1.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"k={k} of n={n} is no count")
    tail = (1 - confidence) / (2 if side == "two-sided" else 1)
    low = float(stats.beta.ppf(tail, k, n - k + 1)) if k > 0 and side != "upper" else 0.0
    high = float(stats.beta.isf(tail, k + 1, n - k)) if k < n and side != "lower" else 1.0
    return Rate(k, n, k / n, low, high, confidence, f"clopper-pearson {side}")


def tango_upper(lost: int, gained: int, n: int, confidence: float = 0.95) -> float:
    """Upper score bound of the paired drop (lost - gained) / n, one-sided (Tango, Stat. Med. 17:891, 1998).

    It is the largest drop d that the score test does not reject; the restricted likelihood has its maximum in closed
    form. 0 lost and 0 gained give z²/(n + z²), not 0.
    """
    _check_pairs(lost, gained, n)
    if lost == n:
        return 1.0
    z = float(stats.norm.ppf(confidence))

    def excess(d: float) -> float:
        return lost - gained - n * d + z * sqrt(float(_score_variance(lost, gained, n, d)))

    # At the observed drop itself the excess is z·√variance, which is 0 when no pair flipped: start just above.
    return float(optimize.brentq(excess, (lost - gained) / n + 1e-12, 1.0, xtol=1e-12))


def tango_interval(lost: int, gained: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of the drop; swapping lost and gained mirrors it, which gives the lower end."""
    one_sided = (1 + confidence) / 2
    return -tango_upper(gained, lost, n, one_sided), tango_upper(lost, gained, n, one_sided)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact one-sided p-value that losses outnumber gains by chance alone; 1 when no pair flipped."""
    if lost + gained == 0:
        return 1.0
    return float(stats.binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue)


def paired(lost: int, gained: int, n: int, margin: float, alpha: float = ALPHA) -> Paired:
    """The non-inferiority rule on n pairs: see `decide`. ValueError when counts don't fit or margin is no share."""
    _check_pairs(lost, gained, n)
    if not 0 < margin < 1:
        raise ValueError(f"margin {margin} is not a share")
    upper, p = tango_upper(lost, gained, n, 1 - alpha), mcnemar_p(lost, gained)
    return Paired(
        n=n,
        lost=lost,
        gained=gained,
        drop=(lost - gained) / n,
        upper95=upper,
        lower95=-tango_upper(gained, lost, n, 1 - alpha),
        mcnemar_p=p,
        margin=margin,
        decision=decide(upper, p, margin, alpha),
        n_needed=pairs_needed((lost + gained) / n, margin),
    )


def decide(upper: float, p: float, margin: float, alpha: float = ALPHA) -> Decision:
    """PASS when a drop of `margin` is excluded, REGRESSED when a drop of zero is, else INCONCLUSIVE.

    PASS comes first: a real but small change inside the margin passes, because the margin is what was promised.
    """
    if upper < margin:
        return "PASS"
    return "REGRESSED" if p <= alpha else "INCONCLUSIVE"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values in the given order: many groups are tested, so a lucky small p must not name a culprit."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def rogan_gladen(
    k: int, n: int, *, true_pos: int, n_pos: int, true_neg: int, n_neg: int, confidence: float = 0.95, seed: int = 0
) -> Rate:
    """The rate that a fallible judge's k of n stands for: (p + sp - 1) / (se + sp - 1), clipped to [0, 1].

    The interval propagates all three uncertainties by drawing p, sensitivity and specificity from their Beta posteriors
    (Jeffreys prior, 20 000 draws from `seed`). Gates use the raw counts; this is printed beside them. ValueError when
    the judge is too weak (LEAST_YOUDEN).
    """
    se, sp = true_pos / n_pos, true_neg / n_neg
    if se + sp - 1 < LEAST_YOUDEN:
        raise ValueError(f"sensitivity {se:.3f} + specificity {sp:.3f} - 1 is below {LEAST_YOUDEN}")
    rng = np.random.default_rng(seed)
    p_draw, se_draw, sp_draw = (
        rng.beta(hits + 0.5, total - hits + 0.5, 20_000)
        for hits, total in ((k, n), (true_pos, n_pos), (true_neg, n_neg))
    )
    draws = np.clip((p_draw + sp_draw - 1) / np.maximum(se_draw + sp_draw - 1, 1e-9), 0, 1)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    estimate = min(1.0, max(0.0, (k / n + sp - 1) / (se + sp - 1)))
    return Rate(k, n, estimate, min(float(low), estimate), max(float(high), estimate), confidence, "rogan-gladen")


@lru_cache(maxsize=256)
def pairs_needed(flips: float, margin: float, power: float = POWER) -> int:
    """Pairs that show a drop below `margin` with chance `power` if a share `flips` of pairs flips, half up, half down.

    The chance is computed exactly. MOST_PAIRS means "that many or more".
    """
    too_few, enough = 0, 16
    while _pass_chance(enough, flips, margin) < power:
        if enough >= MOST_PAIRS:
            return MOST_PAIRS
        too_few, enough = enough, min(2 * enough, MOST_PAIRS)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if _pass_chance(middle, flips, margin) < power:
            too_few = middle
        else:
            enough = middle
    return enough


def _pass_chance(n: int, flips: float, margin: float) -> float:
    """Chance that the Tango bound stays below the margin, summed over all likely (lost, gained)."""
    most = min(n, int(n * flips / 2 + 8 * sqrt(n * flips / 2) + 8))
    lost, gained = np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing="ij")
    flipped = lost + gained
    fits = flipped <= n
    chance = stats.binom.pmf(flipped, n, flips) * stats.binom.pmf(lost, flipped, 0.5)
    # Far sums are outside [0, n]; they carry no chance, but their variance formula has no meaning either.
    lost, gained = np.where(fits, lost, 0), np.where(fits, gained, 0)
    z = float(stats.norm.ppf(1 - ALPHA))
    below = lost - gained - n * margin + z * np.sqrt(_score_variance(lost, gained, n, margin)) < 0
    return float(chance[fits & below].sum())


def _score_variance(
    lost: int | np.ndarray, gained: int | np.ndarray, n: int, d: float | np.ndarray
) -> float | np.ndarray:
    """n(2q + d(1 - d)): variance of lost - gained where q, the chance of a gain, is most likely given a drop of d."""
    a = 2 * n
    b = -lost - gained + (2 * n - lost + gained) * d
    c = -gained * d * (1 - d)
    q = (np.sqrt(np.maximum(b * b - 4 * a * c, 0)) - b) / (2 * a)
    return np.maximum(n * (2 * q + d * (1 - d)), 0)


def _check_pairs(lost: int, gained: int, n: int) -> None:
    if min(lost, gained) < 0 or lost + gained > n or n < 1:
        raise ValueError(f"lost={lost} and gained={gained} of n={n} pairs is no count")
