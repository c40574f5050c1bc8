"""calibrate: thresholds from one half of labelled images, counts from the other; a card belongs to one detector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safear_edit.cli import main
from safear_edit.errors import UsageError
from safear_edit.files.strict import parse_yaml
from safear_edit.gallery.render import OBJECTS, SCENES, STYLES, Picture, draw
from safear_edit.judges.base import Calibrated, Judgement, judge_for, make_judge, read
from safear_edit.judges.calibrate import FEWEST, SMALLEST, Truth, calibrated, labelled, thresholds
from safear_edit.spec.spec import Judge, MeasuredJudge

PROMPTS = {
    "style": {f"style={name}": [f"a painting by {name.replace('_', ' ')}"] for name in STYLES if name != "photo"}
}


def truths(present: Sequence[float], absent: Sequence[float]) -> list[Truth]:
    told = [(True, score) for score in present] + [(False, score) for score in absent]
    return [Truth(wanted, Judgement(score >= 0.5, score, "")) for wanted, score in told]


def test_what_is_told_apart_gets_one_threshold_in_the_middle() -> None:
    assert thresholds(truths([0.8, 0.9], [0.1, 0.2])) == (0.5, 0.5)


def test_the_band_covers_what_would_be_wrong_more_often_than_allowed() -> None:
    low, high = thresholds(truths([*np.linspace(0.5, 0.9, 98), 0.15, 0.2], [*np.linspace(0.0, 0.3, 97), 0.6, 0.7, 0.8]))
    assert low == pytest.approx(0.4), "2 of 100 may be missed, so the two low ones widen nothing"
    assert high == pytest.approx(0.6 + SMALLEST), "3 of 100 would be found wrongly: one must be uncertain"
    assert [read(Judgement(True, score, ""), low, high).present for score in (0.1, 0.6, 0.61)] == [False, None, True]


def test_scores_that_say_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="higher scores where the label is present"):
        thresholds(truths([0.1, 0.2], [0.8, 0.9]))


def test_the_second_half_measures_and_cannot_tell_counts_as_wrong() -> None:
    judge = make_judge("gallery", "style=monet")
    one = truths([0.9] * FEWEST, [0.1] * FEWEST)
    other = truths([*[0.9] * FEWEST, 0.2, 0.3], [*[0.1] * FEWEST, 0.8])
    other.append(Truth(True, Judgement(None, 0.9, "unreadable")))
    card = calibrated(judge, one, other, "made up")
    assert (card.n_pos, card.true_pos, card.n_neg, card.true_neg) == (FEWEST + 3, FEWEST, FEWEST + 1, FEWEST)
    with pytest.raises(UsageError, match="40 readable images with the label"):
        calibrated(judge, one[1:], other, "made up")


def test_a_card_is_one_detectors() -> None:
    asked = Judge(use="gallery", label="style=monet")
    numbers = {"present_from": 0.7, "absent_below": 0.2, "n_pos": 9, "true_pos": 8, "n_neg": 9, "true_neg": 9}
    card = MeasuredJudge(detector=judge_for(asked, asked.label).digest, data="mine", **numbers)
    found = judge_for(asked.model_copy(update={"card": card}), "style=monet")
    assert isinstance(found, Calibrated) and found.id == "gallery:style=monet@0.2-0.7"
    assert found.card is not None and found.card.sensitivity == pytest.approx(8 / 9)
    plain = judge_for(asked.model_copy(update={"card": card}), "style=seurat")
    assert plain.id == "gallery:style=seurat@0.5", "members have no part in it"
    with pytest.raises(UsageError, match="calibrate again"):
        judge_for(asked.model_copy(update={"card": card, "label": "style=seurat"}), "style=seurat")


# -- a folder, by the CLIP that ships -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 Monets and 40 others, as PNGs."""
    folder = tmp_path_factory.mktemp("labelled")
    others = [style for style in STYLES if style not in ("monet", "photo")]
    for name in ("present", "absent"):
        (folder / name).mkdir()
        for number in range(2 * FEWEST):
            style = "monet" if name == "present" else others[number % len(others)]
            picture = Picture(OBJECTS[number % 8], style, SCENES[number // 8])
            Image.fromarray(draw(picture)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Monet, judged by the shipped CLIP."""
    path = tmp_path / "mine.yaml"
    judge = {"use": "clip", "label": "style=monet", "options": {"model": "gallery", "prompts": PROMPTS}}
    path.write_text(f"""\
schema_version: 1
extends: gallery/style
name: monet
erase: {{concept: Monet, aliases: [Monet, Claude Monet]}}
paraphrases: {{held_out: [Oscar-Claude Monet]}}
judge: {json.dumps(judge)}
""")
    return path


def test_a_card_from_a_folder_goes_into_the_spec(
    rendered: Path, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "card.yaml"
    assert main.run(["judge", "calibrate", str(rendered), str(spec), "--images", "gallery", "--out", str(out)]) == 0
    assert "of 20 images that show it" in capsys.readouterr().err
    card = MeasuredJudge.model_validate(parse_yaml(out.read_text(), "card").data["card"])
    assert card.n_pos == card.n_neg == FEWEST and card.true_pos >= FEWEST - 2 and card.true_neg >= FEWEST - 2
    asked = Judge(use="clip", label="style=monet", options={"model": "gallery", "prompts": PROMPTS}, card=card)
    judge = judge_for(asked, asked.label)
    assert judge.card is not None and "80 images" in judge.card.data
    (said,) = judge.look(torch.from_numpy(draw(Picture("horse", "monet", "snow"))).permute(2, 0, 1)[None])
    assert said.present is True
    told = judge.look(torch.randint(256, (1, 3, 40, 40), dtype=torch.uint8, generator=torch.manual_seed(0)))
    assert told[0].present in (None, False)


def test_halves_are_the_same_again_and_bad_folders_are_refused(
    rendered: Path, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = make_judge("clip", "style=monet", None, prompts=PROMPTS)
    first, second, _ = labelled(judge, rendered)
    assert [len([one for one in half if one.present]) for half in (first, second)] == [FEWEST, FEWEST]
    assert labelled(judge, rendered)[0] == first
    assert main.run(["judge", "calibrate", str(tmp_path), str(spec), "--images", "gallery"]) == 2
    assert "put images with the label into present/" in capsys.readouterr().err
    for name in ("present", "absent"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes((rendered / "present" / "0.png").read_bytes())
    assert main.run(["judge", "calibrate", str(tmp_path), str(spec), "--images", "gallery"]) == 2
    assert "one in both" in capsys.readouterr().err
    assert main.run(["judge", "calibrate", str(rendered), str(spec)]) == 2
    assert "name a CLIP under options.model" in capsys.readouterr().err
