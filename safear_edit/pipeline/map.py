"""Where a model keeps a concept, measured and written as numbers and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.errors import UsageError
from safear_edit.evaluate.cartography import ConceptMap, locate, save
from safear_edit.files.rundir import opened, stage

if TYPE_CHECKING:
    from safear_edit.pipeline.order import Order
    from safear_edit.progress import Callback


def map_concept(order: Order, out: Path, *, count: int, overwrite: bool, progress: Callback) -> ConceptMap:
    """Compile the order, draw the first `count` of its training pairs, measure, and publish the folder `out`.

    The model is taken as it is: of a released one, the edited weights. Training prompts only: what the evaluation asks
    is not used.
    """
    from safear_edit.compiler.recipe import save_recipe
    from safear_edit.construct.pairs import build_pairs
    from safear_edit.families.load import load_model
    from safear_edit.families.reference import ModelRef
    from safear_edit.pipeline.order import compile_for, model_of, read_source, resolve_device
    from safear_edit.pipeline.steps import concept_judge

    with opened(out, overwrite=overwrite) as run:
        source = read_source(order)
        ref = ModelRef.parse(model_of(order, source))
        model = load_model(model_of(order, source), resolve_device(order.device))
        recipe = compile_for(model, str(ref), order, source)
        there = recipe.construct.pairs
        if count > len(there):
            fix = f"take --pairs {len(there)}"
            raise UsageError("--pairs", f"at most {len(there)}, which the recipe has", str(count), fix)
        wanted = [(pair.unsafe, pair.safe, pair.seed) for pair in there[:count]]
        judge = concept_judge(recipe.spec)
        pairs = build_pairs(model, wanted, judge, progress=progress, fewest=2)
        found = locate(model, recipe.spec.erase.concept, pairs, judge, progress)
        save(found, run.root)
        save_recipe(recipe, run / "recipe.json")
        run.publish(stage(run, ("map.json", "map.png", "recipe.json")), overwrite=overwrite)
    return found
