"""What can be told of a spec before any model is loaded: everything that `plan` would find, and whether it can pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.compiler import checks
from safear_edit.compiler.compile import (
    compile_recipe,
    cut_lines,
    file_lines,
    prompts_of,
    recipe_warnings,
    refuse_unstated,
    reserve_warnings,
)
from safear_edit.compiler.judging import judged_for
from safear_edit.compiler.recipe import load_base_recipe, load_recipe
from safear_edit.evaluate import power
from safear_edit.evaluate.stats import POWER
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef, images_of
from safear_edit.registry import families
from safear_edit.spec.draft import draft_lines
from safear_edit.spec.spec import load_spec, read_spec
from safear_edit.spec.text import Problem

if TYPE_CHECKING:
    from safear_edit.compiler.compile import Lengths
    from safear_edit.compiler.recipe import Recipe
    from safear_edit.evaluate.power import Criterion
    from safear_edit.spec.spec import Images, Spec


@dataclass(frozen=True)
class Checked:
    """A spec that can be compiled for that model and passed, and what a person should know of it."""

    spec: Spec
    model: str
    criteria: tuple[Criterion, ...]
    warnings: tuple[str, ...]


MANY_SCALES = (2**10,) * 2**10


@dataclass(frozen=True)
class NominalCard:
    """Stands for a model that isn't loaded: its name is right, and its sizes are beyond what any recipe asks for.

    scales: of a model that draws an image in one; MANY_SCALES of one that doesn't.
    """

    ref: str
    family: str
    digest: str = "0" * 64
    parameters: int = 1
    tokens: int = 2**20
    scales: tuple[int, ...] = (2**20,)
    images: Images = "gallery"


def check(path: Path, model: str | None, method: str, *, captions: bool = False, fit: bool = True) -> Checked:
    """Check a spec against a model and method by their names, or a finished recipe, which names its own.

    model: None takes the first of MODELS that draws what the spec's judge reads. SpecError with every problem of the
    file, or UsageError; nothing is loaded but the judge's list of labels, and for `captions`, whether the model reads
    all of them to their end, the model. fit: whether the method suits the model's family, for which the files of both
    are imported, and torch with them; without, only the spec is checked.
    """
    if path.suffix == ".json":
        recipe = load_recipe(path)
        refuse_unstated(recipe, str(path))
        read = load_model(model).caption_lengths if model and captions else None
        return _checked(recipe.spec, recipe.model.ref, recipe, read)
    ref = ModelRef.parse(model or _fitting(path))
    images = images_of(ref.family, ref.variant)
    card = NominalCard(str(ref), ref.family, images=images)
    spec, base = able_to_pass(path, images), load_base_recipe(method)
    if not (captions or fit):
        asked = prompts_of(judged_for(spec, images), images, base.for_model(card).construct)
        warnings = (*file_lines(spec), *reserve_warnings(asked.evaluate), *draft_lines(spec))
        return Checked(spec, str(ref), tuple(power.criteria(spec)), warnings)
    if "scales" in families()[ref.family].load().provides:
        card = replace(card, scales=MANY_SCALES)
    lengths = load_model(str(ref)).caption_lengths if captions else None
    return _checked(spec, str(ref), compile_recipe(spec, card, base, lengths=lengths), lengths)


def _checked(spec: Spec, model: str, recipe: Recipe, lengths: Lengths | None) -> Checked:
    warnings = (*recipe_warnings(recipe), *(cut_lines(recipe, lengths) if lengths else ()), *draft_lines(recipe.spec))
    return Checked(spec, model, tuple(power.criteria(recipe.spec)), warnings)


MODELS = ("llamagen:mini", "llamagen:xl-256")
"""What a spec is checked for where no model is named: the mini, or a published model where its judge reads no mini."""


def _fitting(path: Path) -> str:
    spec = load_spec(path)
    kinds = [images_of(*model.split(":")) for model in MODELS]
    fits = (not any(checks.unread(judged_for(spec, images), images)) for images in kinds)
    return next((model for model, fitting in zip(MODELS, fits, strict=True) if fitting), MODELS[0])


def able_to_pass(path: Path, images: Images) -> Spec:
    """The spec in that file; SpecError with every problem of it for models that draw such images, too few prompts for
    a verdict included."""
    spec, document = read_spec(path)
    checks.refuse(_problems(judged_for(spec, images), images), document)
    return spec


def _problems(spec: Spec, images: Images) -> Iterator[Problem]:
    criteria = power.criteria(spec)
    found = list(checks.problems(spec, images))
    yield from found
    if not any(problem.at[0] == "gates" for problem in found):  # what no number of prompts can show needs none
        yield from power.problems(criteria)


def powers(recipe: Recipe) -> str:
    """How often a good edit meets each criterion, for one line of a plan."""
    return ", ".join(f"{one.slice} {one.power:.0%}" for one in power.criteria(recipe.spec))


def undecidable(recipe: Recipe) -> list[str]:
    """A line for each criterion of a recipe that no result can meet, or that a good edit often misses."""
    weak = (one for one in power.criteria(recipe.spec) if one.power < POWER)
    return [one.sentence() for one in weak]
