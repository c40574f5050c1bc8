"""Caption refinement: from a caption that asks for the concept to one of the same content without it.

VCE has a multimodal model rewrite the caption of each unsafe picture (methods.md section 1, P3). Here the compiler
rewrites by template: the same subject goes into one of the spec's anchor templates, so nothing but the concept
changes. A family that can read pictures may do it itself by being a `Refiner`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from safear_edit.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor


class Refiner(Protocol):
    """Something that sees the unsafe pictures: a unified model that rewrites its own captions."""

    def refine(self, images: Tensor, captions: Sequence[str], concept: str) -> list[str]:
        """One caption without `concept` per picture (B, 3, H, W) uint8, with its content otherwise unchanged."""
        ...


def fill(template: str, **values: str) -> str:
    """Replace each {name} by its value and nothing else (no attribute access: specs come from strangers).

    Whitespace is tidied, because a value may be empty. SpecError for a placeholder that has no value.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            known = ", ".join(f"{{{v}}}" for v in values)
            raise SpecError(
                f"template {template!r}", f"placeholders among {known}", match[0], "correct the placeholder"
            )
        return values[name]

    return " ".join(re.sub(r"\{([^{}]*)\}", value, template).split())


def refine(template: str, subject: str, alias: str, anchor_templates: Sequence[str], index: int) -> str:
    """The safe counterpart of `fill(template, subject=subject, alias=alias)`: the subject in an anchor template.

    `index` chooses among `anchor_templates`, round and round. SpecError if there are none, if the unsafe template
    doesn't name the alias (there would be nothing to take away), or if the safe caption still does.
    """
    if not anchor_templates:
        raise SpecError("anchor.templates", "at least one template", "none", "say what takes the concept's place")
    if not _names(fill(template, subject=subject, alias=alias), alias):
        raise SpecError("erase.templates", "{alias} in each template", repr(template), "add {alias}")
    safe = fill(anchor_templates[index % len(anchor_templates)], subject=subject)
    if _names(safe, alias):
        raise SpecError(
            "anchor.templates", f"captions without {alias!r}", repr(safe), "reword the anchor or the subject"
        )
    return safe


def _names(caption: str, alias: str) -> bool:
    """Whether the alias is in the caption as whole words, whatever the case, width or punctuation."""
    return f" {_plain(alias)} " in f" {_plain(caption)} "


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
