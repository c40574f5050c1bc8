"""Residual codes and the depth transformer, each against the same thing written out step by step."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.tokenizers.rqvae import (
    OWN_TOWER,
    TOWERS,
    DepthCache,
    DepthTransformer,
    ResidualTokenizer,
    residual_codes,
    tower_sizes,
)
from safear_edit.families.vila_u import PICO, TOWER


def sizes(section: str) -> Any:
    return json.loads(json.dumps(PICO[TOWER][section]))


def seeded(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def depth() -> DepthTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DepthTransformer(sizes("rqtransformer"))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


# -- codes ------------------------------------------------------------------------------------------------------------


def test_each_code_is_the_row_nearest_to_what_is_left() -> None:
    vectors, rows = seeded((40, 6), 0), seeded((16, 6), 1)
    codes = residual_codes(vectors, rows, 3)
    for vector, found in zip(vectors, codes, strict=True):
        left = vector.clone()
        for code in found:
            distances = [float((left - row).norm()) for row in rows]
            assert int(code) == distances.index(min(distances))
            left = left - rows[code]


def test_what_codes_sum_to_is_found_again() -> None:
    rows = torch.cat([8 * torch.eye(6), torch.eye(6), torch.eye(6) / 8])  # coarse to fine: nothing is ambiguous
    wanted = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i)) for i in range(3)], 1)
    wanted = wanted + torch.tensor([0, 6, 12])
    assert torch.equal(residual_codes(rows[wanted].sum(1), rows, 3), wanted)


def test_a_picture_is_decoded_from_the_sum_of_its_rows_stretched_to_the_decoder() -> None:
    data = sizes("rqvaesiglip")
    data[OWN_TOWER] |= {"image_size": 32, "patch_size": 6}  # 5 places a side, which no doubling makes 32 pixels
    data |= {"latent_shape": [5, 5, 32], "code_shape": [5, 5, 4], "decoder_latent_shape": [8, 8]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = ResidualTokenizer(data).eval()
    pixels = seeded((2, 3, 32, 32), 3).clamp(-1, 1)
    with torch.no_grad():
        codes = tokenizer.encode(pixels)
        images = tokenizer.decode(codes)
        places = sum(F.embedding(codes[..., i], tokenizer.codebook) for i in range(4)).view(2, 5, 5, 32)
        z = F.interpolate(places.permute(0, 3, 1, 2), size=(8, 8), mode="bilinear")
        torch.testing.assert_close(images, tokenizer.decoder(tokenizer.post_quant_conv(z)))
    assert codes.shape == (2, 25, 4) and images.shape == (2, 3, 32, 32) and tokenizer.image_size == 32


def test_the_tower_is_siglip_before_its_last_layer() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    data = sizes("rqvaesiglip")
    tokenizer = ResidualTokenizer(data).eval()
    whole = SiglipVisionModel(SiglipVisionConfig(**data[OWN_TOWER])).eval()
    report = whole.load_state_dict(tokenizer.vision.state_dict(), strict=False)
    assert not report.unexpected_keys and all(".2." in n or "head" in n or "post" in n for n in report.missing_keys)
    pixels = seeded((2, 3, 16, 16), 1).clamp(-1, 1)
    with torch.no_grad():
        states = whole(pixels, output_hidden_states=True).hidden_states
        torch.testing.assert_close(tokenizer.vectors(pixels), states[-2])
    assert tokenizer.last_layer == 2


def test_published_towers_have_as_many_places_as_the_release() -> None:
    for name, places in (("google/siglip-large-patch16-256", 256), ("google/siglip-so400m-patch14-384", 729)):
        tower = tower_sizes({"pretrained_model": name})
        assert tower is TOWERS[name] and (tower["image_size"] // tower["patch_size"]) ** 2 == places
        assert tower["hidden_size"] % tower["num_attention_heads"] == 0
    with pytest.raises(KeyError):
        tower_sizes({"pretrained_model": "google/vit"})


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"shared_codebook": False}, "one codebook"),
        ({"code_shape": [4, 2, 4]}, "square"),
        ({"latent_shape": [8, 8, 32]}, "vector for every place"),
        ({"embed_dim": 16}, "one width"),
        ({"decoder_latent_shape": [4, 8]}, "one size"),
    ],
)
def test_sizes_that_disagree_are_refused(change: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError, match=where):
        ResidualTokenizer({**sizes("rqvaesiglip"), **change})


# -- depth ------------------------------------------------------------------------------------------------------------


def by_hand(net: DepthTransformer, state_nC: Tensor, rows_nKd: Tensor) -> Tensor:
    """One place and one code at a time, attention as sums."""
    w, found = dict(net.named_parameters()), []

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        spread, middle = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - middle) / (spread + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    for state, rows in zip(state_nC, rows_nKd, strict=True):
        read = [linear("in_mlp_2", state)] + [linear("in_mlp_1", rows[: k + 1].sum(0)) for k in range(len(rows))]
        h = torch.stack(read) + w["pos_emb_d"][0, : len(read)]
        for i in range(2):
            at, x = f"head_transformer.blocks.{i}", norm(f"head_transformer.blocks.{i}.ln1", h)
            q, k, v = (linear(f"{at}.attn.{n}", x).unflatten(1, (4, 12)) for n in ("query", "key", "value"))
            mixed = []
            for now in range(len(read)):
                score = torch.stack([(q[now] * k[then]).sum(1) for then in range(now + 1)]) / 12**0.5
                mixed.append((score.softmax(0).unsqueeze(2) * v[: now + 1]).sum(0).flatten())
            h = h + linear(f"{at}.attn.proj", torch.stack(mixed))
            h = h + linear(f"{at}.mlp.2", F.gelu(linear(f"{at}.mlp.0", norm(f"{at}.ln2", h))))
        found.append(norm("classifier_mlp.layer_norm", h))
    return torch.stack(found)


def test_the_depth_transformer_reads_the_state_and_the_sum_of_the_codes_so_far(depth: DepthTransformer) -> None:
    state, rows = seeded((3, 64), 0), seeded((3, 3, 32), 1)
    with torch.no_grad():
        wanted = by_hand(depth, state, rows)
        torch.testing.assert_close(depth(state, rows), wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(depth(state, rows[:, :0]), wanted[:, :1], rtol=0, atol=1e-4)
        assert depth.logits(wanted).shape == (3, 4, 64)


def test_code_by_code_it_is_the_same_place_after_place(depth: DepthTransformer) -> None:
    cache = DepthCache(depth, 3)
    with torch.no_grad():
        for place in range(2):  # the second place must not see the first one's keys
            state, rows = seeded((3, 64), place), seeded((3, 3, 32), 9 + place)
            wanted = depth(state, rows)
            steps = [cache.first(state), *(cache.next(rows[:, : k + 1].sum(1)) for k in range(3))]
            torch.testing.assert_close(torch.stack(steps, 1), wanted, rtol=0, atol=1e-5)
