"""What the construct step says of its pairs on disk: stats.json and pairs.jsonl.

No torch here: the report reads these records without loading a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, with_config

from safear_edit.files.records import StrictRecord

Number = Annotated[int, Field(ge=0)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Captions:
    """How many safe captions are the model's own, and for each reason how many are the template's."""

    refined: Number
    fallbacks: dict[str, Number]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class PairStats:
    """How many pairs were made and kept, and for each reason how many were dropped; captions: who wrote the safe ones
    of all that were made, if the model was asked."""

    made: Number
    kept: Number
    reasons: dict[str, Number]
    captions: Captions | None = None


class PairRow(StrictRecord):
    """One line of pairs.jsonl. The seed is text, because it exceeds 2**53.

    said, why: where the model was asked, what it said of its unsafe image, and why the safe caption isn't made of that.
    """

    unsafe: str
    safe: str
    seed: Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]
    said: str | None = Field(default=None, exclude_if=lambda said: said is None)
    why: str | None = Field(default=None, exclude_if=lambda why: why is None)


class KeptRow(StrictRecord):
    """One line of keep.jsonl; guards: in a stack, whether the prompt holds an earlier edit in place."""

    prompt: str
    guards: bool | None = Field(default=None, exclude_if=lambda guards: guards is None)
