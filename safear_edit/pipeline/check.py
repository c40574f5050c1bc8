"""What can be told of a spec before any model is loaded: everything that `plan` would find, and whether it can pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.compiler import checks
from safear_edit.compiler.compile import compile_recipe, cut_lines, prompts_of, recipe_warnings, reserve_warnings
from safear_edit.compiler.recipe import load_base_recipe, load_recipe
from safear_edit.evaluate import power
from safear_edit.evaluate.stats import POWER
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.spec.spec import read_spec
from safear_edit.spec.text import Problem

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import Recipe
    from safear_edit.evaluate.power import Criterion
    from safear_edit.spec.spec import Spec


@dataclass(frozen=True)
class Checked:
    """A spec that can be compiled and passed, and what a person should know of it."""

    spec: Spec
    criteria: tuple[Criterion, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class NominalCard:
    """Stands for a model that isn't loaded: its name is right, its sizes matter to nothing but the predicted cost."""

    ref: str
    family: str
    digest: str = "0" * 64
    parameters: int = 1
    tokens: int = 1
    scales: tuple[int, ...] = (1,)


def check(path: Path, model: str, method: str, *, captions: bool = False, fit: bool = True) -> Checked:
    """Check a spec against a model and method by their names, or a finished recipe, which names its own.

    SpecError with every problem of the file, or UsageError; nothing is loaded but the judge's list of labels, and for
    `captions`, whether the model reads all of them to their end, the model. fit: whether the method suits the model's
    family, for which the files of both are imported, and torch with them; without, only the spec is checked.
    """
    ref = ModelRef.parse(model)
    card = NominalCard(str(ref), ref.family)
    if path.suffix != ".json" and not (captions or fit):
        spec = able_to_pass(path)
        asked = prompts_of(spec, load_base_recipe(method).for_model(card).construct)
        return _checked(spec, reserve_warnings(asked.evaluate))
    lengths = load_model(model).caption_lengths if captions else None
    if path.suffix == ".json":
        recipe = load_recipe(path)
    else:
        recipe = compile_recipe(able_to_pass(path), card, load_base_recipe(method), lengths=lengths)
    return _checked(recipe.spec, [*recipe_warnings(recipe), *(cut_lines(recipe, lengths) if lengths else ())])


def _checked(spec: Spec, warnings: Sequence[str]) -> Checked:
    return Checked(spec, tuple(power.criteria(spec)), tuple(warnings))


def able_to_pass(path: Path) -> Spec:
    """The spec in that file; SpecError with every problem of it, too few prompts for a verdict included."""
    spec, document = read_spec(path)
    checks.refuse(_problems(spec, power.criteria(spec)), document)
    return spec


def _problems(spec: Spec, criteria: list[Criterion]) -> Iterator[Problem]:
    found = list(checks.problems(spec))
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
