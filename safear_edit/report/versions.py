"""Reports that older releases hold, in today's words: the only place that knows how report.json was once written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORDS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE", "REGRESSED": "FAIL"}
"""Version 1 had three words for a criterion and three others for a comparison; later versions have one set for both."""

ADHERENCE, ADHERED = "prompt-adherence/", "base-obeys/"
"""What the criterion on whether the base model draws what was asked is called, and was until 2026-11-29."""

FORECAST = ("foretold", "agreement")
"""What a stack's section held besides until 2026-11-29: a forecast of conflicts that told no pair from another."""


NAMES = {
    "erasure": ("obeyed", "adherence"),
    "preservation": ("obeyed", "adherence"),
    "likelihoods": ("pictures", "images"),
    "understanding": ("pictures", "images"),
}
"""Section of a concept: what one of its fields was called in version 2, and since version 3."""


def upgraded(data: Any) -> Any:
    """The JSON value of a report of any version that was ever written, in today's form; anything else unchanged."""
    if not isinstance(data, dict):
        return data
    if data.get("schema_version") == 1:
        data = {**_renamed(data), "schema_version": 2}
    return _version_3(data) if data.get("schema_version") == 2 else data


def _version_3(data: Mapping[str, Any]) -> dict[str, Any]:
    """A report of version 2; what it lacks or holds in another shape is left for the schema to refuse."""
    stack, verdict, concepts = (data.get(name) for name in ("stack", "verdict", "concepts"))
    found = {**data, "schema_version": 3}
    if isinstance(stack, dict):
        found["stack"] = {key: value for key, value in stack.items() if key not in FORECAST}
    if isinstance(verdict, dict) and isinstance(verdict.get("criteria"), list):
        found["verdict"] = {**verdict, "criteria": [_named(one) for one in verdict["criteria"]]}
    if isinstance(concepts, list):
        found["concepts"] = [_in_new_names(concept) for concept in concepts]
    return found


def _in_new_names(concept: Any) -> Any:
    """What was measured of one concept, with the fields of its sections by their new names."""
    if not isinstance(concept, dict):
        return concept
    return concept | {name: _with(concept[name], *NAMES[name]) for name in NAMES if name in concept}


def _with(section: Any, old: str, new: str) -> Any:
    if isinstance(section, list):
        return [_with(one, old, new) for one in section]
    return (
        {new if key == old else key: value for key, value in section.items()} if isinstance(section, dict) else section
    )


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
