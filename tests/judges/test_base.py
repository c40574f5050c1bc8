"""judges/base.py: cards, checks, and building a judge by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from safear_edit.errors import UsageError
from safear_edit.judges.base import (
    Judge,
    JudgeCard,
    Judgement,
    checked_images,
    checked_threshold,
    file_digest,
    judged,
    make_judge,
    settings_digest,
)


def test_card_counts_become_rates() -> None:
    card = JudgeCard(n_pos=40, true_pos=38, n_neg=200, true_neg=199, data="made up")
    assert card.sensitivity == pytest.approx(0.95)
    assert card.specificity == pytest.approx(0.995)


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
def test_a_threshold_that_decides_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold"):
        checked_threshold("gallery", threshold)


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 40, 40, 3), (1, 1, 40, 40)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="uint8"):
        checked_images("gallery", torch.zeros(shape, dtype=torch.uint8))


def test_float_pictures_are_refused() -> None:
    """A float batch in [-1, 1] cast to uint8 would be black: every concept would look erased."""
    with pytest.raises(UsageError, match="float32"):
        checked_images("gallery", torch.zeros(1, 3, 40, 40))


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1})
    assert settings_digest({"a": 1}) != settings_digest({"a": 2})


class Mean(Judge):
    """Finds images with its own grey value, and counts how often it was asked."""

    def __init__(self, grey: int) -> None:
        self.grey, self.calls = grey, 0

    def look(self, images: torch.Tensor) -> list[Judgement]:
        self.calls += 1
        return [Judgement(bool((image == self.grey).all()), float(image[0, 0, 0]), "") for image in images]


def test_each_picture_is_judged_for_its_own_label_and_each_label_in_one_call() -> None:
    greys, labels = [7, 9, 7, 7, 9], ["a", "b", "a", "b", "a"]
    images = torch.tensor(greys, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    judges = {"a": Mean(7), "b": Mean(9), "unused": Mean(0)}
    found = judged(judges, images, labels)
    assert [judgement.score for judgement in found] == greys
    assert [judgement.present for judgement in found] == [True, True, True, False, False]
    assert [judge.calls for judge in judges.values()] == [1, 1, 0]


def test_make_judge_by_name() -> None:
    judge = make_judge("gallery", "style=picasso", 0.7)
    assert judge.threshold == 0.7
    assert judge.id == "gallery:style=picasso@0.7"


def test_unknown_judges_and_options_name_what_there_is() -> None:
    with pytest.raises(UsageError, match="did you mean 'gallery'"):
        make_judge("galery", "style=picasso")
    with pytest.raises(UsageError, match=r"'tresh'.*options: "):
        make_judge("gallery", "style=picasso", tresh=0.3)
