"""A Llama tokenizer as it was first published, `tokenizer.model`, in the form that `tokenizers` runs.

The file is a SentencePiece model (https://github.com/google/sentencepiece, src/sentencepiece_model.proto): protobuf
fields that are read here by number, so nothing has to be installed for them. What it says is byte-pair encoding with a
fallback to bytes; a pair is merged sooner the higher its piece scores. Spaces become "▁", and one stands before the
text's first word: what Hugging Face's Llama tokenizer calls `legacy=False`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from safear_edit.errors import UsageError
from safear_edit.families.folder import AGAIN

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""Kinds of pieces; the others, of which a Llama's has none, are refused."""
BPE = 2
"""The model type, of those that SentencePiece has."""
Value = int | bytes


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int


def tokenizer_json(model: bytes, added: Mapping[str, int], where: str) -> bytes:
    """tokenizer.json of a tokenizer.model with further special tokens, name → id, which must follow its pieces.

    UsageError if the file is something else, or an id is taken.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = read_pieces(model, where)
    unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
    vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
    merges = [(left, right) for left, right in _merges(pieces, vocabulary)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(spaces)
    named = [piece.text for piece in pieces if piece.kind in (UNKNOWN, CONTROL)]
    wanted = {**vocabulary, **added}
    named += sorted(added, key=lambda name: added[name])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in named])
    if wrong := [name for name in named if tokenizer.token_to_id(name) != wanted[name]]:
        got = f"{wrong[0]} = {wanted[wrong[0]]} beside {len(pieces)} pieces"
        raise UsageError(where, "added tokens numbered after the pieces", got, AGAIN)
    text: str = tokenizer.to_str()
    return text.encode()


def _merges(pieces: list[Piece], vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The two halves of every piece that has such, first those that are merged first."""
    found = list[tuple[float, int, int, str, str]]()
    for piece in pieces:
        if piece.kind == NORMAL:
            for cut in range(1, len(piece.text)):
                left, right = piece.text[:cut], piece.text[cut:]
                if left in vocabulary and right in vocabulary:
                    found.append((-piece.score, vocabulary[left], vocabulary[right], left, right))
    for *_, left, right in sorted(found):
        yield left, right


def read_pieces(model: bytes, where: str) -> list[Piece]:
    """The vocabulary of a tokenizer.model; UsageError if it is none, or not of Llama's kind."""
    pieces, kind = list[Piece](), 0
    try:
        for number, value in _fields(model):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                kind = next((n for key, n in _fields(value) if key == 3 and isinstance(n, int)), 1)
    except (ValueError, struct.error) as error:
        raise UsageError(where, "a SentencePiece model", " ".join(str(error).split())[:200], AGAIN) from None
    kinds = {piece.kind for piece in pieces}
    if not pieces or kind != BPE or not kinds <= {NORMAL, UNKNOWN, CONTROL, BYTE}:
        got = f"{len(pieces)} pieces of kinds {sorted(kinds)}, model type {kind}"
        raise UsageError(where, "Llama's kind of SentencePiece model (BPE)", got, AGAIN)
    return pieces


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Numbers and values of a protobuf message's fields: whole numbers, or the bytes of anything else."""
    place = 0
    while place < len(data):
        key, place = _number(data, place)
        form = key & 7
        if form == 0:
            value, place = _number(data, place)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(form)
        if form == 2:
            size, place = _number(data, place)
        if size is None or place + size > len(data):
            raise ValueError("other bytes, or it is cut short")
        yield key >> 3, data[place : place + size]
        place += size


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits per byte, least first, and the place after it."""
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("other bytes, or it is cut short")
        value |= (data[place] & 127) << shift
        shift, place = shift + 7, place + 1
        if data[place - 1] < 128:
            return value, place
