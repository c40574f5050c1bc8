"""What Emu3, Chameleon and Liquid share beside the contract (test_contract.py): format, table, files."""

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

from safear_edit.cli.listing import listing
from safear_edit.errors import SafearError, UsageError
from safear_edit.families.chameleon import Chameleon
from safear_edit.families.emu3 import Emu3
from safear_edit.families.liquid import Liquid
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.families.unified import EarlyFusion
from tests.families.test_contract import PROMPTS, close, pictures


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


# -- drawing and scoring ----------------------------------------------------------------------------------------------


def test_dropped_rows_have_the_unconditional_prompt(pico: EarlyFusion) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4))
    with torch.no_grad():
        mixed = pico.logits(pico.dropped(condition, torch.tensor([True, False, False, True])), ids)
        prompt, _ = pico.prompt_ids([None])
        whole = pico.dropped(pico.condition(["something else entirely"]), torch.tensor([True]))
        close(mixed[:1], pico.logits(whole, ids[:1]))
        last = pico.transformer(inputs_embeds=pico.net.get_input_embeddings()(prompt)).last_hidden_state[:, -1]
        close(mixed[3, 0], pico.image_logits(last)[0])


def test_editable_parts_are_linear_layers(pico: EarlyFusion) -> None:
    linear = {name for name, module in pico.net.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = {name for name in linear if name.startswith(f"{pico.layers_at}layers.")}
    assert set(pico.editable("all")) == inside and len(pico.editable("attention")) == 8
    assert set(pico.editable("layers[1:2]")) == {name for name in inside if ".1." in name}
    for wrong, named in (("head", "attention"), ("layers[0:3]", r"layers\[0:2\]")):
        with pytest.raises(UsageError, match=named):
            pico.editable(wrong)


# -- images ---------------------------------------------------------------------------------------------------------


# -- questions --------------------------------------------------------------------------------------------------------


def test_the_token_of_the_picture_is_no_word(pico: EarlyFusion) -> None:
    with pytest.raises(UsageError, match="stands for the image"):
        pico.answer(pictures(), f"is {pico.special['image']} it?")


# -- the codebook -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_table(pico: EarlyFusion) -> Iterator[Tensor]:
    yield pico.image_table().detach().clone()
    pico.set_image_table(None)


def test_pictures_asked_about_are_read_from_the_replaced_table(pico: EarlyFusion, own_table: Tensor) -> None:
    seen, changed = pico.encode(pictures()), own_table.clone()
    changed[seen[0, 0]] -= 3
    with torch.no_grad():
        asked = pico.answer_logprobs(pictures(), "is it?", ["y"])
        pico.set_image_table(changed)
        assert (pico.answer_logprobs(pictures(), "is it?", ["y"]) - asked)[0].abs() > 1e-3


def test_a_replaced_table_travels_where_the_published_layout_has_it(
    pico: EarlyFusion, own_table: Tensor, tmp_path: Path
) -> None:
    pico.set_image_table(own_table + 0.5)
    pico.export(tmp_path)
    replies = pico.answer(pictures(), "what?", limit=6)
    again = load_model(str(tmp_path))
    rows = again.net.get_input_embeddings().weight[pico.net.image_places]
    assert torch.equal(rows, own_table + 0.5) and again.answer(pictures(), "what?", limit=6) == replies


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


def test_a_published_folder_is_known_by_its_config(pico: EarlyFusion, folder: Path) -> None:
    assert set(load_model(str(folder)).card.files) == {f.name for f in folder.glob("*.safetensors")}
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
    with pytest.raises(UsageError, match=f"model_type: expected .*{pico.model_types[0]}.* got 'llama'"):
        ModelRef.parse(str(tmp_path))
    with pytest.raises(UsageError, match="give the folder"):
        type(pico).load(ModelRef(pico.name, "mini"))
