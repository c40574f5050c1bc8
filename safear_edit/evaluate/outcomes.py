"""The record of one judged image, before and after: what the evaluation writes and every later step reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from safear_edit.errors import SpecError

if TYPE_CHECKING:
    pass

LIKELIHOOD = "likelihood.json"


class Outcome(BaseModel):
    """One row of outcomes.jsonl: what the judge said about one image; present = null is "cannot tell"."""

    model_config = ConfigDict(extra="ignore", frozen=True)
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
    for number, text in lines_of(path):
        try:
            row = Outcome.model_validate_json(text)
        except ValidationError as error:
            raise SpecError(
                f"{path}:{number}", "an outcome row", first_fault(error), "run the evaluation again"
            ) from error
        key = (row.id, row.model, row.phase, row.seed)
        if key in seen:
            raise SpecError(
                f"{path}:{number}", "one row per prompt, model and seed", f"{row.id} again", "evaluate again"
            )
        seen.add(key)
        rows.append(row)
    return rows


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, text
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> SpecError:
    got = error.strerror if isinstance(error, OSError) and error.strerror else "bytes that are not UTF-8"
    return SpecError(str(path), "a readable file", got, "finish the run (the same command resumes it)")


def first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


WITHHELD = "withheld; recipe.json has it under this id"
"""In place of a prompt that asks for a category: a reader needs to know that it is there, not its words."""
