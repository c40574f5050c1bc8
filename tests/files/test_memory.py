"""What is let go of leaves the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from safear_edit.families.load import load_model
from safear_edit.files import weights
from safear_edit.files.memory import give_back


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_blocks_go_back_to_the_machine() -> None:
    import torch

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("RssAnon"))

    blocks = [torch.ones(2**14) for _ in range(2048)]  # 64 KiB each, which glibc takes from its heap: 128 MiB
    held = resident()
    del blocks[::2], blocks
    give_back("cpu")
    assert resident() < held - 100


HELD = """
import sys
from pathlib import Path
import torch
from safear_edit.files.memory import keep_no_large_blocks

def resident():  # without files' pages, which the kernel takes and brings back as it likes
    _, all_pages, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (all_pages - of_files) * 4096 / 2**20

if sys.argv[1] == "none":
    keep_no_large_blocks()
del [torch.ones(2**23)][:]  # 32 MiB: glibc now keeps whatever is smaller
before, kept = resident(), []
for _ in range(8):
    large = torch.ones(6 * 2**20)
    kept.append(torch.ones(2**14))
    del large
    large = torch.ones(5 * 2**20)
    kept.append(torch.ones(2**14))
    del large
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_freed_blocks_leave_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HELD, "none"], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 8


def test_a_large_network_on_a_cpu_asks_for_that_and_a_mini_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()
    monkeypatch.setattr(weights, "keep_no_large_blocks", lambda: asked.append(True))
    load_model("llamagen")
    assert not asked
    monkeypatch.setattr(weights, "LARGE", 1)
    load_model("llamagen")
    assert asked
