"""Valid inputs with one thing broken, digests and signatures made good: a documented exit, one line, no traceback.

The breaking and the readers are those of `python -m safear_edit.studies fuzz`; hypothesis draws and shrinks.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safear_edit.release import keys
from safear_edit.release.claims import write_claims
from safear_edit.release.signing import sign_folder
from safear_edit.release.verify import verify_folder
from safear_edit.studies import fuzz
from tests.gate.test_baseline import released, report_again
from tests.release.test_claims import inputs

FILES = ("spec", "spec's structure", "base recipe", "recipe's structure", "attacks.lock", "public key",
         "environment's key", "prompts csv", "prompts tsv", "prompts json", "prompts jsonl", "prompts txt",
         "safetensors", "pairs", "image png", "image jpg", "image webp", "images")  # fmt: skip
ON_RELEASE = ("baseline", "baseline, sealed again", "release: verify", "release: report", "release: check",
              "release: stack ls", "claims", "model.sig", "outcomes.jsonl", "report.json")  # fmt: skip
few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
chances = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, fuzz.Target]]:
    """Every target by name: files, and a signed folder that was made without a model."""
    folder = tmp_path_factory.mktemp("fuzz")
    release = released(folder / "made")
    (release / "gpt.safetensors").write_bytes(b"weights")
    report_again(release)
    key = keys.throwaway(folder / "own-trust")
    write_claims(release, sign_folder(release, key), replace(inputs(), verdict="PASSED", tests={}), key)
    (folder / "samples").mkdir()
    found = [*fuzz.file_targets(folder / "samples"), *fuzz.release_targets(release, folder / "samples")]
    yield {target.name: target for target in found}


@pytest.mark.parametrize("name", [*FILES, *ON_RELEASE])
def test_what_is_broken_is_refused_in_one_line(targets: dict[str, fuzz.Target], name: str) -> None:
    @few
    @given(chances)
    def one(chance: random.Random) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            said = fuzz.execute(targets[name], chance, Path(scratch))
        assert said is None, said

    one()


def test_what_is_not_broken_is_read(targets: dict[str, fuzz.Target]) -> None:
    for name in (*FILES, *ON_RELEASE):
        targets[name].read(targets[name].sample)


def test_a_broken_file_is_signed_again(targets: dict[str, fuzz.Target], tmp_path: Path) -> None:
    """Else only the signature would be tested, never what reads behind it."""
    target, good = targets["release: verify"], 0
    trust = target.sample.parent / "trust"
    for number in range(20):
        place = tmp_path / str(number)
        place.mkdir()
        assert fuzz.execute(target, random.Random(number), place) is None
        try:
            verify_folder(place / target.sample.name, trust)
            good += 1
        except Exception:
            continue
    assert good >= 10


@given(chances)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_one_thing_is_broken_in_json(chance: random.Random) -> None:
    text = json.dumps({"a": [1, {"b": "c"}], "d": 0.5})
    assert isinstance(fuzz.broken_json(text, chance), str)


def test_a_reader_that_fails_is_found(tmp_path: Path) -> None:
    sample = tmp_path / "x.json"
    sample.write_text("{}")
    for fault in (ValueError, MemoryError, RecursionError):

        def read(path: Path, fault: type[Exception] = fault) -> None:
            raise fault

        place = tmp_path / f"at-{fault.__name__}"
        place.mkdir()
        said = fuzz.execute(fuzz.Target("x", sample, fuzz.break_json, read), random.Random(0), place)
        assert said is not None and fault.__name__ in said


def test_an_internal_error_of_a_verb_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(what: str) -> None:
        raise KeyError(what)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("safear_edit.cli.listing.listing", fail)
    with pytest.raises(AssertionError, match="exit 5"):
        fuzz.run_verb("ls", "models")
