"""A base model and its edited self, one after the other in the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Self

from safear_edit.editor.edit import Edit
from safear_edit.errors import UsageError
from safear_edit.families.base import ModelFamily

# -- two models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """The base model and a way to have the edited one for a while."""

    base: ModelFamily
    edited: Callable[[], AbstractContextManager[ModelFamily]]

    @classmethod
    def of_edit(cls, model: ModelFamily, edit: Edit, strength: float = 1.0) -> Self:
        """One model in memory; the edit is merged and removed again, bit for bit."""
        return cls(model, partial(_merged, model, edit, strength))

    @classmethod
    def of_models(cls, base: ModelFamily, edited: ModelFamily) -> Self:
        """Two loaded models of one shape; UsageError otherwise."""
        shapes = [(m.card.family, m.card.tokens, m.card.choices, m.card.scales) for m in (base, edited)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                edited.card.ref, f"a model shaped as {base.card.ref}", str(shapes[1]), "compare like models"
            )
        return cls(base, lambda: nullcontext(edited))


@contextmanager
def _merged(model: ModelFamily, edit: Edit, strength: float) -> Iterator[ModelFamily]:
    with edit.apply(model.net, strength):
        yield model
