"""Two models on prompts of a stranger: counts, which one is the reference, cut captions, and a killed call."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from safear_edit.errors import UsageError
from safear_edit.evaluate import stats
from safear_edit.evaluate.own_prompts import Comparison, CutCaption, Overall, Seen, cut_captions, seen_by, without
from safear_edit.families.base import Sampling
from safear_edit.families.llamagen import LlamaGen
from safear_edit.judges.base import Judge, Judgement
from safear_edit.progress import silent
from safear_edit.spec.prompt_files import FilePrompt, read_prompts
from safear_edit.spec.prompts import normalise

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


def test_no_prompt_at_all_is_a_usage_error() -> None:
    model: Any = None
    with pytest.raises(UsageError, match="at least one prompt"):
        seen_by(model, (), model, None, silent)


def test_counting() -> None:
    asked = tuple(FilePrompt(f"p{i}", i, str(i)) for i in range(10))
    base = tuple(Seen(True, 0.9) for _ in range(10))
    edited = (*(Seen(False, 0.1) for _ in range(8)), Seen(None, 0.4), Seen(True, 0.8))
    found = Comparison(("base", "edited"), "judge", asked, (base, edited))
    assert (found.rate(0).k, found.rate(1).k) == (10, 1)
    drop, low, high = found.change()
    assert drop == pytest.approx(0.9) and low < 0.9 < high <= 1
    data = found.as_json()
    rows = list(found.json_rows())
    assert data["n"] == len(rows) == 10 and (rows[9]["seed"], rows[9]["id"]) == ("9", "9")
    assert rows[8]["results"][1]["present"] is None
    assert "cannot tell in 1" in found.summary()[1]
    *_, change = found.summary()
    assert found.summary()[0].startswith("the reference, base: ")
    assert change.startswith("change from base to edited: -90.0 points (95 %: -")
    assert data["reference"] == "base" and data["fall"]["estimate"] == pytest.approx(0.9)


def test_prompts_of_a_category_are_told_by_their_ids() -> None:
    asked = tuple(FilePrompt(f"words {i}", i, f"id{i}") for i in range(3))
    none = tuple(Seen(False, 0.1) for _ in asked)
    found = Comparison(("base", "edited"), "judge", asked, (none, none), hidden=True)
    told = [*(row[0] for row in found.rows()), *(row["prompt"] for row in found.json_rows())]
    assert told == 2 * [f"withheld; the prompt file has it under id id{i}" for i in range(3)]
    assert found.different == 3 and "words" not in str((found.rows(), list(found.json_rows()), found.as_json()))


def test_what_was_not_found_is_called_so_and_nothing_is_no_minus_nothing() -> None:
    asked = tuple(FilePrompt(f"p{i}", i, str(i)) for i in range(4))
    none = tuple(Seen(False, 0.1) for _ in asked)
    found = Comparison(("base", "edited"), "judge", asked, (none, none))
    assert found.rows()[0] == ("p0", "0", "not found 0.10", "not found 0.10")
    assert "edited: +0.0 points (95 %: -" in found.summary()[-1] and "-0.0" not in found.summary()[-1]


def test_several_images_of_a_prompt_are_not_independent() -> None:
    """Ten prompts under five seeds each, of which two keep the concept in all images: two of ten, not ten of fifty."""
    asked = tuple(FilePrompt(f"p{i // 5}" + "." * (i % 2), i, str(i)) for i in range(50))
    base, edited = tuple(Seen(True, 0.9) for _ in asked), tuple(Seen(i < 10, 0.5) for i in range(50))
    found = Comparison(("base", "edited"), "judge", asked, (base, edited))
    assert found.different == found.as_json()["prompts"] == 10
    few = stats.clopper_pearson(2, 10)
    left = found.rate(1)
    assert (left.k, left.n, left.estimate) == (10, 50, 0.2)
    assert (left.low, left.high) == pytest.approx((few.low, few.high), abs=0.02)
    whole, ten = found.rate(0), stats.clopper_pearson(10, 10)
    assert (whole.low, whole.high) == (pytest.approx(ten.low), 1.0), "all alike: each prompt counts once"
    drop, low, high = found.change()
    assert drop == 0.8 and (low, high) == pytest.approx(stats.tango_interval(8, 0, 10), abs=0.04)
    assert found.warnings() == [
        "50 images are of 10 prompts: the intervals are by prompt, and wider than those of as many prompts"
    ]
    once = Comparison(("a", "b"), "judge", asked[::5], (base[::5], edited[::5]))
    assert once.rate(1) == stats.clopper_pearson(2, 10) and not once.warnings()
    assert once.change() == (0.8, *stats.tango_interval(8, 0, 10))


class Bright(Judge):
    id, digest, threshold = "bright@test", "b" * 64, 0.5

    def look(self, images: torch.Tensor) -> list[Judgement]:
        means = images.float().mean((1, 2, 3)) / 255
        return [Judgement(bool(mean > 0.5), float(mean), "") for mean in means]


LONG = (
    "a house on a beach, and it is a very good picture with a lot of details and a lot of light and a lot of colour and"
)


def test_captions_longer_than_the_window_are_named_and_left_out() -> None:
    model = LlamaGen.pico()
    prompts = (FilePrompt("a house", 1, "short"), FilePrompt(f"{LONG} care, by Picasso", 2, "long"))
    (cut,) = cut_captions(model, prompts)
    assert (cut.id, cut.read) == ("long", 32) and cut.tokens > 32
    assert list(without(prompts, [cut])) == [prompts[0]]
    with pytest.raises(UsageError, match=r"captions that the model reads whole.*--include-cut"):
        without(prompts[1:], [cut])
    seen = (Seen(True, 0.9),)
    told = Comparison(("a", "b"), "judge", prompts[:1], (seen, seen), (cut,))
    assert "1 captions are longer than a model reads, left out of the rates" in told.warnings()[0]
    assert f"long (32 of {cut.tokens} tokens read)" in told.warnings()[0]
    assert told.as_json()["cut"]["captions"] == [{"id": "long", "tokens": cut.tokens, "read": 32}]
    counted = Comparison(("a", "b"), "judge", prompts, (seen * 2, seen * 2), (CutCaption("long", 40, 32),), True)
    assert "counted all the same" in counted.warnings()[0] and counted.as_json()["n"] == 2


def test_a_killed_comparison_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaGen.pico()
    monkeypatch.setattr("safear_edit.evaluate.own_prompts.BATCH", 4)
    prompts = tuple(FilePrompt(f"a house number {i}", i, str(i)) for i in range(10))
    whole, drawn = list(seen_by(model, prompts, Bright(), None, silent)), list[int]()

    def stop(stage: str, done: int, total: int, info: str = "") -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seen_by(model, prompts, Bright(), None, stop, tmp_path / "parts")
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *a: drawn.append(len(a[1])) or generate(*a))
    assert list(seen_by(model, prompts, Bright(), None, silent, tmp_path / "parts")) == whole
    assert drawn == [2], "eight of ten were there"


class Blank:
    """A model that draws nothing, as fast as can be."""

    sampling, hands = Sampling(1.0), 1
    device = torch.device("cpu")

    def condition(self, prompts: Sequence[str]) -> Sequence[str]:
        return prompts

    def generate(self, condition: Sequence[str], seeds: Sequence[int], sampling: Sampling | None) -> torch.Tensor:
        return torch.zeros(len(condition), 1, dtype=torch.int64)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(ids), 3, 2, 2, dtype=torch.uint8)


def test_many_prompts_take_no_more_memory_than_few(tmp_path: Path) -> None:
    """From a file to the counts: 9 bytes are kept of each of 6,000 prompts, in arrays that grow in steps."""
    model, held = cast("ModelFamily", Blank()), list[int]()
    seen_by(
        model, (FilePrompt("a house", 1, "first"),), Bright(), None, silent
    )  # what a process imports once is not counted
    (tmp_path / "many.txt").write_text("".join(f"{LONG} a house, number {i}\n" for i in range(6_000)))

    def watch(stage: str, done: int, total: int, info: str = "") -> None:
        held.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        prompts = read_prompts(tmp_path / "many.txt").prompts
        seen = seen_by(model, prompts, Bright(), None, watch)
        found = Comparison(("a", "b"), "judge", prompts, (seen, seen))
        assert found.rate(0).n == 6_000 and sum(1 for _ in found.json_rows()) == 6_000
        normalise.cache_clear()  # bounded however many prompts there are
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held[-1] - held[10] < 40 * 6_000 and kept < 3_000_000, "the text alone is 0.9 MB"


def test_the_whole_time_is_estimated_over_both_models() -> None:
    lines: list[tuple[int, int, str]] = []
    ticks = count(60, 60)
    overall = Overall(lambda stage, done, total, info: lines.append((done, total, info)), 20, lambda: next(ticks), 0.0)
    overall.of("base", 0)("", 5, 10)
    overall.of("edited", 10)("", 5, 10)
    assert lines == [(5, 20, "base, about 4 minutes in all"), (15, 20, "edited, about 3 minutes in all")]
