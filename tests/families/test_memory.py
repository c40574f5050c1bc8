"""What is let go of leaves the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from safear_edit.families.memory import give_back


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_blocks_go_back_to_the_machine() -> None:
    import torch

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS"))

    blocks = [torch.ones(2**14) for _ in range(2048)]  # 64 KiB each, which glibc takes from its heap: 128 MiB
    held = resident()
    del blocks[::2], blocks
    give_back("cpu")
    assert resident() < held - 100
