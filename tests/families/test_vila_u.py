"""VILA-U, whose tokens have a depth, against numbers recorded from the published program.

goldens/vila_u/drawn.safetensors was recorded by github.com/mit-han-lab/vila-u (VILAULlamaModel.generate_image_content,
encode_images, generate_content, in float32) from the folder that `recorded` exports, with this package's random numbers
in place of torch.multinomial; tokens.json by its slow tokenizer from goldens/vila_u/tokenizer.model.
"""

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

import tests
from safear_edit.construct.pairs import Keep, Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.errors import SafearError, UsageError
from safear_edit.evaluate.cartography import token_groups
from safear_edit.evaluate.likelihood import token_blocks
from safear_edit.families.base import Sampling
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.families.sampling import inverse_cdf, uniforms
from safear_edit.families.vila_u import (
    LLM,
    PICO,
    SPECIAL,
    TOWER,
    VilaU,
    VilaUSettings,
    build,
    sample_places,
    vocabulary,
)
from safear_edit.methods.ear import EAR
from safear_edit.methods.safe_cb import SafeCB
from safear_edit.progress import silent
from tests.families.test_contract import PROMPTS, close, pictures

GOLDENS = tests.GOLDENS / "vila_u"


@pytest.fixture(scope="module")
def pico() -> VilaU:
    return VilaU.pico()


@pytest.fixture(scope="module")
def exported(pico: VilaU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("exported")
    pico.export(made)
    return made


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(exported, tmp_path / "copy")


def load(folder: Path, **options: Any) -> VilaU:
    return VilaU.load(ModelRef("vila_u", "pico", folder), **options)


# -- against the published program ------------------------------------------------------------------------------------


def mixed(count: int, stream: int) -> Tensor:
    """Numbers in [0, 1) by whole arithmetic: the same on every machine and in every release of torch."""
    x = torch.arange(count) + stream * 7919 * 65537
    for _ in range(3):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x.double() / 2**32


@torch.no_grad()
def recorded() -> VilaU:
    """The model that the goldens were recorded on: weights by arithmetic, the tokenizer of goldens/."""
    configs: dict[str, Any] = json.loads(json.dumps(dict(PICO)))
    configs[LLM] |= {"vocab_size": 702, "rope_scaling": {"type": "linear", "factor": 2.0}}
    added = json.dumps({"<im_start>": 700, "<im_end>": 701}).encode()
    model = (GOLDENS / "tokenizer.model").read_bytes()
    files = {f"{LLM}/tokenizer.model": model, f"{LLM}/added_tokens.json": added}
    files |= {f"{part}/config.json".lstrip("/"): json.dumps(config).encode() for part, config in configs.items()}
    net = build(configs, torch.float32, "recorded")
    for stream, (name, tensor) in enumerate(sorted(net.state_dict().items())):
        spread = 1.0 if "embed_tokens" in name or "codebooks" in name else 0.15 if tensor.dim() > 1 else 0.05
        noise = (mixed(tensor.numel(), stream).view(tensor.shape) - 0.5) * 12**0.5 * spread
        tensor.copy_(noise + float("norm" in name and name.endswith("weight") and tensor.dim() == 1))
    net.lm_head.weight[[2, 700, 701]] = 0  # so that the published loop's unused word neither ends it nor is read
    net.get_submodule("image_tokens").weight.copy_(net.model.vision_tower.rqvaesiglip.codebook)
    return VilaU(net, vocabulary(files, "recorded"), files, VilaUSettings(), "recorded", "recorded")


def test_the_published_programs_numbers() -> None:
    model, golden = recorded(), load_file(GOLDENS / "drawn.safetensors")
    codes = model.encode(pictures())
    assert torch.equal(codes, golden["codes"].flatten(1)) and len(codes.unique()) > 10
    with torch.no_grad():
        close(model.tokenizer.decode(golden["codes"]), golden["decoded"])
        close(model.seen(pictures()), golden["seen"])
    condition, sampling = model.condition(["a dog in the snow"] * 2), Sampling(3.0, top_k=40, top_p=0.96)
    read, which, without = model.read(condition, True)
    logits, draws = list[Tensor](), uniforms([5, 6], 64)
    ids = sample_places(model, read, which, without, sampling, inverse_cdf(draws), keep_logits=logits)
    assert torch.equal(ids, golden["ids"]) and len(ids.unique()) > 10
    close(torch.stack(logits, 1), golden["logits"])
    assert torch.equal(model.generate(condition, [5, 6], sampling), ids)
    every = torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        with_words, alone = model.logits(condition, ids), model.logits(model.dropped(condition, every), ids)
        close(alone + 3 * (with_words - alone), golden["logits"])
        wordless, plain = model.dropped(condition, every).rows(torch.tensor([0])), Sampling(1.0)
        assert torch.equal(model.generate(model.condition([""]), [5], plain), model.generate(wordless, [5], plain))
    replies = [model.words.decode(row) for row in golden["answers"].tolist()]
    assert model.answer(pictures(), "what is it?", limit=8) == replies and len(set(replies)) > 1


def test_prompts_are_the_published_ones() -> None:
    model = recorded()
    golden = json.loads((GOLDENS / "prompts.json").read_text())
    assert model.drawing_ids("a dog in the snow") == golden["drawing"]
    assert model.drawing_ids(None) == model.drawing_ids("  ") == golden["unconditional"]
    assert model.question_ids("what is it?") == golden["before"] + [model.words.image] * 16 + golden["after"]
    assert VilaUSettings().sampling == Sampling(3.0, temperature=1.0, top_k=900, top_p=0.96)


# -- drawing and scoring ----------------------------------------------------------------------------------------------


def test_hidden_states_are_read_inside_a_place_too(pico: VilaU) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4))
    with torch.no_grad():
        whole = pico.logits(condition, ids)
        for length in (3, 4, 18):
            close(pico.image_logits(pico.hidden(condition, ids[:, :length])), whole[:, :length])


def test_a_code_is_read_by_the_codes_after_it(pico: VilaU) -> None:
    condition = pico.condition(PROMPTS[:1])
    ids = pico.generate(condition, [0])
    with torch.no_grad():
        before = pico.logits(condition, ids)
        for position in (0, 2, 3, 21):
            changed = ids.clone()
            changed[0, position] = (changed[0, position] + 1) % 64
            moved = (pico.logits(condition, changed) - before).abs().amax(-1)[0]
            assert moved[: position + 1].max() < 1e-4 and moved[position + 1 :].min() > 1e-5


def test_without_guidance_no_unconditional_rows_are_run(pico: VilaU) -> None:
    condition = pico.condition(PROMPTS[:2])
    plain, strong = (pico.generate(condition, [1, 2], Sampling(s)) for s in (1.0, 2.0))
    assert not torch.equal(plain, strong)
    rows = list[int]()
    hook = pico.depth_transformer.in_mlp_2.register_forward_hook(lambda _, read, __: rows.append(len(read[0])))
    assert torch.equal(pico.generate(condition, [1, 2], Sampling(0.0)), plain)
    assert torch.equal(pico.generate(condition, [1, 2], Sampling(2.0)), strong)
    hook.remove()
    assert rows == [2] * 16 + [4] * 16


def test_dropped_rows_have_the_unconditional_prompt(pico: VilaU) -> None:
    ids = pico.generate(pico.condition(PROMPTS), range(4))[:1]
    first, other = (
        pico.dropped(pico.condition([prompt]), torch.tensor([True]))
        for prompt in (PROMPTS[0], "something else entirely")
    )
    with torch.no_grad():
        close(pico.logits(first, ids), pico.logits(other, ids))


def test_editable_parts_are_linear_layers(pico: VilaU) -> None:
    linear = {name for name, module in pico.net.named_modules() if isinstance(module, torch.nn.Linear)}
    edited = {name for name in linear if "rqvaesiglip" not in name and name != "lm_head"}
    assert set(pico.editable("all")) == edited and len(pico.editable("attention")) == 8
    assert all("rqtransformer" in name for name in pico.editable("depth")) and len(pico.editable("depth")) == 15
    assert set(pico.editable("layers[1:2]")) == {name for name in edited if name.startswith("model.layers.1.")}
    for wrong, named in (("head", "depth, projector"), ("layers[0:3]", r"layers\[0:2\]")):
        with pytest.raises(UsageError, match=named):
            pico.editable(wrong)


# -- images and questions -------------------------------------------------------------------------------------------


def test_a_place_is_the_sum_of_its_codes_rows(pico: VilaU) -> None:
    ids = pico.encode(pictures())
    swapped = ids.unflatten(1, (16, 4)).flip(2).flatten(1)
    close(pico.decode(swapped).float(), pico.decode(ids).float(), 1.0)


def test_the_token_of_the_picture_is_no_word(pico: VilaU) -> None:
    for text in ("is <image> it?", f"is {SPECIAL['image']} it?"):
        with pytest.raises(UsageError, match="stands for the image"):
            pico.answer(pictures(), text)


# -- the codebook -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_table(pico: VilaU) -> Iterator[Tensor]:
    yield pico.image_table().detach().clone()
    pico.set_image_table(None)


def test_pictures_asked_about_are_read_from_the_replaced_table(pico: VilaU, own_table: Tensor) -> None:
    seen, changed = pico.encode(pictures()), own_table.clone()
    changed[seen[0, 0]] -= 1
    with torch.no_grad():
        asked = pico.answer_logprobs(pictures(), "is it?", ["y"])
        pico.set_image_table(changed)
        assert (pico.answer_logprobs(pictures(), "is it?", ["y"]) - asked)[0].abs() > 1e-3


# -- methods ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def material(pico: VilaU) -> Material:
    subjects = ["a house", "a dog at night", "a fish", "a cat"]
    texts = [[f"{s} by Picasso" for s in subjects], [f"a photo of {s}" for s in subjects]]
    ids = [pico.generate(pico.condition(prompts), range(4)) for prompts in texts]
    pairs = Pairs(texts[0], texts[1], list(range(4)), ids[0], ids[1], PairStats(4, 4, {}))
    return Material("Picasso", pairs, Keep(texts[1], ids[1]))


def test_methods_that_train_layers_take_codes_for_tokens(pico: VilaU, material: Material) -> None:
    little = {"steps": 2, "batch": 2, "warmup": 1, "rank": 2, "alpha": 2, "window": 24}
    edit = EAR().fit(pico, material, EAR.Params.model_validate(little), seed=1, progress=silent)
    assert set(edit.modules) == set(pico.editable("all"))
    ids, prompts = material.pairs.unsafe_ids, list(material.pairs.unsafe)
    with torch.no_grad():
        before = pico.logits(pico.condition(prompts), ids)
        with edit.apply(pico.net):
            assert not torch.allclose(pico.logits(pico.condition(prompts), ids), before, atol=1e-4)
        assert torch.equal(pico.logits(pico.condition(prompts), ids), before)


def test_safe_cb_edits_the_rows_that_feed_codes_back(pico: VilaU, material: Material, own_table: Tensor) -> None:
    params = {"directions": 2, "epochs": 1, "batch": 2, "rounds": 1, "fewest": 1, "probe": 1, "judge": "pinned"}
    edit = SafeCB().fit(pico, material, SafeCB.Params.model_validate(params), seed=1, progress=silent)
    assert edit.weights == [pico.table_name] and edit.delta(pico.table_name).abs().max() > 1e-3
    assert torch.equal(pico.net.get_submodule("image_tokens").weight, own_table)


# -- files ------------------------------------------------------------------------------------------------------------


def test_its_weights_lie_in_three_folders(pico: VilaU, folder: Path) -> None:
    assert set(load(folder).card.files) == {
        f"{part}/model.safetensors" for part in ("llm", "vision_tower", "mm_projector")
    }
    (folder / "safear.json").unlink()  # as published
    assert load(folder).sampling == VilaUSettings().sampling


def test_a_folder_says_by_itself_what_it_is(folder: Path) -> None:
    assert load_model(str(folder)).card.ref == "vila_u:pico"
    (folder / "safear.json").unlink()  # as published
    ref = ModelRef.parse(str(folder))
    assert (ref.family, ref.variant) == ("vila_u", folder.name)
    with pytest.raises(UsageError, match="into one folder"):
        load_model("vila_u:7b-256")


def test_a_row_of_a_picture_is_all_codes_of_its_places(pico: VilaU) -> None:
    assert token_groups(pico) == [(f"row {i}", 16) for i in range(4)]
    assert token_blocks(pico.card) == [slice(i, i + 16) for i in range(0, 64, 16)]


def test_transformers_loads_the_language_model(pico: VilaU, folder: Path) -> None:
    from transformers import LlamaForCausalLM

    net, report = LlamaForCausalLM.from_pretrained(folder / "llm", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    own = pico.net.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items())


def as_published(folder: Path) -> dict[str, Tensor]:
    """What the release's tower has beside what is read: codebook aliases, training's buffers, the text tower."""
    weights = load_file(folder / TOWER / "model.safetensors")
    first = weights["rqvaesiglip.quantizer.codebooks.0.weight"]
    vision = "rqvaesiglip.siglip_model.vision_model"
    extra = {f"rqvaesiglip.quantizer.codebooks.{i}.embed_ema": first[:-1].clone() for i in range(4)}
    extra |= {f"rqvaesiglip.quantizer.codebooks.{i}.weight": first.clone() for i in range(1, 4)}
    extra |= {"rqvaesiglip.logit_scale": torch.zeros(1), "rqvaesiglip.siglip_model.text_model.x": torch.zeros(1)}
    extra |= {f"{vision}.{name}.weight": torch.zeros(1) for name in ("head.probe", "post_layernorm")}
    extra |= {f"{vision}.encoder.layers.2.mlp.fc1.weight": torch.zeros(1)}
    return {**weights, **extra}


def test_what_only_training_read_is_left_out(pico: VilaU, folder: Path) -> None:
    weights = as_published(folder)
    save_file(weights, folder / TOWER / "model.safetensors", {"format": "pt"})
    assert torch.equal(load(folder).encode(pictures()), pico.encode(pictures()))
    weights["rqvaesiglip.quantizer.codebooks.2.weight"] += 1
    save_file(weights, folder / TOWER / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="one codebook for all depths"):
        load(folder)


def test_half_precision_draws_and_sees_the_same_codes(pico: VilaU, folder: Path) -> None:
    half = load(folder, dtype=torch.bfloat16)
    condition = half.condition(PROMPTS)
    ids = half.generate(condition, range(4))
    with torch.no_grad():
        found, exact = half.logits(condition, ids), pico.logits(pico.condition(PROMPTS), ids)
    assert found.dtype == torch.float32 and (found - exact).norm() / exact.norm() < 0.1
    assert half.image_table().dtype == torch.bfloat16
    assert torch.equal(half.encode(pictures()), pico.encode(pictures()))  # the tokenizer keeps its precision
    assert torch.equal(half.decode(ids), pico.decode(ids)) and len(half.answer(pictures(), "what?", limit=2)) == 3


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("file", "change", "where"),
    [
        ("config.json", lambda d: d.update(model_type="llava"), "model_type"),
        ("llm/config.json", lambda d: d.update(hidden_size="wide"), "configuration"),
        ("llm/config.json", lambda d: d.update(num_hidden_layers=3), "missing"),
        ("llm/config.json", lambda d: d.update(hidden_size=128), "reads the language model"),
        ("llm/tokenizer.json", lambda d: d["added_tokens"].pop(0), "the tokens"),
        ("vision_tower/config.json", lambda d: d["rqvaesiglip"].update(shared_codebook=False), "one codebook"),
        ("vision_tower/config.json", lambda d: d["rqvaesiglip"].update(code_shape=[4, 4, 3]), "the image's codes"),
        ("vision_tower/config.json", lambda d: d["rqvaesiglip"].update(code_shape=[3, 3, 4]), "square of places"),
        ("vision_tower/config.json", lambda d: d["rqvaesiglip"].update(decoder_latent_shape=[8, 8]), "one size"),
        (
            "vision_tower/config.json",
            lambda d: d["rqvaesiglip"].update(siglip_vision_config=None, pretrained_model="?"),
            "KeyError",
        ),
        ("vision_tower/config.json", lambda d: d.pop("rqtransformer"), "configuration"),
        ("mm_projector/config.json", lambda d: d.update(mm_projector_type="resampler"), "mlp2x_gelu"),
        ("mm_projector/config.json", lambda d: d.update(mm_projector_type="mlp3x_gelu"), "missing"),
        ("safear.json", lambda d: d["template"].update(ask="no place"), "template.ask"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(folder: Path, file: str, change: Change, where: str) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UsageError) as caught:
        load(folder)
    assert where in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["llm/model.safetensors", "llm/tokenizer.json", "vision_tower/config.json"])
def test_missing_and_damaged_files_are_refused(folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    for bad in (content[:-100], None):
        (folder / file).unlink() if bad is None else (folder / file).write_bytes(bad)
        with pytest.raises(SafearError) as caught:
            load(folder)
        assert caught.value.exit_code in (2, 4) and "\n" not in str(caught.value)


def test_no_weights_come_with_the_package() -> None:
    with pytest.raises(UsageError, match="give the folder"):
        VilaU.load(ModelRef("vila_u", "mini"))
