"""Recipes in a stack: what is compiled, kept and evaluated of a concept beside others that are erased as well.

What another concept of the stack erases can't be preserved, nor can a prompt be evaluated that another edit was trained
on. Concepts of one joint edit also share their training: there nothing may be kept, and no pair drawn towards, what
another of them takes away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from safear_edit.compiler.recipe import EvalPrompt, KeepPrompt, Recipe
from safear_edit.errors import UsageError
from safear_edit.spec.prompts import image_seed, mention_of, normalise
from safear_edit.spec.spec import PreserveGroup, Spec, concept_names, expand_group

GUARDED = 32
"""Training prompts of each earlier concept that a later edit keeps erased; the mini's recipe keeps 192 in all."""


def beside(spec: Spec, others: Sequence[Spec]) -> Spec:
    """The spec without the members of preserve groups that ask for what `others` erase.

    A member does if it has the label of another's concept or mentions one of its names. UsageError if nothing is left.
    """
    labels = {(other.judge.use, other.judge.label) for other in others}
    mentions = [mention_of(concept_names(other)) for other in others]

    def stays(member: str, label: str) -> bool:
        return (spec.judge.use, label) not in labels and not any(mention(member) for mention in mentions)

    groups: list[PreserveGroup] = []
    for group in spec.preserve:
        members = {member: label for member, label in group.members.items() if stays(member, label)}
        if members:
            groups.append(group.with_members(members))
    if not groups:
        got = "only what other concepts of the stack erase"
        raise UsageError(f"spec {spec.name}, preserve", "something that stays", got, "add a group to the spec")
    return spec.model_copy(update={"preserve": tuple(groups)})


def as_measured(recipe: Recipe, others: Sequence[Recipe]) -> tuple[Recipe, frozenset[str]]:
    """The recipe by which a concept is measured in a stack with `others`, and the prompts that it leaves out, by id.

    Left out: prompts of members that `beside` drops, and prompts that another edit was trained on. The number to score
    falls by the prompts left out of a slice, so the rest are those that would have been scored anyway.
    """
    spec = beside(recipe.spec, [other.spec for other in others])
    kept = {group.name: {normalise(prompt.text) for prompt in expand_group(group)} for group in spec.preserve}
    trained = {normalise(text) for other in others for text in other.training_prompts}
    left_out, left = list[EvalPrompt](), list[EvalPrompt]()
    for prompt in recipe.evaluate.prompts:
        text = normalise(prompt.prompt)
        dropped = prompt.expect == "present" and text not in kept.get(prompt.slice, ())
        (left_out if dropped or text in trained else left).append(prompt)
    if not left_out:
        return recipe, frozenset()
    lost, there = Counter(prompt.slice for prompt in left_out), {prompt.slice for prompt in left}
    n = {name: max(1, size - lost[name]) for name, size in recipe.evaluate.n.items() if name in there}
    evaluation = recipe.evaluate.model_copy(update={"prompts": tuple(left), "n": n})
    return changed(recipe, spec=spec, evaluate=evaluation), frozenset(prompt.id for prompt in left_out)


def guarded(recipe: Recipe, earlier: Sequence[Recipe]) -> Recipe:
    """The recipe with GUARDED training prompts of each earlier concept among its preserved ones.

    These, and preserved prompts that mention such a concept ("a dog by Claude Monet"), stay as the model has them that
    the edit is found on, where the concepts are erased already; all others as the base model has them, so that
    what one edit loses the next one restores. No training prompt of an earlier concept is evaluated, here or there. A
    recipe whose method keeps nothing stays as it is.
    """
    evaluated = {normalise(p.prompt) for other in (recipe, *earlier) for p in other.evaluate.prompts}
    texts = [pair.unsafe for other in earlier for pair in other.construct.pairs[:GUARDED]]
    extra = [text for text in dict.fromkeys(texts) if normalise(text) not in evaluated]
    if not recipe.keep or not earlier:
        return recipe
    mentions = _naming(earlier)
    own = [kept.model_copy(update={"guards": True}) if mentions(kept.prompt) else kept for kept in recipe.keep]
    prompts = [KeepPrompt(prompt=text, seed=image_seed("keep", text, recipe.seed), guards=True) for text in extra]
    return changed(recipe, keep=(*own, *prompts))


def refuse_restoring(recipe: Recipe, earlier: Sequence[Recipe]) -> None:
    """UsageError for a finished recipe that was compiled without those edits and keeps, as the base model has it, what
    one of them erases: it would teach that again."""
    mentions = _naming(earlier)
    if kept := next((kept for kept in recipe.keep if not kept.guards and mentions(kept.prompt)), None):
        got = f"one that keeps {mentions(kept.prompt)!r}, which the stack erases"
        fix = "give its spec, or compile that for this model"
        raise UsageError(f"recipe {recipe.spec.name}", "a recipe for this stack", got, fix)


def _naming(recipes: Sequence[Recipe]) -> Callable[[str], str | None]:
    """`mention_of` for the concepts that these recipes erase, by any name that their specs know."""
    return mention_of([name for one in recipes for name in concept_names(one.spec)])


def refuse_own_captions(recipes: Sequence[Recipe]) -> None:
    """UsageError if a concept beside others learns from captions that no recipe has: what another concept is evaluated
    by might be among them, or what a joint edit takes away."""
    for recipe in recipes if len(recipes) > 1 else ():
        if recipe.construct.described:
            got = f"captions by {recipe.construct.captioner or 'the model itself'} for {recipe.spec.name}"
            raise UsageError("stack", "safe captions that the recipe has", got, "leave them to the templates")


def changed(recipe: Recipe, **parts: Any) -> Recipe:
    """A recipe with other parts, and so with another digest (which a plain copy would have kept)."""
    return Recipe.model_validate(recipe.model_copy(update=parts).model_dump(mode="json"))


# -- one edit for several ---------------------------------------------------------------------------------------------


def for_one_edit(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes of concepts that one edit erases, without what of one would teach against another.

    Left out are kept prompts, and pairs whose safe prompt is the image to be drawn instead, if they mention another
    concept of the set. UsageError if nothing is left of the pairs.
    """
    return [_without(recipe, [other for other in recipes if other is not recipe]) for recipe in recipes]


def _without(recipe: Recipe, others: Sequence[Recipe]) -> Recipe:
    mention = _naming(others)
    pairs = tuple(pair for pair in recipe.construct.pairs if not mention(pair.safe))
    keep = tuple(kept for kept in recipe.keep if not mention(kept.prompt))
    if not pairs:
        fix = "erase it by an edit of its own: leave --joint out"
        raise UsageError(f"--joint, {recipe.spec.name}", "pairs without the other concepts", "none", fix)
    if len(pairs) == len(recipe.construct.pairs) and len(keep) == len(recipe.keep):
        return recipe
    return changed(recipe, construct=recipe.construct.model_copy(update={"pairs": pairs}), keep=keep)


def sharing_steps(recipe: Recipe, concepts: int) -> Recipe:
    """The recipe with as many steps as that many concepts would take one after another: each sees as much as alone."""
    steps = recipe.method.params.get("steps")
    if steps is None:
        return recipe
    params = {**recipe.method.params, "steps": concepts * int(steps)}
    return changed(recipe, method=recipe.method.model_copy(update={"params": params}))
