"""What a finished run left behind: where its files lie, and how they are read as evidence.

A run's folder (`RunFiles.find`) holds, each with the class that writes and reads it:
    recipe.json     Recipe                  what was fixed before the edit was made
    outcomes.jsonl  Outcome                 one judged image a line
    judges.json     JudgeRecord             who judged, and how often they are right
    edit/edit.json  EditRecord              beside the edit's tensors; edit/log.json: MethodLog, with figure.png
                                            (before: edit/rounds/rounds.json: Round, with energy.png)
    pairs/          PairRow, PairStats      pairs.jsonl and stats.json
    images/*.png    SheetNote               what NAME.json says of the image sheet NAME.png
    images/scored.jsonl  ScoredImage        where each scored image lies on the sheets scored-*.webp; may be missing
    base.json       BaseCard                the base model
    environment.json    Machine             machine, versions and command
    likelihood.json     Audit or Skipped    what the models' own likelihoods say; may be missing
    understanding.json + .jsonl     QuestionsRecord, Answer     what the models answer about images; may be missing
A stack has one such folder per concept in concepts/NAME/; base.json, judges.json and environment.json stay at the top,
beside stack.json (StackRecord), the order in which they were edited and the report lists them, and interference.json
(Interference), what the edits do to each other. There concepts/NAME/recipe.json is what the stack was measured by, and
concepts/NAME/edit/recipe.json what the edit was found with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from safear_edit.attacks import record
from safear_edit.compiler.plugins import Plugin
from safear_edit.compiler.recipe import Recipe, read_recipe
from safear_edit.editor.edit_record import EditRecord, StackRecord, refuse_other_recipe
from safear_edit.editor.method_log import LOG
from safear_edit.errors import SpecError
from safear_edit.evaluate.scored_images import INDEX, SHEETS
from safear_edit.evaluate.understanding import ABOUT
from safear_edit.files.atomic import sha256_file
from safear_edit.files.layout import FOUND_BY, INTERFERENCE, STACK
from safear_edit.files.records import AGAIN, StrictRecord, read_record
from safear_edit.report.schema import NOT_STATED, EncoderFile

LIKELIHOOD = "likelihood.json"
ROUNDS, ENERGY = "edit/rounds/rounds.json", "energy.png"
"""Of Safe-CB before there was a `MethodLog`, which has the same in EDIT_LOG and the figure beside it."""
EDIT_LOG = f"edit/{LOG}"
ATTACKS = record.FILE


@dataclass(frozen=True)
class ConceptFiles:
    """What one concept's walk left behind.

    `pairs` and what came of them are None for methods that construct none, `likelihood` where nobody audited,
    `found_by` where the edit was found by `recipe` itself, `rounds` and `log` where the method told
    nothing of its search, `understanding`
    where nobody asked questions about images (its rows lie beside it), `scored` where the scored images were not kept.
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
    log: Path | None = None
    understanding: Path | None = None
    attacks: Path | None = None
    scored: Path | None = None

    def sheet_names(self) -> tuple[str, ...]:
        """Names of the sheets of scored images, beside their index."""
        return tuple(sorted(path.name for path in self.scored.parent.glob(SHEETS))) if self.scored else ()

    def told_of_edit(self, recipe: Recipe) -> EditRecord:
        """edit.json; TrustError if it names another recipe than found it: `recipe`, which lies here, or in a stack that
        beside the edit."""
        told = read_record(EditRecord, self.edit)
        found = read_recipe(self.found_by) if self.found_by and told.recipes else recipe
        refuse_other_recipe(told.recipes, found.digest, self.recipe.parent)
        return told

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
            log=maybe(EDIT_LOG),
            understanding=maybe(ABOUT),
            attacks=maybe(ATTACKS),
            scored=maybe(f"images/{INDEX}"),
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
    names = read_record(StackRecord, path).concepts
    if sorted(names) != sorted(known):
        got = ", ".join(names)
        raise SpecError(f"{path}, concepts", f"each of {', '.join(sorted(known))} once", got, AGAIN)
    return list(names)


def file_digest(path: Path) -> str:
    """sha256 of a file of the run; SpecError if it can't be read."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise SpecError(str(path), "a readable file", error.strerror or "an error", AGAIN) from error


# -- records of the whole run -----------------------------------------------------------------------------------------


class BaseCard(StrictRecord):
    """base.json: what the base model is; the same fields as a family's ModelCard. Older cards lack some."""

    family: str
    variant: str
    image_size: int | None = None
    tokens: int | None = None
    choices: int | None = None
    scales: tuple[int, ...] = ()
    parameters: int | None = None
    licence: str = NOT_STATED
    files: dict[str, str] = Field(default_factory=dict)
    depth: int = 1
    passes: int = Field(1, exclude_if=lambda passes: passes == 1)  # as in cards from before there was one
    ref: str | None = None
    digest: str = NOT_STATED


class SourceCommit(StrictRecord):
    """The commit of a source checkout, and whether its files differ from it."""

    commit: str
    dirty: bool = False


class Signer(StrictRecord):
    """The key that a run was given: sha256 of its public half, and whether nobody can have kept the private one."""

    key: str
    thrown_away: bool


class Machine(StrictRecord):
    """environment.json: what a second person needs to repeat the run. What else is in it is printed as it is."""

    model_config = ConfigDict(extra="allow")
    started: str = NOT_STATED
    finished: str = NOT_STATED
    command: str = NOT_STATED
    platform: str = NOT_STATED
    python: str = NOT_STATED
    device: str = NOT_STATED
    threads: str | int = NOT_STATED
    deterministic: str | bool = NOT_STATED
    git: SourceCommit | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    plugins: tuple[Plugin, ...] = ()
    text_encoder: EncoderFile | None = None
    signer: Signer | Literal["none"] | None = None
