"""How much memory this process can still get: of the device, of the machine, and of the group that a container is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GROUPS = Path("/sys/fs/cgroup")
FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Limit, use and, in memory.stat, what of the use the kernel gives back when asked: of the second and of the first
version of control groups (https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html), by the folder
below GROUPS in which the groups lie."""


def free_bytes(device: torch.device) -> int:
    """What the device has free, and what this process holds of it already; on a CPU never more than the process's
    control groups allow."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if sys.platform != "linux":
        return 2**63
    held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return held + min([available_bytes(), *group_rooms(Path("/proc/self/cgroup").read_text())])


def available_bytes() -> int:
    """What the kernel could give a process now (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def group_rooms(listed: str, root: Path = GROUPS) -> Iterator[int]:
    """How much more each group that this process is in can take, as far as it has a limit. listed: /proc/self/cgroup.

    In a container that sees its own group as the root, the path that is listed may not be there: the root is read then.
    """
    for line in listed.splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        kind = "" if number == "0" else "memory"
        top = root / kind
        own = top / path.lstrip("/")
        for folder in {*((own, *own.parents) if own.is_dir() else ()), top}:
            if folder.is_relative_to(top):
                yield from _room(folder, *FILES[kind])


def _room(folder: Path, limit: str, use: str, given_back: str) -> Iterator[int]:
    with suppress(OSError, ValueError, KeyError):  # a file that isn't there, or "max": no limit
        most, now = int((folder / limit).read_text()), int((folder / use).read_text())
        told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield max(0, most - now + int(told[given_back]))
