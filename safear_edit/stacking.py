"""The walk of a stack: add concepts one after another to a model, take one off, weigh one anew.

    for each concept    compile → construct and edit on the model with the earlier edits → measure all concepts so far
    or for all at once  the same with one edit for all of them (a joint edit), found on their merged material
    at the end          likelihoods, interference, report, release: as for one concept (pipeline.py), in one rename

Every measurement compares with the pristine base, never with the model before the last edit. Three things differ from a
concept by itself (stack_recipes.py):
* What another concept of the stack erases can't be preserved: members of preserve groups that ask for it are left out,
  and so are prompts that another edit was trained on. The recipe that is reported (concepts/NAME/recipe.json) says
  what was left; the one that found the edit stays in edit/recipe.json.
* A recipe depends on the concepts below it only, so two concepts in one call give the weights of two calls.
* A later edit also keeps what earlier ones did: some of their training prompts are among its preserved pictures, drawn
  by the model in which they are erased already. Everything else it keeps as the untouched model has it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit import interference, pipeline, registry, rundir
from safear_edit.compiler import Recipe, recipe_warnings, save_recipe
from safear_edit.edit import Edit
from safear_edit.errors import UsageError
from safear_edit.families.base import ModelFamily
from safear_edit.interference import After, Interference, Overlap
from safear_edit.pipeline import Draft, Order, Plan, Result, Reuse
from safear_edit.progress import Callback, silent
from safear_edit.run_files import FOUND_BY, INTERFERENCE, read_outcomes
from safear_edit.rundir import RunDir, digest_of, looks_released, write_atomic
from safear_edit.sections import JOINT, concepts_of
from safear_edit.spec import Spec
from safear_edit.stack import (
    CARD,
    STRONGEST,
    Layer,
    Member,
    Released,
    Stack,
    save_base,
    save_stack,
    stack_of,
)
from safear_edit.stack_recipes import (
    as_measured,
    beside,
    for_one_edit,
    guarded,
    refuse_own_captions,
    refuse_unlike,
    sharing_steps,
)

if TYPE_CHECKING:
    from safear_edit.keys import SigningKey
    from safear_edit.pairs import Material, Pairs

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


# -- recipes in a stack -----------------------------------------------------------------------------------------------


def compiled_on(ground: Ground, order: Order, asked: Draft | Recipe, together: Sequence[Spec] = ()) -> Recipe:
    """The recipe for one more concept, `together` with others in one edit; UsageError if the stack has it already."""
    name = asked.spec.name
    if name in ground.stack.names:
        fix = "give it another name in its spec, or remove the first one"
        raise UsageError(f"concept {name}", "one that the stack lacks", f"one of {', '.join(ground.stack.names)}", fix)
    if isinstance(asked, Recipe):
        return pipeline.frozen(order, asked, ground.model, ground.ref)
    earlier = [member.recipe for member in ground.members]
    draft = replace(asked, spec=beside(asked.spec, [*(recipe.spec for recipe in earlier), *together]))
    return guarded(pipeline.frozen(order, draft, ground.model, ground.ref), earlier)


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
    ref, device = registry.ModelRef.parse(text), pipeline.resolve_device(order.device)
    if ref.path is not None and looks_released(ref.path):
        released = Released.read(ref.path)
        return Ground(released.base(device), released.ref, released.members, released.history, released.forecast)
    return Ground(registry.load_model(text, device), str(ref))


# -- plan -------------------------------------------------------------------------------------------------------------


def plan(orders: Sequence[Order], progress: Callback = silent, *, joint: bool = False) -> list[Plan]:
    """What `grow` would do, one plan per concept; for concepts on a released stack also which edits it may meet.

    For the latter a few pairs are drawn (interference.forecast); nothing is trained and nothing is written. The plans
    of a joint edit each name all of its steps, and their own share of its minutes.
    """
    asked = [pipeline.read_source(order) for order in orders]
    ground, plans = ground_of(orders[0], asked[0]), []
    released = ground.stack
    for recipe in _compiled(ground, orders, asked, joint=joint):
        found = foretold(ground.model, released, recipe, progress) if released.layers else []
        conflicts = tuple(interference.warning(overlap, foretold=True) for overlap in found)
        warnings = tuple(recipe_warnings(recipe, pipeline.similarity()))
        plans.append(Plan(recipe, ground.model.card.ref, warnings, conflicts))
    return plans


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

    from safear_edit.edit import EditInfo

    name = next(name for name, _ in model.net.named_parameters())
    info = EditInfo(method=recipe.method.name, params={}, concept=recipe.spec.name, base_digest=model.card.digest,
                    rank=None, alpha=None, seed=recipe.seed, steps=0, losses=(), minutes=0.0)  # fmt: skip
    return Edit("delta", {name: torch.zeros_like(model.net.get_parameter(name), device="cpu")}, info)


def foretold(model: ModelFamily, stack: Stack, recipe: Recipe, progress: Callback = silent) -> list[Overlap]:
    """Each edit of `stack` against the gradient that a new edit starts from; `model` is the base, and stays so."""
    from safear_edit.pairs import FEWEST, build_pairs

    wanted = [(pair.unsafe, pair.safe, pair.seed) for pair in recipe.construct.pairs[: 4 * FEWEST]]
    with stack.apply(model.net):
        pairs = build_pairs(model, wanted, pipeline.concept_judge(recipe.spec), progress=progress, fewest=1)
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
    asked = [pipeline.read_source(order) for order in orders]
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
        part = run.part(f"concepts/{recipe.spec.name}")
        progress = named(terms.progress, recipe.spec.name)
        source = pipeline.source_path(order.source)
        if source.suffix != ".json":
            write_atomic(part / f"{recipe.spec.name}.yaml", source.read_bytes())
        with below.apply(ground.model.net):
            pipeline.construct(part, recipe, ground.model, progress, below.digest)
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
    from safear_edit.pairs import Pairs

    if not ground.stack.layers:
        return []

    def make() -> None:
        found = _foretold(ground.model, ground.stack, recipe, Pairs.load(part / "pairs"))
        pipeline.write_json(part / FORECAST, [one.model_dump() for one in found])

    inputs = digest_of(recipe.digest, ground.stack.digest, part.digest("construct"))
    part.step("forecast", inputs, (FORECAST,), make)
    return [Overlap.model_validate(row) for row in json.loads((part / FORECAST).read_text())]


def _edit_of(run: RunDir, parts: Sequence[RunDir], recipes: Sequence[Recipe], ground: Ground, terms: Terms) -> Layer:
    """One edit for the concepts of `recipes`, on the model with the edits below; a joint one lies in every part."""
    below, names = ground.stack.digest, [recipe.spec.name for recipe in recipes]
    name = JOINT.join(names)
    progress = named(terms.progress, name)
    if len(recipes) == 1:
        return Layer(name, pipeline.find_edit(parts[0], recipes[0], ground.model, progress, below))
    whole = run.part(f"joint/{name}")

    def make() -> None:
        several = [
            pipeline.material_of(part, recipe, ground.model) for part, recipe in zip(parts, recipes, strict=True)
        ]
        pipeline.search(whole, merged(name, several), recipes[0], ground.model, progress)

    made = [part.digest("construct") for part in parts]
    inputs = digest_of(*(recipe.digest for recipe in recipes), below, *made)
    whole.step("edit", inputs, pipeline.EDIT_FILES, make)
    for part in parts:
        part.step("edit", inputs, pipeline.EDIT_FILES, partial(_copied, whole / "edit", part / "edit"))
    return Layer(name, Edit.load(whole / "edit"))


def _copied(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def merged(name: str, several: Sequence[Material]) -> Material:
    """The material of several concepts as that of one; a kept prompt that some share is kept once.

    Kept prompts and pairs were drawn by one model, each prompt from its own seed, so a shared one has one picture.
    """
    import torch

    from safear_edit.pairs import Keep, Material, Pairs, PairStats
    from safear_edit.understanding import Taught

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
        questions=Taught(about, rest, asked[0].erase) if asked else None,
    )


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
        pipeline.evaluate(part, member.recipe, ground.model, ground.stack, named(terms.progress, member.name), reuse)
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
        judge = pipeline.concept_judge(member.recipe.spec)
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
        if why := pipeline.likelihoods(part, recipe, ground.model, ground.stack, progress):
            terms.say(f"{member.name}: likelihoods are not looked at: {why}")
        if why := pipeline.understanding(part, recipe, ground.model, ground.stack, progress):
            terms.say(f"{member.name}: understanding is not looked at: {why}")
    found = _interference(run, ground, terms)
    about = pipeline.environment(ground.model, terms.command, started)
    pipeline.write_json(run / "environment.json", about)
    staged = _stage(run, ground)
    report = pipeline.write_report(staged)
    if terms.key is not None:
        pipeline.sign(staged, report, [member.recipe for member in ground.members], terms.key)
    run.publish(staged, overwrite=terms.overwrite)
    lines = (*notes, *_told(found))
    return Result(run.out, report, terms.key is not None, terms.unsigned, lines)


def _stage(run: RunDir, ground: Ground) -> Path:
    """The folder to release: weights, base, edits and recipes, and each concept's evidence in a folder of its own."""
    net, stack = ground.model.net, ground.stack
    staged = rundir.stage(run, ["environment.json", INTERFERENCE])
    for member in ground.members:
        made = pipeline.measuring(member.recipe, ground.model)
        _stage_concept(staged / "concepts" / member.name, member, _measured_part(run, stack, member), made)
    judges = [json.loads((staged / "concepts" / name / "judges.json").read_text()) for name in stack.names]
    distinct = {json.dumps(card, sort_keys=True): card for cards in judges for card in cards}
    pipeline.write_json(staged / "judges.json", list(distinct.values()))
    pipeline.write_json(staged / CARD, pipeline.base_card(ground.model))
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
        files += [(member.folder, name) for name in found if name not in (*pipeline.NOT_RELEASED, FOUND_BY)]
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
            lines.append(f"{cell.edit}'s edit alone leaves {cell.concept} in {cell.found} of {cell.asked} pictures")
    return [*lines, *map(interference.told, found.foretold)]


# -- remove and reweight ----------------------------------------------------------------------------------------------


def remove(folder: Path, name: str, out: Path, terms: Terms, device: str = "auto") -> Result:
    """Publish `out`: the release without one edit, the rest measured again; says what changed.

    Without the last edit the weights are those from before it, bit for bit (checked against the fingerprint that was
    recorded then). UsageError for an edit that isn't there or is the only one, and for one concept of a joint edit.
    """
    released = Released.read(folder)
    gone = released.layer(name)
    left = tuple(member for member in released.members if member.layer is not gone)
    if not left:
        fix = f"the model without it is the base, {released.ref}"
        raise UsageError(f"stack remove {name}", "a stack of at least two edits", "one", fix)
    return _rebuilt(released, left, f"removed {name}", out, terms, device)


def reweight(folder: Path, strengths: Mapping[str, float], out: Path, terms: Terms, device: str = "auto") -> Result:
    """Publish `out`: the release with some edits at other strengths (1 as found, 0 not at all), all measured again.

    UsageError for an edit that isn't there, one concept of a joint edit, and a strength outside 0 … STRONGEST: below 0
    an edit brings its concept out.
    """
    released = Released.read(folder)
    for name, strength in strengths.items():
        released.layer(name)
        if not (math.isfinite(strength) and 0 <= strength <= STRONGEST):
            got, fix = f"{strength:g}", "1 is the edit as it was found, 0 takes its effect away"
            raise UsageError(f"stack reweight {name}", f"a strength from 0 to {STRONGEST:g}", got, fix)
    members = tuple(
        replace(member, layer=replace(member.layer, strength=strengths.get(member.layer.name, member.layer.strength)))
        for member in released.members
    )
    event = "reweighted " + ", ".join(f"{name} to {strength:g}" for name, strength in strengths.items())
    return _rebuilt(released, members, event, out, terms, device)


def _rebuilt(
    released: Released, members: tuple[Member, ...], event: str, out: Path, terms: Terms, device: str
) -> Result:
    """Another stack of a release's edits on its base, measured and published."""
    started = datetime.now(UTC)
    with rundir.opened(out, overwrite=terms.overwrite) as run:
        model = released.base(pipeline.resolve_device(device))
        ground = Ground(model, released.ref, members, released.history, released.forecast)
        notes = _same_as_before(released, ground)
        return _finish(run, measure(run, ground, event, terms), started, terms, notes)


def _same_as_before(released: Released, ground: Ground) -> list[str]:
    """Whether the weights are those that the release recorded when its stack was as short as this one."""
    count = len(ground.members)
    if count >= len(released.members) or ground.members != released.members[:count]:
        return []
    now = ground.stack.fingerprints(ground.model.net)
    if now[-1] == released.fingerprints[len(now) - 1]:
        return ["the weights are those from before it was added, bit for bit"]
    return ["the weights differ in rounding from those before it was added: another kind of machine made them"]
