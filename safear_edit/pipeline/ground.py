"""The model that a walk starts from: a base, or a released stack and the concepts on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit import registry
from safear_edit.compiler.beside import beside, for_one_edit, guarded, refuse_own_captions, sharing_steps
from safear_edit.compiler.recipe import Recipe
from safear_edit.editor.edit import Edit
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import UsageError
from safear_edit.evaluate.interference_record import After, Overlap
from safear_edit.families.base import ModelFamily
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.files.rundir import looks_released
from safear_edit.pipeline.order import Draft, Order, frozen, resolve_device
from safear_edit.release.released import Member, Released, stack_of
from safear_edit.spec.spec import Spec

if TYPE_CHECKING:
    from safear_edit.construct.pairs import Material


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


# -- recipes in a stack -----------------------------------------------------------------------------------------------


def compiled_on(ground: Ground, order: Order, asked: Draft | Recipe, together: Sequence[Spec] = ()) -> Recipe:
    """The recipe for one more concept, `together` with others in one edit; UsageError if the stack has it already."""
    name = asked.spec.name
    if name in ground.stack.names:
        fix = "give it another name in its spec, or remove the first one"
        raise UsageError(f"concept {name}", "one that the stack lacks", f"one of {', '.join(ground.stack.names)}", fix)
    if isinstance(asked, Recipe):
        return frozen(order, asked, ground.model, ground.ref)
    earlier = [member.recipe for member in ground.members]
    draft = replace(asked, spec=beside(asked.spec, [*(recipe.spec for recipe in earlier), *together]))
    return guarded(frozen(order, draft, ground.model, ground.ref), earlier)


def compiled_together(ground: Ground, orders: Sequence[Order], asked: Sequence[Draft | Recipe]) -> list[Recipe]:
    """The recipes of concepts that get one edit.

    UsageError if one search can't serve them all, or for a finished recipe that keeps what another concept erases.
    """
    specs, recipes = [source.spec for source in asked], []
    for order, source in zip(orders, asked, strict=True):
        others = [spec for spec in specs if spec is not source.spec]
        recipe = compiled_on(ground, order, source, others)
        recipes.append(sharing_steps(recipe, len(asked)) if isinstance(source, Draft) else recipe)
    refuse_unlike(recipes)
    found = for_one_edit(recipes)
    for source, recipe in zip(asked, found, strict=True):
        if isinstance(source, Recipe) and recipe is not source:
            got = "one that keeps or draws what another of them erases"
            raise UsageError(f"recipe {source.spec.name}", "a recipe for a joint edit", got, "give its spec instead")
    return found


# -- where a walk begins ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """The pristine base model, what it is called, its edits so far, and what was measured and foretold of them."""

    model: ModelFamily
    ref: str
    members: tuple[Member, ...] = ()
    history: tuple[After, ...] = ()
    forecast: tuple[Overlap, ...] = ()

    @property
    def stack(self) -> Stack:
        """The edits so far."""
        return stack_of(self.members)

    def plus(self, *members: Member) -> Ground:
        """With more concepts on top."""
        return replace(self, members=(*self.members, *members))


def ground_of(order: Order, asked: Draft | Recipe) -> Ground:
    """A model by its reference, or the base and the stack of a released folder.

    UsageError for a release of an older version: it is an edited model, and its base is not in it.
    """
    text = order.model or (asked.model.ref if isinstance(asked, Recipe) else None)
    if text is None:
        raise UsageError("--model", "a model reference", "none", "for instance --model llamagen")
    ref, device = ModelRef.parse(text), resolve_device(order.device)
    if ref.path is not None and looks_released(ref.path):
        released = Released.read(ref.path)
        return Ground(released.base(device), released.ref, released.members, released.history, released.forecast)
    return Ground(load_model(text, device), str(ref))


def _compiled(ground: Ground, orders: Sequence[Order], asked: Sequence[Draft | Recipe], *, joint: bool) -> list[Recipe]:
    """The recipes of all orders, each beside those before it; what can't be compiled is told before work begins."""
    earlier = [member.recipe for member in ground.members]
    if joint:
        recipes = compiled_together(ground, orders, asked)
        refuse_own_captions([*earlier, *recipes])
        return recipes
    recipes = []
    for order, source in zip(orders, asked, strict=True):
        recipes.append(compiled_on(ground, order, source))
        name = recipes[-1].spec.name
        ground = ground.plus(Member(Layer(name, _nothing(recipes[-1], ground.model)), recipes[-1], Path()))
    refuse_own_captions([*earlier, *recipes])
    return recipes


def _nothing(recipe: Recipe, model: ModelFamily) -> Edit:
    """A stand-in for an edit that a plan has not searched: its name counts, and it changes nothing."""
    import torch

    from safear_edit.editor.edit_record import EditInfo

    name = next(name for name, _ in model.net.named_parameters())
    info = EditInfo(method=recipe.method.name, params={}, concept=recipe.spec.name, base_digest=model.card.digest,
                    rank=None, alpha=None, seed=recipe.seed, steps=0, losses=(), minutes=0.0)  # fmt: skip
    return Edit("delta", {name: torch.zeros_like(model.net.get_parameter(name), device="cpu")}, info)


def merged(name: str, several: Sequence[Material]) -> Material:
    """The material of several concepts as that of one; a kept prompt that some share is kept once.

    Kept prompts and pairs were drawn by one model, each prompt from its own seed, so a shared one has one image.
    """
    import torch

    from safear_edit.compiler.questions import TrainingQuestions
    from safear_edit.construct.pairs import Keep, Material, Pairs
    from safear_edit.construct.pairs_record import PairStats

    pairs = [material.pairs for material in several]
    reasons = sum((Counter(part.stats.reasons) for part in pairs), Counter[str]())
    stats = PairStats(sum(p.stats.made for p in pairs), sum(p.stats.kept for p in pairs), dict(reasons))
    both = Pairs(
        [text for part in pairs for text in part.unsafe],
        [text for part in pairs for text in part.safe],
        [seed for part in pairs for seed in part.seeds],
        torch.cat([part.unsafe_ids for part in pairs]),
        torch.cat([part.safe_ids for part in pairs]),
        stats,
    )
    kept = {
        prompt: (ids, mark)
        for keep in (material.keep for material in several)
        if keep
        for prompt, ids, mark in zip(keep.prompts, keep.ids, keep.guards or (False,) * len(keep), strict=True)
    }
    pictures, marks = [ids for ids, _ in kept.values()], tuple(mark for _, mark in kept.values())
    asked = [material.questions for material in several if material.questions]
    about = tuple(dict.fromkeys(text for part in asked for text in part.concept))
    rest = tuple(dict.fromkeys(text for part in asked for text in part.others if text not in about))
    return Material(
        name,
        both,
        Keep([*kept], torch.stack(pictures), marks if any(marks) else None) if kept else None,
        questions=TrainingQuestions(about, rest, asked[0].erase) if asked else None,
        prompt=", ".join(material.prompt or material.concept for material in several),
    )
