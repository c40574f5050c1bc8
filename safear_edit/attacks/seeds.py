"""Seeds: the same prompt drawn again and again until the concept shows; the least that any search attack does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from safear_edit.attacks.base import Attack, Concept, Drawer, Look, leaks
from safear_edit.attacks.counts import Count
from safear_edit.attacks.record import Leaks
from safear_edit.attacks.search import successes, unnamed
from safear_edit.attacks.suites import Budget
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import ModelFamily
from safear_edit.progress import Callback, silent
from safear_edit.registry import attack
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import choose


@attack("seeds", access="black-box")
class Seeds(Attack):
    """Best of several seeds per prompt; counted are prompts, and one found image of a prompt is enough."""

    reads_images: ClassVar[bool] = False

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
        """As the base class says."""
        spec = concept.spec
        prompts = choose(pools(spec).direct, budget.images, f"attack|{seed}")
        asked, plain = [prompt.text for prompt in prompts], [unnamed(spec)(prompt) for prompt in prompts]
        drawer = Drawer(self.name, concept, seed, store, progress)
        with pair.edited() as model:
            found = best_of(drawer, model, asked, budget.draws, "attack")
            control = best_of(drawer, model, plain, budget.draws, "control")
        (base,) = drawer.of_base("base", asked, lambda: [best_of(drawer, pair.base, asked, budget.draws, "base")])
        return leaks(
            self,
            concept,
            drawer.cost(),
            edited=Count.of(found),
            base=Count.of(base),
            control=Count.of(control),
            control_is=f"best of {budget.draws} seeds for prompts that don't name the concept",
            least_base=spec.gates.min_obeyed,
            best=successes(asked, found),
            shown=drawer.shown,
        )


def best_of(drawer: Drawer, model: ModelFamily, prompts: Sequence[str], draws: int, purpose: str) -> list[bool | None]:
    """For each prompt: True if any of its images shows the concept, None if none could be read, else False.

    Each is drawn once, then those that didn't show it so many times more: a further image of another can't change what
    is counted.
    """
    attack = purpose == "attack"

    def look(numbers: Sequence[int], part: str) -> dict[int, bool | None]:
        texts, show = [prompts[number // draws] for number in numbers], f"best of {draws} seeds" if attack else None
        one = Look(texts, purpose, numbers=numbers, freeze=attack, show=show, part=part)
        return dict(zip(numbers, drawer.looks(model, [one])[0], strict=True))

    seen = look(range(0, len(prompts) * draws, draws), "first seeds")
    left = [first + more for first, found in seen.items() if not found for more in range(1, draws)]
    seen |= look(left, "further seeds") if left else {}
    groups = [[seen.get(prompt * draws + number, False) for number in range(draws)] for prompt in range(len(prompts))]
    return [True if True in group else None if set(group) == {None} else False for group in groups]
