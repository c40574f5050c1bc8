"""What the edits of a stack do to each other, measured at the end of a walk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safear_edit.evaluate import interference
from safear_edit.evaluate.interference_record import Interference, read_interference
from safear_edit.evaluate.outcomes import read_outcomes
from safear_edit.files.atomic import digest_of, write_atomic
from safear_edit.files.layout import INTERFERENCE
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline.state import RunOptions, StackState, measured_part
from safear_edit.pipeline.steps import concept_judge, readers
from safear_edit.spec.spec import concepts_of

if TYPE_CHECKING:
    from safear_edit.progress import Callback


def measure_interference(run: RunDir, state: StackState, options: RunOptions) -> list[str]:
    """Edits by themselves, their overlaps and the history: interference.json. Returns lines to print."""
    questions = [_question(run, state, name) for name in state.stack.names]

    def make() -> None:
        found = _measured(state, questions, options.progress)
        write_atomic(run / INTERFERENCE, found.model_dump_json(indent=1) + "\n")

    asked = [prompt.id for question in questions for prompt in question.prompts]
    told = [part.model_dump_json() for part in state.history]
    recipes = [part for recipe in state.recipes for part in (recipe.digest, *readers(state.model, recipe))]
    run.step(INTERFERENCE, digest_of(state.stack.digest, *recipes, *asked, *told), (INTERFERENCE,), make)
    return _lines(read_interference(run / INTERFERENCE))


def _question(run: RunDir, state: StackState, name: str) -> interference.Question:
    recipe = next(recipe for recipe in state.recipes if recipe.spec.name == name)
    rows = read_outcomes(measured_part(run, state, name) / "outcomes.jsonl")
    return interference.Question.of(recipe, rows, concept_judge(recipe.spec))


def _measured(state: StackState, questions: Sequence[interference.Question], progress: Callback) -> Interference:
    model, stack = state.model, state.stack
    tables = {name: tensor.detach().cpu() for name, tensor in model.net.named_parameters() if name == model.table_name}
    cells = interference.alone(model, stack, questions, progress)
    overlaps = interference.overlaps(stack, tables)
    return Interference(history=state.history, alone=cells, overlaps=overlaps)


def _lines(found: Interference) -> list[str]:
    """What the last change did to the other concepts, and which edits alone touch another's concept."""
    lines = []
    if len(found.history) > 1:
        before, after = found.history[-2:]
        changed = interference.changes(before, after)
        lines += [f"{after.event}: {name}, {key}: {now} (before: {then})" for name, key, then, now in changed]
        lines += [] if changed else [f"{after.event}: nothing else changed in what was measured"]
    for cell in found.alone:
        if cell.concept not in concepts_of(cell.edit) and cell.found < cell.asked:
            lines.append(f"{cell.edit}'s edit alone leaves {cell.concept} in {cell.found} of {cell.asked} images")
    return lines
