"""Benign: fine-tune the edited model on images of other things, as any user may who wants a new style.

Erased concepts come back under harmless fine-tuning, too (Suriyakumar et al. 2024, https://arxiv.org/abs/2410.08074):
nobody has to want it. The training is that of `relearn`, without a single image of the concept. What can't come back
is what nobody asks for, so the control asks the same fine-tuned model with captions that don't name the concept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from safear_edit.attacks.base import Attack, AttackParams, Concept, Drawer, leaks
from safear_edit.attacks.counts import Count
from safear_edit.attacks.record import Leaks, Part
from safear_edit.attacks.relearn import Relearning, Way, tuned
from safear_edit.attacks.search import successes
from safear_edit.attacks.suites import Budget
from safear_edit.errors import UsageError
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import ModelFamily
from safear_edit.progress import Callback, silent
from safear_edit.registry import attack

CONTROL = "the same fine-tuned model, captions that don't name the concept"
NONE = "no images of other things to fine-tune on"


class Harmless(AttackParams):
    """Ways to learn; the steps are the budget's, the rest is as for `relearn`."""

    ways: tuple[Way, ...] = (Way("lora", 32, benign=True), Way("full", 32, benign=True))
    learning: Relearning = Field(Relearning.model_validate({}), description="batch, rank and learning rates")


@attack("benign", access="white-box")
class Benign(Attack):
    """Fine-tuning on 32 images of other things, of an adapter or of all weights."""

    Params: ClassVar[type[AttackParams]] = Harmless
    by_token = True
    params: Harmless

    def unfit(self, pair: Pair, concept: Concept) -> str:
        """Needs images of other things, and prompts that share nothing with them."""
        return super().unfit(pair, concept) or ("" if concept.known and concept.plain else concept.why or NONE)

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
        """As the base class says. The way that brought most back on a few images counts, on other seeds."""
        if concept.known is None:
            raise UsageError(self.name, "images of other things", concept.why or NONE, "give reference images")
        drawer = Drawer(self.name, concept, seed, store, progress)
        asked, plain = concept.known.scored[: budget.images], concept.captions[: budget.images]
        few = asked[: max(1, len(asked) // len(self.params.ways))]
        parts, seen = list[Part](), dict[Way, list[list[bool | None]]]()
        with pair.edited() as model:
            for way in self.params.ways:
                looks = {f"try, {way.name}": few, f"attack, {way.name}": asked, f"control, {way.name}": plain}
                tried, *rest = self._after(drawer, model, way, concept, budget, looks)
                parts.append(Part(name=way.name, count=Count.of(tried)))
                seen[way] = rest
        best, _ = max(zip(self.params.ways, parts, strict=True), key=lambda tried: tried[1].count.found)
        found, control = seen[best]
        looks = {"base": asked}
        (base,) = drawer.of_base(
            "base", [best.name, *asked], lambda: self._after(drawer, pair.base, best, concept, budget, looks)
        )
        return leaks(
            self,
            concept,
            drawer.cost(),
            edited=Count.of(found),
            base=Count.of(base),
            control=Count.of(control),
            control_is=CONTROL,
            least_base=concept.spec.gates.min_obeyed,
            searched=parts,
            best=[f"{text} [{best.name}]" for text in successes(asked, found)],
        )

    def _after(
        self,
        drawer: Drawer,
        model: ModelFamily,
        way: Way,
        concept: Concept,
        budget: Budget,
        looks: Mapping[str, Sequence[str]],
    ) -> list[list[bool | None]]:
        """What the model shows for these prompts, by what they are for, after the last step; it is left as found."""
        assert concept.plain is not None
        seen = list[list[bool | None]]()
        for step in tuned(model, way, concept.plain, self.params.learning, budget.steps, drawer.seed):
            drawer.progress(f"{self.name}: {way.name}, learn", step, budget.steps, "")
            if step == budget.steps:
                for purpose, prompts in looks.items():
                    show = f"{budget.steps} steps" if purpose.startswith("attack") else None
                    seen.append(drawer.look(model, prompts, purpose, show=show and f"{way.name}, {show}"))
        drawer.steps += budget.steps
        return seen
