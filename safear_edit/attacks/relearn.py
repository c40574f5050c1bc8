"""Relearn: fine-tune the edited model on a few images of the concept, and see how soon it is back.

Erasures come back under a little fine-tuning (Suriyakumar et al. 2024, https://arxiv.org/abs/2410.08074). A model that
can learn anything can learn the concept anew, so what counts is whether it comes back sooner than a style comes that
the model never knew, taught with as many images and steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from safear_edit.attacks.base import AttackParams, Concept, Drawer, NeedsImages, Target, leaks
from safear_edit.attacks.checkpoint import Checkpoint
from safear_edit.attacks.counts import Count
from safear_edit.attacks.curve import curve, marks_within
from safear_edit.attacks.decoder_swap import beside_layers
from safear_edit.attacks.record import UNREADABLE, Leaks
from safear_edit.attacks.search import successes
from safear_edit.attacks.suites import Budget
from safear_edit.editor.fine_tune import Tuning, adapter_weights, borrowed, inject
from safear_edit.editor.gradients import gradients
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import ModelFamily
from safear_edit.families.tokens import token_logprobs
from safear_edit.progress import Callback, silent
from safear_edit.registry import attack

TEACHING = "the same steps on as many images teach a style that no model knows"
BENIGN = "the same steps on as many images of other things; they don't tell recovery from teaching"
Seen = Mapping[int, list[bool | None]]


@dataclass(frozen=True)
class Way:
    """What changes, on how many images, of the concept or (benign) of other things."""

    weights: Literal["lora", "full"]
    images: int
    benign: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        what = "LoRA" if self.weights == "lora" else "all weights"
        return f"{what}, {self.images} {'other ' if self.benign else ''}images"


class Relearning(AttackParams):
    """Ways to learn; the steps are the budget's."""

    ways: tuple[Way, ...] = (Way("lora", 8), Way("lora", 32), Way("full", 8))
    batch: int = Field(8, ge=1, description="images per step")
    rank: int = Field(8, ge=1, description="of the adapter")
    lora_rate: float = Field(1e-3, gt=0, description="AdamW's learning rate for an adapter")
    full_rate: float = Field(2e-4, gt=0, description="AdamW's learning rate for the weights themselves")


@attack("relearn", access="white-box")
class Relearn(NeedsImages):
    """Fine-tuning on 8 or 32 images of the concept; the control teaches a new style as long."""

    Params: ClassVar[type[AttackParams]] = Relearning
    by_token = True
    params: Relearning

    def run(
        self,
        pair: Pair,
        concept: Concept,
        budget: Budget,
        seed: int,
        *,
        store: Path | None = None,
        progress: Callback = silent,
    ) -> Leaks:
        """As the base class says. The way that brought most back at the earlier marks gives the figure at the last; the
        control chooses among its own ways by the same rule, and where they tell nothing apart takes the attack's.

        Until 2026-11-30 the control took the attack's way always; by their curves its figure would be the same in all
        14 rows of examples/results.
        A killed one goes on after the last mark that it reached.
        """
        known = self.known(concept)
        drawer = Drawer(self.name, concept, seed, store, progress)
        with pair.edited() as model:
            found = self._curves(drawer, model, known, concept.plain, budget, "attack")
            control, control_is = self._control(drawer, model, concept, budget)
        last = budget.steps
        best = _best(found, last)
        learn = partial(self._learnt, drawer, pair.base, best, known, concept.plain, budget, "base", {last})
        (base,) = drawer.of_base("base", [best.name], lambda: [learn()[last]])
        taught = control[_best(control, last, best)] if control else None
        return leaks(
            self,
            concept,
            drawer.cost(),
            edited=Count.of(found[best][last]),
            base=Count.of(base),
            control=Count.of(taught[last]) if taught else None,
            control_is=control_is,
            least_base=concept.spec.gates.min_obeyed,
            best=[f"{t} [{best.name}]" for t in successes(known.scored[: budget.images], found[best][last])],
            curves=[curve(way.name, seen, control.get(way)) for way, seen in found.items()],
        )

    def _control(
        self, drawer: Drawer, model: ModelFamily, concept: Concept, budget: Budget
    ) -> tuple[Mapping[Way, Seen], str]:
        """Teaching; where there is no unknown style, or its judge can't read it: images of other things."""
        if concept.novel:
            taught = self._curves(drawer, model, concept.novel, concept.plain, budget, "control")
            looks = [seen for marks in taught.values() for seen in marks.values()]
            if sum(seen.count(None) for seen in looks) <= UNREADABLE * sum(map(len, looks)):
                return taught, TEACHING
        if concept.known is None or concept.plain is None:
            return {}, "no style that no model knows, and no images of other things"
        benign = [Way(way.weights, way.images, benign=True) for way in self.params.ways]
        return {
            way: self._learnt(drawer, model, other, concept.known, concept.plain, budget, "other images")
            for way, other in zip(self.params.ways, benign, strict=True)
        }, BENIGN

    def _curves(
        self, drawer: Drawer, model: ModelFamily, aim: Target, plain: Target | None, budget: Budget, purpose: str
    ) -> dict[Way, Seen]:
        """What each way brought about at each mark; before the first step all are one model, drawn once."""
        start = drawer.look(model, aim.scored[: budget.images], f"{purpose}, 0 steps", judge=aim.judge)
        ways = [way for way in self.params.ways if plain or not way.benign]
        return {way: {0: start, **self._learnt(drawer, model, way, aim, plain, budget, purpose)} for way in ways}

    def _learnt(
        self,
        drawer: Drawer,
        model: ModelFamily,
        way: Way,
        aim: Target,
        plain: Target | None,
        budget: Budget,
        purpose: str,
        marks: set[int] | None = None,
    ) -> dict[int, list[bool | None]]:
        """Images of held-out prompts that name the aim, at marks after the first; the model is left as found."""
        shown = plain if way.benign and plain else aim
        stage, texts = f"{purpose}, {way.name}", aim.scored[: budget.images]
        checkpoint = drawer.checkpoint(stage, (marks or set(marks_within(budget.steps))) - {0})
        for step in tuned(model, way, shown, self.params, budget.steps, drawer.seed, checkpoint):
            drawer.progress(f"{self.name}: {stage}, learn", step, budget.steps, "")
            if step in checkpoint.marks:
                at, show = f"{stage}, {step} steps", purpose == "attack" and step == budget.steps
                checkpoint.seen[step] = drawer.look(
                    model, texts, at, judge=aim.judge, show=f"{way.name}, {step} steps" if show else None
                )
        drawer.steps += budget.steps
        return checkpoint.seen


def _best(found: Mapping[Way, Seen], last: int, first: Way | None = None) -> Way:
    """The way that brought most about at the marks before the last; of several the one asked `first`."""
    early = {way: sum(seen.count(True) for at, seen in marks.items() if at < last) for way, marks in found.items()}
    return max(found, key=lambda way: (early[way], way == first))


def tuned(
    model: ModelFamily,
    way: Way,
    shown: Target,
    params: Relearning,
    steps: int,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> Iterator[int]:
    """Yields after every step, with the model as it is then; afterwards it is as found, also after an error.

    AdamW on minus the teacher-forced log-likelihood of the images under the captions that name them. Weights of half
    precision are learnt as float32 copies and rounded after every step: in bfloat16 most steps would be lost, and in
    float16 Adam's second moments are 0. checkpoint: begins after its last look, and is written after each; a finished
    one yields nothing.
    """
    if checkpoint and checkpoint.finished:
        return
    generator, pool = torch.Generator().manual_seed(seed), min(way.images, len(shown.ids))
    condition = model.condition(shown.asked[:pool])
    with _trainable(model, way, params, seed) as weights:
        learnt = [weight if weight.dtype == torch.float32 else nn.Parameter(weight.float()) for weight in weights]
        optimiser = torch.optim.AdamW(learnt, params.lora_rate if way.weights == "lora" else params.full_rate)
        if checkpoint:
            checkpoint.go_on(learnt, optimiser, generator)
            _write(weights, learnt)
        for step in range(checkpoint.step if checkpoint else 0, steps):
            rows = torch.randperm(pool, generator=generator)[: params.batch]
            optimiser.zero_grad()
            for part in rows.split(model.learnt_together):
                ids = shown.ids[part].to(model.device)
                logprobs = token_logprobs(model.logits(condition.rows(part), ids), ids)
                loss = -logprobs.mean() * (len(part) / len(rows))
                for weight, gradient in zip(learnt, gradients(model.net, loss, weights), strict=True):
                    weight.grad = gradient.float() if weight.grad is None else weight.grad + gradient.float()
            optimiser.step()
            _write(weights, learnt)
            yield step + 1
            if checkpoint and step + 1 in checkpoint.seen:
                checkpoint.write(learnt, optimiser, generator)


@torch.no_grad()
def _write(weights: Sequence[nn.Parameter], learnt: Sequence[nn.Parameter]) -> None:
    for weight, value in zip(weights, learnt, strict=True):
        if weight is not value:
            weight.copy_(value)


@contextmanager
def _trainable(model: ModelFamily, way: Way, params: Relearning, seed: int) -> Iterator[Sequence[nn.Parameter]]:
    """An adapter on every linear layer that an edit may change, or these layers' own weights and what else the edits
    changed, as Safe-CB's table."""
    modules = model.editable("all")
    full = way.weights == "full"
    edited = {id(weight) for weight, _ in beside_layers(model.net, modules)}
    names = [f"{name}.weight" for name in modules]
    names += [name for name, weight in model.net.named_parameters() if id(weight) in edited]
    with borrowed(model.net, names if full else ()):
        if full:
            model.net.requires_grad_(False)
            weights = [model.net.get_parameter(name) for name in names]
            for weight in weights:
                weight.requires_grad_()
        else:
            layers = inject(
                model.net, modules, Tuning.model_validate({"rank": params.rank, "alpha": params.rank}), seed
            )
            weights = list(adapter_weights(layers).values())
        yield weights
