"""Infinity against numbers recorded from the public upstream code (tests/goldens/infinity); what is its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tests
from safear_edit.errors import SafearError, UsageError
from safear_edit.families import infinity
from safear_edit.families.base import Sampling
from safear_edit.families.infinity import (
    Infinity,
    InfinityConfig,
    ScaleSampling,
    Transformer,
    bit_chances,
    bit_loss,
    inverse_cdf_bits,
    rope_table,
    sample_bits,
)
from safear_edit.families.reference import ModelRef, Variant
from safear_edit.families.sampling import inverse_cdf, uniforms
from safear_edit.families.text import T5
from safear_edit.families.tokenizers.bsq import BSQ, BSQConfig, summed_codes, teacher_inputs
from safear_edit.families.tokenizers.schedules import Schedule
from safear_edit.families.tokens import token_logprobs
from safear_edit.studies.speed_infinity import plain_sample

GOLDENS = tests.GOLDENS / "infinity"
TEACHER = load_file(GOLDENS / "sq16.teacher.safetensors")
RUNS = load_file(GOLDENS / "sq16.generate.safetensors")
WEIGHTS = load_file(GOLDENS / "sq16.weights.safetensors")
BITS = TEACHER["encode_bits"].long()
SQUARE = Schedule.published(1.0, "0.06M")
EVERY = 3
"""Logits of every third token are kept in tests/goldens."""


def captions() -> tuple[Tensor, Tensor]:
    """The recorded captions, left-padded, with their mask."""
    lengths = TEACHER["lens"].tolist()
    features, mask = torch.zeros(2, 7, 256), torch.zeros(2, 7, dtype=torch.bool)
    for row, part in enumerate(TEACHER["kv_compact"].split(lengths)):
        features[row, 7 - len(part) :], mask[row, 7 - len(part) :] = part, True
    return features, mask


FEATURES, MASK = captions()


def recorded_net() -> Transformer:
    model = Transformer(InfinityConfig.of(WEIGHTS, "recorded"))
    model.load_state_dict(WEIGHTS)
    return model.eval()


@pytest.fixture(scope="module")
def net() -> Transformer:
    return recorded_net()


@pytest.fixture(scope="module")
def pico() -> Infinity:
    return Infinity.pico()


def close(found: Tensor, recorded: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, recorded, rtol=0, atol=tolerance)


# -- teacher forcing --------------------------------------------------------------------------------------------------


def test_sizes_are_read_from_the_weights() -> None:
    assert InfinityConfig.of(WEIGHTS, "") == InfinityConfig(4, 64, 2, 2, 256, 16, 256, 2, 32, 15)
    with pytest.raises(UsageError, match="cfg_uncond"):
        InfinityConfig.of({"head.weight": torch.zeros(1)}, "here")


def test_text_and_positions(net: Transformer) -> None:
    close(torch.view_as_real(rope_table(SQUARE, 32)).permute(2, 0, 1), TEACHER["rope"], 1e-6)
    with torch.no_grad():
        close(net.text_norm(FEATURES)[MASK], TEACHER["text_norm"], 1e-5)
        close(net.text_proj_for_ca(net.text_norm(FEATURES))[MASK], TEACHER["text_proj_for_ca"], 1e-5)
        text = net.text_pass(FEATURES, MASK)
    close(text.start, TEACHER["sos"], 1e-5)
    close(text.modulation.unsqueeze(1), TEACHER["shared_ada_lin"], 1e-5)


def test_logits_with_captions_without_and_with_flipped_inputs(net: Transformer) -> None:
    inputs = teacher_inputs(BITS, SQUARE)
    with torch.no_grad():
        text, dropped = net.text_pass(FEATURES, MASK), net.text_pass(net.unconditional(MASK), MASK)
        close(net(text, inputs, SQUARE).flatten(2)[:, ::EVERY], TEACHER["tf_logits_cond"], 2e-5)
        close(net(dropped, inputs, SQUARE).flatten(2)[:, ::EVERY], TEACHER["tf_logits_uncond"], 2e-5)
        close(net(text, TEACHER["bscN_x_BLC"], SQUARE).flatten(2)[:, ::EVERY], TEACHER["tf_logits_bscN"], 2e-5)


def test_padding_is_exact_on_either_side(net: Transformer) -> None:
    count = int(MASK[1].sum())
    with torch.no_grad():
        alone = net.text_pass(FEATURES[1:, -count:], MASK[1:, -count:])
        right = net.text_pass(FEATURES[1:].roll(count, 1), MASK[1:].roll(count, 1))
        close(right.start, alone.start, 1e-6)
        inputs = teacher_inputs(BITS[1:], SQUARE, 3)
        expected = TEACHER["tf_logits_cond"][1:, :7]
        for text in (alone, right):
            close(net(text, inputs, SQUARE, 3).flatten(2)[:, ::EVERY], expected, 2e-5)


def test_losses_and_their_gradient() -> None:
    model = recorded_net()
    logits = model(model.text_pass(FEATURES, MASK), teacher_inputs(BITS, SQUARE), SQUARE)
    per_token = -token_logprobs(logits, BITS) / 16
    close(per_token, TEACHER["train_loss_per_token"], 1e-5)
    close(bit_loss(logits, BITS, SQUARE, reweight=False).reshape(1), TEACHER["train_loss_plain"], 1e-5)
    loss = bit_loss(logits, BITS, SQUARE)
    close(loss.reshape(1), TEACHER["train_loss_reweight"], 1e-5)
    loss.backward()
    recorded = load_file(GOLDENS / "sq16.grads.safetensors")
    parameters = dict(model.named_parameters())
    assert recorded.keys() == {f"grad.{name}" for name in parameters}
    for name, parameter in parameters.items():
        expected = recorded[f"grad.{name}"].flatten()
        if parameter.grad is None:
            assert not expected.any(), name
            continue
        found = parameter.grad.flatten()
        if found.numel() != expected.numel():
            found = found[:: found.numel() // expected.numel()][: expected.numel()]
        assert (found - expected).norm() / expected.norm().clamp(min=1e-12) < 1e-5, name


# -- sampling ---------------------------------------------------------------------------------------------------------


def greedy(chances: Tensor, _: int) -> Tensor:
    return (chances > 0.5).long()


def multinomial(seed: int) -> Callable[[Tensor, int], Tensor]:
    """Upstream's drawing: one torch.multinomial over all bits of the batch per scale."""
    generator = torch.Generator().manual_seed(seed)

    def choose(chances: Tensor, _: int) -> Tensor:
        both = torch.stack([1 - chances, chances], -1).view(-1, 2)
        return torch.multinomial(both, 1, replacement=True, generator=generator).view(chances.shape)

    return choose


RAMP = ScaleSampling(1.0, 1.0, 1, 1.0, guidances=(1.0, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0))


@pytest.mark.parametrize(
    ("run", "sampling", "seed"),
    [
        ("greedy_cfg4_tau0.5", ScaleSampling(4.0, 0.5, 1), None),
        ("greedy_cfgramp", RAMP, None),
        ("forced_cfg1", Sampling(1.0), None),
        ("forced_cfg4_tau0.5", Sampling(4.0, 0.5), None),
        ("sample_seed3_cfg3_tau0.5_k900_p0.97", Sampling(3.0, 0.5, 900, 0.97), 3),
        ("sample_seed3_cfg3_tau1_k0_p0", Sampling(3.0), 3),
    ],
)
def test_recorded_runs(net: Transformer, run: str, sampling: Sampling, seed: int | None) -> None:
    assert infinity.per_scale(sampling, 7)[0] == tuple(RUNS[f"{run}.cfg"].tolist())
    assert infinity.per_scale(sampling, 7)[1] == tuple(RUNS[f"{run}.tau"].tolist())
    with torch.no_grad():
        text = net.text_pass(torch.cat([FEATURES, net.unconditional(MASK)]), torch.cat([MASK, MASK]))
    kept: list[Tensor] = []
    prefix = BITS if run.startswith("forced") else None
    choose = greedy if seed is None else multinomial(seed)
    bits = sample_bits(net, SQUARE, text, 2, sampling, choose, prefix=prefix, keep_logits=kept)
    close(torch.cat(kept, 1).flatten(2)[:, ::EVERY], RUNS[f"{run}.logits"], 2e-4)
    close(summed_codes(bits, SQUARE), RUNS[f"{run}.summed_codes"], 1e-5)
    if run.startswith("greedy"):
        assert torch.equal(bits, RUNS[f"{run}.bits"].long())


def test_unguided_scales_at_the_end_run_no_unconditional_rows(
    net: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        text = net.text_pass(torch.cat([FEATURES, net.unconditional(MASK)]), torch.cat([MASK, MASK]))
    rows: list[int] = []
    run = net.run
    monkeypatch.setattr(net, "run", lambda x, *rest: (rows.append(len(x)), run(x, *rest))[1])
    falling = ScaleSampling(1.0, 1.0, 1, 1.0, guidances=(3.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0))
    sample_bits(net, SQUARE, text, 2, falling, greedy)
    assert rows == [4, 4, 4, 2, 2, 2, 2]


def test_chances_after_the_filters() -> None:
    logits = torch.tensor([[[0.0, 3.0], [0.0, 4.0], [4.0, 0.0], [1.0, 1.0]]]).unsqueeze(1)
    plain = logits.softmax(-1)[..., 1]
    close(bit_chances(logits, Sampling(1.0)), plain, 1e-6)
    close(bit_chances(logits, Sampling(1.0, top_k=900)), plain, 1e-6)
    assert bit_chances(logits, Sampling(1.0, top_k=1)).flatten().tolist() == [1, 1, 0, 0]
    kept = bit_chances(logits, Sampling(1.0, top_p=0.97)).flatten()
    assert kept[1:3].tolist() == [1, 0] and kept[0] == pytest.approx(plain[0, 0, 0].item())


def test_bits_are_drawn_by_the_same_rule_as_tokens() -> None:
    chances = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    draws = uniforms([1, 2, 3], 40).view(3, 10, 4)
    found = inverse_cdf_bits(draws)(chances, 5)
    both = torch.stack([1 - chances, chances], -1)
    rule = inverse_cdf(draws.flatten()[:, None].view(3, -1))
    for token in range(5):
        for bit in range(4):
            expected = rule(both[:, token, bit], (5 + token) * 4 + bit)
            assert torch.equal(found[:, token, bit], expected)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(2.0),
        Sampling(1.0, 0.7),
        ScaleSampling(3.0, 1.0, 0, 0.9, guidances=(1.0, 3.0, 1.0), temperatures=(1.0, 0.8, 0.6)),
    ],
)
def test_sampling_gives_the_bits_of_a_plain_loop(pico: Infinity, sampling: Sampling) -> None:
    condition = pico.condition(PROMPTS)
    with torch.no_grad():
        expected = plain_sample(pico, condition, range(4), sampling)
    assert torch.equal(pico.generate(condition, range(4), sampling), expected)


# -- the family -------------------------------------------------------------------------------------------------------

PROMPTS = ["a house by Picasso", "a dog", "a cat in the snow, in the style of Claude Monet", "a dog"]


def patchified(seed: int = 3) -> Infinity:
    """pico with tokens of 2 x 2 cells and an upright schedule."""
    pico = Infinity.pico(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Transformer(InfinityConfig(2, 48, 2, 1, 64, 24, 384, 3, 32))
        for parameter in net.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    model = Infinity(net, pico.bsq, Schedule.square(1), pico.text, pico.card, pico.sampling)
    return model.at(Schedule(((1, 1), (3, 2), (6, 4)), (78, 52), patchify=True))


@pytest.mark.parametrize(
    "make", [Infinity.pico, patchified, lambda: Infinity.pico(1).at(Schedule(((1, 1), (2, 3)), (54, 72)))]
)
def test_greedy_generation_is_the_argmax_of_the_logits_everywhere(make: Callable[[], Infinity]) -> None:
    model = make()
    condition = model.condition(PROMPTS)
    bits = model.generate(condition, range(4), Sampling(1.0, top_k=1))
    assert bits.shape == (4, model.card.tokens, model.net.config.bits) and bits.float().std() > 0.2
    with torch.no_grad():
        logits = model.logits(condition, bits)
        assert torch.equal(logits.argmax(-1), bits)
        close(model.logits(condition, bits, first_scales=2), logits[:, : sum(model.card.scales[:2])], 1e-5)
    height, width = model.schedule.cells[-1]
    images = model.decode(bits)
    assert images.shape == (4, 3, 4 * height, 4 * width) and images.dtype == torch.uint8
    assert model.encode(images).shape == bits.shape


def test_logits_of_a_scale_depend_on_coarser_scales_only(pico: Infinity) -> None:
    condition = pico.condition(PROMPTS[:1])
    bits = pico.generate(condition, [3])
    changed = bits.clone()
    changed[:, 5:] = 1 - changed[:, 5:]
    with torch.no_grad():
        one, other = pico.logits(condition, bits), pico.logits(condition, changed)
        close(one, other, 0)
        changed[:, 1] = 1 - changed[:, 1]
        other = pico.logits(condition, changed)
    close(one[:, :5], other[:, :5], 0)
    assert bool((one[:, 5:] - other[:, 5:]).abs().amax((0, 2, 3)).gt(1e-4).all()), "every finer token sees it"


def test_batches_change_no_picture(pico: Infinity, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = pico.condition(PROMPTS)
    together = pico.generate(condition, [5, 6, 7, 8])
    monkeypatch.setattr(infinity, "MOST_ROWS", 3)
    counts: list[int] = []
    assert torch.equal(pico.generate(condition, [5, 6, 7, 8], progress=counts.append), together)
    assert counts == [3, 4]
    nothing = pico.generate(condition.rows(torch.zeros(0, dtype=torch.int64)), [])
    assert nothing.shape == (0, *together.shape[1:]) and nothing.dtype == together.dtype


def test_a_caption_is_projected_once_however_many_pictures_it_has(pico: Infinity) -> None:
    seen: list[int] = []
    hook = pico.net.layers[1].ca.mat_kv.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    pico.generate(pico.condition(["a dog", "a cat", "a dog", "a dog"]), range(4), Sampling(2.0))
    hook.remove()
    assert seen == [3]  # two captions and one dropped caption of their common length


def test_dropped_rows_take_the_unconditional_caption(pico: Infinity) -> None:
    condition = pico.condition(PROMPTS)
    bits = pico.generate(condition, range(4))
    with torch.no_grad():
        mixed = pico.logits(pico.dropped(condition, torch.tensor([True, False, False, False])), bits)
        count = int(condition.mask[0].sum())
        features = pico.net.cfg_uncond[:count].unsqueeze(0)
        text = pico.net.text_pass(features, torch.ones(1, count, dtype=torch.bool))
        close(mixed[:1], pico.net(text, teacher_inputs(bits[:1], pico.schedule), pico.schedule), 1e-4)


def test_hidden_states_are_what_the_head_reads(pico: Infinity) -> None:
    condition = pico.condition(PROMPTS)
    bits = pico.generate(condition, range(4))
    with torch.no_grad():
        close(pico.net.head(pico.hidden(condition, bits)).unflatten(-1, (-1, 2)), pico.logits(condition, bits), 1e-6)


def test_an_export_says_its_scales(pico: Infinity, tmp_path: Path) -> None:
    pico.export(tmp_path)
    again = Infinity.load(ModelRef("infinity", "pico", tmp_path))
    assert again.card.scales == (1, 4, 16) and again.card.choices == 2 and again.card.image_size == 16
    assert again.schedule == pico.schedule and set(again.card.files) == {"gpt.safetensors", "vae.safetensors"}


def test_lists_per_scale_and_a_patchified_schedule_survive_the_export(tmp_path: Path) -> None:
    model = patchified()
    model.sampling = ScaleSampling(3.0, 1.0, 0, 0.9, (3.0, 2.0, 1.0), (1.0, 0.8, 0.6))
    model.export(tmp_path)
    again = Infinity.load(ModelRef("infinity", "pico", tmp_path))
    assert again.sampling == model.sampling and again.schedule == model.schedule
    condition = model.condition(PROMPTS[:2])
    assert torch.equal(again.generate(condition, [1, 2]), model.generate(condition, [1, 2]))
    with pytest.raises(UsageError, match="3 numbers"):
        model.generate(condition, [1, 2], ScaleSampling(3.0, guidances=(1.0, 2.0)))


def test_editable_parts_are_linear_layers(pico: Infinity) -> None:
    linear = {name for name, module in pico.net.named_modules() if isinstance(module, torch.nn.Linear)}
    fixed = {"word_embed", "head", "head_nm.ada_lin.1", "shared_ada_lin.1"}
    assert set(pico.editable("all")) == linear - fixed
    assert set(pico.editable("layers[2:4]")) == {n for n in linear if n.startswith("block_chunks.1.")}
    assert set(pico.editable("layers[1:2]")) == {n for n in linear if n.startswith("block_chunks.0.module.1.")}
    assert pico.editable("cross_query") == [n for n in pico.editable("cross_attention") if n.endswith("ca.mat_q")]
    assert set(pico.editable("ffn+attention")) == {n for n in linear if ".ffn." in n or ".sa." in n}
    flat = patchified()
    assert flat.editable("layers[0:1]") == [n for n in flat.editable("all") if n.startswith("blocks.0.")]
    for wrong in ("attn", "layers[0:9]"):
        with pytest.raises(UsageError, match="cross_attention"):
            pico.editable(wrong)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.pop("transformer"), "transformer"),
        (lambda d: d.pop("sampling"), "sampling"),
        (lambda d: d.pop("text"), "text"),
        (lambda d: d.update(more=1), "more"),
        (lambda d: d["transformer"].update(layers=4), "transformer.layers"),
        (lambda d: d["transformer"].update(width="64"), "transformer.width"),
        (lambda d: d["transformer"].update(heads=5), "heads of a multiple of 4 channels"),
        (lambda d: d["transformer"].update(bits=7), "6 bits"),
        (lambda d: d["schedule"].update(grids=[[1, 1]] * 16), "at most 15"),
        (lambda d: d["schedule"].update(grids=[[2, 2]]), "grids from"),
        (lambda d: d["schedule"].update(patchify=True), "24 bits"),
        (lambda d: d["tokenizer"].update(ch_mult=3), "tokenizer.ch_mult"),
        (lambda d: d["tokenizer"].update(patch=5), "2\\^n pixels"),
        (lambda d: d["sampling"].update(guidances=["3"]), "sampling.guidances"),
        (lambda d: d["transformer"].update(depth=2), "extra"),
        (lambda d: d.update(text="clip"), "minilm or t5"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    pico: Infinity, tmp_path: Path, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    pico.export(tmp_path)
    settings = json.loads((tmp_path / "safear.json").read_text())
    change(settings)
    (tmp_path / "safear.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=where) as caught:
        Infinity.load(ModelRef("infinity", "pico", tmp_path))
    assert "\n" not in str(caught.value)


def test_damaged_and_misplaced_weights_are_refused(pico: Infinity, tmp_path: Path) -> None:
    pico.export(tmp_path)
    weights = tmp_path / "vae.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(SafearError) as caught:
        Infinity.load(ModelRef("infinity", "pico", tmp_path))
    assert caught.value.exit_code in (2, 4) and "\n" not in str(caught.value)
    weights.write_bytes((tmp_path / "gpt.safetensors").read_bytes())
    with pytest.raises(UsageError, match="missing: decoder"):
        Infinity.load(ModelRef("infinity", "pico", tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_and_stays_near(pico: Infinity, tmp_path: Path, dtype: torch.dtype) -> None:
    pico.export(tmp_path)
    half = Infinity.load(ModelRef("infinity", "pico", tmp_path), dtype=dtype)
    condition = half.condition(PROMPTS)
    assert condition.features.dtype == dtype
    bits = half.generate(condition, range(4))
    with torch.no_grad():
        found, exact = half.logits(condition, bits), pico.logits(pico.condition(PROMPTS), bits)
    assert found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < 0.05
    assert half.encode(half.decode(bits)).shape == bits.shape


def test_half_precision_adds_up_in_float32_as_published() -> None:
    """Each of many layers would round what it adds to: the blocks' weights are narrow, the states aren't."""
    pico = Infinity.pico()
    net = Transformer(replace(pico.net.config, depth=16, width=256, heads=4, pool_heads=4, ffn_hidden=1024))
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.05, generator=generator)
    half = copy.deepcopy(net).to(torch.bfloat16)
    states = list[Tensor]()
    half.layers[3].register_forward_hook(lambda block, given, state: states.append(state))
    condition = pico.condition(PROMPTS)
    inputs = teacher_inputs(pico.generate(condition, range(4)), pico.schedule)
    features, mask, which = condition.in_use(net.unconditional)
    with torch.no_grad():
        exact = net(net.text_pass(features, mask).rows(which), inputs, pico.schedule)
        text = half.text_pass(features.bfloat16(), mask).rows(which)
        found = half(text, inputs, pico.schedule)
    assert {states[0].dtype, half.head.weight.dtype, half.pos_start.dtype, text.modulation.dtype} == {torch.float32}
    assert {text.keys[0].dtype, half.layers[0].sa.mat_qkv.weight.dtype} == {torch.bfloat16}
    assert (found - exact).norm() / exact.norm() < 0.01, "0.0062; with all of it narrow 0.0137"


# -- the published files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        (InfinityConfig(), 2204.6),
        (InfinityConfig(12, 768, 8, 4, 3072, 16), 125.2),
        (InfinityConfig(40, 3584, 28, 8, 14336, 56), 8375.8),
    ],
)
def test_the_published_sizes_have_the_published_tensors(sizes: InfinityConfig, millions: float) -> None:
    with torch.device("meta"):
        model = Transformer(sizes)
    assert len(model.state_dict()) == 22 + 21 * sizes.depth
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_published_models_take_prompts_as_they_are(tmp_path: Path) -> None:
    from tests.families.test_text import tiny_t5

    (tmp_path / "flan-t5-xl").mkdir()
    tiny_t5(tmp_path / "flan-t5-xl")
    encoder = infinity._text_encoder("t5", 5, tmp_path)
    assert isinstance(encoder, T5) and not encoder.cleaned


@pytest.fixture
def no_t5(pico: Infinity, monkeypatch: pytest.MonkeyPatch) -> None:
    """MiniLM takes the place of flan-t5-xl, which can't be had here."""
    monkeypatch.setattr(infinity, "_text_encoder", lambda *_: pico.text)


def same(own: torch.nn.Module, read: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in read.state_dict().items())


@pytest.mark.usefixtures("no_t5")
def test_upstream_files_are_written_and_read(pico: Infinity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pico.export(tmp_path, "upstream")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["infinity_pico.pth", "infinity_vae_d6.pth"]
    assert torch.load(tmp_path / "infinity_pico.pth", weights_only=True).keys() == pico.net.state_dict().keys()
    facts = infinity.Published("0.06M", Sampling(4.0, 0.5, 0, 0.97))
    monkeypatch.setitem(infinity.PUBLISHED, "tiny", facts)
    monkeypatch.setitem(Infinity.variants, "tiny", Variant("tiny", ("infinity_pico.pth",)))
    again = Infinity.load(ModelRef("infinity", "tiny", tmp_path))
    assert same(pico.net, again.net) and same(pico.bsq, again.bsq)
    assert again.schedule == SQUARE and again.sampling == facts.sampling and again.card.licence == "MIT"
    assert set(again.card.files) == {"infinity_pico.pth", "infinity_vae_d6.pth"}


@pytest.mark.usefixtures("no_t5")
def test_a_trainers_checkpoint_with_leftovers_is_read(pico: Infinity, tmp_path: Path) -> None:
    weights = dict(pico.net.state_dict(), attn_bias_for_masking=torch.zeros(1, 1, 4, 4))
    torch.save({"trainer": {"gpt_fsdp": weights, "config": {"lr": 1e-4}}, "epoch": 3}, tmp_path / "ckpt.pth")
    save_file(pico.bsq.state_dict(), tmp_path / "vae.safetensors")
    read = Infinity.from_files(tmp_path / "ckpt.pth", tmp_path / "vae.safetensors", ratio=0.8, size="0.25M")
    assert same(pico.net, read.net)
    assert read.schedule == Schedule.published(0.8, "0.25M") and read.card.image_size == 35 * 4


@pytest.mark.usefixtures("no_t5")
def test_shards_are_read_and_a_patchified_model_is_known_by_its_bits(tmp_path: Path) -> None:
    model = patchified()
    names = sorted(model.net.state_dict())
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: model.net.state_dict()[name].clone() for name in part}, tmp_path / file)
        places |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    save_file(model.bsq.state_dict(), tmp_path / "vae.safetensors")
    read = Infinity.from_files(tmp_path / "model.safetensors.index.json", tmp_path / "vae.safetensors", size="0.06M")
    assert same(model.net, read.net) and read.schedule.patchify and len(read.card.files) == 4
    save_file(BSQ(BSQConfig(7, 24, (1, 1, 1), 1, 4)).state_dict(), tmp_path / "vae.safetensors")
    with pytest.raises(UsageError, match="7 bits"):
        Infinity.from_files(tmp_path / "model.safetensors.index.json", tmp_path / "vae.safetensors")


def test_a_sketch_reads_its_scales_only(pico: Infinity) -> None:
    bits = pico.generate(pico.condition(["a house"]), [3])
    other = torch.cat([bits[:, :5], 1 - bits[:, 5:]], 1)
    assert torch.equal(pico.sketched(bits, 2), pico.sketched(other, 2))
    assert not torch.equal(pico.sketched(bits, 3), pico.sketched(other, 3))
    assert torch.equal(pico.sketched(bits, 3), pico.decode(bits))
