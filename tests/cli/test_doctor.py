"""The doctor finds what is there and what is broken, and never shows a key."""

from __future__ import annotations

import pytest

from safear_edit.cli import doctor
from safear_edit.errors import TrustError


def test_this_machine_is_fit() -> None:
    findings = {f.name: f for f in doctor.examine()}
    assert not [f for f in findings.values() if f.status == "fault"]
    assert "fit" in findings["torch"].detail
    assert "53aa51172d14" in findings["MiniLM"].detail


def test_a_broken_part_is_a_fault_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def torn() -> doctor.Finding:
        raise RuntimeError("operator torchvision::nms does not exist")

    def forged() -> doctor.Finding:
        raise TrustError("model.safetensors", "the official release", "another", "reinstall")

    monkeypatch.setattr(doctor, "CHECKS", (torn, forged))
    first, second = doctor.examine()
    assert first.status == second.status == "fault"
    assert "torchvision::nms" in first.detail and "reinstall" in second.detail


def test_the_licence_in_the_wheel_counts() -> None:
    pytest.importorskip("nudenet")
    assert "AFFERO" in doctor.nudity_extra().detail


def test_a_key_is_reported_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAFEAR_SIGNING_KEY", raising=False)
    assert doctor.key().status == "note"
    monkeypatch.setenv("SAFEAR_SIGNING_KEY", "very secret")
    assert doctor.key().status == "ok" and "secret" not in doctor.key().detail
