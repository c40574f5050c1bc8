"""The three words of every verdict, and the exit code that stands for each: report, gate, claims and process agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from safear_edit.errors import GateError, InconclusiveError

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
"""What follows from a criterion, or from all of them: shown, refuted, or too little evidence for either."""
WORST_FIRST: tuple[Verdict, ...] = ("FAIL", "INCONCLUSIVE", "PASS")
EXIT_CODES: dict[Verdict, int] = {"PASS": 0, "FAIL": GateError.exit_code, "INCONCLUSIVE": InconclusiveError.exit_code}


def overall(decisions: Iterable[Verdict]) -> Verdict:
    """All must pass; one failure outweighs any doubt; without a decision nothing was shown.

    Requiring all of them needs no correction for many tests (intersection-union test).
    """
    found = set(decisions)
    if "FAIL" in found:
        return "FAIL"
    return "PASS" if found == {"PASS"} else "INCONCLUSIVE"
