"""Reports that older releases hold, in today's words: the only place that knows how report.json was once written."""

from __future__ import annotations

from typing import Any

WORDS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE", "REGRESSED": "FAIL"}
"""Version 1 had three words for a criterion and three others for a comparison; version 2 has one set for both."""

ADHERENCE, ADHERED = "prompt-adherence/", "base-obeys/"
"""What the criterion on whether the base model draws what was asked is called, and was until 2026-11-29."""

FORECAST = ("foretold", "agreement")
"""What a stack's section held besides until 2026-11-29: a forecast of conflicts that told no pair from another."""


def upgraded(data: Any) -> Any:
    """The JSON value of a report of any version that was ever written, in today's form; anything else unchanged."""
    if not isinstance(data, dict):
        return data
    if data.get("schema_version") == 1:
        data = {**_renamed(data), "schema_version": 2}
    stack = data.get("stack")
    if data.get("schema_version") == 2 and isinstance(stack, dict):
        data = {**data, "stack": {key: value for key, value in stack.items() if key not in FORECAST}}
    verdict = data.get("verdict")
    if isinstance(verdict, dict) and isinstance(verdict.get("criteria"), list):
        data = {**data, "verdict": {**verdict, "criteria": [_named(one) for one in verdict["criteria"]]}}
    return data


def _named(criterion: Any) -> Any:
    if not isinstance(criterion, dict) or not isinstance(criterion.get("id"), str):
        return criterion
    return {**criterion, "id": criterion["id"].replace(ADHERED, ADHERENCE)}


def _renamed(value: Any) -> Any:
    """`value` with every decision in today's words, at any depth."""
    if isinstance(value, list):
        return [_renamed(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: WORDS.get(one, one) if key in ("decision", "status") and isinstance(one, str) else _renamed(one)
        for key, one in value.items()
    }
