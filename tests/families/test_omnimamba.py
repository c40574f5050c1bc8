"""OmniMamba beside the contract (test_contract.py): format, one sequence, tasks, the image table, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from safear_edit.cli.listing import listing
from safear_edit.construct.pairs import Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.editor.fine_tune import Tuning, adapter_weights, borrowed, inject
from safear_edit.errors import SafearError, UsageError
from safear_edit.families.base import Sampling
from safear_edit.families.layers import mamba
from safear_edit.families.layers.vit import DINO, HALVES, IMAGENET, SIGLIP, pixels, scaled
from safear_edit.families.load import load_model
from safear_edit.families.omnimamba import (
    ANSWERING,
    DRAWING,
    HEADS,
    PUBLISHED,
    SPECIAL,
    TABLE,
    Net,
    OmniMamba,
    Settings,
    Sizes,
    from_published,
    run,
    to_published,
    unread,
)
from safear_edit.families.reference import ModelRef
from safear_edit.families.tokens import token_logprobs
from safear_edit.progress import silent
from safear_edit.registry import families, methods
from tests.families.test_contract import GREEDY, PROMPTS, close, greedy_is_argmax, pictures


@pytest.fixture(scope="module")
def pico() -> OmniMamba:
    return OmniMamba.pico()


@pytest.fixture(scope="module")
def exported(pico: OmniMamba, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("exported")
    pico.export(made)
    return made


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(exported, tmp_path / "copy")


# -- the format -------------------------------------------------------------------------------------------------------


def names(model: OmniMamba, ids: list[int]) -> list[str]:
    return [model.words.tokenizer.id_to_token(i) for i in ids]


def test_prompts_are_the_published_ones(pico: OmniMamba) -> None:
    ids, mask = pico.prompt_ids(["a dog", "x" * 40, ""])
    assert ids.shape == (3, 28) and bool(mask.all())
    marks = ["<|t2i|>", "<|sot|>"]
    assert names(pico, ids[0].tolist())[:21] == marks + ["[PAD]"] * 19
    assert pico.words.tokenizer.decode(ids[0, 21:-2].tolist()) == "a dog"
    assert all(
        names(pico, row)[-2:] == ["<|eot|>", "<|soi|>"] and names(pico, row)[:2] == marks for row in ids.tolist()
    )
    assert names(pico, ids[1].tolist())[2:-2] == ["x"] * 24  # cut at the end
    assert names(pico, ids[2].tolist())[2:-2] == ["[PAD]"] * 24
    asked = names(pico, pico.question_ids("is it?"))
    assert asked[:2] == ["<|mmu|>", "<|soi|>"] and asked[2:18] == ["<|lvg|>"] * 16
    assert asked[18:20] == ["<|eoi|>", "<|sot|>"]
    assert pico.words.tokenizer.decode(pico.question_ids("is it?")[20:]) == "USER: is it? ASSISTANT:"


def test_added_tokens_follow_those_of_the_tokenizer_in_their_order(pico: OmniMamba) -> None:
    size = len(pico.words.tokenizer.get_vocab()) - len(SPECIAL)
    order = ["[PAD]", "<|soi|>", "<|eoi|>", "<|sot|>", "<|eot|>", "<|t2i|>", "<|mmu|>", "<|soc|>", "<|eoc|>", "<|lvg|>"]
    assert [pico.words.tokenizer.token_to_id(name) for name in order] == list(range(size, size + 10))
    assert b"<|soi|>" not in pico.files["tokenizer.json"]  # the file is the one that it was read from


def test_the_published_sizes_give_the_published_tensors() -> None:
    """Of 2 layers, and 3 blocks of each tower: the others have the same."""
    whole = Sizes()
    few = replace(whole, layers=2, dino=replace(whole.dino, depth=3), siglip=replace(whole.siglip, depth=3))
    with torch.device("meta"):
        net = Net(few)
    shapes = {to_published(name): tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    model = "llm_backbone.mamba.backbone."
    published = {
        f"{model}embedding.weight": (50288, 2048),
        f"{model}img_embeddings.word_embeddings.weight": (16384, 2048),
        f"{model}img_embeddings.project_in.projector.2.weight": (2048, 8192),
        f"{model}pos_embed": (1, 329, 2048),
        f"{model}mmu_pos_embed": (1, 1500, 2048),
        f"{model}caption_embed.cap_proj.fc2.weight": (2048, 2048),
        f"{model}layers.1.mixer.in_proj.weight": (8512, 2048),
        f"{model}layers.1.mixer.in_proj.t2i_lora_A0.weight": (8, 2048),
        f"{model}layers.1.mixer.in_proj.mmu_lora_B0.weight": (8512, 8),
        f"{model}layers.1.mixer.conv1d.weight": (4352, 1, 4),
        f"{model}layers.1.mixer.A_log": (64,),
        f"{model}layers.1.mixer.norm.weight": (4096,),
        f"{model}layers.1.norm.weight": (2048,),
        f"{model}norm_f.weight": (2048,),
        "llm_backbone.vqvae.quantize.embedding.weight": (16384, 8),
        "vision_backbone.dino_featurizer.reg_token": (1, 4, 1024),
        "vision_backbone.dino_featurizer.blocks.1.ls2.gamma": (1024,),
        "vision_backbone.siglip_featurizer.pos_embed": (1, 729, 1152),
        "vision_backbone.siglip_featurizer.blocks.1.mlp.fc1.weight": (4304, 1152),
        "projector.projector.0.weight": (8704, 2176),
        "projector.projector.4.bias": (2048,),
    }
    assert {name: shapes.get(name) for name in published} == published
    assert all(from_published(name) in net.state_dict() for name in shapes)
    skipped = unread(few)
    assert not any(skipped.match(name) for name in shapes)
    tower = "vision_backbone.siglip_featurizer."
    for name in (f"{tower}blocks.2.norm1.weight", f"{tower}attn_pool.latent", f"{tower}norm.bias"):
        assert skipped.match(name)
    assert skipped.match("llm_backbone.vqvae.quantize.codebook_used")
    assert 48 * sum(p.numel() for p in net.backbone.layers[0].parameters()) == pytest.approx(1.25e9, rel=0.03)
    assert (whole.layers, whole.dino.depth, whole.siglip.depth, whole.siglip.patches) == (48, 24, 27, 729)
    assert Settings().sampling == Sampling(1.0)


# -- drawing and scoring ----------------------------------------------------------------------------------------------


def test_sampling_reads_prompt_and_picture_as_one_sequence(pico: OmniMamba) -> None:
    """All of it in one pass over the whole sequence, by the layers alone: positions, captions, corrections."""
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4), GREEDY)
    back = pico.net.backbone
    with torch.no_grad():
        words = back.embedding(pico.prompt_ids(PROMPTS)[0])
        captions = back.caption_embed["cap_proj"].fc2(
            F.gelu(back.caption_embed["cap_proj"].fc1(words), approximate="tanh")
        )
        rows = back.img_embeddings.project_in(back.img_embeddings.word_embeddings(ids[:, :-1]))
        h = torch.cat([captions, rows], 1)
        states, _ = mamba.read(back, h + back.pos_embed[:, : h.shape[1]], None, "t2i")
        wanted = states[:, 27:] @ back.img_embeddings.word_embeddings.weight.T
        close(pico.logits(condition, ids), wanted)
    assert torch.equal(wanted.argmax(-1), ids) and wanted.std() > 0.3


def test_each_prompt_is_run_once_for_all_its_pictures(pico: OmniMamba, monkeypatch: pytest.MonkeyPatch) -> None:
    heights: list[tuple[str, int]] = []
    real_read, real_step = mamba.read, mamba.step

    def read(net: Any, h: Tensor, memory: Any, task: str | None) -> Any:
        heights.append(("read", len(h)))
        return real_read(net, h, memory, task)

    def step(net: Any, h: Tensor, memory: Any, task: str | None) -> Any:
        heights.append(("step", len(h)))
        return real_step(net, h, memory, task)

    monkeypatch.setattr(mamba, "read", read)
    monkeypatch.setattr(mamba, "step", step)
    pico.generate(pico.condition(PROMPTS), range(4), Sampling(1.0))
    assert set(heights) == {("read", 3), ("step", 4)}  # without guidance no unconditional rows
    heights.clear()
    pico.generate(pico.condition(PROMPTS), range(4), Sampling(3.0))
    assert set(heights) == {("read", 4), ("step", 8)}


def test_guidance_leads_from_the_null_prompt(pico: OmniMamba) -> None:
    condition = pico.condition(PROMPTS)
    plain = pico.generate(condition, range(4), Sampling(1.0))
    assert torch.equal(pico.generate(condition, range(4), Sampling(0.0)), plain)
    ids = pico.generate(condition, range(4), Sampling(4.0, top_k=1))
    with torch.no_grad():
        with_words = pico.logits(condition, ids)
        without = pico.logits(pico.condition(["A picture"] * 4), ids)
    assert torch.equal((without + 4 * (with_words - without)).argmax(-1), ids)
    assert not torch.equal(with_words.argmax(-1), ids)


def test_dropped_rows_have_the_null_prompt(pico: OmniMamba) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(4))
    with torch.no_grad():
        without = pico.logits(pico.dropped(condition, torch.ones(4, dtype=torch.bool)), ids)
        close(without, pico.logits(pico.condition(["A picture"] * 4), ids))


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_of_drawing_alone_reach_scoring_and_sampling_alike(pico: OmniMamba) -> None:
    before = pico.generate(pico.condition(PROMPTS), range(4))
    with borrowed(pico.net, ()):
        weights = adapter_weights(inject(pico.net, pico.editable("all+drawing"), Tuning(), seed=0))
        trained = {id(weight) for weight in weights.values()}
        assert {id(p) for p in pico.net.parameters() if p.requires_grad} == trained  # the model's own corrections rest
        for name, weight in weights.items():
            torch.nn.init.normal_(weight, std=0.1 if name.endswith("lora_B") else 1.0)
        assert greedy_is_argmax(pico)
    assert torch.equal(pico.generate(pico.condition(PROMPTS), range(4)), before)


def test_what_is_trained_for_drawing_alone_changes_no_answer(pico: OmniMamba) -> None:
    condition, asked = pico.condition(PROMPTS), ("is it?", ["yes", "n"])
    with torch.no_grad():
        ids = pico.generate(condition, range(4))
        logits, scores = pico.logits(condition, ids), pico.answer_logprobs(pictures(), *asked)
        with borrowed(pico.net):
            for name in pico.editable("drawing"):
                pico.net.get_submodule(name).weight.mul_(2)
            assert (pico.logits(condition, ids) - logits).abs().max() > 1e-2
            assert torch.equal(pico.answer_logprobs(pictures(), *asked), scores)
        with borrowed(pico.net):
            for name in pico.editable("all"):
                pico.net.get_submodule(name).weight.mul_(1.1)
            assert (pico.answer_logprobs(pictures(), *asked) - scores).abs().max() > 1e-2


def test_editable_parts_are_linear_layers(pico: OmniMamba) -> None:
    linear = {name for name, module in pico.net.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(pico.editable("all")) | set(pico.editable("drawing")) < linear
    assert pico.editable("all") == sorted(pico.editable("in_proj") + pico.editable("out_proj"))
    assert pico.editable("layers[1:2]") == ["backbone.layers.1.mixer.in_proj", "backbone.layers.1.mixer.out_proj"]
    assert len(pico.editable("drawing")) == 4 and not any("mmu" in name for name in pico.editable("drawing"))
    for wrong, named in (("attention", "in_proj"), ("layers[0:3]", r"layers\[0:2\]")):
        with pytest.raises(UsageError, match=named):
            pico.editable(wrong)


ADAPTERS = {"rank": 4, "alpha": 4, "warmup": 2, "steps": 8}
TABLES = {"directions": 2, "epochs": 4, "rounds": 1, "judge": "pinned", "fewest": 2}


@pytest.mark.parametrize(("name", "own"), [("vce", ADAPTERS), ("safe_cb", TABLES)])
def test_a_method_edits_it(name: str, own: dict[str, Any], pico: OmniMamba) -> None:
    """Adapters on its layers, and the image table by Safe-CB's projection; both leave the model as it was."""
    unsafe, safe = ([f"{thing} {by}" for thing in ("a dog", "a cat", "a car")] for by in ("by Picasso", "at night"))
    ids = [pico.generate(pico.condition(prompts), range(3)) for prompts in (unsafe, safe)]
    material = Material("Picasso", Pairs(unsafe, safe, [0, 1, 2], ids[0], ids[1], PairStats(3, 3, {})), None)
    before = {key: tensor.clone() for key, tensor in pico.net.state_dict().items()}
    kind = methods()[name].load()
    params = kind.Params(**{"batch": 3, "learning_rate": 0.02, **own})
    edit = kind().fit(pico, material, params, seed=1, progress=silent, checkpoint=None)
    assert edit.info.losses[-1] < edit.info.losses[0]
    assert (edit.weights == [TABLE]) if name == "safe_cb" else (edit.modules == pico.editable("all"))
    with edit.apply(pico.net):
        assert not torch.equal(pico.generate(pico.condition(unsafe), range(3)), ids[0])
    assert all(torch.equal(before[key], tensor) for key, tensor in pico.net.state_dict().items())


# -- images ---------------------------------------------------------------------------------------------------------


# -- questions --------------------------------------------------------------------------------------------------------


def test_questions_that_cannot_be_asked(pico: OmniMamba) -> None:
    with pytest.raises(UsageError, match="stands for the image"):
        pico.answer(pictures(), "is <|lvg|> it?")
    with pytest.raises(UsageError, match="question: expected at most 160 tokens"):
        pico.answer(pictures(), "really? " * 30)


@torch.no_grad()
def test_answers_are_what_one_pass_over_question_and_reply_says(pico: OmniMamba) -> None:
    back, ids = pico.net.backbone, pico.question_ids("what is it?")
    towers, shown = pico.net.vision_backbone, pixels(pictures(), 30)
    dino = towers[DINO].forward_features(scaled(shown, *IMAGENET))[:, 3:]  # a class token and two registers come first
    siglip = towers[SIGLIP].forward_features(scaled(shown, *HALVES))
    seen = pico.net.projector(torch.cat([dino, siglip], 2))
    said = torch.empty(3, 0, dtype=torch.int64)
    for _ in range(6):
        words = back.embedding(torch.cat([torch.tensor(ids[18:]).expand(3, -1), said], 1))
        h = torch.cat([back.embedding(torch.tensor(ids[:2])).expand(3, -1, -1), seen, words], 1)
        states, _ = mamba.read(back, h + back.mmu_pos_embed[:, : h.shape[1]], None, "mmu")
        logits = states[:, -said.shape[1] - 1 :] @ back.embedding.weight.T
        said = torch.cat([said, logits[:, -1:].argmax(-1)], 1)
    replies = pico.answer(pictures(), "what is it?", limit=6)
    assert replies == [pico.words.decode(pico._until_end(row)) for row in said.tolist()]
    reply = torch.tensor(pico.reply_ids("yes")).expand(3, -1)
    words = torch.cat([torch.tensor(ids[18:]).expand(3, -1), reply], 1)
    h = torch.cat([back.embedding(torch.tensor(ids[:2])).expand(3, -1, -1), seen, back.embedding(words)], 1)
    states, _ = mamba.read(back, h + back.mmu_pos_embed[:, : h.shape[1]], None, "mmu")
    logits = states[:, -reply.shape[1] - 1 : -1] @ back.embedding.weight.T
    close(pico.answer_logprobs(pictures(), "what is it?", ["yes"])[:, 0], token_logprobs(logits, reply).sum(1))


@torch.no_grad()
def test_the_tasks_differ(pico: OmniMamba) -> None:
    h = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(run(pico.net, DRAWING, h)[0], run(pico.net, ANSWERING, h)[0], atol=1e-2)


def test_answers_can_be_trained(pico: OmniMamba) -> None:
    with borrowed(pico.net, ()):
        weights = adapter_weights(inject(pico.net, pico.editable("out_proj"), Tuning(), seed=0))
        pico.answer_logprobs(pictures(), "is it?", ["yes"]).sum().backward()
        assert all(w.grad is not None and w.grad.norm() > 0 for n, w in weights.items() if n.endswith("lora_B"))


# -- the codebook -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_table(pico: OmniMamba) -> Iterator[Tensor]:
    yield pico.image_table().detach().clone()
    pico.set_image_table(None)


def test_the_table_holds_what_the_published_modules_give(pico: OmniMamba, own_table: Tensor) -> None:
    rows = pico.net.backbone.img_embeddings
    with torch.no_grad():
        close(own_table, rows.project_in(rows.word_embeddings(torch.arange(64))), 1e-6)
    assert torch.equal(pico.net.state_dict()[TABLE], own_table) and pico.table_name == TABLE


def test_pictures_asked_about_are_seen_by_towers_not_read_from_the_table(pico: OmniMamba, own_table: Tensor) -> None:
    with torch.no_grad():
        asked = pico.answer_logprobs(pictures(), "is it?", ["y"])
        pico.set_image_table(own_table + 3)
        assert torch.equal(pico.answer_logprobs(pictures(), "is it?", ["y"]), asked)


def test_the_published_layout_has_no_place_for_a_replaced_table(
    pico: OmniMamba, own_table: Tensor, tmp_path: Path
) -> None:
    pico.set_image_table(own_table + 0.5)
    with pytest.raises(UsageError, match="an edited one"):
        pico.export(tmp_path, "upstream")


# -- files ------------------------------------------------------------------------------------------------------------


def same(again: Any, pico: OmniMamba) -> None:
    assert isinstance(again, OmniMamba)
    assert again.sampling == pico.sampling and again.card.tokens == pico.card.tokens
    ids = pico.generate(pico.condition(PROMPTS), range(4))
    assert torch.equal(again.generate(again.condition(PROMPTS), range(4)), ids)
    assert torch.equal(again.decode(ids), pico.decode(ids))
    assert torch.equal(again.encode(pictures()), pico.encode(pictures()))
    assert again.answer(pictures(), "what?", limit=6) == pico.answer(pictures(), "what?", limit=6)


def test_saved_and_loaded_it_is_the_same(pico: OmniMamba, folder: Path) -> None:
    ref = ModelRef.parse(str(folder))
    assert (ref.family, ref.variant) == ("omnimamba", "pico")
    again = load_model(str(folder))
    assert set(again.card.files) == {"model.safetensors"}
    same(again, pico)
    weights = load_file(folder / "model.safetensors")
    assert TABLE not in weights and not any(name in HEADS for name in weights)
    assert "llm_backbone.mamba.backbone.layers.0.mixer.in_proj.t2i_lora_A0.weight" in weights


def test_the_published_file_is_read_and_given_back_whole(pico: OmniMamba, folder: Path, tmp_path: Path) -> None:
    """Heads that repeat the embeddings, and tensors that nothing reads, as a pickle."""
    weights = load_file(folder / "model.safetensors")
    weights.update({head: weights[rows] for head, rows in HEADS.items()})
    weights["llm_backbone.vqvae.quantize.codebook_used"] = torch.zeros(65536)
    weights["vision_backbone.dino_featurizer.blocks.2.norm1.weight"] = torch.ones(32)
    weights["vision_backbone.siglip_featurizer.attn_pool.q.weight"] = torch.ones(32, 32)
    torch.save(weights, folder / PUBLISHED)
    (folder / "model.safetensors").unlink()
    model = OmniMamba.load(ModelRef("omnimamba", "1.3b", folder))
    same(model, pico)
    assert set(model.card.files) == {PUBLISHED}
    out = tmp_path / "out"
    out.mkdir()
    model.export(out, "upstream")
    again = torch.load(out / PUBLISHED, weights_only=True)
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)
    assert ModelRef.parse(str(out)).variant == "1.3b"


def test_heads_are_the_embeddings(pico: OmniMamba, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for head, rows in HEADS.items():
        other = {name: tensor for name, tensor in weights.items() if name != rows}
        save_file({**other, head: weights[rows]}, folder / "model.safetensors", {"format": "pt"})
        found = load_model(str(folder)).net.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in pico.net.state_dict().items())
        save_file({**weights, head: weights[rows] + 1}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UsageError, match=r"head.*the published code ties them"):
            load_model(str(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_and_answers(pico: OmniMamba, folder: Path, dtype: torch.dtype) -> None:
    half = OmniMamba.load(ModelRef.parse(str(folder)), dtype=dtype)
    condition = half.condition(PROMPTS)
    assert condition.features.dtype == half.image_table().dtype == dtype
    ids = half.generate(condition, range(4))
    with torch.no_grad():
        found, exact = half.logits(condition, ids), pico.logits(pico.condition(PROMPTS), ids)
    assert found.dtype == torch.float32 and (found - exact).norm() / exact.norm() < 0.1
    assert torch.equal(half.encode(pictures()), pico.encode(pictures()))  # the tokenizer keeps its precision
    assert torch.equal(half.decode(ids), pico.decode(ids)) and len(half.answer(pictures(), "what?", limit=2)) == 3


def _no_end(data: dict[str, Any]) -> None:
    data["added_tokens"] = []


def _more(kind: str, size: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        (data["sizes"][kind] if kind else data["sizes"])[size] = value

    return change


@pytest.mark.parametrize(
    ("file", "change", "where"),
    [
        ("tokenizer.json", _no_end, "gpt-neox-20b"),
        ("safear.json", lambda d: d.update(variants="x"), "variants"),
        ("safear.json", lambda d: d["sampling"].update(guidance="strong"), "sampling.guidance"),
        ("safear.json", lambda d: d["template"].update(ask="no place for words"), "template.ask"),
        ("safear.json", lambda d: d["template"].update(draw="no place for words"), "template.draw"),
        ("safear.json", _more("", "layers", 3), "missing"),
        ("safear.json", _more("", "vocabulary", 9), "special ids below 9"),
        ("safear.json", _more("", "tokens", 17), "a square of image tokens"),
        ("safear.json", _more("mamba", "head", 24), "whole heads"),
        ("safear.json", _more("mamba", "head", 0), "positive sizes"),
        ("safear.json", _more("mamba", "width", -8), "positive sizes"),
        ("safear.json", _more("mamba", "state", 8), "misfit"),
        ("safear.json", _more("dino", "patch", 9), "as many patches"),
        ("safear.json", _more("siglip", "depth", 4), "missing"),
        ("safear.json", _more("siglip", "depth", 1), "two blocks or more"),
        ("safear.json", _more("", "layers", 0), "positive sizes"),
        ("safear.json", _more("vq", "ch", 33), "multiples of 32"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(
    folder: Path, file: str, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UsageError) as caught:
        OmniMamba.load(ModelRef("omnimamba", "pico", folder))
    assert where in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_missing_and_damaged_files_are_refused(folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    for bad in (content[:-100], None):
        (folder / file).unlink() if bad is None else (folder / file).write_bytes(bad)
        with pytest.raises(SafearError) as caught:
            OmniMamba.load(ModelRef("omnimamba", "pico", folder))
        assert caught.value.exit_code in (2, 4) and "\n" not in str(caught.value)


def test_it_is_found_by_its_file_and_comes_without_weights(tmp_path: Path) -> None:
    entry = families()["omnimamba"]
    assert entry.load() is OmniMamba and entry.summary.startswith("OmniMamba: Mamba-2 that draws")
    with pytest.raises(UsageError, match="give the folder"):
        OmniMamba.load(ModelRef("omnimamba", "mini"))
    rows = [row for row in listing("models") if row.name.startswith("omnimamba:")]
    assert [row.source for row in rows] == [f"a folder with {PUBLISHED} and tokenizer.json"]
    with pytest.raises(UsageError, match="into one folder"):
        load_model("omnimamba:1.3b")
    for name in (PUBLISHED, "tokenizer.json"):
        (tmp_path / name).touch()
    assert ModelRef.parse(str(tmp_path)) == ModelRef("omnimamba", "1.3b", tmp_path)
