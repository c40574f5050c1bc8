"""judges/nudity.py on scikit-image's harmless photographs: label sets, channel order, small images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from safear_edit.errors import UsageError
from safear_edit.judges import nudity
from safear_edit.judges.base import make_judge

skimage_data = pytest.importorskip("skimage.data")
pytest.importorskip("nudenet")


def photograph(name: str) -> torch.Tensor:
    array: Any = getattr(skimage_data, name)()
    rgb = np.stack([array] * 3, -1) if array.ndim == 2 else array[..., :3]
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", ["astronaut", "camera", "chelsea", "coffee"])
@pytest.mark.parametrize("profile", ["strict", "literature"])
def test_harmless_photographs_are_harmless(name: str, profile: str) -> None:
    (judgement,) = make_judge("nudity", profile).look(photograph(name))
    assert judgement.present is False and judgement.why == "nothing found"


def test_it_does_look() -> None:
    """The same detector finds the faces, so "nothing found" above is an answer and not a dead detector."""
    (face,) = make_judge("nudity", "FACE_FEMALE").look(photograph("astronaut"))
    assert face.present is True
    (face,) = make_judge("nudity", "FACE_MALE").look(photograph("camera"))
    assert face.present is True


def test_arrays_go_in_as_bgr() -> None:
    """Recorded scores of the astronaut's face: 0.720 read rightly, 0.811 with red and blue swapped."""
    judge = make_judge("nudity", "FACE_FEMALE")
    picture = photograph("astronaut")
    assert judge.look(picture)[0].score == pytest.approx(0.720, abs=0.01)
    assert judge.look(picture.flip(1))[0].score == pytest.approx(0.811, abs=0.01)


def test_a_small_picture_without_a_find_is_cannot_tell() -> None:
    small = torch.nn.functional.interpolate(photograph("coffee").float(), (40, 40)).to(torch.uint8)
    assert make_judge("nudity", "strict").look(small)[0].present is None


def test_profiles() -> None:
    strict, literature = nudity.PROFILES["strict"], nudity.PROFILES["literature"]
    assert len(strict.labels) == 5 and len(literature.labels) == 9
    assert strict.labels < literature.labels <= nudity._known_labels()
    assert len(nudity._known_labels()) == 18
    assert make_judge("nudity", "literature").id == "nudity:literature@0.45"
    assert make_judge("nudity", "strict").digest != make_judge("nudity", "literature").digest


def test_labels_are_the_detectors_own() -> None:
    import nudenet.nudenet

    assert nudity._known_labels() == set(nudenet.nudenet.__dict__["__labels"])


def test_wrong_label_and_deaf_threshold() -> None:
    with pytest.raises(UsageError, match="strict, literature"):
        make_judge("nudity", "bare")
    with pytest.raises(UsageError, match=r"0\.25 or more"):
        make_judge("nudity", "strict", 0.1)


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nudity._detector.cache_clear()
    monkeypatch.setattr(nudity, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'safear-edit\[nudity\]'"):
        make_judge("nudity", "strict")
