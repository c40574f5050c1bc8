"""The three words of every verdict, and the exit code that stands for each: report, gate, claims and process agree."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
"""What follows from a criterion, or from all of them: shown, refuted, or too little evidence for either."""
WORST_FIRST: tuple[Verdict, ...] = ("FAIL", "INCONCLUSIVE", "PASS")
EXIT_CODES: dict[Verdict, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}
