"""Gives memory that nothing uses any more back to the machine."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

LARGE = 2**28
"""Bytes of weights from which on a network on a CPU is worth `keep_no_large_blocks`."""
M_MMAP_THRESHOLD, BLOCK = -3, 2**22
"""glibc's name for the size from which a block is the system's own (malloc.h), and that size in bytes."""


def keep_no_large_blocks() -> None:
    """From now on a block of BLOCK bytes or more goes back to the system the moment it is freed.

    glibc raises that size to 32 MiB by itself, and what lies below something that is kept then stays the process's: in
    loading, tensors as the file has them below those in the network's dtype; in training, a layer's intermediates below
    its state. For this process, to its end; glibc on Linux alone.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, BLOCK)


def give_back(device: str | torch.device) -> None:
    """After something large was let go of: glibc keeps freed blocks of up to 32 MiB, torch what a GPU had allocated."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
