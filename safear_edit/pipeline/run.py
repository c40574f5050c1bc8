"""The walk of a stack: add concepts one after another to a model, take one off, weigh one anew.

    for each concept    compile → construct and edit on the model with the earlier edits → measure all concepts so far
    or for all at once  the same with one edit for all of them (a joint edit), found on their merged material
    at the end          likelihoods, interference, report, release: as for one concept, in one rename

Every measurement compares with the pristine base, never with the model before the last edit. Three things differ from a
concept by itself (order.py):
* What another concept of the stack erases can't be preserved: members of preserve groups that ask for it are left out,
  and so are prompts that another edit was trained on. The recipe that is reported (concepts/NAME/recipe.json) says
  what was left; the one that found the edit stays in edit/recipe.json.
* A recipe depends on the concepts below it only, so two concepts in one call give the weights of two calls.
* A later edit also keeps what earlier ones did: some of their training prompts are among its preserved images, drawn
  by the model in which they are erased already. Everything else it keeps as the base model has it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.compiler.beside import as_measured
from safear_edit.compiler.compile import cut_lines
from safear_edit.compiler.recipe import Recipe, save_recipe
from safear_edit.editor.edit import Edit
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import UsageError
from safear_edit.evaluate import interference
from safear_edit.evaluate.interference_record import After, Interference, Overlap
from safear_edit.evaluate.outcomes import read_outcomes
from safear_edit.families.base import ModelFamily
from safear_edit.files import rundir
from safear_edit.files.atomic import digest_of, write_atomic
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline.environment import environment
from safear_edit.pipeline.ground import Ground, _compiled, ground_of, merged
from safear_edit.pipeline.order import Order, Plan, noted, read_source, source_path
from safear_edit.pipeline.steps import (
    EDIT_FILES,
    NOT_RELEASED,
    Result,
    Reuse,
    base_card,
    concept_judge,
    construct,
    evaluate,
    find_edit,
    likelihoods,
    material_of,
    measuring,
    search,
    sign,
    understanding,
    write_json,
    write_report,
)
from safear_edit.progress import Callback, silent
from safear_edit.release.released import CARD, Member, save_base, save_stack
from safear_edit.report.evidence import FOUND_BY, INTERFERENCE
from safear_edit.spec.spec import JOINT, concepts_of

if TYPE_CHECKING:
    from safear_edit.construct.pairs import Pairs
    from safear_edit.release.keys import SigningKey


EVIDENCE = ("edit/**/*", "pairs/*", "images/pairs.*", "*.yaml")
"""What a concept keeps of its search, by pattern."""


@dataclass(frozen=True)
class Terms:
    """How a walk ends, and whom it tells; as the arguments of `pipeline.apply`."""

    key: SigningKey | None = None
    unsigned: bool = False
    overwrite: bool = False
    command: str = ""
    progress: Callback = silent
    say: Callable[[str], None] = lambda line: None


# -- plan -------------------------------------------------------------------------------------------------------------


def plan(orders: Sequence[Order], progress: Callback = silent, *, joint: bool = False) -> list[Plan]:
    """What `grow` would do, one plan per concept; for concepts on a released stack also which edits it may meet.

    For the latter a few pairs are drawn (interference.forecast); nothing is trained and nothing is written. The plans
    of a joint edit each name all of its steps, and their own share of its minutes.
    """
    asked = [read_source(order) for order in orders]
    ground, plans = ground_of(orders[0], asked[0]), []
    released = ground.stack
    for recipe in _compiled(ground, orders, asked, joint=joint):
        found = foretold(ground.model, released, recipe, progress) if released.layers else []
        conflicts = tuple(interference.warning(overlap, foretold=True) for overlap in found)
        plans.append(Plan(recipe, ground.model.card.ref, noted(recipe, ground.model), conflicts))
    return plans


def foretold(model: ModelFamily, stack: Stack, recipe: Recipe, progress: Callback = silent) -> list[Overlap]:
    """Each edit of `stack` against the gradient that a new edit starts from; `model` is the base, and stays so."""
    from safear_edit.compiler.recipe import FEWEST_PAIRS
    from safear_edit.construct.pairs import build_pairs

    wanted = [(pair.unsafe, pair.safe, pair.seed) for pair in recipe.construct.pairs[: 4 * FEWEST_PAIRS]]
    with stack.apply(model.net):
        pairs = build_pairs(model, wanted, concept_judge(recipe.spec), progress=progress, fewest=1)
    return _foretold(model, stack, recipe, pairs)


def _foretold(model: ModelFamily, stack: Stack, recipe: Recipe, pairs: Pairs) -> list[Overlap]:
    weights = changed_weights(model, recipe)
    return interference.forecast(model, stack, recipe.spec.name, weights, interference.first_pairs(pairs))


def changed_weights(model: ModelFamily, recipe: Recipe) -> list[str]:
    """What the recipe's method will change: the linear layers of its part, or the image tokens' table."""
    part = recipe.method.params.get("part")
    if part is None:
        return [model.table_name] if model.table_name in dict(model.net.named_parameters()) else []
    return [f"{name}.weight" for name in model.editable(str(part))]


# -- grow -------------------------------------------------------------------------------------------------------------

FORECAST = "forecast.json"


def grow(orders: Sequence[Order], out: Path, terms: Terms, *, joint: bool = False) -> Result:
    """Add the concepts of `orders`, in their order, to the model that the first one names, and publish `out`.

    joint: in one edit instead of one after another. A model that was released with a stack keeps it below. After an
    interruption the same call continues where it was. UsageError before anything is loaded for sources that can't be
    read or name a concept twice; then as `pipeline.apply`.
    """
    started = datetime.now(UTC)
    asked = [read_source(order) for order in orders]
    _refuse_twice([source.spec.name for source in asked])
    with rundir.opened(out, overwrite=terms.overwrite) as run:
        ground = ground_of(orders[0], asked[0])
        terms.say(f"model {ground.ref}, {', '.join(ground.stack.names) or 'no concept'} erased so far")
        work = list(zip(orders, _compiled(ground, orders, asked, joint=joint), strict=True))
        for part in [work] if joint else [[one] for one in work]:
            ground = _added(run, ground, part, terms)
        return _finish(run, ground, started, terms)


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError("apply", "each concept once", f"{twice[0]} twice", "leave one of them out")


def _added(run: RunDir, ground: Ground, work: Sequence[tuple[Order, Recipe]], terms: Terms) -> Ground:
    """The ground with one more edit, for the concept or concepts of `work`, measured."""
    below, parts = ground.stack, list[RunDir]()
    for order, recipe in work:
        terms.say(f"adding {recipe.spec.name}: method {recipe.method.name}, recipe {recipe.digest[:12]}")
        for line in cut_lines(recipe, ground.model.caption_lengths):
            terms.say(line)
        part = run.part(f"concepts/{recipe.spec.name}")
        progress = named(terms.progress, recipe.spec.name)
        source = source_path(order.source)
        if source.suffix != ".json":
            write_atomic(part / f"{recipe.spec.name}.yaml", source.read_bytes())
        with below.apply(ground.model.net):
            construct(part, recipe, ground.model, progress, below.digest)
        ground = replace(ground, forecast=(*ground.forecast, *_forecast(part, ground, recipe)))
        parts.append(part)
    recipes = [recipe for _, recipe in work]
    with below.apply(ground.model.net):
        layer = _edit_of(run, parts, recipes, ground, terms)
    ground = ground.plus(*(Member(layer, r, part.root) for r, part in zip(recipes, parts, strict=True)))
    names = " and ".join(layer.concepts) + (" in one edit" if len(recipes) > 1 else "")
    return measure(run, ground, f"added {names}", terms)


def _forecast(part: RunDir, ground: Ground, recipe: Recipe) -> list[Overlap]:
    """Which edits the one that is about to be searched may meet, from the pairs that it is searched with."""
    from safear_edit.construct.pairs import Pairs

    if not ground.stack.layers:
        return []

    def make() -> None:
        found = _foretold(ground.model, ground.stack, recipe, Pairs.load(part / "pairs"))
        write_json(part / FORECAST, [one.model_dump() for one in found])

    inputs = digest_of(recipe.digest, ground.stack.digest, part.digest("construct"))
    part.step("forecast", inputs, (FORECAST,), make)
    return [Overlap.model_validate(row) for row in json.loads((part / FORECAST).read_text())]


def _edit_of(run: RunDir, parts: Sequence[RunDir], recipes: Sequence[Recipe], ground: Ground, terms: Terms) -> Layer:
    """One edit for the concepts of `recipes`, on the model with the edits below; a joint one lies in every part."""
    below, names = ground.stack.digest, [recipe.spec.name for recipe in recipes]
    name = JOINT.join(names)
    progress = named(terms.progress, name)
    if len(recipes) == 1:
        return Layer(name, find_edit(parts[0], recipes[0], ground.model, progress, below))
    whole = run.part(f"joint/{name}")

    def make() -> None:
        several = [material_of(part, recipe, ground.model) for part, recipe in zip(parts, recipes, strict=True)]
        search(whole, merged(name, several), recipes[0], ground.model, progress)

    made = [part.digest("construct") for part in parts]
    inputs = digest_of(*(recipe.digest for recipe in recipes), below, *made)
    whole.step("edit", inputs, EDIT_FILES, make)
    for part in parts:
        part.step("edit", inputs, EDIT_FILES, partial(_copied, whole / "edit", part / "edit"))
    return Layer(name, Edit.load(whole / "edit"))


def _copied(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def named(progress: Callback, name: str) -> Callback:
    """The same callback with the concept before every stage's name."""
    return partial(_named, progress, name)


def _named(progress: Callback, name: str, stage: str, done: int, total: int, info: str = "") -> None:
    progress(f"{name}: {stage}", done, total, info)


# -- measure ----------------------------------------------------------------------------------------------------------


def measure(run: RunDir, ground: Ground, event: str, terms: Terms) -> Ground:
    """Evaluate every concept of the stack, edited against pristine; the ground with one more entry in its history."""
    seen = {}
    for member in ground.members:
        recipe, left_out = as_measured(member.recipe, _others(ground, member))
        part = _measured_part(run, ground.stack, member)
        if left_out:
            terms.say(f"{member.name}: {len(left_out)} prompts are left out, which other concepts erase or trained on")
        reuse = Reuse(left_out, run / "base" / member.name)
        (run / "base").mkdir(exist_ok=True)
        evaluate(part, member.recipe, ground.model, ground.stack, named(terms.progress, member.name), reuse)
        save_recipe(recipe, part / "recipe.json")
        seen[member.name] = interference.measured(read_outcomes(part / "outcomes.jsonl"))
    return replace(ground, history=(*ground.history, After(event=event, concepts=seen)))


def _others(ground: Ground, member: Member) -> list[Recipe]:
    return [other.recipe for other in ground.members if other is not member]


def _measured_part(run: RunDir, stack: Stack, member: Member) -> RunDir:
    return run.part(f"measured/{stack.digest[:16]}/{member.name}")


def _interference(run: RunDir, ground: Ground, terms: Terms) -> Interference:
    """The matrix and the overlaps of the finished stack, its history, and what was foretold: interference.json."""
    questions = []
    for member in ground.members:
        rows = read_outcomes(_measured_part(run, ground.stack, member) / "outcomes.jsonl")
        judge = concept_judge(member.recipe.spec)
        prompts = interference.obeyed(member.recipe, rows)
        questions.append(interference.Question(member.name, prompts, judge, member.recipe))
    tables = {name: tensor.detach().cpu() for name, tensor in ground.model.net.named_parameters()
              if name == ground.model.table_name}  # fmt: skip

    def make() -> None:
        cells = interference.alone(ground.model, ground.stack, questions, terms.progress)
        overlaps = interference.overlaps(ground.stack, tables)
        there = [one for one in ground.forecast if one.first in edits and one.second in ground.stack.names]
        rows, agreement = interference.compared(there, overlaps, cells)
        found = Interference(
            history=ground.history,
            alone=cells,
            overlaps=overlaps,
            forecast=tuple(there),
            foretold=rows,
            agreement=agreement,
        )
        write_atomic(run / INTERFERENCE, found.model_dump_json(indent=1) + "\n")

    edits = {layer.name for layer in ground.stack.layers}
    asked = [prompt.id for question in questions for prompt in question.prompts]
    told = [part.model_dump_json() for part in (*ground.history, *ground.forecast)]
    run.step(INTERFERENCE, digest_of(ground.stack.digest, *asked, *told), (INTERFERENCE,), make)
    return Interference.model_validate_json((run / INTERFERENCE).read_text())


# -- release ----------------------------------------------------------------------------------------------------------


def _finish(run: RunDir, ground: Ground, started: datetime, terms: Terms, notes: Sequence[str] = ()) -> Result:
    """Likelihoods of the finished stack, interference, report, signature, and the one rename."""
    for member in ground.members:
        recipe, _ = as_measured(member.recipe, _others(ground, member))
        part = _measured_part(run, ground.stack, member)
        progress = named(terms.progress, member.name)
        if why := likelihoods(part, recipe, ground.model, ground.stack, progress):
            terms.say(f"{member.name}: likelihoods are not looked at: {why}")
        if why := understanding(part, recipe, ground.model, ground.stack, progress):
            terms.say(f"{member.name}: understanding is not evaluated: {why}")
    found = _interference(run, ground, terms)
    about = environment(ground.model, terms.command, started)
    write_json(run / "environment.json", about)
    staged = _stage(run, ground)
    report = write_report(staged)
    if terms.key is not None:
        sign(staged, report, [member.recipe for member in ground.members], terms.key)
    run.publish(staged, overwrite=terms.overwrite)
    lines = (*notes, *_told(found))
    return Result(run.out, report, terms.key is not None, terms.unsigned, lines)


def _stage(run: RunDir, ground: Ground) -> Path:
    """The folder to release: weights, base, edits and recipes, and each concept's evidence in a folder of its own."""
    net, stack = ground.model.net, ground.stack
    staged = rundir.stage(run, ["environment.json", INTERFERENCE])
    for member in ground.members:
        made = measuring(member.recipe, ground.model)
        _stage_concept(staged / "concepts" / member.name, member, _measured_part(run, stack, member), made)
    judges = [json.loads((staged / "concepts" / name / "judges.json").read_text()) for name in stack.names]
    distinct = {json.dumps(card, sort_keys=True): card for cards in judges for card in cards}
    write_json(staged / "judges.json", list(distinct.values()))
    write_json(staged / CARD, base_card(ground.model))
    for name in stack.names:
        (staged / "concepts" / name / "judges.json").unlink()
    save_base(staged, net, stack.weights)
    save_stack(staged, stack, net)
    with stack.apply(net):
        ground.model.export(staged)
    return staged


def _stage_concept(target: Path, member: Member, part: RunDir, steps: Sequence[str]) -> None:
    made = [name for step in steps for name in part.files(step) if name != CARD]
    files = [(part.root, name) for name in (*made, "recipe.json")]
    for pattern in EVIDENCE:
        paths = (path for path in member.folder.glob(pattern) if path.is_file())
        found = sorted(path.relative_to(member.folder).as_posix() for path in paths)
        files += [(member.folder, name) for name in found if name not in (*NOT_RELEASED, FOUND_BY)]
    for folder, name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    save_recipe(member.recipe, target / FOUND_BY)


def _told(found: Interference) -> list[str]:
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
