"""A stack: the ordered edits of one released model and the base below them, on a net and on disk.

A release keeps all that it takes to take an edit off again, years later and without the base's own files:

    base.json          the untouched model's card
    base.safetensors   the untouched values of every weight that an edit changes
    stack.json         order, strengths, and a fingerprint of the weights after each edit
    concepts/NAME/     each concept's evidence; in edit/ the edit with the recipe that found it

A release of one concept may have no stack.json; then the concept's files lie at the top.

Edits are merged in their order, W + s1 D1 + s2 D2 …, so the weights without the last ones are those from before them,
bit for bit on the same kind of machine; the fingerprints say whether they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from safear_edit import registry
from safear_edit.checkpoint import read_weights, write_weights
from safear_edit.compiler import Recipe, load_recipe
from safear_edit.edit import Edit, stacked
from safear_edit.errors import SpecError, TrustError, UsageError
from safear_edit.families.base import ModelCard, ModelFamily
from safear_edit.interference import After, Cell, Interference, measured
from safear_edit.report import FOUND_BY, INTERFERENCE, STACK, read_outcomes
from safear_edit.rundir import digest_of, looks_released, write_atomic
from safear_edit.training import identity_of
from safear_edit.yaml_strict import read_json

BASE, CARD = "base.safetensors", "base.json"
STRONGEST = 2.0
"""Beyond this multiple of itself an edit is another edit, which nobody looked for."""
AGAIN = "get a whole copy of the folder"


@dataclass(frozen=True)
class Layer:
    """One edit of a stack, under its concept's name."""

    name: str
    edit: Edit
    strength: float = 1.0


@dataclass(frozen=True)
class Stack:
    """Edits in their order; a `Change`, as one edit is."""

    layers: tuple[Layer, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Concepts, first edited first."""
        return tuple(layer.name for layer in self.layers)

    @property
    def weights(self) -> list[str]:
        """State-dict names of everything that some edit changes, sorted."""
        return sorted({name for layer in self.layers for name in layer.edit.weights})

    @property
    def digest(self) -> str:
        """sha256 over the edits' digests and strengths in their order; digest_of() for no edit at all."""
        return digest_of(*(part for layer in self.layers for part in (layer.edit.digest, repr(layer.strength))))

    @contextmanager
    def apply(self, net: nn.Module) -> Iterator[None]:
        """Merge all edits in order; afterwards `net` is bitwise as before. UsageError if one doesn't fit."""
        with stacked(net, [(layer.edit, layer.strength) for layer in self.layers]):
            yield

    def fingerprints(self, net: nn.Module) -> tuple[str, ...]:
        """After each edit, a sha256 of every weight that the edits so far change; `net` holds the base's."""
        found = []
        with ExitStack() as merged:
            for number, layer in enumerate(self.layers, 1):
                merged.enter_context(layer.edit.apply(net, layer.strength))
                found.append(fingerprint(net, Stack(self.layers[:number]).weights))
        return tuple(found)


def fingerprint(net: nn.Module, weights: Sequence[str]) -> str:
    """sha256 over names, types, shapes and bytes of these weights of `net`."""
    state = net.state_dict()
    return identity_of(list(weights), *(state[name] for name in weights))


# -- on disk ----------------------------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StackedEdit(_Part):
    """One edit in stack.json: which it is, how strongly it is merged, and the weights' fingerprint with it on top."""

    name: str
    edit: str
    strength: float
    weights: str


class StackFile(_Part):
    """stack.json; `concepts` is the order, and the same as the names of `edits`."""

    concepts: tuple[str, ...]
    edits: tuple[StackedEdit, ...]

    @classmethod
    def of(cls, stack: Stack, net: nn.Module) -> Self:
        """What is said of a stack; `net` holds the base's weights."""
        rows = zip(stack.layers, stack.fingerprints(net), strict=True)
        edits = [StackedEdit(name=s.name, edit=s.edit.digest, strength=s.strength, weights=w) for s, w in rows]
        return cls(concepts=stack.names, edits=tuple(edits))


@dataclass(frozen=True)
class Member:
    """A concept of a stack: its edit, the recipe that found it, and the folder with edit/, pairs/ and images/."""

    layer: Layer
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """The concept's name."""
        return self.layer.name


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
        ref = str(_fields(folder / CARD).get("ref"))
        if (folder / STACK).is_file():
            told = _checked(StackFile, folder / STACK)
            members = tuple(_member(folder / "concepts" / one.name, one) for one in told.edits)
            if told.concepts != tuple(one.name for one in told.edits) or not members:
                raise TrustError(str(folder / STACK), "the same names in concepts and edits", "others", AGAIN)
            seen = _checked(Interference, folder / INTERFERENCE)
            fingerprints = tuple(one.weights for one in told.edits)
            return cls(folder, ref, members, fingerprints, seen.history, seen.alone)
        recipe, edit = load_recipe(folder / "recipe.json"), Edit.load(folder / "edit")
        member = Member(Layer(recipe.spec.name, edit), recipe, folder)
        counts = {member.name: measured(read_outcomes(folder / "outcomes.jsonl"))}
        return cls(folder, ref, (member,), (), (After(event=f"added {member.name}", concepts=counts),))

    @property
    def stack(self) -> Stack:
        """The edits that the released weights hold."""
        return Stack(tuple(member.layer for member in self.members))

    def member(self, name: str) -> Member:
        """The concept of that name; UsageError names those there are."""
        found = {member.name: member for member in self.members}
        if name not in found:
            raise registry.unknown(f"concept in {self.folder}", name, found)
        return found[name]

    def base(self, device: str = "cpu") -> ModelFamily:
        """The untouched model, its card included: the released weights with the kept values put back.

        TrustError unless the edits on top of it give the released weights again (up to rounding: another kind of
        processor may multiply in another order).
        """
        model = registry.load_model(str(self.folder.absolute()), device)
        wanted, state = self.stack.weights, model.net.state_dict()
        originals = read_weights(self.folder / BASE)
        if sorted(originals) != wanted or any(state[name].shape != originals[name].shape for name in wanted):
            raise TrustError(str(self.folder / BASE), f"{len(wanted)} weights that the edits change", "others", AGAIN)
        released = {name: state[name].clone() for name in wanted}
        with torch.no_grad():
            for name in wanted:
                state[name].copy_(originals[name])
        with self.stack.apply(model.net):
            for name in wanted:
                if not torch.allclose(state[name], released[name], rtol=1e-4, atol=1e-5):
                    got = f"another {name}"
                    raise TrustError(str(self.folder), "the weights of its base and its edits", got, AGAIN)
        model.card = _read_card(self.folder / CARD)
        return model


def is_release(folder: Path) -> bool:
    """Whether `folder` holds a model with its edits and what they changed."""
    return (folder / BASE).is_file() and looks_released(folder)


def save_base(folder: Path, net: nn.Module, weights: Sequence[str]) -> None:
    """Keep the values of `weights` in BASE; `net` holds the base's."""
    state = net.state_dict()
    write_weights(folder / BASE, {name: state[name] for name in weights})


def save_stack(folder: Path, stack: Stack, net: nn.Module) -> None:
    """Write stack.json; `net` holds the base's weights."""
    write_atomic(folder / STACK, StackFile.of(stack, net).model_dump_json(indent=1) + "\n")


def _member(folder: Path, told: StackedEdit) -> Member:
    edit, recipe = Edit.load(folder / "edit"), load_recipe(folder / FOUND_BY)
    if edit.digest != told.edit or recipe.spec.name != told.name:
        raise TrustError(str(folder), f"{told.name}'s edit {told.edit[:12]}…", f"{edit.digest[:12]}…", AGAIN)
    return Member(Layer(told.name, edit, told.strength), recipe, folder)


def _read_card(path: Path) -> ModelCard:
    data = _fields(path)
    try:
        card = ModelCard(**{part.name: data[part.name] for part in fields(ModelCard)})
    except KeyError as error:
        raise SpecError(str(path), "a model's card", f"one without {error}", AGAIN) from None
    return replace(card, scales=tuple(card.scales))


def _fields(path: Path) -> dict[str, Any]:
    data = read_json(path).data
    if not isinstance(data, dict):
        raise SpecError(str(path), "a JSON object", type(data).__name__, AGAIN)
    return data


P = TypeVar("P", bound=BaseModel)


def _checked(kind: type[P], path: Path) -> P:
    try:
        return kind.model_validate_json(json.dumps(_fields(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{path}, {where}", "what safear-edit writes there", first["msg"].lower(), AGAIN) from None
