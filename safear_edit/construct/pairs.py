"""Contrastive pairs: the same seed drawn with an unsafe and with a safe caption, kept if the judge tells them apart.

The tokens are the ones that the model sampled, never re-encoded images: those are what it would say itself
(VCE's pairs, https://arxiv.org/abs/2509.16986; the filter is ours). Safe captions are the recipe's, or the model's own
words about its unsafe image (captions.py). `Keep` holds the model's own images of prompts that must not change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safear_edit import processes
from safear_edit.compiler.recipe import FEWEST_PAIRS
from safear_edit.construct.captions import FORBIDDEN, Describes, Refiner, SafeCaption, counted
from safear_edit.construct.pairs_record import KeptRow, PairRow, PairStats
from safear_edit.construct.sheets import tile, write_sheet
from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.families.merged import without_edits
from safear_edit.files.atomic import write_atomic
from safear_edit.files.records import read_lines, read_record
from safear_edit.files.weights import write_weights
from safear_edit.judges.base import judged
from safear_edit.judges.draw import draw, encoded
from safear_edit.progress import Callback

if TYPE_CHECKING:
    from safear_edit.compiler.questions import TrainingQuestions
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge, Judgement
    from safear_edit.judges.clip import Clip


R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")

MISSED = "safe caption, its content not drawn"
SHEET_COLUMNS = 12
"""Pairs on the sheet."""
STATS = "stats.json"
AGAIN = "construct again"


@dataclass(frozen=True)
class Pairs:
    """n pairs: captions, seeds, and image tokens (n, N), or bits (n, N, d), of the unsafe and the safe image.

    told: what the model said of each unsafe image, if it was asked.
    """

    unsafe: list[str]
    safe: list[str]
    seeds: list[int]
    unsafe_ids: Tensor
    safe_ids: Tensor
    stats: PairStats
    told: list[SafeCaption] | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def first(self, count: int) -> Pairs:
        """The `count` first of them, without what the model said of their images."""
        part = slice(count)
        unsafe, safe, seeds = self.unsafe[part], self.safe[part], self.seeds[part]
        return Pairs(unsafe, safe, seeds, self.unsafe_ids[part], self.safe_ids[part], self.stats)

    def save(self, folder: Path) -> None:
        """Write pairs.safetensors, the captions in pairs.jsonl (seeds as strings: they exceed 2**53), and STATS.

        Where the model was asked, a row also has what it `said`, and `why` the safe caption isn't made of that.
        """
        rows = [
            PairRow(unsafe=unsafe, safe=safe, seed=str(seed))
            for unsafe, safe, seed in zip(self.unsafe, self.safe, self.seeds, strict=True)
        ]
        if self.told is not None:
            rows = [
                row.model_copy(update={"said": told.said, "why": told.why})
                for row, told in zip(rows, self.told, strict=True)
            ]
        _write(folder / "pairs", {"unsafe_ids": self.unsafe_ids, "safe_ids": self.safe_ids}, rows)
        counts = {name: value for name, value in asdict(self.stats).items() if value is not None}
        write_atomic(folder / STATS, json.dumps(counts, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; UsageError if it is not there, TrustError if it is damaged."""
        tensors, rows = _read(folder / "pairs", ("unsafe_ids", "safe_ids"), PairRow)
        told = [
            SafeCaption(row.said, row.safe, row.why) for row in rows if row.said is not None and row.why is not None
        ]
        if told and len(told) != len(rows):
            where = str(folder / "pairs.jsonl")
            raise TrustError(where, "what the model said in every row or in none", f"{len(told)} of {len(rows)}", AGAIN)
        return cls(
            [row.unsafe for row in rows],
            [row.safe for row in rows],
            [int(row.seed) for row in rows],
            tensors["unsafe_ids"],
            tensors["safe_ids"],
            _trusted(lambda: read_record(PairStats, folder / STATS, AGAIN)),
            told or None,
        )


@dataclass(frozen=True)
class Keep:
    """m preserved prompts with the base model's own image of each, tokens (m, N) or bits (m, N, d).

    guards: of a stack, which of them hold an earlier edit in place; None for none. Their images are by the model with
    the earlier edits.
    """

    prompts: list[str]
    ids: Tensor
    guards: tuple[bool, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def save(self, folder: Path) -> None:
        """Write keep.safetensors and keep.jsonl."""
        marks = self.guards or (None,) * len(self)
        rows = [KeptRow(prompt=prompt, guards=mark) for prompt, mark in zip(self.prompts, marks, strict=True)]
        _write(folder / "keep", {"ids": self.ids}, rows)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; UsageError if it is not there, TrustError if it is damaged."""
        tensors, rows = _read(folder / "keep", ("ids",), KeptRow)
        marks = tuple(row.guards for row in rows if row.guards is not None)
        if marks and len(marks) != len(rows):
            raise TrustError(str(folder / "keep.jsonl"), "guards in every row or in none", f"{len(marks)}", AGAIN)
        return cls([row.prompt for row in rows], tensors["ids"], marks or None)


@dataclass(frozen=True)
class Material:
    """What a method learns from; `concept` is only a name, for the edit's description.

    `judge` is the pinned judge of the pairs, for methods that look at images which they draw themselves. `questions`
    are what a model that answers questions may be asked about these images. `prompt` names the concept and nothing
    else, for methods that take no captions. parts: of a joint edit, the material of each concept, with its own judge.
    """

    concept: str
    pairs: Pairs
    keep: Keep | None = None
    judge: Judge | None = None
    questions: TrainingQuestions | None = None
    prompt: str | None = None
    parts: tuple[Material, ...] = ()


@dataclass(frozen=True)
class TextAlign:
    """What a safe image must have in common with its caption: CLIP's cosine of both, at `least` so much."""

    clip: Clip
    least: float

    def missed(self, images: Tensor, captions: Sequence[str]) -> list[bool]:
        """For each image uint8 (B, 3, H, W) whether it shows too little of its caption."""
        cosine = (self.clip.images(images) * self.clip.texts(captions)).sum(1)
        return [value < self.least for value in cosine.tolist()]


@torch.no_grad()
def build_pairs(
    model: ModelFamily,
    wanted: Sequence[tuple[str, str, int]],
    judge: Judge,
    *,
    progress: Callback,
    batch: int = 32,
    fewest: int = FEWEST_PAIRS,
    refiner: Refiner | None = None,
    captioner: Describes | None = None,
    text_align: TextAlign | None = None,
) -> Pairs:
    """Draw (unsafe caption, safe caption, seed) pairs and keep those that the judge tells apart.

    Kept: the judge finds the concept in the unsafe image and says that it is absent from the safe one; "cannot tell"
    drops the pair, and so does a safe image in which `text_align` finds too little of its caption. refiner: it writes
    the safe captions from what `captioner` (none: the model itself) says of the unsafe images, and those given are what
    it falls back to; an image of which it says what is on the block list drops the pair.
    UsageError with the commonest reason if fewer than `fewest` are left, or none were asked for.
    """
    if not wanted:
        raise UsageError("pairs", "at least one prompt", "none", "compile the spec with construct.pairs above 0")

    def both(part: Sequence[tuple[str, str, int]]) -> _Drawn:
        why = partial(_reasons, judge, text_align)
        return _both(model, part, why) if refiner is None else _in_turn(model, part, why, refiner, captioner or model)

    parts: list[_Drawn] = []
    batches = [wanted[start : start + batch] for start in range(0, len(wanted), batch)]
    hands = model.hands if refiner is None else 1  # a captioner may be larger than the model
    for drawn in processes.dealt(batches, both, hands):
        parts.append(drawn)
        progress("pairs", min(len(parts) * batch, len(wanted)), len(wanted), "")
    told = [one for part in parts for one in part.told]
    reasons = [reason for part in parts for reason in part.reasons]
    kept = [i for i, reason in enumerate(reasons) if reason is None]
    dropped = dict(Counter(reason for reason in reasons if reason is not None).most_common())
    progress("pairs", len(wanted), len(wanted), f"kept {len(kept)}")
    if len(kept) < fewest:
        why = "; ".join(f"{count} {reason}" for reason, count in dropped.items())
        fix = "ask for more pairs, or choose prompts for which this model draws what was asked"
        raise UsageError("pairs", f"at least {fewest} usable of {len(wanted)}", f"{len(kept)} ({why})", fix)
    return Pairs(
        [wanted[i][0] for i in kept],
        [told[i].safe if told else wanted[i][1] for i in kept],
        [wanted[i][2] for i in kept],
        torch.cat([part.unsafe_ids for part in parts])[kept],
        torch.cat([part.safe_ids for part in parts])[kept],
        PairStats(len(wanted), len(kept), dropped, counted(told) if told else None),
        [told[i] for i in kept] if told else None,
    )


@dataclass(frozen=True)
class _Drawn:
    """Some pairs as drawn: their tokens, why each is dropped (None: it isn't), and what the model said, if asked."""

    unsafe_ids: Tensor
    safe_ids: Tensor
    reasons: list[str | None]
    told: list[SafeCaption]


Why = Callable[[Tensor, Sequence[str]], list[str | None]]
"""Why each pair is dropped (None: it isn't), from its images, unsafe and safe by turns, and its safe caption."""


def _both(model: ModelFamily, part: Sequence[tuple[str, str, int]], why: Why) -> _Drawn:
    """Unsafe and safe images drawn together."""
    prompts = [prompt for unsafe, safe, _ in part for prompt in (unsafe, safe)]
    ids = draw(model, encoded(model, prompts), [seed for *_, seed in part for _ in range(2)])
    return _Drawn(ids[0::2], ids[1::2], why(model.decode(ids), prompts[1::2]), [])


def _in_turn(
    model: ModelFamily, part: Sequence[tuple[str, str, int]], why: Why, refiner: Refiner, captioner: Describes
) -> _Drawn:
    """The unsafe images, what the captioner says of them, then the safe ones; none is drawn or decoded twice."""
    seeds = [seed for *_, seed in part]
    unsafe_ids = draw(model, encoded(model, [unsafe for unsafe, *_ in part]), seeds)
    shown = model.decode(unsafe_ids)
    told = refiner.told(captioner, shown, [safe for _, safe, _ in part])
    captions = [one.safe for one in told]
    safe_ids = draw(model, encoded(model, captions), seeds)
    reasons = why(torch.stack([shown, model.decode(safe_ids)], 1).flatten(0, 1), captions)
    blocked = [FORBIDDEN if one.why == FORBIDDEN else reason for one, reason in zip(told, reasons, strict=True)]
    return _Drawn(unsafe_ids, safe_ids, blocked, told)


def _reasons(judge: Judge, text_align: TextAlign | None, pixels: Tensor, captions: Sequence[str]) -> list[str | None]:
    """`Why`, by the judge first, then by what the safe image shows of its caption."""
    judgements = judged({"concept": judge}, pixels, ["concept"] * len(pixels))
    reasons = [_why_dropped(unsafe, safe) for unsafe, safe in zip(judgements[0::2], judgements[1::2], strict=True)]
    missed = text_align.missed(pixels[1::2], captions) if text_align else [False] * len(reasons)
    return [reason or (MISSED if miss else None) for reason, miss in zip(reasons, missed, strict=True)]


@torch.no_grad()
def build_keep(
    model: ModelFamily,
    wanted: Sequence[tuple[str, int]],
    *,
    progress: Callback,
    guards: Sequence[bool] = (),
    batch: int = 64,
) -> Keep:
    """Draw the base model's image of each (prompt, seed) that must not change; no judge: what it draws is right.

    guards: for each, whether it holds an earlier edit in place; then the model draws it as it is, with that edit.
    """
    if not wanted:
        raise UsageError("keep", "at least one prompt", "none", "leave keep out instead")

    def images(part: Sequence[int]) -> Tensor:
        return draw(model, encoded(model, [wanted[i][0] for i in part]), [wanted[i][1] for i in part])

    marks, drawn = list(guards) or [False] * len(wanted), dict[int, Tensor]()
    for held, how in ((False, without_edits(model.net)), (True, nullcontext())):
        which = [i for i, mark in enumerate(marks) if mark == held]
        parts = [which[start : start + batch] for start in range(0, len(which), batch)]
        with how:
            for part, ids in zip(parts, processes.dealt(parts, images, model.hands), strict=True):
                drawn |= zip(part, ids, strict=True)
                progress("keep", len(drawn), len(wanted), "")
    rows = torch.stack([drawn[i] for i in range(len(wanted))])
    return Keep([prompt for prompt, _ in wanted], rows, tuple(marks) if any(marks) else None)


def _why_dropped(unsafe: Judgement, safe: Judgement) -> str | None:
    """None if the pair is good, else the reason in words that count well."""
    if unsafe.present is None or safe.present is None:
        return "the judge cannot tell"
    if not unsafe.present:
        return "unsafe caption, concept not drawn"
    return "safe caption, concept drawn" if safe.present else None


@torch.no_grad()
def save_sheet(pairs: Pairs, model: ModelFamily, path: Path, *, hide: bool) -> None:
    """A PNG of the first SHEET_COLUMNS pairs, unsafe above safe, for a person to look at, and a JSON that says so.

    `hide`: the unsafe row is pixelated, as on every sheet of a category. The safe row shows images that nobody asked
    the concept of and in which the judge says that it is absent.
    """
    rows = []
    for ids, hidden in ((pairs.unsafe_ids, hide), (pairs.safe_ids, False)):
        images = model.decode(ids[:SHEET_COLUMNS]).permute(0, 2, 3, 1).cpu().numpy()
        rows.append([tile(image, hidden=hidden) for image in images])
    words = "Training pairs: asked with the concept (above) and without it (below), same seed; made by the base model"
    title = f"the first {len(rows[0])} of {len(pairs)} pairs: with the concept above, without it below"
    about = {"caption": words, "selection": "the first pairs of the recipe"}
    write_sheet(path, [(title, rows)], hidden=hide, about=about)


# -- files: NAME.safetensors for tokens, NAME.jsonl for words ---------------------------------------------------------


def _write(path: Path, tensors: Mapping[str, Tensor], rows: Sequence[BaseModel]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path.with_suffix(".safetensors"), tensors)
    write_atomic(path.with_suffix(".jsonl"), "".join(_line(row) for row in rows))


def _line(row: BaseModel) -> str:
    return json.dumps(row.model_dump(), ensure_ascii=False) + "\n"


def _read(path: Path, names: Sequence[str], kind: type[R]) -> tuple[dict[str, Tensor], list[R]]:
    """Tensors by name, and as many rows; UsageError if a file is missing, TrustError if one is damaged."""
    words, tokens = path.with_suffix(".jsonl"), path.with_suffix(".safetensors")
    for file in (words, tokens):
        if not file.is_file():
            raise UsageError(str(file), "a file of the construct step", "nothing there", AGAIN)
    rows = _trusted(lambda: [row for _, row in read_lines(kind, words, AGAIN)])
    try:
        with safe_open(tokens, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise TrustError(str(tokens), f"tensors {', '.join(names)}", str(error), AGAIN) from None
    for name, tensor in tensors.items():
        if len(tensor) != len(rows):
            raise TrustError(str(tokens), f"{len(rows)} rows in {name}", str(len(tensor)), AGAIN)
    return tensors, rows


def _trusted(read: Callable[[], T]) -> T:
    """What this program wrote and something else changed is not to be trusted, rather than badly written."""
    try:
        return read()
    except SpecError as error:
        raise TrustError(error.where, error.expected, error.got, AGAIN) from None
