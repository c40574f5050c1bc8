"""The race is fair: equal verdicts are demanded, the base's share is told apart, and sizes are the suite's."""

from __future__ import annotations

import math
import time

import pytest

from safear_edit import registry
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import load_base_recipe
from safear_edit.families.llamagen import LlamaGen
from safear_edit.gate.record import SUITES
from safear_edit.spec.spec import load_spec
from safear_edit.studies.gate_cost import Clock, Cost, Decision, sized, told, weaker


def decisions(first: str, second: str, seconds: float) -> tuple[Decision, Decision]:
    return Decision(1.0, first, 10, seconds, seconds / 2), Decision(0.2, second, 10, seconds, seconds / 2)


@pytest.mark.parametrize(
    ("likelihood", "images", "equal"),
    [
        (("PASS", "FAIL"), ("PASS", "FAIL"), True),
        (("PASS", "FAIL"), ("PASS", "PASS"), False),
        (("PASS", "PASS"), ("PASS", "PASS"), False),
    ],
)
def test_times_count_only_where_both_ways_say_the_same(
    likelihood: tuple[str, str], images: tuple[str, str], equal: bool
) -> None:
    found = Cost("ci", decisions(*likelihood, 2.0), decisions(*images, 40.0))
    assert found.equal is equal and math.isclose(found.ratio, 0.05) and math.isclose(found.ratio_without_base, 0.05)
    assert ("mean nothing" in " ".join(told(found))) is not equal


def test_the_clock_counts_by_stage() -> None:
    clock = Clock()
    for stage in ("score base", "score edited"):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
        clock(stage, 1, 1)
    assert clock.seconds["score base"] >= 0.02 and clock.without("base") == clock.seconds["score edited"]
    assert math.isclose(clock.total, sum(clock.seconds.values()))


def test_a_recipe_of_the_suites_size_keeps_its_first_prompts() -> None:
    spec, model = load_spec(registry.find_builtin("concepts", "picasso")), LlamaGen.pico(seed=0)
    recipe = compile_recipe(spec, model.card, load_base_recipe("vce"))
    small, suite = sized(recipe, SUITES["ci"]), SUITES["ci"]
    assert small.evaluate.n["direct"] == suite.erasure and small.evaluate.n["objects"] == suite.preserve
    assert small.evaluate.n["plain"] == recipe.evaluate.n["plain"] == 300
    assert small.slice("direct") == recipe.slice("direct")[: math.ceil(1.25 * suite.erasure)]


def test_a_weaker_stack_has_the_same_edits() -> None:
    from tests.release.test_released import stack_of

    stack = stack_of(LlamaGen.pico(seed=0))
    less = weaker(stack, 0.2)
    assert less.names == stack.names and [one.strength for one in less.layers] == [0.2, 0.1]
    assert less.digest != stack.digest
