"""The family contract on Emu3, Chameleon and Liquid: drawing, scoring, answering, editing, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safear_edit.edit import Edit, EditInfo
from safear_edit.errors import SafearError, UsageError
from safear_edit.families.base import Sampling
from safear_edit.families.chameleon import Chameleon
from safear_edit.families.emu3 import Emu3
from safear_edit.families.language import LanguageModel
from safear_edit.families.liquid import Liquid
from safear_edit.families.unified import EarlyFusion
from safear_edit.registry import ModelRef, listing, load_model
from safear_edit.tokens import token_logprobs
from safear_edit.training import Tuning, adapter_weights, borrowed, inject

PROMPTS = ["a house by Picasso", "a dog", "a cat in the snow", "a dog"]
GREEDY = Sampling(1.0, top_k=1)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=[Emu3, Chameleon, Liquid], ids=lambda kind: kind.name)
def pico(request: pytest.FixtureRequest) -> EarlyFusion:
    model: EarlyFusion = request.param.pico()
    return model


@pytest.fixture(scope="module")
def exported(pico: EarlyFusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("exported")
    pico.export(made)
    return made


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(exported, tmp_path / "copy")


def pictures(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def greedy_is_argmax(model: LanguageModel) -> bool:
    condition = model.condition(PROMPTS)
    ids = model.generate(condition, range(4), GREEDY)
    with torch.no_grad():
        return torch.equal(model.logits(condition, ids).argmax(-1), ids)


def each_image_is_its_own(model: LanguageModel) -> None:
    """An image depends on its prompt and its seed only."""
    condition = model.condition(PROMPTS)
    assert len(condition.features) == 3  # equal prompts once
    together = model.generate(condition, [5, 6, 7, 8])
    for row in range(4):
        assert torch.equal(model.generate(model.condition([PROMPTS[row]]), [5 + row])[0], together[row])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(model.generate(condition.rows(order), [5 + int(i) for i in order]), together[order])
    assert not torch.equal(together[1], together[3])  # same prompt, other seed


# -- drawing and scoring ----------------------------------------------------------------------------------------------


def test_greedy_generation_is_the_argmax_of_the_logits_everywhere(pico: EarlyFusion) -> None:
    assert greedy_is_argmax(pico)


def test_hidden_states_are_what_the_head_reads(pico: EarlyFusion) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4))
    with torch.no_grad():
        whole = pico.logits(condition, ids)
        for length in (1, 4, 5, 7):
            close(pico.image_logits(pico.hidden(condition, ids[:, :length])), whole[:, :length])


def test_an_image_depends_on_its_prompt_and_seed_only(pico: EarlyFusion) -> None:
    each_image_is_its_own(pico)


def test_a_picture_continued_from_its_own_beginning_is_the_same(pico: EarlyFusion) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4))
    assert torch.equal(pico.generate(condition, range(4), prefix=ids[:, :6]), ids)
    other = (ids[:, :6] + 1) % pico.card.choices
    continued = pico.generate(condition, range(4), prefix=other)
    assert torch.equal(continued[:, :6], other) and not torch.equal(continued[:, 6:], ids[:, 6:])


def test_dropped_rows_have_the_unconditional_prompt(pico: EarlyFusion) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4))
    with torch.no_grad():
        mixed = pico.logits(pico.dropped(condition, torch.tensor([True, False, False, True])), ids)
        plain = pico.logits(condition, ids)
        prompt, _ = pico.prompt_ids([None])
        whole = pico.dropped(pico.condition(["something else entirely"]), torch.tensor([True]))
        close(mixed[:1], pico.logits(whole, ids[:1]))
        last = pico.transformer(inputs_embeds=pico.net.get_input_embeddings()(prompt)).last_hidden_state[:, -1]
        close(mixed[3, 0], pico.image_logits(last)[0])
    close(mixed[1:3], plain[1:3])
    assert not torch.allclose(mixed[0], plain[0], atol=1e-2)


def test_adapters_reach_scoring_and_sampling_alike(pico: EarlyFusion) -> None:
    before = pico.generate(pico.condition(PROMPTS), range(4))
    with borrowed(pico.net, ()):
        weights = adapter_weights(inject(pico.net, pico.editable("all"), Tuning(), seed=0))
        for name, weight in weights.items():
            torch.nn.init.normal_(weight, std=0.1 if name.endswith("lora_B") else 1.0)
        assert greedy_is_argmax(pico)
        assert not torch.equal(pico.generate(pico.condition(PROMPTS), range(4)), before)
    assert torch.equal(pico.generate(pico.condition(PROMPTS), range(4)), before)


def test_editable_parts_are_linear_layers(pico: EarlyFusion) -> None:
    linear = {name for name, module in pico.net.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = {name for name in linear if name.startswith(f"{pico.layers_at}layers.")}
    assert set(pico.editable("all")) == inside and len(pico.editable("attention")) == 8
    assert set(pico.editable("layers[1:2]")) == {name for name in inside if ".1." in name}
    for wrong, named in (("head", "attention"), ("layers[0:3]", r"layers\[0:2\]")):
        with pytest.raises(UsageError, match=named):
            pico.editable(wrong)


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_become_tokens_and_tokens_pictures(pico: EarlyFusion) -> None:
    ids = pico.encode(pictures())
    assert ids.shape == (3, pico.card.tokens) and len(ids.unique()) > 8
    images = pico.decode(ids)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(pico.decode(ids[1:2])[0], images[1]) and not torch.equal(images[0], images[1])
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % pico.card.choices
    assert not torch.equal(pico.decode(changed), images)
    with pytest.raises(UsageError, match="resize"):
        pico.encode(pictures()[:, :, :8])


def test_training_mode_changes_no_picture(pico: EarlyFusion) -> None:
    ids = pico.encode(pictures())
    images = pico.decode(ids)
    with borrowed(pico.net, ()):
        pico.net.train()
        assert torch.equal(pico.encode(pictures()), ids) and torch.equal(pico.decode(ids), images)
    assert not any(p.requires_grad for p in pico.net.model.vqmodel.parameters())


# -- questions --------------------------------------------------------------------------------------------------------


def test_answers_look_at_the_picture_and_are_scored(pico: EarlyFusion) -> None:
    replies = pico.answer(pictures(), "what is it?", limit=6)
    assert len(set(replies)) > 1 and replies[1:2] == pico.answer(pictures()[1:2], "what is it?", limit=6)
    assert len(pico.describe(pictures()[:1])) == 1
    found = pico.answer_logprobs(pictures(), "is it?", ["yes", "n"])
    assert found.shape == (3, 2) and bool((found < 0).all()) and len(found[:, 0].unique()) == 3
    with pytest.raises(UsageError, match="stands for the picture"):
        pico.answer(pictures(), f"is {pico.special['image']} it?")
    with pytest.raises(UsageError, match="at least one token"):
        pico.answer_logprobs(pictures(), "is it?", [])


# -- the codebook -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_table(pico: EarlyFusion) -> Iterator[Tensor]:
    yield pico.image_table().detach().clone()
    pico.set_image_table(None)


def test_a_replaced_table_is_read_everywhere_and_taken_back_exactly(pico: EarlyFusion, own_table: Tensor) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4), GREEDY)
    seen = pico.encode(pictures())
    with torch.no_grad():
        before, asked = pico.logits(condition, ids), pico.answer_logprobs(pictures(), "is it?", ["y"])
        changed = own_table.clone()
        changed[ids[0, 3]] += 3
        changed[seen[0, 0]] -= 3
        pico.set_image_table(changed)
        assert torch.equal(pico.image_table(), changed)
        after = pico.logits(condition, ids)
        touched = (ids[0] == ids[0, 3]) | (ids[0] == seen[0, 0])
        first = int(touched.nonzero()[0])
        close(after[0, : first + 1], before[0, : first + 1])
        assert (after[0, first + 1] - before[0, first + 1]).abs().max() > 1e-2
        assert (pico.answer_logprobs(pictures(), "is it?", ["y"]) - asked)[0].abs() > 1e-3
        assert torch.equal(pico.encode(pictures()), seen)
        assert greedy_is_argmax(pico)
        pico.set_image_table(None)
        assert torch.equal(pico.logits(condition, ids), before)
    with pytest.raises(UsageError, match=r"\(64, 64\)"):
        pico.set_image_table(own_table[:5])


def test_a_table_can_be_trained_and_travels_where_the_published_layout_has_it(
    pico: EarlyFusion, own_table: Tensor, tmp_path: Path
) -> None:
    condition = pico.condition(PROMPTS[:1])
    ids = pico.generate(condition, [0])
    trained = torch.nn.Parameter(own_table + 0.5)
    with borrowed(pico.net, ()):
        pico.set_image_table(trained)
        assert not any(p is trained for p in pico.net.parameters())
        token_logprobs(pico.logits(condition, ids), ids).sum().backward()
        assert trained.grad is not None and trained.grad[ids[0, 0]].norm() > 0
        pico.export(tmp_path)
        scored = pico.logits(condition, ids).detach()
        replies = pico.answer(pictures(), "what?", limit=6)
    again = load_model(str(tmp_path))
    assert isinstance(again, EarlyFusion) and torch.equal(again.image_table(), trained)
    rows = again.net.get_input_embeddings().weight[pico.net.image_places]
    assert torch.equal(rows, trained) and torch.equal(pico.image_table(), own_table)
    with torch.no_grad():
        close(again.logits(again.condition(PROMPTS[:1]), ids), scored)
    assert again.answer(pictures(), "what?", limit=6) == replies


def test_an_edit_of_the_table_is_an_edit_of_its_tensor(pico: EarlyFusion, own_table: Tensor, tmp_path: Path) -> None:
    facts = {"method": "safe_cb", "params": {}, "concept": "x", "base_digest": "", "rank": None, "alpha": None}
    info = EditInfo(**facts, seed=0, steps=1, losses=(1.0,), minutes=0.0)
    with Edit("delta", {pico.table_name: torch.ones_like(own_table)}, info).apply(pico.net):
        close(pico.image_table(), own_table + 1, 1e-6)
        pico.export(tmp_path)
    assert torch.equal(pico.image_table(), own_table)
    close(load_model(str(tmp_path)).image_table(), own_table + 1, 1e-6)


def test_image_tokens_among_words_are_read_from_the_table(pico: EarlyFusion, own_table: Tensor) -> None:
    place = int(pico.net.image_places[7])
    pico.set_image_table(own_table + 1)
    ids = torch.tensor([[place, pico.words["bos"]]])
    embedding = pico.net.get_input_embeddings()
    with torch.no_grad():
        found = pico._embedded(ids)[0]
        close(found[0], (own_table[7] + 1) * getattr(embedding, "scalar_embed_scale", 1), 1e-5)
        assert torch.equal(found[1], embedding(ids)[0, 1])


# -- files ------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(pico: EarlyFusion, folder: Path) -> None:
    ref = ModelRef.parse(str(folder))
    assert (ref.family, ref.variant) == (pico.name, "pico")
    again = load_model(str(folder))
    assert isinstance(again, EarlyFusion) and set(again.card.files) == {f.name for f in folder.glob("*.safetensors")}
    assert again.sampling == pico.sampling and again.card.tokens == pico.card.tokens
    ids = pico.generate(pico.condition(PROMPTS), range(4))
    assert torch.equal(again.generate(again.condition(PROMPTS), range(4)), ids)
    assert torch.equal(again.decode(ids), pico.decode(ids))
    assert torch.equal(again.encode(pictures()), pico.encode(pictures()))
    assert again.answer(pictures(), "what?", limit=6) == pico.answer(pictures(), "what?", limit=6)
    (folder / "safear.json").unlink()  # as published: only config.json says what it is
    published = ModelRef.parse(str(folder))
    assert (published.family, published.variant) == (pico.name, folder.name)


def test_transformers_loads_what_is_exported(pico: EarlyFusion, folder: Path) -> None:
    net, report = type(pico.net).from_pretrained(folder, output_loading_info=True)
    own = pico.net.state_dict()
    assert not report["missing_keys"] and all("vqmodel.decoder." in name for name in report["unexpected_keys"])
    assert all(torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items())
    assert net.generation_config.eos_token_id == pico.words["eos"]


def test_a_head_that_is_not_in_the_file_is_the_embedding(pico: EarlyFusion, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tied = load_model(str(folder))
    assert torch.equal(tied.net.lm_head.weight, weights[f"{pico.layers_at}embed_tokens.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_and_sees_the_same_codes(pico: EarlyFusion, folder: Path, dtype: torch.dtype) -> None:
    half = type(pico).load(ModelRef.parse(str(folder)), dtype=dtype)
    condition = half.condition(PROMPTS)
    assert condition.features.dtype == half.net.lm_head.weight.dtype == dtype
    ids = half.generate(condition, range(4))
    with torch.no_grad():
        found, exact = half.logits(condition, ids), pico.logits(pico.condition(PROMPTS), ids)
    assert found.dtype == torch.float32 and (found - exact).norm() / exact.norm() < 0.1
    assert torch.equal(half.encode(pictures()), pico.encode(pictures()))  # the tokenizer keeps its precision
    assert torch.equal(half.decode(ids), pico.decode(ids)) and len(half.answer(pictures(), "what?", limit=2)) == 3


def refused(pico: EarlyFusion, folder: Path, file: str, change: Callable[[dict[str, Any]], object], where: str) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UsageError) as caught:
        type(pico).load(ModelRef(pico.name, "pico", folder))
    assert where in str(caught.value) and "\n" not in str(caught.value)


def _no_codes(data: dict[str, Any]) -> None:
    names = [name for name in data["vocabulary_map"] if name.startswith(("IMGIMG", "<|visual"))]
    del data["vocabulary_map"][names[5]]


def _strange_code(data: dict[str, Any]) -> None:
    names = [name for name in data["vocabulary_map"] if name.startswith(("IMGIMG", "<|visual"))]
    data["vocabulary_map"]["IMGIMGxZ" if "IMG" in names[0] else "<|visual token xxxxxx|>"] = 9


def _deeper(data: dict[str, Any]) -> None:
    data.get("text_config", data)["num_hidden_layers"] = 3


def _wide(data: dict[str, Any]) -> None:
    data.get("text_config", data)["hidden_size"] = "wide"


@pytest.mark.parametrize("pico", [Emu3, Chameleon], indirect=True, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("change", "where"),
    [
        (_no_codes, "a token for each of 64 codes"),
        (_strange_code, "a token for each of 64 codes"),
        (lambda d: d.pop("vocabulary_map"), "configuration"),
        (lambda d: d["vq_config"].update(base_channels=33), "configuration"),
    ],
)
def test_codes_that_do_not_fit_the_vocabulary_are_refused_in_one_line(
    pico: EarlyFusion, folder: Path, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    refused(pico, folder, "config.json", change, where)


@pytest.mark.parametrize(
    ("file", "change", "where"),
    [
        ("config.json", lambda d: d.update(model_type="llama"), "model_type"),
        ("config.json", _wide, "configuration"),
        ("config.json", _deeper, "missing"),
        ("tokenizer.json", lambda d: d["added_tokens"].pop(0), "the tokens"),
        ("safear.json", lambda d: d.update(variants="x"), "variants"),
        ("safear.json", lambda d: d["sampling"].update(guidance="strong"), "sampling.guidance"),
        ("safear.json", lambda d: d["template"].update(draw="no place for words"), "template.draw"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(
    pico: EarlyFusion, folder: Path, file: str, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    refused(pico, folder, file, change, where)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_missing_and_damaged_files_are_refused(pico: EarlyFusion, folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    for bad in (content[:-100], None):
        (folder / file).unlink() if bad is None else (folder / file).write_bytes(bad)
        with pytest.raises(SafearError) as caught:
            type(pico).load(ModelRef(pico.name, "pico", folder))
        assert caught.value.exit_code in (2, 4) and "\n" not in str(caught.value)


def test_no_weights_come_with_the_package(pico: EarlyFusion, tmp_path: Path) -> None:
    rows = [row for row in listing("models") if row.name.startswith(f"{pico.name}:")]
    assert rows and all(row.source.startswith("a folder with config.json") for row in rows)
    for name in (pico.name, f"{pico.name}:mini"):
        with pytest.raises(UsageError, match="one of"):
            load_model(name)
    for row in rows:
        with pytest.raises(UsageError, match="into one folder"):
            load_model(row.name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UsageError, match=f"model_type: expected .*{pico.model_type or pico.name}.* got 'llama'"):
        ModelRef.parse(str(tmp_path))
    with pytest.raises(UsageError, match="give the folder"):
        type(pico).load(ModelRef(pico.name, "mini"))
