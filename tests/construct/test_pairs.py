"""Pairs hold the model's own tokens, only those that the judge tells apart, and survive the disk.

The random pico model draws what it likes, and other machines round otherwise: so the judge here does not look at
colours but answers from a script, and notes which images it was shown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from safear_edit.construct.pairs import SHEET_COLUMNS, Keep, Pairs, TextAlign, build_keep, build_pairs, save_sheet
from safear_edit.construct.sheets import GAP, MOSAIC, SMALLEST_TILE, TITLE
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.errors import TrustError, UsageError
from safear_edit.families.llamagen import LlamaGen
from safear_edit.judges.base import Judge, Judgement
from safear_edit.judges.clip import Clip
from safear_edit.progress import silent

SUBJECTS = ["a house", "a dog at night", "a fish", "an apple in the snow"]
WANTED = [(f"{s} by Picasso", f"a photo of {s}", 2**60 + i) for i in range(5) for s in SUBJECTS]
ANSWERS = [(True, False), (True, True), (False, False), (None, False), (True, None), (False, True), (True, False)]
"""What the judge says of (unsafe, safe), pair after pair, round and round: every reason to drop one, and good ones."""
KEPT = [i for i in range(len(WANTED)) if ANSWERS[i % len(ANSWERS)] == (True, False)]


class Scripted(Judge):
    """Answers from ANSWERS in the order of the images, and keeps what it was shown."""

    id, digest, threshold = "scripted", "0", 0.5

    def __init__(self, answers: list[tuple[bool | None, bool | None]] = ANSWERS) -> None:
        self.answers = [answer for pair in answers for answer in pair]
        self.seen: list[Tensor] = []

    def look(self, images: Tensor) -> list[Judgement]:
        first = len(self.seen)
        self.seen += list(images)
        return [Judgement(self.answers[i % len(self.answers)], 0.5, "") for i in range(first, len(self.seen))]


def alike(one: Tensor, other: Tensor) -> bool:
    """The same image, drawn in batches of other sizes: a colour may be rounded the other way."""
    return int((one.int() - other.int()).abs().max()) <= 1


@dataclass(frozen=True)
class Built:
    pairs: Pairs
    judge: Scripted


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico(seed=0)


@pytest.fixture(scope="module")
def built(model: LlamaGen) -> Built:
    judge = Scripted()
    return Built(build_pairs(model, WANTED, judge, progress=silent, batch=6, fewest=1), judge)


@pytest.fixture(scope="module")
def pairs(built: Built) -> Pairs:
    return built.pairs


def test_kept_are_those_that_the_judge_tells_apart(model: LlamaGen, built: Built) -> None:
    pairs, seen = built.pairs, built.judge.seen
    assert len(seen) == 2 * len(WANTED) and 0 < len(KEPT) < len(WANTED)
    assert list(zip(pairs.unsafe, pairs.safe, pairs.seeds, strict=True)) == [WANTED[i] for i in KEPT]
    for ids, side in ((pairs.unsafe_ids, 0), (pairs.safe_ids, 1)):
        for picture, i in zip(model.decode(ids), KEPT, strict=True):
            assert alike(picture, seen[2 * i + side]), "the tokens are those of the very image that was judged"
    answers = [ANSWERS[i % len(ANSWERS)] for i in range(len(WANTED))]
    expected = Counter(
        {
            "the judge cannot tell": sum(None in pair for pair in answers),
            "unsafe caption, concept not drawn": sum(pair in ((False, False), (False, True)) for pair in answers),
            "safe caption, concept drawn": sum(pair == (True, True) for pair in answers),
        }
    )
    assert pairs.stats.reasons == expected and len(expected) == 3
    assert (pairs.stats.made, pairs.stats.kept) == (len(WANTED), len(KEPT)) and len(pairs) == len(KEPT)


def test_a_pair_is_its_two_captions_with_one_seed(model: LlamaGen, built: Built) -> None:
    """The images before the judge are what the model draws of each caption alone; no two pairs look the same."""
    seen = built.judge.seen
    for i, (unsafe, safe, seed) in enumerate(WANTED[:3]):
        for side, prompt in enumerate((unsafe, safe)):
            alone = model.decode(model.generate(model.condition([prompt]), [seed]))[0]
            assert alike(alone, seen[2 * i + side])
    assert not any(alike(seen[0], other) for other in seen[2::2])


@dataclass(frozen=True)
class Half:
    """A CLIP to which every other image shows its caption, and the others nothing of it."""

    def texts(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0]] * len(captions))

    def images(self, images: Tensor) -> torch.Tensor:
        return torch.tensor([[float(i % 2), float(i % 2 == 0)] for i in range(len(images))])


def test_a_pair_whose_safe_image_shows_too_little_of_its_caption_is_dropped(model: LlamaGen) -> None:
    judge = Scripted([(True, False)])
    text_align = TextAlign(cast("Clip", Half()), 0.5)
    pairs = build_pairs(model, WANTED[:6], judge, progress=silent, fewest=1, text_align=text_align)
    assert pairs.safe == [safe for _, safe, _ in WANTED[1:6:2]]
    assert pairs.stats.reasons == {"safe caption, its content not drawn": 3}
    judged_first = build_pairs(
        model, WANTED[:2], Scripted([(False, False), (True, False)]), progress=silent, fewest=1, text_align=text_align
    )
    assert judged_first.stats.reasons == {"unsafe caption, concept not drawn": 1}, "the judge first"


def test_too_few_pairs_is_one_clear_line(model: LlamaGen) -> None:
    judge = Scripted([(False, False)])
    with pytest.raises(UsageError, match=r"at least 8 usable of 4, got 0 \(4 unsafe caption, concept not drawn\)"):
        build_pairs(model, WANTED[:4], judge, progress=silent)


def test_no_prompts_is_one_clear_line_too(model: LlamaGen) -> None:
    with pytest.raises(UsageError, match="pairs: expected at least one prompt"):
        build_pairs(model, [], Scripted(), progress=silent, fewest=0)
    with pytest.raises(UsageError, match="keep: expected at least one prompt"):
        build_keep(model, [], progress=silent)


def test_progress_ends_at_the_total(model: LlamaGen) -> None:
    calls: list[tuple[str, int, int, str]] = []
    build_pairs(model, WANTED[:5], Scripted(), progress=lambda *call: calls.append(call), batch=2, fewest=0)
    assert [call[1] for call in calls] == [2, 4, 5, 5] and calls[-1][3] == "kept 1"


def test_keep_is_the_models_own_pictures(model: LlamaGen) -> None:
    wanted = [("a house", 5), ("a dog", 6), ("a house", 7)]
    keep = build_keep(model, wanted, progress=silent, batch=2)
    assert keep.prompts == [prompt for prompt, _ in wanted]
    for ids, (prompt, seed) in zip(keep.ids, wanted, strict=True):
        alone = model.generate(model.condition([prompt]), [seed])[0]
        assert alike(model.decode(ids[None])[0], model.decode(alone[None])[0])


def test_what_guards_an_earlier_edit_is_drawn_with_it_and_the_rest_without(model: LlamaGen, tmp_path: Path) -> None:
    wanted = [("a house", 5), ("a dog", 6), ("a cat", 7)]
    base, (name, weight) = (
        build_keep(model, wanted, progress=silent),
        next((n, p) for n, p in model.net.named_parameters() if n.endswith("w2.weight")),
    )
    info = EditInfo(method="x", params={}, concept="x", base_digest="", rank=None, alpha=None, seed=0, steps=1,
                    losses=(), minutes=0.0)  # fmt: skip
    with Edit("delta", {name: torch.randn_like(weight) / 2}, info).apply(model.net):
        keep = build_keep(model, wanted, guards=(False, True, False), progress=silent)
    assert torch.equal(keep.ids[[0, 2]], base.ids[[0, 2]]) and not torch.equal(keep.ids[1], base.ids[1])
    keep.save(tmp_path)
    assert Keep.load(tmp_path).guards == keep.guards == (False, True, False) and base.guards is None


def test_save_and_load(tmp_path: Path, pairs: Pairs) -> None:
    keep = Keep(["ä house", "b"], torch.arange(8).view(2, 4))
    pairs.save(tmp_path)
    keep.save(tmp_path)
    loaded, kept = Pairs.load(tmp_path), Keep.load(tmp_path)
    assert (loaded.unsafe, loaded.safe, loaded.seeds, loaded.stats) == (
        pairs.unsafe,
        pairs.safe,
        pairs.seeds,
        pairs.stats,
    )
    assert torch.equal(loaded.unsafe_ids, pairs.unsafe_ids) and torch.equal(loaded.safe_ids, pairs.safe_ids)
    assert kept.prompts == keep.prompts and torch.equal(kept.ids, keep.ids)
    assert f'"seed": "{pairs.seeds[0]}"' in (tmp_path / "pairs.jsonl").read_text(), "beyond 2**53, so a string"
    assert json.loads((tmp_path / "stats.json").read_text())["reasons"] == pairs.stats.reasons


def test_damaged_files_are_refused(tmp_path: Path, pairs: Pairs) -> None:
    with pytest.raises(UsageError, match="nothing there"):
        Keep.load(tmp_path)
    Keep(["a", "b"], torch.arange(8).view(2, 4)).save(tmp_path)
    tokens, words = tmp_path / "keep.safetensors", tmp_path / "keep.jsonl"
    good = tokens.read_bytes(), words.read_bytes()
    for content in ((good[0][:-3], good[1]), (b"junk", good[1]), (good[0], good[1][:17]), (good[0], b'{"a": 1}\n')):
        tokens.write_bytes(content[0])
        words.write_bytes(content[1])
        with pytest.raises(TrustError):
            Keep.load(tmp_path)
    pairs.save(tmp_path)
    for text in ("{", "[]", '{"made": 1}'):
        (tmp_path / "stats.json").write_text(text)
        with pytest.raises(TrustError, match=r"stats\.json"):
            Pairs.load(tmp_path)


@pytest.mark.parametrize("hide", [False, True])
def test_the_sheet_shows_unsafe_above_safe_and_hides_what_it_must(
    model: LlamaGen, pairs: Pairs, tmp_path: Path, hide: bool
) -> None:
    save_sheet(pairs, model, tmp_path / "pairs.png", hide=hide)
    about = json.loads((tmp_path / "pairs.json").read_text())
    assert about["redaction"] == ("pixelated" if hide else "none")
    sheet, side, columns = Image.open(tmp_path / "pairs.png"), model.card.image_size, min(SHEET_COLUMNS, len(pairs))
    edge = side * -(-SMALLEST_TILE // side)
    assert sheet.width == columns * (edge + GAP) + GAP
    for row, ids in enumerate((pairs.unsafe_ids, pairs.safe_ids)):
        left, top = GAP + (columns - 1) * (edge + GAP), GAP + TITLE + row * (edge + GAP)
        tile = sheet.crop((left, top, left + edge, top + edge))
        shown = torch.frombuffer(
            bytearray(tile.resize((side, side), Image.Resampling.NEAREST).tobytes()), dtype=torch.uint8
        )
        same = alike(shown.view(side, side, 3).permute(2, 0, 1), model.decode(ids[:columns])[-1])
        if hide and row == 0:
            assert not same and len(tile.getcolors(edge * edge) or []) <= MOSAIC**2
        else:
            assert same
