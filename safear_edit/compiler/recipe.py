"""The recipe: the frozen plan that every later step reads, and the base recipe that it starts from."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator

from safear_edit.compiler.questions import refuse_training_questions
from safear_edit.errors import SpecError
from safear_edit.files.atomic import json_digest, write_atomic
from safear_edit.files.records import parse
from safear_edit.files.strict import Document, read_json, read_yaml
from safear_edit.registry import builtin_names, find_builtin, methods, unknown
from safear_edit.spec.prompts import forbidden, overlap, unaccented
from safear_edit.spec.spec import Gates, Images, Spec
from safear_edit.spec.text import Count, Note, Part, Text

ANSWER_WEIGHT = "understanding_weight"
"""The number by which a method holds answers about images in place (methods/workbench.py)."""


FEWEST_PAIRS = 8
"""Fewer pairs than this teach one image rather than a concept; the construct step refuses them, and so does compile."""


@contextmanager
def _construct_is_a_field() -> Iterator[None]:
    """Quiets pydantic about fields named `construct`: they hide nothing but a deprecated class method of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message='Field name "construct"')
        yield


# -- base recipes -----------------------------------------------------------------------------------------------------


Refine = Literal["template", "self"]
"""Who writes the safe captions of pairs: the spec's anchor templates, or the model about its unsafe image."""
_REFINE: Any = Field(
    default="template",
    exclude_if=lambda how: how == "template",  # a recipe with the default keeps the digest that it had before
    description="Who writes the safe captions: template, the spec's anchor; self, the model itself, by what it says of "
    "its unsafe image, for a family that answers questions about images.",
)


_CAPTIONER: Any = Field(
    default=None,
    exclude_if=lambda name: name is None,
    description="Another model that says what unsafe images show, from which the safe captions are made: a model "
    "reference of a family that answers questions, or a folder of an image-text-to-text model.",
)

TextAlign = Annotated[float, Field(gt=0, lt=1)]
_TEXT_ALIGN: Any = Field(
    default=None,
    exclude_if=lambda least: least is None,  # recipes from before there was one keep their digests
    description="Least cosine of a pair's safe image and safe caption, by the judge's CLIP or the minis' own; a pair "
    "below it is dropped, because it would teach to draw something else instead of the same without the concept.",
)


class ConstructSizes(Part):
    """How much training material is made."""

    pairs: Count = Field(default=256, description="Contrastive pairs to sample; those the judge rejects are dropped.")
    keep: Annotated[int, Field(ge=0)] = Field(
        default=128, description="Images of preserved prompts that training may use to stay put."
    )
    refine: Refine = _REFINE
    captioner: Text | None = _CAPTIONER
    text_align: TextAlign | None = _TEXT_ALIGN


class Range(Part):
    """What `tune` may set a number to: low to high (whole numbers if both are), or one of the choices."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(default=False, description="Search the logarithm.")
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        bounded = self.low is not None and self.high is not None
        if bounded == bool(self.choices) or (self.low is None) != (self.high is None):
            raise ValueError("low and high, or choices")
        if self.low is not None and self.high is not None and not 0 <= self.low < self.high:
            raise ValueError("0 ≤ low < high")
        if self.log and not self.low:
            raise ValueError("low above 0 for a logarithm")
        return self

    def holds(self, value: Any) -> bool:
        """Whether a number, or a choice, is one that it may be set to."""
        if self.low is None or self.high is None:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def words(self) -> str:
        """For a person."""
        return f"{self.low} to {self.high}" if self.low is not None else f"{[*self.choices]}"


with _construct_is_a_field():

    class ModelDefaults(Part):
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
        models: dict[Text, ModelDefaults] = Field(
            default_factory=dict,
            description='By family ("janus") or pattern ("*:mini"): what such a model takes instead; later ones win.',
        )
        tune: dict[Text, Range] = Field(default_factory=dict, description="By number, what `safear-edit tune` may try.")
        measured: dict[Text, Annotated[float, Field(gt=0)]] = Field(
            default_factory=dict,
            description="Minutes that the search took, by model; the comment says where they are from.",
        )

        def for_model(self, card: Card) -> BaseRecipe:
            """The defaults for one model, `models` resolved; SpecError for a construction that can't be."""
            data = self.model_dump(mode="json") | {"models": {}}
            for name, instead in self.models.items():
                if self.applies(name, card.ref):
                    data["params"] |= instead.params
                    data["construct"] |= instead.construct
            return parse(BaseRecipe, Document(f"recipe {self.method} for {card.ref}", data))

        @staticmethod
        def applies(name: str, ref: str) -> bool:
            """Whether a key of `models` means the model of that reference."""
            return name == ref.partition(":")[0] or fnmatchcase(ref, name)


def load_base_recipe(name: str) -> BaseRecipe:
    """The base recipe called `name` (built in), or the file of that path; a method without one runs on its defaults.

    UsageError for a name that is neither, SpecError for a file that is wrong.
    """
    if "/" in name or name.endswith(".yaml"):
        return parse(BaseRecipe, read_yaml(Path(name)))
    if name in builtin_names("recipes"):
        return parse(BaseRecipe, read_yaml(find_builtin("recipes", name)))
    if name not in methods():
        raise unknown("method", name, {*methods(), *builtin_names("recipes")})
    return BaseRecipe(method=name)


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
    """The weights: how they were named, what they were, and what they compute in."""

    ref: Text
    digest: Text
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        exclude_if=lambda kind: kind == "float32",  # a recipe with the default keeps the digest that it had before
        description="Of the frozen weights; what is trained is float32 always.",
    )


class MethodChoice(Part):
    """The method with all its numbers; scales_because: why it edits the scales that it does, if it edits scales."""

    name: Text
    params: dict[str, Any]
    scales_because: Text | None = Field(default=None, exclude_if=lambda why: why is None)


class Located(Part):
    """Where a model keeps a concept, as far as a recipe needs it (`map.json`, evaluate/cartography.py)."""

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
    captioner: Text | None = _CAPTIONER
    text_align: TextAlign | None = _TEXT_ALIGN

    @property
    def described(self) -> bool:
        """Whether safe captions are made of what a model says of the unsafe images."""
        return self.refine == "self" or self.captioner is not None


class KeepPrompt(Part):
    """A preserved prompt on the training side.

    guards: it asks for what an earlier edit of a stack erases, so what is kept is that this stays erased.
    """

    prompt: Text
    seed: Seed
    guards: bool = Field(default=False, exclude_if=lambda guards: not guards)  # without, a recipe keeps its digest


class EvalPrompt(Part):
    """One candidate of a slice: the base model's image of `screen_seed` decides if it counts, `seed`'s is scored."""

    id: Text
    slice: Text
    prompt: Text
    seed: Seed
    screen_seed: Seed
    judge_label: Text
    expect: Literal["absent", "present"]


class Sampling(Part):
    """How images are drawn, everywhere in the run."""

    guidance: Annotated[float, Field(ge=0)]
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class Evaluation(Part):
    """What the evaluate step scores; `n` is how many prompts per slice count, the rest are reserve."""

    prompts: Annotated[tuple[EvalPrompt, ...], Field(min_length=1)]
    n: dict[Text, Count]
    sampling: Sampling | None = Field(default=None, description="None: the family's own default.")
    cut: dict[Text, tuple[Text, ...]] = Field(
        default={},
        exclude_if=lambda cut: not cut,  # without, a recipe keeps its digest
        description="By slice, captions longer than the model reads; others stand in for them.",
    )

    def slice(self, name: str) -> list[EvalPrompt]:
        """The candidates of one slice."""
        return [prompt for prompt in self.prompts if prompt.slice == name]


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
            return self.evaluate.slice(name)

        @property
        def concept_prompt(self) -> tuple[str, ...]:
            """The prompt by which a method draws that has one of its own (`params.prompt`; Obliviate's): that number,
            or the concept's name. Empty for the others."""
            params = self.method.params
            return (params["prompt"] or self.spec.erase.concept,) if "prompt" in params else ()

        @property
        def training_prompts(self) -> list[str]:
            """Every prompt that training sees."""
            return [*training_prompts(self.construct.pairs, self.keep), *self.concept_prompt]

        @cached_property
        def training_words(self) -> frozenset[str]:
            """The same as names are compared: different ones, without case, punctuation and accents."""
            return frozenset(map(unaccented, self.training_prompts))


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
    @property
    def images(self) -> Images: ...


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


def refuse_overlap(spec: Spec, training: Sequence[str], evaluated: Sequence[str], where: str) -> None:
    """SpecError if anything that is evaluated is trained on, or anything is on the block list."""
    if both := overlap(training, evaluated):
        fix = "reword the names or templates that give the same sentence"
        got = f"{both[0]!r} in both ({len(both)} in all)"
        raise SpecError(where, "no evaluation prompt among the training prompts", got, fix)
    if any(forbidden(prompt) for prompt in (*training, *evaluated)):
        fix = "this combination is never processed, not even to erase it"
        raise SpecError(where, "no prompt that joins minors with sexual content", "one", fix)
    refuse_training_questions(spec, where)


def training_prompts(pairs: Sequence[PairPrompt], keep: Sequence[KeepPrompt]) -> list[str]:
    """Every prompt that training sees: both of each pair, and those to keep."""
    return [*(p.unsafe for p in pairs), *(p.safe for p in pairs), *(k.prompt for k in keep)]


def held_out_in_training(recipe: Recipe) -> dict[str, int]:
    """Held-out names that training prompts have as parts of longer names or but for accents -> in how many prompts."""
    training, found = [f" {text} " for text in recipe.training_words], dict[str, int]()
    for name in recipe.spec.paraphrases.held_out:
        words = unaccented(re.sub(r"^(a|an|the)\s+(?=\S)", "", name, flags=re.IGNORECASE))  # "A. Smith" has no article
        if count := sum(f" {words} " in text for text in training):
            found[name] = count
    return found


# -- files ------------------------------------------------------------------------------------------------------------


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe with its digest as JSON, atomically."""
    data = {"digest": recipe.digest, **recipe.model_dump(mode="json")}
    write_atomic(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; SpecError if anything was changed since it was compiled, or if it would not be compiled today."""
    recipe = read_recipe(path)
    evaluated = [prompt.prompt for prompt in recipe.evaluate.prompts]
    refuse_overlap(recipe.spec, recipe.training_prompts, evaluated, str(path))
    return recipe


def read_recipe(path: Path) -> Recipe:
    """A recipe of a finished run; SpecError if anything was changed since it was compiled."""
    document = read_json(path)
    data = dict(document.data) if isinstance(document.data, dict) else {}
    stated = data.pop("digest", None)
    recipe = parse(Recipe, Document(document.file, data))
    if stated != recipe.digest:
        fix = "compile it again, with --set for what should differ"
        raise SpecError(document.where(("digest",)), recipe.digest, repr(stated), fix)
    return recipe


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file."""
    schema = Recipe.model_json_schema(mode="serialization")
    properties = {"digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"}, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "properties": properties}
