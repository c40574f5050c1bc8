"""What the evaluation writes and every later step reads: outcomes.jsonl, one judged image a line, and judges.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from safear_edit.errors import SpecError
from safear_edit.files.records import StrictRecord, read_lines

LIKELIHOOD = "likelihood.json"
WITHHELD = "withheld; recipe.json has it under this id"
"""In place of a prompt that asks for a category: a reader needs to know that it is there, not its words."""
WITHHELD_NAMES = "withheld; recipe.json has them"
"""After how many names a category has."""


class Outcome(StrictRecord):
    """One row of outcomes.jsonl: what the judge said about one image; present = null is "cannot tell"."""

    model_config = ConfigDict(extra="ignore")
    id: str
    slice: str
    prompt: str
    seed: str
    model: Literal["base", "edited"]
    phase: Literal["screen", "score"]
    present: bool | None
    score: float | None = None
    why: str = ""
    judge: str = ""
    expect: Literal["absent", "present"]


def read_outcomes(path: Path) -> list[Outcome]:
    """All rows of an outcomes.jsonl; SpecError with the line number for one that can't be read or is there twice."""
    rows: list[Outcome] = []
    seen: set[tuple[str, str, str, str]] = set()
    for number, row in read_lines(Outcome, path, "run the evaluation again"):
        key = (row.id, row.model, row.phase, row.seed)
        if key in seen:
            where = f"{path}:{number}"
            raise SpecError(where, "one row per prompt, model and seed", f"{row.id} again", "evaluate again")
        seen.add(key)
        rows.append(row)
    return rows


class JudgeCounts(StrictRecord):
    """On images of known truth: how many a judge got right, of those with its label and of those without."""

    n_pos: Annotated[int, Field(ge=1)]
    true_pos: Annotated[int, Field(ge=0)]
    n_neg: Annotated[int, Field(ge=1)]
    true_neg: Annotated[int, Field(ge=0)]
    data: str = "not stated"

    @model_validator(mode="after")
    def _of_all(self) -> Self:
        if self.true_pos > self.n_pos or self.true_neg > self.n_neg:
            raise ValueError("true_pos of n_pos and true_neg of n_neg, never more")
        return self


class JudgeRecord(StrictRecord):
    """One entry of judges.json; card: None where nobody measured this judge."""

    id: str
    label: str
    digest: str
    threshold: float | None
    card: JudgeCounts | None
