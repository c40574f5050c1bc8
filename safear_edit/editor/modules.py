"""A module's state beside the numbers of its tensors, to be put back."""

from __future__ import annotations

from torch import nn

Attributes = dict[str, tuple[object, dict[str, object]]]


def attributes_of(module: nn.Module) -> Attributes:
    """A module's attributes; of its dictionaries (children, parameters, buffers, hooks) also what is in them."""
    return {k: (v, dict(v) if isinstance(v, dict) else {}) for k, v in vars(module).items()}


def restore(module: nn.Module, attributes: Attributes) -> None:
    """The module as it was when these were its attributes: the same objects under the same names."""
    vars(module).clear()
    vars(module).update({key: value for key, (value, _) in attributes.items()})
    for value, content in attributes.values():
        if isinstance(value, dict):
            value.clear()
            value.update(content)
