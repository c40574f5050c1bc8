"""How a model was made and what its tests said: two signed in-toto statements in `claims.jsonl`, one bundle a line.

SLSA provenance v1 names what went in (spec, recipe, base weights, versions); test-result v0.1 names the tests that
passed and failed. Both have as subject every file with its sha256, because the root digest alone doesn't fix names.
The figures are in report.json, which is such a file; no predicate of our own, so any in-toto policy engine reads the
verdict. A local run is at most SLSA Build L1: whoever holds the key can claim anything. Predicates hold no numbers:
in-toto's own reader turns each into a float, and a 64-bit seed would lose its last digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from safear_edit.errors import SafearError
from safear_edit.evaluate.verdict import Verdict
from safear_edit.files.atomic import write_atomic
from safear_edit.release.keys import SigningKey
from safear_edit.release.signing import CLAIMS, STATEMENT_TYPE, SignedManifest, sign_statement

PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
REQUIRED = (PROVENANCE_TYPE, TEST_RESULT_TYPE)
BUILD_TYPE = "urn:safear-edit:build:concept-erasure:v1"
Builder = Literal["local", "github-hosted", "github-self-hosted"]
BUILDERS: dict[Builder, str] = {name: f"urn:safear-edit:builder:{name}:v1" for name in get_args(Builder)}
REPORTS = ("report.json", "report.html")

Result = Literal["PASSED", "WARNED", "FAILED"]
RESULTS: tuple[str, ...] = get_args(Result)
RESULT_OF: dict[Verdict, Result] = {"PASS": "PASSED", "INCONCLUSIVE": "WARNED", "FAIL": "FAILED"}
"""What the report says → in-toto's word for it."""
_TEST = re.compile(r"[a-z_-]+(/([A-Za-z0-9._~=-]|%[0-9A-F]{2})+){1,2}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ClaimInputs:
    """What the two statements say beyond the files; digests are hex sha256.

    `specs` maps a concept's name to its spec's digest; `materials` whatever else went in (judges, prompt sets) to its
    digest; `versions` a package to its version; `tests` a test (`test_of`: `erasure/<concept>/<slice>`,
    `judge/<concept>/<label>`) to its result. `started` and `finished` must carry a time zone.
    """

    run: str
    specs: Mapping[str, str]
    recipe: str
    model: str
    base: str
    method: str
    seed: str
    versions: Mapping[str, str]
    started: datetime
    finished: datetime
    verdict: Result
    tests: Mapping[str, Result]
    materials: Mapping[str, str]
    builder: Builder = "local"

    def __post_init__(self) -> None:
        digests = {"recipe": self.recipe, "base": self.base, **self.specs, **self.materials}
        for name, digest in digests.items():
            _require(bool(_SHA256.fullmatch(digest)), f"claim {name}", "64 hexadecimal digits", repr(digest))
        for test, result in self.tests.items():
            _require(bool(_TEST.fullmatch(test)), "claim test", "a name such as erasure/picasso/direct", repr(test))
            _require(result in RESULTS, f"claim {test}", " or ".join(RESULTS), repr(result))
        _require(self.seed.isdecimal(), "claim seed", "a decimal string", repr(self.seed))
        _require(self.started.tzinfo is not None, "claim started", "a time zone", "none")
        _require(self.finished.tzinfo is not None, "claim finished", "a time zone", "none")
        worst = max((RESULTS.index(result) for result in self.tests.values()), default=0)
        _require(RESULTS.index(self.verdict) >= worst, "claim verdict", f"at least {RESULTS[worst]}", self.verdict)


def write_claims(folder: Path, manifest: SignedManifest, inputs: ClaimInputs, key: SigningKey) -> Path:
    """Sign both statements about the files of `manifest` into `folder/claims.jsonl`, in one step; returns its path."""
    lines = [sign_statement(statement, key) for statement in statements(manifest.files, inputs)]
    path = folder / CLAIMS
    write_atomic(path, "\n".join(lines) + "\n")
    return path


def statements(files: Mapping[str, str], inputs: ClaimInputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The provenance and the test result, unsigned; `files` maps each file of the model to its sha256."""
    return (
        statement_about(files, PROVENANCE_TYPE, _provenance(files, inputs)),
        statement_about(files, TEST_RESULT_TYPE, _test_result(inputs)),
    )


def statement_about(files: Mapping[str, str], kind: str, predicate: Mapping[str, Any]) -> dict[str, Any]:
    """An unsigned in-toto statement of the predicate type `kind` whose subjects are all files of a model."""
    subject = [_resource(name, digest) for name, digest in sorted(files.items())]
    return {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": kind, "predicate": dict(predicate)}


def _provenance(files: Mapping[str, str], inputs: ClaimInputs) -> dict[str, Any]:
    """slsa.dev/spec/v1.0/provenance: externalParameters is what the user chose, internalParameters what ran it."""
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "concepts": sorted(inputs.specs),
                "method": inputs.method,
                "model": inputs.model,
                "seed": inputs.seed,
            },
            "internalParameters": {"versions": dict(sorted(inputs.versions.items()))},
            "resolvedDependencies": [
                _resource(f"base:{inputs.model}", inputs.base),
                _resource("recipe", inputs.recipe),
                *_specs(inputs),
                *(_resource(name, digest) for name, digest in sorted(inputs.materials.items())),
            ],
        },
        "runDetails": {
            "builder": {"id": BUILDERS[inputs.builder]},
            "metadata": {
                "invocationId": inputs.run,
                "startedOn": timestamp(inputs.started),
                "finishedOn": timestamp(inputs.finished),
            },
            "byproducts": [_resource(name, files[name]) for name in REPORTS if name in files],
        },
    }


def _test_result(inputs: ClaimInputs) -> dict[str, Any]:
    """in-toto/attestation, spec/predicates/test-result.md, v0.1."""

    def named(result: Result) -> list[str]:
        return sorted(test for test, got in inputs.tests.items() if got == result)

    return {
        "result": inputs.verdict,
        "configuration": [_resource("recipe", inputs.recipe), *_specs(inputs)],
        "passedTests": named("PASSED"),
        "warnedTests": named("WARNED"),
        "failedTests": named("FAILED"),
    }


def _specs(inputs: ClaimInputs) -> Sequence[dict[str, Any]]:
    return [_resource(f"concept:{name}", digest) for name, digest in sorted(inputs.specs.items())]


def _resource(name: str, digest: str) -> dict[str, Any]:
    """An in-toto ResourceDescriptor."""
    return {"name": name, "digest": {"sha256": digest}}


def test_of(criterion: str) -> str:
    """The name of the test that a criterion's id stands for: RULE/CONCEPT or RULE/CONCEPT/PART.

    A part may be any text (what a judge looks for); whatever an identifier must not hold is percent-encoded, "/" too.
    """
    return "/".join(quote(part, safe="=") for part in criterion.split("/", 2))


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _require(holds: bool, where: str, expected: str, got: str) -> None:
    if not holds:
        raise SafearError(where, expected, got, "report this")
