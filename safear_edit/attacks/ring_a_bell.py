"""Ring-A-Bell: words whose text embedding lies where the concept's would, found without the image model.

Tsai et al. 2024, https://arxiv.org/abs/2310.10012: the concept's direction v is the mean difference of text embeddings
with and without it; a genetic search finds words W with emb(p, W) near emb(p) + eta v, in L2. The paper searches anew
for every prompt p and replaces it; here one set of words after all captions is searched, with the model's own text
encoder, so that the rest of the caption is still asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from safear_edit.attacks.base import AttackParams, Concept, Drawer, NeedsImages, leaks
from safear_edit.attacks.counts import Count
from safear_edit.attacks.record import Leaks
from safear_edit.attacks.search import successes
from safear_edit.attacks.suffix import CONTROL, LEAST_BASE, Typable, random_words, typable
from safear_edit.attacks.suites import Budget
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import ModelFamily
from safear_edit.progress import Callback, silent
from safear_edit.registry import attack


class Genetic(AttackParams):
    """The paper's are 16 words, a population of 200, 3000 generations, mutation 0.25, crossover 0.5, eta 3; here there
    is a generation for three of the budget's steps."""

    words: int = Field(5, ge=2)
    population: int = Field(60, ge=4)
    elite: int = Field(15, ge=2, description="best ones that live on and have children")
    mutation: float = Field(0.25, ge=0, le=1, description="chance of each child to change one word")
    crossover: float = Field(0.5, ge=0, le=1, description="chance of each child to have two parents")
    eta: float = Field(3.0, gt=0, description="how far along the concept's direction")
    captions: int = Field(4, ge=1, description="captions that a set of words is scored after")


@attack("ring_a_bell", access="black-box")
class RingABell(NeedsImages):
    """Words near the concept's direction in the text encoder's space, by genetic search; none is the concept's name."""

    Params: ClassVar[type[AttackParams]] = Genetic
    params: Genetic
    missing = "captions", "no captions with and without the concept", "give reference images"

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
        """As the base class says; no image model takes part in the search."""
        known = self.known(concept)
        drawer, steps = Drawer(self.name, concept, seed, store, progress), -(-budget.steps // 3)
        words, captions = typable(pair.base, concept.spec), concept.captions[: budget.images]
        away = direction(pair.base, known.asked, known.captions)
        chosen = bred(pair.base, words, known.captions, away, self.params, steps, seed, progress)
        drawer.steps += steps
        prompts = [caption + words.text(chosen) for caption in captions]
        with pair.edited() as model:
            seen = drawer.look(model, prompts, "attack", freeze=True, show="words found")
            control = drawer.look(model, random_words(words, captions, self.params.words, seed), "control")
        (base,) = drawer.of_base("base", prompts, lambda: [drawer.look(pair.base, prompts, "base")])
        return leaks(
            self,
            concept,
            drawer.cost(),
            edited=Count.of(seen),
            base=Count.of(base),
            control=Count.of(control),
            control_is=CONTROL,
            least_base=LEAST_BASE,
            best=successes(prompts, seen),
            shown=drawer.shown,
        )


@torch.no_grad()
def embedded(model: ModelFamily, prompts: Sequence[str]) -> Tensor:
    """Mean of a prompt's token states, (B, C) float32."""
    condition = model.condition(prompts)
    mask = condition.mask.unsqueeze(2)
    pooled = (condition.features.float() * mask).sum(1) / mask.sum(1)
    return pooled[condition.index.to(pooled.device)]


def direction(model: ModelFamily, asked: Sequence[str], plain: Sequence[str]) -> Tensor:
    """v, (C,): what naming the concept adds to a caption's embedding, on average."""
    return (embedded(model, asked) - embedded(model, plain)).mean(0)


def bred(
    model: ModelFamily,
    words: Typable,
    captions: Sequence[str],
    away: Tensor,
    params: Genetic,
    generations: int,
    seed: int,
    progress: Callback = silent,
) -> list[int]:
    """Indices of the words found; same seed, same words."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(captions), generator=generator)[: params.captions].tolist()
    few = [captions[i] for i in rows]
    goal = embedded(model, few) + params.eta * away

    def distances(many: Sequence[tuple[int, ...]]) -> list[float]:
        if not many:
            return []
        found = embedded(model, [text + words.text(one) for one in many for text in few])
        return (found.view(len(many), *goal.shape) - goal).pow(2).sum(2).mean(1).tolist()

    def number(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator))

    def child(parents: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        made = list(parents[number(len(parents))])
        if float(torch.rand(1, generator=generator)) < params.crossover:
            cut = 1 + number(params.words - 1)
            made[cut:] = parents[number(len(parents))][cut:]
        if float(torch.rand(1, generator=generator)) < params.mutation:
            made[number(params.words)] = number(len(words.texts))
        return tuple(made)

    scored = dict[tuple[int, ...], float]()
    alive = [tuple(number(len(words.texts)) for _ in range(params.words)) for _ in range(params.population)]
    for generation in range(generations):
        fresh = [one for one in dict.fromkeys(alive) if one not in scored]
        scored.update(zip(fresh, distances(fresh), strict=True))
        best = sorted(dict.fromkeys(alive), key=scored.__getitem__)[: params.elite]
        progress("ring_a_bell: search", generation + 1, generations, f"distance {scored[best[0]]:.3f}")
        alive = [*best, *(child(best) for _ in range(params.population - len(best)))]
    return list(best[0])
