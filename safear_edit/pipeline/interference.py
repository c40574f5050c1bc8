"""What the edits of a stack do to each other, at three points of a walk: in its plan, before a search, at its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safear_edit.compiler.recipe import Recipe
from safear_edit.evaluate import interference
from safear_edit.evaluate.interference_record import Interference, Overlap
from safear_edit.evaluate.outcomes import read_outcomes
from safear_edit.files.atomic import digest_of, write_atomic
from safear_edit.files.layout import INTERFERENCE
from safear_edit.files.records import read_record, read_records
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline.state import RunOptions, StackState, measured_part
from safear_edit.pipeline.steps import concept_judge
from safear_edit.spec.spec import concepts_of

if TYPE_CHECKING:
    from safear_edit.construct.pairs import Pairs
    from safear_edit.families.base import ModelFamily
    from safear_edit.progress import Callback


FORECAST = "forecast.json"

# -- before the search ------------------------------------------------------------------------------------------------


def plan_forecast(state: StackState, recipe: Recipe, progress: Callback) -> list[Overlap]:
    """Each edit of the stack against the gradient that a new one would start from, for which a few pairs are drawn."""
    from safear_edit.compiler.recipe import FEWEST_PAIRS
    from safear_edit.construct.pairs import build_pairs

    if not state.members:
        return []
    wanted = [(pair.unsafe, pair.safe, pair.seed) for pair in recipe.construct.pairs[: 4 * FEWEST_PAIRS]]
    with state.stack.apply(state.model.net):
        pairs = build_pairs(state.model, wanted, concept_judge(recipe.spec), progress=progress, fewest=1)
    return _forecast(state, recipe, pairs)


def forecast(part: RunDir, state: StackState, recipe: Recipe) -> list[Overlap]:
    """The same from the pairs in `part`, with which the new edit is about to be searched: forecast.json."""
    from safear_edit.construct.pairs import Pairs

    if not state.members:
        return []

    def make() -> None:
        rows = [one.model_dump() for one in _forecast(state, recipe, Pairs.load(part / "pairs"))]
        write_atomic(part / FORECAST, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")

    inputs = digest_of(recipe.digest, state.stack.digest, part.digest("construct"))
    part.step("forecast", inputs, (FORECAST,), make)
    return list(read_records(Overlap, part / FORECAST))


def _forecast(state: StackState, recipe: Recipe, pairs: Pairs) -> list[Overlap]:
    model, weights = state.model, changed_weights(state.model, recipe)
    return interference.forecast(model, state.stack, recipe.spec.name, weights, interference.first_pairs(pairs))


def changed_weights(model: ModelFamily, recipe: Recipe) -> list[str]:
    """What the recipe's method will change: the linear layers of its part, or the image tokens' table."""
    part = recipe.method.params.get("part")
    if part is None:
        return [model.table_name] if model.table_name in dict(model.net.named_parameters()) else []
    return [f"{name}.weight" for name in model.editable(str(part))]


# -- at the end -------------------------------------------------------------------------------------------------------


def measure_interference(run: RunDir, state: StackState, options: RunOptions) -> list[str]:
    """Edits by themselves, their overlaps, the history and the forecasts: interference.json. Returns lines to print.

    A concept that is the only one that a model ever lost has nothing to interfere with; no file is written.
    """
    if state.single:
        return []
    questions = [_question(run, state, name) for name in state.stack.names]

    def make() -> None:
        found = _measured(state, questions, options.progress)
        write_atomic(run / INTERFERENCE, found.model_dump_json(indent=1) + "\n")

    asked = [prompt.id for question in questions for prompt in question.prompts]
    told = [part.model_dump_json() for part in (*state.history, *state.forecast)]
    run.step(INTERFERENCE, digest_of(state.stack.digest, *asked, *told), (INTERFERENCE,), make)
    return _lines(read_record(Interference, run / INTERFERENCE))


def _question(run: RunDir, state: StackState, name: str) -> interference.Question:
    recipe = next(recipe for recipe in state.recipes if recipe.spec.name == name)
    rows = read_outcomes(measured_part(run, state, name) / "outcomes.jsonl")
    return interference.Question(name, interference.obeyed(recipe, rows), concept_judge(recipe.spec), recipe)


def _measured(state: StackState, questions: Sequence[interference.Question], progress: Callback) -> Interference:
    model, stack = state.model, state.stack
    tables = {name: tensor.detach().cpu() for name, tensor in model.net.named_parameters() if name == model.table_name}
    cells = interference.alone(model, stack, questions, progress)
    overlaps = interference.overlaps(stack, tables)
    edits = {layer.name for layer in stack.layers}
    left = [one for one in state.forecast if one.first in edits and one.second in stack.names]
    rows, agreement = interference.compared(left, overlaps, cells)
    return Interference(
        history=state.history,
        alone=cells,
        overlaps=overlaps,
        forecast=tuple(left),
        foretold=rows,
        agreement=agreement,
    )


def _lines(found: Interference) -> list[str]:
    """What the last change did to the other concepts, which edits alone touch another's concept, and forecasts."""
    lines = []
    if len(found.history) > 1:
        before, after = found.history[-2:]
        changed = interference.changes(before, after)
        lines += [f"{after.event}: {name}, {key}: {now} (before: {then})" for name, key, then, now in changed]
        lines += [] if changed else [f"{after.event}: nothing else changed in what was measured"]
    for cell in found.alone:
        if cell.concept not in concepts_of(cell.edit) and cell.found < cell.asked:
            lines.append(f"{cell.edit}'s edit alone leaves {cell.concept} in {cell.found} of {cell.asked} images")
    return [*lines, *map(interference.told, found.foretold)]
