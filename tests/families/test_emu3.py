"""Emu3 against transformers' own forward pass, generate, processor and names; what it shares is in test_unified.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.families.base import Sampling
from safear_edit.families.emu3 import RENAMED, Emu3, Emu3Settings
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.families.tokens import token_logprobs

PROMPTS = ["a house by Picasso", "a dog", "a cat in the snow"]


@pytest.fixture(scope="module")
def pico() -> Emu3:
    return Emu3.pico()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def with_ends(pico: Emu3, ids: Tensor) -> Tensor:
    """An image as the published format has it: vocabulary ids, an end-of-line token after each row."""
    rows = pico.net.image_places[ids].unflatten(1, (pico.side, pico.side))
    end = torch.full_like(rows[..., :1], pico.words["eol"])
    return torch.cat([rows, end], -1).flatten(1)


def scaled(images: Tensor) -> dict[str, Tensor]:
    sizes = torch.tensor([images.shape[2:]] * len(images))
    return {"pixel_values": (images.float() / 255 - 0.5) / 0.5, "image_sizes": sizes}


def test_a_drawing_prompt_is_the_published_one(pico: Emu3) -> None:
    ids = pico.drawing_ids("a dog")
    names = [pico.words.tokenizer.id_to_token(i) for i in ids]
    assert names[0] == "<|extra_203|>" and names[-5:] == ["<|image start|>", "4", "*", "4", "<|image token|>"]
    assert pico.words.tokenizer.decode(ids[1:-5]) == "a dog masterpiece, film grained, best quality."
    unwanted = pico.drawing_ids(None)
    assert unwanted[-5:] == ids[-5:] and pico.words.tokenizer.decode(unwanted[1:-5]).startswith("lowres, bad anatomy")
    assert Emu3Settings().sampling == Sampling(3.0, top_k=2048) and Emu3Settings().image_size == 720


def test_logits_are_those_of_transformers_over_the_same_sequence(pico: Emu3) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(3))
    prompt, mask = pico.prompt_ids(PROMPTS)
    assert not mask.all()  # left-padded, so that the mask matters
    drawn = with_ends(pico, ids)
    whole, seen = torch.cat([prompt, drawn], 1), torch.cat([mask, torch.ones_like(drawn).bool()], 1)
    with torch.no_grad():
        logits = pico.net(input_ids=whole, attention_mask=seen.long()).logits[:, prompt.shape[1] - 1 : -1]
        kept = logits.unflatten(1, (pico.side, pico.side + 1))[:, :, :-1].flatten(1, 2)
        torch.testing.assert_close(pico.logits(condition, ids), kept[..., pico.net.image_places], rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_drawing_is_what_transformers_generates(pico: Emu3, guidance: float) -> None:
    places, side = pico.net.image_places.tolist(), pico.side
    for prompt in PROMPTS:
        ids, mask = pico.prompt_ids([prompt])
        start = ids.shape[1]

        def allowed(_: int, so_far: Tensor, start: int = start) -> list[int]:
            return [pico.words["eol"]] if (len(so_far) - start) % (side + 1) == side else places

        unwanted, whole = pico.prompt_ids([None])
        guided = {"guidance_scale": guidance, "negative_prompt_ids": unwanted, "negative_prompt_attention_mask": whole}
        drawn = pico.net.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            max_new_tokens=side * (side + 1),
            do_sample=False,
            prefix_allowed_tokens_fn=allowed,
            **(guided if guidance > 1 else {}),
        )
        own = pico.generate(pico.condition([prompt]), [0], Sampling(guidance, top_k=1))
        assert torch.equal(with_ends(pico, own), drawn[:, start:])


def test_pictures_become_the_tokens_that_transformers_gives_them(pico: Emu3, pictures: Tensor) -> None:
    with torch.no_grad():
        found = pico.net.model.get_image_tokens(**scaled(pictures)).view(3, -1)
    assert torch.equal(found.long(), with_ends(pico, pico.encode(pictures)))
    ids = pico.encode(pictures)
    tail = torch.zeros(3, 3, dtype=torch.int64)  # end of frame, end of image, end of text: transformers cuts them off
    with torch.no_grad():
        drawn = pico.net.decode_image_tokens(
            image_tokens=torch.cat([with_ends(pico, ids), tail], 1), height=pico.side, width=pico.side
        )
    assert torch.equal(((drawn * 0.5 + 0.5) * 255).clamp(0, 255).to(torch.uint8), pico.decode(ids))


def test_answers_are_what_transformers_generates_and_scores(pico: Emu3, pictures: Tensor) -> None:
    asked = torch.tensor(pico.question_ids("what is it?")).expand(len(pictures), -1)
    said = pico.net.generate(
        input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=6, do_sample=False, **scaled(pictures)
    )
    replies = pico.answer(pictures, "what is it?", limit=6)
    assert replies == [pico.words.decode(row) for row in said[:, asked.shape[1] :].tolist()]
    assert len(set(replies)) > 1  # they look at the image
    reply = pico.reply_ids("yes")
    whole = torch.cat([asked, torch.tensor(reply).expand(len(pictures), -1)], 1)
    with torch.no_grad():
        logits = pico.net(input_ids=whole, **scaled(pictures)).logits[:, -len(reply) - 1 : -1]
        wanted = token_logprobs(logits, whole[:, -len(reply) :]).sum(1)
        found = pico.answer_logprobs(pictures, "what is it?", ["yes"])[:, 0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_question_is_what_transformers_processor_makes_of_it(pico: Emu3) -> None:
    from transformers import Emu3Processor, PreTrainedTokenizerFast
    from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

    roles = {"boi_token": "boi", "eoi_token": "eoi", "image_token": "image", "image_wrapper_token": "begin"}
    named = {name: pico.special[role] for name, role in {**roles, "eof_token": "eof", "bos_token": "bos"}.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pico.words.tokenizer, **named)
    processor = Emu3Processor(Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64), tokenizer)
    image = np.zeros((32, 32, 3), dtype=np.uint8)  # its factor is fixed at 8: four tokens a side, as the pico's 16
    text = pico.template.ask.replace("{text}", "what?").replace("{image}", "<image>")
    made = processor(images=[image], text=[text], return_tensors="pt")
    assert made["input_ids"].tolist() == [pico.question_ids("what?")]


def test_names_of_the_published_folders_are_understood(pico: Emu3, tmp_path: Path) -> None:
    from transformers import Emu3ForConditionalGeneration

    pico.export(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {}
    for name, tensor in weights.items():
        before, now = next((before, now) for before, now in RENAMED if name.startswith(now))
        old[before + name.removeprefix(now)] = tensor
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    again = load_model(str(tmp_path))
    assert all(torch.equal(tensor, again.net.state_dict()[name]) for name, tensor in pico.net.state_dict().items())
    net, report = Emu3ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(net.lm_head.weight, weights["lm_head.weight"])


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, "three numbers"),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5, 0.0]}, "three numbers"),
        ("preprocessor_config.json", {"image_mean": "grey"}, "three numbers"),
        ("safear.json", {"family": "emu3", "image_size": 18}, "a multiple of 4"),
        ("safear.json", {"family": "emu3", "image_size": -8}, "image_size"),
    ],
)
def test_what_only_emu3_reads_is_checked(
    pico: Emu3, tmp_path: Path, name: str, content: dict[str, object], where: str
) -> None:
    pico.export(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UsageError, match=where):
        Emu3.load(ModelRef("emu3", "pico", tmp_path))
