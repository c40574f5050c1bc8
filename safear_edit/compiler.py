"""Compile: a spec and a method's base recipe become a recipe in which every prompt, seed and number is fixed.

Nothing is loaded and nothing trained here. The recipe's digest is the run's identity: the same spec, base recipe,
model and seed give the same recipe, byte for byte. What is evaluated does not depend on `seed` (which chooses training
prompts and their pictures), so runs with different seeds are scored on the same prompts and pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from safear_edit import registry
from safear_edit.errors import SpecError, UsageError
from safear_edit.prompts import (
    Pools,
    Prompt,
    Similarity,
    choose,
    fill,
    forbidden,
    image_seed,
    near_duplicates,
    normalise,
    overlap,
    pools,
)
from safear_edit.rundir import json_digest, write_atomic
from safear_edit.spec import Count, Gates, Note, Part, Spec, Text, Understanding, parse
from safear_edit.understanding import refuse_taught_questions
from safear_edit.yaml_strict import Document, parse_value, read_json, read_yaml

SCREENING_RESERVE = 1.25
"""Candidates per prompt to score: the base model's screening drops those it does not obey."""
NEAR = 0.98
"""MiniLM similarity from which an evaluation prompt counts as nearly a training prompt."""
ANSWER_WEIGHT = "understanding_weight"
"""The number by which a method holds answers about pictures in place (methods/base.py)."""


@contextmanager
def _construct_is_a_field() -> Iterator[None]:
    """Quiets pydantic about fields named `construct`: they hide nothing but a deprecated class method of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message='Field name "construct"')
        yield


# -- base recipes -----------------------------------------------------------------------------------------------------


Refine = Literal["template", "self"]
"""Who writes the safe captions of pairs: the spec's anchor templates, or the model about its unsafe picture."""
_REFINE: Any = Field(
    default="template",
    exclude_if=lambda how: how == "template",  # a recipe with the default keeps the digest that it had before
    description="Who writes the safe captions: template, the spec's anchor; self, the model itself, by what it says of "
    "its unsafe picture (refine.py), for a family that answers questions about pictures.",
)


class ConstructSizes(Part):
    """How much training material is made."""

    pairs: Count = Field(default=256, description="Contrastive pairs to sample; those the judge rejects are dropped.")
    keep: Annotated[int, Field(ge=0)] = Field(
        default=128, description="Pictures of preserved prompts that training may use to stay put."
    )
    refine: Refine = _REFINE


with _construct_is_a_field():

    class Instead(Part):
        """What a model takes instead of a method's defaults."""

        params: dict[str, Any] = Field(default_factory=dict)
        construct: dict[str, Any] = Field(default_factory=dict)  # type: ignore[assignment]

    class BaseRecipe(Part):
        """A method's defaults (recipes/<name>.yaml), each number with its source in a comment."""

        schema_version: Literal[1] = 1
        method: Text
        description: Note = ""
        params: dict[str, Any] = Field(default_factory=dict, description="The method's own numbers, see its Params.")
        construct: ConstructSizes = ConstructSizes()  # type: ignore[assignment]
        models: dict[Text, Instead] = Field(
            default_factory=dict,
            description='By family ("janus") or pattern ("*:mini"): what such a model takes instead; later ones win.',
        )

        def for_model(self, card: Card) -> BaseRecipe:
            """The defaults for one model, `models` resolved; SpecError for a construction that can't be."""
            data = self.model_dump(mode="json") | {"models": {}}
            for name, instead in self.models.items():
                if name == card.family or fnmatchcase(card.ref, name):
                    data["params"] |= instead.params
                    data["construct"] |= instead.construct
            return parse(BaseRecipe, Document(f"recipe {self.method} for {card.ref}", data))


def load_base_recipe(name: str) -> BaseRecipe:
    """The base recipe called `name` (built in), or the file of that path; a method without one runs on its defaults.

    UsageError for a name that is neither, SpecError for a file that is wrong.
    """
    if "/" in name or name.endswith(".yaml"):
        return parse(BaseRecipe, read_yaml(Path(name)))
    if name in {row.name for row in registry.listing("recipes")}:
        return parse(BaseRecipe, read_yaml(registry.find_builtin("recipes", name)))
    return BaseRecipe(method=registry.lookup("methods", name).name)


# -- the recipe -------------------------------------------------------------------------------------------------------


def _seed_from_text(value: Any) -> Any:
    """Seeds are JSON strings, because readers that hold numbers as doubles would change a 63-bit one."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20 else value


Seed = Annotated[
    int,
    Field(ge=0, lt=2**63),
    BeforeValidator(_seed_from_text),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,19}$"}),
]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelChoice(Part):
    """The weights: how they were named, and what they were."""

    ref: Text
    digest: Text


class MethodChoice(Part):
    """The method with all its numbers; scales_because: why it edits the scales that it does, if it edits scales."""

    name: Text
    params: dict[str, Any]
    scales_because: Text | None = Field(default=None, exclude_if=lambda why: why is None)


class Located(Part):
    """Where a model keeps a concept, as far as a recipe needs it (`map.json`, cartography.py)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: Text
    model_digest: Digest
    concept: Text
    kind: Literal["scale", "row"]
    locked_in: Annotated[int, Field(ge=0)]
    advice: Text


def read_map(path: Path) -> Located:
    """From the folder that `safear-edit map` wrote, or its map.json; SpecError for anything else."""
    file = path / "map.json" if path.is_dir() else path
    return parse(Located, read_json(file))


class PairPrompt(Part):
    """One contrastive pair to make: both prompts with the same seed."""

    unsafe: Text
    safe: Text
    seed: Seed


class Construct(Part):
    """What the construct step makes."""

    pairs: Annotated[tuple[PairPrompt, ...], Field(min_length=1)]
    refine: Refine = _REFINE


class KeepPrompt(Part):
    """A preserved prompt on the training side.

    guards: it asks for what an earlier edit of a stack erases, so what is kept is that this stays erased.
    """

    prompt: Text
    seed: Seed
    guards: bool = Field(default=False, exclude_if=lambda guards: not guards)  # without, a recipe keeps its digest


class EvalPrompt(Part):
    """One candidate of a slice: the base model's picture of `screen_seed` decides if it counts, `seed`'s is scored."""

    id: Text
    slice: Text
    prompt: Text
    seed: Seed
    screen_seed: Seed
    judge_label: Text
    expect: Literal["absent", "present"]


class Sampling(Part):
    """How pictures are drawn, everywhere in the run."""

    guidance: Annotated[float, Field(ge=0)]
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class Evaluation(Part):
    """What the evaluate step scores; `n` is how many prompts per slice count, the rest are reserve."""

    prompts: Annotated[tuple[EvalPrompt, ...], Field(min_length=1)]
    n: dict[Text, Count]
    sampling: Sampling | None = Field(default=None, description="None: the family's own default.")


class Predicted(Part):
    """What the run will cost, by the model in `predict`."""

    minutes: Annotated[float, Field(ge=0)]
    memory_gib: Annotated[float, Field(ge=0)]
    trainable: Annotated[int, Field(ge=0)]


with _construct_is_a_field():

    class Recipe(Part):
        """The complete plan of one concept on one model."""

        schema_version: Literal[1] = 1
        spec: Spec
        model: ModelChoice
        method: MethodChoice
        seed: Seed
        construct: Construct  # type: ignore[assignment]
        keep: tuple[KeepPrompt, ...]
        evaluate: Evaluation
        gates: Gates
        predicted: Predicted

        @cached_property
        def digest(self) -> str:
            """sha256 of the canonical JSON (sorted keys, no spaces) of everything above."""
            return json_digest(self.model_dump(mode="json"))

        def slice(self, name: str) -> list[EvalPrompt]:
            """The candidates of one slice."""
            return [prompt for prompt in self.evaluate.prompts if prompt.slice == name]


class Card(Protocol):
    """What compiling needs to know of a model; `families.base.ModelCard` has it."""

    @property
    def ref(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def scales(self) -> tuple[int, ...]: ...


class SamplingLike(Protocol):
    """`families.base.Sampling`, without importing torch."""

    @property
    def guidance(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...


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
) -> Recipe:
    """Resolve everything. Pure and deterministic.

    overrides: `--set` strings, "params.beta=2", "construct.pairs=64", "construct.refine=self", "evaluate.n.direct=40",
    "gates.min_obeyed=0.4", "judge.threshold=0.6", "understanding.concept=erase", "preserve.<group>.n=40". sampling: the
    family's default, to be fixed in the recipe. model_ref: the reference as the user gave it (default: the card's).
    located: a map of this concept on these very weights; the scales that the method edits then follow from it.
    trainable: counts what the method with these numbers trains of the loaded model (default: estimated). Raises
    UsageError for an unknown method or judge, or a method or construction that does not fit the family; SpecError when
    prompts are too few or training would see some of the evaluation.
    """
    if not 0 <= seed < 2**63:
        raise UsageError("seed", "0 ≤ seed < 2^63", str(seed), "take a smaller number")
    spec, base = _overridden(spec, base_recipe.for_model(model_card), overrides)
    params = method_params(base.method, base.params, f"recipe {base.method}")
    _refuse_misfit(base.method, model_card.family)
    _refuse_silent(base.construct.refine, model_card.family)
    params, because = _scales(base.method, params, model_card, spec.erase.concept, located)
    params = _answering(params, model_card.family, overrides)
    registry.lookup("judges", spec.judge.use)
    drawn = pools(spec)
    pairs = _pairs(spec, drawn, base.construct.pairs, seed)
    keep = _keep(drawn, base.construct.keep, seed)
    prompts = _evaluation(spec, drawn, training=[pair.safe for pair in pairs])
    sizes = {**spec.evaluate.n.model_dump(), **{group.name: group.n for group in spec.preserve}}
    screened = sum(prompt.expect == "absent" for prompt in prompts)
    numbers = Sampling.model_validate(sampling, from_attributes=True) if sampling else None
    told = len(pairs) if base.construct.refine == "self" else 0
    cost = predict(model_card, params, pairs=len(pairs), keep=len(keep), candidates=screened, n=sizes, told=told)
    if trainable is not None:
        cost = cost.model_copy(update={"trainable": trainable(params)})
    recipe = Recipe(
        spec=spec,
        model=ModelChoice(ref=model_ref or model_card.ref, digest=model_card.digest),
        method=MethodChoice(name=base.method, params=params.model_dump(mode="json"), scales_because=because),
        seed=seed,
        construct=Construct(pairs=tuple(pairs), refine=base.construct.refine),
        keep=tuple(keep),
        evaluate=Evaluation(prompts=tuple(prompts), n=sizes, sampling=numbers),
        gates=spec.gates,
        predicted=cost,
    )
    _check_separate(recipe, f"spec {spec.name}")
    return recipe


# -- the method -------------------------------------------------------------------------------------------------------


def method_params(name: str, params: Mapping[str, Any], where: str) -> BaseModel:
    """The method's own Params, defaults filled in; UsageError for an unknown method, SpecError for a wrong value."""
    model: type[BaseModel] = registry.lookup("methods", name).load().Params
    return parse(model, Document(f"{where}, params", dict(params)))


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
    needs: frozenset[str] = registry.lookup("methods", method).load().needs
    if not needs:
        return
    provides: frozenset[str] = registry.lookup("families", family).load().provides
    if lacking := needs - provides:
        fitting = [name for name, entry in registry.methods().items() if entry.load().needs <= provides]
        got = f"{family}, which lacks {' and '.join(sorted(lacking))}"
        raise UsageError(
            f"method {method}", f"a family with {', '.join(sorted(needs))}", got, f"take {', '.join(fitting)}"
        )


def _refuse_silent(refine: Refine, family: str) -> None:
    """A family that says nothing about pictures can't write safe captions; the error names those that can."""
    if refine == "template" or "understanding" in registry.lookup("families", family).load().provides:
        return
    fix = f"take one of {registry.families_with('understanding')}, or leave it at template"
    raise UsageError(f"construct.refine={refine}", "a family that answers questions about pictures", family, fix)


def _answering(params: BaseModel, family: str, overrides: Sequence[str]) -> BaseModel:
    """Without the weight on answers about pictures for a family that answers no questions; UsageError if it was asked
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


def _pairs(spec: Spec, drawn: Pools, n: int, seed: int) -> list[PairPrompt]:
    if len(drawn.train) < n:
        fix = f"add subjects or templates, or --set construct.pairs={len(drawn.train)}"
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


def _evaluation(spec: Spec, drawn: Pools, training: Iterable[str]) -> list[EvalPrompt]:
    """Candidates of every slice; preserved prompts that are some pair's safe prompt are left out."""
    used = {normalise(text) for text in training}
    n, label = spec.evaluate.n, spec.judge.label
    found: list[EvalPrompt] = []
    for name, pool, size in (
        ("direct", drawn.direct, n.direct),
        ("paraphrase", drawn.paraphrase, n.paraphrase),
        ("template", drawn.template, n.template),
    ):
        chosen = _candidates(spec, name, pool, size)
        found += [_eval_prompt(name, prompt, label, "absent") for prompt in chosen]
    for group in spec.preserve:
        pool = [prompt for prompt in drawn.preserve[group.name] if normalise(prompt.text) not in used]
        chosen = _candidates(spec, group.name, pool, group.n)
        found += [_eval_prompt(group.name, prompt, group.members[prompt.name], "present") for prompt in chosen]
    return found


def _candidates(spec: Spec, name: str, pool: Sequence[Prompt], n: int) -> list[Prompt]:
    if len(pool) < n:
        key = f"evaluate.n.{name}" if name in type(spec.evaluate.n).model_fields else f"preserve.{name}.n"
        fix = f"add words to combine, or --set {key}={len(pool)}"
        raise SpecError(f"spec {spec.name}, slice {name}", f"{n} prompts outside training", f"{len(pool)}", fix)
    return choose(pool, math.ceil(SCREENING_RESERVE * n), "evaluate")


def _eval_prompt(name: str, prompt: Prompt, label: str, expect: Literal["absent", "present"]) -> EvalPrompt:
    """The id follows from slice and text, so that runs with other sizes can be compared prompt by prompt."""
    return EvalPrompt(
        id=f"{name}-{hashlib.sha256(prompt.text.encode()).hexdigest()[:12]}",
        slice=name,
        prompt=prompt.text,
        seed=image_seed("score", prompt.text),
        screen_seed=image_seed("screen", prompt.text),
        judge_label=label,
        expect=expect,
    )


def _check_separate(recipe: Recipe, where: str) -> None:
    """Nothing that is evaluated may be trained on, and nothing may be on the block list."""
    training = training_prompts(recipe)
    evaluated = [prompt.prompt for prompt in recipe.evaluate.prompts]
    if both := overlap(training, evaluated):
        fix = "reword the names or templates that give the same sentence"
        got = f"{both[0]!r} in both ({len(both)} in all)"
        raise SpecError(where, "no evaluation prompt among the training prompts", got, fix)
    if any(forbidden(prompt) for prompt in (*training, *evaluated)):
        fix = "this combination is never processed, not even to erase it"
        raise SpecError(where, "no prompt that joins minors with sexual content", "one", fix)
    refuse_taught_questions(recipe.spec, where)


def training_prompts(recipe: Recipe) -> list[str]:
    """Every prompt that training sees: both of each pair, and those to keep."""
    pairs = recipe.construct.pairs
    return [*(p.unsafe for p in pairs), *(p.safe for p in pairs), *(k.prompt for k in recipe.keep)]


def recipe_warnings(recipe: Recipe, similarity: Similarity | None = None) -> list[str]:
    """What a person should know before running: a keep term without pictures to keep, slices without the full reserve,
    and held-out prompts that nearly equal a training prompt (needs `similarity`; the direct slice is near by design and
    not looked at)."""
    found = []
    if recipe.method.params.get("keep_weight") and not recipe.keep:
        found.append("params.keep_weight keeps nothing: construct.keep is 0")
    for name, n in recipe.evaluate.n.items():
        have, want = len(recipe.slice(name)), math.ceil(SCREENING_RESERVE * n)
        if have < want:
            found.append(f"{name}: {have} candidates instead of {want} for {n} scored prompts")
    training = training_prompts(recipe)
    for name in ("paraphrase", "template") if similarity else ():
        texts = [prompt.prompt for prompt in recipe.slice(name)]
        near = near_duplicates(training, texts, similarity, NEAR) if similarity else []
        if near:
            closest = f"closest {near[0].evaluation!r} ~ {near[0].training!r} ({near[0].score:.3f})"
            found.append(f"{name}: {len(near)} of {len(texts)} prompts nearly equal a training prompt; {closest}")
    return found


# -- --set ------------------------------------------------------------------------------------------------------------


def _overridden(spec: Spec, base: BaseRecipe, overrides: Sequence[str]) -> tuple[Spec, BaseRecipe]:
    """Spec and base recipe with every "key=value" applied and checked again."""
    if not overrides:
        return spec, base
    spec_data, base_data = spec.model_dump(mode="json"), base.model_dump(mode="json")
    # what files leave out where nobody changed it
    spec_data["evaluate"].setdefault("references", None)
    spec_data.setdefault("understanding", Understanding().model_dump(mode="json"))
    spec_data["gates"] |= spec.gates.every()
    base_data["construct"]["refine"] = base.construct.refine
    roots: dict[str, Any] = {
        "params": base_data["params"],
        "construct": base_data["construct"],
        "preserve": {group["name"]: group for group in spec_data["preserve"]},
        **{key: spec_data[key] for key in ("evaluate", "gates", "judge", "understanding")},
    }
    for override in overrides:
        _set(roots, override)
    where = f"--set {' '.join(overrides)}"
    return parse(Spec, Document(where, spec_data)), parse(BaseRecipe, Document(where, base_data))


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
    if not isinstance(node, dict) or node is roots or (last not in node and not free):
        raise registry.unknown(where, last, node if isinstance(node, dict) else ())
    node[last] = parse_value(text, where)


# -- prediction -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What a run costs on two CPU cores in float32; a GPU is faster by far.

    Speeds: stage times of two runs of concepts/picasso.yaml on llamagen:mini (two shared cores of an AMD EPYC, 21
    November 2026: 33 pictures/s and 0.75 s/step in 3.9 minutes) scaled to the one that had the machine to itself (2.95
    minutes). `python -m safear_edit.calibrate` measures them and the memory on the machine at hand.
    """

    startup_s: float = 20.0
    """Imports, loading, captions, report, signature."""
    sample_flops: float = 70e9
    """Flop/s of `picture_flops` while a picture is drawn, decoded and judged: 45 pictures/s."""
    train_flops: float = 135e9
    """Flop/s of `Work.training_flops`: 0.56 s for a VCE step of 16 rows of pairs and 12 preserved ones."""
    fixed_gib: float = 1.2
    """Python, torch, MiniLM and judge (0.99 GiB measured), and the libraries of report and signature."""
    saved_floats_per_width: float = 34.0
    """Floats kept for the backward pass per token, layer and unit of width."""


@dataclass(frozen=True)
class Work:
    """What a method does in counts: optimiser steps, and rows of pairs, of preserved pictures, and of pictures that it
    asks about per step."""

    steps: int
    rows: int
    kept: int
    asked: int = 0

    @classmethod
    def of(cls, numbers: Mapping[str, Any], pairs: int) -> Work:
        """From a method's numbers; one that has none of the usual names counts as one pass over the pairs."""
        batch = int(numbers.get("batch") or 1)
        steps = int(numbers.get("steps") or math.ceil(pairs / batch))
        few = int(numbers.get("keep_batch") or 0)
        kept, asked = (few if numbers.get(weight) else 0 for weight in ("keep_weight", ANSWER_WEIGHT))
        return cls(steps, 2 * batch, kept, asked)

    def training_flops(self, card: Card) -> float:
        """All steps: a row that trains costs three forwards, and one that must stay a fourth by the untouched model.

        A question about a picture counts as long as the picture.
        """
        held = self.kept + self.asked
        return self.steps * (3 * (self.rows + held) + held) * forward_flops(card)


def forward_flops(card: Card) -> float:
    """One row through the model: 2 flop per parameter and token."""
    return 2.0 * card.parameters * card.tokens


def picture_flops(card: Card) -> float:
    """One picture with guidance: two rows through the model."""
    return 2 * forward_flops(card)


def predict(
    card: Card,
    params: BaseModel,
    *,
    pairs: int,
    keep: int,
    candidates: int,
    n: Mapping[str, int],
    told: int = 0,
    costs: Costs | None = None,
) -> Predicted:
    """Minutes, peak memory and trainable parameters from counts alone.

    `candidates`: prompts that the base model is screened on; `told`: pictures that it describes, each read with a few
    words about it, which is taken for one row as long as the picture. Drawn are both pictures of each pair, those to
    keep, the candidates, and what is scored twice; the untouched model also reads the pairs, with their captions and
    without. Depth and width follow from the parameters by parameters = 12 · depth · width² with width = 40 · depth
    (LlamaGen's own proportions, within a tenth). Tested to be within a factor of 2 of the runs that `Costs` names.
    """
    costs = costs or Costs()
    numbers = params.model_dump()
    work = Work.of(numbers, pairs)
    pictures = 2 * pairs + keep + candidates + 2 * sum(n.values())
    sampling_s = (pictures * picture_flops(card) + told * forward_flops(card)) / costs.sample_flops
    training_s = (
        work.training_flops(card) * _tokens_run(card, numbers) + 4 * pairs * forward_flops(card)
    ) / costs.train_flops
    depth = (card.parameters / (12 * 40**2)) ** (1 / 3)
    width = 40 * depth
    saved = (work.rows + work.kept + work.asked) * card.tokens * depth * width * costs.saved_floats_per_width
    memory = costs.fixed_gib + 4 * (2 * card.parameters + saved) / 2**30
    return Predicted(
        minutes=round((costs.startup_s + sampling_s + training_s) / 60, 1),
        memory_gib=round(memory, 1),
        trainable=round(_LORA_WIDTHS.get(str(numbers.get("part")), 0) * depth * width * numbers.get("rank", 0)),
    )


def _tokens_run(card: Card, numbers: Mapping[str, Any]) -> float:
    """Share of a picture's tokens that a training step runs: the first scales, if the method chooses scales."""
    chosen = (*numbers.get("erase_scales", ()), *numbers.get("preserve_scales", ()))
    return sum(card.scales[: max(chosen) + 1]) / card.tokens if chosen else 1.0


_LORA_WIDTHS = {"attention": 6, "ffn": 11, "all": 17}
"""Inputs + outputs of one layer's adapted matrices, in widths: qkv 1+3, out 1+1; ffn 3 × (1 + 8/3)."""


# -- files ------------------------------------------------------------------------------------------------------------


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe with its digest as JSON, atomically."""
    data = {"digest": recipe.digest, **recipe.model_dump(mode="json")}
    write_atomic(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; SpecError if anything was changed since it was compiled, or if it would not be compiled today."""
    document = read_json(path)
    data = dict(document.data) if isinstance(document.data, dict) else {}
    stated = data.pop("digest", None)
    recipe = parse(Recipe, Document(document.file, data))
    if stated != recipe.digest:
        fix = "compile it again, with --set for what should differ"
        raise SpecError(document.where(("digest",)), recipe.digest, repr(stated), fix)
    _check_separate(recipe, document.file)
    return recipe


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file."""
    schema = Recipe.model_json_schema(mode="serialization")
    properties = {"digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"}, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "properties": properties}
