"""Interference: what the edits of a stack do to each other's concepts, as measured and as predicted.

Three views, from the dearest to the cheapest:

    history   what every concept's evaluation said after each change of the stack, against the pristine base
    alone     concept x concept: each edit by itself, on prompts by which the base model draws the other concept
    overlaps  edit x edit: how much of one delta lies in the other's column and row space, and which rows both rewrite

For a delta D1 and orthonormal bases of D2's column space (its outputs) U and row space (its inputs) V, the overlap is
the share |U' D1|^2 / |D1|^2, and |D1 V|^2 / |D1|^2. A random space of dimension r in d has r / d of it: that is the
chance beside each figure, and only what exceeds it clearly says anything.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from safear_edit.evaluate.interference_record import (
    After,
    Cell,
    FoundCounts,
    KeptCounts,
    Measured,
    Overlap,
)
from safear_edit.evaluate.outcomes import Outcome
from safear_edit.evaluate.sampled import request_of, sampling_of
from safear_edit.judges.draw import draw_and_judge

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import EvalPrompt, Recipe
    from safear_edit.editor.edit import Edit
    from safear_edit.editor.stack import Layer, Stack
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge
    from safear_edit.progress import Callback


DIRECTIONS = 16
"""Leading directions of a delta that is no adapter, and of a gradient, that stand for its space."""
CELL = 48
"""Images per cell of the matrix: 95 % intervals of ±14 points at the worst. N² cells cost N² · 48 images."""
TOUCHED = 0.01
"""A codebook row counts as rewritten from this change on, relative to the row's length."""


# -- history ----------------------------------------------------------------------------------------------------------


def measured(rows: Sequence[Outcome]) -> Measured:
    """The counts of one evaluation, as the report counts: an unreadable image is not found, and not kept."""
    base: dict[str, Outcome] = {row.id: row for row in rows if (row.phase, row.model) == ("score", "base")}
    pairs: dict[str, list[tuple[Outcome, Outcome]]] = defaultdict(list)
    for row in rows:
        if (row.phase, row.model) == ("score", "edited") and row.id in base:
            pairs[row.slice].append((base[row.id], row))
    slices, groups = {}, {}
    for name, part in pairs.items():
        if part[0][1].expect == "absent":
            slices[name] = FoundCounts(
                n=len(part),
                found=sum(e.present is True for _, e in part),
                unsure=sum(e.present is None for _, e in part),
            )
        else:
            groups[name] = _kept(part)
    return Measured(slices=slices, groups=groups)


def _kept(part: Sequence[tuple[Outcome, Outcome]]) -> KeptCounts:
    before, after = [b.present is True for b, _ in part], [e.present is True for _, e in part]
    both = sum(b and e for b, e in zip(before, after, strict=True))
    return KeptCounts(
        n=len(part), base=sum(before), edited=sum(after), lost=sum(before) - both, gained=sum(after) - both
    )


def changes(before: After, after: After) -> list[tuple[str, str, str, str]]:
    """(concept, slice or group, then, now) wherever the counts differ, in the order of `after`."""
    found = []
    for name, now in after.concepts.items():
        if name not in before.concepts:
            continue
        then = before.concepts[name]
        words = [(key, _erased_words(then.slices.get(key)), _erased_words(part)) for key, part in now.slices.items()]
        words += [(key, _kept_words(then.groups.get(key)), _kept_words(part)) for key, part in now.groups.items()]
        found += [(name, key, old, new) for key, old, new in words if old != new]
    return found


def _erased_words(part: FoundCounts | None) -> str:
    return "not measured" if part is None else f"found in {part.found} of {part.n}"


def _kept_words(part: KeptCounts | None) -> str:
    if part is None:
        return "not measured"
    return f"kept {part.edited} of {part.n} (base {part.base}, lost {part.lost}, gained {part.gained})"


# -- alone ------------------------------------------------------------------------------------------------------------


def drawn_as_asked(recipe: Recipe, rows: Iterable[Outcome]) -> list[EvalPrompt]:
    """The first CELL direct prompts, in the recipe's order, whose scored image by the base model has the concept."""
    drawn = {row.id for row in rows if (row.phase, row.model) == ("score", "base") and row.present is True}
    return [prompt for prompt in recipe.slice("direct") if prompt.id in drawn][:CELL]


@dataclass(frozen=True)
class Question:
    """A concept's prompts with who judges them; left: images of them in which the whole stack leaves the concept."""

    prompts: Sequence[EvalPrompt]
    judge: Judge
    recipe: Recipe
    left: int

    @classmethod
    def of(cls, recipe: Recipe, rows: Sequence[Outcome], judge: Judge) -> Self:
        """From the concept's outcomes of the whole stack."""
        prompts = drawn_as_asked(recipe, rows)
        asked, after = {prompt.id for prompt in prompts}, ("score", "edited")
        left = sum(row.present is True for row in rows if (row.phase, row.model) == after and row.id in asked)
        return cls(prompts, judge, recipe, left)


def alone(model: ModelFamily, stack: Stack, questions: Sequence[Question], progress: Callback) -> tuple[Cell, ...]:
    """Merge one edit at a time into the base `model` and ask for every concept; the model is left as found.

    An edit that is the whole stack has been evaluated by itself already: nothing is drawn for it.
    """
    cells = []
    total = len(stack.layers) * len(questions)
    for layer in stack.layers:
        with layer.edit.apply(model.net, layer.strength):
            for question in questions:
                found = question.left if stack.layers == (layer,) else _found(model, question)
                concept = question.recipe.spec.name
                cells.append(Cell(edit=layer.name, concept=concept, asked=len(question.prompts), found=found))
                progress("interference", len(cells), total, f"{layer.name} on {concept}: {found}")
    return tuple(cells)


def _found(model: ModelFamily, question: Question) -> int:
    requests = [request_of(prompt) for prompt in question.prompts]
    judges = dict.fromkeys((one.label for one in requests), question.judge)
    drawn = draw_and_judge(model, requests, judges, sampling_of(question.recipe))
    return sum(image.judgement.present is True for image in drawn)


# -- overlap ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """A change of one weight (out, in), and orthonormal bases of its column space (out, r) and row space (in, r)."""

    delta: Tensor
    columns: Tensor
    rows: Tensor


def space_of(edit: Edit, weight: str) -> Space:
    """Of an adapter the exact spaces, of a weight edit the DIRECTIONS leading ones."""
    delta = edit.delta(weight)
    if edit.kind == "lora":
        name = weight.removesuffix(".weight")
        a, b = edit.tensors[f"{name}.lora_A"].float(), edit.tensors[f"{name}.lora_B"].float()
        return Space(delta, torch.linalg.qr(b).Q, torch.linalg.qr(a.T).Q)
    return leading(delta)


def leading(delta: Tensor) -> Space:
    """The DIRECTIONS leading singular directions of a change, with the change."""
    left, sizes, right = torch.linalg.svd(delta.flatten(1).float(), full_matrices=False)
    used = sizes[:DIRECTIONS] > 1e-6 * sizes[0]
    return Space(delta.flatten(1).float(), left[:, : len(used)][:, used], right[: len(used)][used].T)


def overlap(first: Layer, second: Layer, tables: Mapping[str, Tensor]) -> Overlap:
    """How much of the first edit lies where the second one works; `tables`: the base's codebook tables by name."""
    spaces = {name: space_of(second.edit, name) for name in second.edit.weights}
    return _overlap(first, second.name, spaces, tables)


def overlaps(stack: Stack, tables: Mapping[str, Tensor]) -> tuple[Overlap, ...]:
    """Every ordered pair of edits of a stack."""
    return tuple(overlap(a, b, tables) for a in stack.layers for b in stack.layers if a is not b)


def _overlap(first: Layer, name: str, spaces: Mapping[str, Space], tables: Mapping[str, Tensor]) -> Overlap:
    shared = [weight for weight in first.edit.weights if weight in spaces]
    sums: dict[str, float] = defaultdict(float)
    rows = 0
    for weight in shared:
        one, other = first.edit.delta(weight).flatten(1), spaces[weight]
        energy, size = float(one.square().sum()), float(other.delta.norm())
        if not energy or not size:
            continue
        share = math.sqrt(energy) * size
        out, width = one.shape
        sums["share"] += share
        sums["column"] += share * float((other.columns.T @ one).square().sum()) / energy
        sums["row"] += share * float((one @ other.rows).square().sum()) / energy
        sums["chance_column"] += share * other.columns.shape[1] / out
        sums["chance_row"] += share * other.rows.shape[1] / width
        sums["product"] += float((one * other.delta).sum())
        sums["first"] += energy
        sums["second"] += size * size
        if weight in tables:
            rows += int((_touched(one, tables[weight]) & _touched(other.delta, tables[weight])).sum())
    total = sums["share"] or 1.0
    means = {key: sums[key] / total for key in ("column", "row", "chance_column", "chance_row")}
    cosine = sums["product"] / (math.sqrt(sums["first"] * sums["second"]) or 1.0)
    return Overlap(
        first=first.name,
        second=name,
        shared=len(shared),
        of=len(first.edit.weights),
        cosine=cosine,
        codebook_rows=rows,
        **means,
    )


def _touched(delta: Tensor, table: Tensor) -> Tensor:
    """Rows of a table that a change rewrites, (V,) bool."""
    return delta.norm(dim=1) > TOUCHED * table.float().cpu().norm(dim=1)
