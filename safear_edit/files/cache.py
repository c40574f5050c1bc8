"""The user's cache: what may be deleted at any time and is only quicker to find again than to make."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path


def user_cache(purpose: str) -> Path | None:
    """This program's folder for `purpose` in the user's cache, readable by the user alone; None where it can't be made.

    It lies in XDG_CACHE_HOME, by default ~/.cache.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safear-edit" / purpose
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # Path.home of a user without one
        return None
    return folder


def recent(purpose: str, key: str, days: float) -> Path | None:
    """The folder `key` of `user_cache(purpose)`, made if it isn't there; None where it can't be made.

    days: folders there that nobody asked for in so long are removed.
    """
    if (cache := user_cache(purpose)) is None:
        return None
    mine = cache / key
    try:
        for old in cache.iterdir():
            if time.time() - old.stat().st_mtime > days * 86400:
                shutil.rmtree(old, ignore_errors=True)
        mine.mkdir(exist_ok=True)
        os.utime(mine)
    except OSError:
        return None
    return mine
