"""Gives memory that nothing uses any more back to the machine."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch


def give_back(device: str | torch.device) -> None:
    """After something large was let go of: glibc keeps freed blocks of up to 32 MiB, torch what a GPU had allocated."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
