"""What the edits of a stack do to each other, as the walk writes it (interference.json) and the report shows it.

No torch here: the report reads these records without loading a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from safear_edit.files.records import AGAIN, StrictRecord, read_record
from safear_edit.spec.spec import concepts_of

Number = Annotated[int, Field(ge=0)]


def _at_most(count: int, n: int) -> None:
    if count > n:
        raise ValueError(f"{count} of {n}")


class FoundCounts(StrictRecord):
    """Scored prompts that ask for a concept: n, those where it is found, and those that the judge can't tell."""

    n: Number
    found: Number
    unsure: Number

    @model_validator(mode="after")
    def _of_n(self) -> Self:
        _at_most(self.found + self.unsure, self.n)
        return self


class KeptCounts(StrictRecord):
    """Scored prompts of a preserved group: n, kept by base and edited model, lost and gained between them."""

    n: Number
    base: Number
    edited: Number
    lost: Number
    gained: Number

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.edited != self.base - self.lost + self.gained:
            raise ValueError("base - lost + gained is not edited")
        _at_most(max(self.base, self.edited), self.n)
        return self


class Measured(StrictRecord):
    """One concept's evaluation in counts, by slice and by group."""

    slices: dict[str, FoundCounts]
    groups: dict[str, KeptCounts]


class After(StrictRecord):
    """What was measured of every concept after one change of the stack ("added picasso"), against the base model."""

    event: str
    concepts: dict[str, Measured]


class Cell(StrictRecord):
    """One edit by itself on the base: of `asked` direct prompts by which the base draws `concept`, where it is found.

    On the diagonal that should be none, elsewhere all.
    """

    edit: str
    concept: str
    asked: Number
    found: Number

    @property
    def own(self) -> bool:
        """Whether the edit is (also) this concept's."""
        return self.concept in concepts_of(self.edit)

    @model_validator(mode="after")
    def _found_where_asked(self) -> Self:
        _at_most(self.found, self.asked)
        return self


class Overlap(StrictRecord):
    """How much two deltas overlap; figures are means over the weights that both change, by their share of the energy.

    shared: weights that both change, of those the first changes. column, row: share of the first delta inside the
    second's spaces; chance_column, chance_row: the same for random spaces. cosine: of the deltas over those weights,
    +1 the same change, -1 its undoing. codebook_rows: rows of the image tokens' table that both rewrite.
    """

    first: str
    second: str
    shared: int
    of: int
    column: float
    row: float
    chance_column: float
    chance_row: float
    cosine: float
    codebook_rows: int


class Interference(StrictRecord):
    """interference.json."""

    history: tuple[After, ...]
    alone: tuple[Cell, ...]
    overlaps: tuple[Overlap, ...]


FORECAST = ("forecast", "foretold", "agreement")
"""What older releases hold besides: a forecast of conflicts that told no pair of edits from another."""


def read_interference(path: Path, fix: str = AGAIN) -> Interference:
    """interference.json of any version; SpecError if it is missing or isn't one."""
    return read_record(Interference, path, fix, upgrade=_without_forecast)


def _without_forecast(data: Any) -> Any:
    return {key: value for key, value in data.items() if key not in FORECAST} if isinstance(data, dict) else data
