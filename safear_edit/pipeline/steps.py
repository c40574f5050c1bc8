"""The steps that make and measure an edit: construct, edit, evaluate. run.py says in which order they are called.

Each step reads what the steps before it left in the run's folder, and is skipped when the journal says that it is done
with the same inputs. The model is the base model; edits are merged into it only as long as a step needs them.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit import registry
from safear_edit.compiler.checks import clip_options
from safear_edit.compiler.compile import method_params
from safear_edit.compiler.recipe import Recipe
from safear_edit.files.atomic import digest_of, write_atomic
from safear_edit.files.rundir import RunDir
from safear_edit.progress import Callback
from safear_edit.spec.spec import Spec, Understanding

if TYPE_CHECKING:
    from safear_edit.construct.pairs import Material, Pairs
    from safear_edit.editor.edit import Change
    from safear_edit.editor.stack import Layer
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge


def readers(model: ModelFamily, recipe: Recipe) -> tuple[str, ...]:
    """Digests of what reads captions and images in a run and is in no recipe: the weights of a text encoder that the
    model has beside it, the detectors of the concept and of what must stay. All may be others when a run goes on: an
    encoder replaced, images put into a judge's folder."""
    from safear_edit.judges.base import judge_for

    asked = recipe.spec.judge
    labels = [asked.label, *(one.judge_label for one in recipe.evaluate.prompts if one.judge_label != asked.label)]
    encoder = model.encoder_origin()
    return (encoder[1] if encoder else "", *(judge_for(asked, label).digest for label in labels[:2]))


# -- 2 construct ------------------------------------------------------------------------------------------------------

PAIR_FILES = ("pairs/pairs.safetensors", "pairs/pairs.jsonl", "pairs/stats.json", "images/pairs.png",
              "images/pairs.json")  # fmt: skip
KEEP_FILES = ("pairs/keep.safetensors", "pairs/keep.jsonl")
NOT_RELEASED = ("pairs/pairs.safetensors", *KEEP_FILES)
"""Training material that the recipe makes again; the captions of the pairs and why others were dropped are released."""


def construct(run: RunDir, recipe: Recipe, model: ModelFamily, progress: Callback, below: str = "") -> None:
    """Contrastive pairs, and the model's own images of what must stay; `below` is the digest of edits it holds."""
    from safear_edit.construct.pairs import build_keep, save_sheet
    from safear_edit.pipeline.captioner import captioner_files

    model.keep_captions(captions_of(recipe), run / "captions.safetensors", recipe.digest)

    def make() -> None:
        pairs = pairs_of(recipe, model, progress)
        pairs.save(run / "pairs")
        if recipe.keep:
            kept, guards = [(keep.prompt, keep.seed) for keep in recipe.keep], [keep.guards for keep in recipe.keep]
            build_keep(model, kept, guards=guards, progress=progress).save(run / "pairs")
        (run / "images").mkdir(exist_ok=True)
        save_sheet(pairs, model, run / "images/pairs.png", hide=recipe.spec.kind == "category")

    files = PAIR_FILES + (KEEP_FILES if recipe.keep else ())
    inputs = digest_of(recipe.digest, below, *readers(model, recipe), *captioner_files(recipe))
    run.step("construct", inputs, files, make)


def pairs_of(recipe: Recipe, model: ModelFamily, progress: Callback) -> Pairs:
    """Draw and filter a recipe's pairs."""
    from safear_edit.construct.captions import refiner_of
    from safear_edit.construct.pairs import TextAlign, build_pairs
    from safear_edit.judges.clip import load_clip
    from safear_edit.pipeline.captioner import captioner_of

    asked, least = recipe.construct, recipe.construct.text_align
    options = clip_options(recipe.spec, model.card.images, "construct.text_align") if least is not None else None
    return build_pairs(
        model,
        [(pair.unsafe, pair.safe, pair.seed) for pair in asked.pairs],
        concept_judge(recipe.spec),
        progress=progress,
        refiner=refiner_of(recipe),
        captioner=captioner_of(recipe, model),
        text_align=None if least is None or options is None else TextAlign(load_clip(*options), least),
    )


def captions_of(recipe: Recipe) -> list[str]:
    """Every prompt that a run of the recipe draws or scores."""
    return list(dict.fromkeys([*recipe.training_prompts, *(one.prompt for one in recipe.evaluate.prompts)]))


def concept_judge(spec: Spec) -> Judge:
    """Who decides whether the spec's concept is in an image."""
    from safear_edit.judges.base import judge_for

    return judge_for(spec.judge, spec.judge.label)


# -- 3 edit -----------------------------------------------------------------------------------------------------------

EDIT_FILES = ("edit/*.safetensors", "edit/edit.json", "edit/*")
"""The last stands for what an edit's kind has beside those two (edit.FILES), and the method's log of its search."""


def find_edit(
    run: RunDir,
    name: str,
    parts: Sequence[RunDir],
    recipes: Sequence[Recipe],
    model: ModelFamily,
    progress: Callback,
    below: str,
) -> Layer:
    """The edit called `name` of the concepts that were constructed in `parts`; the model is left as it was.

    The first recipe says how it is searched: those of a joint edit agree in all that matters to that. Each concept
    gets a copy. `below` is the digest of the edits that the model holds already. A killed search goes on from its
    checkpoint.
    """
    from safear_edit.construct.joint import merged
    from safear_edit.editor.edit import Edit
    from safear_edit.editor.stack import Layer

    whole = run.part(f"edits/{name}")

    def make() -> None:
        several = [material_of(part, recipe, model) for part, recipe in zip(parts, recipes, strict=True)]
        search(whole, merged(name, several), recipes, model, progress)

    constructed = [part.digest("construct") for part in parts]
    read = [digest for recipe in recipes for digest in readers(model, recipe)]
    inputs = digest_of(*(recipe.digest for recipe in recipes), below, *constructed, *read)
    whole.step("edit", inputs, EDIT_FILES, make)
    for part in parts:
        part.step("edit", inputs, EDIT_FILES, partial(_copied, whole / "edit", part / "edit"))
    return Layer(name, Edit.load(whole / "edit"))


def _copied(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def material_of(run: RunDir, recipe: Recipe, model: ModelFamily) -> Material:
    """What `construct` left for the method, and what training may ask a model that answers questions."""
    from safear_edit.compiler.questions import CAPABILITY, training_questions
    from safear_edit.construct.pairs import Keep, Material, Pairs

    keep = Keep.load(run / "pairs") if recipe.keep else None
    asked = training_questions(recipe.spec) if CAPABILITY in model.provides else None
    pairs, judge = Pairs.load(run / "pairs"), concept_judge(recipe.spec)
    return Material(recipe.spec.name, pairs, keep, judge, asked, recipe.spec.erase.concept)


def search(run: RunDir, material: Material, recipes: Sequence[Recipe], model: ModelFamily, progress: Callback) -> None:
    """Fit the first recipe's method to `material`, which is of all of them, and write edit/; a killed search goes on
    from its checkpoint in `run`."""
    recipe = recipes[0]
    method = registry.lookup("methods", recipe.method.name).load()()
    params = method_params(recipe.method.name, recipe.method.params, "recipe.json")
    pairs, kept = material.pairs, material.keep.prompts if material.keep else ()
    asked = [*pairs.unsafe, *pairs.safe, *kept, material.prompt or material.concept]
    # refined captions and a method's own are not the recipe's: a text encoder that they brought back goes again
    model.keep_captions(list(dict.fromkeys(asked)), run / "captions.safetensors", recipe.digest)
    checkpoint = run / "edit.partial.safetensors"
    found = method.fit(model, material, params, seed=recipe.seed, progress=progress, checkpoint=checkpoint)
    shutil.rmtree(run / "edit", ignore_errors=True)  # files of an edit of another kind
    replace(found, recipes=tuple(one.digest for one in recipes)).save(run / "edit")


ATTACKS = "attacks"

# -- 4 evaluate -------------------------------------------------------------------------------------------------------

EVALUATION_FILES = ("outcomes.jsonl", "judges.json", "images/before_after.*", "images/slice-*.png",
                    "images/slice-*.json", "images/scored.jsonl", "images/scored-*.webp")  # fmt: skip


def evaluate(
    run: RunDir,
    recipe: Recipe,
    model: ModelFamily,
    change: Change,
    progress: Callback,
    *,
    leave_out: Collection[str] = (),
    base_images: Path | None = None,
) -> None:
    """Base and edited model draw the same prompts with the same seeds, and judges look: outcomes.jsonl.

    sampled.py screens with the base model first, keeps what it has judged in the run folder (a killed evaluation goes
    on from there), and leaves `judges.json` and the before/after sheets in `images/`. leave_out: ids of prompts that
    are drawn and not reported. base_images: where the base model's batches stay for the next change of the stack.
    """
    from safear_edit.evaluate import sampled

    def make() -> None:
        sampled.evaluate(
            model, change, recipe, run.root, progress=progress, leave_out=leave_out, base_images=base_images
        )

    inputs = digest_of(recipe.digest, change.digest, *sorted(leave_out), *readers(model, recipe))
    run.step("evaluate", inputs, EVALUATION_FILES, make)


def likelihoods(run: RunDir, recipe: Recipe, model: ModelFamily, change: Change, progress: Callback) -> str:
    """What base and edited model say about reference images, without drawing any: likelihood.json.

    The images are the mini world's or the spec's folder, tokenised once in the run folder. Returns why there are
    none, and then the file says that; "" where there are.
    """
    from safear_edit.evaluate import likelihood
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.likelihood_record import save_skipped
    from safear_edit.evaluate.references import source_for, tokenised, why_none

    why = likelihood.why_not(model) or why_none(recipe.spec, model.card)
    source = None if why else source_for(recipe.spec, model.card)

    def make() -> None:
        if source is None:
            save_skipped(run.root, why)
            return
        pack = tokenised(model, source, run / "references")
        pair = Pair(model, partial(edited, model, change))
        likelihood.audit(pair, pack, progress=progress).save(run.root)

    read = readers(model, recipe)
    inputs = digest_of(recipe.digest, change.digest, source.digest if source else why, *read)
    run.step("likelihood", inputs, ("likelihood.json",), make)
    return why


def understanding(run: RunDir, recipe: Recipe, model: ModelFamily, change: Change, progress: Callback) -> str:
    """What base and edited model answer about reference images: understanding.json and .jsonl. Returns why nothing.

    "" where they were asked, and also for a model that answers no questions unless the spec is about that.
    """
    from safear_edit.compiler import questions
    from safear_edit.compiler.questions import STEP
    from safear_edit.evaluate import understanding as asking
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.references import why_none

    spec, provided = recipe.spec, questions.CAPABILITY in model.provides
    if STEP not in measuring(recipe, model):
        return ""
    why = why_none(spec, model.card) if provided else f"{model.card.ref} answers no questions about images"
    asked = None if why else asking.exam(spec, asking.source_for(spec, model.card))

    def make() -> None:
        if asked is None:
            asking.save_skipped(run.root, why, applies=provided)
            return
        pair = Pair(model, partial(edited, model, change))
        asking.save(run.root, model.card.digest, asked, asking.ask(pair, asked, progress))

    inputs = digest_of(recipe.digest, change.digest, asked.digest if asked else why, *readers(model, recipe))
    run.step(STEP, inputs, asking.FILES, make)
    return why


def attacks(run: RunDir, recipe: Recipe, model: ModelFamily, change: Change, progress: Callback) -> str:
    """What the spec's suite of attacks brings back: attacks.json; nothing where the spec asks for none. Returns ""."""
    from safear_edit.attacks.record import FILE
    from safear_edit.attacks.run import attacked, planned
    from safear_edit.attacks.targets import concept_of
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.references import source_for
    from safear_edit.evaluate.sampled import sampling_of

    own = recipe.spec.evaluate
    if own.attacks is None:
        return ""
    plan = planned(own.attacks)

    def make() -> None:
        judge, sampling = concept_judge(recipe.spec), sampling_of(recipe)
        concept = concept_of(model, recipe.spec, judge, sampling, recipe.seed, images=plan.reads_images)
        pair, folder = Pair(model, partial(edited, model, change)), run / "attacks"
        found = attacked(
            pair, concept, model.card.ref, change.digest, plan, folder, seed=recipe.seed, progress=progress
        )
        write_atomic(run / FILE, found.model_dump_json(indent=1) + "\n")

    shown = [source_for(recipe.spec, model.card).digest] if plan.reads_images and own.references is not None else []
    inputs = digest_of(recipe.digest, change.digest, plan.code, *shown, *readers(model, recipe))
    run.step(ATTACKS, inputs, (FILE,), make)
    return ""


def measuring(recipe: Recipe, model: ModelFamily) -> tuple[str, ...]:
    """The steps that leave evidence about an edit of this model, by the names under which the journal has them."""
    from safear_edit.compiler import questions
    from safear_edit.compiler.questions import STEP

    looked = questions.CAPABILITY in model.provides or recipe.spec.understanding != Understanding()
    attacked = recipe.spec.evaluate.attacks is not None
    return ("evaluate", "likelihood", *([STEP] if looked else []), *([ATTACKS] if attacked else []))


@contextmanager
def edited(model: ModelFamily, change: Change) -> Iterator[ModelFamily]:
    """The model with the change merged, for as long as the block lasts."""
    with change.apply(model.net):
        yield model
