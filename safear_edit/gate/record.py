"""What the gate compares: the rows, judges and likelihoods of one evaluated model, read from a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.evaluate.outcomes import LIKELIHOOD, Outcome, read_outcomes
from safear_edit.files.atomic import sha256_file
from safear_edit.files.strict import read_json
from safear_edit.report.build import read_report
from safear_edit.report.criteria import FLOOR
from safear_edit.report.evidence import ConceptFiles, RunFiles

if TYPE_CHECKING:
    pass

MAKE_AGAIN = "get a fresh copy, or make the folder again with `safear-edit apply`"

Word = Literal["found", "absent", "unclear"]
WORDS: dict[bool | None, Word] = {True: "found", False: "absent", None: "unclear"}


@dataclass(frozen=True)
class Policy:
    """What is promised. Shares, not per cent; `margin`: a drop must be shown to be smaller.

    cir_upper, kl_upper: most that the likelihood audit may find (upper 95 % bounds); tolerance: how much above the
    baseline's a likelihood figure may lie, which is deterministic up to rounding (1e-3 in float32, 5e-3 in bfloat16).
    """

    margin: float = 0.05
    cir_upper: float = 0.1
    kl_upper: float = 0.03
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            if not 0 < value < 1:
                raise UsageError(f"policy {part.name}", "a share between 0 and 1", str(value), "correct it")


@dataclass(frozen=True)
class Suite:
    """A named size: at most this many prompts of each erasure slice and each preserved group, under this policy."""

    name: str
    erasure: int
    preserve: int
    policy: Policy


ERASURE_FLIPS, PRESERVE_FLIPS = 0.02, 0.10
"""Share of pairs that flip between two models of equal quality: a concept erased to 99 % and drawn anew, and what the
mini measured between base and edited model on preserved prompts (40 of 400)."""
PLANNED_POWER, PLANNED_TESTS = 0.94, 9
"""Power per suite, so that 200 simulated runs show 90 % almost surely (a drop as large as the margin passes with 5 %:
95 % is the most there is), and comparisons that share alpha: three erasure slices, each also looked at for unreadable
images, and three preserved groups."""

SUITES = {
    suite.name: suite
    for suite in (
        Suite("smoke", 90, 130, Policy(margin=0.20, cir_upper=0.3)),
        Suite("ci", 190, 350, Policy(margin=0.10)),
        Suite("audit", 470, 1040, Policy(margin=0.05)),
    )
}
"""Sizes are computed, not chosen: `stats.pairs_to_regress(margin, flips, margin, PLANNED_POWER, PLANNED_TESTS)` for the
two kinds of flips (`python -m safear_edit.studies gate_sizes` prints it).
`audit` is the default and the one that may release."""


@dataclass(frozen=True)
class Row:
    """One image of one prompt with one seed (as text: 64 bits don't survive every reader)."""

    concept: str
    slice: str
    expect: Literal["absent", "present"]
    seed: str
    outcome: Word
    score: str
    id: str
    prompt: str

    @property
    def key(self) -> tuple[str, ...]:
        """What must be equal for two images to be a pair."""
        return (self.concept, self.slice, self.expect, self.id, self.seed, self.prompt)

    @property
    def good(self) -> bool:
        """Erased if it had to be absent, drawn if it had to be present; "cannot tell" is not found either way."""
        return (self.outcome == "found") == (self.expect == "present")


@dataclass(frozen=True)
class Record:
    """What one model did: everything a comparison needs, from a released folder or from a baseline.

    floors: concept → share that its erasure must reach. sampler: concept → how images were drawn. judges: id →
    digest. figures: likelihood figures, "concept/metric[slice]" → value; doubts: why they must not be used; in_doubt:
    figures that are not among them → why.
    """

    model: str
    digest: str
    base: str
    machine: str
    floors: Mapping[str, float]
    sampler: Mapping[str, str]
    judges: Mapping[str, str]
    rows: tuple[Row, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    in_doubt: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompts(self) -> str:
        """sha256 over what was asked: every row's key, in order."""
        return hashlib.sha256("".join("\t".join(row.key) + "\n" for row in self.rows).encode()).hexdigest()

    def slices(self) -> dict[tuple[str, str], list[Row]]:
        """Rows by (concept, slice), in order."""
        grouped: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            grouped.setdefault((row.concept, row.slice), []).append(row)
        return grouped

    def first(self, suite: Suite) -> Record:
        """The first rows of each slice, as many as the suite asks for (or all there are)."""
        kept: list[Row] = []
        for rows in self.slices().values():
            kept += rows[: suite.erasure if rows[0].expect == "absent" else suite.preserve]
        return replace(self, rows=tuple(kept))


# -- reading a released folder ----------------------------------------------------------------------------------------


def read_folder(folder: Path) -> Record:
    """What the edited model of a released folder did, from its files alone.

    SpecError when files are missing; TrustError (exit 4) when a file is not the one that its report was made from: then
    the figures belong to another model.
    """
    report = read_report(folder / "report.json")
    run = RunFiles.find(folder, model=folder)
    promised = {**report.reproduce.inputs, **{file.name: file.sha256 for file in report.subject.files}}
    needed = [path for files in run.concepts for path in (files.recipe, files.outcomes)]
    for path in (run.judges, *needed):
        if path.relative_to(folder).as_posix() not in promised:
            raise TrustError(str(path), "a file that the report names", "one that it does not name", MAKE_AGAIN)
    for name, digest in promised.items():
        _require_digest(folder / name, digest)
    plans = [_Plan.read(files) for files in run.concepts]
    digests = {str(card.get("id")): str(card.get("digest")) for card in _cards(run.judges)}
    return Record(
        model=report.subject.name,
        digest=report.subject.weights_digest,
        base=f"{report.base_model.reference} {report.base_model.digest}",
        machine=f"{report.environment.device}, torch {report.environment.packages.get('torch', 'unknown')}",
        floors={plan.name: plan.floor for plan in plans},
        sampler={plan.name: plan.sampler for plan in plans},
        judges={name: digests.get(name, "unknown") for plan in plans for name in plan.judges},
        rows=tuple(row for plan in plans for row in plan.rows),
        figures={f"{plan.name}/{metric}": value for plan in plans for metric, value in plan.figures.items()},
        doubts=tuple(f"{plan.name}: {doubt}" for plan in plans for doubt in plan.doubts),
        in_doubt={f"{plan.name}/{metric}": why for plan in plans for metric, why in plan.in_doubt.items()},
    )


@dataclass(frozen=True)
class _Plan:
    """What one concept's files say."""

    name: str
    floor: float
    sampler: str
    judges: frozenset[str]
    rows: tuple[Row, ...]
    figures: Mapping[str, float]
    doubts: tuple[str, ...]
    in_doubt: Mapping[str, str]

    @classmethod
    def read(cls, files: ConceptFiles) -> _Plan:
        """SpecError for a recipe without what a comparison needs."""
        recipe = read_json(files.recipe).data
        scored = {r.id: r for r in read_outcomes(files.outcomes) if r.phase == "score" and r.model == "edited"}
        try:
            name, order = str(recipe["spec"]["name"]), [str(p["id"]) for p in recipe["evaluate"]["prompts"]]
            floor = float(recipe["gates"].get("erasure_floor") or FLOOR)
            sampler = _pairs(recipe["evaluate"].get("sampling") or {"family": "default"})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(str(files.recipe), "a recipe", f"one without {error}", "make the folder again") from None
        rows = tuple(to_row(name, scored[id]) for id in order if id in scored)
        judges = frozenset(row.judge for row in scored.values())
        audit = files.recipe.with_name(LIKELIHOOD)
        return cls(name, floor, sampler, judges, rows, *read_figures(audit), read_doubts(audit))


def _cards(path: Path) -> list[dict[str, Any]]:
    cards = read_json(path).data
    if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
        raise SpecError(str(path), "a list of judges", type(cards).__name__, "make the folder again")
    return cards


def _require_digest(path: Path, digest: str) -> None:
    if not path.is_file():
        raise TrustError(str(path), "a file that the report names", "no such file", "get a whole copy of the folder")
    got = sha256_file(path)
    if got != digest:
        raise TrustError(str(path), f"the file of the report, {digest[:12]}…", f"{got[:12]}…", MAKE_AGAIN)


def to_row(concept: str, row: Outcome) -> Row:
    """An outcome as a line of a baseline; two decimals of the score, so that rounding makes no diff."""
    score = "-" if row.score is None else f"{row.score:.2f}"
    return Row(concept, row.slice, row.expect, row.seed, WORDS[row.present], score, row.id, row.prompt)


def read_figures(path: Path) -> tuple[dict[str, float], tuple[str, ...]]:
    """The figures that a gate may look at in a likelihood audit, and why it must not; nothing where there is none."""
    data = _audit(path)
    if not all(isinstance(value, int | float) for value in data["figures"].values()):
        raise SpecError(str(path), "figures that are numbers", json.dumps(data["figures"])[:60], "audit again")
    return {str(name): float(value) for name, value in data["figures"].items()}, tuple(map(str, data["doubts"]))


def read_doubts(path: Path) -> dict[str, str]:
    """What a likelihood audit measured and left out of its figures: name of the figure → why it can't be used."""
    data, found = _audit(path), {}
    for parts, name, figure in (("slices", "slice", "erasure.max_cir_upper"), ("groups", "group", "keep.kl_upper")):
        rows = data.get(parts, [])
        for row in rows if isinstance(rows, list) else [None]:
            if not isinstance(row, dict) or name not in row or not isinstance(row.get("doubts"), list):
                raise SpecError(f"{path}, {parts}", f"rows with {name} and doubts", "something else", "audit again")
            if row["doubts"]:
                found[f"{figure}[{row[name]}]"] = "; ".join(map(str, row["doubts"]))
    return found


def _audit(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"figures": {}, "doubts": []}
    data = read_json(path).data
    figures, doubts = (data.get("figures"), data.get("doubts")) if isinstance(data, dict) else (None, None)
    if not isinstance(figures, dict) or not isinstance(doubts, list):
        raise SpecError(str(path), "a likelihood audit with figures and doubts", "something else", "audit again")
    return dict(data)


# -- cells ------------------------------------------------------------------------------------------------------------


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                    for name, value in values.items())  # fmt: skip
