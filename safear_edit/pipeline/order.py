"""1 compile: what a person asks for, and the recipes that it compiles to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit import processes, registry
from safear_edit.compiler import checks
from safear_edit.compiler.beside import (
    beside,
    changed,
    for_one_edit,
    guarded,
    refuse_own_captions,
    refuse_restoring,
    sharing_steps,
)
from safear_edit.compiler.compile import compile_recipe, method_params, refuse_unstated
from safear_edit.compiler.cost import LARGE, declared, within
from safear_edit.compiler.judging import judged_for
from safear_edit.compiler.memory import free_bytes
from safear_edit.compiler.recipe import BaseRecipe, Recipe, load_base_recipe, load_recipe, read_map
from safear_edit.errors import UsageError
from safear_edit.files.atomic import write_atomic
from safear_edit.files.rundir import MEMORY
from safear_edit.files.strict import Document
from safear_edit.spec.draft import left_as_drafted
from safear_edit.spec.spec import Images, Spec, load_spec

if TYPE_CHECKING:
    from pydantic import BaseModel

    from safear_edit.families.base import ModelFamily


@dataclass(frozen=True)
class Order:
    """What a person asks for; everything else follows from it.

    source: a spec (.yaml) or a recipe (.json), a path or the name of a built-in concept. model: a model reference; None
    takes the recipe's. overrides: `--set` strings. map: what `safear-edit map` wrote for this concept and model. dtype:
    of the frozen weights, "auto" or one of load.DTYPES. memory: bytes that training may take, None: what is free. A
    recipe is complete: method, seed, overrides, map, dtype and memory don't go with it.
    """

    source: str
    model: str | None
    method: str = "vce"
    seed: int = 0
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    map: Path | None = None
    dtype: str = "auto"
    memory: int | None = None


def resolve_device(name: str) -> str:
    """`auto` is the GPU if torch sees one, of several processes each its own; UsageError for a device that isn't there.

    Also for one that the processes don't talk by: torch can't mix them.
    """
    import torch

    if processes.count() > 1:
        return processes.device(name)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}", "a device of this machine", reason, "take auto or cpu") from None
    return name


# -- 1 compile --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpecWithDefaults:
    """A spec and a method's defaults, read and checked, not yet compiled; text: the spec's file as it was then."""

    spec: Spec
    base: BaseRecipe
    text: bytes


Source = SpecWithDefaults | Recipe
"""What an order can name."""


def read_sources(orders: Sequence[Order]) -> list[Source]:
    """What the orders name, checked, before anything is loaded; UsageError for a concept that is named twice."""
    found = [read_source(order) for order in orders]
    names = Counter(source.spec.name for source in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError("apply", "each concept once", f"{twice[0]} twice", "leave one of them out")
    return found


def read_source(order: Order) -> Source:
    """What the order names, checked, before anything is loaded."""
    path = source_path(order.source)
    if path.suffix != ".json":
        return SpecWithDefaults(load_spec(path), load_base_recipe(order.method), path.read_bytes())
    for option, given in (("--set", order.overrides), ("--map", order.map)):
        if given:
            fix = f"compile the spec again with {option}"
            raise UsageError(option, "a spec to compile", "a finished recipe", fix)
    recipe = load_recipe(path)
    refuse_unstated(recipe, str(path))
    return recipe


def refuse_drafts(sources: Sequence[Source]) -> None:
    """UsageError if a spec still says what `init` wrote there for a person to replace: a report would print it."""
    for source in sources:
        if left := left_as_drafted(source.spec):
            got = f"what `init` wrote in {', '.join(left)}"
            fix = "replace or remove it, or pass --draft for a trial"
            raise UsageError(f"spec {source.spec.name}", "texts of your own", got, fix)


def model_of(order: Order, source: Source) -> str:
    """The model reference that the order or its recipe names; UsageError for none."""
    text = order.model or (source.model.ref if isinstance(source, Recipe) else None)
    if text is None:
        raise UsageError("--model", "a model reference", "none", "for instance --model llamagen")
    return text


def dtype_of(order: Order, source: Source) -> str:
    """What the frozen weights compute in: a recipe says; UsageError for an order that says something else."""
    if not isinstance(source, Recipe):
        return order.dtype
    if order.dtype not in ("auto", source.model.dtype):
        fix = "leave --dtype out, or compile the spec again with it"
        raise UsageError("--dtype", f"{source.model.dtype}, as the recipe says", order.dtype, fix)
    return source.model.dtype


def compile_recipes(
    model: ModelFamily, ref: str, earlier: Sequence[Recipe], orders: Sequence[Order], sources: Sequence[Source],
    *, joint: bool = False,
) -> list[Recipe]:  # fmt: skip
    """The recipes of all orders, before any work begins, for `model`, called `ref`, that has the edits of `earlier`.

    One after another, a recipe depends on those before it only, so two concepts in one call give the weights of two
    calls. joint: they get one edit, and each depends on all others. UsageError for a concept that the stack has
    already, and for what one edit can't serve.
    """
    recipes: list[Recipe] = []
    sources = [_judged(source, model) for source in sources]
    for order, source in zip(orders, sources, strict=True):
        below = [*earlier] if joint else [*earlier, *recipes]
        together = [other.spec for other in sources if other is not source] if joint else []
        recipe = _compiled(model, ref, order, source, below, together)
        shared = joint and isinstance(source, SpecWithDefaults)
        recipes.append(sharing_steps(recipe, len(sources)) if shared else recipe)
    if joint:
        recipes = _for_joint_edit(sources, recipes)
    refuse_own_captions([*earlier, *recipes])
    return recipes


def _judged(source: Source, model: ModelFamily) -> Source:
    """A spec with the judge that reads the model's images, so that stacked concepts are told apart by one judge."""
    if isinstance(source, Recipe):
        return source
    return replace(source, spec=judged_for(source.spec, model.card.images))


def _compiled(
    model: ModelFamily, ref: str, order: Order, source: Source, earlier: Sequence[Recipe], together: Sequence[Spec]
) -> Recipe:
    """The recipe of one concept on top of `earlier` ones, `together` with others in one edit."""
    names = [recipe.spec.name for recipe in earlier]
    if source.spec.name in names:
        fix = "give it another name in its spec, or remove the first one"
        raise UsageError(f"concept {source.spec.name}", "one that the stack lacks", f"one of {', '.join(names)}", fix)
    if isinstance(source, Recipe):
        refuse_restoring(source, earlier)
        return compile_for(model, ref, order, source)
    spec = beside(source.spec, [*(recipe.spec for recipe in earlier), *together])
    return guarded(compile_for(model, ref, order, replace(source, spec=spec)), earlier)


def _for_joint_edit(sources: Sequence[Source], recipes: Sequence[Recipe]) -> list[Recipe]:
    """UsageError if one search can't serve all, or for a finished recipe that keeps what another concept erases."""
    refuse_unlike(recipes)
    found = for_one_edit(recipes)
    for source, recipe in zip(sources, found, strict=True):
        if isinstance(source, Recipe) and recipe is not source:
            got = "one that keeps or draws what another of them erases"
            raise UsageError(f"recipe {source.spec.name}", "a recipe for a joint edit", got, "give its spec instead")
    return found


def refuse_unlike(recipes: Sequence[Recipe]) -> None:
    """UsageError unless one search can serve all: one method that trains on pairs, the same numbers and seed."""
    from safear_edit.methods.workbench import PairTuning

    first = recipes[0]
    if not issubclass(registry.lookup("methods", first.method.name).load().Params, PairTuning):
        fits = [name for name, entry in registry.methods().items() if issubclass(entry.load().Params, PairTuning)]
        fix = f"take {', '.join(fits)}, or leave --joint out"
        raise UsageError("--joint", "a method that trains on pairs", first.method.name, fix)
    for recipe in recipes[1:]:
        for what in ("method", "seed"):
            if getattr(recipe, what) != getattr(first, what):
                got = f"another one for {recipe.spec.name} than for {first.spec.name}"
                raise UsageError("--joint", f"one {what} for all concepts", got, "leave --joint out")
        if recipe.spec.understanding.concept != first.spec.understanding.concept:
            got = f"{recipe.spec.understanding.concept} for {recipe.spec.name}"
            fix = "leave --joint out"
            raise UsageError("--joint", f"understanding.concept {first.spec.understanding.concept} for all", got, fix)


def compile_for(model: ModelFamily, ref: str, order: Order, source: Source) -> Recipe:
    """The recipe for `model`, which is called `ref` in it; a finished one only for the very weights it names."""
    dtype = str(model.dtype).removeprefix("torch.")
    if isinstance(source, SpecWithDefaults):
        method = registry.lookup("methods", source.base.method).load()()
        recipe = compile_recipe(
            source.spec,
            model.card,
            source.base,
            seed=order.seed,
            overrides=order.overrides,
            sampling=model.sampling,
            model_ref=ref,
            located=read_map(order.map) if order.map else None,
            trainable=partial(method.trainable, model=model) if hasattr(method, "trainable") else None,
            lengths=model.caption_lengths,
        )
        named = changed(recipe, model=recipe.model.model_copy(update={"dtype": dtype}))
        return _within_memory(model, named, order.memory)
    if model.card.digest != source.model.digest:
        fix = "give the recipe's model, or compile the spec for this one"
        got, wanted = f"{model.card.digest[:12]}…", f"weights {source.model.digest[:12]}… ({source.model.ref})"
        raise UsageError(str(source_path(order.source)), wanted, got, fix)
    if source.model.dtype != dtype:
        fix = "apply it by itself, or compile its spec again"
        raise UsageError(str(source_path(order.source)), f"a model in {source.model.dtype}", dtype, fix)
    return source


def _within_memory(model: ModelFamily, recipe: Recipe, budget: int | None) -> Recipe:
    """The recipe, saving memory where its search would need more than `budget` bytes; None: than the device has free,
    which small models aren't asked about."""
    if budget is None:
        if model.weight_bytes < LARGE:
            return recipe
        budget = free_bytes(model.device)
    method, params = registry.lookup("methods", recipe.method.name).load()(), params_of(recipe)
    pairs, card = len(recipe.construct.pairs), model.card
    chosen = within(model, params, lambda one: declared(method, one, card, pairs), recipe.predicted.trainable, budget)
    if chosen == params:
        return recipe
    return changed(recipe, method=recipe.method.model_copy(update={"params": chosen.model_dump(mode="json")}))


def settled(orders: Sequence[Order], model: ModelFamily, folder: Path) -> list[Order]:
    """The orders with the memory that was free when work in this folder began, which is noted in it.

    What is free is another amount in the next call, with it the way in which a large model's batch is cut, and with
    that the recipe: what an interrupted call did would be of no use. `--memory` decides instead.
    """
    if model.weight_bytes < LARGE:
        return [*orders]
    note = folder / MEMORY
    if not note.exists():
        write_atomic(note, f"{free_bytes(model.device)}\n")
    free = int(note.read_text())
    return [order if order.memory is not None else replace(order, memory=free) for order in orders]


def params_of(recipe: Recipe) -> BaseModel:
    """The method's own numbers."""
    return method_params(recipe.method.name, recipe.method.params, "recipe")


def spec_for(source: str, images: Images) -> Spec:
    """The spec with the judge that reads such images; SpecError where it has none."""
    spec = judged_for(load_spec(source_path(source)), images)
    checks.refuse(checks.unread(spec, images), Document(f"spec {spec.name}", None))
    return spec


def source_path(source: str) -> Path:
    """The file behind what was given: a path, or the name of a built-in concept."""
    if "/" in source or Path(source).suffix in (".yaml", ".yml", ".json") or Path(source).is_file():
        return Path(source)
    return registry.find_builtin("concepts", source)
