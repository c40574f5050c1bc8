"""The statistics against published numbers, numeric maximum likelihood and brute force."""

from __future__ import annotations

from math import comb, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom
from scipy.stats import t as student

from safear_edit.evaluate import stats


def test_clopper_pearson_holds_its_promise() -> None:
    """By definition: at the lower end, k or more has chance 2.5 %; at the upper end, k or fewer."""
    rate = stats.clopper_pearson(241, 250)
    above = sum(comb(250, i) * rate.low**i * (1 - rate.low) ** (250 - i) for i in range(241, 251))
    below = sum(comb(250, i) * rate.high**i * (1 - rate.high) ** (250 - i) for i in range(242))
    assert (above, below) == (pytest.approx(0.025), pytest.approx(0.025))
    assert stats.clopper_pearson(0, 250).low == 0.0 and stats.clopper_pearson(250, 250).high == 1.0


@pytest.mark.parametrize(
    ("failures", "sizes"),
    [(0, {0.9: 29, 0.95: 59, 0.98: 149, 0.99: 299}), (3, {0.9: 76, 0.95: 153, 0.98: 386, 0.99: 773})],
)
def test_fewest_prompts_for_a_floor(failures: int, sizes: dict[float, int]) -> None:
    for floor, n in sizes.items():
        assert stats.clopper_pearson(n - failures, n, side="lower").low >= floor
        assert stats.clopper_pearson(n - 1 - failures, n - 1, side="lower").low < floor


@pytest.mark.parametrize(
    ("lost", "gained", "upper", "decision"),
    [
        (0, 0, 1.1, "PASS"),
        (3, 2, 2.3, "PASS"),
        (7, 0, 5.1, "FAIL"),
        (12, 5, 5.8, "INCONCLUSIVE"),
        (19, 2, 10.1, "FAIL"),
    ],
)
def test_worked_examples(lost: int, gained: int, upper: float, decision: str) -> None:
    paired = stats.paired(lost, gained, 250, 0.05)
    assert (round(100 * paired.upper95, 1), paired.decision) == (upper, decision)


def _numeric_upper(lost: int, gained: int, n: int) -> float:
    """Tango's bound with the restricted likelihood maximised numerically instead of in closed form."""

    def z(d: float) -> float:
        def loss(q: float) -> float:
            p, rest = q + d, 1 - 2 * q - d
            parts = ((lost, p), (gained, q), (n - lost - gained, rest))
            return -sum(count * log(max(share, 1e-300)) for count, share in parts if count)

        q = minimize_scalar(loss, bounds=(max(0.0, -d), (1 - d) / 2), method="bounded", options={"xatol": 1e-13}).x
        return (lost - gained - n * d) / sqrt(n * (2 * q + d * (1 - d)))

    return float(brentq(lambda d: z(d) + 1.6448536269514722, (lost - gained) / n + 1e-9, 1 - 1e-9))


@pytest.mark.parametrize(("lost", "gained", "n"), [(3, 2, 250), (12, 5, 250), (2, 9, 60), (1, 0, 40), (30, 10, 50)])
def test_tango_against_numeric_likelihood(lost: int, gained: int, n: int) -> None:
    assert stats.tango_upper(lost, gained, n) == pytest.approx(_numeric_upper(lost, gained, n), abs=1e-5)


def test_tango_without_flips_is_known() -> None:
    z2 = 1.6448536269514722**2
    assert stats.tango_upper(0, 0, 100) == pytest.approx(z2 / (100 + z2))
    assert stats.tango_upper(10, 0, 10) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 60))
def test_tango_surrounds_the_estimate_and_mirrors(lost: int, gained: int, same: int) -> None:
    n = lost + gained + same + 1
    low, high = stats.tango_interval(lost, gained, n)
    assert low <= (lost - gained) / n <= high
    assert stats.tango_interval(gained, lost, n) == (-high, -low)


@pytest.mark.parametrize(("lost", "gained"), [(7, 0), (12, 5), (3, 3), (0, 4)])
def test_mcnemar_by_counting(lost: int, gained: int) -> None:
    m = lost + gained
    assert stats.mcnemar_p(lost, gained) == pytest.approx(sum(comb(m, i) for i in range(lost, m + 1)) / 2**m)


def test_mcnemar_without_flips() -> None:
    assert stats.mcnemar_p(0, 0) == 1.0


@pytest.mark.parametrize(
    ("flips", "margin", "power", "n"),
    [(0.0, 0.05, 0.8, 52), (0.02, 0.05, 0.8, 101), (0.02, 0.05, 0.9, 118),
     (0.05, 0.05, 0.8, 158), (0.0, 0.02, 0.8, 133),
     (0.05, 0.02, 0.8, 819)],
)  # fmt: skip
def test_pairs_needed(flips: float, margin: float, power: float, n: int) -> None:
    assert stats.pairs_needed(flips, margin, power) == n


def test_rogan_gladen() -> None:
    rate = stats.rogan_gladen(20, 200, true_pos=90, n_pos=100, true_neg=95, n_neg=100)
    assert rate.estimate == pytest.approx((0.1 + 0.95 - 1) / (0.9 + 0.95 - 1))
    assert rate.low < rate.estimate < rate.high
    perfect = stats.rogan_gladen(20, 200, true_pos=10**6, n_pos=10**6, true_neg=10**6, n_neg=10**6)
    plain = stats.clopper_pearson(20, 200)
    assert (perfect.low, perfect.high) == (pytest.approx(plain.low, abs=0.01), pytest.approx(plain.high, abs=0.01))
    with pytest.raises(ValueError, match="below"):
        stats.rogan_gladen(20, 200, true_pos=70, n_pos=100, true_neg=70, n_neg=100)


@pytest.mark.parametrize(("k", "n"), [(0, 250), (9, 250), (240, 250), (250, 250)])
def test_the_judges_errors_are_taken_out_jointly(k: int, n: int) -> None:
    """Against the posterior summed on a grid of true rates: 0 of 250 is no certainty, whatever the judge's errors."""
    card = {"true_pos": 417, "n_pos": 425, "true_neg": 2527, "n_neg": 2575}
    rate = stats.rogan_gladen(k, n, **card)
    rng, true = np.random.default_rng(1), np.linspace(0, 1, 2001)[:, None]
    se, sp = rng.beta(417.5, 8.5, 1000), rng.beta(2527.5, 48.5, 1000)
    below = np.cumsum(binom.pmf(k, n, true * se + (1 - true) * (1 - sp)).mean(axis=1))
    low, high = (float(true[np.searchsorted(below / below[-1], share), 0]) for share in (0.025, 0.975))
    assert rate.low == pytest.approx(min(low, rate.estimate), abs=0.003)
    assert rate.high == pytest.approx(max(high, rate.estimate), abs=0.003) and rate.high - rate.low > 0.01


def test_a_count_that_the_card_rules_out_says_nothing() -> None:
    rate = stats.rogan_gladen(0, 20_000, true_pos=95, n_pos=100, true_neg=8_000, n_neg=10_000)
    assert (rate.low, rate.high) == (0.0, 1.0)


def test_holm() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no count"):
        stats.paired(*counts, margin=0.05)
    with pytest.raises(ValueError, match="no count"):
        stats.clopper_pearson(6, 5)


@pytest.mark.parametrize(
    ("drop", "gained", "power", "n"),
    [(0.10, 0.0, 0.8, 66), (0.10, 0.0, 0.9, 78), (0.10, 0.01, 0.8, 81), (0.10, 0.02, 0.9, 120), (0.05, 0.0, 0.8, 134),
     (0.05, 0.01, 0.8, 189)],
)  # fmt: skip
def test_pairs_to_detect(drop: float, gained: float, power: float, n: int) -> None:
    """The published table for exact McNemar."""
    assert stats.pairs_to_detect(drop, gained, power) == n


@pytest.mark.parametrize(("failures", "sizes"), [(0, (29, 59, 149)), (3, (76, 153, 386))])
def test_prompts_for_floor(failures: int, sizes: tuple[int, ...]) -> None:
    assert tuple(stats.prompts_for_floor(floor, failures) for floor in (0.9, 0.95, 0.98)) == sizes


@pytest.mark.parametrize(
    ("n", "drop", "words"),
    [(250, 0.0, (1.00, 0.00, 0.00)), (250, 0.03, (0.34, 0.08, 0.58)), (250, 0.05, (0.04, 0.05, 0.91)),
     (100, 0.05, (0.03, 0.52, 0.44))],
)  # fmt: skip
def test_chances_of_the_rule(n: int, drop: float, words: tuple[float, float, float]) -> None:
    """Published operating characteristic at margin 5 points, gains 1 % (whole per cent)."""
    found = stats.chances(n, drop + 0.01, 0.01, 0.05)
    assert (found.passed, found.inconclusive, found.regressed) == pytest.approx(words, abs=0.011)


def test_chances_by_simulation() -> None:
    rng = np.random.default_rng(5)
    draws = rng.multinomial(60, [0.12, 0.05, 0.83], 400)
    said = [stats.decide(stats.tango_upper(a, b, 60), stats.mcnemar_p(a, b), 0.1, 0.05) for a, b, _ in draws]
    found = stats.chances(60, 0.12, 0.05, 0.1)
    assert said.count("PASS") / 400 == pytest.approx(found.passed, abs=0.06)
    assert said.count("FAIL") / 400 == pytest.approx(found.regressed, abs=0.06)


def test_pairs_to_regress_is_enough_and_no_more() -> None:
    n = stats.pairs_to_regress(0.2, 0.02, 0.2, 0.9, tests=4)
    assert n % 10 == 0
    assert stats.chances(n, 0.21, 0.01, 0.2, p_alpha=0.0125).regressed >= 0.9
    assert stats.chances(n - 10, 0.21, 0.01, 0.2, p_alpha=0.0125).regressed < 0.9


def test_more_power_than_there_is_needs_more_than_anyone_has() -> None:
    """A drop of exactly the margin passes with 5 % at any n."""
    assert stats.pairs_to_regress(0.5, 0.0, 0.5, 0.99, step=5000) == stats.MOST_PAIRS


def test_mean_interval() -> None:
    found = stats.mean_interval([1.0, 2.0, 3.0, 4.0])
    half = float(student.ppf(0.975, 3)) * sqrt(5 / 3) / 2
    assert (found.low, found.high) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))
    assert stats.mean_interval([1.0]).high == float("inf")


def test_fieller_solves_its_own_equation() -> None:
    """At both ends r, the mean of above - r·below is exactly as far from 0 as the t test allows."""
    rng = np.random.default_rng(1)
    below = rng.normal(10, 2, 40)
    above = 0.3 * below + rng.normal(0, 1, 40)
    found = stats.fieller(above.tolist(), below.tolist())
    assert found is not None and found.low < found.estimate < found.high
    for r in (found.low, found.high):
        rest = above - r * below
        distance = abs(rest.mean()) / (rest.std(ddof=1) / sqrt(40))
        assert distance == pytest.approx(float(student.ppf(0.975, 39)), rel=1e-6)


def test_fieller_refuses_a_denominator_near_zero_and_knows_equality() -> None:
    assert stats.fieller([1.0, 2.0, 3.0], [-1.0, 0.0, 1.5]) is None
    assert stats.fieller([1.0, 2.0, 3.0], [-9.0, -10.0, -11.0]) is None
    same = stats.fieller([9.0, 10.0, 12.0], [9.0, 10.0, 12.0])
    assert same is not None and (same.low, same.estimate, same.high) == pytest.approx((1, 1, 1))


def test_shares_that_are_none() -> None:
    with pytest.raises(ValueError, match="no shares"):
        stats.chances(10, 0.7, 0.5, 0.05)
    with pytest.raises(ValueError, match="no claim"):
        stats.prompts_for_floor(1.0)
    with pytest.raises(ValueError, match="no paired ratio"):
        stats.fieller([1.0], [1.0])
