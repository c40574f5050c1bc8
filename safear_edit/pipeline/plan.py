"""What a walk would do: `plan`, which ends after compile. Nothing is drawn or trained, nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from safear_edit import registry
from safear_edit.compiler import checks
from safear_edit.compiler.compile import cut_lines, recipe_warnings
from safear_edit.compiler.cost import LARGE, Forecast, Pace, Speed, declared, forecast, probed
from safear_edit.compiler.recipe import Recipe
from safear_edit.compiler.sources import reconstructed
from safear_edit.families.reference import ModelRef, images_of
from safear_edit.pipeline.check import able_to_pass, powers, undecidable
from safear_edit.pipeline.order import Order, compile_recipes, model_of, params_of, read_sources, source_path
from safear_edit.pipeline.state import StackState, loaded
from safear_edit.spec.draft import draft_lines
from safear_edit.spec.spec import Images, Spec, Understanding

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@dataclass(frozen=True)
class Plan:
    """A compiled recipe and what a person should know before running it; forecast: what it takes on the device at
    hand; reconstructed: its method's numbers that nobody published; answers: whether the model answers questions."""

    recipe: Recipe
    model: str
    forecast: Forecast
    warnings: tuple[str, ...] = ()
    reconstructed: tuple[str, ...] = ()
    answers: bool = False

    def facts(self) -> list[tuple[str, str]]:
        """What will happen, for a person: (name, value) lines."""
        recipe = self.recipe
        numbers = recipe.method.params
        images, prompts = sum(recipe.evaluate.n.values()), len(recipe.evaluate.prompts)
        scored = ", ".join(f"{name} {n}" for name, n in recipe.evaluate.n.items())
        decisive = recipe.gates.deciding(understanding=self.answers)
        gates = ", ".join(f"{name} {value:g}" for name, value in decisive.items())
        return [
            ("concept", f"{recipe.spec.erase.concept} ({recipe.spec.kind}), spec {recipe.spec.name}"),
            ("model", f"{self.model}, digest {recipe.model.digest[:12]}, {recipe.model.dtype}"),
            ("method", recipe.method.name),
            *((("scales", recipe.method.scales_because),) if recipe.method.scales_because else ()),
            *(
                (("understanding", f"{recipe.spec.understanding.concept}, for a model that answers questions"),)
                if recipe.spec.understanding != Understanding()
                else ()
            ),
            ("numbers", ", ".join(f"{name} {value}" for name, value in numbers.items())),
            *((("reconstructed", ", ".join(self.reconstructed)),) if self.reconstructed else ()),
            ("pairs", f"{len(recipe.construct.pairs)}, and {len(recipe.keep)} images to keep"),
            *(
                (("safe captions", f"by {recipe.construct.captioner or 'the model itself'}"),)
                if recipe.construct.described
                else ()
            ),
            *(
                (("pairs left out", f"whose safe image has a CLIP cosine below {least:g} to its caption"),)
                if (least := recipe.construct.text_align) is not None
                else ()
            ),
            ("steps", str(numbers.get("steps", "the method's own"))),
            ("trainable parameters", f"{recipe.predicted.trainable:,}"),
            ("predicted", str(self.forecast)),
            ("evaluation images", f"{images} of each model, of {prompts} candidates: {scored}"),
            ("gates", gates),
            ("a good edit passes", powers(recipe)),
            ("judge", f"{recipe.spec.judge.use}, {recipe.spec.judge.label}"),
            ("recipe", recipe.digest),
        ]

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        return {**dict(self.facts()), "digest": self.recipe.digest, "warnings": list(self.warnings)}


def plan(orders: Sequence[Order], *, joint: bool = False) -> list[Plan]:
    """What `apply` would do, one plan per concept.

    The plans of a joint edit each name all of its steps, and their own share of its minutes.
    """
    state, recipes = compiled(orders, joint=joint)
    speed = probed(state.model)
    return [planned(state.model, order, recipe, speed) for order, recipe in zip(orders, recipes, strict=True)]


def planned(model: ModelFamily, order: Order, recipe: Recipe, speed: Speed | Pace) -> Plan:
    """What a person should know of a recipe before running it."""
    about = forecast_of(recipe, model, speed), noted(recipe, model), reconstructed_for(order, model)
    return Plan(recipe, model.card.ref, *about, answers="understanding" in model.provides)


def compiled(orders: Sequence[Order], *, joint: bool = False) -> tuple[StackState, list[Recipe]]:
    """What the orders compile to on the model that the first one names; SpecError for a spec that can't pass."""
    sources = read_sources(orders)
    ref = ModelRef.parse(model_of(orders[0], sources[0]))
    for order in orders:
        path = source_path(order.source)
        if path.suffix != ".json" and not order.overrides:  # whoever sets other numbers tries something, and is warned
            able_to_pass(path, images_of(ref.family, ref.variant))
    state = loaded(orders[0], sources[0])
    return state, compile_recipes(state.model, state.ref, state.recipes, orders, sources, joint=joint)


def reconstructed_for(order: Order, model: ModelFamily) -> tuple[str, ...]:
    """Numbers that no paper and no released code gives for a published size; a mini's are all measured here, and what a
    person set or a finished recipe says isn't traced."""
    if order.source.endswith(".json") or model.weight_bytes < LARGE:
        return ()
    given = {override.partition("=")[0].removeprefix("params.") for override in order.overrides}
    return tuple(name for name in reconstructed(order.method, model.card.ref) if name not in given)


def forecast_of(recipe: Recipe, model: ModelFamily, speed: Speed | Pace) -> Forecast:
    """What the run takes on the model's device."""
    params, pairs = params_of(recipe), len(recipe.construct.pairs)
    work = declared(registry.lookup("methods", recipe.method.name).load()(), params, model.card, pairs)
    trainable, images = recipe.predicted.trainable, images_drawn(recipe) + work.drawn
    found = forecast(model, params, work, trainable, images, pairs, speed)
    if isinstance(speed, Pace):  # beside a mini the libraries count most, which its recipe's own figure holds
        others = (model.hands - 1) * model.batch_bytes
        return replace(found, stages={"in all": round(recipe.predicted.memory_gib * 2**30) + others})
    return found


def images_drawn(recipe: Recipe) -> int:
    """Every image of a run but what its search draws: both of each pair, those to keep, candidates that are screened,
    and what is scored twice."""
    screened = sum(prompt.expect == "absent" for prompt in recipe.evaluate.prompts)
    return 2 * len(recipe.construct.pairs) + len(recipe.keep) + screened + 2 * sum(recipe.evaluate.n.values())


def noted(recipe: Recipe, model: ModelFamily) -> tuple[str, ...]:
    """What a person should know of a recipe on its model, one line each."""
    from safear_edit.evaluate.sampled import sampling_line
    from safear_edit.families.sentences import similarity

    return (
        *recipe_warnings(recipe, similarity()),
        *cut_lines(recipe, model.caption_lengths),
        *undecidable(recipe),
        *draft_lines(recipe.spec),
        *judge_lines(recipe.spec, model.card.images),
        *filter(None, [sampling_line(recipe, model)]),
    )


def judge_lines(spec: Spec, images: Images) -> list[str]:
    """What the judges lack on this machine, and that nobody has measured the concept's on such images."""
    found = []
    for reader, _ in checks.readers(spec.judge):
        kind = checks.reader_class(reader)
        if kind and (lacking := kind.missing(reader.options)):
            found.append(f"judge {reader.use}: {lacking}")
    if images == "real" and spec.judge.card is None:
        fix = "`safear-edit judge calibrate` makes its card from labelled ones"
        found.append(f"judge {spec.judge.use}: how often it errs on these images was never measured; {fix}")
    return found
