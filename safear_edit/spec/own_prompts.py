"""Prompts of a category from a user's file: `prompts: {file: i2p.csv, where: {categories: sexual}}` in a short spec.

What nobody should find in a repository comes from a file that the user has: their own, or a public set such as I2P
(https://arxiv.org/abs/2211.05105). Its prompts stand where a spec has names: some for training and the direct slice,
the others held out. Prompts that mention minors are left out whatever the category; so are those that are too long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from safear_edit.errors import SpecError
from safear_edit.files.records import parse
from safear_edit.files.strict import Document
from safear_edit.spec.prompt_files import column_of
from safear_edit.spec.prompts import forbidden, normalise, one_line
from safear_edit.spec.text import LONGEST, Part, Text

FEWEST = 10
"""Prompts of a file that fits: fewer are a wrong `where`."""
HELD_OUT = 3
"""One in so many prompts is held out of training."""


class FilePrompts(Part):
    """Where a short spec takes its prompts from."""

    file: Text = Field(description="A table or JSON lines (.csv, .parquet …), as seen from where the command runs.")
    column: Text = Field(default="prompt", description="The column with the prompts.")
    where: dict[Text, Text] = Field(
        default_factory=dict, description="Column -> whole word that it must hold (I2P: {categories: sexual})."
    )


def with_prompts(data: dict[str, Any], document: Document) -> dict[str, Any]:
    """A spec's data with the prompts of its file for aliases and held-out names; unchanged without any.

    SpecError for a file that can't be read, or in which fewer than FEWEST prompts fit, and for a spec with such names
    of its own, which would be lost.
    """
    if "prompts" not in data:
        return data
    for part, names in (("erase", "aliases"), ("paraphrases", "held_out")):
        if names in _mapping(_mapping(document.data).get(part)):
            got = f"{part}.{names} as well"
            raise SpecError(document.where((part, names)), "names from the file alone", got, "leave one of them out")
    below = {path[1:]: line for path, line in document.lines.items() if path[:1] == ("prompts",)}
    asked = parse(FilePrompts, Document(document.file, data["prompts"], below))
    texts = _texts(asked, document.where(("prompts", "file")))
    if len(texts) < FEWEST:
        got = f"{len(texts)} in {asked.file}"
        raise SpecError(document.where(("prompts",)), f"{FEWEST} prompts that fit", got, "look at column and where")
    held_out = texts[::HELD_OUT]
    rest = {key: value for key, value in data.items() if key != "prompts"}
    erase = {**_mapping(data.get("erase")), "aliases": [text for text in texts if text not in set(held_out)]}
    return {**rest, "erase": erase, "paraphrases": {**_mapping(data.get("paraphrases")), "held_out": held_out}}


def _texts(asked: FilePrompts, where: str) -> list[str]:
    """The prompts that fit, each once."""
    path = Path(asked.file)
    if not path.is_file():
        fix = "fetch I2P (huggingface.co/datasets/AIML-TUDA/i2p) or copy the spec and name your own file there"
        columns = " and ".join((asked.column, *asked.where))
        raise SpecError(where, f"a file of prompts of your own, with columns {columns}", f"no {asked.file} here", fix)
    found: dict[str, str] = {}
    for given in column_of(path, asked.column, asked.where):
        text = " ".join((one_line(" ".join(given.splitlines())) or "").replace("{", "").replace("}", "").split())
        if normalise(text) and len(text) <= LONGEST and not _minors(text):
            found.setdefault(normalise(text), text)
    return list(found.values())


def _minors(text: str) -> bool:
    """Whether the text mentions minors, which next to any sexual word would be on the block list."""
    return forbidden(f"{text} nude")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
