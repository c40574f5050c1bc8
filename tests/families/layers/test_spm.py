"""A Llama's tokenizer.model: the ids that the slow tokenizer gave (goldens/vila_u/tokens.json), and what is refused."""

from __future__ import annotations

import json
import struct

import pytest
from tokenizers import Tokenizer

import tests
from safear_edit.errors import UsageError
from safear_edit.families.layers.spm import read_pieces, tokenizer_json

GOLDENS = tests.GOLDENS / "vila_u"
MODEL = (GOLDENS / "tokenizer.model").read_bytes()
ADDED = {"<im_end>": 701, "<im_start>": 700}


def test_the_recorded_ids_and_texts() -> None:
    tokenizer = Tokenizer.from_buffer(tokenizer_json(MODEL, ADDED, "here"))
    recorded = json.loads((GOLDENS / "tokens.json").read_text())
    assert len(recorded) > 8
    for text, ids, back in recorded:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == back.strip()


def test_pieces_are_numbered_in_their_order() -> None:
    pieces = read_pieces(MODEL, "here")
    assert [piece.text for piece in pieces[:4]] == ["<unk>", "<s>", "</s>", "<0x00>"] and len(pieces) == 700
    assert [piece.score for piece in pieces[259:262]] == [0.0, -1.0, -2.0]


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def _model(kind: int, piece: int = 1) -> bytes:
    entry = _field(1, b"a") + bytes([2 << 3 | 5]) + struct.pack("<f", -1.0) + _field(3, piece)
    return _field(1, entry) + _field(2, _field(3, kind))


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (MODEL[:-3], "cut short"),
        (b"", "0 pieces"),
        (b"{}" * 40, "SentencePiece model"),
        (b"\x0a\x04\x0a\x02\xff\xfe", "SentencePiece model"),
        (b"\xff" * 30, "SentencePiece model"),
        (_model(1), "model type 1"),
        (_model(2, piece=4), "kinds [4]"),
    ],
)
def test_other_files_are_refused_in_one_line(model: bytes, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_pieces(model, "here")
    assert where in str(caught.value) and "\n" not in str(caught.value)
    assert read_pieces(_model(2), "here")[0].text == "a"


@pytest.mark.parametrize("added", [{"<im_start>": 701}, {"<im_start>": 699}, {"<s>": 700}])
def test_added_tokens_follow_the_pieces(added: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="numbered after"):
        tokenizer_json(MODEL, added, "here")
