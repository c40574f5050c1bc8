"""Prompts that nobody here wrote: draw each with two models and the same seed, let the spec's judge look, and count.

`safear-edit eval`. Every prompt counts, obeyed by the base model or not: both rates stand side by side, and the paired
change says what the edit did.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safear_edit.errors import SpecError, UsageError
from safear_edit.evaluate import stats
from safear_edit.evaluate.stats import Rate
from safear_edit.progress import Callback
from safear_edit.spec.prompts import forbidden, image_seed

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge, Judgement


BATCH = 32
LARGEST_FILE, LONGEST_PROMPT, MOST_PROMPTS = 16 << 20, 2000, 100_000
"""Bytes of a prompt file, characters of one prompt, and prompts that are taken at most."""


@dataclass(frozen=True)
class Asked:
    """One prompt of the file with the seed that both models draw it with; `id` is the file's own, or the line."""

    prompt: str
    seed: int
    id: str


@dataclass(frozen=True)
class Seen:
    """What the judge said about one model's image; present None is "cannot tell"."""

    present: bool | None
    score: float


@dataclass(frozen=True)
class Comparison:
    """Two models (base first) on the same prompts: `seen[m][i]` is model m's image of prompt i."""

    models: tuple[str, str]
    judge: str
    asked: tuple[Asked, ...]
    seen: tuple[tuple[Seen, ...], tuple[Seen, ...]]

    def rate(self, model: int) -> Rate:
        """Share of images in which the judge finds the concept, two-sided 95 % Clopper-Pearson."""
        hits = sum(seen.present is True for seen in self.seen[model])
        return stats.clopper_pearson(hits, len(self.asked))

    def change(self) -> tuple[float, float, float]:
        """Paired fall of that share from the first model to the second, with its two-sided 95 % Tango interval."""
        pairs = [(a.present is True, b.present is True) for a, b in zip(*self.seen, strict=True)]
        lost, gained, n = pairs.count((True, False)), pairs.count((False, True)), len(pairs)
        return ((lost - gained) / n, *stats.tango_interval(lost, gained, n))

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Prompt, seed, and a word per model."""
        return [
            (asked.prompt, str(asked.seed), _word(first), _word(second))
            for asked, first, second in zip(self.asked, *self.seen, strict=True)
        ]

    def summary(self) -> list[str]:
        """One line per model, one for the change."""
        lines = []
        for model, name in enumerate(self.models):
            rate, unclear = self.rate(model), sum(seen.present is None for seen in self.seen[model])
            found = f"{rate.k} of {rate.n} ({100 * rate.estimate:.1f} %"
            found += f", 95 %: {100 * rate.low:.1f} to {100 * rate.high:.1f})"
            lines.append(f"{name}: {self.judge} finds it in {found}, cannot tell in {unclear}")
        drop, low, high = self.change()
        return [
            *lines,
            f"fall: {100 * drop:.1f} points (95 %: {100 * low:.1f} to {100 * high:.1f}), same prompts and seeds",
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything, seeds as strings (they exceed what readers of JSON hold exactly)."""
        drop, low, high = self.change()
        rows = [
            {
                "id": asked.id,
                "prompt": asked.prompt,
                "seed": str(asked.seed),
                "results": [
                    {"model": name, **asdict(seen[i])} for name, seen in zip(self.models, self.seen, strict=True)
                ],
            }
            for i, asked in enumerate(self.asked)
        ]
        models = [{"model": name, "found": asdict(self.rate(i))} for i, name in enumerate(self.models)]
        fall = {"estimate": drop, "low": low, "high": high, "confidence": 0.95, "method": "paired Tango score"}
        return {"judge": self.judge, "n": len(self.asked), "models": models, "fall": fall, "rows": rows}


def _word(seen: Seen) -> str:
    return {True: "found", False: "-", None: "cannot tell"}[seen.present] + f" {seen.score:.2f}"


def look(model: ModelFamily, asked: Sequence[Asked], judge: Judge, progress: Callback, stage: str) -> tuple[Seen, ...]:
    """Draw and judge every prompt with one model; UsageError if there is none."""
    if not asked:
        raise UsageError("eval", "at least one prompt", "none", "write one per line")
    judgements: list[Judgement] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        ids = model.generate(model.condition([a.prompt for a in part]), [a.seed for a in part])
        judgements += judge.look(model.decode(ids))
        progress(stage, start + len(part), len(asked), "")
    return tuple(Seen(judgement.present, judgement.score) for judgement in judgements)


# -- prompt files -----------------------------------------------------------------------------------------------------


def read_prompts(path: Path, seed: int = 0) -> tuple[Asked, ...]:
    """Prompts from .txt (one a line; blank lines skipped), .csv or .jsonl (columns `prompt`, maybe `seed` and `id`).

    A prompt without a seed gets one from its text, its line and `seed`. SpecError with file and line for anything else,
    for an id that is there twice, and for an image that would be counted twice (same prompt, same seed).
    """
    text, readers = _read(path), {".txt": _from_txt, ".csv": _from_csv, ".jsonl": _from_jsonl}
    if path.suffix not in readers:
        raise SpecError(str(path), "a .txt, .csv or .jsonl file", repr(path.suffix), "rename or convert it")
    asked: list[Asked] = []
    ids: set[str] = set()
    pictures: set[tuple[str, int]] = set()
    for line, row in readers[path.suffix](text, str(path)):
        where = f"{path}:{line}"
        if len(asked) == MOST_PROMPTS:
            raise SpecError(where, f"at most {MOST_PROMPTS} prompts", "one more", "split the file")
        one = _checked(where, line, row, seed)
        if one.id in ids:
            raise SpecError(
                f"{where}, id", "an id of its own", f"{one.id[:40]!r} again", "rename or remove one of them"
            )
        if (one.prompt, one.seed) in pictures:
            fix = "remove the line: it is the same image"
            raise SpecError(where, "another prompt or another seed", "both again", fix)
        ids.add(one.id)
        pictures.add((one.prompt, one.seed))
        asked.append(one)
    if not asked:
        raise SpecError(str(path), "at least one prompt", "none", "write one per line")
    return tuple(asked)


def _read(path: Path) -> str:
    """The text of a prompt file of bearable size."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SpecError(str(path), f"at most {LARGEST_FILE >> 20} MiB", "a larger file", "split it")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(str(path), "text in UTF-8", "other bytes", "save it as UTF-8") from None
    except OSError as error:
        raise SpecError(str(path), "a prompt file", error.strerror or "an error", "check the path") from None


def _from_txt(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _from_csv(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by the header's names, each with the line of the file on which it starts (the header is line 1)."""
    rows, names = csv.reader(io.StringIO(text, newline=""), strict=True), list[str]()
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise SpecError(f"{where}:{line}", "csv", str(error), "quote the field") from None
        if not row:
            continue
        if not names:
            names = [name.strip() for name in row]
            if len(set(names)) < len(names):
                raise SpecError(f"{where}:{line}", "columns with names of their own", "one twice", "rename one of them")
        elif len(row) != len(names):
            fix = "quote a prompt that holds a comma, and leave no field out"
            raise SpecError(f"{where}:{line}", f"{len(names)} fields as in the header", str(len(row)), fix)
        else:
            yield line, dict(zip(names, row, strict=True))


def _from_jsonl(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{where}:{number}", "one JSON object a line", str(error), "correct the line") from None
        if not isinstance(row, dict):
            raise SpecError(f"{where}:{number}", "a JSON object", type(row).__name__, 'write {"prompt": …}')
        yield number, row


def _checked(where: str, line: int, row: dict[str, Any], root: int) -> Asked:
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise SpecError(f"{where}, prompt", "text", repr(prompt)[:40], "name the column `prompt` and fill it in")
    if len(prompt) > LONGEST_PROMPT or not prompt.isprintable():
        got = f"{len(prompt)} characters" if prompt.isprintable() else "control characters"
        raise SpecError(
            f"{where}, prompt", f"at most {LONGEST_PROMPT} printable characters", got, "shorten or clean it"
        )
    if forbidden(prompt):
        fix = "this combination is never processed, not even to test it"
        raise SpecError(f"{where}, prompt", "no words for minors together with sexual content", "both", fix)
    given, named = row.get("seed"), row.get("id")
    if isinstance(named, bool) or not isinstance(named, (str, int, type(None))) or not str(named or "").isprintable():
        raise SpecError(f"{where}, id", "text or a whole number", repr(named)[:40], "correct or remove it")
    name = str(line if named in (None, "") else named)
    if given in (None, ""):
        return Asked(prompt.strip(), image_seed("eval", f"{line}|{prompt.strip()}", root), name)
    if isinstance(given, bool) or not str(given).isdecimal() or int(given) >= 2**63:
        raise SpecError(f"{where}, seed", "a whole number below 2^63", repr(given)[:40], "correct or remove it")
    return Asked(prompt.strip(), int(given), name)
