"""Where a model keeps a concept, measured and written as numbers and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.evaluate.cartography import ConceptMap, measure, save
from safear_edit.files.rundir import opened, stage

if TYPE_CHECKING:
    from safear_edit.pipeline.order import Order
    from safear_edit.progress import Callback


def map_concept(order: Order, out: Path, *, count: int, overwrite: bool, progress: Callback) -> ConceptMap:
    """Compile the order, draw the first `count` of its training pairs, measure, and publish the folder `out`.

    Training prompts only: what the evaluation asks is not used.
    """
    from safear_edit.compiler.recipe import save_recipe
    from safear_edit.construct.pairs import build_pairs
    from safear_edit.pipeline.order import compiled
    from safear_edit.pipeline.steps import concept_judge

    with opened(out, overwrite=overwrite) as run:
        model, recipe = compiled(order)
        wanted = [(pair.unsafe, pair.safe, pair.seed) for pair in recipe.construct.pairs[:count]]
        judge = concept_judge(recipe.spec)
        pairs = build_pairs(model, wanted, judge, progress=progress, fewest=2)
        found = measure(model, recipe.spec.erase.concept, pairs, judge, progress)
        save(found, run.root)
        save_recipe(recipe, run / "recipe.json")
        run.publish(stage(run, ("map.json", "map.png", "recipe.json")), overwrite=overwrite)
    return found
