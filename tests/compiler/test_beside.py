"""What a concept's recipe leaves out beside others, and what a joint edit's recipes must have in common."""

from __future__ import annotations

from typing import Any

import pytest

from safear_edit import registry
from safear_edit.compiler.beside import beside, changed, for_one_edit, guarded, refuse_restoring, sharing_steps
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from safear_edit.errors import UsageError
from safear_edit.families.llamagen import LlamaGen
from safear_edit.pipeline.order import refuse_unlike
from safear_edit.spec.prompts import mention_of
from safear_edit.spec.spec import load_spec


def specs(*names: str) -> list[Any]:
    return [load_spec(registry.find_builtin("concepts", name)) for name in names]


def recipes(*names: str, method: str = "vce") -> list[Recipe]:
    card, found = LlamaGen.pico(seed=0).card, specs(*names)
    base = load_base_recipe(method)
    return [compile_recipe(beside(s, [o for o in found if o is not s]), card, base) for s in found]


def test_beside_drops_members_by_label_and_by_name() -> None:
    picasso, van_gogh, dog = specs("picasso", "van_gogh", "dog")
    left = beside(picasso, [van_gogh, dog])
    members = {member for group in left.preserve for member in group.members}
    before = {member for group in picasso.preserve for member in group.members}
    assert {"Van Gogh", "Vincent van Gogh", "a dog", "a puppy"} <= before - members
    assert {"Monet", "a cat"} <= members
    cats = picasso.preserve[1].model_copy(update={"images_per_prompt": {"object=dog": 2, "object=cat": 4}})
    (without_dog,) = beside(picasso.model_copy(update={"preserve": (cats,)}), [dog]).preserve
    assert without_dog.images_per_prompt == {"object=cat": 4}
    for names in ("train", "held_out"):
        known = van_gogh.paraphrases.model_copy(update={names: ("the chronicler of sunflowers",)})
        other = van_gogh.model_copy(update={"paraphrases": known})
        member = cats.model_copy(
            update={"members": {"The Chronicler of Sunflowers": "style=other", "a cat": "object=cat"}}
        )
        (kept,) = beside(picasso.model_copy(update={"preserve": (member,)}), [other]).preserve
        assert list(kept.members) == ["a cat"], names
    everything = picasso.model_copy(update={"preserve": picasso.preserve[:1]})
    only = everything.preserve[0].model_copy(update={"members": {"Van Gogh": "style=van_gogh"}})
    with pytest.raises(UsageError, match="something that stays"):
        beside(everything.model_copy(update={"preserve": (only,)}), [van_gogh])


def test_nothing_is_kept_or_drawn_that_another_concept_of_the_edit_loses() -> None:
    """A dog in Picasso's style would be taught as a plain photograph of a dog, which dog's own pairs take away."""
    before = recipes("picasso", "dog")
    picasso, dog = for_one_edit(before)
    mention = mention_of(("dog", *dog.spec.erase.aliases))
    assert any(mention(pair.safe) for pair in before[0].construct.pairs)
    assert not any(mention(pair.safe) for pair in picasso.construct.pairs)
    assert not any(mention(kept.prompt) for kept in picasso.keep)
    assert set(picasso.construct.pairs) < set(before[0].construct.pairs) and picasso.digest != before[0].digest
    assert picasso.evaluate == before[0].evaluate
    again = for_one_edit([picasso, dog])
    assert again[0] is picasso and again[1] is dog


def test_a_finished_recipe_that_brings_back_what_a_stack_erases_is_refused() -> None:
    """Compiled for the base model it keeps Van Gogh as that draws him; compiled beside him it doesn't."""
    (van_gogh,) = recipes("van_gogh")
    (picasso,) = recipes("picasso")
    with pytest.raises(UsageError, match="one that keeps 'van gogh', which the stack erases; give its spec"):
        refuse_restoring(picasso, [van_gogh])
    refuse_restoring(picasso, [])
    beside_him = guarded(recipes("picasso", "van_gogh")[0], [van_gogh])
    assert any(kept.guards for kept in beside_him.keep)
    refuse_restoring(beside_him, [van_gogh])


def test_each_concept_is_trained_as_long_as_alone() -> None:
    (recipe,) = recipes("picasso")
    longer = sharing_steps(recipe, 3)
    assert longer.method.params["steps"] == 3 * recipe.method.params["steps"] and longer.digest != recipe.digest
    assert {**longer.method.params, "steps": 0} == {**recipe.method.params, "steps": 0}


def test_recipes_that_one_search_cannot_serve_are_refused() -> None:
    one, two = recipes("picasso", "van_gogh")
    refuse_unlike([one, two])
    with pytest.raises(UsageError, match="one seed for all"):
        refuse_unlike([one, changed(two, seed=1)])
    with pytest.raises(UsageError, match="one method for all"):
        refuse_unlike([one, sharing_steps(two, 2)])
    with pytest.raises(UsageError, match=r"trains on pairs, got safe_cb.*vce"):
        refuse_unlike(recipes("picasso", method="safe_cb"))
