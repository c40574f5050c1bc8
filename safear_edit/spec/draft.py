"""The commented spec that `init` writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import Template

from safear_edit.errors import UsageError
from safear_edit.files.records import parse
from safear_edit.files.strict import parse_yaml
from safear_edit.registry import unknown
from safear_edit.spec.prompts import mention_of
from safear_edit.spec.spec import Spec
from safear_edit.spec.text import NAME_PATTERN

# -- a first draft ----------------------------------------------------------------------------------------------------

_HEAD = """\
# What safear-edit erases, what must stay, who judges, and when it is good enough.
# Check it with `safear-edit validate $name.yaml`; every key is described by `safear-edit schema`.
schema_version: 1
name: "$name"
kind: $kind # style, object or category
description: One sentence about what is erased and why.

erase:
  concept: "$concept"
"""

_TAIL = """\
  - name: plain
    role: plain
    members: {a photograph: style=photo, a realistic image: style=photo, a plain photo: style=photo}
    templates: ["{member} of {subject}"]
    subjects: @subjects@
    n: 40
    train: false # this group is never trained on, not even with other prompts

judge: # safear-edit ls judges; clip takes phrases: "a painting by $concept | a photograph"
  use: gallery
  label: $label
  threshold: 0.5 # score in (0, 1) from which the concept counts as present

evaluate:
  n: {direct: 100, paraphrase: 100, template: 50} # prompts to score; 250 decide a fall of 5 points
  # references: PATH # folder of pictures with captions.jsonl for the likelihood audit; the minis draw their own

gates: # shares; what the result must reach
  erasure_direct: 0.97
  erasure_paraphrase: 0.93
  erasure_template: 0.93
  erasure_floor: 0.90 # one-sided 95 % lower bound of each erasure rate
  preserve_drop: 0.03 # largest fall of a preserved group
  preserve_upper: 0.05 # upper bound that the fall must stay below
  min_obeyed: 0.5 # share of prompts that the base model must obey

safety_note: Who asked for this edit, and what it is not good for.

# Optional, for models that also answer questions about pictures, as Janus does. Gates of their own:
# understanding_drop: 0.02, understanding_upper: 0.05, understanding_left: 0.6 (of a concept that is not recognised).
# understanding:
#   concept: keep # it is still recognised; erase: it is not
#   questions: ["is this a work by {name}?"] # the evaluation's; groups may have `questions` of their own

# Optional: who answers for it. Report and model card print it as it stands; what is left out there is "not stated".
# governance:
#   responsible: Person or team that answers for this edit
#   intended_use: What the edited model is for
#   out_of_scope: What it is not meant for
#   evaluator: Who runs the evaluation and reads it
#   independence: How the evaluator relates to who made the edit
#   reviewer: Who checks the report
#   approver: Who approves the release
#   approver_role: The approver's role
#   mappings: Rules or policies that the report is evidence for
#   supersedes: The report that this one replaces
#   retention_until: 2036-12-31 # until when the report is kept
"""

_ERASE = {
    "style": """\
  aliases: ["$concept", the artist $concept, the painter $concept] # names that training may use; also the direct slice
  templates: # {alias} and {subject} in each
    - "{subject} in the style of {alias}"
    - "{subject} by {alias}"
    - "a painting of {subject} by {alias}"
    - "an artwork of {subject} inspired by {alias}"
  subjects: @subjects@

anchor: # what takes the concept's place; one sentence for all templates, or one for each in their order
  templates: ["a photo of {subject}"]

paraphrases:
  train: [a painter like $concept] # other names that training may see
  held_out: [the manner of $concept, a follower of $concept, works of $concept] # only the evaluation uses these
  held_out_templates: ["{subject} as {alias} would have painted it", "imagine {subject} painted by {alias}"]
""",
    "object": """\
  aliases: [a $concept, a small $concept, a big $concept, one $concept] # training may use these; also the direct slice
  templates: # {alias} and {subject} in each
    - "{alias} {subject}"
    - "a photo of {alias} {subject}"
    - "a picture of {alias} {subject}"
    - "a realistic image of {alias} {subject}"
  subjects: @scenes@

anchor: # what takes the concept's place; one sentence for all templates, or one for each in their order
  templates: ["an empty scene {subject}"]

paraphrases:
  train: [a nice $concept] # other names that training may see
  held_out: [a little $concept, "some sort of $concept", a typical $concept, an ordinary $concept] # only the evaluation
  held_out_templates: ["imagine {alias} {subject}", "an image showing {alias} {subject}"]
""",
    "category": """\
  aliases: [with a $concept, and a $concept, showing a $concept] # names that training may use; also the direct slice
  templates: # {alias} and {subject} in each
    - "{subject} {alias}"
    - "a photo of {subject} {alias}"
    - "a picture of {subject} {alias}"
    - "a realistic image of {subject} {alias}"
  subjects: @subjects@

anchor: # what takes the concept's place; one sentence for all templates, or one for each in their order
  templates: ["a picture of {subject}"]

paraphrases:
  train: [with one $concept] # other names that training may see
  held_out: [bearing a $concept, with something like a $concept, with a visible $concept] # only the evaluation
  held_out_templates: ["imagine {subject} {alias}", "a snapshot of {subject} {alias}"]
""",
}
_PRESERVE = """\

preserve: # each group is one slice of the evaluation; its prompts must not name the concept
  - name: $group
    role: $role # neighbour, object, style or plain
    members: # words in the prompt: label for the judge
$members
    templates: ["{subject} in the style of {member}", "{subject} by {member}", "{member} painting of {subject}"]
    subjects: @subjects@
    n: 80
  - name: objects
    role: object
    members:
$objects
    templates: ["a photograph of {member} {subject}", "an image of {member} {subject}", "{member} seen {subject}"]
    subjects: [in a meadow, on a green meadow, on a beach, by the sea, at night, under the moon, in the snow]
    n: 40
"""
_PLACES = ("in a meadow", "on a green meadow", "on a beach", "by the sea", "at night", "under the moon", "in the snow")
_VIEWS = ('""', "in summer", "in the rain", "seen from afar", "up close")
_OBJECTS = ("house", "church", "castle", "tree", "sailboat", "car", "dog", "cat", "horse", "fish", "sunflower")
_STYLES = {
    "Van Gogh": "van_gogh",
    "Monet": "monet",
    "Hokusai": "hokusai",
    "Andy Warhol": "warhol",
    "Picasso": "picasso",
}


def spec_template(name: str, kind: str = "style") -> str:
    """A commented spec for NAME that validates as it stands: what `safear-edit init` writes. UsageError on bad names.

    It is a draft: the words are guesses and the labels those of the gallery judge; a person replaces both.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError("name", "lower-case letters, digits, - and _", repr(name), "take a name like van_gogh")
    if kind not in _ERASE:
        raise unknown("kind", kind, _ERASE)
    concept = re.sub(r"[-_]+", " ", name).strip()
    concept = concept.title() if kind == "style" else concept
    labels = {"style": f"style={name}", "object": f"object={name}", "category": f"{name}=yes"}
    mention = mention_of([concept])
    objects = [thing for thing in _OBJECTS if not mention(thing)]
    styles = {artist: label for artist, label in _STYLES.items() if not mention(artist)}
    words = {
        "name": name,
        "kind": kind,
        "concept": concept,
        "label": labels[kind],
        "group": "other-styles" if kind == "style" else "styles",
        "role": "neighbour" if kind == "style" else "style",
        "members": "\n".join(f"      {artist}: style={label}" for artist, label in styles.items()),
        "objects": "\n".join(f"      a {thing}: object={thing}" for thing in objects),
    }
    subjects = {"subjects": ([f"a {thing}" for thing in objects], _PLACES), "scenes": (_PLACES, _VIEWS)}
    text = Template(_HEAD + _ERASE[kind] + _PRESERVE + _TAIL).substitute(words)
    draft = re.sub(r"( *)subjects: @(\w+)@", lambda at: _subject_lines(at[1], *subjects[at[2]]), text)
    parse(Spec, parse_yaml(draft, f"the draft for {name!r}"))
    return draft


def _subject_lines(indent: str, first: Sequence[str], second: Sequence[str]) -> str:
    lists = "".join(f"\n{indent}  - [{', '.join(words)}]" for words in (first, second))
    return f"{indent}subjects: # two lists: every combination{lists}"
