"""Draws images and has them judged: the only place where both happen, in batches, kept on disk where a folder is given.

It lies here, below the construction and the methods, because pairs are judged, and Safe-CB judges what it has drawn
while it searches; the evaluation, the gate, the interference of a stack, `map`, `eval --prompts` and the studies call
it from above.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safear_edit import processes
from safear_edit.families.base import Condition, Sampling
from safear_edit.families.text import MINILM_SHA256
from safear_edit.files.atomic import digest_of, json_digest
from safear_edit.files.weights import write_weights
from safear_edit.judges.base import Judge, Judgement, judged
from safear_edit.progress import Callback, silent

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


BATCH = 64
"""Images drawn and judged together: bounds memory, and is what a killed call loses at most, of each of its hands."""
ENCODING = Lock()
"""Text encoders remember what they have read: one batch's captions at a time."""


@dataclass(frozen=True, slots=True)  # there may be 100,000
class ImageRequest:
    """One image to draw and judge; `label` names its judge."""

    prompt: str
    seed: int
    label: str


@dataclass(frozen=True)
class JudgedImage:
    """What was drawn, tokens (N,) or bits (N, d) on the CPU, and what the judge said about it.

    pixels: what the judge saw, (3, H, W) uint8 on the CPU, for callers that ask for it.
    """

    request: ImageRequest
    judgement: Judgement
    ids: Tensor
    pixels: Tensor | None = None


def draw_and_judge(
    model: ModelFamily,
    requests: Sequence[ImageRequest],
    judges: Mapping[str, Judge],
    sampling: Sampling | None,
    store: Path | None = None,
    *,
    captions: Callable[[tuple[str, ...]], Condition] | None = None,
    prefix: Tensor | None = None,
    pixels: bool = False,
    batch: int = BATCH,
    hands: int | None = None,
    progress: Callback = silent,
    stage: str = "",
) -> Iterator[JudgedImage]:
    """Draw and judge every request in order, `batch` at a time; only one batch is in memory.

    sampling: the recipe's; None takes what the model states. captions: encodes the prompts of a batch, if not the
    model (encoded before, or changed). prefix: the first tokens of every image, given (see `generate`). pixels: hand on
    what the judge saw. The model draws as it is when the next batch is asked for: whoever applies an edit reads the
    images before it is taken off. hands: batches at a time, by default the model's (`ModelFamily.hands`); 1 where a
    judge changes the model that draws.

    store: a folder in which every finished batch is kept as one part file, so that the same call continues after it
    was killed. A part of other requests, judges or sampling, or a damaged one, is drawn again; which model draws is
    for the caller to tell apart, by a folder of its own (`store_for`). Parts hold tokens: pixels of a finished batch,
    which would take a hundred times their place, are decoded again.

    On several processes each draws every so many-th batch, and all get all images: the batches, and so the images, are
    those of one process. Of a small model on a CPU each thread draws and judges a batch of its own (`model.hands`).

    UsageError for a judge whose score is no number: a judgement without one is no evidence.
    """
    encode = captions or model.condition
    kept = _Parts(store, requests, batch, lambda part: _identity(part, judges, sampling or model.sampling))

    def drawn(number: int) -> list[JudgedImage]:
        part = kept.asked(number)
        given = None if prefix is None else prefix[number * batch : (number + 1) * batch]
        with ENCODING:
            condition = encode(tuple(one.prompt for one in part))
        ids = draw(model, condition, [one.seed for one in part], sampling, given)
        return _judged(model, ids, part, judges, pixels)

    at_once = model.hands if hands is None else hands
    total, each = -(-len(requests) // batch), processes.under_way(at_once)
    for turn in (range(first, min(first + each, total)) for first in range(0, total, each)):
        found = kept.read(turn)
        missing = [number for number in turn if number not in found]
        for number, images in zip(missing, processes.dealt(missing, drawn, at_once), strict=True):
            kept.write(number, images)
            found[number] = images
        for number in turn:
            progress(stage, min((number + 1) * batch, len(requests)), len(requests), "")
            images = found.pop(number)
            yield from _with_pixels(model, images) if pixels else images


def draw(
    model: ModelFamily,
    condition: Condition,
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    prefix: Tensor | None = None,
) -> Tensor:
    """Tokens (B, N) or bits (B, N, d) of one batch, on the CPU; arguments as in `draw_and_judge`."""
    generate = model.generate if prefix is None else partial(model.generate, prefix=prefix)
    return generate(condition, seeds, sampling).cpu()


def encoded(model: ModelFamily, prompts: Sequence[str]) -> Condition:
    """The condition of every prompt; equal ones are encoded once."""
    distinct = list(dict.fromkeys(prompts))
    place = {prompt: row for row, prompt in enumerate(distinct)}
    with ENCODING:
        condition = model.condition(distinct)
    return condition.rows(torch.tensor([place[prompt] for prompt in prompts]))


@torch.no_grad()
def _judged(
    model: ModelFamily, ids: Tensor, requests: Sequence[ImageRequest], judges: Mapping[str, Judge], pixels: bool
) -> list[JudgedImage]:
    seen = model.decode(ids)
    judgements = judged(judges, seen, [one.label for one in requests])
    shown = seen.cpu() if pixels else [None] * len(ids)
    return [JudgedImage(*row) for row in zip(requests, judgements, ids, shown, strict=True)]


def _with_pixels(model: ModelFamily, images: Sequence[JudgedImage]) -> Sequence[JudgedImage]:
    """A batch with its pixels: those that were judged just now, else decoded again, the whole batch at once."""
    if images[0].pixels is not None:
        return images
    seen = model.decode(torch.stack([one.ids for one in images])).cpu()
    return [replace(one, pixels=pixels) for one, pixels in zip(images, seen, strict=True)]


# -- part files -------------------------------------------------------------------------------------------------------


def drawn_by(model: ModelFamily) -> tuple[str, ...]:
    """What decides a model's images beside prompt, seed and sampling: its weights, their dtype, the device, and the
    weights of its text encoder, which are none of its own."""
    return (model.card.digest, str(model.dtype), str(model.device), *(model.encoder_origin() or ()))


def other_encoder(model: ModelFamily) -> tuple[str, ...]:
    """The digest of the weights of the model's text encoder, unless that is MiniLM, of which one release alone is read:
    what was kept before there were other encoders keeps its key."""
    encoder = model.encoder_origin()
    return (encoder[1],) if encoder and encoder[1] != MINILM_SHA256 else ()


def store_for(root: Path, *inputs: str) -> Path:
    """The folder below `root` for exactly these inputs (`drawn_by`, digest of an edit, …), made when it is first
    written.

    What others left behind in `root` is removed: one call's parts are kept, not the history of all calls.
    """
    mine = root / digest_of(*inputs)
    for other in root.glob("*"):
        if other != mine:
            shutil.rmtree(other)
    return mine


@dataclass(frozen=True)
class _Parts:
    """The part files of one call in `folder`; with None nothing is kept. The main process alone reads and writes."""

    folder: Path | None
    requests: Sequence[ImageRequest]
    batch: int
    identity: Callable[[Sequence[ImageRequest]], str]

    def asked(self, number: int) -> Sequence[ImageRequest]:
        return self.requests[number * self.batch : (number + 1) * self.batch]

    def read(self, numbers: Sequence[int]) -> dict[int, list[JudgedImage]]:
        """The finished ones among these batches, by number."""
        if self.folder is None:
            return {}
        return processes.from_main(lambda: {n: images for n in numbers if (images := self._read(n)) is not None})

    def write(self, number: int, images: Sequence[JudgedImage]) -> None:
        if self.folder is not None and processes.is_main():
            _write(self._path(number), self.identity(self.asked(number)), images)

    def _read(self, number: int) -> list[JudgedImage] | None:
        part = self.asked(number)
        return _read(self._path(number), self.identity(part), part)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:05d}.safetensors"


def _identity(requests: Sequence[ImageRequest], judges: Mapping[str, Judge], sampling: Sampling) -> str:
    asked = [[one.prompt, str(one.seed), one.label] for one in requests]
    labels = dict.fromkeys(one.label for one in requests)
    return json_digest([asked, {label: judges[label].digest for label in labels}, asdict(sampling)])


def _write(path: Path, about: str, images: Sequence[JudgedImage]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.dumps([asdict(one.judgement) for one in images])
    ids = torch.stack([one.ids for one in images])
    write_weights(path, {"ids": ids.to(_smallest(ids))}, {"about": about, "judgements": rows})


def _smallest(ids: Tensor) -> torch.dtype:
    """A type that holds these numbers: bits take a byte each, not eight; numbers of a latent stay as they are."""
    if ids.is_floating_point():
        return ids.dtype
    most = int(ids.max()) if ids.numel() else 0
    return next(kind for kind in (torch.uint8, torch.int16, torch.int32, torch.int64) if most <= torch.iinfo(kind).max)


def _read(path: Path, about: str, requests: Sequence[ImageRequest]) -> list[JudgedImage] | None:
    """A finished batch; None if it is not there, damaged, or of other images."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as opened:
            found, ids = opened.metadata(), opened.get_tensor("ids")
        ids = ids if ids.is_floating_point() else ids.long()
        if found["about"] != about:
            return None
        judgements = [Judgement(**row) for row in json.loads(found["judgements"])]
        return [JudgedImage(*row) for row in zip(requests, judgements, ids, strict=True)]
    except (SafetensorError, ValueError, KeyError, TypeError, OSError):
        return None
