"""What a likelihood audit says, as it is written and read again: likelihood.json.

No torch here: report and gate read these records without loading a model. `doubts` say when a figure must not be used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import ConfigDict, Field, with_config

from safear_edit.errors import SpecError
from safear_edit.evaluate import stats
from safear_edit.evaluate.outcomes import LIKELIHOOD
from safear_edit.evaluate.stats import Interval
from safear_edit.files.atomic import write_atomic
from safear_edit.files.records import parse
from safear_edit.files.strict import Document, read_json

_STRICT = with_config(ConfigDict(extra="forbid"))
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

SCHEMA = 2
"""What is written. Version 1 called `images` `pictures`."""

MOST_KL, WIDEST = 0.1, 0.4
"""Validity: beyond this keep.kl (nats per token) or width of a 95 % interval, CIR means nothing: a model that has
overfitted a few images, or was damaged, lies beyond them."""
REPELLED = -0.1
"""CIR below this is over-erasure: the sign gives the concept away."""


# -- results ----------------------------------------------------------------------------------------------------------


@_STRICT
@dataclass(frozen=True)
class SliceAudit:
    """One way of asking. cir, abs_cir None: the base model does not know the concept by these words, so no ratio.

    suppression: S in bits per token. By block of tokens (card.scales; rows of a raster model), coarse to fine or top to
    bottom: decided, the share of the base's gain that the block carries; profile, CIR there, None where that gain is
    not clear of 0 (nothing about the concept is decided in the block).
    """

    slice: str
    n: Count
    cir: Interval | None
    abs_cir: Interval | None
    suppression: float
    decided: tuple[float | None, ...]
    profile: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if len(self.decided) != len(self.profile):
            raise ValueError(f"decided for {len(self.decided)} blocks and a profile of {len(self.profile)}")

    @property
    def upper(self) -> float | None:
        """What is gated: the larger upper bound of the two."""
        return max(self.cir.high, self.abs_cir.high) if self.cir and self.abs_cir else None

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the slice's ratios must not be used.

        An absCIR whose whole interval lies below 0 may be wide: it bounds nothing that CIR does not bound already.
        """
        if self.cir is None or self.abs_cir is None:
            return ("the base model's gain from the words is not clear of 0",)
        found = [self.cir, *([self.abs_cir] if self.abs_cir.high > 0 else [])]
        widest = max(part.high - part.low for part in found)
        return (f"an interval of {widest:.2f} is wider than {WIDEST}",) if widest > WIDEST else ()


@_STRICT
@dataclass(frozen=True)
class Divergence:
    """Exact KL(base || edited) in nats per token over n images: mean, its one-sided 95 % bound, 95th percentile.

    upper: None where one image gives no bound.
    """

    n: Count
    mean: float
    upper: float | None
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        found = stats.mean_interval(values, 0.90)
        upper = found.high if math.isfinite(found.high) else None
        return cls(len(values), found.estimate, upper, float(np.quantile(values, 0.95)))


@_STRICT
@dataclass(frozen=True)
class GroupAudit:
    """One preserved group, without guidance and with the guidance that the sampler uses (temperature left out)."""

    group: str
    plain: Divergence
    guided: Divergence

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the bound must not be used."""
        return ("one image has no interval",) if self.plain.n < 2 else ()


@_STRICT
@dataclass(frozen=True)
class Classified:
    """Generative-classifier accuracy on the references, before and after; `handle` now explains most of the others.

    n: references that were classified. options: prompts that compete for one of them, the concept's own included. Where
    there are no others, handle is the concept's own prompt.
    """

    n: Annotated[int, Field(ge=1)]
    base: Share
    edited: Share
    handle: str
    handle_share: Share
    options: Annotated[int, Field(ge=1)]

    @property
    def doubts(self) -> tuple[str, ...]:
        """Nothing can be lost where the base model does not tell the concept from its neighbours."""
        right = stats.clopper_pearson(round(self.base * self.n), self.n)
        if right.low > 1 / self.options:
            return ()
        return (f"the base model takes {right.k} of {self.n} for the concept, which may be chance",)


@_STRICT
@dataclass(frozen=True)
class Audit:
    """What the likelihoods of one edit say. `images`: nats of every reference under every prompt, by model.

    block: what a depth profile is cut into, "row" or "scale".
    """

    base: str
    base_digest: str
    pack: str
    dtype: str
    slices: tuple[SliceAudit, ...]
    groups: tuple[GroupAudit, ...]
    unconditional: Divergence
    classified: Classified | None
    images: tuple[dict[str, dict[str, float | None]], ...]
    block: str = "row"

    def __post_init__(self) -> None:
        if len({len(part.decided) for part in self.slices}) > 1:
            raise ValueError("slices with different numbers of blocks")

    @property
    def figures(self) -> dict[str, float]:
        """What a gate looks at: upper bounds, so that few images can't pass; only those that are in no doubt."""
        found: dict[str, float | None] = {}
        found.update((f"erasure.max_cir_upper[{p.slice}]", p.upper) for p in self.slices if not p.doubts)
        found.update((f"keep.kl_upper[{p.group}]", p.plain.upper) for p in self.groups if not p.doubts)
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why nothing here may decide: then the answer is INCONCLUSIVE, and images have to be sampled.

        A model this far from the base model has broken CIR before. What is wrong with one figure alone stands with
        that figure (`SliceAudit.doubts`).
        """
        return tuple(
            f"{group.group}: KL of {group.plain.mean:.3f} nats per token is above {MOST_KL}"
            for group in self.groups
            if group.plain.mean > MOST_KL
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What does not stop anyone but should be read."""
        return tuple(
            f"{part.slice}: over-erased, CIR {part.cir.estimate:.2f} is below {REPELLED}: the images are now less "
            "likely than without the words, which gives the concept away"
            for part in self.slices
            if part.cir is not None and part.cir.estimate < REPELLED and not part.doubts
        )

    def rows(self) -> list[tuple[str, str, str, str]]:
        """A table for a person: figure, value, 95 % interval or bound, and why it means nothing where that is so."""
        found = []
        for part in self.slices:
            why = "; ".join((*part.doubts, *self.doubts))
            for name, ratio in (("cir", part.cir), ("abs_cir", part.abs_cir)):
                value, ends = (_number(ratio.estimate), _ends(ratio)) if ratio else ("-", "-")
                found.append((f"erasure.{name}[{part.slice}]", value, ends, why))
            found.append((f"erasure.suppression_bits[{part.slice}]", _number(part.suppression), "-", ""))
        for group in self.groups:
            for name, drift in (("kl", group.plain), ("guided_kl", group.guided)):
                found.append(_drift_row(f"keep.{name}[{group.group}]", drift, "; ".join(group.doubts)))
        found.append(_drift_row("keep.uncond_kl", self.unconditional, ""))
        if gca := self.classified:
            ends = f"base {gca.base:.2f}"
            ends += f"; then {gca.handle} {gca.handle_share:.2f}" if gca.edited < 1 else ""
            found.append(("erasure.gca", f"{gca.edited:.2f}", ends, "; ".join(gca.doubts)))
        return found

    def to_json(self) -> str:
        """The text of likelihood.json; same weights, pack and machine: same bytes (six decimals)."""
        body = {"schema_version": SCHEMA, "skipped": "", **asdict(self), "figures": self.figures}
        for key, parts in (("slices", self.slices), ("groups", self.groups)):
            body[key] = [{**asdict(part), "doubts": part.doubts} for part in parts]
        if self.classified:
            body["classified"] = {**asdict(self.classified), "doubts": self.classified.doubts}
        body |= {"doubts": self.doubts, "warnings": self.warnings}
        return json.dumps(_rounded(body), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, folder: Path) -> None:
        """Write likelihood.json, where `check` looks for it."""
        write_atomic(folder / LIKELIHOOD, self.to_json())


def save_skipped(folder: Path, why: str) -> None:
    """Write a likelihood.json that says why nothing was measured."""
    body = {"schema_version": SCHEMA, "skipped": why, "figures": {}, "doubts": []}
    write_atomic(folder / LIKELIHOOD, json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def _number(value: float) -> str:
    return f"{value:.3f}"


def _ends(ratio: Interval) -> str:
    return f"{_number(ratio.low)} to {_number(ratio.high)}"


def _drift_row(name: str, drift: Divergence, why: str) -> tuple[str, str, str, str]:
    bound = "-" if drift.upper is None else f"at most {drift.upper:.4f}"
    return (name, f"{drift.mean:.4f}", bound, why)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value


# -- reading ----------------------------------------------------------------------------------------------------------

AUDIT_AGAIN = "delete it and finish the run again"


@dataclass(frozen=True)
class Skipped:
    """A likelihood.json that says why nothing was measured."""

    why: str


def read_audit(path: Path) -> Audit | Skipped:
    """What `save` or `save_skipped` wrote.

    What follows from the figures is worked out again, never believed: SpecError if the file says otherwise,
    as for everything else that isn't an audit.
    """
    document = read_json(path)
    if not isinstance(document.data, dict):
        raise SpecError(str(path), "a likelihood audit", f"a {type(document.data).__name__}", AUDIT_AGAIN)
    data, stated = _apart(document.data, ("figures", "doubts", "warnings"))
    version = data.pop("schema_version", 1)
    if version not in range(1, SCHEMA + 1):
        raise SpecError(f"{path} schema_version", f"1 to {SCHEMA}", "another", AUDIT_AGAIN)
    skipped = data.pop("skipped", "")
    if skipped and isinstance(skipped, str):
        return Skipped(skipped)
    if version == 1 and "pictures" in data:
        data["images"] = data.pop("pictures")
    parts: dict[str, list[dict[str, Any]]] = {}
    for name in ("slices", "groups"):
        rows = data.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise SpecError(f"{path} {name}", "a list of objects", "something else", AUDIT_AGAIN)
        apart = [_apart(row, ("doubts",)) for row in rows]
        data[name], parts[name] = [row for row, _ in apart], [doubts for _, doubts in apart]
    if isinstance(data.get("classified"), dict):
        data["classified"], classified = _apart(data["classified"], ("doubts",))
        parts["classified"] = [classified]
    audit = parse(Audit, Document(str(path), data), AUDIT_AGAIN)
    held: list[tuple[str, Mapping[str, Any], Any]] = [("audit", stated, audit)]
    several = {"slices": audit.slices, "groups": audit.groups, "classified": [audit.classified]}
    held += [(name, *pair) for name, rows in parts.items() for pair in zip(rows, several[name], strict=True)]
    for name, said, part in held:
        for key, value in said.items():
            if not _alike(value, getattr(part, key)):
                raise SpecError(f"{path} {name}, {key}", "what follows from the figures", str(value)[:60], AUDIT_AGAIN)
    return audit


def _apart(data: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was measured, and what was stated of it under these names."""
    return {k: v for k, v in data.items() if k not in names}, {name: data[name] for name in names if name in data}


def _alike(stated: Any, worked_out: Any) -> bool:
    """Texts may be worded by an older release and figures are rounded; whether there are any, and which, must agree."""
    if isinstance(worked_out, dict):
        if not isinstance(stated, dict) or stated.keys() != worked_out.keys():
            return False
        numbers = [value for value in stated.values() if isinstance(value, int | float)]
        return len(numbers) == len(stated) and all(abs(stated[k] - v) < 2e-6 for k, v in worked_out.items())
    words = isinstance(stated, list) and all(isinstance(text, str) for text in stated)
    return words and len(stated) == len(worked_out)
