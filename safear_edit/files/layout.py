"""Where the files of a released folder lie: of one concept at its top, of a stack in concepts/NAME/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from safear_edit.files.names import EXPORTED

STACK, INTERFERENCE = "stack.json", "interference.json"
BASE, CARD = "base.safetensors", "base.json"
FOUND_BY = "edit/recipe.json"
"""In a stack, beside a concept's edit: the recipe that found it. Its recipe.json is what the stack is measured by."""


@dataclass(frozen=True)
class Layout:
    """The paths in a release; whoever asks for one needn't know whether the release is of one concept or a stack."""

    root: Path
    stacked: bool

    @classmethod
    def of(cls, root: Path) -> Self:
        """That of a folder on disk; a stack has a file that says in which order its edits are merged."""
        return cls(root, (root / STACK).is_file())

    @classmethod
    def to_write(cls, root: Path, concepts: int, changes: int) -> Self:
        """That of a new folder, by how many concepts it erases and how many changes of the stack led there.

        Files about the stack as a whole say in which order which edits are merged and what they do to each other. The
        one concept that was added to a base, with nothing done after it, needs none.
        """
        return cls(root, stacked=(concepts, changes) != (1, 1))

    def concept(self, name: str) -> Path:
        """The folder of a concept's recipe, edit and evidence."""
        return self.root / "concepts" / name if self.stacked else self.root

    def found_by(self, name: str) -> Path:
        """The recipe that found a concept's edit; alone, a concept is also measured by it."""
        return self.concept(name) / (FOUND_BY if self.stacked else "recipe.json")


def looks_released(folder: Path) -> bool:
    """Whether `folder` is a release of some version: an edited model, which must not be taken for a base."""
    return (folder / STACK).is_file() or (folder / "edit" / "edit.json").is_file()


def is_release(folder: Path) -> bool:
    """Whether `folder` holds edits with what they changed, or, without any weights, with the base model's card."""
    return looks_released(folder) and ((folder / BASE).is_file() or without_weights(folder))


def without_weights(folder: Path) -> bool:
    """Whether the weights were left out of a release, as `compare` does: its edits and the card of their base stay."""
    return (folder / CARD).is_file() and not any((folder / name).is_file() for name in (BASE, *EXPORTED))
