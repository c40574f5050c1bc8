"""Janus against numbers recorded from upstream (tests/goldens/janus), against transformers, and its own files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from safear_edit.editor.fine_tune import borrowed
from safear_edit.errors import SafearError, UsageError
from safear_edit.families import janus
from safear_edit.families.base import Condition, Sampling
from safear_edit.families.janus import Janus, Settings, Template, from_original, image_embeddings, to_original
from safear_edit.families.language import sample_ids
from safear_edit.families.reference import ModelRef
from safear_edit.families.sampling import multinomial
from safear_edit.families.tokenizers.vq import VQConfig, VQModel
from safear_edit.families.tokens import token_logprobs
from safear_edit.files.names import OWN_WEIGHTS
from tests import GOLDENS, ROOT
from tests.families.test_contract import table_edit

RECORDED = load_file(GOLDENS / "janus" / "upstream.io.safetensors")
KEYS = json.loads((GOLDENS / "janus" / "key_map_upstream_to_hf.json").read_text())
PROMPTS = ["a house by Picasso", "a dog", "a cat in the snow", "a dog"]


def close(found: Tensor, recorded: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, recorded, rtol=0, atol=tolerance)


def recorded_sizes() -> dict[str, Any]:
    sizes = json.loads((GOLDENS / "janus" / "config.json").read_text())
    seen, width = sizes["vision"], sizes["language_config"]["hidden_size"]
    return {
        "text_config": {**sizes["language_config"], "model_type": "llama"},
        "vision_config": {
            "hidden_size": seen["width"],
            "num_hidden_layers": seen["layers"],
            "num_attention_heads": seen["heads"],
            "mlp_ratio": float(seen["mlp_ratio"]),
            "image_size": seen["image_size"],
            "patch_size": seen["patch_size"],
            "projection_dim": width,
            "num_image_tokens": sizes["num_image_tokens"],
        },
        "vq_config": {
            "num_embeddings": sizes["image_token_size"],
            "embed_dim": sizes["n_embed"],
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 2],
            "projection_dim": width,
            "image_token_embed_dim": sizes["image_token_embed"],
        },
        "image_token_id": 4,
    }


def recorded_weights() -> dict[str, Tensor]:
    tokenizer = load_file(GOLDENS / "llamagen" / "vq_tiny.weights.safetensors")
    rest = load_file(GOLDENS / "janus" / "upstream.weights_no_vq.safetensors")
    return {**rest, **{f"gen_vision_model.{name}": tensor for name, tensor in tokenizer.items()}}


def words_tokenizer(count: int) -> dict[str, bytes]:
    """Files of a tokenizer of whole words whose special ids are the recorded ones: bos 0, eos 1, pad 2, boi 3."""
    special = ["<bos>", "<eos>", "<pad>", "<boi>", "<image>", "<eoi>"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(len(special), count))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w6"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    roles = ("bos", "eos", "pad", "boi", "image", "eoi")
    named = {f"{role}_token": {"content": name} for role, name in zip(roles, special, strict=True)}
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(named).encode()}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded model as DeepSeek's folder: its names in pytorch_model.bin, its kind of config.json."""
    folder = tmp_path_factory.mktemp("Janus-Tiny")
    torch.save(recorded_weights(), folder / "pytorch_model.bin")
    config = {"model_type": "multi_modality", janus.OWN_CONFIG: recorded_sizes()}
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in words_tokenizer(160).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def golden(upstream: Path) -> Janus:
    return Janus.load(ModelRef.parse(str(upstream)))


@pytest.fixture(scope="module")
def pico() -> Janus:
    return Janus.pico()


@pytest.fixture
def condition(golden: Janus) -> Condition:
    ids = RECORDED["input_ids"]
    return Condition.of(golden.net.get_input_embeddings()(ids).detach(), torch.ones_like(ids, dtype=torch.bool))


# -- the recorded numbers ---------------------------------------------------------------------------------------------


def test_every_original_name_is_mapped_as_recorded() -> None:
    for original, wanted in KEYS.items():
        names = [wanted.replace("{q,k,v}", letter) for letter in "qkv"] if wanted and "{" in wanted else [wanted]
        assert list(from_original({original: torch.zeros(1, 6) if "pos_embed" in original else torch.zeros(6, 1)})) == [
            name for name in names if name
        ], original
    back = to_original(from_original({name: torch.zeros(3, 1) for name in KEYS}))
    dropped = {name for name, wanted in KEYS.items() if not wanted and "codebook_used" not in name}
    assert back.keys() == KEYS.keys() - dropped


def test_original_weights_come_back_under_their_names(golden: Janus, upstream: Path, tmp_path: Path) -> None:
    golden.export(tmp_path, "upstream")
    written, original = load_file(tmp_path / "model.safetensors"), recorded_weights()
    unused = {name for name in original if "attn_pool" in name}
    assert unused and written.keys() - {"gen_vision_model.quantize.codebook_used"} == original.keys() - unused - {
        "gen_vision_model.quantize.codebook_used"
    }
    for name in written.keys() & original.keys() - {"gen_vision_model.quantize.codebook_used"}:
        if name != "gen_vision_model.quantize.embedding.weight":  # the one that is scaled
            assert torch.equal(written[name], original[name]), name
    again = Janus.load(ModelRef.parse(str(tmp_path)))
    assert all(torch.equal(t, again.net.state_dict()[n]) for n, t in golden.net.state_dict().items())
    assert golden.card.variant == upstream.name and golden.card.licence == janus.PUBLISHED_LICENCE
    assert again.sampling == Sampling(5.0) and again.card.variant == golden.card.variant


def test_teacher_forced_logits(golden: Janus, condition: Condition) -> None:
    ids = RECORDED["image_ids"]
    with torch.no_grad():
        close(image_embeddings(golden.net, ids), RECORDED["gen_embeds"], 2e-5)
        found = golden.logits(condition, ids)
        close(found, RECORDED["tf_logits_cond"], 2e-5)
        close(token_logprobs(found, ids), RECORDED["tf_token_logp_cond"], 2e-5)
        both = golden.dropped(condition, torch.ones(2, dtype=torch.bool))
        close(golden.logits(both, ids), RECORDED["tf_logits_uncond"], 2e-5)


@pytest.mark.parametrize("run", ["greedy_cfg5", "sample_seed42_cfg5", "forced_cfg5"])
def test_guided_runs(golden: Janus, condition: Condition, run: str) -> None:
    kept: list[Tensor] = []
    forced = RECORDED["image_ids"] if run == "forced_cfg5" else None
    draw = multinomial(torch.Generator().manual_seed(42))
    with torch.no_grad():
        prefix, rows, without = golden.read(condition, True)
    ids = sample_ids(
        golden,
        prefix,
        rows,
        without,
        Sampling(5.0),
        draw if run.startswith("sample") else lambda p, _: p.argmax(-1),
        given=forced,
        keep_logits=kept,
    )
    assert torch.equal(ids, RECORDED[f"{run}.tokens"] if forced is None else forced)
    close(torch.stack(kept, 1), RECORDED[f"{run}.logits"], 2e-4)


def test_pictures_are_encoded_as_upstream_does_and_not_as_transformers_would(golden: Janus) -> None:
    image, vq = RECORDED["vq_image16"], golden.net.model.vqmodel
    with torch.no_grad():
        assert torch.equal(vq.encode(image).image_tokens.view(2, -1), RECORDED["vq_encode_ids"])
        close(vq.decode(RECORDED["image_ids"]), RECORDED["vq_decode_of_image_ids"], 2e-4)
        raw = load_file(GOLDENS / "llamagen" / "vq_tiny.weights.safetensors")["quantize.embedding.weight"]
        with borrowed(golden.net):
            vq.quantize.embedding.weight.copy_(raw)
            assert (vq.encode(image).image_tokens.view(2, -1) == RECORDED["vq_encode_ids"]).float().mean() < 0.6
            bytes_ = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
            robust = golden.encode(bytes_)
        assert torch.equal(golden.encode(bytes_), robust)
        assert torch.equal(vq.encode(bytes_.float() / 127.5 - 1).image_tokens.view(3, -1), robust)


def test_pictures_are_seen_as_recorded(golden: Janus) -> None:
    with torch.no_grad():
        close(golden.see(RECORDED["vq_image16"]), RECORDED["vision_aligned"], 2e-5)


# -- transformers' own code as the oracle -----------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [2.0, 5.0])
def test_greedy_drawing_is_what_transformers_generates(pico: Janus, guidance: float) -> None:
    ids, mask = pico.prompt_ids(PROMPTS)
    assert not mask.all()  # left-padded, so that the mask matters
    drawn = pico.net.generate(
        inputs=ids, attention_mask=mask.long(), generation_mode="image", guidance_scale=guidance, do_sample=False
    )
    assert torch.equal(pico.generate(pico.condition(PROMPTS), range(4), Sampling(guidance, top_k=1)), drawn)
    assert len(set(map(tuple, drawn.tolist()))) == 3


def test_answers_are_what_transformers_generates(pico: Janus, pictures: Tensor) -> None:
    asked = torch.tensor(pico.question_ids("what is it?")).expand(len(pictures), -1)
    seen = {"pixel_values": pico.pixels(pictures), "attention_mask": torch.ones_like(asked)}
    said = pico.net.generate(inputs=asked, max_new_tokens=6, do_sample=False, **seen)
    replies = pico.answer(pictures, "what is it?", limit=6)
    assert replies == [pico.words.decode(row) for row in said[:, asked.shape[1] :].tolist()]
    assert len(set(replies)) > 1  # they look at the image


def test_answers_are_scored_as_transformers_scores_them(pico: Janus, pictures: Tensor) -> None:
    reply = pico.reply_ids("yes")
    assert len(reply) == 4  # a byte each, and the blank
    whole = torch.tensor([*pico.question_ids("is it?"), *reply]).expand(len(pictures), -1)
    with torch.no_grad():
        logits = pico.net(input_ids=whole, pixel_values=pico.pixels(pictures)).logits[:, -len(reply) - 1 : -1]
        found = pico.answer_logprobs(pictures, "is it?", ["yes", "n"])
    assert found.shape == (len(pictures), 2)
    close(found[:, 0], token_logprobs(logits, whole[:, -len(reply) :]).sum(1), 1e-4)
    with pytest.raises(UsageError, match="stands for the image"):
        pico.answer(pictures, f"is {janus.SPECIAL['image']} it?")
    with pytest.raises(UsageError, match="at least one token"):
        pico.answer_logprobs(pictures, "is it?", [])


@pytest.fixture(scope="module")
def pictures(pico: Janus) -> Tensor:
    noise = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    return noise.to(torch.uint8)


def test_transformers_loads_what_is_exported(pico: Janus, tmp_path: Path) -> None:
    from transformers import JanusForConditionalGeneration

    pico.export(tmp_path)
    net, report = JanusForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(tensor, pico.net.state_dict()[name]) for name, tensor in net.state_dict().items())
    assert net.generation_config.generation_kwargs["boi_token_id"] == pico.words.boi


# -- the family -------------------------------------------------------------------------------------------------------


def test_dropped_rows_keep_bos_length_and_mark_only(pico: Janus) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4))
    prompts, mask = pico.prompt_ids(list(dict.fromkeys(PROMPTS)))
    kept = (prompts == pico.words.bos) | (prompts == pico.words.boi)
    emptied = pico.net.get_input_embeddings()(prompts.masked_fill(~kept, pico.words.pad)).detach()
    with torch.no_grad():
        mixed = pico.logits(pico.dropped(condition, torch.tensor([True, False, False, True])), ids)
        without = pico.logits(Condition.of(emptied, mask).rows(torch.tensor([0, 1, 2, 1])), ids)
    close(mixed[[0, 3]], without[[0, 3]], 1e-4)


def test_gradients_are_finite_under_padding_and_reach_the_words(pico: Janus) -> None:
    ids, mask = pico.prompt_ids(["a dog", "a much longer prompt"])
    drawn = pico.generate(pico.condition(["a dog", "a much longer prompt"]), [0, 1])
    with borrowed(pico.net, ()):
        embedding = pico.net.get_input_embeddings()
        trained = Condition.of(embedding(ids), mask)
        token_logprobs(pico.logits(trained, drawn), drawn).sum().backward()
        read = ("language_model", "generation_head", "image_table")
        gradients = [p.grad for n, p in pico.net.named_parameters() if any(part in n for part in read)]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert embedding.weight.grad[pico.words.encode("m")[0]].norm() > 0
        pad = embedding.weight.grad[pico.words.pad]
        assert not pad.any()  # what the mask hides is hidden


@pytest.mark.parametrize("layout", ["safear", "transformers", "upstream"])
def test_saved_and_loaded_it_is_the_same(pico: Janus, tmp_path: Path, layout: str) -> None:
    pico.export(tmp_path, layout)
    kind = "multi_modality" if layout == "upstream" else "janus"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    again = Janus.load(ModelRef.parse(str(tmp_path)))
    assert all(torch.equal(t, again.net.state_dict()[n]) for n, t in pico.net.state_dict().items())
    assert (again.sampling, again.template, again.card.variant) == (pico.sampling, pico.template, "pico")
    assert again.card.licence == "Apache-2.0" and list(again.card.files) == ["model.safetensors"]
    ids = pico.generate(pico.condition(PROMPTS), range(4))
    assert torch.equal(again.generate(again.condition(PROMPTS), range(4)), ids)
    images = pico.decode(ids)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(again.decode(ids), images) and again.encode(images).shape == ids.shape
    assert again.describe(images[:1]) == pico.describe(images[:1])


def test_editable_parts_are_linear_layers(pico: Janus) -> None:
    linear = {name for name, module in pico.net.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = {name for name in linear if name.startswith(("model.language_model.", "model.generation_head."))}
    assert set(pico.editable("all")) == inside and len(pico.editable("attention")) == 8
    assert set(pico.editable("head")) == {"model.generation_head.proj_out", "model.generation_head.vision_head"}
    assert set(pico.editable("layers[1:2]")) == {n for n in linear if n.startswith("model.language_model.layers.1.")}
    with pytest.raises(UsageError, match="attention"):
        pico.editable("attn")
    with pytest.raises(UsageError, match=r"layers\[0:2\]"):
        pico.editable("layers[0:3]")


# -- the codebook ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_table(pico: Janus) -> Iterator[Tensor]:
    yield pico.image_table().detach().clone()
    pico.set_image_table(None)


def test_a_replaced_table_travels_in_our_own_file(pico: Janus, own_table: Tensor, tmp_path: Path) -> None:
    pico.set_image_table(own_table + 0.5)
    pico.export(tmp_path)
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / OWN_WEIGHTS).is_file()
    again = Janus.load(ModelRef.parse(str(tmp_path)))
    assert torch.equal(again.image_table(), own_table + 0.5)


def test_transformers_stops_at_a_table_that_it_would_leave_out(pico: Janus, own_table: Tensor, tmp_path: Path) -> None:
    from transformers import JanusForConditionalGeneration

    pico.set_image_table(own_table + 0.5)
    pico.export(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        JanusForConditionalGeneration.from_pretrained(tmp_path, local_files_only=True)


def test_a_loaded_model_reads_what_its_published_modules_give(pico: Janus, tmp_path: Path) -> None:
    pico.export(tmp_path)
    assert "image_table" not in load_file(tmp_path / "model.safetensors"), "nothing that the layout has no room for"
    again = Janus.load(ModelRef.parse(str(tmp_path)))
    assert torch.equal(again.image_table(), janus.aligned_rows(again.net))
    ids = torch.arange(8).view(2, 4)
    modules = again.net.model.generation_aligner(again.net.model.generation_embeddings(ids))
    close(image_embeddings(again.net, ids), modules, 1e-5)
    assert again.card.parameters == pico.card.parameters


def test_an_edit_of_the_table_is_an_edit_of_its_tensor(pico: Janus, own_table: Tensor, tmp_path: Path) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4))
    with torch.no_grad():
        before = pico.logits(condition, ids)
        with table_edit(pico, torch.full_like(own_table, 0.5)).apply(pico.net):
            close(pico.image_table(), own_table + 0.5, 1e-6)
            edited = pico.logits(condition, ids)
            pico.export(tmp_path)
            wanted = pico.image_table().detach().clone()
        assert (edited - before).abs().max() > 1e-2
        assert torch.equal(pico.image_table(), own_table) and torch.equal(pico.logits(condition, ids), before)
        again = Janus.load(ModelRef.parse(str(tmp_path)))
        assert torch.equal(again.image_table(), wanted) and again.card.parameters == pico.card.parameters
        close(again.logits(again.condition(PROMPTS), ids), edited, 1e-5)


def test_a_released_edit_of_the_table_goes_back_to_its_base(pico: Janus, own_table: Tensor, tmp_path: Path) -> None:
    """What editor/stack.py does with it: the state dict's tensor is kept, put back, and the export is unedited."""
    assert pico.table_name in dict(pico.net.named_parameters())
    with table_edit(pico, torch.ones_like(own_table)).apply(pico.net):
        pico.export(tmp_path)
    again = Janus.load(ModelRef.parse(str(tmp_path)))
    with torch.no_grad():
        again.net.state_dict()[pico.table_name].copy_(own_table)
    (tmp_path / "base").mkdir()
    again.export(tmp_path / "base")
    assert "image_table" not in load_file(tmp_path / "base" / "model.safetensors")


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_head_that_is_not_in_the_file_is_the_embedding(pico: Janus, tmp_path: Path) -> None:
    pico.export(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    tied = Janus.load(ModelRef.parse(str(tmp_path)))
    assert tied.net.lm_head.weight is tied.net.get_input_embeddings().weight
    (tmp_path / "again").mkdir()
    tied.export(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == weights.keys()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is True


def test_special_ids_come_from_the_models_own_files() -> None:
    files = words_tokenizer(20)
    words = janus.Vocabulary.read(files, "here")
    assert (words.bos, words.eos, words.pad, words.boi, words.image, words.eoi) == (0, 1, 2, 3, 4, 5)
    stated = {"pad_token_id": 9, "generation_kwargs": {"boi_token_id": 8}}
    moved = janus.Vocabulary.read({**files, "generation_config.json": json.dumps(stated).encode()}, "here")
    assert (moved.bos, moved.pad, moved.boi) == (0, 9, 8)
    with pytest.raises(UsageError, match="a token for bos"):
        janus.Vocabulary.read({"tokenizer.json": files["tokenizer.json"]}, "here")
    with pytest.raises(UsageError, match="a tokenizer, got"):
        janus.Vocabulary.read({"tokenizer.json": b"{}"}, "here")


def test_the_published_configuration_is_understood_and_written() -> None:
    def section(**params: object) -> dict[str, object]:
        return {"params": params}

    published: dict[str, Any] = {
        "model_type": "multi_modality",
        "language_config": {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "max_position_embeddings": 16384,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "num_key_value_heads": 16,
            "torch_dtype": "bfloat16",
            "vocab_size": 102400,
        },
        "vision_config": section(
            image_size=384, model_name="siglip_large_patch16_384", select_feature="same", select_layer=-1
        ),
        "aligner_config": section(depth=2, input_dim=1024, n_embed=2048, projector_type="mlp_gelu"),
        "gen_vision_config": section(image_token_size=16384, n_embed=8),
        "gen_aligner_config": section(depth=2, input_dim=8, n_embed=2048, projector_type="mlp_gelu"),
        "gen_head_config": section(image_token_embed=2048, image_token_size=16384, n_embed=2048),
    }
    config = janus.read_config(published, 100581, "config.json")
    assert (config.vision_config.num_image_tokens, config.vq_config.num_patches) == (576, 24)
    assert config.text_config.rms_norm_eps == 1e-6 and config.text_config.rope_parameters["rope_theta"] == 10000.0
    assert not config.tie_word_embeddings
    text = {"max_position_embeddings": 16384, "num_hidden_layers": 30, "vocab_size": 102400}  # Janus-Pro-7B's
    large = janus.read_config({**published, "language_config": text}, 100581, "config.json")
    assert (large.text_config.hidden_size, large.vision_config.projection_dim) == (4096, 4096), "LlamaConfig's default"
    own = json.loads(config.to_json_string(use_diff=False))
    for widths in (-(2**70), [1, 2, "a" * 20]):  # found by fuzzing: transformers' own error, and a traceback
        own["vq_config"]["decoder_channel_multiplier"] = widths
        with pytest.raises(UsageError, match="a Janus configuration"):
            janus.read_config(own, 100581, "config.json")
    written = janus._original_config(config, json.loads(config.to_json_string(use_diff=False)))
    for name in published.keys() - {"model_type", "language_config"}:
        assert written[name]["params"] == published[name]["params"], name
    del published["gen_vision_config"]
    with pytest.raises(UsageError, match="gen_vision_config"):
        janus.read_config(published, 100581, "config.json")


@pytest.mark.parametrize(
    ("file", "change", "where"),
    [
        ("config.json", lambda d: d.update(model_type="llama"), "model_type"),
        ("config.json", lambda d: d.update(image_token_id=10**6), "inside the vocabulary"),
        ("config.json", lambda d: d["vision_config"].update(hidden_size="32"), "hidden_size"),
        ("config.json", lambda d: d["vision_config"].update(patch_size=0), "Janus configuration"),
        ("config.json", lambda d: d["vision_config"].update(num_image_tokens=15), "as many tokens"),
        ("config.json", lambda d: d["vq_config"].update(channel_multiplier=[1, 1]), "patches"),
        ("config.json", lambda d: d["text_config"].update(num_hidden_layers=3), "missing"),
        ("config.json", lambda d: d["vq_config"].update(base_channels=33), "sizes"),
        ("safear.json", lambda d: d.update(variants="x"), "variants"),
        ("safear.json", lambda d: d["sampling"].update(guidance="strong"), "sampling.guidance"),
        ("safear.json", lambda d: d["template"].update(draw="no place for words"), "template.draw"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(
    pico: Janus, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    pico.export(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    change(content)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UsageError) as caught:
        Janus.load(ModelRef("janus", "pico", tmp_path))
    assert where in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_missing_and_damaged_files_are_refused(pico: Janus, tmp_path: Path, file: str) -> None:
    pico.export(tmp_path)
    content = (tmp_path / file).read_bytes()
    for bad in (content[:-100], None):
        (tmp_path / file).unlink() if bad is None else (tmp_path / file).write_bytes(bad)
        with pytest.raises(SafearError) as caught:
            Janus.load(ModelRef("janus", "pico", tmp_path))
        assert caught.value.exit_code in (2, 4) and "\n" not in str(caught.value)


def test_shards_are_read_and_named(pico: Janus, tmp_path: Path) -> None:
    pico.export(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({n: weights[n] for n in names if places[n] == shard}, tmp_path / shard, {"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    again = Janus.load(ModelRef.parse(str(tmp_path)))
    assert sorted(again.card.files) == sorted(set(places.values()))
    assert torch.equal(again.net.lm_head.weight, pico.net.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_and_answers(pico: Janus, pictures: Tensor, tmp_path: Path, dtype: torch.dtype) -> None:
    pico.export(tmp_path)
    half = Janus.load(ModelRef.parse(str(tmp_path)), dtype=dtype)
    condition = half.condition(PROMPTS)
    assert condition.features.dtype == half.net.lm_head.weight.dtype == dtype
    ids = half.generate(condition, range(4))
    with torch.no_grad():
        found, exact = half.logits(condition, ids), pico.logits(pico.condition(PROMPTS), ids)
    assert found.dtype == torch.float32 and (found - exact).norm() / exact.norm() < 0.1
    assert half.encode(half.decode(ids)).shape == ids.shape and len(half.answer(pictures, "what?", limit=2)) == 3


# -- the mini world's sizes -------------------------------------------------------------------------------------------


def test_forty_pixels_with_the_gallerys_tokenizer(tmp_path: Path) -> None:
    folder = ROOT / "safear_edit" / "minis" / "llamagen"
    sizes, weights = json.loads((folder / "safear.json").read_text())["vq"], load_file(folder / "vq.safetensors")
    vq = VQModel(VQConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})).eval()
    vq.load_state_dict(weights)
    tokenizer = {
        "num_embeddings": sizes["codebook_size"],
        "embed_dim": sizes["codebook_embed_dim"],
        "latent_channels": sizes["z_channels"],
        "base_channels": sizes["ch"],
        "num_res_blocks": sizes["num_res_blocks"],
        "channel_multiplier": sizes["encoder_ch_mult"],
        "decoder_channel_multiplier": sizes["decoder_ch_mult"],
    }
    vision = {**janus.PICO_SIZES["vision_config"], "image_size": 40}
    template = Template(draw="{text}", ask="{image} {text}", reply="", describe="describe the image")
    settings = Settings(licence="Apache-2.0", template=template)
    parts = {**janus.PICO_SIZES, "vision_config": vision, "vq_config": tokenizer}
    model = Janus.fresh(parts, words_tokenizer(40), settings, "tiny")
    renamed = from_original({f"gen_vision_model.{name}": tensor for name, tensor in weights.items()})
    assert not model.net.load_state_dict(renamed, strict=False).unexpected_keys
    model.export(tmp_path)
    again = Janus.load(ModelRef.parse(str(tmp_path)))
    assert again.template == template and again.card.tokens == 100 and again.card.image_size == 40
    images = torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    ids = again.encode(images)
    with torch.no_grad():
        assert torch.equal(ids, vq.encode(images.float() / 127.5 - 1))
        close(again.net.model.vqmodel.decode(ids), vq.decode(ids), 2e-4)
    assert len(again.describe(images)) == 2 and again.decode(ids).shape == (2, 3, 40, 40)
    assert again.question_ids("w7 w8")[-2:] == [7, 8] and again.question_ids("w7").count(4) == 100
    with pytest.raises(UsageError, match="resize"):
        again.answer(images[:, :, :16, :16], "w7")
