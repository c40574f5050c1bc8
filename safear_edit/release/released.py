"""A stack: the ordered edits of one released model and the base below them, on a net and on disk.

A release keeps all that it takes to take an edit off again, years later and without the base's own files:

    base.json          the base model's card
    base.safetensors   the base model's values of every weight that an edit changes
    stack.json         order, strengths, and a fingerprint of the weights after each edit
    concepts/NAME/     each concept's evidence; in edit/ the edit with the recipe that found it

Where the weights were left out (a run of `compare`) the base model is looked up by its name, and must be the same.

A release of one concept may have no stack.json; then the concept's files lie at the top. A joint edit erases several
concepts; its name is theirs, joined by "+", each of them has a copy, and it comes on and off as a whole.

Edits are merged in their order, W + s1 D1 + s2 D2 …, so the weights without the last ones are those from before them,
bit for bit on the same kind of machine; the fingerprints say whether they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import nn

from safear_edit import registry
from safear_edit.compiler.recipe import Recipe, load_recipe
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditRecord, StackedEdit, StackRecord, refuse_other_recipe
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.evaluate.interference import measured
from safear_edit.evaluate.interference_record import After, Cell, Interference, read_interference
from safear_edit.evaluate.outcomes import read_outcomes
from safear_edit.families.base import ModelCard, ModelFamily
from safear_edit.families.load import load_model
from safear_edit.files.atomic import write_atomic
from safear_edit.files.layout import (
    BASE,
    CARD,
    INTERFERENCE,
    STACK,
    Layout,
    is_release,
    looks_released,
    without_weights,
)
from safear_edit.files.records import read_record
from safear_edit.files.weights import read_weights, write_weights
from safear_edit.report.evidence import BaseCard
from safear_edit.spec.spec import concepts_of

AGAIN = "get a whole copy of the folder"


# -- on disk ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A concept of a stack: its edit, the recipe that found it, and the folder with edit/, pairs/ and images/.

    The concepts of a joint edit have the same layer.
    """

    layer: Layer
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """The concept's name."""
        return self.recipe.spec.name


def stack_of(members: Sequence[Member]) -> Stack:
    """Their edits in order, a joint one once."""
    return Stack(tuple({member.layer.name: member.layer for member in members}.values()))


@dataclass(frozen=True)
class Released:
    """A released folder as its files describe it; nothing of the model is loaded.

    fingerprints: of the weights after each edit, as recorded; none in a release of one concept. history: what was
    measured after each change of the stack; alone: each edit by itself on every concept.
    """

    folder: Path
    ref: str
    members: tuple[Member, ...]
    fingerprints: tuple[str, ...]
    history: tuple[After, ...] = field(repr=False)
    alone: tuple[Cell, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read order, edits and recipes; UsageError if it is no release, TrustError if its files contradict each other.

        A folder of one concept is a stack of one.
        """
        if not is_release(folder):
            got = "a release without it" if looks_released(folder) else "something else"
            fix = "apply its specs again" if looks_released(folder) else "give the folder that `apply` wrote"
            raise UsageError(str(folder), f"a released folder with {BASE}", got, fix)
        layout, ref = Layout.of(folder), str(read_record(BaseCard, folder / CARD, AGAIN).ref)
        told, seen = _records(layout) if layout.stacked else _records_of_one(layout)
        if told.edits is None:
            raise SpecError(f"{folder / STACK}, edits", "the edits in their order", "nothing", AGAIN)
        members = tuple(member for one in told.edits for member in _members(layout, one))
        if told.concepts != tuple(member.name for member in members) or not members:
            raise TrustError(str(folder / STACK), "the same names in concepts and edits", "others", AGAIN)
        fingerprints = tuple(one.weights for one in told.edits if one.weights)
        return cls(folder, ref, members, fingerprints, seen.history, seen.alone)

    @property
    def family(self) -> str:
        """The family of the base model, and so of the release."""
        return self.ref.partition(":")[0]

    @property
    def stack(self) -> Stack:
        """The edits that the released weights hold."""
        return stack_of(self.members)

    def member(self, name: str) -> Member:
        """The concept of that name; UsageError names those there are."""
        found = {member.name: member for member in self.members}
        if name not in found:
            raise registry.unknown(f"concept in {self.folder}", name, found)
        return found[name]

    def layer(self, name: str) -> Layer:
        """The edit of that name; UsageError names those there are, and for one concept of a joint edit that edit."""
        found = {layer.name: layer for layer in self.stack.layers}
        if name in found:
            return found[name]
        for layer in found.values():
            if name in layer.concepts:
                got = f"one concept of the joint edit {layer.name}"
                fix = f"give {layer.name}, which is taken as a whole, or apply the specs without --joint"
                raise UsageError(f"concept {name}", "an edit of its own", got, fix)
        raise registry.unknown(f"concept in {self.folder}", name, found)

    def base(self, device: str = "cpu", dtype: str = "auto") -> ModelFamily:
        """The base model, its card included: the released weights with the kept values put back.

        dtype: of the frozen weights; "auto": the one that the edits were found in. TrustError unless the edits on top
        of it give the released weights again (up to rounding: another kind of processor may multiply in another order),
        or, without weights, if the model of the base's name is another one.
        """
        own = self.members[0].recipe.model.dtype
        kept = own if dtype == "auto" else dtype
        if without_weights(self.folder):
            return self._base_by_name(device, kept)
        model = load_model(str(self.folder.absolute()), device, kept)
        kinds = {model.dtype, getattr(torch, own)}
        near = 1e-4 if kinds == {torch.float32} else 2 * max(torch.finfo(kind).eps for kind in kinds)
        wanted, state = self.stack.weights, model.net.state_dict()
        originals = read_weights(self.folder / BASE)
        fits = [name in state and name in originals and state[name].shape == originals[name].shape for name in wanted]
        if sorted(originals) != wanted or not all(fits):
            raise TrustError(str(self.folder / BASE), f"{len(wanted)} weights that the edits change", "others", AGAIN)
        released = {name: state[name].clone() for name in wanted}
        with torch.no_grad():
            for name in wanted:
                state[name].copy_(originals[name])
        with self.stack.apply(model.net):
            for name in wanted:
                if not torch.allclose(state[name], released[name], rtol=near, atol=near / 10):
                    got = f"another {name}"
                    raise TrustError(str(self.folder), "the weights of its base and its edits", got, AGAIN)
        model.card = _read_card(self.folder / CARD)
        return model

    @contextmanager
    def edited(self, device: str = "cpu", dtype: str = "auto") -> Iterator[ModelFamily]:
        """The edited model: the released weights, or, where they were left out, the base with the edits on it."""
        if not without_weights(self.folder):
            yield load_model(str(self.folder.absolute()), device, dtype)
            return
        model = self.base(device, dtype)
        with self.stack.apply(model.net):
            yield model

    def _base_by_name(self, device: str, dtype: str) -> ModelFamily:
        card, model = _read_card(self.folder / CARD), load_model(self.ref, device, dtype)
        if model.card.digest != card.digest:
            got, fix = f"{self.ref}, digest {model.card.digest[:16]}", "use the files that the edit was made for"
            raise TrustError(str(self.folder), f"its base model, digest {card.digest[:16]}", got, fix)
        return model


def save_base(folder: Path, net: nn.Module, weights: Sequence[str]) -> None:
    """Keep the values of `weights` in BASE; `net` holds the base's."""
    state = net.state_dict()
    write_weights(folder / BASE, {name: state[name] for name in weights})


def save_stack(folder: Path, stack: Stack, net: nn.Module) -> None:
    """Write stack.json; `net` holds the base's weights."""
    rows = zip(stack.layers, stack.fingerprints(net), strict=True)
    edits = [StackedEdit(name=s.name, edit=s.edit.digest, strength=s.strength, weights=w) for s, w in rows]
    told = StackRecord(concepts=stack.names, edits=tuple(edits))
    write_atomic(folder / STACK, told.model_dump_json(indent=1) + "\n")


def _records(layout: Layout) -> tuple[StackRecord, Interference]:
    """What a stack says of itself."""
    told = read_record(StackRecord, layout.root / STACK, AGAIN)
    return told, read_interference(layout.root / INTERFERENCE, AGAIN)


def _records_of_one(layout: Layout) -> tuple[StackRecord, Interference]:
    """The same of a single concept: one edit at strength 1, measured once, of whose weights nobody took a mark."""
    name = load_recipe(layout.root / "recipe.json").spec.name
    digest = read_record(EditRecord, layout.root / "edit" / "edit.json", AGAIN).digest
    counts = {name: measured(read_outcomes(layout.root / "outcomes.jsonl"))}
    edits = (StackedEdit(name=name, edit=digest, strength=1.0, weights=""),)
    history = (After(event=f"added {name}", concepts=counts),)
    return StackRecord(concepts=(name,), edits=edits), Interference(history=history, alone=(), overlaps=())


def _members(layout: Layout, told: StackedEdit) -> list[Member]:
    """The concepts of one edit, which each have a copy of it."""
    found: list[Member] = []
    for name in concepts_of(told.name):
        where = layout.concept(name)
        edit, recipe = Edit.load(where / "edit"), load_recipe(layout.found_by(name))
        if edit.digest != told.edit or recipe.spec.name != name:
            raise TrustError(str(where), f"{name}'s edit {told.edit[:12]}…", f"{edit.digest[:12]}…", AGAIN)
        refuse_other_recipe(edit.recipes, recipe.digest, where)
        layer = found[0].layer if found else Layer(told.name, edit, told.strength)
        found.append(Member(layer, recipe, where))
    return found


def _read_card(path: Path) -> ModelCard:
    card = read_record(BaseCard, path, AGAIN)
    if card.image_size is None or card.tokens is None or card.choices is None or card.parameters is None:
        raise SpecError(str(path), "a model's card", "one that lacks sizes", AGAIN)
    return ModelCard(
        family=card.family,
        variant=card.variant,
        image_size=card.image_size,
        tokens=card.tokens,
        choices=card.choices,
        scales=card.scales,
        parameters=card.parameters,
        licence=card.licence,
        files=card.files,
        depth=card.depth,
        passes=card.passes,
    )
