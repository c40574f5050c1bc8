"""What a decision costs, measured: likelihoods against images (`python -m safear_edit.studies gate_cost DIR`).

Both look at the model of a released folder, and at a weaker version of its edits as a planted regression, in one
process on one thread, at the size of the suite `ci`:

    likelihood  the reference images drawn and tokenised, the audit of base and edited model without what decides
                nothing (other classes), against the figures of the released model
    images    the prompts screened and drawn with the base, drawn with the edited model, judged, and compared with the
                release's outcomes

Their verdicts on both models must be equal before any time means anything. The ratio is of CPU seconds for the release
itself, everything from the beginning; beside it stands the ratio without the base's share in either (a program could
remember both; tokens of references are the base's). Cost on llamagen:mini, one core: under 8 minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from safear_edit.compiler.beside import changed
from safear_edit.compiler.compile import SCREENING_RESERVE
from safear_edit.compiler.recipe import Recipe
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import UsageError
from safear_edit.evaluate import likelihood
from safear_edit.evaluate.before_after import Pair
from safear_edit.evaluate.outcomes import read_outcomes
from safear_edit.evaluate.references import source_for, tokenised
from safear_edit.evaluate.sampled import evaluate, judges_of
from safear_edit.families.base import ModelFamily
from safear_edit.gate import rules
from safear_edit.gate.baseline import Baseline, accept
from safear_edit.gate.record import SUITES, Suite, read_folder, to_row
from safear_edit.release.released import Released

WEAKER = 0.2
"""Strength of the planted regression: most of the concept is back (examples/results, "strength")."""
TARGET = 0.1
"""A decision by likelihood may cost this share of the sampled one."""


class Clock:
    """CPU seconds by stage: a progress callback that counts the time since its last call to the stage that it names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def __call__(self, stage: str, done: int, total: int, info: str = "") -> None:
        now = time.process_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """All stages."""
        return sum(self.seconds.values())

    def without(self, word: str) -> float:
        """All stages whose name lacks `word`."""
        return sum(seconds for stage, seconds in self.seconds.items() if word not in stage)


@dataclass(frozen=True)
class Decision:
    """One way of deciding about one model."""

    strength: float
    verdict: str
    images: int
    seconds: float
    seconds_without_base: float


@dataclass(frozen=True)
class Cost:
    """Both ways, about the release and about its weaker version."""

    suite: str
    likelihood: tuple[Decision, Decision]
    images: tuple[Decision, Decision]

    @property
    def equal(self) -> bool:
        """Whether both ways say the same, and tell the release from the weaker version."""
        words = [tuple(one.verdict for one in way) for way in (self.likelihood, self.images)]
        return words[0] == words[1] and words[0][0] != words[0][1]

    @property
    def ratio(self) -> float:
        """Likelihood : images, everything from the beginning."""
        return self.likelihood[0].seconds / self.images[0].seconds

    @property
    def ratio_without_base(self) -> float:
        """The same without the base's share in either."""
        return self.likelihood[0].seconds_without_base / self.images[0].seconds_without_base


def sized(recipe: Recipe, suite: Suite) -> Recipe:
    """The recipe with the suite's sizes, and as many candidates of each slice as compiling would give them."""
    asked = {prompt.slice: prompt.expect for prompt in recipe.evaluate.prompts}
    n = {name: min(size, suite.erasure if asked[name] == "absent" else suite.preserve)
         for name, size in recipe.evaluate.n.items()}  # fmt: skip
    prompts = [p for name in n for p in recipe.slice(name)[: math.ceil(SCREENING_RESERVE * n[name])]]
    return changed(recipe, evaluate=recipe.evaluate.model_copy(update={"prompts": tuple(prompts), "n": n}))


def weaker(stack: Stack, strength: float) -> Stack:
    """Every edit of the stack at that share of its strength."""
    return Stack(tuple(Layer(one.name, one.edit, strength * one.strength) for one in stack.layers))


def by_images(
    model: ModelFamily, stack: Stack, recipe: Recipe, suite: Suite, baseline: Baseline, strength: float
) -> Decision:
    """Screen, draw, judge and compare, at the suite's size; the likelihood figures stay out of it."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        evaluate(model, weaker(stack, strength), sized(recipe, suite), Path(folder), progress=clock)
        outcomes = read_outcomes(Path(folder) / "outcomes.jsonl")
    clock("decide", 1, 1)
    scored = {row.id: row for row in outcomes if (row.phase, row.model) == ("score", "edited")}
    name, seen = recipe.spec.name, [row for row in baseline.record.rows if row.id in scored]
    rows = tuple(to_row(name, scored[row.id], row.member) for row in seen)
    judges = {judge.id: judge.digest for judge in judges_of(recipe).values()}
    record = replace(baseline.record, rows=rows, judges=judges, figures={})
    asked = replace(baseline, record=replace(baseline.record, figures={}))
    found = rules.check(record, {"release": asked})
    return Decision(strength, found.verdict, len(outcomes), clock.total, clock.without("base"))


def by_likelihood(model: ModelFamily, stack: Stack, recipe: Recipe, baseline: Baseline, strength: float) -> Decision:
    """Audit and compare; PASS or FAIL as `check` has it. UsageError where there are no reference images."""
    clock = Clock()
    source = source_for(recipe.spec, model.card)
    source = replace(source, references=tuple(replace(one, others={}) for one in source.references))
    pack = tokenised(model, source)
    clock("references of the base", 1, 1)
    audit = likelihood.audit(Pair(model, partial(_merged, model, weaker(stack, strength))), pack, progress=clock)
    figures = {f"{recipe.spec.name}/{name}": value for name, value in audit.figures.items()}
    record = replace(baseline.record, figures=figures, doubts=audit.doubts)
    found = rules.conclude([*rules.likelihood_findings(record, baseline)])
    images = len(pack.references) + len(pack.kept)
    return Decision(strength, found.verdict, images, clock.total, clock.without("base"))


@contextmanager
def _merged(model: ModelFamily, stack: Stack) -> Iterator[ModelFamily]:
    with stack.apply(model.net):
        yield model


def cost(folder: Path, suite: Suite) -> Cost:
    """Decide both ways. UsageError for a release of several concepts, or whose baseline holds no likelihood figures."""
    released, baseline = (
        Released.read(folder),
        accept(read_folder(folder), suite, "benchmark", despite="a benchmark binds nobody"),
    )
    if len(released.members) > 1:
        got = ", ".join(member.name for member in released.members)
        raise UsageError(str(folder), "a release of one concept", got, "take one that was applied alone")
    if not baseline.record.figures:
        fix = "take a release of a concept that the mini world draws"
        raise UsageError(str(folder), "a release with likelihood figures", "none that are in no doubt", fix)
    model, recipe, stack = released.base(), released.members[0].recipe, released.stack
    strengths = (1.0, WEAKER)
    quick = [by_likelihood(model, stack, recipe, baseline, strength) for strength in strengths]
    drawn = [by_images(model, stack, recipe, suite, baseline, strength) for strength in strengths]
    return Cost(suite.name, (quick[0], quick[1]), (drawn[0], drawn[1]))


def told(found: Cost) -> list[str]:
    """The result for a person."""
    lines = []
    for name, way in (("likelihood", found.likelihood), ("images", found.images)):
        said = ", ".join(f"{one.verdict} at strength {one.strength:g}" for one in way)
        first = way[0]
        spent = f"{first.seconds:.1f} s of one core, {first.seconds_without_base:.1f} s without the base"
        lines.append(f"{name:<11}{said}; {first.images} images, {spent}")
    if not found.equal:
        lines.append("the verdicts differ or tell nothing apart, so the times mean nothing")
    lines.append(f"a decision by likelihood costs {found.ratio:.3f} of the sampled one at `{found.suite}` "
                 f"({found.ratio_without_base:.3f} without the base in either; target {TARGET})")  # fmt: skip
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if the verdicts are equal and the target is reached, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies gate_cost", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", metavar="DIR", type=Path, help="a released folder of a mini")
    parser.add_argument("--suite", choices=[*SUITES], default="ci")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = cost(options.folder, SUITES[options.suite])
    more = {"equal": found.equal, "ratio": found.ratio, "ratio_without_base": found.ratio_without_base}
    print(json.dumps({**asdict(found), **more}, indent=1) if options.json else "\n".join(told(found)))
    return 0 if found.equal and found.ratio <= TARGET else 1
