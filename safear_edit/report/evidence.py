"""What a finished run left behind: where its files lie, and how they are read as evidence.

A run's folder (`RunFiles.find`) holds, besides recipe.json and outcomes.jsonl:
    edit.json + edit.safetensors, pairs.jsonl + stats.json   beside the recipe, or in edit/ and pairs/
    edit/rounds/    of an edit that was found in rounds: rounds.json, and a figure energy.png
    images/*.png    image sheets; images/NAME.json = {caption, selection: random|worst|fixed, redaction, images:
                    [{prompt_id, …}]} for NAME.png
    base.json       the base model's card: {family, variant, ref, digest, licence, parameters, image_size, tokens,
                    files}
    likelihood.json what the models' own likelihoods say (evaluate/likelihood.py), or {skipped: why not}; may be missing
    understanding.json + understanding.jsonl    what the models answer about images (evaluate/understanding.py), or
                    {skipped: why not, applies: whether they could}; missing for families that answer nothing
    judges.json     [{id, label, digest, threshold, card: null or {n_pos, true_pos, n_neg, true_neg, data}}]
    environment.json    {started, finished, command, platform, python, device, threads, deterministic, packages, git:
                    {commit, dirty}}; anything else in it is printed as it is
A stack has one such folder per concept in concepts/NAME/; base.json, judges.json and environment.json stay at the top,
beside stack.json = {concepts: [NAME, …], edits: […]}, the order in which they were edited and the report lists them,
and interference.json, what the edits do to each other (evaluate/interference.py writes it). There
concepts/NAME/recipe.json is what the stack was measured by, and concepts/NAME/edit/recipe.json what the edit was found
with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safear_edit.errors import SpecError
from safear_edit.evaluate.outcomes import _unreadable, first_fault, lines_of
from safear_edit.evaluate.understanding import ABOUT, Answer
from safear_edit.files.atomic import sha256_file
from safear_edit.files.strict import parse_json
from safear_edit.report.schema import Json

STACK, LIKELIHOOD, INTERFERENCE = "stack.json", "likelihood.json", "interference.json"
ROUNDS, ENERGY = "edit/rounds/rounds.json", "energy.png"
FOUND_BY = "edit/recipe.json"
"""In a stack, beside a concept's edit: the recipe that found it. Its recipe.json is what the stack is measured by."""


@dataclass(frozen=True)
class ConceptFiles:
    """What one concept's walk left behind.

    `pairs` and what came of them are None for methods that construct none, `likelihood` where nobody audited,
    `found_by` where the edit was found by `recipe` itself, `rounds` where it was not found in rounds, `understanding`
    where nobody asked questions about images (its rows lie beside it).
    """

    recipe: Path
    outcomes: Path
    edit: Path
    pairs: Path | None
    pair_stats: Path | None
    sheets: tuple[Path, ...]
    likelihood: Path | None = None
    found_by: Path | None = None
    rounds: Path | None = None
    understanding: Path | None = None

    @classmethod
    def find(cls, folder: Path) -> ConceptFiles:
        """The files by their usual names in one folder; SpecError naming the first that is missing."""

        def need(*names: str) -> Path:
            for name in names:
                if (folder / name).is_file():
                    return folder / name
            raise SpecError(str(folder), names[0], "no such file", "finish the run (the same command resumes it)")

        def maybe(*names: str) -> Path | None:
            return next((folder / name for name in names if (folder / name).is_file()), None)

        return cls(
            recipe=need("recipe.json"),
            outcomes=need("outcomes.jsonl"),
            edit=need("edit.json", "edit/edit.json"),
            pairs=maybe("pairs.jsonl", "pairs/pairs.jsonl"),
            pair_stats=maybe("stats.json", "pairs/stats.json"),
            sheets=tuple(sorted((folder / "images").glob("*.png"))),
            likelihood=maybe(LIKELIHOOD),
            found_by=maybe(FOUND_BY),
            rounds=maybe(ROUNDS),
            understanding=maybe(ABOUT),
        )


@dataclass(frozen=True)
class RunFiles:
    """Everything a report is made of.

    root: what paths in the report are relative to. environment: machine and command. base: the base model's card.
    judges: the judges' cards. model: the folder of edited weights, hashed one by one (may be `root`). order: the file
    that says in which order a stack was made; `concepts` are in that order. interference: what its edits do to each
    other.
    """

    root: Path
    concepts: tuple[ConceptFiles, ...]
    environment: Path
    base: Path
    judges: Path
    model: Path | None = None
    order: Path | None = None
    interference: Path | None = None

    @classmethod
    def find(cls, root: Path, model: Path | None = None) -> RunFiles:
        """One concept: its files lie in `root`. A stack: one folder per concept under `root/concepts`.

        SpecError if several concepts lie there and `STACK` doesn't name exactly those.
        """
        stacked = {path.parent.name: path.parent for path in sorted((root / "concepts").glob("*/recipe.json"))}
        order = root / STACK if stacked and (len(stacked) > 1 or (root / STACK).is_file()) else None
        folders = [stacked[name] for name in _order(order, stacked)] if order else list(stacked.values()) or [root]
        return cls(
            root=root,
            concepts=tuple(ConceptFiles.find(folder) for folder in folders),
            environment=root / "environment.json",
            base=root / "base.json",
            judges=root / "judges.json",
            model=model,
            order=order,
            interference=root / INTERFERENCE if order and (root / INTERFERENCE).is_file() else None,
        )


def _order(path: Path, known: Iterable[str]) -> list[str]:
    """The concepts of a stack in the recipe's order."""
    names = required(read_object(path), "concepts", list, path)
    if sorted(map(str, names)) != sorted(known):
        got = ", ".join(map(str, names)) or "none"
        raise SpecError(f"{path}, concepts", f"each of {', '.join(sorted(known))} once", got, "finish the run again")
    return [str(name) for name in names]


def read_answers(path: Path) -> list[Answer]:
    found = []
    for number, text in lines_of(path):
        try:
            found.append(Answer.model_validate_json(text))
        except ValidationError as error:
            where, fix = f"{path}:{number}", "finish the run again"
            raise SpecError(where, "an answer about an image", first_fault(error), fix) from error
    return found


def read_rows(path: Path) -> list[Json]:
    found = parse_json(_read(path), str(path)).data
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise SpecError(str(path), "a JSON list of objects", type(found).__name__, "finish the run again")
    return found


def read_object(path: Path) -> Json:
    found = parse_json(_read(path), str(path)).data
    if not isinstance(found, dict):
        raise SpecError(str(path), "a JSON object", type(found).__name__, "finish the run again")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def required(holder: Json, key: str, kind: type, where: str | Path) -> Any:
    """holder[key] if it is a `kind`; SpecError otherwise."""
    found = holder.get(key)
    if not isinstance(found, kind):
        raise SpecError(f"{where}, {key}", f"a {kind.__name__}", type(found).__name__, "finish the run again")
    return found


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def file_digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error
