"""The search that black-box attacks share: try every option a little, then measure the best one on fresh prompts.

The best of many options looks good by chance; so what counts is measured on other prompts and seeds than the choice
was made on, and the control makes the same choice among the same options for prompts without the concept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from safear_edit.attacks.base import Attack, Concept, Drawer, leaks
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


@dataclass(frozen=True)
class Option:
    """One thing to try: how a prompt asks for the concept and how for the same without it, at which sampler settings,
    with which weights."""

    name: str
    asks: Ask
    plain: Ask
    sampling: Sampling | None = None
    weights: Callable[[nn.Module], AbstractContextManager[object]] | None = None


@dataclass(frozen=True)
class _Hunt:
    """What the options found, and what the best of them found on fresh prompts."""

    best: tuple[Option, ...]
    parts: tuple[Part, ...]
    texts: tuple[str, ...]
    seen: list[bool | None]


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
    with pair.edited() as model:
        found = _hunt(drawer, model, options, few, fresh, "attack")
        control = _hunt(drawer, model, options, few, fresh, "control")
    _, base = _measured(drawer, pair.base, found.best, fresh, "base")
    return leaks(
        attack,
        concept,
        drawer.cost(),
        edited=Count.of(found.seen),
        base=Count.of(base),
        control=Count.of(control.seen),
        control_is=CONTROL,
        least_base=concept.spec.gates.min_obeyed,
        searched=found.parts,
        left_out=left_out,
        best=successes(found.texts, found.seen),
        shown=drawer.shown,
    )


def _followed(
    drawer: Drawer, base: ModelFamily, options: Sequence[Option], few: Sequence[Prompt], least: float
) -> tuple[Sequence[Option], tuple[Part, ...]]:
    """The options under which the base model still shows the concept, and the others: an attack that it doesn't follow
    says nothing about an edit. All of them, if there is no such option."""
    asked = [(option, [option.asks(prompt) for prompt in few]) for option in options]
    counts = [Count.of(seen) for seen in _drawn(drawer, base, asked, "try")]
    good = [count.found >= max(1.0, least * count.n) for count in counts]
    if not any(good):
        return options, ()
    parts = [Part(name=option.name, count=count) for option, count in zip(options, counts, strict=True)]
    kept = [option for option, ok in zip(options, good, strict=True) if ok]
    return kept, tuple(part for part, ok in zip(parts, good, strict=True) if not ok)


def _hunt(
    drawer: Drawer,
    model: ModelFamily,
    options: Sequence[Option],
    few: Sequence[Prompt],
    fresh: Sequence[Prompt],
    which: Literal["attack", "control"],
) -> _Hunt:
    asked = [(option, [_ask(option, which)(prompt) for prompt in few]) for option in options]
    tried = _drawn(drawer, model, asked, which)
    parts = [Part(name=option.name, count=Count.of(seen)) for option, seen in zip(options, tried, strict=True)]
    most = max(part.count.found for part in parts)
    best = tuple(option for option, part in zip(options, parts, strict=True) if part.count.found == most)
    return _Hunt(best, tuple(parts), *_measured(drawer, model, best, fresh, which))


def _measured(
    drawer: Drawer,
    model: ModelFamily,
    best: Sequence[Option],
    fresh: Sequence[Prompt],
    which: Literal["attack", "control", "base"],
) -> tuple[tuple[str, ...], list[bool | None]]:
    """Fresh prompts, shared out among options that were equally good (all of them, where none found anything)."""
    asked = [
        (option, [_ask(option, which)(prompt) for prompt in fresh[number :: len(best)]])
        for number, option in enumerate(best[: len(fresh)])
    ]
    seen = _drawn(drawer, model, asked, f"{which}, fresh", counted=which == "attack")
    texts = [f"{text} [{option.name}]" for option, prompts in asked for text in prompts]
    return tuple(texts), [one for part in seen for one in part]


def _drawn(
    drawer: Drawer,
    model: ModelFamily,
    asked: Sequence[tuple[Option, list[str]]],
    purpose: str,
    *,
    counted: bool = False,
) -> list[list[bool | None]]:
    """What is seen of each option's prompts. Options that differ in words alone are drawn together: a batch takes
    hardly longer than an image. counted: what they show is frozen and kept to be looked at."""
    found = list[list[bool | None]]()
    for (sampling, weights), same in groupby(asked, key=lambda one: (one[0].sampling, one[0].weights)):
        group = list(same)
        texts = [text for _, prompts in group for text in prompts]
        how = [option.name for option, prompts in group for _ in prompts]
        with weights(model.net) if weights else nullcontext():
            seen = drawer.look(
                model,
                texts,
                f"{purpose}, {group[0][0].name}",
                sampling=sampling,
                freeze=counted and weights is None,
                show=how if counted else None,
            )
        ends = list(accumulate(len(prompts) for _, prompts in group))
        found += [seen[end - len(prompts) : end] for end, (_, prompts) in zip(ends, group, strict=True)]
    return found


def _ask(option: Option, which: Literal["attack", "control", "base"]) -> Ask:
    return option.plain if which == "control" else option.asks


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
