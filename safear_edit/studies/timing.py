"""Contestants timed alternately: what the machine does besides hits them all alike, so ratios of medians hold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def alternately(runs: Mapping[str, Callable[[], T]], repeats: int) -> tuple[dict[str, T], dict[str, float]]:
    """Every contestant in turn, `repeats` times: what each returned last, and its median in CPU seconds."""
    found, spent = dict[str, T](), {name: list[float]() for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            found[name] = run()
            spent[name].append(time.process_time() - start)
    return found, {name: statistics.median(times) for name, times in spent.items()}
