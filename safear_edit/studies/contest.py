"""Contestants, and what they race over.

They are timed by turns: what the machine does besides hits them all alike, so ratios of medians hold.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from safear_edit.construct.pairs import Material, Pairs
from safear_edit.construct.pairs_record import PairStats

if TYPE_CHECKING:
    from torch import Tensor

    from safear_edit.families.base import ModelFamily

T = TypeVar("T")

SUBJECTS = ("a house", "a cat", "a dog by a tree", "a church on a hill", "two fish", "a red horse in the snow")
SAME_SHARE = 0.99
"""Tokens or bits that must agree: where rounding decides a draw, the rest of that image parts (speed_llamagen.py)."""
STYLES = ("Picasso", "Claude Monet", "Andy Warhol", "Vincent van Gogh", "Seurat")


def alternately(
    runs: Mapping[str, Callable[[], T]], repeats: int, clock: Callable[[], float] = time.process_time
) -> tuple[dict[str, T], dict[str, float]]:
    """Every contestant in turn, `repeats` times: what each returned last, and its median in CPU seconds, or in those of
    another clock."""
    found, spent = dict[str, T](), {name: list[float]() for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            found[name] = run()
            spent[name].append(clock() - start)
    return found, {name: statistics.median(times) for name, times in spent.items()}


def prompts(count: int) -> list[str]:
    """Subjects in styles, over and over."""
    return [f"{SUBJECTS[i % len(SUBJECTS)]} in the style of {STYLES[i % len(STYLES)]}" for i in range(count)]


def material_of(model: ModelFamily, count: int) -> Material:
    """Pairs of the model's own images, which nobody judges: speed doesn't depend on what they show."""
    subjects = [SUBJECTS[i % len(SUBJECTS)] for i in range(count)]
    unsafe, safe = [f"{s} in the style of Picasso" for s in subjects], [f"a photo of {s}" for s in subjects]
    seeds = list(range(count))
    unsafe_ids, safe_ids = (model.generate(model.condition(texts), seeds) for texts in (unsafe, safe))
    return Material("Picasso", Pairs(unsafe, safe, seeds, unsafe_ids, safe_ids, PairStats(count, count, {})))


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |a|, Frobenius."""
    return float((a - b).norm() / a.norm().clamp(min=1e-12))
