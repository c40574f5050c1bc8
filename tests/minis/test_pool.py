"""The pool is made once, and never taken for another tokenizer's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.minis.pool import build_pool


def coarse(image: Tensor) -> Tensor:
    """64 ids of 16, by the brightness of each 5 x 5 pixels."""
    return (torch.nn.functional.avg_pool2d(image.mean(1), 5).flatten(1) * 8 + 8).long()


def test_a_pool_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    first = build_pool(coarse, tmp_path, 40)
    again = build_pool(coarse, tmp_path, 40)
    assert torch.equal(first.ids, again.ids) and first.ids.shape == (40, 64) and first.lengths.min() > 2
    for encode, size in (
        (lambda image: 15 - coarse(image), 40),
        (lambda image: coarse(image)[:, :9], 40),
        (coarse, 30),
    ):
        with pytest.raises(UsageError, match="this tokenizer"):
            build_pool(encode, tmp_path, size)
