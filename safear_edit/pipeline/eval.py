"""Two models, or a release and its base, compared on prompts, likelihoods or questions of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit import registry
from safear_edit.compiler.recipe import load_recipe
from safear_edit.errors import UsageError
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.pipeline.order import resolve_device, source_path
from safear_edit.pipeline.steps import _edited, concept_judge
from safear_edit.progress import Callback, silent
from safear_edit.spec.spec import load_spec

if TYPE_CHECKING:
    from safear_edit.evaluate.compare import Comparison
    from safear_edit.evaluate.likelihood import Audit
    from safear_edit.families.base import ModelFamily
    from safear_edit.report.schema import Understood


@dataclass(frozen=True)
class Versus:
    """Two models by name; the second is there as long as `edited()` is open, in the first one's memory if it can be."""

    names: tuple[str, str]
    base: ModelFamily
    edited: Callable[[], AbstractContextManager[ModelFamily]]

    @classmethod
    def load(cls, models: Sequence[str], device: str) -> Versus:
        """Two models, or a released folder and the base that it holds (or, of an older one, that its recipe names)."""
        from safear_edit.release.released import Released, is_release

        if len(models) == 1 and is_release(Path(models[0])):
            released = Released.read(Path(models[0]))
            model = released.base(device)
            return cls((released.ref, models[0]), model, partial(_edited, model, released.stack))
        named = models if len(models) == 2 else (load_recipe(Path(models[0]) / "recipe.json").model.ref, models[0])
        for name in named:
            ModelRef.parse(name)
        base, edited = load_model(named[0], device), partial(load_model, named[1], device)
        return cls((named[0], named[1]), base, lambda: nullcontext(edited()))


def compare(
    models: Sequence[str], *, spec: str, prompts: Path, seed: int, device: str, progress: Callback = silent
) -> Comparison:
    """Judge two models on a file of prompts; of one released folder, the model and its base."""
    from safear_edit.evaluate.compare import Comparison, look, read_prompts

    asked, concept = read_prompts(prompts, seed), load_spec(source_path(spec))
    judge, pair = concept_judge(concept), Versus.load(models, resolve_device(device))
    before = look(pair.base, asked, judge, progress, pair.names[0])
    with pair.edited() as edited:
        after = look(edited, asked, judge, progress, pair.names[1])
    return Comparison(pair.names, judge.id, asked, (before, after))


def compare_likelihoods(
    models: Sequence[str], *, spec: str, seed: int, device: str, progress: Callback = silent
) -> tuple[tuple[str, str], Audit]:
    """Audit two models, or a released folder and its base, on the spec's reference images; the names, base first.

    Nothing is drawn and nobody judges. UsageError if there are no reference images, or for models of other shapes.
    """
    from safear_edit.evaluate import likelihood
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.references import source_for, tokenised

    concept, pair = load_spec(source_path(spec)), Versus.load(models, resolve_device(device))
    source = source_for(concept, pair.base.card, seed)
    pack = tokenised(pair.base, source)
    if len(models) == 1:
        return pair.names, likelihood.audit(Pair(pair.base, pair.edited), pack, progress=progress)
    with pair.edited() as other:
        return pair.names, likelihood.audit(Pair.of_models(pair.base, other), pack, progress=progress)


def compare_understanding(
    models: Sequence[str], *, spec: str, device: str, progress: Callback = silent
) -> tuple[tuple[str, str], Understood]:
    """Ask two models, or a released folder and its base, about the spec's reference images; the names, base first.

    UsageError if there are no reference images, or a model that answers no questions.
    """
    from safear_edit.compiler.questions import CAPABILITY
    from safear_edit.evaluate import understanding as asking
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.report.criteria import understood

    concept, pair = load_spec(source_path(spec)), Versus.load(models, resolve_device(device))
    if CAPABILITY not in pair.base.provides:
        fix = f"take one of {registry.families_with(CAPABILITY)}"
        raise UsageError("understanding", "a model that answers questions", pair.base.card.ref, fix)
    exam = asking.exam(concept, asking.source_for(concept, pair.base.card))
    if len(models) == 1:
        answers = asking.measure(Pair(pair.base, pair.edited), exam, progress)
    else:
        with pair.edited() as other:
            answers = asking.measure(Pair.of_models(pair.base, other), exam, progress)
    roles = {group.name: str(group.role) for group in concept.preserve}
    wanted, gates = concept.understanding.concept, concept.gates.every()
    return pair.names, understood(answers, concept.name, wanted, gates, roles)
