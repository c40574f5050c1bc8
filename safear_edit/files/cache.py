"""The user's cache: what may be deleted at any time and is only quicker to find again than to make."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path


def user_cache(purpose: str, days: float | None = None) -> Path | None:
    """This program's folder for `purpose` in the user's cache, readable by the user alone; None where it can't be made.

    It lies in XDG_CACHE_HOME, by default ~/.cache. days: what is older than that is removed from it, folders whole.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safear-edit" / purpose
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if days is not None:
            for old in folder.iterdir():
                if time.time() - old.stat().st_mtime > days * 86400:
                    shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError):  # Path.home of a user without one
        return None
    return folder


def recent(purpose: str, key: str, days: float) -> Path | None:
    """The folder `key` of `user_cache(purpose, days)`, made if it isn't there; None where it can't be made."""
    if (cache := user_cache(purpose, days)) is None:
        return None
    mine = cache / key
    try:
        mine.mkdir(exist_ok=True)
        os.utime(mine)
    except OSError:
        return None
    return mine
