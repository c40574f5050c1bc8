"""Two models, or a release and its base, compared on prompts, likelihoods or questions of a user's own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit import processes, registry
from safear_edit.compiler.checks import clip_options
from safear_edit.compiler.cost import draw_within
from safear_edit.compiler.recipe import load_recipe
from safear_edit.errors import UsageError
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.files.atomic import digest_of
from safear_edit.files.cache import recent
from safear_edit.files.layout import is_release, looks_released
from safear_edit.pipeline.kept_images import program
from safear_edit.pipeline.order import resolve_device, source_path, spec_for
from safear_edit.pipeline.steps import concept_judge, edited
from safear_edit.progress import Callback, silent
from safear_edit.spec.spec import load_spec

if TYPE_CHECKING:
    from safear_edit.evaluate.likelihood_record import Audit
    from safear_edit.evaluate.own_prompts import Comparison
    from safear_edit.evaluate.quality import Quality
    from safear_edit.families.base import ModelFamily, Sampling
    from safear_edit.judges.base import Judge
    from safear_edit.pipeline.judged import Judged
    from safear_edit.report.schema import Understood
    from safear_edit.spec.prompt_files import FilePrompt, PromptFile


@dataclass(frozen=True)
class Loading:
    """How two models are loaded: on which device, the dtype of their frozen weights, and bytes that drawing may take
    (None: as many images at a time as their sizes allow)."""

    device: str = "auto"
    dtype: str = "auto"
    memory: int | None = None

    def __call__(self, name: str) -> ModelFamily:
        """The model of that name; UsageError for one that can't draw a single image in the memory."""
        return self.limited(load_model(name, resolve_device(self.device), self.dtype))

    def limited(self, model: ModelFamily) -> ModelFamily:
        """The model, drawing within the memory."""
        if self.memory is not None:
            draw_within(model, self.memory)
        return model


@dataclass(frozen=True)
class ModelPair:
    """Two models by name, the reference first; the other is there as long as `edited()` is open, in the first one's
    memory if it can be.

    sampling: how both draw; None: each as it states. change: digest of the edits that make the other of the reference,
    "" for a model of its own.
    """

    names: tuple[str, str]
    base: ModelFamily
    edited: Callable[[], AbstractContextManager[ModelFamily]]
    sampling: Sampling | None = None
    change: str = ""

    @classmethod
    def load(cls, models: Sequence[str], how: Loading) -> ModelPair:
        """Two models, or a released folder and the base that it holds (or, of an older one, that its recipe names).

        A model without edits is the reference of one with some, in whatever order they are given.
        """
        from safear_edit.release.released import Released

        if len(models) == 1 and is_release(Path(models[0])):
            released = Released.read(Path(models[0]))
            model = how.limited(released.base(resolve_device(how.device), how.dtype))
            names, sampling = (released.ref, models[0]), _sampling(models)
            return cls(names, model, partial(edited, model, released.stack), sampling, released.stack.digest)
        named = models if len(models) == 2 else (load_recipe(Path(models[0]) / "recipe.json").model.ref, models[0])
        for name in named:
            ModelRef.parse(name)
        first, second = sorted(named, key=lambda name: looks_released(Path(name).expanduser()))
        base = how(first)
        sampling = _sampling(named) if ModelRef.parse(first).family == ModelRef.parse(second).family else None
        return cls((first, second), base, lambda: nullcontext(how(second)), sampling)


def _sampling(models: Sequence[str]) -> Sampling | None:
    """As the recipes of the released ones among the models say; None if they don't say one thing."""
    from safear_edit.evaluate.sampled import sampling_of
    from safear_edit.report.evidence import RunFiles

    folders = [Path(name).expanduser() for name in models]
    found = {
        sampling_of(load_recipe(files.recipe))
        for folder in folders
        if looks_released(folder)
        for files in RunFiles.find(folder).concepts
    }
    return found.pop() if len(found) == 1 else None


def compare_prompts(
    models: Sequence[str],
    *,
    spec: str,
    prompts: Path,
    seed: int,
    how: Loading = Loading(),
    include_cut: bool = False,
    skip_bad: bool = False,
    layout: str | None = None,
    out: Path | None = None,
    progress: Callback = silent,
) -> Comparison:
    """Judge two models on a file of prompts; of one released folder, the model and its base.

    A caption that either model doesn't read to its end is left out for both, unless `include_cut`; skip_bad: so are
    rows of the file that can't be taken. layout: the benchmark whose columns the file has. Batches are kept in the
    user's cache until the end, so that the same call continues after it was killed. out: a new folder for images, a CSV
    and a page (pipeline/judged.py), by one process; UsageError for one that exists or is being made. Images come and go
    by the batch, and prompts wait in a temporary file: a hundred thousand of them take a few MB.
    """
    from safear_edit.pipeline.judged import Judged
    from safear_edit.report.criteria import CATEGORY
    from safear_edit.spec.benchmarks import BENCHMARKS
    from safear_edit.spec.prompt_files import read_prompts

    if out and processes.count() > 1:
        raise UsageError("--out", "one process", str(processes.count()), "leave it out, or start without a launcher")
    benchmark = BENCHMARKS[layout] if layout else None
    file = processes.from_main(lambda: read_prompts(prompts, seed, skip_bad=skip_bad, benchmark=benchmark))
    pair = ModelPair.load(models, how)
    concept = spec_for(spec, pair.base.card.images)
    hide = concept.kind == CATEGORY
    opened = Judged.opened(out, hide=hide) if out else nullcontext()
    with opened as pages:
        found = _compared(pair, file, concept_judge(concept), progress, pages, include_cut=include_cut)
        found = replace(found, hidden=hide)
        if pages:
            pages.publish(found)
    return found


def _compared(
    pair: ModelPair, file: PromptFile, judge: Judge, progress: Callback, pages: Judged | None, *, include_cut: bool
) -> Comparison:
    """What both models draw of the file's prompts; pages: gets every image."""
    from safear_edit.evaluate.own_prompts import Comparison, Overall, cut_captions, seen_by, without
    from safear_edit.files.sequences import Picked
    from safear_edit.judges.draw import drawn_by

    cut = cut_captions(pair.base, file.prompts)
    asked = file.prompts if include_cut else without(file.prompts, cut)
    overall, (first, second) = Overall(progress, 2 * len(asked)), pair.names
    store = processes.from_main(lambda: _store(pair, _digest(file.prompts), judge.digest))
    base_store = store and store / "reference"
    keep = pages.keeping(0, asked) if pages else None
    before = seen_by(pair.base, asked, judge, pair.sampling, overall.of(first, 0), base_store, keep)
    with pair.edited() as other:
        known = {one.id for one in cut}
        more = [one for one in cut_captions(other, file.prompts) if one.id not in known]
        kept = Picked(asked, range(len(asked))) if include_cut else without(asked, more)
        own = store and store / f"other-{digest_of(*drawn_by(other))[:16]}"
        progress_of, keep = overall.of(second, len(asked)), pages.keeping(1, kept) if pages else None
        after = seen_by(other, kept, judge, pair.sampling, progress_of, own, keep)
    if store and processes.is_main():
        shutil.rmtree(store, ignore_errors=True)
    both = (Picked(before, kept.numbers), after)
    notes = file.notes if store else (*file.notes, "no folder in the user's cache: a killed call would begin again")
    return Comparison(pair.names, judge.id, kept, both, (*cut, *more), include_cut, notes, file.bad)


QUALITY = 96
"""Prompts of each kind that quality is measured on."""
CACHE_DAYS = 30
"""What a killed `eval` drew is kept this long."""


def _digest(prompts: Iterable[FilePrompt]) -> str:
    """sha256 of prompts and seeds, in their order."""
    found = hashlib.sha256()
    for one in prompts:
        found.update(json.dumps([one.prompt, one.seed]).encode())
    return found.hexdigest()


def _store(pair: ModelPair, *inputs: str) -> Path | None:
    """A folder of the user's cache for the batches of exactly this comparison by this very program; None where none
    can be made. Who the other model is says the folder of its batches."""
    from safear_edit.judges.draw import drawn_by

    return recent("eval", digest_of(*drawn_by(pair.base), pair.change, program(), *inputs), CACHE_DAYS)


def compare_likelihoods(
    models: Sequence[str], *, spec: str, seed: int, how: Loading = Loading(), progress: Callback = silent
) -> tuple[tuple[str, str], Audit]:
    """Audit two models, or a released folder and its base, on the spec's reference images; the names, base first.

    Nothing is drawn and nobody judges. UsageError if there are no reference images, or for models of other shapes.
    """
    from safear_edit.evaluate import likelihood
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.references import source_for, tokenised

    concept, pair = load_spec(source_path(spec)), ModelPair.load(models, how)
    source = source_for(concept, pair.base.card, seed)
    pack = tokenised(pair.base, source)
    if len(models) == 1:
        return pair.names, likelihood.audit(Pair(pair.base, pair.edited), pack, progress=progress)
    with pair.edited() as other:
        return pair.names, likelihood.audit(Pair.of_models(pair.base, other), pack, progress=progress)


def compare_understanding(
    models: Sequence[str], *, spec: str, how: Loading = Loading(), progress: Callback = silent
) -> tuple[tuple[str, str], Understood]:
    """Ask two models, or a released folder and its base, about the spec's reference images; the names, base first.

    UsageError if there are no reference images, or a model that answers no questions.
    """
    from safear_edit.compiler.questions import CAPABILITY
    from safear_edit.evaluate import understanding as asking
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.report.criteria import CATEGORY, understood

    concept, pair = load_spec(source_path(spec)), ModelPair.load(models, how)
    if CAPABILITY not in pair.base.provides:
        fix = f"take one of {registry.families_with(CAPABILITY)}"
        raise UsageError("understanding", "a model that answers questions", pair.base.card.ref, fix)
    exam = asking.exam(concept, asking.source_for(concept, pair.base.card))
    if len(models) == 1:
        answers = asking.ask(Pair(pair.base, pair.edited), exam, progress)
    else:
        with pair.edited() as other:
            answers = asking.ask(Pair.of_models(pair.base, other), exam, progress)
    roles = {group.name: str(group.role) for group in concept.preserve}
    wanted, gates = concept.understanding.concept, concept.gates.every()
    return pair.names, understood(answers, concept.name, wanted, gates, roles, hide=concept.kind == CATEGORY)


def compare_quality(
    models: Sequence[str], *, spec: str, how: Loading = Loading(), n: int = QUALITY, progress: Callback = silent
) -> tuple[tuple[str, str], Quality]:
    """What CLIP sees of two models' images, or of a released folder's and its base's; the names, base first.

    The spec's own CLIP where its judge is one, else the embedded minis'. UsageError for published weights without one.
    """
    from safear_edit.evaluate import quality
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.judges.clip import load_clip

    pair = ModelPair.load(models, how)
    concept = spec_for(spec, pair.base.card.images)
    clip = load_clip(*clip_options(concept, pair.base.card.images, "quality"))
    both = Pair(pair.base, pair.edited)
    return pair.names, quality.compare_quality(both, concept, concept_judge(concept), clip, n, pair.sampling, progress)
