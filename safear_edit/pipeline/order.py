"""What a person asks for, and what it compiles to: `plan` ends here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safear_edit import registry
from safear_edit.compiler.compile import compile_recipe, cut_lines, recipe_warnings
from safear_edit.compiler.recipe import BaseRecipe, Recipe, load_base_recipe, load_recipe, read_map
from safear_edit.errors import UsageError
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.pipeline.check import able_to_pass, powers, undecidable
from safear_edit.spec.prompts import Similarity
from safear_edit.spec.spec import Spec, Understanding, load_spec

if TYPE_CHECKING:
    from torch import Tensor

    from safear_edit.families.base import ModelFamily


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
            ("pairs", f"{len(recipe.construct.pairs)}, and {len(recipe.keep)} images to keep"),
            *((("safe captions", "the model's own"),) if recipe.construct.refine == "self" else ()),
            ("steps", str(numbers.get("steps", "the method's own"))),
            ("trainable parameters", f"{cost.trainable:,}"),
            ("predicted", f"{cost.minutes:g} minutes and {cost.memory_gib:g} GiB on two CPU cores"),
            (
                "evaluation prompts",
                f"{sum(recipe.evaluate.n.values())} scored of {len(recipe.evaluate.prompts)}: {scored}",
            ),
            ("gates", gates),
            ("a good edit passes", powers(recipe)),
            ("judge", f"{recipe.spec.judge.use}, {recipe.spec.judge.label}"),
            *(("conflicts with", conflict) for conflict in self.conflicts),
            ("recipe", recipe.digest),
        ]

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        more = {"warnings": list(self.warnings), "conflicts": list(self.conflicts)}
        facts = {name: value for name, value in self.facts() if name != "conflicts with"}
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
    path = source_path(order.source)
    if path.suffix != ".json" and not order.overrides:  # whoever sets other numbers tries something, and is warned
        able_to_pass(path)
    model, recipe = compiled(order)
    return Plan(recipe, model.card.ref, noted(recipe, model))


def noted(recipe: Recipe, model: ModelFamily) -> tuple[str, ...]:
    """What a person should know of a recipe on its model, one line each."""
    return (*recipe_warnings(recipe, similarity()), *cut_lines(recipe, model.caption_lengths), *undecidable(recipe))


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
    ref = ModelRef.parse(text)
    model = load_model(text, resolve_device(order.device))
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
        method = registry.lookup("methods", asked.base.method).load()()
        return compile_recipe(
            asked.spec,
            model.card,
            asked.base,
            seed=order.seed,
            overrides=order.overrides,
            sampling=model.sampling,
            model_ref=ref,
            located=read_map(order.map) if order.map else None,
            trainable=partial(method.trainable, model=model) if hasattr(method, "trainable") else None,
            lengths=model.caption_lengths,
        )
    if model.card.digest != asked.model.digest:
        fix = "give the recipe's model, or compile the spec for this one"
        got, wanted = f"{model.card.digest[:12]}…", f"weights {asked.model.digest[:12]}… ({asked.model.ref})"
        raise UsageError(str(source_path(order.source)), wanted, got, fix)
    return asked


def source_path(source: str) -> Path:
    """The file behind what was given: a path, or the name of a built-in concept."""
    if "/" in source or Path(source).suffix in (".yaml", ".yml", ".json") or Path(source).exists():
        return Path(source)
    return registry.find_builtin("concepts", source)


def similarity() -> Similarity:
    """Cosine of MiniLM sentence vectors, (a, b); a sentence is encoded once, however often it is compared."""
    import torch

    from safear_edit.families.text import minilm

    known: dict[str, Tensor] = {}

    def vectors(texts: list[str]) -> Tensor:
        new = sorted(set(texts) - known.keys(), key=len)
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            known.update(zip(part, minilm().vectors(part), strict=True))
        return torch.stack([known[text] for text in texts])

    return lambda a, b: vectors(a) @ vectors(b).T
