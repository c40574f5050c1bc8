"""Methods side by side: one whole walk per concept, method and seed, counted from the reports that the walks leave.

    OUT/runs/…          what each walk published, without its weights: `attack` and `eval` put its edit on its base
                        again, and `export` writes that
    OUT/rows.csv        counts per slice and member, a row each
    OUT/index.html      the table (also alone, as Markdown), the Pareto plot (SVG, PNG), a contact sheet per concept

A finished run is known by its recipe and its judges and never repeated, so the same command continues, and one with
more concepts, methods or seeds adds to what is there; where that mixes versions of the program or of its libraries, the
page and the table say so. The base model's images of a concept are drawn once for all its runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit import registry
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from safear_edit.errors import SafearError, SpecError, UsageError
from safear_edit.families.reference import ModelRef
from safear_edit.files import rundir
from safear_edit.files.atomic import digest_of, write_atomic
from safear_edit.files.layout import BASE
from safear_edit.files.strict import parse_yaml
from safear_edit.pipeline import compared, run
from safear_edit.pipeline.compared import Ran
from safear_edit.pipeline.kept_images import program
from safear_edit.pipeline.order import Order, Source, compile_recipes, read_sources, settled
from safear_edit.pipeline.state import RunOptions, StackState, load_state
from safear_edit.pipeline.steps import readers
from safear_edit.progress import Callback, silent
from safear_edit.report.build import read_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from safear_edit.families.base import ModelFamily

MARK, RUNS, WORK, DRAWN = "compare.json", "runs", ".work", ".base"
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Variant:
    """A method with some of its numbers changed, under the name by which it was typed."""

    name: str
    method: str
    overrides: tuple[str, ...] = ()


def variant(text: str) -> Variant:
    """From NAME[:key=value,…]: a key without a dot is one of the method's numbers, any other is as `--set` takes it.

    NAME is a method or a recipe that comes with the package. UsageError for what is neither, or no such list.
    """
    name, _, changes = text.partition(":")
    known = {*registry.methods(), *registry.builtin_names("recipes")}
    if name not in known:
        raise registry.unknown("--methods", name, known)
    try:
        values = parse_yaml(f"{{{changes.replace('=', ': ')}}}", "--methods").data
    except SpecError:
        values = {"": None}
    keyed = {key if "." in key else f"params.{key}": value for key, value in values.items()}
    if len(keyed) < len(values) or any(not key or value is None for key, value in values.items()):
        fix = "each key once, for instance vce:beta=2,steps=60"
        raise UsageError(f"--methods {text}", "NAME:key=value,…", repr(changes), fix)
    return Variant(text, name, tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keyed.items()))


@dataclass(frozen=True)
class Wanted:
    """One run: what is ordered, its spec as it was read then, the recipe that it compiles to, and a digest of that and
    of what judges its images (steps.readers)."""

    concept: str
    variant: Variant
    order: Order
    source: Source
    recipe: Recipe
    digest: str

    @property
    def label(self) -> str:
        """For a person."""
        return f"{self.concept}, {self.variant.name}, seed {self.order.seed}"

    @property
    def folder(self) -> str:
        """A name that no other run has."""
        words = "".join(c if c.isalnum() or c in "._" else "-" for c in self.variant.name)[:40]
        return f"{self.concept}-{words}-{self.order.seed}-{self.digest[:8]}"


@dataclass(frozen=True)
class Comparison:
    """What was compared, and the runs that failed with why."""

    out: Path
    ran: tuple[Ran, ...]
    failed: tuple[tuple[str, str], ...]


def compare(
    concepts: Sequence[str],
    model: str,
    methods: Sequence[str],
    out: Path,
    *,
    seeds: int = 1,
    sets: Sequence[str] = (),
    device: str = "auto",
    command: str = "",
    progress: Callback = silent,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Erase every concept with every method and seed 0 … seeds - 1, and lay the reports side by side in `out`.

    Everything is compiled before the first run, so a typo or a method that doesn't fit the model is told at once, in
    one line. A run that fails for a reason that its user can cause is named and left out; the same command tries it
    again. UsageError for a finished recipe, a folder that something else wrote, and while another process works on it.
    """
    variants = [variant(text) for text in dict.fromkeys(methods)]
    ModelRef.parse(model)
    for chosen in variants:
        load_base_recipe(chosen.method)
    orders = [
        (chosen, Order(concept, model, chosen.method, seed, (*sets, *chosen.overrides), device))
        for concept in dict.fromkeys(concepts)
        for chosen in variants
        for seed in range(seeds)
    ]
    asked = [Order(concept, model) for concept in dict.fromkeys(concepts)]
    for order, source in zip(asked, read_sources(asked), strict=True):
        if isinstance(source, Recipe):
            fix = "give the spec that it was compiled from"
            got = f"the finished recipe {order.source}, which has a method and a seed of its own"
            raise UsageError("compare", "specs to compile", got, fix)
    with rundir.growing(out, MARK, "compare"):
        state = load_state(model, device)
        if state.members:
            raise UsageError(f"compare --model {model}", "a base model", "a released one", f"take {state.ref}")
        with_memory = settled([order for _, order in orders], state.model, out)
        wanted = [_wanted(state, chosen, order) for (chosen, _), order in zip(orders, with_memory, strict=True)]
        ran, failed = list[Ran](), list[tuple[str, str]]()
        for number, one in enumerate(wanted):
            try:
                ran.append(_run(out, state, one, command, partial(_within, progress, number, len(wanted), one.label)))
            except SafearError as error:
                failed.append((one.label, str(error)))
                say(f"{one.label} failed: {error}")
        progress("compare", len(wanted), len(wanted), "")
        if ran:
            _show(out, state.model, ran)
    return Comparison(out, tuple(ran), tuple(failed))


def _within(progress: Callback, number: int, total: int, label: str, stage: str, done: int, of: int, info: str) -> None:
    """One line for all runs: which of them is at work, and where it is."""
    progress("compare", number, total, f"{label}: {stage.partition(': ')[2] or stage} {done}/{of}")


def _wanted(state: StackState, one: Variant, order: Order) -> Wanted:
    (source,) = read_sources([order])
    (recipe,) = compile_recipes(state.model, state.ref, (), [order], [source])
    digest = digest_of(recipe.digest, *readers(state.model, recipe))
    return Wanted(recipe.spec.name, one, order, source, recipe, digest)


# -- one run ----------------------------------------------------------------------------------------------------------


def _run(out: Path, state: StackState, one: Wanted, command: str, progress: Callback) -> Ran:
    """The run's report: of a finished run as it lies there, else after a whole walk."""
    folder, work = out / RUNS / one.folder, out / WORK / one.folder
    if not folder.exists():
        if not work.exists():  # else a killed call published it and came no further
            work.parent.mkdir(exist_ok=True)
            drawn = out / DRAWN / digest_of(one.concept, state.ref, program())[:16]
            options = RunOptions(None, True, command=command, progress=progress, base_images=drawn)
            run.walk(lambda _: (state, run.additions([(one.source, one.recipe)])), work, options)
        _drop_weights(work)
        folder.parent.mkdir(exist_ok=True)
        work.rename(folder)
    with suppress(OSError):  # an interrupted run's work is there still
        (out / WORK).rmdir()
    return Ran(one.concept, one.variant.name, one.order.seed, folder, read_report(folder / "report.json"))


def _drop_weights(folder: Path) -> None:
    """A comparison of many runs keeps what says something about them, the edit included: a model takes as much room
    as its base each time."""
    for file in (*(file.name for file in read_report(folder / "report.json").subject.files), BASE):
        if file.endswith(WEIGHTS) and not file.startswith(("edit/", "concepts/")):
            (folder / file).unlink(missing_ok=True)


def _show(out: Path, model: ModelFamily, ran: Sequence[Ran]) -> None:
    """Everything that is made from the runs, index.html last."""
    write_atomic(out / "rows.csv", compared.rows_csv(ran))
    lines = compared.summaries(ran)
    write_atomic(out / "table.md", compared.table(lines, compared.mixed(ran)))
    for kind, data in compared.pareto(lines).items():
        write_atomic(out / f"pareto.{kind}", data)
    sheets = [compared.contact_sheet(out / f"sheet-{name}.png", model, runs) for name, runs in compared.by_concept(ran)]
    write_atomic(out / "index.html", compared.page(out, ran, lines, [path for path in sheets if path]))
