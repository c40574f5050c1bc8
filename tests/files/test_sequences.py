"""Sequences that aren't in memory are sequences all the same, also in another process."""

from __future__ import annotations

import pickle
import tracemalloc

import pytest

from safear_edit.files.sequences import Lazy, Mapped, Picked, Spool

WORDS = ["a", "", "\u5bb6 \u2028", "d" * 5000, *map(str, range(3000))]


def spooled() -> Spool[str]:
    return Spool(WORDS, repr, eval)


@pytest.mark.parametrize("made", [
    spooled(),
    pickle.loads(pickle.dumps(spooled())),
    Picked(["x", *WORDS[::-1]], range(len(WORDS), 0, -1)),
    Mapped([[word] for word in WORDS], lambda inside: inside[0]),
])  # fmt: skip
def test_they_hold_what_a_list_holds(made: Lazy[str]) -> None:
    assert len(made) == len(WORDS) and list(made) == WORDS and made[-1] == WORDS[-1]
    for part in (slice(2, 5), slice(None), slice(7, 3), slice(2990, 9999), slice(9, 2, -2)):
        assert made[part] == tuple(WORDS[part])
    with pytest.raises(IndexError):
        made[len(WORDS)]


def test_a_spool_takes_eight_bytes_an_item() -> None:
    tracemalloc.start()
    try:
        made = Spool((f"{i:0100}" for i in range(20_000)), str, str)
        assert tracemalloc.get_traced_memory()[0] < 300_000, "the text alone is 2 MB"
        assert sum(len(item) for item in made) == 2_000_000 and tracemalloc.get_traced_memory()[1] < 800_000
    finally:
        tracemalloc.stop()
