"""Contrastive pairs: the same seed drawn with an unsafe and with a safe caption, kept if the judge tells them apart.

The tokens are the ones that the model sampled, never re-encoded images: those are what it would say itself
(VCE's pairs, https://arxiv.org/abs/2509.16986; the filter is ours). Safe captions are the recipe's, or the model's own
words about its unsafe image (captions.py). `Keep` holds the model's own images of prompts that must not change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safear_edit.compiler.recipe import FEWEST_PAIRS
from safear_edit.construct.captions import FORBIDDEN, Captions, Refiner, SafeCaption
from safear_edit.construct.sheets import tile, write_sheet
from safear_edit.errors import TrustError, UsageError
from safear_edit.families.merged import without_edits
from safear_edit.files.atomic import write_atomic
from safear_edit.files.weights import write_weights
from safear_edit.progress import Callback

if TYPE_CHECKING:
    from safear_edit.compiler.questions import TrainingQuestions
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge, Judgement


SHEET_COLUMNS = 12
"""Pairs on the sheet."""
STATS = "stats.json"


@dataclass(frozen=True)
class PairStats:
    """How many pairs were made and kept, and for each reason how many were dropped; captions: who wrote the safe ones
    of all that were made, if the model was asked."""

    made: int
    kept: int
    reasons: dict[str, int]
    captions: Captions | None = None

    def to_json(self) -> str:
        """What `save` writes; without captions nothing is said of them."""
        counts = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(counts, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """ValueError, TypeError or AttributeError for anything that `to_json` doesn't write."""
        counts = json.loads(text)
        if captions := counts.pop("captions", None):
            counts["captions"] = Captions(**captions)
        return cls(**counts)


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

    def save(self, folder: Path) -> None:
        """Write pairs.safetensors, the captions in pairs.jsonl (seeds as strings: they exceed 2**53), and STATS.

        Where the model was asked, a row also has what it `said`, and `why` the safe caption isn't made of that.
        """
        rows = [
            {"unsafe": u, "safe": s, "seed": str(seed)}
            for u, s, seed in zip(self.unsafe, self.safe, self.seeds, strict=True)
        ]
        if self.told is not None:
            rows = [row | {"said": t.said, "why": t.why} for row, t in zip(rows, self.told, strict=True)]
        _write(folder / "pairs", {"unsafe_ids": self.unsafe_ids, "safe_ids": self.safe_ids}, rows)
        write_atomic(folder / STATS, self.stats.to_json())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; UsageError if it is not there, TrustError if it is damaged."""
        keys = ("unsafe", "safe", "seed")
        tensors, rows = _read(folder / "pairs", ("unsafe_ids", "safe_ids"), keys, ("said", "why"))
        unsafe, safe = [row["unsafe"] for row in rows], [row["safe"] for row in rows]
        seeds = [int(row["seed"]) for row in rows]
        asked = bool(rows) and "said" in rows[0]
        told = [SafeCaption(row["said"], row["safe"], row["why"]) for row in rows] if asked else None
        return cls(unsafe, safe, seeds, tensors["unsafe_ids"], tensors["safe_ids"], _read_stats(folder / STATS), told)


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
        marks = [{}] * len(self) if self.guards is None else [{"guards": mark} for mark in self.guards]
        rows = [{"prompt": prompt} | mark for prompt, mark in zip(self.prompts, marks, strict=True)]
        _write(folder / "keep", {"ids": self.ids}, rows)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; UsageError if it is not there, TrustError if it is damaged."""
        tensors, rows = _read(folder / "keep", ("ids",), ("prompt",), ("guards",))
        guards = tuple(bool(row["guards"]) for row in rows) if rows and "guards" in rows[0] else None
        return cls([row["prompt"] for row in rows], tensors["ids"], guards)


@dataclass(frozen=True)
class Material:
    """What a method learns from; `concept` is only a name, for the edit's description.

    `judge` is the pinned judge of the pairs, for methods that look at images which they draw themselves. `questions`
    are what a model that answers questions may be asked about these images.
    """

    concept: str
    pairs: Pairs
    keep: Keep | None = None
    judge: Judge | None = None
    questions: TrainingQuestions | None = None


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
) -> Pairs:
    """Draw (unsafe caption, safe caption, seed) pairs and keep those that the judge tells apart.

    Kept: the judge finds the concept in the unsafe image and says that it is absent from the safe one; "cannot tell"
    drops the pair. refiner: it writes the safe captions from what the model says of its unsafe images, and those
    given are what it falls back to; an image of which the model says what is on the block list drops the pair.
    UsageError with the commonest reason if fewer than `fewest` are left, or none were asked for.
    """
    if not wanted:
        raise UsageError("pairs", "at least one prompt", "none", "compile the spec with construct.pairs above 0")
    parts: list[_Drawn] = []
    for start in range(0, len(wanted), batch):
        part = wanted[start : start + batch]
        parts.append(_both(model, part, judge) if refiner is None else _in_turn(model, part, judge, refiner))
        progress("pairs", start + len(part), len(wanted), "")
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
        PairStats(len(wanted), len(kept), dropped, Captions.of(told) if told else None),
        [told[i] for i in kept] if told else None,
    )


@dataclass(frozen=True)
class _Drawn:
    """Some pairs as drawn: their tokens, why each is dropped (None: it isn't), and what the model said, if asked."""

    unsafe_ids: Tensor
    safe_ids: Tensor
    reasons: list[str | None]
    told: list[SafeCaption]


def _both(model: ModelFamily, part: Sequence[tuple[str, str, int]], judge: Judge) -> _Drawn:
    """Unsafe and safe images drawn together."""
    prompts = [prompt for unsafe, safe, _ in part for prompt in (unsafe, safe)]
    ids = _draw(model, prompts, [seed for *_, seed in part for _ in range(2)])
    return _Drawn(ids[0::2], ids[1::2], _reasons(judge.look(model.decode(ids))), [])


def _in_turn(model: ModelFamily, part: Sequence[tuple[str, str, int]], judge: Judge, refiner: Refiner) -> _Drawn:
    """The unsafe images, what the model says of them, then the safe ones; none is drawn or decoded twice."""
    seeds = [seed for *_, seed in part]
    unsafe_ids = _draw(model, [unsafe for unsafe, *_ in part], seeds)
    shown = model.decode(unsafe_ids)
    told = refiner.told(model, shown, [safe for _, safe, _ in part])
    safe_ids = _draw(model, [one.safe for one in told], seeds)
    reasons = _reasons(judge.look(torch.stack([shown, model.decode(safe_ids)], 1).flatten(0, 1)))
    blocked = [FORBIDDEN if one.why == FORBIDDEN else why for one, why in zip(told, reasons, strict=True)]
    return _Drawn(unsafe_ids, safe_ids, blocked, told)


def _reasons(judgements: Sequence[Judgement]) -> list[str | None]:
    """Why each pair is dropped, from the judgements on its two images, unsafe and safe by turns."""
    return [_why_dropped(unsafe, safe) for unsafe, safe in zip(judgements[0::2], judgements[1::2], strict=True)]


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
    marks, drawn = list(guards) or [False] * len(wanted), dict[int, Tensor]()
    for held, how in ((False, without_edits(model.net)), (True, nullcontext())):
        which = [i for i, mark in enumerate(marks) if mark == held]
        with how:
            for start in range(0, len(which), batch):
                part = which[start : start + batch]
                drawn |= zip(
                    part, _draw(model, [wanted[i][0] for i in part], [wanted[i][1] for i in part]), strict=True
                )
                progress("keep", len(drawn), len(wanted), "")
    ids = torch.stack([drawn[i] for i in range(len(wanted))])
    return Keep([prompt for prompt, _ in wanted], ids, tuple(marks) if any(marks) else None)


def _draw(model: ModelFamily, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Sampled ids on the CPU; equal captions are encoded once."""
    distinct = list(dict.fromkeys(prompts))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    condition = model.condition(distinct).rows(torch.tensor([place[prompt] for prompt in prompts]))
    return model.generate(condition, seeds).cpu()


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


def _write(path: Path, tensors: Mapping[str, Tensor], rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path.with_suffix(".safetensors"), tensors)
    write_atomic(path.with_suffix(".jsonl"), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read(
    path: Path, names: Sequence[str], keys: Sequence[str], more: Sequence[str] = ()
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors by name, and rows that have `keys`, and either all or none of `more`, the same for every row."""
    words, tokens = path.with_suffix(".jsonl"), path.with_suffix(".safetensors")
    for file in (words, tokens):
        if not file.is_file():
            raise UsageError(str(file), "a file of the construct step", "nothing there", "construct again")
    rows = list(_rows(words, keys, more))
    try:
        with safe_open(tokens, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise TrustError(str(tokens), f"tensors {', '.join(names)}", str(error), "construct again") from None
    for name, tensor in tensors.items():
        if len(tensor) != len(rows):
            raise TrustError(str(tokens), f"{len(rows)} rows in {name}", str(len(tensor)), "construct again")
    return tensors, rows


def _read_stats(path: Path) -> PairStats:
    try:
        return PairStats.from_json(path.read_text())
    except OSError:
        raise UsageError(str(path), "a file of the construct step", "nothing there", "construct again") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise TrustError(str(path), "made, kept and reasons", str(error), "construct again") from None


def _rows(path: Path, keys: Sequence[str], more: Sequence[str]) -> Iterator[dict[str, Any]]:
    wanted = {*keys}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TrustError(where, "JSON", str(error), "construct again") from None
        if number == 1 and isinstance(row, dict) and set(row) & set(more):
            wanted |= {*more}
        if not isinstance(row, dict) or set(row) != wanted:
            raise TrustError(where, f"the keys {', '.join(sorted(wanted))}", line[:60], "construct again")
        yield row
