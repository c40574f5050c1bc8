"""The pools that a spec's prompts are chosen from: training and held out, per slice and group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from safear_edit.spec.prompts import Prompt, expand, side
from safear_edit.spec.spec import expand_group

if TYPE_CHECKING:
    from safear_edit.spec.spec import Spec


@dataclass(frozen=True)
class Pools:
    """Everything a spec's prompts may be drawn from; `keep` is `preserve`'s training half (by group)."""

    train: list[Prompt]
    direct: list[Prompt]
    paraphrase: list[Prompt]
    template: list[Prompt]
    keep: dict[str, list[Prompt]]
    preserve: dict[str, list[Prompt]]


def pools(spec: Spec) -> Pools:
    """Split a spec's prompts. Same names and templates for `train` and `direct`, but no prompt in both; `paraphrase`
    and `template` are made of words that training never sees."""
    erase, other = spec.erase, spec.paraphrases
    seen = expand(erase.templates, (*erase.aliases, *other.train), erase.subjects, "alias")
    aliases = set(erase.aliases)
    groups = {group.name: expand_group(group) for group in spec.preserve}
    trained = {group.name for group in spec.preserve if group.train}
    return Pools(
        train=[p for p in seen if side(p.text) == "train"],
        direct=[p for p in seen if side(p.text) == "evaluate" and p.name in aliases],
        paraphrase=expand(erase.templates, other.held_out, erase.subjects, "alias"),
        template=expand(other.held_out_templates, erase.aliases, erase.subjects, "alias"),
        keep={n: [p for p in group if side(p.text) == "train"] for n, group in groups.items() if n in trained},
        preserve={n: [p for p in group if side(p.text) == "evaluate"] for n, group in groups.items()},
    )
