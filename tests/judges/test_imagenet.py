"""judges/imagenet.py on scikit-image's photographs: known answers, normalisation, labels, missing packages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from safear_edit.errors import TrustError, UsageError
from safear_edit.judges import imagenet
from safear_edit.judges.base import make_judge

skimage_data = pytest.importorskip("skimage.data")
pytest.importorskip("efficientnet_lite_pytorch")


def photograph(name: str) -> torch.Tensor:
    array: Any = getattr(skimage_data, name)()
    rgb = np.stack([array] * 3, -1) if array.ndim == 2 else array[..., :3]
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("name", "label"),
    [("coffee", "espresso"), ("camera", "tripod"), ("chelsea", "tabby|tiger cat|Egyptian cat")],
)
def test_known_photographs(name: str, label: str) -> None:
    (judgement,) = make_judge("imagenet", label).look(photograph(name))
    assert judgement.present is True
    assert judgement.score > 0.8
    assert make_judge("imagenet", "church").look(photograph(name))[0].present is False


def test_normalisation_is_the_weights_own() -> None:
    """Recorded: espresso 0.95 with (x - 0.498) / 0.502, 0.78 with ImageNet's mean and deviation."""
    white, black = (torch.full((1, 3, 224, 224), v, dtype=torch.uint8) for v in (255, 0))
    assert float(imagenet.as_input(white).max()) == pytest.approx(1.0, abs=1e-4)
    assert float(imagenet.as_input(black).min()) == pytest.approx(-0.992, abs=1e-3)
    assert make_judge("imagenet", "espresso").look(photograph("coffee"))[0].score > 0.9


def test_best_guess_counts_below_the_threshold() -> None:
    (judgement,) = make_judge("imagenet", "Egyptian cat").look(photograph("chelsea"))
    assert judgement.score < 0.5 and judgement.present is True


def test_the_literatures_classes_are_there() -> None:
    for label in ("church", "garbage truck", "parachute", "tench", "golf_ball", "cassette player", "chain saw",
                  "English springer", "French horn", "gas pump"):  # fmt: skip
        assert make_judge("imagenet", label).id == f"imagenet:{label}@0.5"
    assert len(imagenet.names()) == 1000


def test_a_small_picture_is_cannot_tell() -> None:
    judgements = make_judge("imagenet", "church").look(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))
    assert [v.present for v in judgements] == [None, None]


def test_unknown_class_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match="near: church"):
        make_judge("imagenet", "chuch")


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet._network.cache_clear()
    monkeypatch.setattr(imagenet, "SHA256", "0" * 64)
    with pytest.raises(TrustError, match="install version"):
        make_judge("imagenet", "church")
    imagenet._network.cache_clear()


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet._network.cache_clear()
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'safear-edit\[imagenet\]'"):
        make_judge("imagenet", "church")
