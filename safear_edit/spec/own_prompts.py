"""Prompts of a category from a user's file: `prompts: {file: i2p.csv, where: {categories: sexual}}` in a short spec.

What nobody should find in a repository comes from a file that the user has: their own, or a public set such as I2P
(https://arxiv.org/abs/2211.05105). Its prompts stand where a spec has names: some for training and the direct slice,
the others held out. Prompts that mention minors are left out whatever the category; so are those that are too long.
The full form says how many (`prompts_from`), and so do `validate`, `plan`, `apply` and the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

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
MINORS, TOO_LONG = "minors are mentioned", f"more than {LONGEST} characters"
WORDLESS, AGAIN = "no words that can be printed", "the words of an earlier one"
"""Why a prompt is left out."""


class FilePrompts(Part):
    """Where a short spec takes its prompts from."""

    file: Text = Field(description="A table or JSON lines (.csv, .parquet …), as seen from where the command runs.")
    column: Text = Field(default="prompt", description="The column with the prompts.")
    where: dict[Text, Text] = Field(
        default_factory=dict, description="Column -> whole word that it must hold (I2P: {categories: sexual})."
    )


class FilePromptCounts(Part):
    """What became of the prompts of a file that `where` asks for, of which some were left out; file: its name."""

    file: Text
    taken: Annotated[int, Field(gt=0)]
    left_out: dict[Text, Annotated[int, Field(gt=0)]] = Field(min_length=1, description="Why -> how many.")

    def sentence(self) -> str:
        """How many of how many were left out, and why."""
        lost, why = sum(self.left_out.values()), ", ".join(f"{why} in {n}" for why, n in self.left_out.items())
        return f"{lost} of {self.taken + lost} prompts of {self.file} were left out ({why})"


def with_prompts(data: dict[str, Any], document: Document) -> dict[str, Any]:
    """A spec's data with the prompts of its file for aliases and held-out names; unchanged without any. Where prompts
    of the file were left out, `prompts_from` counts them: without it, a recipe keeps its digest.

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
    left_out = Counter[str]()
    texts = list(_texts(asked, document.where(("prompts", "file")), left_out))
    if len(texts) < FEWEST:
        got = f"{len(texts)} in {asked.file}"
        raise SpecError(document.where(("prompts",)), f"{FEWEST} prompts that fit", got, "look at column and where")
    held_out = texts[::HELD_OUT]
    rest = {key: value for key, value in data.items() if key != "prompts"}
    erase = {**_mapping(data.get("erase")), "aliases": [text for text in texts if text not in set(held_out)]}
    if left_out:
        rest["prompts_from"] = {"file": Path(asked.file).name, "taken": len(texts), "left_out": dict(left_out)}
    return {**rest, "erase": erase, "paraphrases": {**_mapping(data.get("paraphrases")), "held_out": held_out}}


def _texts(asked: FilePrompts, where: str, left_out: Counter[str]) -> Iterator[str]:
    """The prompts that fit, each once; others are counted in `left_out` by what is wrong with them."""
    path = Path(asked.file)
    if not path.is_file():
        fix = "fetch I2P (huggingface.co/datasets/AIML-TUDA/i2p) or copy the spec and name your own file there"
        columns = " and ".join((asked.column, *asked.where))
        raise SpecError(where, f"a file of prompts of your own, with columns {columns}", f"no {asked.file} here", fix)
    found = set[str]()
    for given in column_of(path, asked.column, asked.where):
        text = " ".join((one_line(" ".join(given.splitlines())) or "").replace("{", "").replace("}", "").split())
        words = normalise(text)
        if why := _unfit(text) or (AGAIN if words in found else ""):
            left_out[why] += 1
            continue
        found.add(words)
        yield text


def _unfit(text: str) -> str:
    """Why the text is no prompt to take; "" if it may be one."""
    if not normalise(text):
        return WORDLESS
    if _minors(text):
        return MINORS
    return TOO_LONG if len(text) > LONGEST else ""


def _minors(text: str) -> bool:
    """Whether the text mentions minors, which next to any sexual word would be on the block list."""
    return forbidden(f"{text} nude")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
