"""The numbers behind a verdict: exact intervals for a rate, paired tests for a change, and how many prompts are enough.

It knows no model, concept or file. The unit is one prompt with one seed: several seeds of one prompt are not
independent (counted as if they were, they give 8-17 % false alarms instead of 5 %), so count prompts, never images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Literal

import numpy as np
from pydantic import ConfigDict, with_config
from scipy import special

from safear_edit.evaluate.verdict import Verdict

Side = Literal["two-sided", "lower", "upper"]
Counts = float | np.ndarray

ALPHA = 0.05
"""Error of each one-sided statement: a bound is exceeded by chance at most this often."""
POWER = 0.8
"""Chance that a change of nothing is recognised as such; `Paired.n_needed` aims at it."""
LEAST_YOUDEN = 0.6
"""A judge with sensitivity + specificity - 1 below this says too little for a correction (and for a gate)."""
MOST_PAIRS = 20_000
"""Where the search for a sample size gives up; nobody generates more images for one group."""


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
    decision: Verdict
    n_needed: int


@dataclass(frozen=True)
class Chances:
    """How often the rule of `decide` says each of its three words; they add up to 1."""

    passed: float
    inconclusive: float
    regressed: float


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Interval:
    """A mean, or a ratio of two means, of n measurements with its interval."""

    n: int
    estimate: float
    low: float
    high: float
    confidence: float
    method: str


@lru_cache(maxsize=4096, typed=True)
def clopper_pearson(k: int, n: int, confidence: float = 0.95, side: Side = "two-sided") -> Rate:
    """The exact binomial interval: true rates outside it would give k or worse with less than the error left over.

    Exact rather than bootstrap because 0 of n must not become [0, 0]. ValueError unless 0 <= k <= n and n >= 1.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"k={k} of n={n} is no count")
    error = (1 - confidence) / 2 if side == "two-sided" else 1 - confidence
    low = 0.0 if k == 0 or side == "upper" else float(special.betaincinv(k, n - k + 1, error))
    high = 1.0 if k == n or side == "lower" else float(special.betainccinv(k + 1, n - k, error))
    return Rate(k, n, k / n, low, high, confidence, f"clopper-pearson {side}")


def design_effect(values: Sequence[float], clusters: Sequence[str]) -> float:
    """How many times the variance of the mean of `values` is what independent values would give; 1 at least.

    The clusters are what was drawn (ultimate clusters, Kish, Survey Sampling, 1965, ch. 5): the variance of their sums
    of deviations over that of the single deviations. 1 where nothing varies: values that are all alike don't show
    whether clusters matter. ValueError unless each value has a cluster.
    """
    if len(values) != len(clusters) or not values:
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters")
    apart = np.asarray(values, dtype=float) - float(np.mean(values))
    sums: dict[str, float] = {}
    for cluster, one in zip(clusters, apart, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + float(one)
    alone, several = float((apart**2).sum()), len(sums)
    if alone < 1e-12 or several < 2:
        return 1.0
    together = sum(one**2 for one in sums.values())
    return max(1.0, round(together * several / (several - 1) / (alone * len(values) / (len(values) - 1)), 9))


def clustered_lower(k: int, n: int, effect: float, confidence: float = 0.95) -> float:
    """One-sided lower bound of k of n as if there were n / effect (Korn & Graubard, Survey Methodology 24:193, 1998).

    The Clopper-Pearson bound with fractional counts; an effect of 1 gives that bound itself.
    """
    if not 0 <= k <= n or n < 1 or effect < 1:
        raise ValueError(f"k={k} of n={n} with a design effect of {effect} is no count")
    return 0.0 if k == 0 else float(special.betaincinv(k / effect, (n - k) / effect + 1, 1 - confidence))


def clustered_rate(k: int, n: int, effect: float, confidence: float = 0.95) -> Rate:
    """k of n with the two-sided interval of n / effect, as `clustered_lower`; of effect 1 it is Clopper-Pearson's."""
    if effect < 1:
        raise ValueError(f"a design effect of {effect} is below 1")
    plain, one_sided = clopper_pearson(k, n, confidence), (1 + confidence) / 2
    if effect == 1:
        return plain
    low, high = clustered_lower(k, n, effect, one_sided), 1 - clustered_lower(n - k, n, effect, one_sided)
    return Rate(k, n, plain.estimate, low, high, confidence, f"{plain.method}, design effect {effect:.2f}")


def clustered_upper(lost: int, gained: int, n: int, effect: float, confidence: float = 0.95) -> float:
    """One-sided Tango bound of the drop as if all counts were divided by the design effect."""
    if effect < 1:
        raise ValueError(f"a design effect of {effect} is below 1")
    return tango_upper(lost / effect, gained / effect, n / effect, confidence)


@lru_cache(maxsize=2**16)
def tango_upper(lost: float, gained: float, n: float, confidence: float = 0.95) -> float:
    """Upper score bound of the paired drop (lost - gained) / n, one-sided (Tango, Stat. Med. 17:891, 1998).

    It is the largest drop d that the score test does not reject; the restricted likelihood has its maximum in closed
    form. 0 lost and 0 gained give z²/(n + z²), not 0.
    """
    _check_pairs(lost, gained, n)
    z = float(special.ndtri(confidence))
    if lost == n:
        return 1.0
    if not lost and not gained:
        return z**2 / (n + z**2)
    from scipy.optimize import brentq  # a fifth of a second to import, and a plan gets by without

    # At the observed drop itself the excess is z·√variance, which is 0 when no pair flipped: start just above.
    start = (lost - gained) / n + 1e-12
    return float(brentq(lambda d: _excess(lost, gained, n, d, z), start, 1.0, xtol=1e-12))


def drop_within(lost: float, gained: float, n: float, margin: float, confidence: float = 0.95) -> bool:
    """Whether `tango_upper` lies below `margin`, without the search: the score test at the margin itself says it."""
    _check_pairs(lost, gained, n)
    return bool(lost < n and _excess(lost, gained, n, margin, float(special.ndtri(confidence))) < 0)


def _excess(lost: Counts, gained: Counts, n: float, d: float, z: float) -> Counts:
    """Score test of a true drop d: negative where it is rejected, at every d above the bound."""
    return lost - gained - n * d + z * np.sqrt(_score_variance(lost, gained, n, d))


def tango_interval(lost: float, gained: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of the drop; swapping lost and gained mirrors it, which gives the lower end."""
    one_sided = (1 + confidence) / 2
    return -tango_upper(gained, lost, n, one_sided), tango_upper(lost, gained, n, one_sided)


@lru_cache(maxsize=2**14)
def mcnemar_p(lost: int, gained: int) -> float:
    """Exact one-sided p-value that losses outnumber gains by chance alone; 1 when no pair flipped."""
    if lost + gained == 0:
        return 1.0
    return above_p(lost, lost + gained, 0.5)


@lru_cache(maxsize=2**14)
def above_p(k: int, n: int, share: float) -> float:
    """Exact one-sided p-value that k of n would be so many, or more, of a true rate of `share` at most."""
    return float(special.bdtrc(k - 1, n, share)) if k else 1.0


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


def decide(upper: float, p: float, margin: float, alpha: float = ALPHA) -> Verdict:
    """PASS when a drop of `margin` is excluded, FAIL when a drop of zero is, else INCONCLUSIVE.

    PASS comes first: a real but small change inside the margin passes, because the margin is what was promised.
    """
    if upper < margin:
        return "PASS"
    return "FAIL" if p <= alpha else "INCONCLUSIVE"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values in the given order: many groups are tested, so a lucky small p must not name a culprit."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def newcombe(k1: int, n1: int, k2: int, n2: int, confidence: float = 0.95) -> Interval:
    """k1/n1 - k2/n2 of independent counts with its hybrid score interval (Newcombe, Stat. Med. 17:873, 1998, no. 10).

    Made of Wilson's two intervals, so 0 of n on both sides doesn't give [0, 0]. n of the result is n1 + n2.
    """
    first, second = _wilson(k1, n1, confidence), _wilson(k2, n2, confidence)
    p1, p2 = k1 / n1, k2 / n2
    low = p1 - p2 - sqrt((p1 - first[0]) ** 2 + (second[1] - p2) ** 2)
    high = p1 - p2 + sqrt((first[1] - p1) ** 2 + (p2 - second[0]) ** 2)
    return Interval(n1 + n2, p1 - p2, low, high, confidence, "newcombe two-sided")


def _wilson(k: int, n: int, confidence: float) -> tuple[float, float]:
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"k={k} of n={n} is no count")
    z2 = float(special.ndtri((1 + confidence) / 2)) ** 2
    half = sqrt(z2 * (k * (n - k) / n + z2 / 4))
    return max(0.0, (k + z2 / 2 - half) / (n + z2)), min(1.0, (k + z2 / 2 + half) / (n + z2))


def fisher_p(k1: int, n1: int, k2: int, n2: int) -> float:
    """Exact one-sided p-value (Fisher) that the first rate is above the second by chance alone."""
    from scipy.stats import fisher_exact  # half a second to import, and only an attack's excess asks for it

    return float(fisher_exact([[k1, n1 - k1], [k2, n2 - k2]], alternative="greater")[1])


@lru_cache(maxsize=1024, typed=True)
def rogan_gladen(
    k: int, n: int, *, true_pos: int, n_pos: int, true_neg: int, n_neg: int, confidence: float = 0.95, seed: int = 0
) -> Rate:
    """The rate that a fallible judge's k of n stands for: (p + sp - 1) / (se + sp - 1), clipped to [0, 1].

    k: images that it doesn't call absent, which is what n_neg - true_neg counts: a card on which "cannot tell" is wrong
    says nothing of how often it finds what isn't there.

    The interval is of the joint posterior: a flat prior on the true rate r, sensitivity and specificity from the card's
    counts (Jeffreys), and k binomial with p = r se + (1 - r)(1 - sp). Given se and sp that makes p a truncated Beta, so
    20 000 pairs of them are drawn from `seed` and weighted by the chance of k. Drawing p independently and clipping
    would call 0 of 250 "0.0 % to 0.0 %" wherever the judge's false alarms alone predict more. Gates use the raw counts;
    this is printed beside them. If no judge of that card could have said k, nothing is known: 0 to 1. ValueError when
    the judge is too weak (LEAST_YOUDEN).
    """
    se, sp = true_pos / n_pos, true_neg / n_neg
    if se + sp - 1 < LEAST_YOUDEN:
        raise ValueError(f"sensitivity {se:.3f} + specificity {sp:.3f} - 1 is below {LEAST_YOUDEN}")
    rng = np.random.default_rng(seed)
    high_p, low_p = (
        rng.beta(hits + 0.5, total - hits + 0.5, 20_000)
        for hits, total in ((true_pos, n_pos), (n_neg - true_neg, n_neg))
    )
    apart = np.maximum(high_p - low_p, 1e-9)
    a, b = k + 1, n - k + 1
    above = low_p > k / n  # there the upper tail holds the digits, and elsewhere the lower one
    start = np.where(above, special.betaincc(a, b, high_p), special.betainc(a, b, low_p))
    end = np.where(above, special.betaincc(a, b, low_p), special.betainc(a, b, high_p))
    mass = np.maximum(end - start, 0.0)
    part = start + rng.uniform(size=mass.size) * mass
    drawn = (np.where(above, special.betainccinv(a, b, part), special.betaincinv(a, b, part)) - low_p) / apart
    low, high = _weighted_quantiles(np.clip(drawn, 0, 1), mass / apart, ((1 - confidence) / 2, (1 + confidence) / 2))
    estimate = min(1.0, max(0.0, (k / n + sp - 1) / (se + sp - 1)))
    return Rate(k, n, estimate, min(low, estimate), max(high, estimate), confidence, "rogan-gladen, joint posterior")


def _weighted_quantiles(values: np.ndarray, weights: np.ndarray, shares: tuple[float, float]) -> tuple[float, float]:
    """The values below which these shares of the weight lie; (0, 1) if there is no weight at all."""
    if weights.sum() <= 0:
        return 0.0, 1.0
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / weights.sum()
    found = values[order][np.minimum(np.searchsorted(below, shares), values.size - 1)]
    return float(found[0]), float(found[1])


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


def chances(
    n: int, lost: float, gained: float, margin: float, alpha: float = ALPHA, p_alpha: float | None = None
) -> Chances:
    """What `decide` says of n pairs of which a share `lost` is truly lost and `gained` truly gained, summed exactly.

    p_alpha: what McNemar's p must reach (default: alpha); alpha divided by the number of tests is the first, strictest
    step of `holm`, so the chance of FAIL in a larger family is never below the one given for it.
    """
    _check_shares(n, lost, gained, margin)
    grid = _grid(n, lost, gained)
    z = float(special.ndtri(1 - alpha))
    below = np.asarray(_excess(grid.lost, grid.gained, n, margin, z) < 0)
    proven = grid.p <= (alpha if p_alpha is None else p_alpha)
    passed, regressed = float(grid.chance[below].sum()), float(grid.chance[~below & proven].sum())
    return Chances(passed, max(0.0, 1 - passed - regressed), regressed)


def detection(n: int, lost: float, gained: float, alpha: float = ALPHA) -> float:
    """Chance that the exact McNemar test alone finds the losses, whatever the margin says."""
    _check_shares(n, lost, gained, 0.5)
    grid = _grid(n, lost, gained)
    return float(grid.chance[grid.p <= alpha].sum())


@lru_cache(maxsize=256)
def pairs_to_detect(drop: float, gained: float, power: float = POWER, alpha: float = ALPHA) -> int:
    """Fewest pairs with which exact McNemar finds a true `drop` with chance `power` when a share `gained` also rises.

    Counts jump, so the chance goes up and down a little from n to n + 1: from the n that is returned on, the next 16
    sizes all reach it. MOST_PAIRS means "that many or more".
    """
    return _smallest(lambda n: detection(n, drop + gained, gained, alpha) >= power)


@lru_cache(maxsize=256)
def pairs_to_regress(
    drop: float, flips: float, margin: float, power: float = POWER, tests: int = 1, step: int = 10
) -> int:
    """Fewest pairs, in multiples of `step`, with which the rule calls a true `drop` FAIL with chance `power`.

    flips: share of pairs that flip although nothing changed, half down and half up; the drop comes on top. tests: how
    many comparisons share alpha (Holm). A drop as large as the margin is found with less than 1 - ALPHA at any n,
    because it passes with chance ALPHA; asking for more gives MOST_PAIRS.
    """
    half = flips / 2

    def enough(n: int) -> bool:
        return chances(n, drop + half, half, margin, p_alpha=ALPHA / tests).regressed >= power

    return _smallest(enough, step)


@lru_cache(maxsize=256)
def pairs_to_decide(lost: int, gained: int, n: int, margin: float, tests: int = 1, effect: float = 1.0) -> int:
    """Pairs, in tens and never fewer than n, with which `decide` says PASS or FAIL with chance POWER; MOST_PAIRS at
    most.

    For an outcome of n pairs that is open. Taken as true are the shares lost and gained that were observed, drop
    included: that is a guess from these very pairs, and no promise. tests: how many comparisons share alpha; McNemar's
    p must reach Holm's first, strictest step. effect: the design effect of clustered pairs, which counts them as so
    many fewer, for McNemar's p as well, so more may be named than it takes.
    """

    def open_(size: int) -> bool:
        counted = max(1, int(size / effect))
        return chances(counted, lost / n, gained / n, margin, p_alpha=ALPHA / tests).inconclusive > 1 - POWER

    few, many = n, 2 * n
    while many < MOST_PAIRS and open_(many):
        few, many = many, 2 * many
    if many >= MOST_PAIRS:
        return MOST_PAIRS
    while many - few > 10:
        middle = (few + many) // 2
        few, many = (middle, many) if open_(middle) else (few, middle)
    return -(-many // 10) * 10


def prompts_for_floor(floor: float, failures: int = 0, confidence: float = 0.95) -> int:
    """Fewest prompts of which `failures` may fail for the one-sided Clopper-Pearson bound to reach `floor`."""
    if not 0 < floor < 1 or failures < 0:
        raise ValueError(f"floor={floor} with failures={failures} is no claim")

    def reached(n: int) -> bool:
        return n > failures and clopper_pearson(n - failures, n, confidence, "lower").low >= floor

    return _smallest(reached, ahead=0)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean with its two-sided Student t interval; a single value has no interval that says anything (±inf)."""
    n, mean = len(values), float(np.mean(values))
    half = float("inf")
    if n > 1:
        half = float(special.stdtrit(n - 1, (1 + confidence) / 2) * np.std(values, ddof=1) / sqrt(n))
    return Interval(n, mean, mean - half, mean + half, confidence, "student t two-sided")


def fieller(above: Sequence[float], below: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """mean(above) / mean(below) of paired measurements with Fieller's two-sided interval.

    None unless the lower bound of mean(below) is clear of 0: the ratio then has no bounded interval, and says nothing.
    """
    a, b = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    n = len(a)
    if n != len(b) or n < 2:
        raise ValueError(f"{n} and {len(b)} measurements make no paired ratio")
    t2 = float(special.stdtrit(n - 1, (1 + confidence) / 2)) ** 2 / n
    (v_aa, v_ab), (_, v_bb) = np.cov(a, b)
    mean_a, mean_b = float(a.mean()), float(b.mean())
    clear = mean_b**2 - t2 * v_bb
    if mean_b <= 0 or clear <= 0:
        return None
    middle = mean_a * mean_b - t2 * v_ab
    spread = sqrt(max(0.0, middle**2 - clear * (mean_a**2 - t2 * v_aa)))
    low, high = (middle - spread) / clear, (middle + spread) / clear
    return Interval(n, mean_a / mean_b, float(low), float(high), confidence, "fieller two-sided")


def _smallest(enough: Callable[[int], bool], step: int = 1, ahead: int = 16) -> int:
    """The first multiple of `step` from which it and the next `ahead` multiples are enough, MOST_PAIRS at most."""
    last = MOST_PAIRS // step
    too_few, upper = 0, 1
    while not enough(upper * step):
        if upper >= last:
            return MOST_PAIRS
        too_few, upper = upper, min(2 * upper, last)
    while upper - too_few > 1:
        middle = (too_few + upper) // 2
        too_few, upper = (too_few, middle) if enough(middle * step) else (middle, upper)
    while missed := [i for i in range(upper + 1, min(upper + ahead, last) + 1) if not enough(i * step)]:
        upper = missed[-1] + 1
    return min(upper * step, MOST_PAIRS)


@dataclass(frozen=True)
class _Grid:
    """All likely (lost, gained) of n pairs, their chance and their exact McNemar p."""

    lost: np.ndarray
    gained: np.ndarray
    chance: np.ndarray
    p: np.ndarray


def _grid(n: int, lost: float, gained: float) -> _Grid:
    most = [min(n, int(n * share + 8 * sqrt(n * share) + 8)) for share in (lost, gained)]
    down, up = np.meshgrid(np.arange(most[0] + 1), np.arange(most[1] + 1), indexing="ij")
    fits = down + up <= n
    down, up = np.where(fits, down, 0), np.where(fits, up, 0)
    rest = gained / (1 - lost) if lost < 1 else 0.0
    falls = _binomial(np.arange(most[0] + 1), n, lost)[down]
    chance = np.where(fits, falls * _binomial(up, n - down, rest), 0.0)
    return _Grid(down, up, chance, np.where(down, special.bdtrc(down - 1.0, down + up, 0.5), 1.0))


def outcomes(n: int, lost: float, gained: float) -> Iterator[tuple[int, int, float]]:
    """(lost, gained, chance) of every outcome of n pairs that is likelier than 1e-9, of true shares lost and gained."""
    _check_shares(n, lost, gained, 0.5)
    grid = _grid(n, lost, gained)
    for down, up, chance in zip(grid.lost.flat, grid.gained.flat, grid.chance.flat, strict=True):
        if chance > 1e-9:
            yield int(down), int(up), float(chance)


def _binomial(k: np.ndarray, n: int | np.ndarray, share: float) -> np.ndarray:
    """Chance of exactly k of n, by the beta function, so that no factorial is ever formed."""
    ways = -special.betaln(n - k + 1, k + 1) - np.log1p(n)
    return np.exp(ways + special.xlogy(k, share) + special.xlog1py(n - k, -share))


def _check_shares(n: int, lost: float, gained: float, margin: float) -> None:
    if n < 1 or min(lost, gained) < 0 or lost + gained > 1 or not 0 < margin < 1:
        raise ValueError(f"n={n}, lost={lost}, gained={gained}, margin={margin} are no shares of pairs")


def _pass_chance(n: int, flips: float, margin: float) -> float:
    """Chance that the Tango bound stays below the margin, summed over all likely (lost, gained)."""
    most = min(n, int(n * flips / 2 + 8 * sqrt(n * flips / 2) + 8))
    lost, gained = np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing="ij")
    flipped = lost + gained
    fits = flipped <= n
    # Far sums are outside [0, n]; they carry no chance, but their variance formula has no meaning either.
    lost, gained = np.where(fits, lost, 0), np.where(fits, gained, 0)
    z = float(special.ndtri(1 - ALPHA))
    below = np.asarray(_excess(lost, gained, n, margin, z) < 0)
    lost, flipped = lost[fits & below], flipped[fits & below]
    sums = _binomial(np.arange(2 * most + 1), n, flips)  # by number of flips: of many places one value each
    return float((sums[flipped] * _binomial(lost, flipped, 0.5)).sum())


def _score_variance(lost: Counts, gained: Counts, n: float, d: float) -> Counts:
    """n(2q + d(1 - d)): variance of lost - gained where q, the chance of a gain, is most likely given a drop of d."""
    a = 2 * n
    b = -lost - gained + (2 * n - lost + gained) * d
    c = -gained * d * (1 - d)
    q = (np.sqrt(np.maximum(b * b - 4 * a * c, 0)) - b) / (2 * a)
    return np.maximum(n * (2 * q + d * (1 - d)), 0)


def _check_pairs(lost: float, gained: float, n: float) -> None:
    # counts over a design effect are no whole numbers: their sum may lie a rounding above n where every pair flipped
    if min(lost, gained) < 0 or lost + gained > n * (1 + 1e-9) or n <= 0:
        raise ValueError(f"lost={lost} and gained={gained} of n={n} pairs is no count")
