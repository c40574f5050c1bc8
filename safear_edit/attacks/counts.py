"""Images in which the judge found the concept, as attacks count them. No torch."""

from __future__ import annotations

from safear_edit.evaluate import stats
from safear_edit.files.records import StrictRecord


class Count(StrictRecord):
    """Images (or prompts, where an attack draws several images of one) in which the judge found the concept.

    unreadable: "cannot tell"; they count as not found.
    """

    n: int
    found: int
    unreadable: int

    @classmethod
    def of(cls, seen: list[bool | None]) -> Count:
        """From a judge's answers."""
        return cls(n=len(seen), found=sum(one is True for one in seen), unreadable=seen.count(None))

    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson, 95 %."""
        rate = stats.clopper_pearson(self.found, self.n)
        return rate.low, rate.high
