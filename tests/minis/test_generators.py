"""Trainings of the minis that draw, small and short: by the step alone, and what is exported is what was trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from safear_edit.families.load import load_model
from safear_edit.families.tokenizers.bsq import BSQ
from safear_edit.families.tokenizers.vq import VQConfig, VQModel
from safear_edit.minis import train_diffusion, train_infinity, train_llamagen
from safear_edit.minis.pool import build_pool
from safear_edit.minis.train_bsq import CONFIG as BSQ_CONFIG

Train = Callable[[Path, int], nn.Module]
STEPS = 3


def small(module: ModuleType, config: object, tokenizer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Train:
    """The module's training of a small network on 24 images, four a step, nothing compiled."""
    monkeypatch.setattr(module, "CONFIG", config)
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "build_pool", partial(build_pool, size=24))
    monkeypatch.setattr(torch, "compile", lambda **how: lambda function: function)
    train: Train = partial(_trained, module, tokenizer.eval())
    return train


def _trained(module: ModuleType, tokenizer: nn.Module, folder: Path, steps: int) -> nn.Module:
    torch.manual_seed(len(folder.name))  # what the process drew before must not matter
    found: nn.Module = module.train(folder, tokenizer, steps)
    return found


def vq() -> VQModel:
    torch.manual_seed(0)
    sizes = {"encoder_ch_mult": (1, 1, 1), "decoder_ch_mult": (1, 1, 2), "num_res_blocks": 1}
    return VQModel(VQConfig(codebook_size=64, ch=32, z_channels=32, **sizes))


def llamagen(monkeypatch: pytest.MonkeyPatch) -> Train:
    config = replace(train_llamagen.CONFIG, dim=32, n_layer=2, n_head=2, vocab_size=64)
    return small(train_llamagen, config, vq(), monkeypatch)


def infinity(monkeypatch: pytest.MonkeyPatch) -> Train:
    monkeypatch.setattr(train_infinity, "COARSE_STEPS", 1)
    monkeypatch.setattr(train_infinity, "COARSE_BATCH", 5)
    torch.manual_seed(0)
    config = replace(train_infinity.CONFIG, depth=2, width=48, heads=2, ffn_hidden=64)
    return small(train_infinity, config, BSQ(BSQ_CONFIG), monkeypatch)


def diffusion(monkeypatch: pytest.MonkeyPatch) -> Train:
    pytest.importorskip("diffusers")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 2}
    return small(train_diffusion, {**train_diffusion.CONFIG, **sizes}, vq(), monkeypatch)


@pytest.mark.parametrize("made", [llamagen, infinity, pytest.param(diffusion, marks=pytest.mark.soak)])
def test_a_training_follows_from_its_steps_and_exports_what_it_found(
    made: Callable[[pytest.MonkeyPatch], Train], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = made(monkeypatch)
    first, again = train(tmp_path / "first", STEPS), train(tmp_path / "once more", STEPS)
    states = first.state_dict(), again.state_dict(), train(tmp_path / "begun", 1).state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert any(not torch.equal(tensor, states[2][name]) for name, tensor in states[0].items()), "each step moves it"
    log = (tmp_path / "first/log.txt").read_text().split()
    assert log[1] == f"{STEPS}/{STEPS}" and math.isfinite(float(log[log.index("loss") + 1]))
    loaded = load_model(str(tmp_path / "first/export"))
    kept = loaded.net.state_dict()
    halves = {name: tensor.half().float() for name, tensor in states[0].items()}
    names = [next(name for name in kept if name == own or name.endswith(f".{own}")) for own in halves]
    assert all(torch.equal(kept[name], half) for name, half in zip(names, halves.values(), strict=True))
    assert loaded.card.variant == "mini"
