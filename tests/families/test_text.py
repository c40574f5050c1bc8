"""Text encoders and the caption cleaner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safear_edit.errors import TrustError, UsageError
from safear_edit.families import text
from safear_edit.families.caption_cleaning import clean
from safear_edit.families.text import MINILM_WIDTH, T5, MiniLM, minilm, text_encoder
from safear_edit.files.atomic import sha256_file
from safear_edit.files.weights import opened, write_weights


def test_minilm_states_are_masked_and_padded_on_the_right() -> None:
    states, mask = minilm().states(["a dog", "a house on a beach in the style of Picasso"])
    assert states.shape == (2, mask.shape[1], MINILM_WIDTH) and mask.dtype == torch.bool
    assert mask[0].tolist() == sorted(mask[0].tolist(), reverse=True)
    assert mask[0].sum() == 4 and mask[1].all()  # [CLS] a dog [SEP]
    alone, _ = minilm().states(["a dog"])
    torch.testing.assert_close(states[0, :4], alone[0], rtol=0, atol=1e-5)


def test_long_captions_are_cut_to_the_model_length() -> None:
    states, mask = minilm().states(["word " * 200])
    assert mask.sum() == states.shape[1] == 32


def test_sentence_vectors_know_a_paraphrase() -> None:
    dog, hound, tax = minilm().vectors(["a dog runs on the grass", "a hound running over a lawn", "income tax law"])
    assert abs(float(dog.norm()) - 1) < 1e-5
    assert dog @ hound > 0.5 > dog @ tax


def test_sentence_vectors_are_the_mean_of_the_states() -> None:
    """What earlier recipes were checked with: mean over the tokens that are no padding, of unit length, cut at 32."""
    prompts = ["a dog", "a house on a beach in the style of Picasso", "word " * 60]
    states, mask = minilm().states(prompts)
    weight = mask.unsqueeze(-1).float()
    pooled = torch.nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)
    torch.testing.assert_close(minilm().vectors(prompts), pooled, rtol=0, atol=1e-6)


def test_another_minilm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    monkeypatch.setattr(text, "minilm_folder", lambda: tmp_path)
    with pytest.raises(TrustError, match="official release"):
        MiniLM()


def test_encoders_are_named() -> None:
    assert text_encoder("minilm", 32, Path("unused")) is minilm()
    with pytest.raises(UsageError, match="minilm or t5"):
        text_encoder("clip", 32, Path("unused"))
    with pytest.raises(UsageError, match="captions of 32 tokens"):
        text_encoder("minilm", 31, Path("unused"))
    with pytest.raises(UsageError, match="flan-t5-xl"):
        text_encoder("t5", 120, Path("nowhere"))


def test_a_t5_folder_is_read_and_its_prompts_are_cleaned(tmp_path: Path) -> None:
    tiny_t5(tmp_path)
    encoder = T5(tmp_path, max_tokens=5)
    assert encoder.origin() == (tmp_path.name, sha256_file(tmp_path / "model.safetensors"))
    states, mask = encoder.states(["A DOG (cat)", "a", "a dog cat a dog cat a dog"])
    assert states.shape == (3, 5, 16) and mask.sum(1).tolist() == [3, 1, 5]
    plain, _ = encoder.states(["a dog cat"])
    torch.testing.assert_close(states[0, :3], plain[0], rtol=0, atol=1e-5)
    raw, mask = T5(tmp_path, max_tokens=5, cleaned=False).states(["A DOG (cat)"])
    assert mask.sum() == 5 and (raw[0, :3] - plain[0]).abs().max() > 1e-2, "capitals and brackets reach the tokenizer"


def test_a_t5_is_in_memory_only_while_it_encodes_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_t5(tmp_path)
    prompts, file = ["a dog", "cat", "a cat"], tmp_path / "captions.safetensors"
    encoder = T5(tmp_path)
    exact, mask = encoder.encoded(prompts)
    encoder.keep(prompts, file, "a run")
    assert encoder._loaded is None
    states, seen = encoder.states(["a cat", "cat"])
    assert encoder._loaded is None and seen.sum(1).tolist() == mask[[2, 1]].sum(1).tolist()
    torch.testing.assert_close(states[0], exact[2, : states.shape[1]], rtol=0, atol=1e-6)
    assert not states[~seen].any() and not states.requires_grad

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(text, "_t5", fail)
    resumed = T5(tmp_path)
    resumed.keep(prompts, file, "a run")
    assert torch.equal(resumed.states(["a cat", "cat"])[0], states)
    with pytest.raises(AssertionError, match="loaded again"):
        T5(tmp_path).keep(prompts, file, "another run")
    with pytest.raises(AssertionError, match="loaded again"):
        resumed.states(["a dog dog"])
    with opened(weights := tmp_path / "model.safetensors") as stored:
        found = dict(stored)
    write_weights(weights, {**found, "shared.weight": found["shared.weight"] + 1})
    with pytest.raises(AssertionError, match="loaded again"):
        T5(tmp_path).keep(prompts, file, "a run")


def test_a_t5_forgets_the_oldest_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_t5(tmp_path)
    encoder = T5(tmp_path)
    monkeypatch.setattr(text, "KNOWN_BYTES", 3 * 16 * 4)  # three tokens
    encoder.states(["a dog", "cat"])
    encoder.states(["dog cat"])
    assert set(encoder._known) == {"cat", "dog cat"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_t5_is_what_transformers_makes_of_the_folder(tmp_path: Path, dtype: torch.dtype) -> None:
    from transformers import T5EncoderModel

    tiny_t5(tmp_path)
    theirs = T5EncoderModel.from_pretrained(tmp_path, local_files_only=True, dtype=dtype)
    own = T5(tmp_path, dtype=dtype)._net
    found = own.state_dict()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in theirs.state_dict().items()
    )
    assert own.encoder.embed_tokens.weight is own.shared.weight


def test_half_precision_states_are_near_and_gradients_flow_through_an_open_t5(tmp_path: Path) -> None:
    tiny_t5(tmp_path)
    half, exact = (T5(tmp_path, dtype=kind).states(["a dog cat"])[0] for kind in (torch.bfloat16, torch.float32))
    assert half.dtype == torch.float32 and 0 < (half - exact).norm() / exact.norm() < 0.02
    encoder = T5(tmp_path)
    table, _ = encoder.word_table()
    table.weight.requires_grad_(True)
    encoder.open().states(["a dog"])[0].sum().backward()
    assert table.weight.grad is not None and bool(table.weight.grad[4].any())


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        (("tokenizer.json",), "expected a tokenizer's files"),
        (("tokenizer.json", "tokenizer_config.json"), "a tokenizer that knows words, got one without a vocabulary"),
    ],
)
def test_a_folder_without_a_vocabulary_is_refused(gone: tuple[str, ...], says: str, tmp_path: Path) -> None:
    """Of the second transformers makes an empty tokenizer, to which every caption is the same."""
    tiny_t5(tmp_path)
    for name in gone:
        (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=f"{says}.*; put the encoder's tokenizer.json"):
        T5(tmp_path)


def test_a_configuration_that_is_no_t5s_is_refused(tmp_path: Path) -> None:
    tiny_t5(tmp_path)
    encoder, path = T5(tmp_path), tmp_path / "config.json"
    sizes = json.loads(path.read_text())
    for wrong, says in (({"num_layers": 10**9}, "at most 1000 layers"), ({"num_heads": 0}, "a T5's configuration")):
        path.write_text(json.dumps(sizes | wrong))
        with pytest.raises(UsageError, match=rf"config\.json: expected {says}"):
            encoder.states(["a dog"])


def test_a_layer_of_the_file_that_the_configuration_lacks_is_not_left_there(tmp_path: Path) -> None:
    tiny_t5(tmp_path)
    weights = tmp_path / "model.safetensors"
    with opened(weights) as stored:
        found = dict(stored)
    more = {name.replace("block.0", "block.1"): tensor for name, tensor in found.items() if "block.0" in name}
    write_weights(weights, {**found, "decoder.final_layer_norm.weight": torch.ones(16)})
    T5(tmp_path).states(["a dog"])  # a decoder is
    write_weights(weights, {**found, **more})
    with pytest.raises(UsageError, match=r"extra: encoder\.block\.1"):
        T5(tmp_path).states(["a dog"])


def test_the_digest_of_a_sharded_encoder_is_about_its_weights(tmp_path: Path) -> None:
    tiny_t5(tmp_path)
    weights, shard = tmp_path / "model.safetensors", tmp_path / "model-00001-of-00001.safetensors"
    assert T5(tmp_path).origin()[1] == sha256_file(weights)
    with opened(weights) as stored:
        found = dict(stored)
    weights.rename(shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(found, shard.name)}))
    before = T5(tmp_path).origin()[1]
    write_weights(shard, {**found, "shared.weight": found["shared.weight"] + 1})
    assert T5(tmp_path).origin()[1] != before, "the index is the same"


def tiny_t5(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4, "cat": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(vocab_size=6, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A House by Pablo Picasso", "a house by pablo picasso"),
        ("a dog.", "a dog."),  # a single full stop stays
        ("<b>bold</b> &amp; fine", "bold fine"),
        ("see https://example.com/x now", "see now"),
        ("by @someone and <person>", "by and person"),
        ("“quoted” — ‘dash’", "quoted\" - 'dash"),
        ("a dog (brown), running", "a dog brown , running"),
        ("photo.jpg of a cat 800x600", "of a cat"),
        ("this-is-my-cute-cat", "this is my cute cat"),
        ("a well-known cat", "a well-known cat"),
        ("a%20dog+cat", "a dog cat"),
        ("cat,dog", "cat, dog"),
        ("img ab1234 of 12345678", "img of"),
        ("漢字 dog", "dog"),
        ("", ""),
    ],
)
def test_cleaning_twice_as_upstream(caption: str, expected: str) -> None:
    assert clean(clean(caption)) == expected


def test_minilm_encodes_a_batch_once_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    own, seen = MiniLM(), list[int]()
    encoded = MiniLM.encoded
    monkeypatch.setattr(MiniLM, "encoded", lambda self, prompts: seen.append(len(prompts)) or encoded(self, prompts))
    first, again = own.states(["a dog", "a red house"]), own.states(["a dog", "a red house"])
    assert first[0] is again[0] and first[1] is again[1] and seen == [2]
    monkeypatch.setattr(text, "KNOWN_BATCHES", first[0].nbytes)
    own.states(["a tree"])
    assert seen == [2, 1] and torch.equal(own.states(["a dog", "a red house"])[0], first[0]) and seen == [2, 1, 2]
    opened = own.open()
    assert torch.equal(opened.states(["a tree"])[0], own.states(["a tree"])[0])
    opened.states(["a tree"])
    assert seen == [2, 1, 2, 1, 1, 1], "the open one remembers nothing"
