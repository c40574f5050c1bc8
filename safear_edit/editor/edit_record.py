"""What an edit, the rounds of its search and a stack say of themselves: edit.json, rounds.json, stack.json.

No torch here: the report reads these records without loading a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from safear_edit.errors import TrustError
from safear_edit.files.atomic import digest_of
from safear_edit.files.records import StrictRecord
from safear_edit.spec.spec import concepts_of

Kind = Literal["lora", "delta"]


class EditInfo(StrictRecord):
    """Where an edit comes from and how it was found; `minutes` is wall-clock and the one field outside the digest."""

    method: str
    params: dict[str, Any]
    concept: str
    base_digest: str
    rank: int | None
    alpha: float | None
    seed: int
    steps: int
    losses: tuple[float, ...]
    minutes: float


class EditRecord(StrictRecord):
    """edit.json; the digest is of kind, info without minutes, and tensors.

    recipes: digests of the recipes that found it, of a joint edit in the order of its concepts; none in older ones.
    """

    kind: str
    digest: str
    info: EditInfo
    recipes: tuple[str, ...] = ()


def refuse_other_recipe(recipes: Sequence[str], recipe: str, where: Path) -> None:
    """TrustError unless an edit that names `recipes` is one that `recipe`, beside which it lies in the folder `where`,
    found (digests); an older edit names none."""
    if recipes and recipe not in recipes:
        told = ", ".join(f"{digest[:12]}…" for digest in recipes)
        fix = "get a whole copy of the folder, or make it again"
        raise TrustError(f"{where}, recipe", f"that of its edit, {told}", f"{recipe[:12]}…", fix)


class Round(StrictRecord):
    """One round of a method that works in rounds on the image tokens' table (Safe-CB): one entry of rounds.json.

    Rates are shares of the probe: training prompts under seeds that nothing else uses. drawn, pairs: pairs looked at,
    and those that could be told apart. dimension: of the harmful space, with that of earlier rounds where it is
    protected. captured: share of the squared differences in this round's space, 0 for a round that took none out (too
    few pairs) and only repaired. energy: mean share of a table row in
    it, before and after. harmful, unclear: by the search's own judge; drift: KL in nats per token to the base model on
    preserved training images; None where nobody looked. agreement: that judge against the pinned one. taken: False for
    a last round that did not help and was undone.
    """

    number: int
    drawn: int
    pairs: int
    dimension: int
    captured: float
    rows_moved: int
    energy_before: float
    energy_after: float
    harmful_before: float | None
    harmful_after: float | None
    unclear_after: float | None
    drift: float | None
    loss_first: float | None = None
    loss_last: float | None = None
    taken: bool
    agreement: dict[str, float | int | None] | None


class StackedEdit(StrictRecord):
    """One edit of a stack: its digest, how strongly it is merged, and the fingerprint of the weights with it on top.

    The name is the concept's, or "a+b" for a joint edit.
    """

    name: str
    edit: str
    strength: float
    weights: str

    @property
    def concepts(self) -> tuple[str, ...]:
        """What it erases."""
        return concepts_of(self.name)


def digest_of_edits(edits: Iterable[tuple[str, float]]) -> str:
    """sha256 over digests and strengths of edits in their order; digest_of() for no edit at all."""
    return digest_of(*(part for digest, strength in edits for part in (digest, repr(strength))))


class StackRecord(StrictRecord):
    """stack.json; `concepts` is the order, and the same as those of `edits` (which the oldest releases lack)."""

    concepts: tuple[str, ...] = Field(min_length=1)
    edits: tuple[StackedEdit, ...] | None = None
