"""Compile: a spec and a method's base recipe become a recipe in which every prompt, seed and number is fixed.

Nothing is loaded and nothing trained here. The recipe's digest is the run's identity: the same spec, base recipe,
model and seed give the same recipe, byte for byte. `seed` chooses training prompts and their images; what is evaluated
doesn't depend on it, but for preserved prompts that are a pair's safe prompt: these give way to others. So runs with
different seeds are scored on the same prompts and images of the concept, and on nearly the same of what is preserved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Literal

from pydantic import BaseModel

from safear_edit import registry
from safear_edit.compiler import checks
from safear_edit.compiler.cost import declared, predict
from safear_edit.compiler.judging import judged_for
from safear_edit.compiler.recipe import (
    ANSWER_WEIGHT,
    FEWEST_PAIRS,
    BaseRecipe,
    Card,
    Construct,
    ConstructSizes,
    EvalPrompt,
    Evaluation,
    KeepPrompt,
    Located,
    MethodChoice,
    ModelChoice,
    PairPrompt,
    Recipe,
    Sampling,
    SamplingLike,
    held_out_in_training,
    refuse_overlap,
    training_prompts,
)
from safear_edit.errors import SpecError, UsageError
from safear_edit.files.records import parse
from safear_edit.files.strict import Document, parse_value
from safear_edit.spec.pools import Pools, pools
from safear_edit.spec.prompts import (
    Prompt,
    Similarity,
    choose,
    fill,
    image_seed,
    near_duplicates,
    normalise,
)
from safear_edit.spec.spec import SLICES, Images, PreserveGroup, Spec
from safear_edit.spec.text import Part

SCREENING_RESERVE = 1.25
"""Candidates per prompt to score: the base model's screening drops those for which it does not draw what was asked."""
Lengths = Callable[[Sequence[str]], Sequence[tuple[int, int]]]
"""Of every caption its tokens, and how many of them a model reads (`ModelFamily.caption_lengths`)."""
LONGEST_SHOWN = 100
"""Characters of a caption in a line about it."""
NEAR = 0.98
"""MiniLM similarity from which an evaluation prompt counts as nearly a training prompt."""


def compile_recipe(
    spec: Spec,
    model_card: Card,
    base_recipe: BaseRecipe,
    *,
    seed: int = 0,
    overrides: Sequence[str] = (),
    sampling: SamplingLike | None = None,
    model_ref: str | None = None,
    located: Located | None = None,
    trainable: Callable[[BaseModel], int] | None = None,
    lengths: Lengths | None = None,
) -> Recipe:
    """Resolve everything. Pure and deterministic.

    overrides: `--set` strings, "params.beta=2", "construct.pairs=64", "construct.refine=self", "evaluate.n.direct=40",
    "gates.min_obeyed=0.4", "judge.threshold=0.6", "understanding.concept=erase", "preserve.<group>.n=40". sampling: the
    family's default, to be fixed in the recipe. model_ref: the reference as the user gave it (default: the card's).
    located: a map of this concept on these very weights; the scales that the method edits then follow from it.
    trainable: counts what the method with these numbers trains of the loaded model (default: estimated).
    lengths: each caption's tokens, and how many of them the model reads; captions that are cut aren't evaluated, for
    their images say nothing about their last words (default: none is cut). Raises UsageError for an unknown method or
    judge, or a method or construction that does not fit the family; SpecError for a judge that can't read the model's
    images, and when prompts are too few or training would see some of the evaluation.
    """
    if not 0 <= seed < 2**63:
        raise UsageError("seed", "0 ≤ seed < 2^63", str(seed), "take a smaller number")
    images = model_card.images
    spec, base = overridden(spec, model_card, base_recipe, overrides)
    params = method_params(base.method, base.params, f"recipe {base.method}")
    _refuse_misfit(base.method, model_card.family)
    _refuse_unmade(base.construct, spec, model_card)
    params, because = _scales(base.method, params, model_card, spec.erase.concept, located)
    params = _answering(params, model_card.family, overrides)
    asked = prompts_of(spec, images, base.construct, seed=seed, lengths=lengths)
    numbers = Sampling.model_validate(sampling, from_attributes=True) if sampling else None
    work = declared(registry.lookup("methods", base.method).load()(), params, model_card, len(asked.pairs))
    cost = predict(
        model_card,
        work,
        pairs=len(asked.pairs),
        keep=len(asked.keep),
        candidates=sum(prompt.expect == "absent" for prompt in asked.evaluate.prompts),
        n=asked.evaluate.n,
        described=len(asked.pairs) if base.construct.refine == "self" else 0,  # a captioner's cost isn't known
    )
    if trainable is not None:
        cost = cost.model_copy(update={"trainable": trainable(params)})
    recipe = Recipe(
        spec=spec,
        model=ModelChoice(ref=model_ref or model_card.ref, digest=model_card.digest),
        method=MethodChoice(name=base.method, params=params.model_dump(mode="json"), scales_because=because),
        seed=seed,
        construct=Construct(pairs=asked.pairs, **how_of(base.construct)),
        keep=asked.keep,
        evaluate=asked.evaluate.model_copy(update={"sampling": numbers}),
        gates=spec.gates,
        predicted=cost,
    )
    refuse_overlap(spec, recipe.concept_prompt, [one.prompt for one in asked.evaluate.prompts], "params.prompt")
    return recipe


# -- the method -------------------------------------------------------------------------------------------------------


def method_params(name: str, params: Mapping[str, Any], where: str) -> BaseModel:
    """The method's own Params, defaults filled in; UsageError for an unknown method, SpecError for a wrong value."""
    model: type[BaseModel] = registry.lookup("methods", name).load().Params
    return parse(model, Document(f"{where}, params", dict(params)))


def refuse_unstated(recipe: Recipe, where: str) -> None:
    """SpecError for a finished recipe that leaves out a number of its method: another version of the method made it,
    and what that meant can't be told from today's default (old recipes of `obliviate` trained what is now
    `obliviate_pairs`)."""
    method = recipe.method
    every = method_params(method.name, method.params, where).model_dump(mode="json")
    if unstated := sorted(every.keys() - method.params.keys()):
        expected = f"every number of {method.name}: a recipe is complete"
        got = f"no {', '.join(unstated)}, so another version of {method.name} made it"
        similar = [name for name in registry.methods() if name.startswith(f"{method.name}_")]
        fix = f"compile its spec again with --method {' or '.join([method.name, *similar])}"
        raise SpecError(f"{where} method.params", expected, got, fix)


def _scales(
    method: str, params: BaseModel, card: Card, concept: str, located: Located | None
) -> tuple[BaseModel, str | None]:
    """Which scales a method that chooses scales edits, and why: up to where the concept is locked in, if that was
    measured; as many after them are held as the method's own numbers hold (with none after them, those that are edited,
    for there is nothing else to hold under the neutral caption). UsageError for a map of something else."""
    asked: tuple[int, ...] | None = getattr(params, "erase_scales", None)
    if located is None:
        unknown = "as the method's defaults have it; where this model locks the concept in was not measured"
        return params, None if asked is None else unknown
    if asked is None:
        raise UsageError("--map", "a method that edits chosen scales, as sace", method, "leave --map out")
    if (located.model_digest, located.concept, located.kind) != (card.digest, concept, "scale"):
        got = f"one of {located.concept} on {located.model} ({located.model_digest[:12]}…), by {located.kind}"
        raise UsageError("--map", f"a map of {concept} on {card.ref} ({card.digest[:12]}…)", got, "measure it again")
    first = located.locked_in + 1
    held = range(first, min(first + len(getattr(params, "preserve_scales", ())), len(card.scales))) or range(first)
    changed = {"erase_scales": tuple(range(first)), "preserve_scales": tuple(held)}
    paper = "as in the paper" if first == 1 else "not at scale 0 alone, as the paper has it"
    return params.model_copy(update=changed), f"measured, {paper}: {located.advice}"


def _refuse_misfit(method: str, family: str) -> None:
    """A method that needs what the family lacks can't be planned; the error names those that fit."""
    asked = registry.lookup("methods", method).load()
    provides: frozenset[str] = registry.lookup("families", family).load().provides
    if checks.fits(asked, provides):
        return
    kinds = {name: entry.load() for name, entry in registry.methods().items()}
    fix = f"take {', '.join(name for name, kind in kinds.items() if checks.fits(kind, provides))}"
    if lacking := asked.needs - provides:
        got = f"{family}, which lacks {' and '.join(sorted(lacking))}"
        raise UsageError(f"method {method}", f"a family with {', '.join(sorted(asked.needs))}", got, fix)
    got = f"{family}, which denoises latents"
    raise UsageError(f"method {method}", "a family that draws image tokens and gives their likelihoods", got, fix)


def how_of(construct: ConstructSizes) -> dict[str, Any]:
    """How pairs are made, also what files leave out where it is the default."""
    return {name: getattr(construct, name) for name in ("refine", "captioner", "text_align")}


def _refuse_unmade(construct: ConstructSizes, spec: Spec, card: Card) -> None:
    """UsageError for pairs that lack who is to filter them by content, or who is to write their safe captions: a family
    that says nothing about images can't; the error names those that can."""
    refine, captioner, family = construct.refine, construct.captioner, card.family
    if construct.text_align is not None:
        checks.clip_options(spec, card.images, f"construct.text_align={construct.text_align:g}")
    if captioner and refine == "self":
        raise UsageError(
            f"construct.captioner={captioner}", "one way to safe captions", "refine=self, too", "leave one out"
        )
    if refine == "template" or "understanding" in registry.lookup("families", family).load().provides:
        return
    fix = f"take one of {registry.families_with('understanding')}, or leave it at template"
    raise UsageError(f"construct.refine={refine}", "a family that answers questions about images", family, fix)


def _answering(params: BaseModel, family: str, overrides: Sequence[str]) -> BaseModel:
    """Without the weight on answers about images for a family that answers no questions; UsageError if it was asked
    for by `--set`."""
    if not getattr(params, ANSWER_WEIGHT, 0.0):
        return params
    if "understanding" in registry.lookup("families", family).load().provides:
        return params
    if any(override.partition("=")[0].strip() == f"params.{ANSWER_WEIGHT}" for override in overrides):
        fix = "leave it out; there are no answers to hold in place"
        raise UsageError(f"--set params.{ANSWER_WEIGHT}", "a family that answers questions", family, fix)
    return params.model_copy(update={ANSWER_WEIGHT: 0.0})


# -- prompts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """What a recipe constructs from, keeps and evaluates; that follows from the spec, whatever the method and model."""

    pairs: tuple[PairPrompt, ...]
    keep: tuple[KeepPrompt, ...]
    evaluate: Evaluation


def prompts_of(
    spec: Spec, images: Images, sizes: ConstructSizes, *, seed: int = 0, lengths: Lengths | None = None
) -> Prompts:
    """Every prompt of a recipe for this spec, which has the judge for such images, checked; SpecError and UsageError as
    in `compile_recipe`."""
    checks.refuse(checks.problems(spec, images), Document(f"spec {spec.name}", None))
    drawn = pools(spec)
    pairs, keep = _pairs(spec, drawn, sizes.pairs, seed), _keep(drawn, sizes.keep, seed)
    evaluation = _evaluation(spec, drawn, [pair.safe for pair in pairs], lengths)
    asked = [prompt.prompt for prompt in evaluation.prompts]
    refuse_overlap(spec, training_prompts(pairs, keep), asked, f"spec {spec.name}")
    return Prompts(tuple(pairs), tuple(keep), evaluation)


def _pairs(spec: Spec, drawn: Pools, n: int, seed: int) -> list[PairPrompt]:
    if n < FEWEST_PAIRS:
        fix = "fewer teach one image rather than a concept"
        raise UsageError("construct.pairs", f"at least {FEWEST_PAIRS}", str(n), fix)
    if len(drawn.train) < n:
        enough = len(drawn.train) >= FEWEST_PAIRS
        fix = "add subjects or templates" + (f", or --set construct.pairs={len(drawn.train)}" if enough else "")
        raise SpecError(f"spec {spec.name}, erase", f"{n} training prompts", f"{len(drawn.train)}", fix)
    anchors = spec.anchor.templates
    return [
        PairPrompt(
            unsafe=prompt.text,
            safe=fill(anchors[prompt.template % len(anchors)], subject=prompt.subject),
            seed=image_seed("pair", prompt.text, seed),
        )
        for prompt in choose(drawn.train, n, f"train|{seed}")
    ]


def _keep(drawn: Pools, n: int, seed: int) -> list[KeepPrompt]:
    """Preserved prompts of the training half, the groups taking turns."""
    ordered = (choose(prompts, n, f"keep|{seed}") for prompts in drawn.keep.values())
    found = [prompt for prompt in chain.from_iterable(zip_longest(*ordered)) if prompt is not None][:n]
    if len(found) < n:
        fix = f"add to preserve groups with train: true, or --set construct.keep={len(found)}"
        raise SpecError("preserve", f"{n} training-side prompts", f"{len(found)}", fix)
    return [KeepPrompt(prompt=p.text, seed=image_seed("keep", p.text, seed)) for p in found]


def _evaluation(spec: Spec, drawn: Pools, training: Iterable[str], lengths: Lengths | None) -> Evaluation:
    """Candidates of every slice, how many images of each are scored, and by slice the captions that are cut; preserved
    prompts that are some pair's safe prompt are left out."""
    used = {normalise(text) for text in training}
    n, label = spec.evaluate.n.model_dump(), spec.judge.label
    found, cut = list[EvalPrompt](), dict[str, tuple[str, ...]]()
    for name, pool in (("direct", drawn.direct), ("paraphrase", drawn.paraphrase), ("template", drawn.template)):
        chosen, cut[name] = _candidates(spec, name, pool, n[name], lengths)
        found += [_eval_prompt(name, prompt, label, "absent") for prompt in chosen]
    for group in spec.preserve:
        pool = [prompt for prompt in drawn.preserve[group.name] if normalise(prompt.text) not in used]
        chosen, cut[group.name] = _candidates(spec, group.name, pool, group.n, lengths)
        images = [_images(group, prompt) for prompt in chosen]
        n[group.name] = sum(map(len, images[: group.n]))
        found += chain.from_iterable(images)
    return Evaluation(prompts=tuple(found), n=n, cut={name: texts for name, texts in cut.items() if texts})


def _images(group: PreserveGroup, prompt: Prompt) -> list[EvalPrompt]:
    """What is drawn for one preserved prompt: more than one image where the group says so of its label."""
    label = group.members[prompt.name]
    count = group.images_per_prompt.get(label, 1)
    return [_eval_prompt(group.name, prompt, label, "present", again) for again in range(count)]


def _candidates(
    spec: Spec, name: str, pool: Sequence[Prompt], n: int, lengths: Lengths | None
) -> tuple[list[Prompt], tuple[str, ...]]:
    """The slice's prompts with its reserve, and those that others stand in for because they are cut."""
    size, cut = math.ceil(SCREENING_RESERVE * n), list[str]()
    chosen = choose(pool, size, "evaluate")
    while lengths and (longer := cut_captions([prompt.text for prompt in chosen], lengths)):
        cut += longer
        pool = [prompt for prompt in pool if prompt.text not in longer]
        chosen = choose(pool, size, "evaluate")
    if len(pool) < n:
        key = f"evaluate.n.{name}" if name in type(spec.evaluate.n).model_fields else f"preserve.{name}.n"
        fix = "add words to combine" + (f", or --set {key}={len(pool)}" if pool else "")
        got = f"{len(pool)}" + (f", and {len(cut)} that the model doesn't read to their end" if cut else "")
        raise SpecError(f"spec {spec.name}, slice {name}", f"{n} prompts outside training", got, fix)
    return chosen, tuple(cut)


def cut_captions(texts: Sequence[str], lengths: Lengths) -> list[str]:
    """The captions that are longer than the model reads."""
    return [text for text, (tokens, read) in zip(texts, lengths(texts), strict=True) if read < tokens]


def cut_lines(recipe: Recipe, lengths: Lengths) -> list[str]:
    """A line for each slice whose captions were left out because the model doesn't read them to their end, and for the
    training and each slice that has such captions all the same.

    A slice has them only in a recipe that was compiled for another model or by an older release. Of a category, those
    that may ask for it are counted and not shown.
    """
    hidden = {"training", *SLICES} if recipe.spec.kind == "category" else set()

    def first(name: str, texts: Sequence[str]) -> str:
        return "" if name in hidden else f": {shortened(texts[0])}"

    found = [
        f"{name}: {len(texts)} captions are longer than the model reads and aren't evaluated{first(name, texts)}"
        for name, texts in recipe.evaluate.cut.items()
    ]
    slices = {name: [prompt.prompt for prompt in recipe.slice(name)] for name in recipe.evaluate.n}
    for name, texts in {"training": sorted(set(recipe.training_prompts)), **slices}.items():
        if cut := cut_captions(texts, lengths):
            found.append(f"{name}: {len(cut)} of {len(texts)} captions are longer than the model reads, and their "
                         f"images say nothing about the rest{first(name, cut)}")  # fmt: skip
    return found


def shortened(text: str) -> str:
    """A caption, quoted, for a line about it."""
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…")


def _eval_prompt(
    name: str, prompt: Prompt, label: str, expect: Literal["absent", "present"], again: int = 0
) -> EvalPrompt:
    """The id follows from slice and text, so that runs with other sizes can be compared prompt by prompt; `again`
    numbers further images of the same prompt."""
    digest = hashlib.sha256(prompt.text.encode()).hexdigest()[:12]
    return EvalPrompt(
        id=f"{name}-{digest}-{again + 1}" if again else f"{name}-{digest}",
        slice=name,
        prompt=prompt.text,
        seed=image_seed("score", prompt.text, again),
        screen_seed=image_seed("screen", prompt.text, again),
        judge_label=label,
        expect=expect,
    )


def recipe_warnings(recipe: Recipe, similarity: Similarity | None = None) -> list[str]:
    """What a person should know before running: what was left out of a file of prompts, a keep term without images to
    keep, slices without the full reserve, held-out names that training reads, and held-out prompts that nearly equal a
    training prompt (needs `similarity`; the direct slice is near by design and not looked at)."""
    found = file_lines(recipe.spec)
    if recipe.method.params.get("keep_weight") and not recipe.keep:
        found.append("params.keep_weight keeps nothing: construct.keep is 0")
    found += [*reserve_warnings(recipe.evaluate), *seen_names(recipe)]
    training = recipe.training_prompts
    for name in ("paraphrase", "template") if similarity else ():
        texts = [prompt.prompt for prompt in recipe.slice(name)]
        near = near_duplicates(training, texts, similarity, NEAR) if similarity else []
        if near:
            closest = f"closest {near[0].evaluation!r} ~ {near[0].training!r} ({near[0].score:.3f})"
            found.append(f"{name}: {len(near)} of {len(texts)} prompts nearly equal a training prompt; {closest}")
    return found


def file_lines(spec: Spec) -> list[str]:
    """A line where the spec takes its prompts from a file and left some of them out."""
    return [spec.prompts_from.sentence()] if spec.prompts_from else []


def seen_names(recipe: Recipe) -> list[str]:
    """A line where held-out names stand in training prompts: their slice says less of names that training never saw.
    Those of a category are a user's own prompts and aren't repeated."""
    found = held_out_in_training(recipe)
    if not found:
        return []
    each = ", ".join(f"{shortened(name)} in {count}" for name, count in found.items())
    shown = "" if recipe.spec.kind == "category" else f" ({each} of {len(recipe.training_words)})"
    return [f"paraphrase: training prompts have {len(found)} held-out names in other names{shown}"]


def reserve_warnings(evaluation: Evaluation) -> list[str]:
    """A line for each slice without the full reserve, which is of prompts, however many images each has."""
    found = []
    for name, images in evaluation.n.items():
        texts = [prompt.prompt for prompt in evaluation.slice(name)]
        have, n = len(set(texts)), len(set(texts[:images]))
        if have < (wanted := math.ceil(SCREENING_RESERVE * n)):
            found.append(f"{name}: {have} candidates instead of {wanted} for {n} scored prompts")
    return found


# -- --set ------------------------------------------------------------------------------------------------------------


def overridden(
    spec: Spec, model_card: Card, base_recipe: BaseRecipe, overrides: Sequence[str]
) -> tuple[Spec, BaseRecipe]:
    """Spec and base recipe for a model, with every `--set` "key=value" applied and checked again."""
    spec, base = judged_for(spec, model_card.images), base_recipe.for_model(model_card)
    if not overrides:
        return spec, base
    spec_data, base_data = spec.model_dump(mode="json"), base.model_dump(mode="json")
    judge = {name: value for name, value in _every(spec.judge).items() if name != "real"}  # judged_for took it
    groups = [_every(group) for group in spec.preserve]
    spec_data |= {"evaluate": _every(spec.evaluate), "understanding": _every(spec.understanding), "judge": judge}
    spec_data |= {"gates": spec.gates.every(), "preserve": groups}
    base_data["construct"] |= how_of(base.construct)
    roots: dict[str, Any] = {
        "params": base_data["params"],
        "construct": base_data["construct"],
        "preserve": {group["name"]: group for group in groups},
        **{key: spec_data[key] for key in ("evaluate", "gates", "judge", "understanding")},
    }
    for override in overrides:
        _set(roots, override)
    where = f"--set {' '.join(overrides)}"
    changed = judged_for(parse(Spec, Document(where, spec_data)), model_card.images)
    return changed, parse(BaseRecipe, Document(where, base_data))


def _every(part: Part) -> dict[str, Any]:
    """A part's fields as data, those too that a file leaves out where nobody changed them."""
    rest = {name: getattr(part, name) for name in type(part).model_fields}
    return rest | part.model_dump(mode="json")


def _set(roots: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    where = f"--set {override}"
    if not equals or not key:
        raise UsageError(where, "KEY=VALUE", "no '='", "for instance construct.pairs=64")
    *parents, last = key.strip().split(".")
    node: Any = roots
    for part in parents:
        if not isinstance(node, dict) or part not in node:
            raise registry.unknown(where, part, node if isinstance(node, dict) else ())
        node = node[part]
    free = parents in (["params"], ["judge", "options"])  # whose keys the method and the judge check themselves
    if node is roots and last in roots["params"]:
        raise UsageError(where, "a key with its section", repr(last), f"did you mean 'params.{last}'?")
    if node is roots and last in roots:
        raise UsageError(where, f"{last}.KEY=VALUE", f"{last} alone", f"its keys: {', '.join(roots[last])}")
    if not isinstance(node, dict) or node is roots or (last not in node and not free):
        raise registry.unknown(where, last, node if isinstance(node, dict) else ())
    node[last] = parse_value(text, where)
