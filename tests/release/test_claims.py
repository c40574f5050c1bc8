"""claims.py: the statements are what the public schemas say, hold no numbers, and can't contradict themselves."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2

from safear_edit.errors import SafearError
from safear_edit.release import claims, keys
from safear_edit.release.claims import ClaimInputs
from safear_edit.release.signing import CLAIMS, pae, sign_folder

A, B, C = "a" * 64, "b" * 64, "c" * 64
FILES = {"gpt.safetensors": A, "report.json": B}


def inputs() -> ClaimInputs:
    started = datetime(2026, 11, 21, 9, 0, tzinfo=timezone(timedelta(hours=1)))
    return ClaimInputs(
        run="run-1",
        specs={"picasso": A},
        recipe=B,
        model="llamagen:mini",
        base=C,
        method="vce",
        seed="9223372036854775807",
        versions={"torch": "2.15.0", "safear-edit": "0.1.0"},
        started=started,
        finished=started + timedelta(minutes=4),
        verdict="WARNED",
        tests={"erasure/picasso/direct": "PASSED", "preservation/objects": "WARNED"},
        materials={"judge:gallery": A},
    )


def test_the_predicates_parse_as_the_public_schemas() -> None:
    provenance, result = claims.statements(FILES, inputs())
    slsa = json_format.ParseDict(provenance["predicate"], provenance_pb2.Provenance())
    assert slsa.build_definition.external_parameters["seed"] == "9223372036854775807"
    assert slsa.run_details.metadata.started_on.ToDatetime() == datetime(2026, 11, 21, 8, 0)
    assert [product.name for product in slsa.run_details.byproducts] == ["report.json"]
    tests = json_format.ParseDict(result["predicate"], test_result_pb2.TestResult())
    assert tests.result == "WARNED"
    assert list(tests.passed_tests) == ["erasure/picasso/direct"]
    assert list(tests.warned_tests) == ["preservation/objects"]
    assert tests.configuration[0].digest["sha256"] == B


def test_what_went_in_is_named_with_its_digest() -> None:
    provenance, _ = claims.statements(FILES, inputs())
    found = provenance["predicate"]["buildDefinition"]["resolvedDependencies"]
    wanted = {"base:llamagen:mini": C, "recipe": B, "concept:picasso": A, "judge:gallery": A}
    assert {item["name"]: item["digest"]["sha256"] for item in found} == wanted


def test_every_file_is_a_subject_of_both() -> None:
    for statement in claims.statements(FILES, inputs()):
        assert {item["name"]: item["digest"]["sha256"] for item in statement["subject"]} == FILES


def numbers(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [n for part in value.values() for n in numbers(part)]
    if isinstance(value, list):
        return [n for part in value for n in numbers(part)]
    return [] if isinstance(value, str) else [value]


def test_no_number_that_a_reader_could_round() -> None:
    assert [numbers(statement) for statement in claims.statements(FILES, inputs())] == [[], []]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "PASSED"}, "expected at least WARNED"),
        ({"tests": {"erasure/picasso/direct": "FAILED"}}, "expected at least FAILED"),
        ({"tests": {"erasure/picasso/direct": "GOOD"}}, "PASSED or WARNED or FAILED"),
        ({"tests": {"erasure picasso": "PASSED"}}, "a name such as"),
        ({"tests": {"judge/picasso/a dog": "PASSED"}}, "a name such as"),
        ({"tests": {"judge/picasso/100%": "PASSED"}}, "a name such as"),
        ({"seed": "1e3"}, "a decimal string"),
        ({"base": "deadbeef"}, "64 hexadecimal digits"),
        ({"materials": {"judge": "x"}}, "claim judge"),
        ({"started": datetime(2026, 11, 21)}, "a time zone"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SafearError, match=message):
        replace(inputs(), **change)


@pytest.mark.parametrize(
    ("criterion", "test"),
    [
        ("erasure/picasso/direct", "erasure/picasso/direct"),
        ("judge/picasso/style=van_gogh", "judge/picasso/style=van_gogh"),
        ("judge/x/a dog/cat?#1", "judge/x/a%20dog%2Fcat%3F%231"),
        ("judge/x/\x1b[2J\n", "judge/x/%1B%5B2J%0A"),
        ("judge/x/pipe à 100%", "judge/x/pipe%20%C3%A0%20100%25"),
    ],
)
def test_a_criterion_names_a_test_whatever_a_judge_looks_for(criterion: str, test: str) -> None:
    assert claims.test_of(criterion) == test
    _, result = claims.statements(FILES, replace(inputs(), tests={test: "WARNED"}))
    assert result["predicate"]["warnedTests"] == [test]


def test_two_signed_lines(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "gpt.safetensors").write_bytes(b"weights")
    key = keys.throwaway(tmp_path / "trust")
    (trusted,) = keys.load_trust(tmp_path / "trust")
    path = claims.write_claims(model, sign_folder(model, key), inputs(), key)
    assert path == model / CLAIMS
    kinds = []
    for line in path.read_text().splitlines():
        envelope = json.loads(line)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"])
        assert trusted.verifies(base64.b64decode(envelope["signatures"][0]["sig"]), pae(payload))
        kinds.append(json.loads(payload)["predicateType"])
    assert tuple(kinds) == claims.REQUIRED
