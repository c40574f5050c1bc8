"""Quality: each figure on features made by hand, and all of them on a mini that nobody edited."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safear_edit import registry
from safear_edit.evaluate import quality, stats
from safear_edit.evaluate.quality import VARIED, apart, distance, diversity, gaussian, object_kept, polynomial
from safear_edit.spec.prompts import Prompt
from safear_edit.spec.spec import load_spec


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


CLIP: Any = SimpleNamespace(texts=lambda names: unit(*([float("cat" in n), float("dog" in n), 0.1] for n in names)))


def test_the_subject_is_told_from_the_others() -> None:
    prompts = [Prompt(f"{subject} by P", "P", 0, subject) for subject in ("a cat", "a dog", "a cat")]
    found = object_kept(CLIP, prompts, unit([1, 0, 0], [1, 0, 0], [0.9, 0.1, 0]))
    assert (found.k, found.n) == (2, 3)


def test_distances_by_hand() -> None:
    assert apart(unit([1, 0]), unit([0, 1])).tolist() == [1.0]
    same, spread = unit([1, 0]).repeat(VARIED, 1), torch.eye(VARIED)
    assert diversity(torch.cat([same, same])).estimate == pytest.approx(0)
    assert diversity(torch.cat([spread, spread])).estimate == pytest.approx(1)
    assert polynomial(torch.ones(1, 2), torch.ones(1, 2)).item() == pytest.approx(8000)
    assert gaussian(torch.zeros(1, 2), torch.tensor([[10.0, 10.0]])).item() == pytest.approx(1000 / 2.718281828)


@pytest.mark.parametrize(("n", "parts"), [(2, 1), (3, 1), (73, 8), (82, 9), (91, 9)])
def test_a_last_row_by_itself_makes_no_distance_of_its_own(n: int, parts: int) -> None:
    """Its part had no pair of rows: the mean over all parts was no number."""
    rows = torch.randn(2 * n, 8, generator=torch.Generator().manual_seed(n))
    found = distance(rows[:n], rows[n:], polynomial)
    assert isfinite(found.estimate) and found.n == parts


@pytest.mark.parametrize("kernel", [polynomial, gaussian])
def test_alike_sets_are_at_no_distance_and_others_are_at_some(kernel: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    one, two, three = (torch.randn(160, 8, generator=generator) for _ in range(3))
    alike, other = distance(one, two, kernel), distance(one, three + 2, kernel)
    assert alike.low < 0 < alike.high and other.low > 10 * abs(alike.estimate) and other.estimate > 0
    twice = distance(one, one + 0.01 * two, kernel)  # of the same prompts: alike pair by pair, and no nearer for that
    assert twice.low < 0 < twice.high


def test_a_model_is_as_good_as_itself(capsys: pytest.CaptureFixture[str]) -> None:
    from contextlib import nullcontext

    from safear_edit.cli.evaluate import _show_quality
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.judges.clip import load_clip
    from tests.attacks.test_contract import Bright, pico

    model, spec = pico("llamagen"), load_spec(registry.find_builtin("concepts", "picasso"))
    pair = Pair(model, lambda: nullcontext(model))
    found = quality.compare_quality(pair, spec, Bright(), load_clip(), 16, None)
    assert found.object_kept[0] == found.object_kept[1] and found.object_kept[0].n == 16
    assert found.text_change.estimate == 0 and found.perceptual.estimate == pytest.approx(0, abs=1e-5)
    assert found.other_seed.estimate > 0.001 and found.diversity[0] == found.diversity[1]
    assert sum(count for _, count in found.replaced_by) <= 16 and found.clip == "gallery"
    assert _show_quality(("a", "b"), found, True) == 0
    assert json.loads(capsys.readouterr().out)["kid"]["estimate"] == found.kid.estimate
    assert _show_quality(("a", "b"), found, False) == 0 and "CMMD" in capsys.readouterr().out
    alone = replace(found, kid=stats.mean_interval([0.5]))
    assert _show_quality(("a", "b"), alone, True) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["kid"]
    assert (told["estimate"], told["low"], told["high"]) == (0.5, None, None)
    assert _show_quality(("a", "b"), alone, False) == 0
    assert "0.5000 [one value, no interval]" in capsys.readouterr().out
