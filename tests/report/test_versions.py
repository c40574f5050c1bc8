"""Reports of versions 1 and 2 are read as today's."""

import json
from pathlib import Path
from typing import Any

import pytest

from safear_edit.errors import SpecError
from safear_edit.report.build import read_report
from safear_edit.report.schema import Report
from safear_edit.report.versions import ADHERED, ADHERENCE, NAMES, WORDS, upgraded
from tests.report.test_build import built

OLD = {new: old for old, new in WORDS.items() if old != "REGRESSED"}


def as_version_1(value: Any) -> Any:
    """A report as it was written before: lower-case decisions, and a comparison's own word for FAIL."""
    if isinstance(value, list):
        return [as_version_1(one) for one in value]
    if not isinstance(value, dict):
        return value
    compared = "mcnemar_p" in value
    return {
        key: ("REGRESSED" if one == "FAIL" else one)
        if key == "decision" and compared
        else OLD.get(one, one)
        if key in ("decision", "status")
        else as_version_1(one)
        for key, one in value.items()
    }


def as_version_2(report: Report) -> dict[str, Any]:
    """A report as it was written before its sections' fields had today's names."""
    data: dict[str, Any] = json.loads(report.to_json())
    for concept in data["concepts"]:
        for name, (old, new) in NAMES.items():
            for section in concept[name] if isinstance(concept[name], list) else [concept[name]]:
                section[old] = section.pop(new)
    return data | {"schema_version": 2}


def test_the_fields_of_version_2_are_read_by_their_old_names(tmp_path: Path) -> None:
    report = built(tmp_path)
    old = as_version_2(report)
    concept = old["concepts"][0]
    assert "obeyed" in concept["erasure"][0] and "pictures" in concept["understanding"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert read_report(path) == report
    path.write_text(json.dumps(old | {"schema_version": 3}))
    with pytest.raises(SpecError, match="obeyed"):
        read_report(path)


def test_version_1_is_read_as_todays(tmp_path: Path) -> None:
    report = built(tmp_path)
    old = {**as_version_1(as_version_2(report)), "schema_version": 1}
    assert old["verdict"]["status"] in OLD.values() and old["verdict"] != json.loads(report.to_json())["verdict"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert read_report(path) == report


def test_words_of_version_1_are_refused_today(tmp_path: Path) -> None:
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(as_version_1(json.loads(built(tmp_path).to_json()))))
    with pytest.raises(SpecError, match=r"decision|status"):
        read_report(path)


def test_the_latest_version_is_what_is_written(tmp_path: Path) -> None:
    assert json.loads(built(tmp_path).to_json())["schema_version"] == Report.model_fields["schema_version"].default == 3


def test_a_forecast_in_an_older_stack_is_left_out() -> None:
    stack = {"edits": [], "summary": "s"}
    older = {"schema_version": 2, "stack": stack | {"foretold": [{"first": "a"}], "agreement": []}}
    assert upgraded(older) == {"schema_version": 3, "stack": stack}


def test_the_criterion_on_prompt_adherence_is_known_by_its_old_name(tmp_path: Path) -> None:
    report = built(tmp_path)
    text = json.dumps(as_version_2(report))
    old = text.replace(ADHERENCE, ADHERED)
    assert old != text
    path = tmp_path / "old.json"
    path.write_text(old)
    assert read_report(path) == report
