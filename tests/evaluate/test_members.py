"""A member's loss is judged by itself: what a pool hides is found, and what chance does is not."""

from __future__ import annotations

from itertools import product
from math import comb

import pytest
from scipy.stats import binomtest

from safear_edit.evaluate import stats
from safear_edit.evaluate.members import MARGIN, Flips, Margin, decide, members, power


def test_a_loss_that_the_pool_hides_is_found() -> None:
    """Eight of 66 images of one style among six: 2 points of the pool."""
    group = {"van_gogh": Flips(66, 8, 0)} | {f"style {i}": Flips(66, 1, 1) for i in range(5)}
    pool = stats.paired(13, 5, 396, margin=0.05)
    assert pool.decision == "PASS"
    worst, *rest = members(group)
    assert (worst.name, worst.verdict) == ("van_gogh", "FAIL") and all(one.verdict == "PASS" for one in rest)
    assert worst.p == pytest.approx(binomtest(8, 8, 0.5, alternative="greater").pvalue)
    assert worst.p_holm == pytest.approx(6 * worst.p) and worst.drop == 8 / 66


def test_members_without_prompts_are_left_out_and_order_is_by_bound() -> None:
    found = members({"a": Flips(0, 0, 0), "b": Flips(50, 0, 0), "c": Flips(50, 3, 0), "d": Flips(20, 0, 0)})
    assert [one.name for one in found] == ["c", "d", "b"]


def test_a_member_that_the_base_model_hardly_drew_does_not_pass() -> None:
    found = members({"a": Flips(60, 0, 0, drawn=29), "b": Flips(60, 0, 0, drawn=30)}, least_drawn=0.5)
    assert {one.name: one.verdict for one in found} == {"a": "INCONCLUSIVE", "b": "PASS"}
    assert members({"a": Flips(60, 40, 0, drawn=29)}, least_drawn=0.5)[0].verdict == "FAIL", "a loss seen stays one"


@pytest.mark.parametrize(
    ("drop", "upper", "p", "says"),
    [
        (0.00, 0.04, 1.0, "PASS"),
        (0.10, 0.12, 0.01, "PASS"),  # the bound excludes more than the margin
        (0.08, 0.15, 0.06, "PASS"),
        (0.08, 0.15, 0.04, "INCONCLUSIVE"),  # within the margin, and not chance: more prompts will say how much
        (0.09, 0.16, 0.06, "INCONCLUSIVE"),
        (0.12, 0.20, 0.02, "FAIL"),
        (0.00, 0.26, 1.0, "INCONCLUSIVE"),  # too few images to say anything
    ],
)
def test_the_rule(drop: float, upper: float, p: float, says: str) -> None:
    assert decide(drop, upper, p, Margin(0.08, 0.12)) == says


def test_power_is_what_drawing_would_give() -> None:
    """Summed by hand over all outcomes of a few prompts."""
    n, lost, gained = 12, 0.31, 0.01
    share = 0.0
    for down, up in product(range(n + 1), repeat=2):
        if down + up <= n:
            (one,) = members({"m": Flips(n, down, up)})
            share += _chance(n, down, up, lost, gained) * (one.verdict != "PASS")
    assert power(n, 0.30, 1, MARGIN, flips=0.02).finds == pytest.approx(share, abs=1e-6)


def _chance(n: int, down: int, up: int, lost: float, gained: float) -> float:
    return comb(n, down) * comb(n - down, up) * lost**down * gained**up * (1 - lost - gained) ** (n - down - up)


def test_the_margin_can_be_decided_at_the_default_size() -> None:
    """400 prompts of six styles are 66 each."""
    found = power(66, 0.12, 6)
    assert found.passes > 0.99 and found.finds > 0.79 and power(66, 0.15, 6).finds > 0.92
