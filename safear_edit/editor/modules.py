"""A module's state beside the numbers of its tensors, to be put back."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

Attributes = dict[str, tuple[object, dict[str, object]]]
MUTABLE = (dict, OrderedDict)
"""Dictionaries of a module that may be changed; a configuration of diffusers is one that can't be put back."""


def attributes_of(module: nn.Module) -> Attributes:
    """A module's attributes; of its dictionaries (children, parameters, buffers, hooks) also what is in them."""
    return {k: (v, dict(v) if type(v) in MUTABLE else {}) for k, v in vars(module).items()}


def restore(module: nn.Module, attributes: Attributes) -> None:
    """The module as it was when these were its attributes: the same objects under the same names."""
    vars(module).clear()
    vars(module).update({key: value for key, (value, _) in attributes.items()})
    for value, content in attributes.values():
        if isinstance(value, dict) and type(value) in MUTABLE:
            value.clear()
            value.update(content)
