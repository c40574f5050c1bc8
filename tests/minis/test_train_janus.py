"""janus:mini's training: what goes in, that it learns both tasks, resumes, and exports what loads again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from safear_edit.families.janus import Janus
from safear_edit.families.reference import ModelRef
from safear_edit.families.tokenizers.vq import VQConfig, VQModel
from safear_edit.gallery.questions import Turn
from safear_edit.gallery.render import Picture
from safear_edit.gallery.world import World
from safear_edit.minis import train_janus
from safear_edit.minis.janus_words import ROLES, SCALE, choose_words, tokenizer_files, word_table
from safear_edit.minis.measure import understanding
from safear_edit.minis.pool import held_out_triple
from safear_edit.minis.train_janus import (
    IGNORED,
    Sizes,
    Trainer,
    new_model,
    optimizers,
    per_answer,
    sample,
    with_strangers,
)

SMALL = Sizes(64, 96, 2, 2, words=300, drawn=4, seen=3, turns=2)


@pytest.fixture(scope="module")
def vq() -> VQModel:
    torch.manual_seed(0)
    config = VQConfig(
        codebook_size=64,
        ch=32,
        encoder_ch_mult=(1, 1, 1),
        decoder_ch_mult=(1, 1, 2),
        z_channels=32,
        num_res_blocks=1,
    )
    return VQModel(config).eval()


@pytest.fixture(scope="module")
def fresh(vq: VQModel) -> Janus:
    torch.manual_seed(0)
    return new_model(vq, SMALL)


@pytest.fixture
def model(fresh: Janus) -> Iterator[Janus]:
    before = {name: tensor.clone() for name, tensor in fresh.net.state_dict().items()}
    yield fresh
    fresh.net.load_state_dict(before)


# -- words ------------------------------------------------------------------------------------------------------------


def test_words_of_training_are_whole_and_others_fall_into_pieces() -> None:
    words = choose_words(["picasso", "ukiyo-e"], common=0)
    assert {"picasso", "uk", "##iy", "##o", "-", "e", "[UNK]", "z", "##z"} <= set(words) and "dog" not in words
    assert all(word.isascii() for word in words) and "[CLS]" not in words
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(tokenizer_files(words)["tokenizer.json"])
    spell = tokenizer.encode(f"{ROLES[0]}: Picasso dog", add_special_tokens=False).tokens
    assert spell == [ROLES[0], ":", "picasso", "d", "##o", "##g"]


def test_words_of_like_meaning_lie_together() -> None:
    words = choose_words(["dog puppy hound", "castle fortress", "painter artist"], common=0)
    table = word_table(words, len(words) + 3, 48)
    assert table.shape == (len(words) + 3, 48)
    torch.testing.assert_close(table.square().mean(1).sqrt(), torch.full((len(table),), SCALE))
    row = {word: table[i] for i, word in enumerate(words)}
    for one, like, other in (("dog", "hound", "castle"), ("castle", "fortress", "puppy"), ("painter", "artist", "dog")):
        assert row[one] @ row[like] > 2 * row[one] @ row[other]
    assert torch.equal(word_table(words, len(words) + 3, 48), table)


def test_a_piece_is_told_from_the_word_that_it_looks_like() -> None:
    table = word_table(["flower", "##flower", "dog", "##dog", "castle"], 8, 48)
    flower, piece, dog, dog_piece = F.normalize(table[:4], dim=-1)
    assert 0.8 < flower @ piece < 0.95 and 0.8 < dog @ dog_piece < 0.95
    assert (piece - flower) @ (dog_piece - dog) > 0.1, "they have one direction in common"


def test_strangers_leave_the_text_itself() -> None:
    text, rng = "a dog in the snow by Monet", np.random.default_rng(0)
    said = [with_strangers(text, ["zebra"], rng) for _ in range(200)]
    assert all(" ".join(w for w in s.split() if w != "zebra") == text for s in said)
    assert 20 < sum("zebra" in s for s in said) < 190


# -- the model --------------------------------------------------------------------------------------------------------


def test_the_new_model_has_the_tokenizer_and_a_frozen_tied_table(model: Janus, vq: VQModel) -> None:
    ids = torch.randint(64, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.net.model.vqmodel.decode(ids), vq.decode(ids), rtol=0, atol=1e-5)
        image = World().tensor([Picture("dog", "photo", "snow")])
        assert torch.equal(model.encode(((image + 1) * 127.5).round().to(torch.uint8)), vq.encode(image))
    table = model.net.get_input_embeddings().weight
    assert model.net.lm_head.weight is table and not table.requires_grad
    trained = {id(p) for o in optimizers(model.net) for g in o.param_groups for p in g["params"]}
    assert trained == {id(p) for p in model.net.parameters() if p.requires_grad}
    assert model.net.model.vision_model.encoder.layers[0].mlp.fc1.weight.requires_grad


def test_training_never_shows_what_is_held_out() -> None:
    pictures = sample(World(), np.random.default_rng(0), 400)
    assert len(pictures) == 400 and not any(map(held_out_triple, pictures))


def test_only_the_answer_is_learned(model: Janus, vq: VQModel) -> None:
    trainer = Trainer(model, vq, SMALL)
    ids, target = trainer._dialogues([Turn("is this Monet?", "yes"), Turn("what is it?", "a dog")])
    words, end = model.words, model.words.eos
    for row, (question, answer) in enumerate((("is this Monet?", "yes"), ("what is it?", "a dog"))):
        asked = model.question_ids(question)
        learned = target[row] != IGNORED
        assert target[row][learned].tolist() == [*words.encode(answer), end]
        first = int(learned.nonzero()[0])
        assert [*trainer.frame.tolist(), *ids[row, : first + 1].tolist()] == asked  # as `answer` reads it


def test_the_losses_are_those_of_scoring(model: Janus, vq: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, the training pass is the family's own teacher forcing, and its own `answer_logprobs`."""
    monkeypatch.setattr(train_janus, "WORD_NOISE", 0.0)
    trainer = Trainer(model, vq, SMALL)
    torch.nn.init.normal_(model.net.model.generation_head.vision_head.weight, std=0.1)
    tokens = torch.randint(64, (2, 100), generator=torch.Generator().manual_seed(0))
    ids, mask = model.prompt_ids(["a dog", "a cat in the snow by Monet"])
    picture = Picture("dog", "warhol", "night")
    with torch.no_grad():
        drawn = trainer._drawn_logits(trainer._words(ids, torch.Generator()), mask, tokens[:, :-1])
        condition = model.condition(["a dog", "a cat in the snow by Monet"])
        torch.testing.assert_close(drawn, model.logits(condition, tokens), rtol=0, atol=1e-4)
        turn_ids, target = trainer._dialogues([Turn("is this a dog?", "yes"), Turn("what is it?", "no")])
        pixels = World().tensor([picture])
        embedded = trainer._words(turn_ids, torch.Generator())
        states = trainer._asked_states(pixels, embedded, torch.zeros(2, dtype=torch.long))
        seen = ((pixels + 1) * 127.5).round().to(torch.uint8)
        for row, (question, answer) in enumerate((("is this a dog?", "yes"), ("what is it?", "no"))):
            place = int((target[row] != IGNORED).nonzero()[0])
            said = model.net.lm_head(states[row, place]).log_softmax(-1)[int(target[row, place])]
            wanted = model.answer_logprobs(seen, question, [answer])[0, 0]
            torch.testing.assert_close(said, wanted, rtol=0, atol=1e-3)


def test_a_yes_weighs_as_much_as_a_caption() -> None:
    spoken = torch.tensor([[False, True, True, False, False], [True, True, True, True, True]])
    nats = torch.tensor([0.5, 0.25, *[1.0] * 5])
    assert per_answer(nats, spoken).item() == pytest.approx((0.75 / 1 + 5 / 4) / 2)


@pytest.mark.soak
def test_both_tasks_are_learned(model: Janus, vq: VQModel) -> None:
    trainer, steps = Trainer(model, vq, SMALL), optimizers(model.net)

    def losses(learn: bool) -> tuple[float, float]:
        drawn, answered = trainer.draw_loss(0), trainer.answer_loss(0)
        if learn:
            (drawn + answered).backward()
            for optimizer in steps:
                optimizer.step()
                optimizer.zero_grad()
        return drawn.item(), answered.item()

    first = losses(True)
    assert losses(False) != first  # the same batch, another model
    for _ in range(25):
        losses(True)
    last = losses(False)
    assert last[0] < first[0] - 0.3, (first, last)
    assert last[1] < first[1] - 1, (first, last)


def test_it_trains_exports_and_loads_again(vq: VQModel, tmp_path: Path) -> None:
    trained = train_janus.train(tmp_path, vq, 2, SMALL)
    loaded = Janus.load(ModelRef.parse(str(tmp_path / "export")))
    assert loaded.card.variant == "mini" and loaded.card.licence == "Apache-2.0"
    assert loaded.settings == train_janus.SETTINGS
    for name, tensor in trained.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[name], tensor.half().float()), name
    assert (tmp_path / "export" / "manifest.json").is_file()
    again = train_janus.train(tmp_path, vq, 2, SMALL)  # nothing left to do: the same weights
    assert all(torch.equal(t, again.net.state_dict()[n]) for n, t in trained.net.state_dict().items())


@pytest.mark.soak
def test_what_is_understood_is_measured(model: Janus) -> None:
    figures = understanding(model, model.card.image_size, described=60)
    assert figures["yes or no"]["n"] == sum(part["n"] for part in figures["yes or no by kind"].values()) > 200
    assert figures["caption object"]["n"] == figures["caption style"]["n"] == 60
    assert figures["caption object and style"]["rate"] < 0.2
    assert 0.2 < figures["yes or no"]["rate"] < 0.8


def test_one_who_sees_is_told_from_one_who_guesses() -> None:
    class Oracle:
        """Answers from the images themselves; `wrong` turns every answer round."""

        def __init__(self, wrong: bool) -> None:
            self.wrong = wrong

        def answer(self, images: torch.Tensor, question: str, limit: int = 64) -> list[str]:
            return ["a dog in the style of monet"] * len(images)

        def answer_logprobs(self, images: torch.Tensor, question: str, answers: list[str]) -> torch.Tensor:
            half = len(images) // 2  # `_yes_no` shows those that have it first
            yes = torch.cat([torch.zeros(half), torch.full((len(images) - half,), -9.0)])
            return torch.stack([-9 - yes, yes] if self.wrong else [yes, -9 - yes], 1)

    assert understanding(Oracle(False), 40, described=60)["yes or no"]["rate"] == 1
    told = understanding(Oracle(True), 40, described=60)
    assert told["yes or no"]["rate"] == 0 and 0 < told["caption style"]["rate"] < 0.6
