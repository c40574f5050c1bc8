"""The commented spec that `init` writes: templates/draft.yaml.j2, filled in for a name and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from safear_edit.errors import UsageError
from safear_edit.files.records import parse
from safear_edit.files.strict import parse_yaml
from safear_edit.registry import unknown
from safear_edit.spec.extend import full_form
from safear_edit.spec.prompts import mention_of
from safear_edit.spec.spec import Spec
from safear_edit.spec.text import NAME_PATTERN

TEMPLATE = Path(__file__).parent / "templates" / "draft.yaml.j2"
KINDS: tuple[str, ...] = get_args(Spec.model_fields["kind"].annotation)
_TEXT = re.compile(r"^#?\s*(description|safety_note|[a-z_]+): ([A-Z][^#]*?)(?: #.*)?$", re.MULTILINE)
"""A line of the template whose value is a sentence for a person to replace."""
GUESSES: dict[str, tuple[tuple[str, ...], ...]] = {
    "style": (
        ("{concept}", "the artist {concept}", "the painter {concept}"),
        ("a painter like {concept}",),
        ("the manner of {concept}", "a follower of {concept}", "works of {concept}"),
        ("style={name}",),
    ),
    "object": (
        ("a {concept}", "a small {concept}", "a big {concept}", "one {concept}"),
        ("a nice {concept}",),
        ("a little {concept}", "some sort of {concept}", "a typical {concept}", "an ordinary {concept}"),
        ("object={name}",),
    ),
    "category": (
        ("with a {concept}", "and a {concept}", "showing a {concept}"),
        ("with one {concept}",),
        ("bearing a {concept}", "with something like a {concept}", "with a visible {concept}"),
        ("{name}=yes",),
    ),
}
"""By kind: aliases, other names for training, held-out names, the gallery judge's label."""
DESCRIPTION = "One sentence about what is erased and why."
INSTEAD = ("a cat", "a house")
"""What is drawn in an object's place: the first that isn't the object itself."""


def left_as_drafted(spec: Spec) -> tuple[str, ...]:
    """Fields of a spec that still say what `init` wrote there for a person to replace."""
    drafted = {(name, text.strip()) for name, text in _TEXT.findall(TEMPLATE.read_text(encoding="utf-8"))}
    drafted.add(("description", DESCRIPTION))
    said = {"description": spec.description, "safety_note": spec.safety_note}
    people = {f"governance.{name}": text for name, text in spec.governance if isinstance(text, str)}
    every = {**said, **people}.items()
    return tuple(name for name, text in every if (name.rpartition(".")[2], text.strip()) in drafted)


def draft_lines(spec: Spec) -> list[str]:
    """A line about those fields, for whoever has not come to `apply` yet."""
    left = ", ".join(left_as_drafted(spec))
    return [f"{left}: still what `init` wrote there; `apply` refuses that without --draft"] if left else []


@dataclass(frozen=True)
class Words:
    """What a draft is filled in with. instead: what is drawn in an object's place, "" for nothing."""

    name: str
    kind: str
    concept: str
    aliases: tuple[str, ...]
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    label: str
    description: str = DESCRIPTION
    instead: str = ""


def draft_words(name: str, kind: str = "style") -> Words:
    """Guesses from the name alone. UsageError for names that can't be one, and for an unknown kind."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError("name", "lower-case letters, digits, - and _", repr(name), "take a name like van_gogh")
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    concept = re.sub(r"[-_]+", " ", name).strip()
    concept = concept.title() if kind == "style" else concept
    aliases, train, held_out, label = (_filled(part, concept, name) for part in GUESSES[kind])
    mention = mention_of([concept])  # a word such as "a" is in both
    instead = next((word for word in INSTEAD if not mention(word)), "") if kind == "object" else ""
    return Words(name, kind, concept, aliases, train, held_out, label[0], instead=instead)


def _filled(texts: Sequence[str], concept: str, name: str) -> tuple[str, ...]:
    return tuple(text.format(concept=concept, name=name) for text in texts)


def filled(words: Words) -> str:
    """A commented spec with these words, well-formed as it stands: what `safear-edit init` writes.

    It is a draft: the words are guesses and the label is what the gallery judge would call it; a person replaces both,
    and `validate` says so where the judge knows no such label. SpecError for words of which no spec can be made.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["flow"] = lambda value: json.dumps(value, ensure_ascii=False)  # JSON is YAML's flow style
    draft = environment.from_string(TEMPLATE.read_text()).render(**vars(words), unwritten=DESCRIPTION)
    parse(Spec, full_form(parse_yaml(draft, f"the draft for {words.name!r}")))
    return draft
