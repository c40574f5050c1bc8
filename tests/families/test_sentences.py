"""Sentence vectors: each computed once, whatever lies in the user's cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safear_edit.families import sentences
from safear_edit.families.sentences import Sentences
from safear_edit.files.weights import write_weights


class Encoder:
    """Unit vectors by a text's length; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def vectors(self, prompts: Sequence[str]) -> Tensor:
        self.asked += prompts
        return torch.stack([torch.nn.functional.one_hot(torch.tensor(len(text)), 384).float() for text in prompts])


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    made = Encoder()
    monkeypatch.setattr(sentences, "minilm", lambda: made)
    return made


def test_a_sentence_is_encoded_once_also_by_a_later_process(encoder: Encoder, tmp_path: Path) -> None:
    first = Sentences(tmp_path).vectors(["a dog", "a cat!", "a dog"])
    assert sorted(encoder.asked) == ["a cat!", "a dog"] and torch.equal(first[0], first[2])
    known = Sentences(tmp_path)
    assert torch.equal(known.vectors(["a dog", "a cat!", "a dog"]), first)
    known.vectors(["a dog", "a house"])
    assert encoder.asked[2:] == ["a house"]
    assert Sentences(tmp_path).vectors(["a house"])[0].argmax() == 7 and len(encoder.asked) == 3


def test_nothing_is_kept_without_a_folder_or_where_nothing_can_be_written(encoder: Encoder, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "missing"):
        for _ in range(2):
            assert Sentences(folder).vectors(["a dog"])[0, 5] == 1
    assert encoder.asked == ["a dog"] * 4 and not list(tmp_path.iterdir())


def test_a_damaged_file_is_made_again(encoder: Encoder, tmp_path: Path) -> None:
    Sentences(tmp_path).vectors(["a dog"])
    (file,) = tmp_path.iterdir()
    digests = torch.zeros(1, 32, dtype=torch.uint8)
    write_weights(tmp_path / "no-unit", {"digests": digests, "vectors": torch.zeros(1, 384)})
    write_weights(tmp_path / "too-few", {"digests": digests[:0], "vectors": torch.eye(384)[:1]})
    write_weights(tmp_path / "another", {"ids": digests})
    whole = file.read_bytes()
    others = [(tmp_path / name).read_bytes() for name in ("no-unit", "too-few", "another")]
    damages = (b"", b"half", whole[:-9], *others)
    for number, damage in enumerate(damages, 2):
        file.write_bytes(damage)
        assert Sentences(tmp_path).vectors(["a dog"])[0, 5] == 1
        assert len(encoder.asked) == number and file.read_bytes() == whole


def test_the_file_does_not_grow_for_ever(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "MOST", 2)
    known = Sentences(tmp_path)
    known.vectors(["a", "aa"])
    known.vectors(["aaa"])
    Sentences(tmp_path).vectors(["aaa", "a"])
    assert encoder.asked == ["a", "aa", "aaa", "a"]


def test_the_real_encoder_gives_the_same_vectors(tmp_path: Path) -> None:
    texts = ["a dog", "a house on a beach in the style of Picasso"]
    found = Sentences(tmp_path).vectors(texts)
    torch.testing.assert_close(found, sentences.minilm().vectors(texts), rtol=0, atol=1e-6)
    assert torch.equal(Sentences(tmp_path).vectors(texts), found)
