"""How often the gate errs, by simulated outcomes: false alarms on an unchanged model, missed regressions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from safear_edit.evaluate import stats
from safear_edit.gate.baseline import Baseline
from safear_edit.gate.record import (
    ERASURE_FLIPS,
    PLANNED_POWER,
    PLANNED_TESTS,
    PRESERVE_FLIPS,
    SUITES,
    Suite,
)
from safear_edit.gate.rules import Counts, Finding, Ruled, conclude, count, decide_all

# -- does the gate work? ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """One slice of an imagined check: n pairs, and which shares flip although nothing changed (half each way)."""

    name: str
    n: int
    floor: float | None
    margin: float

    @property
    def flips(self) -> float:
        return PRESERVE_FLIPS if self.floor is None else ERASURE_FLIPS


UNREADABLE_FLIPS = 0.10
"""The mini's judge could not read 5.6, 8.4 and 3.0 % of the edited images of the three slices: two draws of such
rates differ in about twice as many."""


def planned_shapes(suite: Suite) -> list[Shape]:
    """The check that the suite's sizes were computed for."""
    erasure = [Shape(name, suite.erasure, 0.90, suite.policy.margin) for name in ("direct", "paraphrase", "template")]
    kept = [Shape(name, suite.preserve, None, suite.policy.margin) for name in ("neighbours", "objects", "plain")]
    return erasure + kept


def shapes_of(baseline: Baseline) -> list[Shape]:
    """The check that this baseline makes."""
    return [Shape(part.name, part.n, part.floor, part.margin) for part in count(baseline.record, baseline)]


@dataclass(frozen=True)
class Simulation:
    """How `runs` simulated checks of one kind ended, and the chance computed exactly for the slice with the drop."""

    kind: str
    runs: int
    passed: int
    inconclusive: int
    regressed: int
    expected_regressed: float | None


def simulate(shapes: Sequence[Shape], kind: str, dropped: str | None, drop: float, runs: int, seed: int) -> Simulation:
    """`runs` checks of two equally good models (flips as assumed), `drop` lost on top in the slice `dropped`."""
    rng = np.random.default_rng(seed)
    words = Counter(
        conclude([_plain(test) for test in decide_all([_imagined(s, dropped, drop, rng) for s in shapes])]).verdict
        for _ in range(runs)
    )
    tests = len(shapes) + sum(shape.floor is not None for shape in shapes)
    exact = None
    for shape in shapes:
        if shape.name == dropped:
            half = shape.flips / 2
            exact = stats.chances(shape.n, half + drop, half, shape.margin, p_alpha=stats.ALPHA / tests).regressed
    return Simulation(kind, runs, words["PASS"], words["INCONCLUSIVE"], words["FAIL"], exact)


def _plain(test: Ruled) -> Finding:
    return Finding(f"{test.rule}/{test.counts.name}", test.decision, "", "")


def _imagined(shape: Shape, dropped: str | None, drop: float, rng: np.random.Generator) -> Counts:
    """Counts of one slice: before, as many are good as the flips leave room for."""
    half = shape.flips / 2
    loss = half + (drop if shape.name == dropped else 0.0)
    lost, gained, stayed, _ = rng.multinomial(shape.n, [loss, half, 1 - loss - half, 0.0])
    blurred, cleared, _ = rng.multinomial(shape.n, [UNREADABLE_FLIPS / 2, UNREADABLE_FLIPS / 2, 1 - UNREADABLE_FLIPS])
    good, marks = int(gained + stayed), (int(lost), int(gained), int(blurred), int(cleared))
    return Counts(shape.name, shape.n, good, *marks, shape.margin, shape.floor)


def self_test(shapes: Sequence[Shape], runs: int = 200, seed: int = 0) -> list[Simulation]:
    """Two equally good models, then a drop of one margin planted in an erasure slice, and in a preserved group."""
    drop = shapes[0].margin
    points = f"{100 * drop:g} points lost in"
    erased = next((shape.name for shape in shapes if shape.floor is not None), None)
    kept = next((shape.name for shape in shapes if shape.floor is None), None)
    found = [simulate(shapes, "unchanged", None, 0.0, runs, seed)]
    return found + [simulate(shapes, f"{points} {name}", name, drop, runs, seed) for name in (erased, kept) if name]


def sizes() -> Iterator[tuple[str, int, int, str]]:
    """(suite, size in use, size computed, how) for both kinds of slices: where the numbers in SUITES come from."""
    for suite in SUITES.values():
        margin = suite.policy.margin
        for used, flips, kind in (
            (suite.erasure, ERASURE_FLIPS, "erasure slice"),
            (suite.preserve, PRESERVE_FLIPS, "preserved group"),
        ):
            computed = stats.pairs_to_regress(margin, flips, margin, PLANNED_POWER, PLANNED_TESTS)
            how = f"{kind}: a drop of {100 * margin:g} points is FAIL with {PLANNED_POWER:.0%} when {flips:.0%} of "
            how += f"pairs flip anyway and {PLANNED_TESTS} comparisons share alpha {stats.ALPHA}"
            yield suite.name, used, computed, how


LEAST_FOUND, MOST_ALARMS = 0.90, 0.01
"""What the self-test of the planned suites must show."""


def holds(found: Sequence[Simulation]) -> bool:
    """Whether simulated checks end as promised: unchanged models not FAIL, planted drops FAIL."""
    unchanged, planted = found[0], found[1:]
    return unchanged.regressed <= MOST_ALARMS * unchanged.runs and all(
        one.regressed >= LEAST_FOUND * one.runs for one in planted
    )
