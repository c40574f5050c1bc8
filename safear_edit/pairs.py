"""Contrastive pairs: the same seed drawn with an unsafe and with a safe caption, kept if the judge tells them apart.

The tokens are the ones that the model sampled, never re-encoded pictures: those are what it would say itself
(methods.md section 1, P2 to P6). `Keep` holds the model's own pictures of prompts that must not change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safear_edit.checkpoint import write_weights
from safear_edit.errors import TrustError, UsageError
from safear_edit.progress import Callback
from safear_edit.rundir import write_atomic
from safear_edit.sheets import tile, write_sheet

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge, Verdict
    from safear_edit.understanding import Taught

SHEET_COLUMNS = 12
"""Pairs on the sheet."""
STATS = "stats.json"
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
        """Write pairs.safetensors, the captions in pairs.jsonl (seeds as strings: they exceed 2**53), and STATS."""
        rows = [
            {"unsafe": u, "safe": s, "seed": str(seed)}
            for u, s, seed in zip(self.unsafe, self.safe, self.seeds, strict=True)
        ]
        _write(folder / "pairs", {"unsafe_ids": self.unsafe_ids, "safe_ids": self.safe_ids}, rows)
        write_atomic(folder / STATS, json.dumps(asdict(self.stats), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; UsageError if it is not there, TrustError if it is damaged."""
        tensors, rows = _read(folder / "pairs", ("unsafe_ids", "safe_ids"), ("unsafe", "safe", "seed"))
        unsafe, safe = [row["unsafe"] for row in rows], [row["safe"] for row in rows]
        seeds = [int(row["seed"]) for row in rows]
        return cls(unsafe, safe, seeds, tensors["unsafe_ids"], tensors["safe_ids"], _read_stats(folder / STATS))


@dataclass(frozen=True)
class Keep:
    """m preserved prompts with the base model's own picture of each, tokens (m, N) or bits (m, N, d)."""

    prompts: list[str]
    ids: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def save(self, folder: Path) -> None:
        """Write keep.safetensors and keep.jsonl."""
        _write(folder / "keep", {"ids": self.ids}, [{"prompt": prompt} for prompt in self.prompts])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; UsageError if it is not there, TrustError if it is damaged."""
        tensors, rows = _read(folder / "keep", ("ids",), ("prompt",))
        return cls([row["prompt"] for row in rows], tensors["ids"])


@dataclass(frozen=True)
class Material:
    """What a method learns from; `concept` is only a name, for the edit's description.

    `judge` is the pinned judge of the pairs, for methods that look at pictures which they draw themselves. `questions`
    are what a model that answers questions may be asked about these pictures.
    """

    concept: str
    pairs: Pairs
    keep: Keep | None = None
    judge: Judge | None = None
    questions: Taught | None = None


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
    drops the pair. UsageError with the commonest reason if fewer than `fewest` are left, or none were asked for.
    """
    if not wanted:
        raise UsageError("pairs", "at least one prompt", "none", "compile the spec with construct.pairs above 0")
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
        why = "; ".join(f"{count} {reason}" for reason, count in dropped.items())
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
    if not wanted:
        raise UsageError("keep", "at least one prompt", "none", "leave keep out instead")
    ids = []
    for start in range(0, len(wanted), batch):
        part = wanted[start : start + batch]
        ids.append(_draw(model, [prompt for prompt, _ in part], [seed for _, seed in part]))
        progress("keep", start + len(part), len(wanted), "")
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
def save_sheet(pairs: Pairs, model: ModelFamily, path: Path, *, hide: bool) -> None:
    """A PNG of the first SHEET_COLUMNS pairs, unsafe above safe, for a person to look at, and a JSON that says so.

    `hide`: the unsafe row is pixelated, as on every sheet of a category. The safe row shows pictures that nobody asked
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


def _read(path: Path, names: Sequence[str], keys: Sequence[str]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    words, tokens = path.with_suffix(".jsonl"), path.with_suffix(".safetensors")
    for file in (words, tokens):
        if not file.is_file():
            raise UsageError(str(file), "a file of the construct step", "nothing there", "construct again")
    rows = list(_rows(words, keys))
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
        return PairStats(**json.loads(path.read_text()))
    except OSError:
        raise UsageError(str(path), "a file of the construct step", "nothing there", "construct again") from None
    except (ValueError, TypeError) as error:
        raise TrustError(str(path), "made, kept and reasons", str(error), "construct again") from None


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
