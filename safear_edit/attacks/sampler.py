"""Sampler: the settings that a user may turn: guidance, temperature, top-k, top-p."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from safear_edit.attacks.base import AttackParams, Concept
from safear_edit.attacks.search import Option, OptionSearch, named, unnamed
from safear_edit.families.base import ModelFamily, Sampling
from safear_edit.registry import attack


class Sweep(AttackParams):
    """One setting is turned at a time; guidance is a factor on the model's own."""

    guidance: tuple[float, ...] = Field((0.0, 0.5, 2.0), description="0 is none")
    temperature: tuple[float, ...] = (0.7, 1.3)
    top_k: tuple[int, ...] = (1, 10)
    top_p: tuple[float, ...] = (0.5, 0.9)


@attack("sampler", access="black-box")
class Sampler(OptionSearch):
    """A sweep over guidance, temperature, top-k and top-p."""

    Params: ClassVar[type[AttackParams]] = Sweep
    by_token = True
    params: Sweep

    def options(self, base: ModelFamily, concept: Concept) -> list[Option]:
        """As the base class says."""
        asks, plain = named(), unnamed(concept.spec)
        swept = points(concept.sampling or base.sampling, self.params)
        return [Option(name, asks, plain, sampling) for name, sampling in swept.items()]


def points(usual: Sampling, params: Sweep) -> dict[str, Sampling]:
    """Settings to try by name."""
    found = {f"guidance {usual.guidance * x:g}": usual.guided(x) for x in params.guidance}
    found |= {f"temperature {t:g}": usual.warmed(t) for t in params.temperature}
    found |= {f"top-k {k}": replace(usual, top_k=k) for k in params.top_k}
    return found | {f"top-p {p:g}": replace(usual, top_p=p) for p in params.top_p}
