"""judges/folder.py: nearest images of a user's folders, in the space of the CLIP that ships."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from safear_edit.errors import SpecError, UsageError
from safear_edit.gallery.render import Picture, draw
from safear_edit.judges.base import make_judge
from safear_edit.judges.calibrate import labelled
from tests.judges.test_clip import pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References of three styles; of one of them in a folder below."""
    root = tmp_path_factory.mktemp("references")
    for style, place in (("monet", "monet"), ("hokusai", "hokusai/prints"), ("photo", "style=photo")):
        (root / place).mkdir(parents=True)
        for number, thing in enumerate(("dog", "house", "cat", "car")):
            Image.fromarray(draw(Picture(thing, style, "meadow"))).save(root / place / f"{number}.png")
    return root


def test_the_nearest_references_vote(folder: Path) -> None:
    images = pixels(*(Picture("church", style, "meadow") for style in ("monet", "hokusai", "photo")))
    for row, label in enumerate(("style=monet", "style=hokusai", "style=photo")):
        judge = make_judge("folder", label, folder=str(folder))
        scores = [one.score for one in judge.look(images)]
        assert scores.index(max(scores)) == row and judge.look(images)[row].present is True
        assert all(0 <= score <= 1 for score in scores)
    assert judge.look(images[:0]) == []


def test_shares_of_all_labels_make_one(folder: Path) -> None:
    images = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.manual_seed(0))
    votes = [
        make_judge("folder", label, folder=str(folder)).look(images) for label in ("monet", "hokusai", "style=photo")
    ]
    assert [sum(said.score for said in row) for row in zip(*votes, strict=True)] == pytest.approx([1, 1], abs=1e-5)


def test_its_digest_is_that_of_the_references(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.png"):
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    same, one = (make_judge("folder", "monet", folder=str(root)).digest for root in (tmp_path, folder))
    assert same == one != make_judge("folder", "hokusai", folder=str(folder)).digest
    Image.fromarray(draw(Picture("tree", "monet", "snow"))).save(tmp_path / "monet" / "more.png")
    assert make_judge("folder", "monet", folder=str(tmp_path)).digest != one


def test_a_reference_that_is_replaced_votes_as_it_is_now(folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "references")
    images = pixels(Picture("church", "monet", "meadow"))
    (before,) = make_judge("folder", "monet", folder=str(root)).look(images)
    for path in (root / "monet").iterdir():
        path.write_bytes((root / "style=photo" / path.name).read_bytes())
    (after,) = make_judge("folder", "monet", folder=str(root)).look(images)
    assert after.score < before.score


def test_its_own_references_make_no_card(folder: Path, tmp_path: Path) -> None:
    """It is always right about them, so thresholds and counts would say nothing of other images."""
    for part, source in (("present", folder / "monet"), ("absent", folder / "hokusai")):
        shutil.copytree(source, tmp_path / part)
    with pytest.raises(
        UsageError, match=r"expected images that folder\[gallery\].* doesn't have, got 8 that it judges"
    ):
        labelled(make_judge("folder", "monet", folder=str(folder)), tmp_path)


def test_folders_that_tell_nothing_apart_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected options\.folder, a folder, got none"):
        make_judge("folder", "monet")
    with pytest.raises(UsageError, match="did you mean 'monet'"):
        make_judge("folder", "style=monnet", folder=str(folder))
    (tmp_path / "monet").mkdir()
    Image.fromarray(draw(Picture("tree", "monet", "snow"))).save(tmp_path / "monet" / "a.png")
    with pytest.raises(UsageError, match="images of something else"):
        make_judge("folder", "monet", folder=str(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.png").write_bytes(b"no image")
    with pytest.raises(SpecError, match="PNG, JPEG or WebP"):
        make_judge("folder", "monet", folder=str(tmp_path))
