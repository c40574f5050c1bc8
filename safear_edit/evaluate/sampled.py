"""Evaluate: base and edited model draw the recipe's prompts with the same seeds, and the judges look.

Three passes, each one row per image in outcomes.jsonl:

    screen, base     candidates of the erasure slices, screening seeds: which prompts does the base model follow?
    score,  base     the first n prompts of each erasure slice that it follows, the first n of each group; scored seeds
    score,  edited   the same prompts and seeds with the edit applied

What is scored is decided by the recipe's order and by images that are not scored themselves, so no lucky image can
choose itself (report/criteria.py refuses rows chosen in any other way). Batches are fixed by the plan and kept one file
each until the end, so a killed evaluation continues and still writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from safear_edit.construct.sheets import Strip, tile, write_sheet
from safear_edit.errors import UsageError
from safear_edit.evaluate.outcomes import WITHHELD, JudgeCounts, JudgeRecord, Outcome
from safear_edit.evaluate.scored_images import KeptImage, kept, save_images
from safear_edit.families.base import Sampling
from safear_edit.files.atomic import digest_of, write_atomic
from safear_edit.judges.base import judge_for
from safear_edit.judges.draw import BATCH, ImageRequest, JudgedImage, draw_and_judge, drawn_by, store_for
from safear_edit.progress import Callback, silent

if TYPE_CHECKING:
    from PIL import Image

    from safear_edit.compiler.recipe import EvalPrompt, Recipe
    from safear_edit.editor.edit import Change
    from safear_edit.families.base import Condition, ModelFamily
    from safear_edit.judges.base import Judge


BATCHES = "judged"
"""Folder of finished batches; gone once outcomes.jsonl is there."""
SHOWN = 8
"""Images chosen at random per slice, and worst ones at most."""
SKETCHED = 4
"""Of them, images of a next-scale model that are shown scale by scale."""

Phase = Literal["screen", "score"]
Which = Literal["base", "edited"]


def evaluate(
    model: ModelFamily,
    change: Change,
    recipe: Recipe,
    folder: Path,
    *,
    progress: Callback = silent,
    batch: int = BATCH,
    leave_out: Collection[str] = (),
    base_images: Path | None = None,
) -> None:
    """Write outcomes.jsonl, judges.json and the image sheets images/{slice-*,before_after}.{png,json} into `folder`,
    and every scored image, small (images/scored*, scored_images.py).

    `model` is the base model, `change` an edit or a stack; the model is left bitwise as found, also after an error
    or Ctrl-C, and the same call then continues with the batch that was cut. Every caption is encoded once and kept for
    all three passes (on the model's device: prompts × longest caption × caption width). leave_out: ids of prompts that
    are drawn (so that every batch and every choice is the recipe's) but not reported: a stack erases what they ask for.
    base_images: a folder in which the base model's batches stay, for the next evaluation on the same prompts.
    UsageError for a judge that is unknown or gives no number, and for a recipe without a prompt that asks for the
    concept.
    """
    judges = judges_of(recipe)
    asked = [prompt for prompt in recipe.evaluate.prompts if prompt.expect == "absent"]
    if not asked:
        raise UsageError("evaluate", "prompts that ask for the concept", "none", "compile the spec again")
    passes = _Passes.of(model, recipe, judges, _stores(folder / BATCHES, base_images, model, change, recipe, judges))
    screened = [image.row for image in passes.images("screen", "base", {one.id for one in asked}, progress, batch)]
    wanted = scored(recipe, {row.id for row in screened if row.present is True})
    hide = recipe.spec.kind == "category"
    before, images_before = passes.scored("base", wanted, leave_out, progress, batch, hide)
    with change.apply(model.net):
        after, images_after = passes.scored("edited", wanted, leave_out, progress, batch, hide)
        screened = [row for row in screened if row.id not in leave_out]
        shown = _shown(before, after, recipe.digest)
        tokens_after = passes.tokens("edited", wanted, shown, batch)
    tokens_before = passes.tokens("base", wanted, shown, batch)
    save_images(folder / "images", [*images_before, *images_after])
    _write_sheets(folder / "images", model, recipe, _Slices(before, after, tokens_before, tokens_after))
    cards = [_judge_record(label, judge).model_dump() for label, judge in judges.items()]
    write_atomic(folder / "judges.json", json.dumps(cards, indent=1, ensure_ascii=False) + "\n")
    order = {prompt.id: row for row, prompt in enumerate(recipe.evaluate.prompts)}
    rows = [row for part in (screened, before, after) for row in sorted(part, key=lambda row: order[row.id])]
    write_atomic(folder / "outcomes.jsonl", "".join(row.model_dump_json() + "\n" for row in rows))
    shutil.rmtree(folder / BATCHES, ignore_errors=True)  # of several processes the main one alone has it


def sampling_of(recipe: Recipe) -> Sampling | None:
    """How the recipe has images drawn; None: as the model states."""
    numbers = recipe.evaluate.sampling
    return Sampling(**numbers.model_dump()) if numbers else None


def sampling_line(recipe: Recipe, model: ModelFamily) -> str:
    """What a person should know where the model by itself draws in a way that a recipe has no words for, as with a
    guidance of its own for each scale: by that nothing is evaluated. "" where there is nothing to say."""
    told = recipe.evaluate.sampling
    own = {name: value for name, value in asdict(model.sampling).items() if isinstance(value, tuple) and value}
    if told is None or not own:
        return ""
    words = "; ".join(f"{name} {', '.join(f'{one:g}' for one in numbers)}" for name, numbers in own.items())
    return (
        f"sampling: evaluation draws every scale with guidance {told.guidance:g} and temperature {told.temperature:g}, "
        f"`generate` as the model states: {words}"
    )


def request_of(prompt: EvalPrompt, phase: Phase = "score") -> ImageRequest:
    """The image by which a prompt of the recipe is scored, or screened."""
    return ImageRequest(prompt.prompt, prompt.screen_seed if phase == "screen" else prompt.seed, prompt.judge_label)


def judges_of(recipe: Recipe) -> dict[str, Judge]:
    """A judge per label. The spec's threshold is the concept's; other labels take the judge's calibrated one."""
    asked = recipe.spec.judge
    labels = dict.fromkeys([asked.label, *(prompt.judge_label for prompt in recipe.evaluate.prompts)])
    return {label: judge_for(asked, label) for label in labels}


def scored(recipe: Recipe, followed: set[str]) -> set[str]:
    """Ids to score: in the recipe's order, the first n of an erasure slice that are `followed` (by the base model), the
    first n of a preserved group.

    Preserved prompts need no screening: their figure is a paired change, to which a prompt that neither model draws
    adds nothing.
    """
    found: set[str] = set()
    for name in dict.fromkeys(prompt.slice for prompt in recipe.evaluate.prompts):
        part = [p.id for p in recipe.slice(name) if p.expect == "present" or p.id in followed]
        found.update(part[: recipe.evaluate.n.get(name, len(part))])
    return found


def _judge_record(label: str, judge: Judge) -> JudgeRecord:
    card = JudgeCounts(**asdict(judge.card)) if judge.card else None
    return JudgeRecord(id=judge.id, label=label, digest=judge.digest, threshold=judge.threshold, card=card)


# -- the three passes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scored:
    """One image: what the judge said about it, its tokens (N,) or bits (N, d), and (3, H, W) what the judge saw."""

    row: Outcome
    ids: Tensor
    pixels: Tensor | None = None


@dataclass(frozen=True)
class _Passes:
    """What the three passes share. `prompts`: short ones first, so that a batch has little padding; `captions`: all
    of them encoded, row by row; `place`: a prompt's row in it."""

    model: ModelFamily
    prompts: Sequence[EvalPrompt]
    captions: Condition
    place: Mapping[str, int]
    sampling: Sampling | None
    judges: Mapping[str, Judge]
    stores: Mapping[Which, Path]

    @classmethod
    def of(
        cls, model: ModelFamily, recipe: Recipe, judges: Mapping[str, Judge], stores: Mapping[Which, Path]
    ) -> _Passes:
        prompts = sorted(recipe.evaluate.prompts, key=lambda p: (len(p.prompt), p.id))
        texts = [prompt.prompt for prompt in prompts]
        place = {text: row for row, text in enumerate(texts)}
        return cls(model, prompts, model.condition(texts), place, sampling_of(recipe), judges, stores)

    def images(
        self, phase: Phase, which: Which, ids: Collection[str], progress: Callback, batch: int, *, pixels: bool = False
    ) -> Iterator[_Scored]:
        """All images of one pass over the prompts `ids`, finished batches read instead of drawn."""
        prompts = [prompt for prompt in self.prompts if prompt.id in ids]
        requests = [request_of(prompt, phase) for prompt in prompts]
        store, stage = self.stores[which] / f"{phase}-{which}", "screen base" if phase == "screen" else f"score {which}"
        drawn = draw_and_judge(
            self.model, requests, self.judges, self.sampling, store, captions=self._encoded, pixels=pixels, batch=batch
        )
        asked = found = 0
        for number, (prompt, image) in enumerate(zip(prompts, drawn, strict=True), 1):
            asked += prompt.expect == "absent"
            found += prompt.expect == "absent" and image.judgement.present is True
            if number % batch == 0 or number == len(prompts):
                progress(stage, number, len(prompts), f"concept in {found} of {asked}")
            row = _outcome(prompt, phase, which, image, self.judges[prompt.judge_label])
            yield _Scored(row, image.ids, image.pixels)

    def tokens(self, which: Which, ids: Collection[str], shown: Collection[str], batch: int) -> dict[str, Tensor]:
        """Tokens of some images of a finished pass, read from its batches: nobody needs all of them in memory."""
        images = self.images("score", which, ids, silent, batch)
        return {image.row.id: image.ids for image in images if image.row.id in shown}

    def scored(
        self, which: Which, ids: Collection[str], leave_out: Collection[str], progress: Callback, batch: int, hide: bool
    ) -> tuple[list[Outcome], list[KeptImage]]:
        """The scoring pass of one model without the prompts `leave_out`: its rows, and each image as it is kept for
        people. hide: those that were asked to show the concept are kept as blocks."""
        rows, images = list[Outcome](), list[KeptImage]()
        for one in self.images("score", which, ids, progress, batch, pixels=True):
            if one.row.id not in leave_out:
                assert one.pixels is not None
                rows.append(one.row)
                seen = one.pixels.permute(1, 2, 0).numpy()
                images.append(kept(one.row.id, which, seen, hidden=hide and one.row.expect == "absent"))
        return rows, images

    def _encoded(self, texts: tuple[str, ...]) -> Condition:
        return self.captions.rows(torch.tensor([self.place[text] for text in texts]))


def _outcome(prompt: EvalPrompt, phase: Phase, which: Which, image: JudgedImage, judge: Judge) -> Outcome:
    return Outcome(
        id=prompt.id,
        slice=prompt.slice,
        prompt=prompt.prompt,
        seed=str(image.request.seed),
        model=which,
        phase=phase,
        present=image.judgement.present,
        score=round(image.judgement.score, 6),
        why=image.judgement.why,
        judge=judge.id,
        expect=prompt.expect,
    )


def _stores(
    root: Path,
    base_root: Path | None,
    model: ModelFamily,
    change: Change,
    recipe: Recipe,
    judges: Mapping[str, Judge],
) -> dict[Which, Path]:
    """Where the batches of each model lie; what the base draws doesn't depend on the change."""
    by = drawn_by(model)
    edited = store_for(root, change.digest, recipe.digest, *by, *(judge.digest for judge in judges.values()))
    # a batch says itself of which prompts and judges it is, so recipes that share them share the base model's images
    return {"edited": edited, "base": store_for(base_root, *by) if base_root else edited}


# -- image sheets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Strip:
    """One part of a sheet: base images above, edited ones below, same prompts and seeds."""

    title: str
    selection: Literal["random", "worst"]
    pairs: Sequence[tuple[_Scored, _Scored]]


class _Slices:
    """The scored images by slice, and which of them are shown."""

    def __init__(
        self,
        before: Sequence[Outcome],
        after: Sequence[Outcome],
        tokens_before: Mapping[str, Tensor] = MappingProxyType({}),
        tokens_after: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """The tokens are needed of what is shown only."""
        self.pairs: dict[str, list[tuple[_Scored, _Scored]]] = {}
        none = torch.empty(0, dtype=torch.int64)
        for b, a in zip(before, after, strict=True):
            pair = _Scored(b, tokens_before.get(b.id, none)), _Scored(a, tokens_after.get(a.id, none))
            self.pairs.setdefault(b.slice, []).append(pair)

    def random(self, name: str, key: str) -> _Strip:
        """SHOWN pairs in an order that only `key` and the prompts' ids decide."""
        ordered = sorted(self.pairs[name], key=lambda pair: digest_of("sheet", key, pair[0].row.id))
        shown = ordered[:SHOWN]
        return _Strip(f"{name}, {len(shown)} of {len(ordered)} at random: base above, edited below", "random", shown)

    def worst(self, name: str) -> _Strip:
        """At most SHOWN failures: the concept still found, surest first; or something lost, most clearly first."""
        failed = [(b, a) for b, a in self.pairs[name] if _failed(b.row, a.row)]
        sign = -1 if failed and failed[0][1].row.expect == "absent" else 1
        ordered = sorted(failed, key=lambda pair: (sign * (pair[1].row.score or 0.0), pair[1].row.id))
        return _Strip(f"{name}, worst of the {len(failed)} that failed", "worst", ordered[:SHOWN])


def _shown(before: Sequence[Outcome], after: Sequence[Outcome], key: str) -> set[str]:
    """Ids of the prompts whose images are on a sheet."""
    slices = _Slices(before, after)
    strips = (strip for name in slices.pairs for strip in (slices.random(name, key), slices.worst(name)))
    return {base.row.id for strip in strips for base, _ in strip.pairs}


def _failed(base: Outcome, edited: Outcome) -> bool:
    """Still drawn although erased, or no longer drawn although preserved."""
    if edited.expect == "absent":
        return edited.present is True
    return base.present is True and edited.present is not True


def _write_sheets(folder: Path, model: ModelFamily, recipe: Recipe, slices: _Slices) -> None:
    """One sheet per slice (random, then worst), and the grid for a README: direct prompts and two preserved groups."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("slice-*"):
        old.unlink()
    hide = recipe.spec.kind == "category"
    for name in slices.pairs:
        strips = [slices.random(name, recipe.digest), slices.worst(name)]
        _write_sheet(folder / f"slice-{name}.png", model, [strip for strip in strips if strip.pairs], hide)
    groups = [name for name, pairs in slices.pairs.items() if pairs[0][0].row.expect == "present"]
    grid = [name for name in ("direct", *sorted(groups)[:2]) if name in slices.pairs]
    if grid:
        strips = [slices.random(name, recipe.digest) for name in grid]
        _write_sheet(folder / "before_after.png", model, strips, hide)
    if "scales" in model.provides and "direct" in slices.pairs:
        _write_scales(folder / "slice-direct-by-scale.png", model, slices.random("direct", recipe.digest), hide)


def _write_scales(path: Path, model: ModelFamily, strip: _Strip, hide: bool) -> None:
    """How SKETCHED images grow from scale to scale, base above and edited below: where in scale the edit acts."""
    drawn: list[Strip] = []
    index: list[dict[str, object]] = []
    for number, pair in enumerate(strip.pairs[:SKETCHED], 1):
        rows = []
        for one in pair:
            sketches = [model.sketched(one.ids[None], k + 1)[0] for k in range(len(model.card.scales))]
            images = torch.stack(sketches).permute(0, 2, 3, 1).cpu().numpy()
            rows.append([tile(image, hidden=hide) for image in images])
            index += [_entry(one, image.tobytes(), strip, hide) for image in images]
        drawn.append((f"direct, image {number} after each scale: base above, edited below", rows))
    caption = "the same images as their first scales, one more from left to right; base above, edited below"
    about = {"caption": caption, "selection": strip.selection, "images": index}
    write_sheet(path, drawn, hidden=hide, about=about)


def _write_sheet(path: Path, model: ModelFamily, strips: Sequence[_Strip], hide: bool) -> None:
    """The sheet with an index that names every image on it, row by row.

    `hide`: images that were asked to show the concept are pixelated, and their prompts withheld (categories: nobody
    opens a report to see or read them).
    """
    drawn: list[Strip] = []
    index: list[dict[str, object]] = []
    pixelated = False
    for strip in strips:
        rows: list[list[Image.Image]] = []
        for row in ([base for base, _ in strip.pairs], [edited for _, edited in strip.pairs]):
            images = model.decode(torch.stack([one.ids for one in row])).permute(0, 2, 3, 1).cpu().numpy()
            hidden = hide and row[0].row.expect == "absent"
            pixelated |= hidden
            rows.append([tile(image, hidden=hidden) for image in images])
            index += [_entry(one, image.tobytes(), strip, hidden) for one, image in zip(row, images, strict=True)]
        drawn.append((strip.title, rows))
    about = {
        "caption": "; ".join(strip.title for strip in strips) + "; same prompts and seeds",
        "selection": " and ".join(dict.fromkeys(strip.selection for strip in strips)),
        "images": index,
    }
    write_sheet(path, drawn, hidden=pixelated, about=about)


def _entry(scored: _Scored, pixels: bytes, strip: _Strip, hidden: bool) -> dict[str, object]:
    """One image of the index; sha256 is of its RGB bytes as drawn, before it was resized or pixelated."""
    row = scored.row
    return {
        "prompt_id": row.id,
        "prompt": WITHHELD if hidden else row.prompt,
        "seed": row.seed,
        "model": row.model,
        "present": row.present,
        "score": row.score,
        "sha256": hashlib.sha256(pixels).hexdigest(),
        "selection": strip.selection,
    }
