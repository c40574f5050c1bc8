"""Contrastive pairs: the same seed drawn with an unsafe and with a safe caption, kept if the judge tells them apart.

The tokens are the ones that the model sampled, never re-encoded pictures: those are what it would say itself
(methods.md section 1, P2 to P6). `Keep` holds the model's own pictures of prompts that must not change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from safear_edit.errors import TrustError, UsageError
from safear_edit.progress import Callback
from safear_edit.rundir import write_atomic

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge, Verdict

SHEET_COLUMNS, SHEET_GAP = 12, 2
FEWEST = 8
"""Fewer pairs than this teach one picture rather than a concept."""


@dataclass(frozen=True)
class PairStats:
    """How many pairs were made and kept, and for each reason how many were dropped."""

    made: int
    kept: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class Pairs:
    """n pairs: captions, seeds, and image tokens (n, N), or bits (n, N, d), of the unsafe and the safe picture."""

    unsafe: list[str]
    safe: list[str]
    seeds: list[int]
    unsafe_ids: Tensor
    safe_ids: Tensor
    stats: PairStats

    def __len__(self) -> int:
        return len(self.seeds)

    def save(self, folder: Path) -> None:
        """Write pairs.safetensors and, to be read by people, pairs.jsonl (seeds as strings: they exceed 2**53)."""
        rows = [
            {"unsafe": u, "safe": s, "seed": str(seed)}
            for u, s, seed in zip(self.unsafe, self.safe, self.seeds, strict=True)
        ]
        stats = {"made": self.stats.made, "kept": self.stats.kept, "reasons": self.stats.reasons}
        _write(folder / "pairs", {"unsafe_ids": self.unsafe_ids, "safe_ids": self.safe_ids}, rows, {"stats": stats})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; UsageError if it is not there, TrustError if it is damaged."""
        tensors, rows, about = _read(folder / "pairs", ("unsafe_ids", "safe_ids"), ("unsafe", "safe", "seed"))
        unsafe, safe = [row["unsafe"] for row in rows], [row["safe"] for row in rows]
        seeds = [int(row["seed"]) for row in rows]
        return cls(unsafe, safe, seeds, tensors["unsafe_ids"], tensors["safe_ids"], PairStats(**about["stats"]))


@dataclass(frozen=True)
class Keep:
    """m preserved prompts with the base model's own picture of each, tokens (m, N) or bits (m, N, d)."""

    prompts: list[str]
    ids: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def save(self, folder: Path) -> None:
        """Write keep.safetensors and keep.jsonl."""
        _write(folder / "keep", {"ids": self.ids}, [{"prompt": prompt} for prompt in self.prompts], {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; UsageError if it is not there, TrustError if it is damaged."""
        tensors, rows, _ = _read(folder / "keep", ("ids",), ("prompt",))
        return cls([row["prompt"] for row in rows], tensors["ids"])


@dataclass(frozen=True)
class Material:
    """What a method learns from; `concept` is only a name, for the edit's description."""

    concept: str
    pairs: Pairs
    keep: Keep | None = None


@torch.no_grad()
def build_pairs(
    model: ModelFamily,
    wanted: Sequence[tuple[str, str, int]],
    judge: Judge,
    *,
    progress: Callback,
    batch: int = 32,
    fewest: int = FEWEST,
) -> Pairs:
    """Draw (unsafe caption, safe caption, seed) pairs and keep those that the judge tells apart.

    Kept: the judge finds the concept in the unsafe picture and says that it is absent from the safe one; "cannot tell"
    drops the pair. UsageError with the commonest reason if fewer than `fewest` are left.
    """
    prompts = [prompt for unsafe, safe, _ in wanted for prompt in (unsafe, safe)]
    seeds = [seed for _, _, seed in wanted for _ in range(2)]
    ids: list[Tensor] = []
    verdicts: list[Verdict] = []
    for start in range(0, len(prompts), 2 * batch):
        end = min(start + 2 * batch, len(prompts))
        ids.append(_draw(model, prompts[start:end], seeds[start:end]))
        verdicts += judge.look(model.decode(ids[-1]))
        progress("pairs", end // 2, len(wanted), "")
    reasons = [_why_dropped(u, s) for u, s in zip(verdicts[0::2], verdicts[1::2], strict=True)]
    kept = [i for i, reason in enumerate(reasons) if reason is None]
    dropped = dict(Counter(reason for reason in reasons if reason is not None).most_common())
    progress("pairs", len(wanted), len(wanted), f"kept {len(kept)}")
    if len(kept) < fewest:
        why = "; ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none asked for"
        fix = "ask for more pairs, or choose prompts that this model obeys"
        raise UsageError("pairs", f"at least {fewest} usable of {len(wanted)}", f"{len(kept)} ({why})", fix)
    both = torch.cat(ids)
    return Pairs(
        [wanted[i][0] for i in kept],
        [wanted[i][1] for i in kept],
        [wanted[i][2] for i in kept],
        both[0::2][kept].clone(),
        both[1::2][kept].clone(),
        PairStats(len(wanted), len(kept), dropped),
    )


@torch.no_grad()
def build_keep(model: ModelFamily, wanted: Sequence[tuple[str, int]], *, progress: Callback, batch: int = 64) -> Keep:
    """Draw the model's own picture of each (prompt, seed) that must not change; no judge: what it draws is right."""
    ids = []
    for start in range(0, len(wanted), batch):
        part = wanted[start : start + batch]
        ids.append(_draw(model, [prompt for prompt, _ in part], [seed for _, seed in part]))
        progress("keep", start + len(part), len(wanted), "")
    if not ids:
        raise UsageError("keep", "at least one prompt", "none", "leave keep out instead")
    return Keep([prompt for prompt, _ in wanted], torch.cat(ids))


def _draw(model: ModelFamily, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Sampled ids on the CPU; equal captions are encoded once."""
    distinct = list(dict.fromkeys(prompts))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    condition = model.condition(distinct).rows(torch.tensor([place[prompt] for prompt in prompts]))
    return model.generate(condition, seeds).cpu()


def _why_dropped(unsafe: Verdict, safe: Verdict) -> str | None:
    """None if the pair is good, else the reason in words that count well."""
    if unsafe.present is None or safe.present is None:
        return "the judge cannot tell"
    if not unsafe.present:
        return "unsafe caption, concept not drawn"
    return "safe caption, concept drawn" if safe.present else None


@torch.no_grad()
def save_sheet(pairs: Pairs, model: ModelFamily, path: Path) -> None:
    """A PNG of the first 12 pairs, unsafe above safe, for a person to look at."""
    from io import BytesIO

    from PIL import Image

    rows = [model.decode(ids[:SHEET_COLUMNS]).cpu() for ids in (pairs.unsafe_ids, pairs.safe_ids)]
    count, channels, height, width = rows[0].shape
    sheet = torch.full((2 * (height + SHEET_GAP), count * (width + SHEET_GAP), channels), 255, dtype=torch.uint8)
    for r, pictures in enumerate(rows):
        for c, picture in enumerate(pictures):
            top, left = r * (height + SHEET_GAP), c * (width + SHEET_GAP)
            sheet[top : top + height, left : left + width] = picture.permute(1, 2, 0)
    png = BytesIO()
    Image.fromarray(sheet.numpy()).save(png, "PNG")
    write_atomic(path, png.getvalue())


# -- files: NAME.safetensors for tokens, NAME.jsonl for words ---------------------------------------------------------


def _write(path: Path, tensors: dict[str, Tensor], rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path.with_suffix(".safetensors"), dump_tensors(contiguous, {"about": json.dumps(about)}))
    write_atomic(path.with_suffix(".jsonl"), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read(
    path: Path, names: Sequence[str], keys: Sequence[str]
) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any]]:
    words, tokens = path.with_suffix(".jsonl"), path.with_suffix(".safetensors")
    for file in (words, tokens):
        if not file.is_file():
            raise UsageError(str(file), "a file of the construct step", "nothing there", "construct again")
    rows = list(_rows(words, keys))
    try:
        with safe_open(tokens, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in names}
            about: dict[str, Any] = json.loads((opened.metadata() or {})["about"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrustError(str(tokens), f"tensors {', '.join(names)}", str(error), "construct again") from None
    for name, tensor in tensors.items():
        if len(tensor) != len(rows):
            raise TrustError(str(tokens), f"{len(rows)} rows in {name}", str(len(tensor)), "construct again")
    return tensors, rows, about


def _rows(path: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TrustError(where, "JSON", str(error), "construct again") from None
        if not isinstance(row, dict) or set(row) != set(keys):
            raise TrustError(where, f"the keys {', '.join(keys)}", line[:60], "construct again")
        yield row
