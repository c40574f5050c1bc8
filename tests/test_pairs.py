"""Pairs hold the model's own tokens, only those that the judge tells apart, and survive the disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from safear_edit.errors import TrustError, UsageError
from safear_edit.families.llamagen import LlamaGen
from safear_edit.judges.base import Judge, Verdict
from safear_edit.pairs import Keep, Pairs, build_keep, build_pairs, save_sheet
from safear_edit.progress import silent

SUBJECTS = ["a house", "a dog at night", "a fish", "an apple in the snow"]
WANTED = [(f"{s} by Picasso", f"a photo of {s}", 2**60 + i) for i in range(5) for s in SUBJECTS]


class Bright(Judge):
    """Finds the "concept" in pictures brighter than most; can't tell near the border."""

    id, digest, threshold = "bright", "0", 0.5

    def __init__(self, border: float, band: float = 0.0) -> None:
        self.border, self.band = border, band

    def look(self, images: Tensor) -> list[Verdict]:
        means = images.float().mean((1, 2, 3)).tolist()
        known = [None if abs(mean - self.border) < self.band else mean > self.border for mean in means]
        return [Verdict(present, mean / 255, "") for present, mean in zip(known, means, strict=True)]


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico(seed=0)


@pytest.fixture(scope="module")
def alone(model: LlamaGen) -> list[tuple[Tensor, Tensor]]:
    """Every pair's tokens, one picture at a time."""
    return [tuple(model.generate(model.condition([p]), [seed])[0] for p in (u, s)) for u, s, seed in WANTED]  # type: ignore[misc]


@pytest.fixture(scope="module")
def judge(model: LlamaGen, alone: list[tuple[Tensor, Tensor]]) -> Bright:
    pictures = model.decode(torch.stack([ids for pair in alone for ids in pair]))
    means = pictures.float().mean((1, 2, 3))
    return Bright(float(means.median()) + 1e-3, float(means.std()) / 10)


@pytest.fixture(scope="module")
def pairs(model: LlamaGen, judge: Bright) -> Pairs:
    return build_pairs(model, WANTED, judge, progress=silent, batch=6, fewest=1)


def test_kept_are_those_that_the_judge_tells_apart(
    model: LlamaGen, alone: list[tuple[Tensor, Tensor]], judge: Bright, pairs: Pairs
) -> None:
    verdicts = [[v.present for v in judge.look(model.decode(torch.stack(pair)))] for pair in alone]
    kept = [i for i, pair in enumerate(verdicts) if pair == [True, False]]
    assert 0 < len(kept) < len(WANTED)
    assert list(zip(pairs.unsafe, pairs.safe, pairs.seeds, strict=True)) == [WANTED[i] for i in kept]
    assert torch.equal(pairs.unsafe_ids, torch.stack([alone[i][0] for i in kept]))
    assert torch.equal(pairs.safe_ids, torch.stack([alone[i][1] for i in kept]))
    assert pairs.stats.made == len(WANTED) and pairs.stats.kept == len(pairs) == len(kept)
    unclear = sum(None in pair for pair in verdicts)
    expected = Counter(
        {
            "the judge cannot tell": unclear,
            "unsafe caption, concept not drawn": sum(pair[0] is False and pair[1] is not None for pair in verdicts),
            "safe caption, concept drawn": sum(pair == [True, True] for pair in verdicts),
        }
    )
    assert pairs.stats.reasons == {reason: count for reason, count in expected.items() if count}


def test_too_few_pairs_is_one_clear_line(model: LlamaGen) -> None:
    with pytest.raises(UsageError, match=r"at least 8 usable of 4, got 0 \(4 unsafe caption, concept not drawn\)"):
        build_pairs(model, WANTED[:4], Bright(255.0), progress=silent)


def test_progress_ends_at_the_total(model: LlamaGen, judge: Bright) -> None:
    calls: list[tuple[str, int, int, str]] = []
    build_pairs(model, WANTED[:5], judge, progress=lambda *call: calls.append(call), batch=2, fewest=0)
    assert [call[1] for call in calls] == [2, 4, 5, 5] and calls[-1][3].startswith("kept ")


def test_keep_is_the_models_own_pictures(model: LlamaGen) -> None:
    keep = build_keep(model, [("a house", 5), ("a dog", 6), ("a house", 7)], progress=silent, batch=2)
    for i, (prompt, seed) in enumerate((("a house", 5), ("a dog", 6), ("a house", 7))):
        assert torch.equal(keep.ids[i], model.generate(model.condition([prompt]), [seed])[0])
    with pytest.raises(UsageError, match="at least one prompt"):
        build_keep(model, [], progress=silent)


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


def test_damaged_files_are_refused(tmp_path: Path) -> None:
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


def test_the_sheet_shows_unsafe_above_safe(model: LlamaGen, pairs: Pairs, tmp_path: Path) -> None:
    save_sheet(pairs, model, tmp_path / "pairs.png")
    sheet = torch.tensor(list(Image.open(tmp_path / "pairs.png").tobytes()), dtype=torch.uint8)
    side, columns = model.card.image_size, min(12, len(pairs))
    sheet = sheet.view(2 * (side + 2), columns * (side + 2), 3)
    for row, ids in enumerate((pairs.unsafe_ids, pairs.safe_ids)):
        last = sheet[row * (side + 2) :, (columns - 1) * (side + 2) :][:side, :side]
        assert torch.equal(last.permute(2, 0, 1), model.decode(ids[columns - 1 : columns])[0])
