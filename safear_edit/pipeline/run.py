"""READ FIRST: the one walk, from concept specs or a released stack to a signed model.

    compile → construct → edit → evaluate → report → release

A stack is an ordered list of edits on one base model; one concept is a stack of one. A walk starts from a state (a
base model with the edits on it so far), applies changes (a concept added, several added by one joint edit, an edit
removed, strengths changed), and publishes what came out:

    for each change     construct and edit on the model with the edits so far; evaluate every concept of the stack
    at the end          likelihoods and understanding, interference, report, release by one rename

Every measurement compares with the base model, never with the model before the last edit. Where there are several
concepts, three things hold (compiler/beside.py):
* What another concept of the stack erases can't be preserved: members of preserve groups that ask for it are left out,
  and so are prompts that another edit was trained on. The recipe that is reported says what was left.
* A recipe depends on the concepts before it only, so two concepts in one call give the weights of two calls.
* A later edit also keeps what earlier ones did: some of their training prompts are among its preserved images, drawn
  by the model in which they are erased already. Everything else it keeps as the base model has it.

Steps (steps.py) hand on files in the run's folder (files/rundir.py), and are skipped when the journal says that they
are done with the same inputs: the same command continues an interrupted walk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from safear_edit import processes
from safear_edit.compiler.compile import cut_lines, file_lines, seen_names
from safear_edit.compiler.cost import probed
from safear_edit.compiler.recipe import Recipe, save_recipe
from safear_edit.evaluate.interference import measured
from safear_edit.evaluate.interference_record import After
from safear_edit.evaluate.outcomes import read_outcomes
from safear_edit.files import rundir
from safear_edit.files.atomic import write_atomic
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline.interference import measure_interference
from safear_edit.pipeline.kept_images import kept_images
from safear_edit.pipeline.order import (
    Order,
    Source,
    SpecWithDefaults,
    compile_recipes,
    read_sources,
    refuse_drafts,
    settled,
)
from safear_edit.pipeline.plan import forecast_of
from safear_edit.pipeline.publish import Result, publish
from safear_edit.pipeline.state import RunOptions, StackChange, StackState, base_part, loaded, measured_part
from safear_edit.pipeline.steps import attacks, construct, evaluate, find_edit, likelihoods, understanding
from safear_edit.progress import Steps
from safear_edit.release.released import Member
from safear_edit.spec.spec import JOINT

Start = Callable[[RunDir], tuple[StackState, list[StackChange]]]
"""Loads the model and says what is to be done to it; called once the output's folder is locked, with the run's."""


def apply(orders: Sequence[Order], out: Path, options: RunOptions, *, joint: bool = False) -> Result:
    """Erase the concepts of `orders`, in their order, from the model that the first one names, and publish `out`.

    A model that was released keeps its edits below. joint: one edit for all instead of one after another. UsageError
    before anything is loaded for sources that can't be read or name a concept twice; then as `walk`.
    """
    sources = read_sources(orders)
    if not options.draft:
        refuse_drafts(sources)

    def start(run: RunDir) -> tuple[StackState, list[StackChange]]:
        state = loaded(orders[0], sources[0])

        def compiled() -> list[Recipe]:  # how much memory is free has a say in it
            asked = settled(orders, state.model, run.root)
            return compile_recipes(state.model, state.ref, state.recipes, asked, sources, joint=joint)

        recipes = processes.from_main(compiled)
        speed = processes.from_main(partial(probed, state.model))
        minutes = [forecast_of(recipe, state.model, speed).minutes for recipe in recipes]
        return state, additions(list(zip(sources, recipes, strict=True)), minutes, joint=joint)

    return walk(start, out, options)


def walk(start: Start, out: Path, options: RunOptions) -> Result:
    """Make every change and publish `out`; after an interruption the same call continues where it was.

    UsageError if `out` exists (unless it may be overwritten) or another process works on it; every other SafearError of
    the steps. Whatever the verdict, the folder is published with it; without a key it is unsigned.
    """
    started = datetime.now(UTC)
    with rundir.opened(out, overwrite=options.overwrite) as run:
        state, changes = start(run)
        options.say(f"model {state.ref}, {', '.join(state.stack.names) or 'no concept'} erased so far")
        begin = Steps(options.say, 2 * len(changes) + 2, sum(change.minutes for change in changes))
        for change in changes:
            begin(change.event)
            state = change.make(run, state, options)
            begin("every concept is drawn and judged")
            state = _evaluated(run, state, change.event, options)
        begin("likelihoods and understanding")
        _audit(run, state, options)
        begin("report and signature")
        notes = (*state.notes, *measure_interference(run, state, options))
        return processes.from_main(partial(publish, run, state, options, started, notes))


# -- 2 construct, 3 edit ----------------------------------------------------------------------------------------------


def additions(
    work: Sequence[tuple[Source, Recipe]], minutes: Sequence[float] | None = None, *, joint: bool = False
) -> list[StackChange]:
    """A change for every concept, or one for all of them together.

    minutes: forecast for each concept by itself; None: as its recipe says.
    """
    minutes = minutes or [recipe.predicted.minutes for _, recipe in work]
    if joint:
        return [_addition(work, sum(minutes))]
    return [_addition([one], its) for one, its in zip(work, minutes, strict=True)]


def _addition(work: Sequence[tuple[Source, Recipe]], minutes: float) -> StackChange:
    """One more edit, for the concept of `work`, or for all of them together."""
    names = " and ".join(recipe.spec.name for _, recipe in work)
    event = f"added {names}" + (" in one edit" if len(work) > 1 else "")
    return StackChange(event, partial(_added, work), minutes)


def _added(work: Sequence[tuple[Source, Recipe]], run: RunDir, state: StackState, options: RunOptions) -> StackState:
    """Construct for each concept and search one edit, on the model with the edits so far."""
    net, below, parts = state.model.net, state.stack, list[RunDir]()
    for source, recipe in work:
        name = recipe.spec.name
        options.say(f"adding {name}: method {recipe.method.name}, recipe {recipe.digest[:12]}")
        cut = cut_lines(recipe, state.model.caption_lengths)
        for line in (*file_lines(recipe.spec), *cut, *seen_names(recipe)):
            options.say(line)
        part = run.part(f"concepts/{name}")
        for old in part.root.glob("*.yaml"):  # of an earlier call, which began with a spec
            old.unlink()
        if isinstance(source, SpecWithDefaults):
            write_atomic(part / f"{name}.yaml", source.text)
        with below.apply(net):
            construct(part, recipe, state.model, options.progress_of(name), below.digest)
        parts.append(part)
    recipes = [recipe for _, recipe in work]
    name = JOINT.join(recipe.spec.name for recipe in recipes)
    with below.apply(net):
        layer = find_edit(run, name, parts, recipes, state.model, options.progress_of(name), below.digest)
    return state.plus(*(Member(layer, recipe, part.root) for recipe, part in zip(recipes, parts, strict=True)))


# -- 4 evaluate -------------------------------------------------------------------------------------------------------


def _evaluated(run: RunDir, state: StackState, event: str, options: RunOptions) -> StackState:
    """Every concept of the stack is drawn and judged, base against edited; the state with one more entry of history."""
    counts = {}
    for member in state.members:
        name, part = member.name, measured_part(run, state, member.name)
        recipe, left_out = state.measured_by(member)
        if left_out:
            options.say(f"{name}: {len(left_out)} prompts are left out, which other concepts erase or trained on")
        kept = options.base_images or kept_images(member.recipe, state.model, state.ref)
        progress, drawn = options.progress_of(name), kept or base_part(run, name)
        evaluate(part, member.recipe, state.model, state.stack, progress, leave_out=left_out, base_images=drawn)
        save_recipe(recipe, part / "recipe.json")
        counts[name] = measured(read_outcomes(part / "outcomes.jsonl"))
    return replace(state, history=(*state.history, After(event=event, concepts=counts)))


def _audit(run: RunDir, state: StackState, options: RunOptions) -> None:
    """What the finished model says about reference images of each concept: its likelihoods, and its answers."""
    for member in state.members:
        name, (recipe, _) = member.name, state.measured_by(member)
        for what, step in (("likelihoods", likelihoods), ("understanding", understanding), ("attacks", attacks)):
            part, progress = measured_part(run, state, name), options.progress_of(name)
            if why := step(part, recipe, state.model, state.stack, progress):
                options.say(f"{name}: {what} not evaluated: {why}")
