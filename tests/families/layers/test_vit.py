"""OmniMamba's image towers: against whole ones of timm, and resizing against PIL's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from safear_edit.families.layers.vit import DINO, HALVES, IMAGENET, SIGLIP, Towers, TowerSizes, pixels, scaled, tower

SIZES = {"width": 32, "depth": 3, "heads": 2, "inner": 64, "patch": 7, "image": 30}


def spread(net: nn.Module) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in net.named_parameters():
            nn.init.normal_(parameter, mean=float("norm" in name or "gamma" in name), std=0.3)


def whole(registers: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    kinds = {
        0: {"class_token": False, "global_pool": "map"},
        4: {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    }
    same = {"img_size": 30, "patch_size": 7, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
    net = VisionTransformer(**same, **kinds[registers], num_classes=0).eval()
    spread(net)
    return net


@torch.no_grad()
def test_patches_are_what_whole_towers_say_of_them_before_their_last_block() -> None:
    theirs = {DINO: whole(4), SIGLIP: whole(0)}
    towers = Towers(TowerSizes(**SIZES, registers=4), TowerSizes(**SIZES))
    for name, net in theirs.items():
        rest = towers[name].load_state_dict(net.state_dict(), strict=False)
        assert not rest.missing_keys
        assert all(key.startswith(("norm.", "blocks.2.", "attn_pool.")) for key in rest.unexpected_keys)
    images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    said = [
        theirs[name].get_intermediate_layers(scaled(pixels(images, 30), *trained_on), n={1})[0]
        for name, trained_on in ((DINO, IMAGENET), (SIGLIP, HALVES))
    ]
    assert said[0].shape == (2, 16, 32)
    torch.testing.assert_close(towers(images), torch.cat(said, 2), rtol=0, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in towers.parameters())


def test_published_towers_have_their_inner_width() -> None:
    with torch.device("meta"):
        assert tower(TowerSizes(1152, 2, 16, 4304)).blocks[0].mlp.fc1.out_features == 4304


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
