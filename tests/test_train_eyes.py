"""janus:mini's eyes alone: what is varied stays a picture, and nothing that draws moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from safear_edit.families.janus import Janus
from safear_edit.families.vq import VQConfig, VQModel
from safear_edit.gallery import train_eyes
from safear_edit.gallery.train_eyes import varied
from safear_edit.gallery.train_janus import Plan, new_model
from safear_edit.gallery.world import World
from safear_edit.registry import ModelRef

SMALL = Plan(64, 96, 2, 2, words=300, drawn=0, seen=3, turns=2)


def small() -> tuple[VQModel, Janus]:
    torch.manual_seed(0)
    widths = {"encoder_ch_mult": (1, 1, 1), "decoder_ch_mult": (1, 1, 2)}
    vq = VQModel(VQConfig(codebook_size=64, ch=32, z_channels=32, num_res_blocks=1, **widths)).eval()
    model = new_model(vq, SMALL)
    torch.nn.init.normal_(model.net.model.generation_head.vision_head.weight, std=0.1)
    return vq, model


def test_varied_pictures_are_the_same_pictures_in_another_pose_and_light() -> None:
    world = World()
    images = world.tensor(world.sample(np.random.default_rng(0), 24))
    before = images.clone()
    seen = varied(images, np.random.default_rng(1))
    assert torch.equal(images, before) and seen.shape == images.shape and seen.abs().max() <= 1
    assert torch.equal(seen, varied(images, np.random.default_rng(1)))
    assert all(not torch.equal(a, b) for a, b in zip(seen, images, strict=True))
    colours, other = (x.mean((2, 3)) for x in (images, seen))
    assert (colours - other).abs().mean() < 0.2, "what a picture is made of stays"
    holes = (seen == 0).all(1).flatten(1).sum(1)
    assert (holes[::2] >= train_eyes.HOLE**2).all() and (holes[1::2] < train_eyes.HOLE).all()


def test_eyes_learn_and_the_hand_stays_as_it_was(tmp_path: Path) -> None:
    vq, model = small()
    start = {name: tensor.clone() for name, tensor in model.net.half().float().state_dict().items()}
    drawn = model.generate(model.condition(["a dog", "a cat by monet"]), [1, 2])
    trained = train_eyes.train(tmp_path, vq, model, 3, SMALL)
    loaded = Janus.load(ModelRef.parse(str(tmp_path / "export")))
    assert torch.equal(loaded.generate(loaded.condition(["a dog", "a cat by monet"]), [1, 2]), drawn)
    now = loaded.net.state_dict()
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, now[name])}
    assert moved and all(name.startswith(("model.vision_model.", "model.aligner.")) for name in moved)
    assert "model.vision_model.encoder.layers.0.mlp.fc1.weight" in moved
    again = train_eyes.train(tmp_path, vq, small()[1], 3, SMALL)  # nothing left to do: the same weights
    assert all(torch.equal(t, again.net.state_dict()[n]) for n, t in trained.net.state_dict().items())
    assert '"trained_from"' in (tmp_path / "export" / "manifest.json").read_text()
