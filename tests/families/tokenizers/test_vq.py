"""The VQ-16 tokenizer against numbers recorded from the public upstream code (tests/goldens/llamagen)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tests
from safear_edit.errors import UsageError
from safear_edit.families.tokenizers.vq import VQConfig, VQModel, to_uint8

GOLDENS = tests.GOLDENS / "llamagen"
IO = load_file(GOLDENS / "vq_tiny.io.safetensors")


@pytest.fixture(scope="module")
def vq() -> VQModel:
    settings = json.loads((GOLDENS / "vq_tiny.config.json").read_text())
    mult = tuple(settings["encoder_ch_mult"])
    model = VQModel(VQConfig(settings["codebook_size"], 8, 32, mult, mult, settings["z_channels"], 2))
    weights = load_file(GOLDENS / "vq_tiny.weights.safetensors")
    del weights["quantize.codebook_used"]
    model.load_state_dict(weights)
    return model.eval()


def close(found: Tensor, recorded: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, recorded, rtol=0, atol=tolerance)


def test_encoding(vq: VQModel) -> None:
    with torch.no_grad():
        close(vq.encoder(IO["image"]), IO["encoder_out"], 2e-4)
        close(vq.latent(IO["image"]), IO["pre_quant"], 2e-4)
        assert torch.equal(vq.encode(IO["image"]), IO["indices"])
        close(vq.embed(IO["indices"], 8), IO["quant"], 1e-5)


def test_decoding(vq: VQModel) -> None:
    with torch.no_grad():
        close(vq.embed(IO["ids"], 8), IO["codebook_entry"], 1e-6)
        image = vq.decode(IO["ids"])
    close(image, IO["decode_code"], 2e-4)
    recorded = (127.5 * IO["decode_code"] + 128).clamp(0, 255).floor()
    assert (to_uint8(image).float() - recorded).abs().max() <= 1


def test_the_codebook_is_normalised_and_the_recorded_one_was_not(vq: VQModel) -> None:
    assert (vq.quantize.embedding.weight.norm(dim=-1) - 1).abs().max() > 0.1
    close(vq.quantize.rows().norm(dim=-1), torch.ones(128), 1e-5)


def test_training_losses_and_the_straight_through_gradient(vq: VQModel) -> None:
    image, loss, ids = vq(IO["image"])
    close(image, IO["reconstruction"], 2e-4)
    assert torch.equal(ids, IO["indices"])
    close(loss.reshape(1), IO["train_vq_loss"] + IO["train_commit_loss"], 1e-5)
    close(loss.reshape(1) * 0.8, IO["train_vq_loss"], 1e-5)  # commitment weighs a quarter of the codebook loss
    image.mean().backward()
    assert vq.encoder.conv_in.weight.grad is not None and bool(vq.encoder.conv_in.weight.grad.any())
    assert vq.quantize.embedding.weight.grad is None or not vq.quantize.embedding.weight.grad.any()
    vq.zero_grad()


def test_pixels_are_truncated_not_rounded() -> None:
    image = torch.tensor([-1.0, -0.9999, 0.0, 0.9999, 1.0, 5.0, -5.0])
    assert to_uint8(image).tolist() == [0, 0, 128, 255, 255, 255, 0]


def test_the_published_size_has_the_published_tensors() -> None:
    with torch.device("meta"):
        model = VQModel(VQConfig())
    assert len(model.state_dict()) == 343  # and `quantize.codebook_used`, which only training needs
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 71.88
    assert model.config.patch == 16


@pytest.mark.parametrize("wrong", [{"ch": 33}, {"ch": 0}, {"encoder_ch_mult": (1, 1)}, {"decoder_ch_mult": ()}])
def test_sizes_that_cannot_be_built_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="multiples of 32"):
        VQConfig(**wrong)
