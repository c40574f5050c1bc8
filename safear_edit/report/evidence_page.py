"""evidence.html: every scored image of base and edited model, side by side, with what the judge said of it.

The numbers of report.html lead here: a link names concept, slice, member or judgement after "#", and a small script
shows those pairs only, with their count. Without the script every pair is there. The page fetches nothing; the content
security policy lets run that one script and no other. Prompts that ask for a category are withheld, and their images
were reduced to blocks when they were kept (evaluate/scored_images.py).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from safear_edit.compiler.recipe import read_recipe
from safear_edit.evaluate.outcomes import WITHHELD, Outcome, read_outcomes
from safear_edit.evaluate.scored_images import COLUMNS
from safear_edit.report.criteria import CATEGORY, by_slice, reason
from safear_edit.report.evidence import ConceptFiles, RunFiles
from safear_edit.report.html import TEMPLATES, environment
from safear_edit.report.schema import Report
from safear_edit.report.tiles import Sheets, webp_uri

SIDE = 120
"""Pixels at which a tile is shown; small ones are enlarged without smoothing."""
WORDS = {True: "found", False: "not found", None: "cannot tell"}
CHANGES, SAME = {"absent": ("erased", "appeared"), "present": ("lost", "gained")}, "same"
"""What is expected → the words for found before only, and for found after only."""


@dataclass(frozen=True)
class Shown:
    """One tile: which sheet, where on it, and what the judge said."""

    sheet: str
    column: int
    row: int
    hidden: bool
    judged: str
    said: str
    score: float | None


@dataclass(frozen=True)
class ShownPair:
    """One prompt and seed on both models; change: one of CHANGES, by what the judge looked for."""

    concept: str
    slice: str
    member: str
    id: str
    prompt: str
    seed: str
    change: str
    base: Shown
    edited: Shown


def evidence_page(report: Report, run: RunFiles) -> str:
    """The page; SpecError if images or outcomes are not those that the report counts."""
    pairs, styles = list[ShownPair](), list[str]()
    side = SIDE
    for number, (files, concept) in enumerate(zip(run.concepts, report.concepts, strict=True)):
        sheets = Sheets.of(files.scored)
        if sheets is None:
            continue
        side = min(SIDE, sheets.side) if sheets.side > SIDE else SIDE
        pairs += _pairs(files, sheets, concept.name, f"s{number}")
        styles += [
            f".s{number}-{i}{{background-image:url({webp_uri((sheets.folder / name).read_bytes())})}}"
            for i, name in enumerate(sheets.names)
        ]
    script = (TEMPLATES / "evidence.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("evidence.html")
        .render(
            r=report,
            pairs=pairs,
            sheets=Markup("\n".join(styles)),  # base64 and names of our own
            script=Markup(script),
            script_hash=allowed,
            columns=COLUMNS,
            side=side,
            changes=[word for words in CHANGES.values() for word in words] + [SAME],
        )
    )


def _pairs(files: ConceptFiles, sheets: Sheets, concept: str, prefix: str) -> Iterator[ShownPair]:
    """Every prompt that both models were scored on, in the recipe's order."""
    recipe = read_recipe(files.recipe)
    for part in by_slice(read_outcomes(files.outcomes), recipe, files.outcomes):
        hide = recipe.spec.kind == CATEGORY and part.expect == "absent"
        for asked in part.asked:
            if asked.base is None or asked.edited is None:
                continue
            yield ShownPair(
                concept=concept,
                slice=part.key,
                member=asked.label if part.expect == "present" else "",
                id=asked.id,
                prompt=WITHHELD if hide else asked.prompt,
                seed=asked.seed,
                change=_change(asked.base, asked.edited),
                base=_shown(sheets, asked.base, prefix),
                edited=_shown(sheets, asked.edited, prefix),
            )


def _shown(sheets: Sheets, row: Outcome, prefix: str) -> Shown:
    tile = sheets.tile(row.id, row.model)
    line, column = divmod(tile.place, COLUMNS)
    judged = WORDS[row.present]
    return Shown(f"{prefix}-{tile.sheet}", column, line, tile.hidden, judged, reason(row), row.score)


def _change(base: Outcome, edited: Outcome) -> str:
    if (base.present is True) == (edited.present is True):
        return SAME
    went, came = CHANGES[base.expect]
    return went if base.present is True else came
