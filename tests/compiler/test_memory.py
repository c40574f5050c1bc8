"""A process gets no more memory than its control groups leave it, in both versions of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safear_edit.compiler import memory
from safear_edit.compiler.memory import free_bytes, group_rooms


def group(folder: Path, limit: str, used: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (limit, str(used), f"x 5\n{names[2]} 30\n"), strict=True):
        (folder / (name if name != names[2] else "memory.stat")).write_text(text)


def test_of_the_second_version_every_group_above_counts(tmp_path: Path) -> None:
    group(tmp_path / "a/b", "max", 10, memory.FILES[""])
    group(tmp_path / "a", "1000", 400, memory.FILES[""])
    assert [*group_rooms("0::/a/b\n", tmp_path)] == [630], "what files hold is given back"
    group(tmp_path / "a/b", "100", 300, memory.FILES[""])
    assert sorted(group_rooms("0::/a/b\n", tmp_path)) == [0, 630]
    assert [*group_rooms("0::/gone\n", tmp_path)] == []


def test_of_the_first_version_the_root_stands_in_for_a_path_from_outside(tmp_path: Path) -> None:
    group(tmp_path / "memory", "2000", 500, memory.FILES["memory"])
    listed = "9:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n1:name=systemd:/a:b\n"
    assert [*group_rooms(listed, tmp_path)] == [1530]
    assert [*group_rooms(listed, tmp_path / "none")] == []


def test_what_is_free_grows_by_what_is_held_now_not_by_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**40)
    monkeypatch.setattr(memory, "group_rooms", lambda listed: iter([2**20]))
    before = free_bytes(torch.device("cpu"))
    held = torch.ones(2**27)
    grown = free_bytes(torch.device("cpu")) - before
    assert 0.9 * held.nbytes < grown < 1.2 * held.nbytes
    del held
    assert free_bytes(torch.device("cpu")) - before < 2**28, "let go of"
