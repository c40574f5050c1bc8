"""LlamaGen against numbers recorded from the public upstream code (tests/goldens/llamagen); what is its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import tests
from safear_edit.errors import SafearError, UsageError
from safear_edit.families import llamagen
from safear_edit.families.base import Condition, Sampling, left_padded
from safear_edit.families.llamagen import GPT, GPTConfig, LlamaGen, TextPass, sample_ids
from safear_edit.families.reference import ModelRef, Variant
from safear_edit.families.sampling import filtered
from safear_edit.families.tokens import token_logprobs
from tests import ROOT

GOLDENS = tests.GOLDENS / "llamagen"
TEACHER = load_file(GOLDENS / "gpt_t2i_cls8.teacher.safetensors")
RUNS = load_file(GOLDENS / "gpt_t2i_cls8.generate.safetensors")
MASK = TEACHER["caption_mask"].bool()


@pytest.fixture(scope="module")
def net() -> GPT:
    model = GPT(GPTConfig(dim=64, n_layer=2, n_head=4, vocab_size=128, caption_dim=32, cls_token_num=8, block_size=16))
    model.load_state_dict(load_file(GOLDENS / "gpt_t2i_cls8.weights.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def pico() -> LlamaGen:
    return LlamaGen.pico()


def close(found: Tensor, recorded: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, recorded, rtol=0, atol=tolerance)


# -- teacher forcing --------------------------------------------------------------------------------------------------


def test_logits_with_captions_without_and_without_a_mask(net: GPT) -> None:
    with torch.no_grad():
        close(net(net.text_pass(TEACHER["caption"], MASK), TEACHER["ids"]), TEACHER["train_logits"], 2e-5)
        dropped = net.text_pass(net.unconditional(MASK), MASK)
        close(net(dropped, TEACHER["ids"]), TEACHER["train_logits_uncond"], 2e-5)
        everything = net.text_pass(TEACHER["caption"], torch.ones_like(MASK))
        close(net(everything, TEACHER["ids"]), TEACHER["train_logits_maskNone"], 2e-5)


def test_captions_are_padded_on_the_device_that_encodes() -> None:
    states, mask = left_padded(torch.ones(2, 3, 4, device="meta"), torch.ones(2, 3, device="meta", dtype=torch.bool), 5)
    assert (states.device.type, mask.device.type, tuple(states.shape)) == ("meta", "meta", (2, 5, 4))


def test_captions_are_left_padded_and_projected(net: GPT) -> None:
    features, mask = left_padded(TEACHER["t5_right_padded"], TEACHER["t5_mask_right"].bool(), 8)
    assert torch.equal(mask, MASK)
    close(features, TEACHER["caption"], 0)
    with torch.no_grad():
        close(net.cls_embedding.cap_proj(TEACHER["caption"]), TEACHER["cap_proj_out"], 2e-5)
        row = torch.tensor([True, False, False])
        mixed = torch.where(row[:, None, None], net.unconditional(MASK), TEACHER["caption"])
        close(net.cls_embedding.cap_proj(mixed), TEACHER["cap_proj_forced_drop"], 2e-5)


def test_rope_and_token_logprobs(net: GPT) -> None:
    close(net.rope, TEACHER["freqs_cis"][8:], 1e-6)
    assert not TEACHER["freqs_cis"][:8].any()  # the published table is zero at text positions: the fact we build on
    with torch.no_grad():
        logits = net(net.text_pass(TEACHER["caption"], MASK), TEACHER["ids"])
    close(token_logprobs(logits, TEACHER["ids"]), TEACHER["train_token_logp"], 2e-5)


def test_the_mask_rule_is_the_recorded_one() -> None:
    seen = torch.ones(24, 24, dtype=torch.bool).tril().repeat(3, 1, 1)
    seen[:, :, :8] &= MASK[:, None]
    rule = seen | torch.eye(24, dtype=torch.bool)
    assert torch.equal(rule.unsqueeze(1), TEACHER["train_mask"].bool())
    assert torch.equal(rule, TEACHER["kv_causal_mask_after"].bool())


def test_trimming_masked_columns_is_exact(net: GPT) -> None:
    with torch.no_grad():
        whole = net(net.text_pass(TEACHER["caption"][:1], MASK[:1]), TEACHER["ids"][:1])
        trimmed = net(net.text_pass(TEACHER["caption"][:1, 3:], MASK[:1, 3:]), TEACHER["ids"][:1])
    assert not MASK[0, :3].any()
    close(trimmed, whole, 1e-5)


def test_loss_and_its_gradient() -> None:
    model = GPT(GPTConfig(dim=64, n_layer=2, n_head=4, vocab_size=128, caption_dim=32, cls_token_num=8, block_size=16))
    model.load_state_dict(load_file(GOLDENS / "gpt_t2i_cls8.weights.safetensors"))
    logits = model(model.text_pass(TEACHER["caption"], MASK), TEACHER["ids"])
    each = F.cross_entropy(logits.flatten(0, 1), TEACHER["ids"].flatten(), reduction="none")
    close(each.mean().reshape(1), TEACHER["train_loss_plain"], 1e-5)
    valid = TEACHER["train_valid"].float().repeat_interleave(16)
    loss = (each * valid).sum() / valid.sum().clamp(min=1)
    close(loss.reshape(1), TEACHER["train_loss_valid"], 1e-5)
    loss.backward()
    recorded = load_file(GOLDENS / "gpt_t2i_cls8.grads.safetensors")
    seen = 0
    for name, parameter in model.named_parameters():
        if f"grad.{name}" in recorded:
            assert parameter.grad is not None
            found, expected = parameter.grad.flatten(), recorded[f"grad.{name}"].flatten()
            if found.numel() > 4096:
                found = found[:: found.numel() // 2048][:2048]
            error = (found - expected).norm() / expected.norm().clamp(min=1e-12)
            assert error < 1e-5, name
            seen += 1
    assert seen >= 18


# -- sampling ---------------------------------------------------------------------------------------------------------


def test_filters() -> None:
    close(filtered(TEACHER["filter_in"], 10, 0.7), TEACHER["filter_k10_p0.7"], 0)
    close(filtered(TEACHER["filter_in"], 0, 0.5), TEACHER["filter_k0_p0.5"], 0)


def passes(net: GPT, mask: Tensor, guided: bool) -> tuple[TextPass, TextPass | None]:
    with torch.no_grad():
        unconditional = net.text_pass(net.unconditional(mask), mask) if guided else None
        return net.text_pass(TEACHER["caption"], mask), unconditional


@pytest.mark.parametrize(
    ("run", "guidance", "interval", "masked"),
    [
        ("greedy_cfg1", 1.0, -1, True),
        ("greedy_cfg7.5", 7.5, -1, True),
        ("greedy_cfg7.5_interval5", 7.5, 5, True),
        ("greedy_cfg7.5_nomask", 7.5, -1, False),
    ],
)
def test_greedy_runs(net: GPT, run: str, guidance: float, interval: int, masked: bool) -> None:
    text, without = passes(net, MASK if masked else torch.ones_like(MASK), guidance != 1)
    kept: list[Tensor] = []
    ids = sample_ids(
        net,
        text,
        without,
        Sampling(guidance, top_k=1),
        lambda p, _: p.argmax(-1),
        guide_until=interval,
        keep_logits=kept,
    )
    assert torch.equal(ids, RUNS[f"{run}.tokens"])
    close(torch.stack(kept, 1), RUNS[f"{run}.logits"], 2e-4)


@pytest.mark.parametrize(("run", "guidance"), [("forced_cfg1", 1.0), ("forced_cfg7.5", 7.5)])
def test_forced_runs(net: GPT, run: str, guidance: float) -> None:
    text, without = passes(net, MASK, guidance != 1)
    kept: list[Tensor] = []
    tokens = RUNS[f"{run}.tokens"]
    sample_ids(net, text, without, Sampling(guidance), lambda p, _: p.argmax(-1), prefix=tokens, keep_logits=kept)
    close(torch.stack(kept, 1), RUNS[f"{run}.logits"], 2e-4)


@pytest.mark.parametrize(
    ("run", "seed", "sampling"),
    [
        ("sample_seed1234_cfg2_k20_p0.9_t0.8", 1234, Sampling(2.0, 0.8, 20, 0.9)),
        ("sample_seed1234_cfg7.5_k0", 1234, Sampling(7.5)),
        ("sample_seed7_cfg7.5_k1000", 7, Sampling(7.5, top_k=1000)),
    ],
)
def test_seeded_runs_replay_upstreams_multinomial(net: GPT, run: str, seed: int, sampling: Sampling) -> None:
    text, without = passes(net, MASK, True)
    torch.manual_seed(seed)
    kept: list[Tensor] = []
    ids = sample_ids(net, text, without, sampling, lambda p, _: torch.multinomial(p, 1).squeeze(1), keep_logits=kept)
    assert torch.equal(ids, RUNS[f"{run}.tokens"])
    close(torch.stack(kept, 1), RUNS[f"{run}.logits"], 2e-4)


# -- the family -------------------------------------------------------------------------------------------------------

PROMPTS = ["a house by Picasso", "a dog", "a cat in the snow, in the style of Claude Monet", "a dog"]


def test_dropped_rows_take_the_unconditional_caption(pico: LlamaGen) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4))
    with torch.no_grad():
        mixed = pico.logits(pico.dropped(condition, torch.tensor([True, False, False, False])), ids)
        mask = condition.mask[condition.index]
        text = pico.net.text_pass(pico.net.unconditional(mask), mask)
        close(mixed[:1], pico.net(text, ids)[:1], 1e-5)


def test_editable_parts_are_linear_layers(pico: LlamaGen) -> None:
    linear = {name for name, module in pico.net.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(pico.editable("all")) == linear - {"output"}
    assert set(pico.editable("layers[0:1]")) == {n for n in linear if n.startswith("layers.0.")}
    with pytest.raises(UsageError, match="attention"):
        pico.editable("attn")


def test_damaged_folders_are_refused(pico: LlamaGen, tmp_path: Path) -> None:
    pico.export(tmp_path)
    weights = tmp_path / "gpt.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SafearError) as caught:
        LlamaGen.load(ModelRef("llamagen", "pico", tmp_path))
    assert caught.value.exit_code in (2, 4) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.pop("gpt"), "gpt"),
        (lambda d: d.pop("sampling"), "sampling"),
        (lambda d: d.pop("text"), "text"),
        (lambda d: d["gpt"].update(heads=4), "gpt"),
        (lambda d: d["gpt"].update(dim="64"), "gpt.dim"),
        (lambda d: d["gpt"].update(n_head=3), "heads of a multiple of 4 channels"),
        (lambda d: d["gpt"].update(vocab_size=65), "gpt.vocab_size"),
        (lambda d: d["vq"].update(encoder_ch_mult=3), "vq.encoder_ch_mult"),
        (lambda d: d["vq"].update(ch=33), "multiples of 32"),
        (lambda d: d["vq"].update(decoder_ch_mult=[1, 1]), "levels"),
        (lambda d: d["gpt"].update(n_layer=3), "missing"),
        (lambda d: d.update(text="clip"), "minilm or t5"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    pico: LlamaGen, tmp_path: Path, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    pico.export(tmp_path)
    settings = json.loads((tmp_path / "safear.json").read_text())
    change(settings)
    (tmp_path / "safear.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError) as caught:
        LlamaGen.load(ModelRef("llamagen", "pico", tmp_path))
    assert where in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_misplaced_weight_file_is_refused(pico: LlamaGen, tmp_path: Path) -> None:
    pico.export(tmp_path)
    weights = tmp_path / "vq.safetensors"
    weights.write_bytes((tmp_path / "gpt.safetensors").read_bytes())
    with pytest.raises(UsageError, match="missing: decoder"):
        LlamaGen.load(ModelRef("llamagen", "pico", tmp_path))
    weights.unlink()
    with pytest.raises(UsageError, match="a weight file"):
        LlamaGen.load(ModelRef("llamagen", "pico", tmp_path))


# -- the published files ----------------------------------------------------------------------------------------------


def test_the_published_size_has_the_published_tensors() -> None:
    with torch.device("meta"):
        xl = GPT(GPTConfig())
    assert len(xl.state_dict()) == 258
    assert round(sum(p.numel() for p in xl.parameters()) / 1e6, 1) == 777.7


def test_upstream_files_are_written_and_read(pico: LlamaGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pico.export(tmp_path, "upstream")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t2i_pico.pt", "vq_ds16_t2i.pt"]
    wrapped = torch.load(tmp_path / "vq_ds16_t2i.pt", weights_only=True)
    assert wrapped["model"].keys() == pico.vq.state_dict().keys() | {"quantize.codebook_used"}
    # The published sizes are too large for a test: pico takes their place, and MiniLM the T5's.
    monkeypatch.setitem(llamagen.PUBLISHED, "pico", pico.net.config)
    monkeypatch.setitem(LlamaGen.variants, "pico", Variant("pico", ("t2i_pico.pt", "vq_ds16_t2i.pt")))
    monkeypatch.setattr(llamagen, "VQConfig", lambda: pico.vq.config)
    monkeypatch.setattr(llamagen, "text_encoder", lambda *_, **__: pico.text)
    again = LlamaGen.load(ModelRef("llamagen", "pico", tmp_path))
    for own, read in ((pico.net, again.net), (pico.vq, again.vq)):
        assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in read.state_dict().items())
    assert again.sampling == Sampling(7.5, top_k=1000) and again.card.licence == "MIT"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_turns_by_exact_angles_and_draws(pico: LlamaGen, tmp_path: Path, dtype: torch.dtype) -> None:
    pico.export(tmp_path)
    half = LlamaGen.load(ModelRef("llamagen", "pico", tmp_path), dtype=dtype)
    assert torch.equal(half.net.rope, pico.net.rope) and half.net.output.weight.dtype == dtype
    condition = half.condition(PROMPTS)
    assert condition.features.dtype == dtype
    ids = half.generate(condition, range(4))
    with torch.no_grad():
        found, exact = half.logits(condition, ids), pico.logits(pico.condition(PROMPTS), ids)
    assert found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < 0.05
    images = half.decode(ids)
    assert images.shape == (4, 3, 16, 16) and half.encode(images).shape == ids.shape


def test_a_published_size_is_drawn_in_batches_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaGen.pico()
    assert (model.rows_per_batch, model.images_per_batch) == (64, 64)
    model.card = replace(model.card, image_size=256)
    monkeypatch.setattr(model.net, "config", llamagen.PUBLISHED["xl-256"])
    assert model.rows_per_batch == 2**31 // (2 * 2 * 36 * 1280 * 257 * 4) == 11 and model.images_per_batch == 8
    monkeypatch.setattr(model.net, "config", llamagen.PUBLISHED["xl-512"])
    assert model.rows_per_batch == 2


def test_the_mini_is_shipped_and_draws() -> None:
    mini = LlamaGen.load(ModelRef("llamagen", "mini"))
    ids = mini.generate(mini.condition(["a house on a beach"]), [1])
    assert mini.decode(ids).shape == (1, 3, 40, 40)
    assert sum(p.stat().st_size for p in (ROOT / "safear_edit/minis/llamagen").iterdir()) < 25e6


def test_condition_rows_repeat_and_reorder() -> None:
    condition = Condition.of(torch.arange(6.0).view(3, 2, 1), torch.ones(3, 2, dtype=torch.bool))
    chosen = condition.rows(torch.tensor([2, 2, 0]))
    assert chosen.index.tolist() == [2, 2, 0] and len(chosen) == 3
