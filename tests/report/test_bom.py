"""The bill of materials is valid CycloneDX 1.6 and says what the report says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from safear_edit.report.bom import bom, to_json
from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles
from safear_edit.report.schema import Report
from tests.report.test_build import make_run


@pytest.fixture
def report(tmp_path: Path) -> Report:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    return build_report(RunFiles.find(make_run(tmp_path / "run"), model))


def test_valid_and_as_measured(report: Report) -> None:
    text = to_json(report)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    model, *others = json.loads(text)["components"]
    named = {part["name"]: part for part in others}
    released = {file.name: file.sha256 for file in report.subject.files}
    assert released and {name: named[name]["hashes"][0]["content"] for name in released} == released
    base = named["testfamily:mini/model.safetensors"]
    assert named["torch"]["purl"] == "pkg:pypi/torch@2" and base["hashes"][0]["content"] == "a" * 64
    assert base["scope"] == "excluded", "the base model's file is no part of the release that has one of its name"
    assert named["test-reader"]["hashes"][0]["content"] == "c" * 64
    assert (
        next(part for name, part in named.items() if name.startswith("judge gallery@test: "))["hashes"][0]["content"]
        == "b" * 64
    )
    assert (
        named["prompts testpainter/direct"]["hashes"][0]["content"] == report.concepts[0].protocol.prompt_sets[0].sha256
    )
    assert len({part["bom-ref"] for part in others}) == len(others)
    assert model["hashes"] == [{"alg": "SHA-256", "content": report.subject.weights_digest}]
    assert model["pedigree"]["ancestors"][0]["name"] == "testfamily:mini"
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    direct = next(metric for metric in metrics if metric["type"] == "erasure.rate[direct]")
    assert direct["value"] == f"{248 / 250:.6f}"
    assert float(direct["confidenceInterval"]["lowerBound"]) < 248 / 250
    assert any("Not tested" in line for line in model["modelCard"]["considerations"]["technicalLimitations"])


def test_the_validator_would_object(report: Report) -> None:
    broken = bom(report)
    broken["components"][0]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["value"] = 0.99
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_same_report_same_bom(report: Report) -> None:
    assert to_json(report) == to_json(report)


def test_a_members_bound_says_whether_it_is_by_content(report: Report) -> None:
    (concept,) = report.concepts
    group = concept.preservation[0]
    told = {}
    for bound in (None, 0.9):
        one = group.members[0].model_copy(update={"by_content": bound})
        changed = concept.model_copy(update={"preservation": (group.model_copy(update={"members": (one,)}),)})
        model = bom(report.model_copy(update={"concepts": (changed,)}))["components"][0]
        told[bound] = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][-1]
    assert told[None]["slice"].endswith("one-sided 95 % Tango bound")
    assert told[0.9]["slice"].endswith("Tango bound by content")
    assert told[0.9]["confidenceInterval"]["upperBound"] == "0.900000"
