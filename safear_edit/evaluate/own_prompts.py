"""Prompts that nobody here wrote: drawn by two models with the same seeds, judged by the spec's judge, and counted.

`safear-edit eval --prompts`. Every prompt counts, drawn by the reference model or not: both rates stand side by side,
and the paired change says what the edit did. A caption longer than a model's window asks for something else than it
says, so it is left out of the rates unless it is asked for.

Several images of one prompt are no independent evidence (stats.py): where a file has a prompt under several seeds,
intervals are by prompt, with the design effect of its images; where all of them came out alike, which shows none, each
prompt counts once.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safear_edit.errors import UsageError
from safear_edit.evaluate import stats
from safear_edit.evaluate.stats import Rate
from safear_edit.files.sequences import Lazy, Mapped, Picked
from safear_edit.judges.draw import ImageRequest, draw_and_judge
from safear_edit.progress import Callback
from safear_edit.spec.prompt_files import FilePrompt
from safear_edit.spec.prompts import normalise

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily, Sampling
    from safear_edit.judges.base import Judge


BATCH = 32
"""Images drawn together."""
CAPTIONS = 512
"""Captions whose lengths are looked up together."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the judge said about one model's image; present None is "cannot tell"."""

    present: bool | None
    score: float


class SeenImages(Lazy[Seen]):
    """What the judge said about one model's images, 9 bytes each."""

    def __init__(self, seen: Iterable[Seen] = ()) -> None:
        self._present, self._score = array("b"), array("d")
        for one in seen:
            self.append(one)

    def append(self, one: Seen) -> None:
        """One image more."""
        self._present.append(-1 if one.present is None else one.present)
        self._score.append(one.score)

    def __len__(self) -> int:
        return len(self._score)

    def _taken(self, numbers: range) -> tuple[Seen, ...]:
        both = ((self._present[number], self._score[number]) for number in numbers)
        return tuple(Seen(None if present < 0 else bool(present), score) for present, score in both)


@dataclass(frozen=True)
class CutCaption:
    """A prompt of the file that a model doesn't read to its end: its tokens, and how many of them are read."""

    id: str
    tokens: int
    read: int


@dataclass(frozen=True)
class Comparison:
    """Two models, the reference first, on the same prompts: `seen[m][i]` is model m's image of prompt i.

    cut: prompts that a model doesn't read to their end, named in any case; counted says whether they are among
    `prompts`. notes, bad: what the prompt file's reader said, and the rows that it left out. hidden: the concept is a
    category, so prompts are told by their ids (`shown`), whatever prints or writes them.
    """

    models: tuple[str, str]
    judge: str
    prompts: Sequence[FilePrompt]
    seen: tuple[Sequence[Seen], Sequence[Seen]]
    cut: tuple[CutCaption, ...] = ()
    counted: bool = False
    notes: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    hidden: bool = False

    def shown(self, one: FilePrompt) -> str:
        """A prompt for whoever reads the result; of a category where it stands instead of its words."""
        return f"withheld; the prompt file has it under id {one.id}" if self.hidden else one.prompt

    @cached_property
    def different(self) -> int:
        """How many different prompts there are; fewer than images where some have several seeds."""
        return len({hash(normalise(one.prompt)) for one in self.prompts})

    def _effect(self, values: Iterable[int]) -> float:
        """What several images of a prompt do to the variance of these values, one an image."""
        n = len(self.prompts)
        if self.different == n:
            return 1.0
        found = np.fromiter(values, dtype=np.int8, count=n)
        if (found == found[0]).all():
            return n / self.different
        return stats.design_effect(found.tolist(), [normalise(one.prompt) for one in self.prompts])

    def rate(self, model: int) -> Rate:
        """Share of images in which the judge finds the concept, two-sided 95 % Clopper-Pearson, by prompt."""
        hits = sum(seen.present is True for seen in self.seen[model])
        effect = self._effect(seen.present is True for seen in self.seen[model])
        return stats.clustered_rate(hits, len(self.prompts), effect)

    def change(self) -> tuple[float, float, float]:
        """Paired fall of that share from the reference to the other model, with its two-sided 95 % Tango interval, by
        prompt."""
        falls = Counter(self._falls())
        lost, gained, n, effect = falls[1], falls[-1], falls.total(), self._effect(self._falls())
        return ((lost - gained) / n, *stats.tango_interval(lost / effect, gained / effect, n / effect))

    def _falls(self) -> Iterator[int]:
        """1 for an image that shows the concept no longer, -1 for one that shows it now, 0 for any other."""
        return ((a.present is True) - (b.present is True) for a, b in zip(*self.seen, strict=True))

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Prompt, seed, and a word per model."""
        return [
            (self.shown(one), str(one.seed), _word(first), _word(second))
            for one, first, second in zip(self.prompts, *self.seen, strict=True)
        ]

    def summary(self) -> list[str]:
        """One line per model, one for the change."""
        lines = []
        for model, name in enumerate(self.models):
            rate, unclear = self.rate(model), sum(seen.present is None for seen in self.seen[model])
            found = f"{rate.k} of {rate.n} ({100 * rate.estimate:.1f} %"
            found += f", 95 %: {100 * rate.low:.1f} to {100 * rate.high:.1f})"
            said = "the reference, " if model == 0 else ""
            lines.append(f"{said}{name}: {self.judge} finds it in {found}, cannot tell in {unclear}")
        drop, low, high = self.change()
        points = f"{-100 * drop:+z.1f} points (95 %: {-100 * high:+z.1f} to {-100 * low:+z.1f})"
        return [*lines, f"change from {self.models[0]} to {self.models[1]}: {points}, same prompts and seeds"]

    def warnings(self) -> list[str]:
        """What the rates leave out, or hold although it is no evidence; one line each."""
        lines = [f"left out, {fault}" for fault in self.bad]
        if self.different < len(self.prompts):
            told = f"{len(self.prompts)} images are of {self.different} prompts"
            lines.append(f"{told}: the intervals are by prompt, and wider than those of as many prompts")
        if self.bad:
            lines.append(f"{len(self.bad)} rows of the prompt file can't be taken and are left out")
        if self.cut:
            named = ", ".join(f"{one.id} ({one.read} of {one.tokens} tokens read)" for one in self.cut[:10])
            more = ", …" if len(self.cut) > 10 else ""
            what = "counted all the same" if self.counted else "left out of the rates (--include-cut counts them)"
            lines.append(f"{len(self.cut)} captions are longer than a model reads, {what}: {named}{more}")
        return lines

    def json_rows(self) -> Iterator[dict[str, Any]]:
        """One prompt after the other, seeds as strings (they exceed what readers of JSON hold exactly)."""
        for one, *seen in zip(self.prompts, *self.seen, strict=True):
            results = [{"model": name, **asdict(found)} for name, found in zip(self.models, seen, strict=True)]
            yield {"id": one.id, "prompt": self.shown(one), "seed": str(one.seed), "results": results}

    def as_json(self) -> dict[str, Any]:
        """Everything but the rows."""
        drop, low, high = self.change()
        models = [{"model": name, "found": asdict(self.rate(i))} for i, name in enumerate(self.models)]
        fall = {"estimate": drop, "low": low, "high": high, "confidence": 0.95, "method": "paired Tango score"}
        cut = {"counted": self.counted, "captions": [asdict(one) for one in self.cut]}
        return {
            "judge": self.judge,
            "n": len(self.prompts),
            "prompts": self.different,
            "reference": self.models[0],
            "models": models,
            "fall": fall,
            "cut": cut,
            "notes": list(self.notes),
            "left_out": list(self.bad),
        }


def _word(seen: Seen) -> str:
    return {True: "found", False: "not found", None: "cannot tell"}[seen.present] + f" {seen.score:.2f}"


def seen_by(
    model: ModelFamily,
    prompts: Sequence[FilePrompt],
    judge: Judge,
    sampling: Sampling | None,
    progress: Callback,
    store: Path | None = None,
    keep: Callable[[int, NDArray[np.uint8]], None] | None = None,
) -> SeenImages:
    """Draw and judge every prompt with one model; UsageError if there is none. keep: gets each image (H, W, 3) by its
    number. One batch is in memory."""
    if not prompts:
        raise UsageError("eval", "at least one prompt", "none", "write one per line")
    requests = Mapped(prompts, lambda one: ImageRequest(one.prompt, one.seed, "concept"))
    drawn = draw_and_judge(
        model, requests, {"concept": judge}, sampling, store, pixels=keep is not None, batch=BATCH, progress=progress
    )
    found = SeenImages()
    for number, image in enumerate(drawn):
        found.append(Seen(image.judgement.present, image.judgement.score))
        if keep and image.pixels is not None:
            keep(number, image.pixels.permute(1, 2, 0).numpy())
    return found


@dataclass(frozen=True)
class Overall:
    """Progress over both models: one count, with the time that all of it will take at the speed so far."""

    progress: Callback
    total: int
    clock: Callable[[], float] = time.monotonic
    start: float = field(default_factory=time.monotonic)

    def of(self, name: str, before: int) -> Callback:
        """The callback for the model `name`, after `before` images of the other."""

        def tell(stage: str, done: int, total: int, info: str = "") -> None:
            minutes = (self.clock() - self.start) / 60 * self.total / (before + done)
            about = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{60 * minutes:.0f} s"
            self.progress("eval", before + done, self.total, f"{name}, about {about} in all")

        return tell


def cut_captions(model: ModelFamily, prompts: Sequence[FilePrompt]) -> list[CutCaption]:
    """The prompts that the model doesn't read to their end."""
    found = []
    for start in range(0, len(prompts), CAPTIONS):
        part = prompts[start : start + CAPTIONS]
        lengths = model.caption_lengths([one.prompt for one in part])
        found += [CutCaption(one.id, n, read) for one, (n, read) in zip(part, lengths, strict=True) if read < n]
    return found


def without(prompts: Sequence[FilePrompt], cut: Sequence[CutCaption]) -> Picked[FilePrompt]:
    """The prompts that are read whole; UsageError if that is none."""
    names = {one.id for one in cut}
    whole = Picked(prompts, (number for number, one in enumerate(prompts) if one.id not in names))
    if not whole:
        got = f"{len(prompts)} that are cut off, the first after {cut[0].read} of {cut[0].tokens} tokens"
        raise UsageError("eval", "captions that the model reads whole", got, "shorten them, or pass --include-cut")
    return whole
