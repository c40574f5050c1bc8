"""The commented spec that `init` writes: templates/draft.yaml.j2, filled in for a name and checked."""

from __future__ import annotations

import re
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
INSTEAD = ("a cat", "a house")
"""What is drawn in an object's place: the first that isn't the object itself."""


def left_as_drafted(spec: Spec) -> tuple[str, ...]:
    """Fields of a spec that still say what `init` wrote there for a person to replace."""
    drafted = {(name, text.strip()) for name, text in _TEXT.findall(TEMPLATE.read_text(encoding="utf-8"))}
    said = {"description": spec.description, "safety_note": spec.safety_note}
    people = {f"governance.{name}": text for name, text in spec.governance if isinstance(text, str)}
    every = {**said, **people}.items()
    return tuple(name for name, text in every if (name.rpartition(".")[2], text.strip()) in drafted)


def spec_template(name: str, kind: str = "style") -> str:
    """A commented spec for NAME that is well-formed as it stands: what `safear-edit init` writes.

    It is a draft: the words are guesses and the label is what the gallery judge would call it; a person replaces both,
    and `validate` says so where the judge knows no such label. UsageError for names that can't be one.
    """
    from jinja2 import Environment, StrictUndefined

    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError("name", "lower-case letters, digits, - and _", repr(name), "take a name like van_gogh")
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    concept = re.sub(r"[-_]+", " ", name).strip()
    concept = concept.title() if kind == "style" else concept
    labels = {"style": f"style={name}", "object": f"object={name}", "category": f"{name}=yes"}
    instead = next(word for word in INSTEAD if not mention_of([concept])(word))
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(TEMPLATE.read_text())
    draft = template.render(name=name, kind=kind, concept=concept, label=labels[kind], instead=instead)
    parse(Spec, full_form(parse_yaml(draft, f"the draft for {name!r}")))
    return draft
