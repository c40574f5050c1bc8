"""The BSQ tokenizer and the scale schedules against numbers recorded from the public upstream code."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tests
from safear_edit.errors import UsageError
from safear_edit.families.tokenizers.bsq import (
    BSQ,
    BSQConfig,
    SelfCorrection,
    published_names,
    quantise,
    summed_codes,
    teacher_inputs,
    to_map,
    to_tokens,
    to_uint8,
)
from safear_edit.families.tokenizers.schedules import FULL, Schedule
from tests import ROOT

GOLDENS = tests.GOLDENS / "infinity"
TEACHER = load_file(GOLDENS / "sq16.teacher.safetensors")
SQUARE = Schedule.published(1.0, "0.06M")
RECORDED = ROOT.parent / "shared" / "goldens" / "infinity"
"""The whole recording, where there is one: its tokenizer weights alone are larger than what the tests carry."""
ODD = Schedule(((1, 1), (2, 2), (3, 2), (6, 4)), (78, 52))


def close(found: Tensor, recorded: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, recorded, rtol=0, atol=tolerance)


def waves(module: nn.Module) -> None:
    """Weights that any machine makes alike, without a generator: a sine over all elements, scaled to the fan-in."""
    start = 1.0
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            wave = (torch.arange(parameter.numel(), dtype=torch.float64) * 1.7 + start).sin().view_as(parameter)
            scale = (3 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(wave * scale + (1 if ".norm.weight" in name else 0))
            start += 0.37


# -- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "total"), [("0.06M", 521), ("0.25M", 2521), ("0.60M", 6425), ("1M", 10521)])
def test_square_schedules_have_the_published_lengths(size: str, total: int) -> None:
    schedule = Schedule.published(1.0, size)
    assert schedule.total == total == schedule.spans[-1][1]
    assert schedule.rope == (64, 64) and schedule.grids[:3] == ((1, 1), (2, 2), (4, 4))


def test_there_are_fifteen_ratios_and_lying_ones_are_transposed() -> None:
    assert sorted(FULL) == [0.333, 0.4, 0.5, 0.571, 0.666, 0.75, 0.8, 1.0, 1.25, 1.333, 1.5, 1.75, 2.0, 2.5, 3.0]
    assert {len(grids) for grids in FULL.values()} == {13}
    for ratio, grids in FULL.items():
        height, width = grids[-1]
        assert height / width == pytest.approx(ratio, rel=0.03)
        assert height * width == pytest.approx(4096, rel=0.06), "about a million pixels"
        assert all(a[i] <= b[i] for a, b in itertools.pairwise(grids) for i in (0, 1))
    assert FULL[0.571] == tuple((w, h) for h, w in FULL[1.75])


def test_the_nearest_ratio_is_taken_and_positions_stay_on_its_largest_grid() -> None:
    schedule = Schedule.published(600 / 800, "0.06M")
    assert schedule.grids[-1] == (15, 20) and schedule.rope == (54, 72)
    with pytest.raises(UsageError, match=r"0\.60M"):
        Schedule.published(1.0, "2M")
    for grids in ((), ((2, 2), (4, 4)), ((1, 1), (8, 2), (4, 4)), ((1, 1), (0, 4))):
        with pytest.raises(UsageError, match="grids from"):
            Schedule(grids, (64, 64))


def test_patchify_doubles_the_cells_and_weights_sum_to_one() -> None:
    schedule = Schedule.published(1.5, "0.06M", patchify=True)
    assert schedule.cells[-1] == (42, 28) and schedule.tokens[-1] == 21 * 14
    weights = SQUARE.token_weights()
    assert sum(weights) == pytest.approx(1) and weights[0] / weights[-1] == pytest.approx(16)


# -- bits and codes ---------------------------------------------------------------------------------------------------


def test_bits_inputs_and_latent_are_the_recorded_ones() -> None:
    found = quantise(TEACHER["raw_features"], SQUARE)
    bits = TEACHER["encode_bits"].long()
    assert torch.equal(found.bits, bits)
    close(found.latent, TEACHER["quant_z"], 2e-6)
    close(summed_codes(bits, SQUARE), TEACHER["quant_z"], 2e-6)
    close(teacher_inputs(bits, SQUARE), found.inputs, 0)
    close(found.inputs[:, ::3], TEACHER["bsc0_x_BLC"], 2e-6)


def test_self_correction_replays_the_recorded_flips() -> None:
    generators = (np.random.RandomState(5), torch.Generator().manual_seed(5))
    found = quantise(TEACHER["raw_features"], SQUARE, SelfCorrection(0.3, *generators))
    assert torch.equal(found.bits, TEACHER["bscN_gt"].long())
    close(found.inputs, TEACHER["bscN_x_BLC"], 2e-6)
    assert not torch.equal(found.bits, TEACHER["encode_bits"].long())
    off = SelfCorrection(0.3, np.random.RandomState(5), scales=-1)
    assert torch.equal(quantise(TEACHER["raw_features"], SQUARE, off).bits, TEACHER["encode_bits"].long())


def test_a_patchified_token_holds_its_cells_channel_by_channel() -> None:
    schedule = Schedule(((1, 1), (2, 3)), (64, 64), patchify=True)
    cells = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    tokens = to_tokens(cells, schedule)
    assert tokens.shape == (1, 6, 8)
    assert tokens[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]  # second token: columns 2, 3 of rows 0, 1, both bits
    assert torch.equal(to_map(tokens, schedule, 1), cells)


@pytest.mark.parametrize("patchify", [False, True])
def test_what_the_transformer_reads_follows_from_the_bits_at_any_ratio(patchify: bool) -> None:
    schedule = Schedule(ODD.grids, ODD.rope, patchify)
    features = torch.randn(2, 5, *schedule.cells[-1], generator=torch.Generator().manual_seed(0))
    found = quantise(features, schedule)
    assert found.bits.shape == (2, 35, 20 if patchify else 5) and found.bits.dtype == torch.int64
    close(teacher_inputs(found.bits, schedule), found.inputs, 0)
    close(teacher_inputs(found.bits, schedule, 2), found.inputs[:, :4], 0)
    close(summed_codes(found.bits, schedule), found.latent, 0)
    assert (features - found.latent).norm() < features.norm()
    changed = found.bits.clone()
    changed[:, -1] = 1 - changed[:, -1]
    close(teacher_inputs(changed, schedule), found.inputs, 0)  # the last scale's bits are no one's input


def test_patchify_is_only_another_order_of_the_same_bits() -> None:
    schedule = Schedule(ODD.grids, ODD.rope, patchify=True)
    features = torch.randn(1, 3, *schedule.cells[-1], generator=torch.Generator().manual_seed(1))
    found = quantise(features, schedule)
    residual = features
    start = 0
    for scale, (height, width) in enumerate(schedule.cells):
        pooled = torch.nn.functional.adaptive_avg_pool2d(residual, (height, width))
        assert torch.equal(
            to_map(found.bits[:, start : start + schedule.tokens[scale]], schedule, scale) > 0, pooled > 0
        )
        code = ((pooled > 0).float() * 2 - 1) / 3**0.5
        residual = residual - torch.nn.functional.interpolate(code, schedule.cells[-1], mode="bilinear")
        start += schedule.tokens[scale]


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match="finest grid"):
        quantise(torch.zeros(1, 4, 8, 8), ODD)


# -- encoder and decoder ----------------------------------------------------------------------------------------------


def test_encoder_and_decoder_give_the_numbers_of_the_verified_state() -> None:
    """conv.json was written by this code when it reproduced the whole recording (the test after this one)."""
    recorded = json.loads((GOLDENS / "conv.json").read_text())
    for entry in recorded:
        bsq = BSQ(BSQConfig(**{**entry["config"], "ch_mult": tuple(entry["config"]["ch_mult"])}))
        waves(bsq)
        image = (torch.arange(3 * 24 * 16, dtype=torch.float64) * 0.61).sin().float().view(1, 3, 24, 16)
        with torch.no_grad():
            features = bsq.encoder(image)
            picture = bsq.decoder(features.sign())
        close(features.flatten()[::7], torch.tensor(entry["features"]), 1e-4)
        close(picture.flatten()[::31], torch.tensor(entry["picture"]), 1e-4)


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recording is not beside the checkout")
def test_the_whole_recording_of_the_tokenizer() -> None:
    weights = load_file(RECORDED / "sq16.vae_weights.safetensors")
    teacher = load_file(RECORDED / "sq16.teacher.safetensors")
    runs = load_file(RECORDED / "sq16.generate.safetensors")
    config = BSQConfig.of(weights, "recorded")
    assert config == BSQConfig(16, 32, (1, 1, 1, 1, 2), 1, 16)
    bsq = BSQ(config)
    bsq.load_state_dict({name: tensor for name, tensor in weights.items() if "lfq" not in name})
    image = teacher["image_lowres"].repeat_interleave(8, -1).repeat_interleave(8, -2)
    with torch.no_grad():
        close(bsq.encoder(image), teacher["raw_features"], 2e-4)
        plain = bsq.decoder(teacher["quant_z"])
        close(plain[:, :, ::4, ::4], teacher["decoder_unclamped_of_quant_stride4"], 2e-4)
        close(plain.clamp(-1, 1)[:, :, ::4, ::4], teacher["decode_of_quant_stride4"], 2e-4)
        decoded = bsq.decode(teacher["encode_bits"].long(), SQUARE)
        close(decoded[:, :, ::4, ::4], teacher["decode_from_bits_stride4"], 2e-4)
        drawn = bsq.decode(runs["greedy_cfg4_tau0.5.bits"].long(), SQUARE)
    recorded = runs["greedy_cfg4_tau0.5.img_uint8_bgr"].int()
    assert (to_uint8(drawn).permute(0, 2, 3, 1).flip(-1).int() - recorded).abs().max() <= 1


def test_the_published_tokenizer_has_the_published_tensors() -> None:
    with torch.device("meta"):
        d32 = BSQ(BSQConfig())
    assert len(d32.state_dict()) == 268  # and two masks in the file
    assert round(sum(p.numel() for p in d32.parameters()) / 1e6, 1) == 110.1
    assert round(sum(p.numel() for p in d32.encoder.parameters()) / 1e6, 1) == 45.0
    names = d32.state_dict().keys()
    for name in ("encoder.down.0.downsample.conv.conv.weight", "decoder.up.1.upsample.conv.conv.bias"):
        assert name in names
    assert (
        "decoder.up.0.upsample.conv.conv.bias" not in names and "encoder.down.4.downsample.conv.conv.bias" not in names
    )


def test_names_without_the_wrappers_are_understood_and_sizes_are_read_from_shapes() -> None:
    for config in (BSQConfig(6, 24, (1, 2, 1), 1, 4), BSQConfig(14, 32, (1, 1, 2, 2), 2, 8)):
        bsq = BSQ(config)
        plain = {}
        for name, tensor in bsq.state_dict().items():
            head, wrapper, kind = name.rsplit(".", 2)
            assert wrapper in ("conv", "norm")
            plain[f"{head}.{kind}"] = tensor
        assert published_names(plain).keys() == bsq.state_dict().keys()
        assert published_names(bsq.state_dict()).keys() == bsq.state_dict().keys()
        assert BSQConfig.of(published_names(plain), "here") == config
    with pytest.raises(UsageError, match=r"encoder\.conv_in"):
        BSQConfig.of({"weight": torch.zeros(1)}, "here")


def test_training_reaches_the_encoder_and_decoding_is_clamped() -> None:
    bsq = BSQ(BSQConfig(6, 24, (1, 1, 1), 1, 4))
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    schedule = Schedule.square(1, 2, 4)
    picture, commitment, bits = bsq(image, schedule)
    assert picture.shape == image.shape and bits.shape == (2, 21, 6)
    ((picture - image).square().mean() + commitment).backward()
    for part in (bsq.encoder.conv_in, bsq.decoder.conv_out):
        assert part.conv.weight.grad is not None and bool(part.conv.weight.grad.any())
    with torch.no_grad():
        bsq.decoder.conv_out.conv.bias.fill_(9)
        assert torch.equal(bsq.decode(bits, schedule), torch.ones(2, 3, 16, 16))
    assert to_uint8(torch.tensor([-2.0, -1, 0, 0.9999, 1])).tolist() == [0, 0, 127, 254, 255]


@pytest.mark.parametrize(
    "sizes",
    [
        (6, 20, (1, 1, 1), 1, 4),
        (6, 24, (1, 1), 1, 4),
        (6, 24, (1, 1, 1), 1, 3),
        (0, 24, (1, 1, 1), 1, 4),
        (6, 24, (), 1, 1),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int, tuple[int, ...], int, int]) -> None:
    with pytest.raises(UsageError, match="the tokenizer's sizes"):
        BSQConfig(*sizes)
