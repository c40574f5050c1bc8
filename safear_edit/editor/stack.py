"""A stack: the ordered edits of one base model, applied to a net and removed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from safear_edit.editor.edit import Edit, stacked
from safear_edit.editor.edit_record import digest_of_edits
from safear_edit.editor.fine_tune import identity_of
from safear_edit.spec.spec import concepts_of

STRONGEST = 2.0
"""Beyond this multiple of itself an edit is another edit, which nobody looked for."""


@dataclass(frozen=True)
class Layer:
    """One edit of a stack, under its concept's name, or those of its concepts joined by "+"."""

    name: str
    edit: Edit
    strength: float = 1.0

    @property
    def concepts(self) -> tuple[str, ...]:
        """What it erases; several for a joint edit."""
        return concepts_of(self.name)


@dataclass(frozen=True)
class Stack:
    """Edits in their order; a `Change`, as one edit is."""

    layers: tuple[Layer, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Concepts, first edited first."""
        return tuple(name for layer in self.layers for name in layer.concepts)

    @property
    def weights(self) -> list[str]:
        """State-dict names of everything that some edit changes, sorted."""
        return sorted({name for layer in self.layers for name in layer.edit.weights})

    @property
    def digest(self) -> str:
        """Of all edits with their strengths, in their order."""
        return digest_of_edits((layer.edit.digest, layer.strength) for layer in self.layers)

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
