"""Chameleon against transformers' own forward pass and answers; what it shares with Emu3 is in test_unified.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safear_edit.errors import SafearError, UsageError
from safear_edit.families.base import Sampling
from safear_edit.families.chameleon import Chameleon, ChameleonSettings
from safear_edit.families.load import load_model
from safear_edit.families.tokenizers.vqgan import DECODER
from safear_edit.families.tokens import token_logprobs

PROMPTS = ["a house by Picasso", "a dog", "a cat in the snow"]


class Swin(Chameleon):
    """The 30B's order of norms."""

    pico_sizes = {**Chameleon.pico_sizes, "swin_norm": True}  # noqa: RUF012


@pytest.fixture(scope="module", params=[Chameleon, Swin], ids=["7b", "30b"])
def pico(request: pytest.FixtureRequest) -> Chameleon:
    model: Chameleon = request.param.pico()
    return model


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_a_drawing_prompt_is_the_published_one(pico: Chameleon) -> None:
    ids = pico.drawing_ids("a dog")
    names = [pico.words.tokenizer.id_to_token(i) for i in ids]
    assert names[0] == "<s>" and names[-2:] == ["<reserved08706>", "<racm3:break>"]
    assert pico.words.tokenizer.decode(ids[1:-2]) == "a dog"
    assert pico.drawing_ids(None) == [ids[0], ids[-1]]
    assert ChameleonSettings().sampling == Sampling(3.0, temperature=0.7, top_p=0.9)
    assert Chameleon.image_names(211)[::210] == ["IMGIMGAZ", "IMGIMGCBAZ"]


def test_states_are_those_of_transformers_over_the_same_sequence(pico: Chameleon) -> None:
    condition = pico.condition(PROMPTS)
    ids = pico.generate(condition, range(3), Sampling(1.0, top_k=1))
    prompt, mask = pico.prompt_ids(PROMPTS)
    assert not mask.all()  # left-padded, so that the mask matters
    drawn = pico.net.image_places[ids]
    whole, seen = torch.cat([prompt, drawn], 1), torch.cat([mask, torch.ones_like(drawn).bool()], 1)
    with torch.no_grad():
        states = pico.net.model(input_ids=whole, attention_mask=seen.long()).last_hidden_state
        logits = pico.net.lm_head(states[:, prompt.shape[1] - 1 : -1])[..., pico.net.image_places]
        torch.testing.assert_close(pico.logits(condition, ids), logits, rtol=0, atol=1e-4)
    assert torch.equal(logits.argmax(-1), ids)  # so the sampler's layers are transformers' too


def test_pictures_become_the_tokens_that_transformers_gives_them(pico: Chameleon, pictures: Tensor) -> None:
    with torch.no_grad():
        found = pico.net.get_image_tokens(pictures.float() / 127.5 - 1)
    assert torch.equal(found.long(), pico.net.image_places[pico.encode(pictures)])


def test_answers_are_what_transformers_generates_and_scores(pico: Chameleon, pictures: Tensor) -> None:
    asked = torch.tensor(pico.question_ids("what is it?")).expand(len(pictures), -1)
    assert asked[0, 1] == pico.words["boi"] and asked[0, -1] == pico.words["turn"]
    seen = {"pixel_values": pictures.float() / 127.5 - 1}
    said = pico.net.generate(
        input_ids=asked,
        attention_mask=torch.ones_like(asked),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=list(pico.ends),
        **seen,
    )
    replies = pico.answer(pictures, "what is it?", limit=6)
    assert replies == [pico.words.decode(row) for row in said[:, asked.shape[1] :].tolist()]
    assert len(set(replies)) > 1  # they look at the image
    reply = pico.reply_ids("yes")
    whole = torch.cat([asked, torch.tensor(reply).expand(len(pictures), -1)], 1)
    with torch.no_grad():
        logits = pico.net(input_ids=whole, **seen).logits[:, -len(reply) - 1 : -1]
        wanted = token_logprobs(logits, whole[:, -len(reply) :]).sum(1)
        found = pico.answer_logprobs(pictures, "what is it?", ["yes"])[:, 0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_the_picture_decoder_comes_from_the_releases_file(pico: Chameleon, pictures: Tensor, tmp_path: Path) -> None:
    pico.export(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    tokenizer = {n.removeprefix("model.vqmodel."): t for n, t in weights.items() if n.startswith("model.vqmodel.")}
    bare = {name: tensor for name, tensor in weights.items() if not name.startswith(DECODER)}
    save_file({**bare, "model.vqmodel.loss.x": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(UsageError, match=r"image decoder.*vqgan\.ckpt"):
        load_model(str(tmp_path))
    torch.save({"state_dict": {**tokenizer, "loss.x": torch.zeros(1)}}, tmp_path / "vqgan.ckpt")
    again = load_model(str(tmp_path))
    assert sorted(again.card.files) == ["model.safetensors", "vqgan.ckpt"]
    assert torch.equal(again.decode(again.encode(pictures)), pico.decode(pico.encode(pictures)))
    (tmp_path / "vqgan.ckpt").write_bytes(b"no tokenizer")
    with pytest.raises(SafearError) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)
