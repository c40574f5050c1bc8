"""OmniMamba's picture towers: against timm's, and resizing against PIL's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from safear_edit.families.vit import HALVES, IMAGENET, Tower, TowerSizes, pixels, scaled

SIZES = {"width": 32, "depth": 3, "heads": 2, "inner": 64, "patch": 7, "image": 30}


def spread(net: nn.Module) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in net.named_parameters():
            nn.init.normal_(parameter, mean=float("norm" in name or "gamma" in name), std=0.3)


@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_patches_are_what_timm_says_of_them_before_its_last_block(registers: int) -> None:
    vision = pytest.importorskip("timm.models.vision_transformer")
    kinds = {
        0: {"class_token": False, "global_pool": "map"},
        4: {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    }
    same = {"img_size": 30, "patch_size": 7, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
    theirs = vision.VisionTransformer(**same, **kinds[registers], num_classes=0).eval()
    spread(theirs)
    tower = Tower(TowerSizes(**SIZES, registers=registers))
    rest = tower.load_state_dict(theirs.state_dict(), strict=False)
    assert not rest.missing_keys
    assert all(name.startswith(("norm.", "blocks.2.", "attn_pool.")) for name in rest.unexpected_keys)
    shown = torch.rand(2, 3, 30, 30, generator=torch.Generator().manual_seed(1))
    (wanted,) = theirs.get_intermediate_layers(shown, n={1})
    assert wanted.shape == (2, 16, 32)
    torch.testing.assert_close(tower(shown), wanted, rtol=0, atol=1e-4)


def test_towers_differ_by_what_stands_beside_the_patches() -> None:
    names = [{name for name, _ in Tower(TowerSizes(**SIZES, registers=n)).named_parameters()} for n in (0, 2)]
    own = {"cls_token", "reg_token", *(f"blocks.{i}.ls{j}.gamma" for i in (0, 1) for j in (1, 2))}
    assert names[1] - names[0] == own and names[0] < names[1]


@pytest.mark.parametrize(("side", "wanted"), [(256, 384), (384, 200), (16, 16)])
def test_pictures_are_resized_as_pil_does(side: int, wanted: int) -> None:
    picture = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    resized = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((wanted, wanted), Image.Resampling.BICUBIC)
    found = pixels(picture.unsqueeze(0), wanted)[0] * 255
    differ = (found - torch.from_numpy(np.array(resized)).permute(2, 0, 1)).abs()
    assert differ.max() < 2.01 and (differ > 0.5).float().mean() < 0.003


def test_pixels_are_scaled_by_what_the_tower_was_trained_on() -> None:
    shown = torch.tensor([0.485, 0.456, 1.0]).view(1, 3, 1, 1)
    assert scaled(shown, *IMAGENET).flatten().tolist() == pytest.approx([0, 0, (1 - 0.406) / 0.225])
    assert scaled(shown, *HALVES).flatten().tolist() == pytest.approx([-0.03, -0.088, 1], abs=1e-6)
