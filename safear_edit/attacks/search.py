"""The search that black-box attacks share: try every option a little, then measure the best one on fresh prompts.

The best of many options looks good by chance; so what counts is measured on other prompts and seeds than the choice
was made on, and the control makes the same choice among the same options for prompts without the concept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import ClassVar, Literal, Self

from torch import nn

from safear_edit.attacks.base import Attack, Concept, Drawer, Look, leaks
from safear_edit.attacks.counts import Count
from safear_edit.attacks.record import Leaks, Part
from safear_edit.attacks.suites import Budget
from safear_edit.errors import UsageError
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import ModelFamily, Sampling
from safear_edit.progress import Callback, silent
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import Prompt, choose, fill
from safear_edit.spec.spec import Spec

CONTROL = "the same search with prompts that don't name the concept"
Ask = Callable[[Prompt], str]
Weights = Callable[[nn.Module], AbstractContextManager[object]]
Which = Literal["attack", "control", "base"]


@dataclass(frozen=True)
class Option:
    """One thing to try: how a prompt asks for the concept and how for the same without it, at which sampler settings,
    with which weights.

    of_edit: these change nothing on the base model.
    """

    name: str
    asks: Ask
    plain: Ask
    sampling: Sampling | None = None
    weights: Weights | None = None
    of_edit: bool = False


@dataclass(frozen=True)
class _Asked:
    """Prompts for one option, and what for: of the attack, of its control, or of the base model."""

    option: Option
    purpose: Which
    prompts: tuple[str, ...]

    @classmethod
    def of(cls, option: Option, purpose: Which, prompts: Sequence[Prompt]) -> Self:
        """As the option says it."""
        ask = option.plain if purpose == "control" else option.asks
        return cls(option, purpose, tuple(map(ask, prompts)))

    @property
    def drawn_with(self) -> tuple[Sampling | None, Weights | None]:
        """Settings and weights; what shares them is drawn together."""
        same = self.purpose == "base" and self.option.of_edit
        return self.option.sampling, None if same else self.option.weights


class OptionSearch(Attack):
    """An attack that is a list of options; the rest is `search`."""

    reads_images: ClassVar[bool] = False

    @abstractmethod
    def options(self, base: ModelFamily, concept: Concept) -> list[Option]:
        """What is tried; settings that a model states are the base model's."""

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
        return search(self, pair, concept, self.options(pair.base, concept), budget, seed, store, progress)


def search(
    attack: Attack,
    pair: Pair,
    concept: Concept,
    options: Sequence[Option],
    budget: Budget,
    seed: int,
    store: Path | None,
    progress: Callback,
) -> Leaks:
    """Leave out what the base model doesn't follow, search on the edited model, the same for the control, then the best
    options on the base model."""
    few, fresh = _prompts(concept.spec, budget.images, len(options), seed)
    drawer = Drawer(attack.name, concept, seed, store, progress)
    options, left_out = _followed(drawer, pair.base, options, few, concept.spec.gates.min_obeyed)
    both: tuple[Which, ...] = ("attack", "control")
    with pair.edited() as model:
        tried = _drawn(drawer, model, [_Asked.of(option, which, few) for option in options for which in both])
        counts = {which: [Count.of(seen) for seen in tried[number::2]] for number, which in enumerate(both)}
        best = {which: _best(options, counts[which]) for which in both}
        asked = [one for which in both for one in _shared(best[which], which, fresh)]
        measured = list(zip(asked, _drawn(drawer, model, asked, fresh=True), strict=True))
    seen = {which: [one for of, answers in measured if of.purpose == which for one in answers] for which in both}
    base = _drawn(drawer, pair.base, _shared(best["attack"], "base", fresh), fresh=True)
    texts = [f"{text} [{one.option.name}]" for one in asked if one.purpose == "attack" for text in one.prompts]
    return leaks(
        attack,
        concept,
        drawer.cost(),
        edited=Count.of(seen["attack"]),
        base=Count.of([one for answers in base for one in answers]),
        control=Count.of(seen["control"]),
        control_is=CONTROL,
        least_base=concept.spec.gates.min_obeyed,
        searched=_parts(options, counts["attack"]),
        left_out=left_out,
        best=successes(texts, seen["attack"]),
        shown=drawer.shown,
    )


def _followed(
    drawer: Drawer, base: ModelFamily, options: Sequence[Option], few: Sequence[Prompt], least: float
) -> tuple[Sequence[Option], tuple[Part, ...]]:
    """The options under which the base model still shows the concept, and the others: an attack that it doesn't follow
    says nothing about an edit. All of them, if there is no such option."""
    counts = [Count.of(seen) for seen in _drawn(drawer, base, [_Asked.of(one, "base", few) for one in options])]
    good = [count.found >= max(1.0, least * count.n) for count in counts]
    if not any(good):
        return options, ()
    kept = [option for option, ok in zip(options, good, strict=True) if ok]
    return kept, tuple(part for part, ok in zip(_parts(options, counts), good, strict=True) if not ok)


def _parts(options: Sequence[Option], counts: Sequence[Count]) -> tuple[Part, ...]:
    return tuple(Part(name=option.name, count=count) for option, count in zip(options, counts, strict=True))


def _best(options: Sequence[Option], counts: Sequence[Count]) -> list[Option]:
    """Those that found most: all of them, where none found anything."""
    most = max(count.found for count in counts)
    return [option for option, count in zip(options, counts, strict=True) if count.found == most]


def _shared(best: Sequence[Option], purpose: Which, fresh: Sequence[Prompt]) -> list[_Asked]:
    """Fresh prompts, shared out among options that were equally good."""
    return [_Asked.of(option, purpose, fresh[number :: len(best)]) for number, option in enumerate(best[: len(fresh)])]


def _drawn(
    drawer: Drawer, model: ModelFamily, asked: Sequence[_Asked], *, fresh: bool = False
) -> list[list[bool | None]]:
    """What is seen of each option's prompts. Options that differ in words alone are drawn together, and the control
    with the attack: a batch takes hardly longer than an image. fresh: what the attack shows on these is counted, so it
    is frozen and kept to be looked at."""
    found: dict[int, list[bool | None]] = {}
    alike: dict[tuple[Sampling | None, Weights | None], list[int]] = {}
    for number, one in enumerate(asked):
        alike.setdefault(one.drawn_with, []).append(number)
    for numbers in alike.values():
        purposes = dict.fromkeys(asked[number].purpose for number in numbers)
        order = [number for purpose in purposes for number in numbers if asked[number].purpose == purpose]
        for number, seen in zip(order, _alike(drawer, model, [asked[number] for number in order], fresh), strict=True):
            found[number] = seen
    return [found[number] for number in range(len(asked))]


def _alike(drawer: Drawer, model: ModelFamily, asked: Sequence[_Asked], fresh: bool) -> Iterator[list[bool | None]]:
    """The same for what is drawn with the same settings and weights, purpose by purpose."""
    groups = [list(group) for _, group in groupby(asked, key=lambda one: one.purpose)]
    looks = [_look(group, fresh) for group in groups]
    sampling, weights = asked[0].drawn_with

    def drawn() -> list[list[bool | None]]:
        with weights(model.net) if weights else nullcontext():
            return drawer.looks(model, looks, sampling=sampling)

    of_base = asked[0].purpose == "base"
    seen = drawer.of_base(looks[0].purpose, looks[0].prompts, drawn) if of_base else drawn()
    for group, answers in zip(groups, seen, strict=True):
        left = iter(answers)
        yield from (list(islice(left, len(one.prompts))) for one in group)


def _look(group: Sequence[_Asked], fresh: bool) -> Look:
    """Of one purpose; its name is that of its first option."""
    first, counted = group[0], fresh and group[0].purpose == "attack"
    purpose = f"{first.purpose}, fresh" if fresh else "try" if first.purpose == "base" else first.purpose
    return Look(
        [text for one in group for text in one.prompts],
        f"{purpose}, {first.option.name}",
        freeze=counted and first.option.weights is None,
        show=[one.option.name for one in group for _ in one.prompts] if counted else None,
    )


def _prompts(spec: Spec, images: int, options: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to choose an option with, and others to measure it with; a third of a small pool is for choosing.

    UsageError for fewer than two prompts.
    """
    pool = pools(spec).direct
    ordered = choose(pool, len(pool), f"attack|{seed}")
    if len(ordered) < 2:
        raise UsageError(
            f"attack on {spec.name}", "two prompts that no training saw", str(len(ordered)), "add subjects"
        )
    few = max(1, min(images // options, len(ordered) // 3))
    return ordered[:few], ordered[few : few + images]


def successes(prompts: Sequence[str], seen: Sequence[bool | None]) -> list[str]:
    """The prompts in whose images the concept was found."""
    return [text for text, present in zip(prompts, seen, strict=True) if present]


def named() -> Ask:
    """The prompt as the spec has it."""
    return lambda prompt: prompt.text


def unnamed(spec: Spec) -> Ask:
    """The same content without the concept: the spec's anchor."""
    anchors = spec.anchor.templates
    return lambda prompt: fill(anchors[prompt.template if len(anchors) > 1 else 0], subject=prompt.subject)
