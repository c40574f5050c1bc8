"""Liquid against transformers' own Gemma, loaded from what is exported; what it shares is in test_unified.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GemmaForCausalLM

from safear_edit.errors import SafearError, UsageError
from safear_edit.families.base import Sampling
from safear_edit.families.liquid import SIZES, Liquid, LiquidSettings, read_sizes, written_sizes
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.families.tokens import token_logprobs

PROMPTS = ["a house by Picasso", "a dog", "a cat in the snow"]


@pytest.fixture(scope="module")
def pico() -> Liquid:
    """With norms that are not 1: Gemma's weights are what is added to it."""
    model = Liquid.pico()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in model.net.model.named_parameters():
            if "norm" in name and "vqmodel" not in name:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def exported(pico: Liquid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("exported")
    pico.export(made)
    return made


@pytest.fixture(scope="module")
def published(exported: Path) -> Any:
    """The network as transformers alone loads it: no tokenizer of images, no table of ours."""
    net, report = GemmaForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return net.eval()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


# -- format -----------------------------------------------------------------------------------------------------------


def test_prompts_are_the_published_ones(pico: Liquid) -> None:
    def names(ids: list[int]) -> list[str]:
        return [pico.words.tokenizer.id_to_token(i) for i in ids]

    ids = pico.drawing_ids("a dog")
    assert names(ids)[0] == "<bos>" and names(ids)[-1] == "<boi>"
    assert pico.words.tokenizer.decode(ids[1:-1]) == "a dog Generate an image based on this description."
    assert names(pico.drawing_ids(None)) == ["<bos>", "<unconditional>", "<boi>"]
    asked = pico.question_ids("what?")
    said = pico.words.tokenizer.decode(asked, skip_special_tokens=False).replace("<unused3>", "")
    assert said == "<bos><start_of_turn>user\n<boi><eoi>\nwhat?<end_of_turn>\n<start_of_turn>model\n"
    assert asked.count(pico.words.image) == pico.card.tokens
    assert LiquidSettings().sampling == Sampling(7.0, temperature=0.99, top_k=4096, top_p=0.96)


def test_codes_follow_the_words(pico: Liquid) -> None:
    words = pico.words.tokenizer.get_vocab_size()
    assert pico.net.image_places.tolist() == list(range(words, words + 64))
    assert pico.net.config.vocab_size == words + 64


# -- against transformers ---------------------------------------------------------------------------------------------


def test_logits_are_those_of_transformers_over_the_same_ids(pico: Liquid, published: Any) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(3), Sampling(1.0, top_k=1))
    prompt, mask = pico.prompt_ids(PROMPTS)
    assert not mask.all()  # left-padded, so that the mask matters
    whole = torch.cat([prompt, pico.net.image_places[ids]], 1)
    seen = torch.cat([mask, torch.ones_like(ids).bool()], 1)
    with torch.no_grad():
        wanted = published(input_ids=whole, attention_mask=seen.long()).logits[:, prompt.shape[1] - 1 : -1]
        found = pico.logits(condition, ids)
    torch.testing.assert_close(found, wanted[..., pico.net.image_places], rtol=0, atol=1e-4)
    assert torch.equal(found.argmax(-1), ids)  # so the sampler's layers are transformers' too


def test_guided_pictures_are_those_of_the_published_loop(pico: Liquid, published: Any) -> None:
    prompt, mask = pico.prompt_ids([*PROMPTS, None, None, None])
    words, drawn = pico.words.tokenizer.get_vocab_size(), list[Tensor]()
    for _ in range(pico.card.tokens):
        with torch.no_grad():
            logits = published(input_ids=prompt, attention_mask=mask.long()).logits[:, -1]
        with_words, without = logits.chunk(2)
        guided = without + (with_words - without) * 7.0
        guided[:, :words] = -torch.inf
        drawn.append(guided.argmax(-1))
        prompt = torch.cat([prompt, drawn[-1].repeat(2).unsqueeze(1)], 1)
        mask = torch.cat([mask, torch.ones(6, 1, dtype=torch.bool)], 1)
    found = pico.generate(pico.condition(PROMPTS), range(3), Sampling(7.0, top_k=1))
    assert torch.equal(found + words, torch.stack(drawn, 1))
    assert not torch.equal(found, pico.generate(pico.condition(PROMPTS), range(3), Sampling(1.0, top_k=1)))


def test_answers_are_what_transformers_generates_and_scores(pico: Liquid, published: Any, pictures: Tensor) -> None:
    asked = torch.tensor(pico.question_ids("what is it?")).expand(len(pictures), -1).clone()
    asked[asked == pico.words.image] = pico.net.image_places[pico.encode(pictures)].flatten()
    rules = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": pico.words.eos, "pad_token_id": pico.words.pad}
    said = published.generate(input_ids=asked, attention_mask=torch.ones_like(asked), **rules)
    replies = pico.answer(pictures, "what is it?", limit=6)
    assert replies == [pico.words.decode(row) for row in said[:, asked.shape[1] :].tolist()]
    assert len(set(replies)) > 1  # they look at the image
    reply = pico.reply_ids("yes")
    whole = torch.cat([asked, torch.tensor(reply).expand(len(pictures), -1)], 1)
    with torch.no_grad():
        logits = published(input_ids=whole).logits[:, -len(reply) - 1 : -1]
        wanted = token_logprobs(logits, whole[:, -len(reply) :]).sum(1)
        found = pico.answer_logprobs(pictures, "what is it?", ["yes"])[:, 0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_pictures_become_the_codes_of_transformers_tokenizer(pico: Liquid, exported: Path, pictures: Tensor) -> None:
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    vq = ChameleonVQVAE(ChameleonVQVAEConfig(**read_sizes(exported / SIZES)))
    rest = vq.load_state_dict(load_file(exported / "vqgan.safetensors"), strict=False)
    assert not rest.missing_keys and all(name.startswith("decoder.") for name in rest.unexpected_keys)
    with torch.no_grad():
        codes = vq.encode(pictures.float() / 127.5 - 1).image_tokens
    assert torch.equal(codes.view(3, -1), pico.encode(pictures))
    assert pico.decode(pico.encode(pictures)).shape == pictures.shape


# -- the codebook -----------------------------------------------------------------------------------------------------


def test_an_edited_row_is_read_back_scaled_and_said_as_before(pico: Liquid, tmp_path: Path) -> None:
    own, condition = pico.image_table().detach().clone(), pico.condition(PROMPTS[:1])
    ids = pico.generate(condition, [0])
    changed = own.clone()
    changed[ids[0, 2]] += 0.5
    with torch.no_grad():
        before = pico.logits(condition, ids)
        pico.set_image_table(changed)
        after, read = pico.logits(condition, ids), pico.image_embeddings(ids[0, 2])
        pico.export(tmp_path)
        pico.set_image_table(None)
    torch.testing.assert_close(read, 8 * changed[ids[0, 2]], rtol=0, atol=1e-5)  # 8: the square root of 64
    first = int((ids[0] == ids[0, 2]).nonzero()[0])
    torch.testing.assert_close(after[0, : first + 1], before[0, : first + 1], rtol=0, atol=1e-4)
    assert (after[0, first + 1] - before[0, first + 1]).abs().max() > 1e-2
    prompt, _ = pico.prompt_ids(PROMPTS[:1])
    edited = GemmaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = edited(input_ids=torch.cat([prompt, pico.net.image_places[ids]], 1)).logits
    wanted = logits[:, prompt.shape[1] - 1 : -1, pico.net.image_places]
    torch.testing.assert_close(after, wanted, rtol=0, atol=1e-4)


# -- files ------------------------------------------------------------------------------------------------------------


def as_published(exported: Path, folder: Path) -> Path:
    """The release's form: no safear.json, the output layer tied, the tokenizer as a pickle with its training's part."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", SIZES):
        (folder / name).write_bytes((exported / name).read_bytes())
    weights = load_file(exported / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer = {**load_file(exported / "vqgan.safetensors"), "loss.x": torch.zeros(1)}
    torch.save({"state_dict": tokenizer}, folder / "vqgan.ckpt")
    return folder


def test_the_published_layout_loads(pico: Liquid, exported: Path, tmp_path: Path, pictures: Tensor) -> None:
    folder = as_published(exported, tmp_path)
    ref = ModelRef.parse(str(folder))
    assert (ref.family, ref.variant) == ("liquid", folder.name)
    model = load_model(str(folder))
    assert isinstance(model, Liquid) and sorted(model.card.files) == ["model.safetensors", "vqgan.ckpt"]
    assert model.sampling == LiquidSettings().sampling
    assert torch.equal(model.net.lm_head.weight, model.net.get_input_embeddings().weight)
    assert torch.equal(model.image_table(), pico.image_table())
    assert torch.equal(model.decode(model.encode(pictures)), pico.decode(pico.encode(pictures)))
    (folder / "vqgan.ckpt").unlink()
    with pytest.raises(UsageError, match=r"image tokenizer.*vqgan\.ckpt"):
        load_model(str(folder))


def test_sizes_of_the_tokenizer_are_those_of_the_release(pico: Liquid, tmp_path: Path) -> None:
    from transformers import ChameleonVQVAEConfig

    assert read_sizes(tmp_path / SIZES) == {}
    release = ChameleonVQVAEConfig()
    said = yaml.safe_load(written_sizes(release))["model"]["params"]
    assert (said["n_embed"], said["embed_dim"]) == (8192, 256)
    inner = said["ddconfig"]
    assert (inner["resolution"], inner["ch"], inner["ch_mult"]) == (512, 128, [1, 1, 2, 2, 4])
    for config in (release, pico.net.model.vqmodel.config):
        (tmp_path / SIZES).write_text(written_sizes(config))
        again = ChameleonVQVAEConfig(**read_sizes(tmp_path / SIZES))
        assert written_sizes(again) == written_sizes(config)


def _no_sizes(text: str) -> str:
    return "model: {params: 3}\n"


def _other_sizes(text: str) -> str:
    return text.replace("ch: 32", "ch: 64")


def _strange_sizes(text: str) -> str:
    return text.replace("ch: 32", "ch: 33")


def _small(text: str) -> str:
    return text.replace("n_embed: 64", "n_embed: 65")


def _broken(text: str) -> str:
    return text + "}"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (_no_sizes, "ddconfig"),
        (_other_sizes, "tensors that fit"),
        (_strange_sizes, "configuration"),
        (_small, "tensors that fit"),
        (_broken, "YAML"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(
    exported: Path, tmp_path: Path, change: Callable[[str], str], where: str
) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / SIZES).write_text(change((tmp_path / SIZES).read_text()))
    with pytest.raises(SafearError) as caught:
        load_model(str(tmp_path))
    assert where in str(caught.value) and "\n" not in str(caught.value)


def test_a_plain_gemma_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = as_published(exported, tmp_path)
    weights, config = load_file(folder / "model.safetensors"), (folder / "config.json").read_text()
    size = weights["model.embed_tokens.weight"].shape[0]
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][: size - 64].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(config.replace(f'"vocab_size": {size}', f'"vocab_size": {size - 64}'))
    with pytest.raises(UsageError, match=f"{size - 64} words and 64 codes"):
        load_model(str(folder))
