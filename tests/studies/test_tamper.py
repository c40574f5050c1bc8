"""tamper: each change is one, the release stays, and readers with --trust let nothing through but modes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from safear_edit.errors import UsageError
from safear_edit.release import keys
from safear_edit.release.claims import write_claims
from safear_edit.release.signing import CLAIMS, sign_folder
from safear_edit.studies import tamper
from safear_edit.studies.tables import Table
from tests.gate.test_baseline import released, report_again
from tests.release.test_claims import inputs


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed folder made without a model, beside `trust`."""
    root = tmp_path_factory.mktemp("tamper")
    folder = released(root / "safe")
    (folder / "gpt.safetensors").write_bytes(b"weights")
    report_again(folder)
    key = keys.throwaway(root / "trust")
    write_claims(folder, sign_folder(folder, key), replace(inputs(), verdict="PASSED", tests={}), key)
    return folder


@pytest.mark.parametrize("name", list(tamper.CHANGES))
def test_a_change_leaves_the_release_itself(release: Path, tmp_path: Path, name: str) -> None:
    def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
        return {p.name: (p.read_bytes(), p.stat().st_mode) for p in sorted(folder.rglob("*")) if p.is_file()}

    before, seen = contents(release), dict[str, dict[str, tuple[bytes, int]]]()

    def change(path: Path) -> None:
        tamper.CHANGES[name](path)
        seen["after"] = contents(path.parent)

    tamper.tried(release, "outcomes.jsonl", name, change, {"KEYS": "none", "BASELINE": "none"}, tmp_path)
    assert contents(release) == before != seen["after"]


def test_with_trust_nothing_passes_but_modes_and_the_order_of_claims(
    release: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = {"byte changed, digests corrected", "removed", "setuid"}
    monkeypatch.setattr(tamper, "CHANGES", {name: change for name, change in tamper.CHANGES.items() if name in few})
    monkeypatch.setattr(tamper, "READERS", {"verify --trust": tamper.READERS["verify --trust"]})
    monkeypatch.setattr(tamper, "files_of", lambda folder: ["gpt.safetensors", "outcomes.jsonl"])
    code = tamper.main([str(release), "--trust", str(release.parent / "trust"), "--rows", str(tmp_path / "rows")])
    rows = {row["change"]: row for row in map(json.loads, (tmp_path / "rows").read_text().splitlines())}
    assert code == 0
    origin = Table.read(tmp_path / "rows").rows[0]
    assert origin.date and origin.command == (
        f"python -m safear_edit.studies tamper {release} --trust {release.parent / 'trust'}"
    )
    for name, row in rows.items():
        if name not in ("setuid", "claims reordered"):
            assert row["let through with --trust"] == "", row
            assert row["verify --trust"]["k"] == row["verify --trust"]["n"] > 0
    assert rows["setuid"]["verify --trust"]["k"] == 0 and "warned of" in rows["setuid"]["let through with --trust"]
    assert rows["claims reordered"]["let through with --trust"] == CLAIMS


def test_what_passes_without_trust_is_named_apart() -> None:
    found = [
        tamper.Tried("byte changed", "README.md", {"check": 0, "check --trust": 4}, False),
        tamper.Tried("byte changed", "outcomes.jsonl", {"check": 2, "check --trust": 4}, False),
    ]
    (row,) = tamper.table(found)
    assert row["check"] == {"k": 1, "n": 2} and row["check --trust"] == {"k": 2, "n": 2}
    assert (row["let through with --trust"], row["without --trust"]) == ("", "README.md")


def test_a_release_that_is_not_accepted_is_refused(release: Path, tmp_path: Path) -> None:
    keys.throwaway(tmp_path / "others")
    with pytest.raises(UsageError, match="a release that `verify --trust` accepts"):
        list(tamper.matrix(release, {"KEYS": str(tmp_path / "others"), "BASELINE": "none"}, tmp_path))
