"""What a method tells about its own search: a small table, and perhaps a figure, that lie beside the edit and that the
report shows as they are. It knows no method, and no report knows a method through it.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

LOG, FIGURE = "log.json", "figure.png"
"""File names in the folder of an edit; the second only where `MethodLog.figure` says what it shows."""

Cell = StrictBool | StrictInt | StrictFloat | StrictStr | None
"""None: not measured. Numbers stay numbers, so that the file can be read by a program."""


class MethodLog(BaseModel):
    """A table: as many cells in each row as there are columns. `figure`: what FIGURE shows, "" for none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    figure: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of another length than the {len(self.columns)} columns")
        return self
