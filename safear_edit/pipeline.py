"""READ FIRST: the walk from a concept spec to a signed model, one short function per step.

    compile → construct → edit → evaluate → report → release

Data flows forward through files in one run folder (rundir.py): each step reads what the steps before it wrote, and is
skipped when the journal says that it is done with the same inputs. One model is loaded and serves every step: the edit
is applied to it, judged, and taken off again. The output appears by one rename, complete or not at all.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safear_edit import registry, rundir
from safear_edit.compiler import (
    BaseRecipe,
    Recipe,
    compile_recipe,
    load_base_recipe,
    load_recipe,
    method_params,
    read_map,
    recipe_warnings,
    save_recipe,
)
from safear_edit.doctor import version_of
from safear_edit.errors import UsageError
from safear_edit.progress import Callback, silent
from safear_edit.prompts import Similarity
from safear_edit.rundir import RunDir, digest_of, write_atomic
from safear_edit.spec import Spec, Understanding, load_spec

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

    from safear_edit.compare import Comparison
    from safear_edit.edit import Change, Edit
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge
    from safear_edit.keys import SigningKey
    from safear_edit.likelihood import Audit
    from safear_edit.pairs import Material
    from safear_edit.sections import Report, Understood

UNSIGNED = 2
"""Exit code of a run that wrote everything and then found no key."""


@dataclass(frozen=True)
class Order:
    """What a person asks for; everything else follows from it.

    source: a spec (.yaml) or a recipe (.json), a path or the name of a built-in concept. model: a model reference; None
    takes the recipe's. overrides: `--set` strings. map: what `safear-edit map` wrote for this concept and model. A
    recipe is complete: method, seed, overrides and map don't go with it.
    """

    source: str
    model: str | None
    method: str = "vce"
    seed: int = 0
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    map: Path | None = None


@dataclass(frozen=True)
class Plan:
    """A compiled recipe and what a person should know before running it; conflicts: with edits on the model already."""

    recipe: Recipe
    model: str
    warnings: tuple[str, ...]
    conflicts: tuple[str, ...] = ()

    def facts(self) -> list[tuple[str, str]]:
        """What will happen, for a person: (name, value) lines."""
        recipe, cost = self.recipe, self.recipe.predicted
        numbers = recipe.method.params
        scored = ", ".join(f"{name} {n}" for name, n in recipe.evaluate.n.items())
        gates = ", ".join(f"{name} {value:g}" for name, value in recipe.gates.model_dump().items())
        return [
            ("concept", f"{recipe.spec.erase.concept} ({recipe.spec.kind}), spec {recipe.spec.name}"),
            ("model", f"{self.model}, digest {recipe.model.digest[:12]}"),
            ("method", recipe.method.name),
            *((("scales", recipe.method.scales_because),) if recipe.method.scales_because else ()),
            *(
                (("understanding", f"{recipe.spec.understanding.concept}, for a model that answers questions"),)
                if recipe.spec.understanding != Understanding()
                else ()
            ),
            ("numbers", ", ".join(f"{name} {value}" for name, value in numbers.items())),
            ("pairs", f"{len(recipe.construct.pairs)}, and {len(recipe.keep)} pictures to keep"),
            *((("safe captions", "the model's own"),) if recipe.construct.refine == "self" else ()),
            ("steps", str(numbers.get("steps", "the method's own"))),
            ("trainable parameters", f"{cost.trainable:,}"),
            ("predicted", f"{cost.minutes:g} minutes and {cost.memory_gib:g} GiB on two CPU cores"),
            (
                "evaluation prompts",
                f"{sum(recipe.evaluate.n.values())} scored of {len(recipe.evaluate.prompts)}: {scored}",
            ),
            ("gates", gates),
            ("judge", f"{recipe.spec.judge.use}, {recipe.spec.judge.label}"),
            *(("meets", conflict) for conflict in self.conflicts),
            ("recipe", recipe.digest),
        ]

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        more = {"warnings": list(self.warnings), "conflicts": list(self.conflicts)}
        facts = {name: value for name, value in self.facts() if name != "meets"}
        return {**facts, "digest": self.recipe.digest, **more}


def resolve_device(name: str) -> str:
    """`auto` is the GPU if torch sees one; UsageError for a device that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}", "a device of this machine", reason, "take auto or cpu") from None
    return name


# -- 1 compile --------------------------------------------------------------------------------------------------------


def plan(order: Order) -> Plan:
    """Compile and look: nothing is trained, nothing written. The model is loaded for its card and digest."""
    model, recipe = compiled(order)
    return Plan(recipe, model.card.ref, tuple(recipe_warnings(recipe, similarity())))


@dataclass(frozen=True)
class Draft:
    """A spec and a method's defaults, read and checked, not yet compiled."""

    spec: Spec
    base: BaseRecipe


def compiled(order: Order) -> tuple[ModelFamily, Recipe]:
    """The loaded model and the frozen recipe for it."""
    asked = read_source(order)
    text = order.model or (asked.model.ref if isinstance(asked, Recipe) else None)
    if text is None:
        raise UsageError("--model", "a model reference", "none", "for instance --model llamagen")
    ref = registry.ModelRef.parse(text)
    model = registry.load_model(text, resolve_device(order.device))
    return model, frozen(order, asked, model, str(ref))


def read_source(order: Order) -> Draft | Recipe:
    """What the order names, checked, before anything is loaded."""
    path = source_path(order.source)
    if path.suffix != ".json":
        return Draft(load_spec(path), load_base_recipe(order.method))
    for option, given in (("--set", order.overrides), ("--map", order.map)):
        if given:
            fix = f"compile the spec again with {option}"
            raise UsageError(option, "a spec to compile", "a finished recipe", fix)
    return load_recipe(path)


def frozen(order: Order, asked: Draft | Recipe, model: ModelFamily, ref: str) -> Recipe:
    """The recipe for `model`, which is called `ref` in it; a finished one only for the very weights it names."""
    if isinstance(asked, Draft):
        return compile_recipe(
            asked.spec,
            model.card,
            asked.base,
            seed=order.seed,
            overrides=order.overrides,
            sampling=model.sampling,
            model_ref=ref,
            located=read_map(order.map) if order.map else None,
            trainable=lambda params: trainable_parameters(model, params),
        )
    if model.card.digest != asked.model.digest:
        fix = "give the recipe's model, or compile the spec for this one"
        got, wanted = f"{model.card.digest[:12]}…", f"weights {asked.model.digest[:12]}… ({asked.model.ref})"
        raise UsageError(str(source_path(order.source)), wanted, got, fix)
    return asked


def trainable_parameters(model: ModelFamily, params: BaseModel) -> int:
    """What a method with these numbers trains: two factors per linear layer of its part, or the image tokens' rows."""
    part, rank = getattr(params, "part", None), getattr(params, "rank", None)
    if part is None or rank is None:
        return model.image_table().numel() if "codebook" in model.provides else 0
    shapes = (model.net.get_submodule(name).get_parameter("weight").shape for name in model.editable(part))
    return sum(rank * (rows + columns) for rows, columns in shapes)


def source_path(source: str) -> Path:
    """The file behind what was given: a path, or the name of a built-in concept."""
    if "/" in source or Path(source).suffix in (".yaml", ".yml", ".json") or Path(source).exists():
        return Path(source)
    return registry.find_builtin("concepts", source)


def similarity() -> Similarity:
    """Cosine of MiniLM sentence vectors, (a, b); a sentence is encoded once, however often it is compared."""
    import torch

    from safear_edit.text import minilm

    known: dict[str, Tensor] = {}

    def vectors(texts: list[str]) -> Tensor:
        new = sorted(set(texts) - known.keys(), key=len)
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            known.update(zip(part, minilm().vectors(part), strict=True))
        return torch.stack([known[text] for text in texts])

    return lambda a, b: vectors(a) @ vectors(b).T


# -- 2 construct ------------------------------------------------------------------------------------------------------

PAIR_FILES = ("pairs/pairs.safetensors", "pairs/pairs.jsonl", "pairs/stats.json", "images/pairs.png",
              "images/pairs.json")  # fmt: skip
KEEP_FILES = ("pairs/keep.safetensors", "pairs/keep.jsonl")
NOT_RELEASED = ("pairs/pairs.safetensors", *KEEP_FILES)
"""Training material that the recipe makes again; the captions of the pairs and why others were dropped are released."""


def construct(run: RunDir, recipe: Recipe, model: ModelFamily, progress: Callback, below: str = "") -> None:
    """Contrastive pairs, and the model's own pictures of what must stay; `below` is the digest of edits it holds."""
    from safear_edit.pairs import build_keep, build_pairs, save_sheet
    from safear_edit.refine import refiner_of

    def make() -> None:
        wanted = [(pair.unsafe, pair.safe, pair.seed) for pair in recipe.construct.pairs]
        judge, refiner = concept_judge(recipe.spec), refiner_of(recipe)
        pairs = build_pairs(model, wanted, judge, progress=progress, refiner=refiner)
        pairs.save(run / "pairs")
        if recipe.keep:
            kept, guards = [(keep.prompt, keep.seed) for keep in recipe.keep], [keep.guards for keep in recipe.keep]
            build_keep(model, kept, guards=guards, progress=progress).save(run / "pairs")
        (run / "images").mkdir(exist_ok=True)
        save_sheet(pairs, model, run / "images/pairs.png", hide=recipe.spec.kind == "category")

    files = PAIR_FILES + (KEEP_FILES if recipe.keep else ())
    run.step("construct", digest_of(recipe.digest, below), files, make)


def concept_judge(spec: Spec) -> Judge:
    """Who decides whether the spec's concept is in a picture."""
    from safear_edit.judges.base import make_judge

    return make_judge(spec.judge.use, spec.judge.label, spec.judge.threshold, **spec.judge.options)


# -- 3 edit -----------------------------------------------------------------------------------------------------------

EDIT_FILES = ("edit/edit.safetensors", "edit/edit.json", "edit/**/*")
"""The last stands for what an edit's kind has beside those two: an adapter has peft's files (edit.FILES), and an edit
that was found in rounds has their numbers (edit/rounds)."""


def find_edit(run: RunDir, recipe: Recipe, model: ModelFamily, progress: Callback, below: str = "") -> Edit:
    """The method looks for the edit; the model is left as it was. A killed search goes on from its checkpoint.

    `below` is the digest of the edits that the model holds already.
    """
    from safear_edit.edit import Edit

    def make() -> None:
        search(run, material_of(run, recipe, model), recipe, model, progress)

    run.step("edit", digest_of(recipe.digest, below, run.digest("construct")), EDIT_FILES, make)
    return Edit.load(run / "edit")


def material_of(run: RunDir, recipe: Recipe, model: ModelFamily) -> Material:
    """What `construct` left for the method, and what training may ask a model that answers questions."""
    from safear_edit.pairs import Keep, Material, Pairs
    from safear_edit.understanding import CAPABILITY, taught

    keep = Keep.load(run / "pairs") if recipe.keep else None
    asked = taught(recipe.spec) if CAPABILITY in model.provides else None
    return Material(recipe.spec.name, Pairs.load(run / "pairs"), keep, concept_judge(recipe.spec), asked)


def search(run: RunDir, material: Material, recipe: Recipe, model: ModelFamily, progress: Callback) -> None:
    """Fit the recipe's method to `material` and write edit/; a killed search goes on from its checkpoint in `run`."""
    method = registry.lookup("methods", recipe.method.name).load()()
    params = method_params(recipe.method.name, recipe.method.params, "recipe.json")
    checkpoint = run / "edit.partial.safetensors"
    found = method.fit(model, material, params, seed=recipe.seed, progress=progress, checkpoint=checkpoint)
    shutil.rmtree(run / "edit", ignore_errors=True)  # files of an edit of another kind
    found.save(run / "edit")
    if (run / "rounds").is_dir():  # a method that works in rounds keeps its log beside its checkpoint
        shutil.move(run / "rounds", run / "edit" / "rounds")


# -- 4 evaluate -------------------------------------------------------------------------------------------------------

EVALUATION_FILES = ("outcomes.jsonl", "judges.json", "base.json", "images/before_after.*", "images/slice-*.png",
                    "images/slice-*.json")  # fmt: skip


@dataclass(frozen=True)
class Reuse:
    """How one evaluation of a stack differs from a single edit's; see `evaluate.evaluate`."""

    leave_out: frozenset[str] = frozenset()
    base_pictures: Path | None = None


def evaluate(
    run: RunDir, recipe: Recipe, model: ModelFamily, change: Change, progress: Callback, reuse: Reuse | None = None
) -> None:
    """Base and edited model draw the same prompts with the same seeds, and judges look: outcomes.jsonl.

    evaluate.py screens with the base model first, keeps what it has judged in the run folder (a killed evaluation goes
    on from there), and leaves `judges.json` and the before/after sheets in `images/`.
    """
    from safear_edit import evaluate as evaluation

    terms = reuse or Reuse()

    def make() -> None:
        write_json(run / "base.json", base_card(model))
        evaluation.evaluate(
            model,
            change,
            recipe,
            run.root,
            progress=progress,
            leave_out=terms.leave_out,
            base_pictures=terms.base_pictures,
        )

    inputs = digest_of(recipe.digest, change.digest, *sorted(terms.leave_out))
    run.step("evaluate", inputs, EVALUATION_FILES, make)


def base_card(model: ModelFamily) -> dict[str, Any]:
    """What base.json says of the untouched model."""
    return {**asdict(model.card), "ref": model.card.ref, "digest": model.card.digest}


def likelihoods(run: RunDir, recipe: Recipe, model: ModelFamily, change: Change, progress: Callback) -> str:
    """What base and edited model say about reference pictures, without drawing any: likelihood.json.

    The pictures are the mini world's or the spec's folder, tokenised once in the run folder. Returns why there are
    none, and then the file says that; "" where there are.
    """
    from safear_edit import likelihood

    why = likelihood.why_none(recipe.spec, model.card)
    source = None if why else likelihood.source_for(recipe.spec, model.card)

    def make() -> None:
        if source is None:
            likelihood.save_skipped(run.root, why)
            return
        pack = likelihood.tokenised(model, source, run / "references")
        pair = likelihood.Pair(model, partial(_edited, model, change))
        likelihood.audit(pair, pack, progress=progress).save(run.root)

    inputs = digest_of(recipe.digest, change.digest, source.digest if source else why)
    run.step("likelihood", inputs, ("likelihood.json",), make)
    return why


def understanding(run: RunDir, recipe: Recipe, model: ModelFamily, change: Change, progress: Callback) -> str:
    """What base and edited model answer about reference pictures: understanding.json and .jsonl. Returns why nothing.

    "" where they were asked, and also for a model that answers no questions unless the spec is about that.
    """
    from safear_edit import likelihood
    from safear_edit import understanding as asking

    spec, provided = recipe.spec, asking.CAPABILITY in model.provides
    if asking.STEP not in measuring(recipe, model):
        return ""
    why = likelihood.why_none(spec, model.card) if provided else f"{model.card.ref} answers no questions about pictures"
    asked = None if why else asking.exam(spec, asking.source_for(spec, model.card))

    def make() -> None:
        if asked is None:
            asking.save_skipped(run.root, why, applies=provided)
            return
        pair = likelihood.Pair(model, partial(_edited, model, change))
        asking.save(run.root, model.card.digest, asked, asking.measure(pair, asked, progress))

    run.step(asking.STEP, digest_of(recipe.digest, change.digest, asked.digest if asked else why), asking.FILES, make)
    return why


def measuring(recipe: Recipe, model: ModelFamily) -> tuple[str, ...]:
    """The steps that leave evidence about an edit of this model, by the names under which the journal has them."""
    from safear_edit import understanding as asking

    looked = asking.CAPABILITY in model.provides or recipe.spec.understanding != Understanding()
    return ("evaluate", "likelihood", *([asking.STEP] if looked else []))


@contextmanager
def _edited(model: ModelFamily, change: Change) -> Iterator[ModelFamily]:
    with change.apply(model.net):
        yield model


# -- 5 report ---------------------------------------------------------------------------------------------------------


def write_report(folder: Path) -> Report:
    """Build report.json, report.html, the model card and the bill of materials from the files in `folder` alone."""
    from safear_edit import bom
    from safear_edit.card import model_card
    from safear_edit.render import render_html
    from safear_edit.report import build_report
    from safear_edit.run_files import RunFiles

    report = build_report(RunFiles.find(folder, model=folder))
    write_atomic(folder / "report.json", report.to_json())
    write_atomic(folder / "report.html", render_html(report, folder))
    write_atomic(folder / "README.md", model_card(report))
    write_atomic(folder / "bom.cdx.json", bom.to_json(report))
    return report


def rebuild_report(folder: Path) -> tuple[Report, str]:
    """The report of a released folder and its page, from the files alone; nothing is written."""
    from safear_edit.render import render_html
    from safear_edit.report import build_report
    from safear_edit.run_files import RunFiles

    report = build_report(RunFiles.find(folder, model=folder))
    return report, render_html(report, folder)


def environment(model: ModelFamily, command: str, started: datetime) -> dict[str, Any]:
    """Machine, versions and command, for the report: what a second person needs to repeat the run."""
    import torch

    return {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "device": str(model.device),
        "threads": str(torch.get_num_threads()),
        "deterministic": "same recipe, same machine and versions: same weights; other machines differ in rounding",
        "git": _git(),
        "packages": {name: version_of(name) or "not installed" for name in PACKAGES},
    }


PACKAGES = ("accelerate", "numpy", "open_clip_torch", "peft", "safear-edit", "safetensors", "tokenizers", "torch",
            "torchvision", "transformers")  # fmt: skip


def _git() -> dict[str, Any] | None:
    """Commit of the source checkout, None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False).stdout

    return {"commit": ask("rev-parse", "HEAD").strip(), "dirty": bool(ask("status", "--porcelain").strip())}


# -- 6 release --------------------------------------------------------------------------------------------------------


def sign(folder: Path, report: Report, recipes: Sequence[Recipe], key: SigningKey) -> None:
    """model.sig over every file, then the two signed claims about how it was made and what its tests said.

    Of several recipes the last is the one that this run added: its seed is named; all are resolved dependencies.
    """
    from safear_edit.claims import ClaimInputs, write_claims
    from safear_edit.claims import Result as Outcome
    from safear_edit.signing import sign_folder

    results: dict[str, Outcome] = {"pass": "PASSED", "inconclusive": "WARNED", "fail": "FAILED"}
    made, last = report.environment, recipes[-1]
    several = {f"recipe:{recipe.spec.name}": recipe.digest for recipe in recipes} if len(recipes) > 1 else {}
    inputs = ClaimInputs(
        run=report.report.id,
        specs={recipe.spec.name: digest_of(recipe.spec.model_dump_json()) for recipe in recipes},
        recipe=digest_of(*several.values()) if several else last.digest,
        model=last.model.ref,
        base=last.model.digest,
        method=", ".join(dict.fromkeys(recipe.method.name for recipe in recipes)),
        seed=str(last.seed),
        versions=made.packages,
        started=datetime.fromisoformat(made.started),
        finished=datetime.fromisoformat(made.finished),
        verdict=results[report.verdict.status],
        tests={criterion.id: results[criterion.decision] for criterion in report.verdict.criteria},
        materials={**{judge.id: judge.digest for judge in report.judges}, **several},
        builder="github" if os.environ.get("GITHUB_ACTIONS") == "true" else "local",
    )
    write_claims(folder, sign_folder(folder, key), inputs, key)


@dataclass(frozen=True)
class Result:
    """What a finished walk leaves: the folder, its report, and what the command line should end with.

    notes: of a stack, what its change did to the other concepts.
    """

    out: Path
    report: Report
    signed: bool
    unsigned_on_purpose: bool
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """The verdict's (0 pass, 1 fail, 3 inconclusive); 2 for a pass that nobody signed or declined to sign."""
        from safear_edit.sections import verdict

        code = verdict(self.report)[1]
        return code or (0 if self.signed or self.unsigned_on_purpose else UNSIGNED)

    @property
    def advice(self) -> str:
        """The line that says how to get it signed, where that is missing."""
        if self.signed or self.unsigned_on_purpose:
            return ""
        return (
            f"{self.out} is complete but unsigned: make a key with `safear-edit keygen keys` and give the same command "
            "with --overwrite --key keys/safear.key, or --unsigned if that is what you want"
        )

    @property
    def lines(self) -> list[str]:
        """The verdict for a person: each criterion, then the sentence, then where things are."""
        found = self.report.verdict
        rows = [f"{c.decision.upper():<13}{c.id}: {c.observed} (needed: {c.needed})" for c in found.criteria]
        signature = "signed" if self.signed else "unsigned"
        where = f"{found.status.upper()}: {self.out} ({signature}); read {self.out}/report.html"
        return [*rows, *self.notes, found.summary, where]

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        found = self.report.verdict.model_dump(mode="json")
        end = {"out": str(self.out), "signed": self.signed, "exit_code": self.exit_code}
        return {**found, **end, "notes": list(self.notes)}


# -- the walk ---------------------------------------------------------------------------------------------------------


def apply(
    order: Order,
    out: Path,
    *,
    key: SigningKey | None = None,
    unsigned: bool = False,
    overwrite: bool = False,
    command: str = "",
    progress: Callback = silent,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Walk it all and publish `out`. After an interruption the same call continues where it was.

    Without `key` everything is written unsigned. UsageError if `out` exists (without `overwrite`) or another process
    works on it; every other SafearError of the steps. Whatever the verdict, the folder is published with it.
    """
    started = datetime.now(UTC)
    with rundir.opened(out, overwrite=overwrite) as run:
        model, recipe = compiled(order)
        say(f"model {model.card.ref}, method {recipe.method.name}, recipe {recipe.digest[:12]}")
        save_recipe(recipe, run / "recipe.json")
        construct(run, recipe, model, progress)
        edit = find_edit(run, recipe, model, progress)
        evaluate(run, recipe, model, edit, progress)
        if why := likelihoods(run, recipe, model, edit, progress):
            say(f"likelihoods are not looked at: {why}")
        if why := understanding(run, recipe, model, edit, progress):
            say(f"understanding is not looked at: {why}")
        write_json(run / "environment.json", environment(model, command, started))
        staged = _stage(run, recipe, model, edit, order)
        report = write_report(staged)
        if key is not None:
            sign(staged, report, [recipe], key)
        run.publish(staged, overwrite=overwrite)
    return Result(out, report, key is not None, unsigned)


def _stage(run: RunDir, recipe: Recipe, model: ModelFamily, edit: Edit, order: Order) -> Path:
    """The folder to release: merged weights in the family's layout, the edit beside them, the evidence, the spec."""
    from safear_edit.stack import save_base

    made = [name for step in ("construct", "edit", *measuring(recipe, model)) for name in run.files(step)]
    evidence = [name for name in made if name not in NOT_RELEASED]
    staged = rundir.stage(run, ["recipe.json", "environment.json", *evidence])
    save_base(staged, model.net, edit.weights)
    with edit.apply(model.net):
        model.export(staged)
    source = source_path(order.source)
    if source.suffix != ".json":
        write_atomic(staged / f"{recipe.spec.name}.yaml", source.read_bytes())
    return staged


def write_json(path: Path, document: Any) -> None:
    """A JSON file that appears whole or not at all."""
    write_atomic(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


# -- beside the walk --------------------------------------------------------------------------------------------------


def generate(
    model_text: str,
    prompts: Sequence[str],
    *,
    count: int,
    seed: int,
    device: str,
    out: Path,
    overwrite: bool,
    progress: Callback = silent,
) -> tuple[str, list[Path]]:
    """Draw `count` pictures of each prompt with seeds seed, seed+1, …; returns the model taken and the PNGs written.

    UsageError if there is no prompt, or a file of that name already (without `overwrite`): nothing is drawn then.
    """
    if not prompts or count < 1:
        raise UsageError("generate", "at least one prompt and one picture", "none", "say what to draw")
    wanted = [(prompt, seed + i) for prompt in prompts for i in range(count)]
    paths = [out / f"{_slug(prompt)}-{number}.png" for prompt, number in wanted]
    taken = [path for path in paths if path.exists()]
    if taken and not overwrite:
        raise UsageError(
            str(taken[0]), "a new file", "one that exists", "choose another --out or --seed, or --overwrite"
        )
    registry.ModelRef.parse(model_text)  # a typo is told before torch is loaded
    model = registry.load_model(model_text, resolve_device(device))
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(wanted), GENERATE_BATCH):
        part = wanted[start : start + GENERATE_BATCH]
        ids = model.generate(model.condition([prompt for prompt, _ in part]), [number for _, number in part])
        for path, picture in zip(paths[start:], model.decode(ids), strict=False):
            _write_png(path, picture)
        progress("pictures", start + len(part), len(wanted), "")
    return model.card.ref, paths


@dataclass(frozen=True)
class Versus:
    """Two models by name; the second is there as long as `edited()` is open, in the first one's memory if it can be."""

    names: tuple[str, str]
    base: ModelFamily
    edited: Callable[[], AbstractContextManager[ModelFamily]]

    @classmethod
    def load(cls, models: Sequence[str], device: str) -> Versus:
        """Two models, or a released folder and the base that it holds (or, of an older one, that its recipe names)."""
        from safear_edit.stack import Released, is_release

        if len(models) == 1 and is_release(Path(models[0])):
            released = Released.read(Path(models[0]))
            model = released.base(device)
            return cls((released.ref, models[0]), model, partial(_edited, model, released.stack))
        named = models if len(models) == 2 else (load_recipe(Path(models[0]) / "recipe.json").model.ref, models[0])
        for name in named:
            registry.ModelRef.parse(name)
        base, edited = registry.load_model(named[0], device), partial(registry.load_model, named[1], device)
        return cls((named[0], named[1]), base, lambda: nullcontext(edited()))


def compare(
    models: Sequence[str], *, spec: str, prompts: Path, seed: int, device: str, progress: Callback = silent
) -> Comparison:
    """Judge two models on a file of prompts; of one released folder, the model and its base."""
    from safear_edit.compare import Comparison, look, read_prompts

    asked, concept = read_prompts(prompts, seed), load_spec(source_path(spec))
    judge, pair = concept_judge(concept), Versus.load(models, resolve_device(device))
    before = look(pair.base, asked, judge, progress, pair.names[0])
    with pair.edited() as edited:
        after = look(edited, asked, judge, progress, pair.names[1])
    return Comparison(pair.names, judge.id, asked, (before, after))


def compare_likelihoods(
    models: Sequence[str], *, spec: str, seed: int, device: str, progress: Callback = silent
) -> tuple[tuple[str, str], Audit]:
    """Audit two models, or a released folder and its base, on the spec's reference pictures; the names, base first.

    Nothing is drawn and nobody judges. UsageError if there are no reference pictures, or for models of other shapes.
    """
    from safear_edit import likelihood

    concept, pair = load_spec(source_path(spec)), Versus.load(models, resolve_device(device))
    source = likelihood.source_for(concept, pair.base.card, seed)
    pack = likelihood.tokenised(pair.base, source)
    if len(models) == 1:
        return pair.names, likelihood.audit(likelihood.Pair(pair.base, pair.edited), pack, progress=progress)
    with pair.edited() as other:
        return pair.names, likelihood.audit(likelihood.Pair.of_models(pair.base, other), pack, progress=progress)


def compare_understanding(
    models: Sequence[str], *, spec: str, device: str, progress: Callback = silent
) -> tuple[tuple[str, str], Understood]:
    """Ask two models, or a released folder and its base, about the spec's reference pictures; the names, base first.

    UsageError if there are no reference pictures, or a model that answers no questions.
    """
    from safear_edit import likelihood
    from safear_edit import understanding as asking
    from safear_edit.answered import understood

    concept, pair = load_spec(source_path(spec)), Versus.load(models, resolve_device(device))
    if asking.CAPABILITY not in pair.base.provides:
        fix = f"take one of {registry.families_with(asking.CAPABILITY)}"
        raise UsageError("understanding", "a model that answers questions", pair.base.card.ref, fix)
    exam = asking.exam(concept, asking.source_for(concept, pair.base.card))
    if len(models) == 1:
        answers = asking.measure(likelihood.Pair(pair.base, pair.edited), exam, progress)
    else:
        with pair.edited() as other:
            answers = asking.measure(likelihood.Pair.of_models(pair.base, other), exam, progress)
    roles = {group.name: str(group.role) for group in concept.preserve}
    wanted, gates = concept.understanding.concept, concept.gates.every()
    return pair.names, understood(answers, concept.name, wanted, gates, roles)


GENERATE_BATCH = 32


def _slug(prompt: str) -> str:
    """A file name that a person recognises; distinct prompts get distinct names."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.casefold()).strip("-")[:60]
    return f"{words}-{digest_of(prompt)[:6]}"


def _write_png(path: Path, picture: Tensor) -> None:
    """One picture (3, H, W) uint8 as a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
