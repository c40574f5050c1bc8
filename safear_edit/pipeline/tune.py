"""A method's numbers searched for one concept and model, with training prompts alone.

    OUT/journal.log    Optuna's own record of the trials: the same command goes on with it
    OUT/best.yaml      the best recipe; `apply SPEC --method OUT/best.yaml` takes it
    OUT/index.html     the trials (also as CSV and Markdown) and their Pareto plot (SVG, PNG)

The ranges are those of the method's recipe (`tune:`). A trial is a search on the same pairs, then images of training
prompts under seeds that nothing else uses. Three figures are made small: the share of images about which the judge does
not say that the concept is absent (unreadable ones count as left), the loss of the worst preserved member, and how much
of what the words told about the training images is left (CIR). No prompt of the evaluation is drawn or scored.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from safear_edit import registry
from safear_edit.compiler.compile import method_params, overridden
from safear_edit.compiler.recipe import BaseRecipe, Range, Recipe
from safear_edit.errors import UsageError
from safear_edit.evaluate.cartography import evidence
from safear_edit.evaluate.sampled import judges_of, sampling_of
from safear_edit.files import rundir
from safear_edit.files.atomic import json_digest, write_atomic
from safear_edit.files.rundir import RunDir
from safear_edit.judges.draw import ImageRequest, JudgedImage, draw_and_judge, drawn_by, store_for
from safear_edit.pipeline import page as pages
from safear_edit.pipeline.kept_images import program
from safear_edit.pipeline.order import Order, SpecWithDefaults, compile_for, read_source, settled
from safear_edit.pipeline.state import load_state
from safear_edit.pipeline.steps import construct, material_of, readers
from safear_edit.progress import Callback, silent, under
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import Prompt, choose, image_seed, normalise

if TYPE_CHECKING:
    import optuna

    from safear_edit.construct.pairs import Material, Pairs
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge

MARK, JOURNAL, EXTRA = "tune.json", "journal.log", "tune"
ASKED, FIRST, KEPT, CIR_PAIRS = 96, 24, 12, 32
"""Images of training prompts that ask for the concept, those of them that are drawn first, images per preserved member,
and pairs whose likelihood is read."""
HOPELESS = 0.5
"""A trial that leaves the concept in more of the first images is ended there."""
ENOUGH = 0.02
"""As for a strength that is searched (methods/strength.py): such a share may be left."""
FIGURES = ("left", "worst loss", "CIR")


# -- what a trial is measured on --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """Images of training prompts: those that ask for the concept and, by member, those that ask for what must stay;
    of each only prompts whose image the base model draws as asked."""

    model: ModelFamily
    recipe: Recipe
    judges: Mapping[str, Judge]
    pairs: Pairs
    asked: tuple[ImageRequest, ...]
    kept: tuple[ImageRequest, ...]

    @classmethod
    def of(cls, model: ModelFamily, recipe: Recipe, pairs: Pairs, store: Path, progress: Callback) -> Probe:
        """Drawn by the base model, its batches kept in `store`. UsageError if it draws the concept for none."""
        judges = judges_of(recipe)
        asked, kept = candidates(recipe)
        store = store_for(store, *drawn_by(model))
        probe = cls(model, recipe, judges, pairs, (), ())
        followed = [
            tuple(one.request for one in probe.seen(part, store / name, progress) if one.judgement.present is True)
            for name, part in (("asked", asked), ("kept", kept))
        ]
        if not followed[0]:
            expected = f"training prompts by which {model.card.ref} draws {recipe.spec.erase.concept}"
            raise UsageError("tune", expected, "none", "check the spec's judge and names")
        return replace(probe, asked=followed[0], kept=followed[1])

    def seen(
        self, requests: Sequence[ImageRequest], store: Path | None = None, progress: Callback = silent
    ) -> list[JudgedImage]:
        """The images of these requests by the model as it is now, judged."""
        return list(
            draw_and_judge(
                self.model, requests, self.judges, sampling_of(self.recipe), store, progress=progress, stage="probe"
            )
        )

    @cached_property
    def told(self) -> float:
        """What the words tell about the pairs' unsafe images, nats per token, in the base model."""
        return float(evidence(self.model, self.pairs, silent).mean())


def candidates(recipe: Recipe) -> tuple[list[ImageRequest], list[ImageRequest]]:
    """Prompts of the training half: those that ask for the concept, KEPT of each member that training may see. Those
    that the edit isn't trained on come first; seeds are of this purpose alone."""
    spec = recipe.spec
    drawn, used = pools(spec), {*recipe.training_prompts}
    evaluated = {normalise(one.prompt) for one in recipe.evaluate.prompts}

    def first(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
        free = [prompt for prompt in prompts if normalise(prompt.text) not in evaluated]
        ordered = choose(free, len(free), "tune")
        return sorted(ordered, key=lambda prompt: prompt.text in used)[:count]

    asked = [_request(prompt, spec.judge.label) for prompt in first(drawn.train, ASKED)]
    kept = []
    for group in spec.preserve:
        for name, label in group.members.items():
            mine = [prompt for prompt in drawn.keep.get(group.name, ()) if prompt.name == name]
            kept += [_request(prompt, label) for prompt in first(mine, KEPT)]
    return asked, kept


def _request(prompt: Prompt, label: str) -> ImageRequest:
    return ImageRequest(prompt.text, image_seed("tune", prompt.text), label)


@dataclass(frozen=True)
class Measured:
    """What a trial's edit does. left, unreadable: shares of the images that ask for the concept; loss: of the worst
    member, with its label; cir: 1 as in the base model, 0 nothing."""

    left: float
    unreadable: float
    loss: float
    member: str
    cir: float

    @property
    def figures(self) -> tuple[float, float, float]:
        """What is made small, see FIGURES; a concept that is repelled is as gone as one that isn't told."""
        return self.left, self.loss, max(0.0, self.cir)


def measure(probe: Probe, apply: Callable[[], Any], hopeless: Callable[[float], None]) -> Measured:
    """With the edit merged by `apply()`. `hopeless` hears the share left in the first images and may end it."""
    with apply():
        images = probe.seen(probe.asked[:FIRST])
        hopeless(_left(images))
        images += probe.seen(probe.asked[FIRST:])
        lost, asked = dict[str, int](), dict[str, int]()
        for image in probe.seen(probe.kept):
            label = image.request.label
            asked[label] = asked.get(label, 0) + 1
            lost[label] = lost.get(label, 0) + (image.judgement.present is not True)
        told = float(evidence(probe.model, probe.pairs, silent).mean())
    member = max(asked, key=lambda label: lost[label] / asked[label], default="")
    unreadable = sum(image.judgement.present is None for image in images) / len(images)
    loss = lost[member] / asked[member] if member else 0.0
    return Measured(_left(images), unreadable, loss, member, told / probe.told)


def _left(images: Sequence[JudgedImage]) -> float:
    return sum(image.judgement.present is not False for image in images) / len(images)


# -- the search -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One trial: its numbers, and what it measured; None where it was ended early or failed, with why."""

    number: int
    params: Mapping[str, Any]
    measured: Measured | None
    why: str = ""


@dataclass(frozen=True)
class Tuned:
    """Every trial so far; best: see `best_of`; recipe: OUT/best.yaml, where there is one."""

    out: Path
    trials: tuple[Trial, ...]
    best: Trial | None
    recipe: Path | None


def tune(
    order: Order,
    out: Path,
    *,
    minutes: float,
    trials: int | None = None,
    command: str = "",
    progress: Callback = silent,
) -> Tuned:
    """Search for `minutes` (a trial that is under way is finished), or for a number of trials; then say what is best.

    The recipe's own numbers are the first trial. UsageError without Optuna, for a method whose recipe declares no
    range, for a released model, and for a folder of another search.
    """
    study_kind = _optuna()
    source = read_source(order)
    if not isinstance(source, SpecWithDefaults) or order.model is None:
        raise UsageError("tune", "a spec and --model", "a finished recipe", "give the spec that it was compiled from")
    ranges = _ranges(source.base, order.method)
    with rundir.growing(out, MARK, "tune"):
        state = load_state(order.model, order.device)
        if state.members:
            raise UsageError(f"tune --model {order.model}", "a base model", "a released one", f"take {state.ref}")
        (order,) = settled([order], state.model, out)
        model, recipe = state.model, compile_for(state.model, state.ref, order, source)
        own = _own(recipe, ranges)
        (out / f"{JOURNAL}.lock").unlink(missing_ok=True)  # a killed call's: no other one works on this folder
        spans = {name: one.model_dump(mode="json") for name, one in ranges.items()}
        study = _study(study_kind, out, json_digest([recipe.digest, spans, readers(model, recipe), program()]))
        run = RunDir(out, out)
        construct(run, recipe, model, progress)
        material = material_of(run, recipe, model)
        probe = Probe.of(model, recipe, material.pairs.first(CIR_PAIRS), out / ".probe", progress)
        _go_on(study_kind, study, own)
        objective = partial(_trial, study_kind, probe, material, recipe, ranges, progress)
        try:
            study.optimize(objective, n_trials=trials, timeout=60 * minutes)
        except _Stopped as stopped:
            raise KeyboardInterrupt from stopped
        try:
            found = [_told(one) for one in study.get_trials(deepcopy=False)]
        except KeyError as error:
            raise _damaged(out / JOURNAL, error) from None
        _, base = overridden(source.spec, model.card, source.base, order.overrides)
        return _show(out, found, own, base, recipe, command)


class _Stopped(BaseException):
    """Ctrl-C within a trial. Optuna notes a KeyboardInterrupt as the trial's failure, and its numbers would never be
    tried; by any other exception that isn't an Exception the trial stays under way, as when the process is killed."""


def _own(recipe: Recipe, ranges: Mapping[str, Range]) -> dict[str, Any]:
    """The recipe's own numbers for what has a range. UsageError for a range of no number of the method, and for one
    that doesn't hold the recipe's: those are tried first, and the others are read against them."""
    numbers = vars(method_params(recipe.method.name, recipe.method.params, "the recipe"))
    for name, one in ranges.items():
        if name not in numbers:
            raise registry.unknown(f"tune of {recipe.method.name}", name, numbers)
        if not one.holds(numbers[name]):
            fix = f"widen the range in the recipe, or --set params.{name}=…"
            raise UsageError(f"tune: {name}", f"{one.words()} to hold the recipe's own number", numbers[name], fix)
    return {name: numbers[name] for name in ranges}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        fix = "pip install 'safear-edit[tune]'"
        raise UsageError("tune", "Optuna, which the extra `tune` brings", "none installed", fix) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _ranges(base: BaseRecipe, method: str) -> dict[str, Range]:
    if not base.tune:
        have = [name for name in registry.builtin_names("recipes") if "tune" in _written(name)]
        fix = f"take {', '.join(have)}, or a recipe file of your own with `tune:`"
        raise UsageError(f"--method {method}", "a recipe that declares ranges", "none", fix)
    return base.tune


def _written(name: str) -> Mapping[str, Any]:
    from safear_edit.files.strict import read_yaml

    data = read_yaml(registry.find_builtin("recipes", name)).data
    return data if isinstance(data, Mapping) else {}


def _study(optuna: Any, out: Path, name: str) -> optuna.Study:
    """The study in OUT's journal; UsageError if that is of another recipe or other ranges, or damaged."""
    try:
        return _opened(optuna, out, name)
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # whatever the journal's lines lack
        raise _damaged(out / JOURNAL, error) from None


def _opened(optuna: Any, out: Path, name: str) -> optuna.Study:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    known = optuna.get_all_study_names(storage)
    if any(one != name for one in known):
        got = "one of another spec, model, seed, ranges or judge, or by another version of the program"
        raise UsageError(str(out), "a search of this very recipe", got, "choose another --out")
    done = len(optuna.load_study(study_name=name, storage=storage).trials) if known else 0
    sampler = optuna.samplers.TPESampler(seed=done, multivariate=False)  # a call that goes on tries others
    directions = ["minimize"] * len(FIGURES)
    study: optuna.Study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, directions=directions, sampler=sampler
    )
    return study


def _damaged(path: Path, error: Exception) -> UsageError:
    got = f"others ({type(error).__name__})"
    return UsageError(str(path), "the trials as Optuna wrote them", got, "choose another --out, or remove the file")


def _go_on(optuna: Any, study: optuna.Study, defaults: Mapping[str, Any]) -> None:
    """Trials that a killed call left are closed and tried again; a new study starts with the recipe's numbers."""
    state = optuna.trial.TrialState
    for one in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
        study.tell(one.number, state=state.FAIL)
        study.enqueue_trial(dict(one.params))
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(dict(defaults))


def _trial(
    optuna: Any,
    probe: Probe,
    material: Material,
    recipe: Recipe,
    ranges: Mapping[str, Range],
    progress: Callback,
    trial: optuna.Trial,
) -> tuple[float, float, float]:
    """One search with numbers that the sampler suggests, and what its edit does.

    Numbers by which the search fails, as by a rate so high that the loss is no number, or by whose edit the model draws
    none, are a trial that ended early, unless no other has ended yet: then the fault may lie in what all share.
    """
    numbers = recipe.method.params | {name: suggested(trial, name, one) for name, one in ranges.items()}
    params = method_params(recipe.method.name, numbers, f"trial {trial.number}")
    method = registry.lookup("methods", recipe.method.name).load()()
    told = under(progress, f"trial {trial.number}")

    def hopeless(left: float) -> None:
        if left > HOPELESS:
            trial.set_user_attr("why", f"ended early: left in {left:.0%} of the first images")
            raise optuna.TrialPruned

    try:
        edit = method.fit(probe.model, material, params, seed=recipe.seed, progress=told)
        found = measure(probe, partial(edit.apply, probe.model.net), hopeless)
    except UsageError as error:
        trial.set_user_attr("why", f"failed: {error}")
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        if not trial.study.get_trials(deepcopy=False, states=ended):
            raise
        raise optuna.TrialPruned from None
    except KeyboardInterrupt as stopped:
        raise _Stopped from stopped
    for name, value in vars(found).items():
        trial.set_user_attr(name, value)
    told("measured", 1, 1, f"left {found.left:.0%}, {found.member} loses {found.loss:.0%}, CIR {found.cir:.2f}")
    return found.figures


def suggested(trial: optuna.Trial, name: str, one: Range) -> Any:
    """A value of a range: of its choices, a whole number where both ends are, else any number between."""
    if one.choices:
        return trial.suggest_categorical(name, list(one.choices))
    assert one.low is not None and one.high is not None
    if isinstance(one.low, int) and isinstance(one.high, int):
        return trial.suggest_int(name, one.low, one.high, log=one.log)
    return trial.suggest_float(name, one.low, one.high, log=one.log)


def _told(trial: optuna.trial.FrozenTrial) -> Trial:
    about = trial.user_attrs
    if trial.values:
        measured = Measured(**{name: about[name] for name in Measured.__annotations__})
        return Trial(trial.number, trial.params, measured)
    return Trial(trial.number, trial.params, None, str(about.get("why", trial.state.name.lower())))


# -- what is best, and what is shown ----------------------------------------------------------------------------------


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """Of the trials that erase enough, the one whose worst member loses least, then the least CIR; if none erases
    enough, the one that leaves least."""
    done = [(one, one.measured) for one in trials if one.measured]
    if not done:
        return None
    enough = [(one, found) for one, found in done if found.left <= ENOUGH]
    if enough:
        return min(enough, key=lambda pair: (pair[1].loss, max(0.0, pair[1].cir), pair[0].number))[0]
    return min(done, key=lambda pair: (pair[1].left, pair[1].loss, pair[0].number))[0]


def front(trials: Iterable[Trial]) -> list[Trial]:
    """Those that no other one matches in all three figures and beats in one."""
    done = [one for one in trials if one.measured]

    def beaten(one: Trial) -> bool:
        mine = one.measured.figures if one.measured else ()
        others = (other.measured.figures for other in done if other.measured)
        return any(o != mine and all(a <= b for a, b in zip(o, mine, strict=True)) for o in others)

    return [one for one in done if not beaten(one)]


def _show(
    out: Path, trials: Sequence[Trial], own: Mapping[str, Any], base: BaseRecipe, recipe: Recipe, command: str
) -> Tuned:
    best, head_rows = best_of(trials), cells(trials)
    write_atomic(out / "trials.csv", _csv(head_rows))
    write_atomic(out / "table.md", table(head_rows))
    for kind, data in pareto(trials, best, own).items():
        write_atomic(out / f"pareto.{kind}", data)
    path = out / "best.yaml" if best else None
    if best and path:
        write_atomic(path, best_recipe(base, best, recipe, len(trials), command))
    body = ["<h1>Numbers tried</h1>", f"<p>{NOTE}</p>", pages.image("pareto.svg", "the trials")]
    body.append(pages.table(head_rows[0], head_rows[1:]))
    write_atomic(out / "index.html", pages.document("Numbers tried", "\n".join(body)))
    return Tuned(out, tuple(trials), best, path)


NOTE = (
    "All figures are over training prompts, under seeds of their own: they choose between numbers and are no evidence. "
    "Evaluate the best recipe with `apply`. The recipe's own numbers come first; * marks what no other trial beats."
)


def cells(trials: Sequence[Trial]) -> list[list[str]]:
    """Head and rows of the table of trials, as text."""
    names = list(dict.fromkeys(name for one in trials for name in one.params))
    best = {one.number for one in front(trials)}
    rows = [["trial", *names, "left", "unreadable", "worst loss", "member", "CIR", ""]]
    for one in trials:
        values = [one.params.get(name, "") for name in names]
        numbers = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        found = one.measured
        told = ["", "", "", "", "", one.why]
        if found:
            told = [f"{x:.3f}" for x in (found.left, found.unreadable, found.loss)]
            told += [found.member, f"{found.cir:.3f}", "*" * (one.number in best)]
        rows.append([str(one.number), *numbers, *told])
    return rows


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{NOTE}\n"


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def pareto(trials: Sequence[Trial], best: Trial | None, own: Mapping[str, Any]) -> dict[str, bytes]:
    """SVG and PNG: share left against the worst member's loss, CIR as colour; the best and the trial with the recipe's
    own numbers marked."""
    from matplotlib.figure import Figure

    done = [(one, one.measured) for one in trials if one.measured]
    canvas = Figure(figsize=(5.2, 4), layout="constrained")
    axis = canvas.subplots()
    where = ([100 * found.loss for _, found in done], [100 * found.left for _, found in done])
    points = axis.scatter(*where, c=[found.cir for _, found in done], cmap="viridis", vmin=0, vmax=1)
    first = next((one for one, _ in done if one.params == own), None)
    for one, found in done:
        words = [name for name, wanted in (("best", best), ("recipe", first)) if one is wanted]
        if words:
            place = (100 * found.loss, 100 * found.left)
            axis.annotate(", ".join(words), place, xytext=(6, 6), textcoords="offset points")
    canvas.colorbar(points, label="CIR")
    axis.set(xlabel="lost by the worst member, %", ylabel="concept left, %")
    axis.set_title("Training prompts; down and left is better", fontsize=10)
    return pages.figure(canvas)


def best_recipe(base: BaseRecipe, best: Trial, recipe: Recipe, trials: int, command: str) -> str:
    """The base recipe with the best trial's numbers, and where they are from."""
    found = best.measured
    assert found is not None
    data = base.model_dump(mode="json", exclude_defaults=True) | {"schema_version": 1}
    data["params"] = dict(sorted((base.params | dict(best.params)).items()))
    data["description"] = f"{base.description} Tuned for {recipe.spec.name} on {recipe.model.ref}.".strip()
    data.pop("measured", None)
    member = found.member or "no member"
    head = [
        f"Trial {best.number} of {trials} by `safear-edit tune`, which saw training prompts only; it chose:",
        f"{', '.join(best.params)}.",
        f"Left in {found.left:.3f} of the images, {member} lost {found.loss:.3f}, CIR {found.cir:.3f}.",
        f"Concept {recipe.spec.name}, model {recipe.model.ref} ({recipe.model.digest[:12]}), seed {recipe.seed};",
        f"it started from recipe {recipe.digest[:12]}.",
        *([f"Command: {command}"] if command else []),
    ]
    comment = "".join(f"# {line}\n" for text in head for line in text.splitlines())
    return comment + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
