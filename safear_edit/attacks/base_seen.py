"""What a base model showed under attack, kept between attacks: an edit has no part in it, so it is the same again.

An attack leaves it in its store; the run that it belongs to keeps it in the user's cache, by the digest of all that
decides it. A file that is damaged or gone costs time alone. Nothing of it goes into a release: a record says how many
of its images were read here.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from safear_edit.errors import SpecError
from safear_edit.files.atomic import write_atomic
from safear_edit.files.records import StrictRecord, read_record

BASE_SEEN = "base"
"""Folder of these files, in an attack's store."""
DAYS = 30
"""What no attack asked for is kept this long."""


class BaseSeen(StrictRecord):
    """A judge's answers, look by look, and what the looks took."""

    seen: tuple[tuple[bool | None, ...], ...]
    images: int
    steps: int


def read_base_seen(path: Path) -> BaseSeen | None:
    """What the file holds; None if it is not there, or damaged."""
    with suppress(SpecError, OSError):
        return read_record(BaseSeen, path)
    return None


def write_base_seen(path: Path, seen: BaseSeen) -> None:
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, seen.model_dump_json() + "\n")


def recall(store: Path, cache: Path) -> None:
    """Put what earlier attacks kept into an attack's store."""
    shutil.copytree(cache, store / BASE_SEEN, dirs_exist_ok=True)


def keep(store: Path, cache: Path) -> None:
    """Keep what an attack left; a cache that can't be written keeps nothing."""
    with suppress(OSError):
        for path in sorted((store / BASE_SEEN).glob("*.json")):
            write_atomic(cache / path.name, path.read_bytes())
