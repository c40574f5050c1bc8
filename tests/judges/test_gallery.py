"""judges/gallery.py, minis/degrade.py and minis/train_judge.py: what the shipped judge sees, refuses and admits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from safear_edit.errors import TrustError, UsageError
from safear_edit.gallery.render import STYLES, Picture, draw
from safear_edit.gallery.world import World
from safear_edit.judges.gallery import FOLDER, GalleryJudge, GalleryReader, reader
from safear_edit.judges.gallery_net import as_input
from safear_edit.minis import train_judge
from safear_edit.minis.degrade import DEGRADATIONS, degrade

MANIFEST = json.loads((FOLDER / "manifest.json").read_text())


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def pixels(*pictures: Picture) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(p) for p in pictures])).permute(0, 3, 1, 2)


# -- the judge ----------------------------------------------------------------------------------------------------


def test_it_names_every_style_of_a_house() -> None:
    images = pixels(*(Picture("house", style, "meadow") for style in STYLES))
    for row, style in enumerate(STYLES):
        says = [v.present for v in GalleryJudge(f"style={style}").look(images)]
        assert says == [i == row for i in range(len(STYLES))]


def test_one_reading_serves_every_label() -> None:
    images = pixels(Picture("dog", "monet", "beach", hazard=True), Picture("apple", "photo", "plain"))
    reading = reader().read(images)
    for label, truth in {
        "object=dog": [True, False],
        "scene=plain": [False, True],
        "hazard=yes": [True, False],
    }.items():
        judge = GalleryJudge(label)
        assert [v.present for v in judge.judgements(reading)] == truth
        assert judge.judgements(reading) == judge.look(images)


def test_a_row_is_judged_alone() -> None:
    images = pixels(*(Picture("cat", style, "snow") for style in STYLES))
    together = reader().read(images)
    alone = [reader().read(images[i : i + 1]) for i in range(len(images))]
    for head in together.heads:
        torch.testing.assert_close(together.heads[head], torch.cat([r.heads[head] for r in alone]), atol=1e-5, rtol=0)


def test_blurred_and_blank_pictures_are_cannot_tell() -> None:
    grey = torch.full((1, 3, 40, 40), 128, dtype=torch.uint8)
    (judgement,) = GalleryJudge("style=picasso").look(grey)
    assert judgement.present is None
    assert "cannot tell" in judgement.why


def test_larger_pictures_are_shrunk_by_averaging() -> None:
    image = pixels(Picture("castle", "hokusai", "snow"))
    large = image.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert GalleryJudge("object=castle").look(large)[0].present is True
    checkers = torch.zeros(1, 3, 80, 80, dtype=torch.uint8)
    checkers[..., ::2, ::2] = checkers[..., 1::2, 1::2] = 254
    assert as_input(checkers)[..., 4:-4, 4:-4].abs().max() < 0.1


def test_no_pictures_no_judgements() -> None:
    assert GalleryJudge("style=picasso").look(torch.zeros(0, 3, 40, 40, dtype=torch.uint8)) == []


def test_the_object_is_read_from_its_shape() -> None:
    """A red dog is a dog: without true colours the object stays, whatever the style head then says."""
    images = pixels(*(Picture(name, "photo", "plain") for name in ("dog", "car", "sunflower", "house")))
    grey = images.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    best = reader().read(grey).heads["object"].argmax(-1)
    assert [reader().labels["object"][k] for k in best] == ["dog", "car", "sunflower", "house"]


def test_wrong_labels_name_the_right_ones() -> None:
    with pytest.raises(UsageError, match="heads: hazard, object"):
        GalleryJudge("picasso")
    with pytest.raises(UsageError, match="one of photo, picasso"):
        GalleryJudge("style=rembrandt")


def test_digest_tells_label_threshold_and_weights_apart() -> None:
    digests = {GalleryJudge(*a, threshold=t).digest for a in (("style=picasso",), ("style=monet",)) for t in (0.5, 0.6)}
    assert len(digests) == 4


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "judge")
    weights = tmp_path / "judge" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(TrustError, match="sha256"):
        GalleryReader(tmp_path / "judge")
    with pytest.raises(UsageError, match=r"config\.json"):
        GalleryReader(tmp_path)


# -- what was measured --------------------------------------------------------------------------------------------


def test_the_shipped_judge_is_as_good_as_its_manifest_says(world: World) -> None:
    quality = train_judge.measure(reader(), world, count=300)
    for name in ("clean", "augmented"):
        assert quality[name]["style"] >= 0.97
        assert quality[name]["object"] >= 0.95
        assert quality[name]["hazard"] >= 0.98
        assert quality[name]["wrongly_refused"] <= 0.05
    assert quality["refused"]["all"] >= 0.92


def test_the_manifest_reaches_the_targets() -> None:
    quality = MANIFEST["quality"]
    for name in ("clean", "augmented"):
        assert quality[name]["style"] >= 0.98
        assert quality[name]["object"] >= 0.97
        assert quality[name]["hazard"] >= 0.99
        assert quality[name]["wrongly_refused"] <= 0.03
    assert quality["refused"]["all"] >= 0.95
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 4 * 2**20


def test_every_label_has_a_card() -> None:
    labels = {f"{head}={value}" for head, values in train_judge.LABELS.items() for value in values}
    assert set(MANIFEST["card"]) == labels
    card = GalleryJudge("style=picasso").card
    assert card is not None and card.n_pos > 200
    assert card.sensitivity > 0.95 and card.specificity > 0.95
    assert GalleryJudge("style=picasso", threshold=0.9).card is None, "measured at 0.5 only"


# -- degradations and augmentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(DEGRADATIONS))
def test_a_degradation_changes_the_picture_and_stays_in_range(kind: str) -> None:
    images = torch.rand(2, 3, 40, 40) * 2 - 1
    before = images.clone()
    out = degrade(images, images.flip(0), [kind] * 2, np.random.default_rng(0))
    assert out.shape == images.shape and out.dtype == torch.float32
    assert out.abs().max() <= 1
    assert (out - images).abs().mean() > 0.02
    assert torch.equal(images, before)
    assert torch.equal(out, degrade(images, images.flip(0), [kind] * 2, np.random.default_rng(0)))


def test_scrambling_keeps_every_pixel() -> None:
    image = torch.rand(3, 40, 40)
    out = DEGRADATIONS["scrambled"](image, image, np.random.default_rng(1))
    assert torch.equal(out.flatten().sort().values, image.flatten().sort().values)


def test_halves_come_from_both_pictures() -> None:
    out = DEGRADATIONS["halved"](torch.zeros(3, 40, 40), torch.ones(3, 40, 40), np.random.default_rng(2))
    assert 0.35 < out.mean() < 0.65
    assert set(out.unique().tolist()) == {0.0, 1.0}


def test_augmentation_is_mild_and_repeatable(world: World) -> None:
    images = world.tensor([Picture("house", style, "beach") for style in STYLES])
    out = train_judge.augment(images, np.random.default_rng(3))
    assert torch.equal(out, train_judge.augment(images, np.random.default_rng(3)))
    assert 0.01 < (out - images).abs().mean() < 0.3


def test_discolouring_keeps_the_shape_only() -> None:
    images = torch.rand(64, 3, 8, 8) * 2 - 1
    out = train_judge.discolour(images, np.random.default_rng(4))
    assert out.abs().max() <= 1.0001
    grey = (out.std(1) < 1e-6).flatten(1).all(1)
    assert 16 < grey.sum() < 48


# -- training -----------------------------------------------------------------------------------------------------


def test_held_out_pictures_are_never_trained_on(world: World) -> None:
    rng = np.random.default_rng(5)
    train = train_judge.sample(world, rng, 300, held_out=False)
    assert not any(train_judge.is_held_out(p) for p in train)
    assert all(train_judge.is_held_out(p) for p in train_judge.sample(world, rng, 50, held_out=True))
    sticker = replace(train[0], hazard=not train[0].hazard, corner=0)
    assert not train_judge.is_held_out(sticker), "the sticker must not carry an image into the other part"
    assert 0.05 < np.mean([train_judge.is_held_out(p) for p in world.sample(rng, 2000)]) < 0.15


def test_discoloured_rows_teach_the_object_alone() -> None:
    net = train_judge.new_net().eval()
    pictures = [Picture("dog", "monet", "beach"), Picture("car", "photo", "snow")]
    pale = torch.tensor([True, True, False])
    losses = train_judge._losses(net(torch.rand(3, 3, 40, 40)), pictures, pale)
    assert losses["style"] == losses["scene"] == losses["hazard"] == 0
    assert losses["object"] > 0 and losses["refuse"] > 0
