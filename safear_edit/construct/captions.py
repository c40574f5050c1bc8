"""Safe captions by a model that looks: it says what the unsafe image shows, and that is put without the concept.

VCE's own way to a refined caption (a multimodal model rewrites it): here the model itself, of a family that answers
questions, or a captioner beside it (pipeline/captioner.py). The other way fills the spec's anchor template with the
words that were asked for, which may not be what was drawn. Nobody rewrites: the spec's own templates, read backwards,
say which part of a caption is the concept. A caption that can't be rewritten so, or that the evaluation asks, gives way
to the template's, and the reason is counted. No torch here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol, Self

from safear_edit.construct.pairs_record import Captions
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import fill, forbidden, mention_of, normalise
from safear_edit.spec.spec import Spec, concept_names

if TYPE_CHECKING:
    from torch import Tensor

    from safear_edit.compiler.recipe import Recipe


LONGEST = 300
"""Characters of a caption at most: what a spec's own texts may have."""
UNREADABLE = "caption empty, too long or no text"
NO_TEMPLATE = "caption names the concept in words that no template of the spec has"
STILL_NAMED = "caption names the concept twice"
EVALUATED = "caption is an evaluation prompt"
FORBIDDEN = "caption is on the block list"


class Describes(Protocol):
    """Whoever says what images show."""

    def describe(self, images: Tensor) -> list[str]:
        """A caption per image, uint8 (B, 3, H, W)."""
        ...


@dataclass(frozen=True)
class SafeCaption:
    """What the model said of one unsafe image, the safe caption in use, and why that is the template's ("": it is the
    model's own). What is on the block list, or no text, is not repeated."""

    said: str
    safe: str
    why: str


def counted(told: Sequence[SafeCaption]) -> Captions:
    """How many captions are the model's own, and the reasons for the others, the commonest first."""
    reasons = Counter(one.why for one in told if one.why)
    return Captions(len(told) - reasons.total(), dict(reasons.most_common()))


Shape = tuple[re.Pattern[str], str]
"""What a sentence made from an erase template looks like, and the anchor template that takes its place."""


@dataclass(frozen=True)
class Refiner:
    """Rewrites captions for one recipe.

    mention: text → the words by which it names the concept; cut: names that may be left out of a sentence without
    another change, where the spec's anchors are its templates without them; evaluated: normalised prompts that only the
    evaluation may ask.
    """

    mention: Callable[[str], str | None]
    shapes: tuple[Shape, ...]
    cut: re.Pattern[str] | None
    evaluated: frozenset[str]

    @classmethod
    def of(cls, spec: Spec, evaluated: Iterable[str]) -> Self:
        """For the spec's words, held-out names included: they are known here so that none stays in a caption."""
        names = (*spec.erase.aliases, *spec.paraphrases.train, *spec.paraphrases.held_out)
        mention = mention_of(concept_names(spec))
        return cls(mention, _shapes(spec, names), _cut(spec, names), frozenset(map(normalise, evaluated)))

    def told(self, captioner: Describes, images: Tensor, otherwise: Sequence[str]) -> list[SafeCaption]:
        """Ask what the unsafe images, uint8 (B, 3, H, W), show, and rewrite that; `otherwise` are the templates' safe
        captions. UsageError for a family that lacks "understanding"."""
        return [self.rewrite(said, safe) for said, safe in zip(captioner.describe(images), otherwise, strict=True)]

    def rewrite(self, said: str, otherwise: str) -> SafeCaption:
        """The caption without the concept: as it is where it doesn't name it, else by the template that it was made
        from; `otherwise` where that fails. What comes out never names the concept, nor is it evaluated."""
        text = " ".join(said.split())
        if forbidden(text):
            return SafeCaption("", otherwise, FORBIDDEN)
        if not _readable(text):
            return SafeCaption("", otherwise, UNREADABLE)
        rest = self._without(text) if self.mention(text) else text
        if why := NO_TEMPLATE if rest is None else self._refused(rest):
            return SafeCaption(text, otherwise, why)
        assert rest is not None and not self.mention(rest)
        return SafeCaption(text, rest, "")

    def _without(self, text: str) -> str | None:
        """Of the templates that fit, the one with the most words of its own: the shortest subject."""
        fitting = [(match, anchor) for shape, anchor in self.shapes if (match := shape.fullmatch(text))]
        found = [(match.groupdict().get("subject") or "", anchor) for match, anchor in fitting]
        if found:
            subject, anchor = min(found, key=lambda one: len(one[0]))
            return fill(anchor, subject=subject.rstrip(" ,;:.-"))
        if self.cut is None:
            return None
        rest, count = self.cut.subn(" ", text)
        return fill(rest) if count else None

    def _refused(self, rest: str) -> str:
        """Why a rewritten caption can't be used; "" if it can."""
        if not _readable(rest):
            return UNREADABLE
        if self.mention(rest):
            return STILL_NAMED
        if normalise(rest) in self.evaluated:
            return EVALUATED
        return FORBIDDEN if forbidden(rest) else ""


def refiner_of(recipe: Recipe) -> Refiner | None:
    """Who writes the safe captions of a recipe's pairs; None: they are the recipe's, from the spec's templates.

    No caption may be a prompt of the evaluation's half, chosen for this recipe or not: the likelihood audit takes
    others of them, and a recipe with more prompts is to be comparable.
    """
    if not recipe.construct.described:
        return None
    drawn = pools(recipe.spec)
    halves = (drawn.direct, drawn.paraphrase, drawn.template, *drawn.preserve.values())
    chosen = (prompt.prompt for prompt in recipe.evaluate.prompts)
    return Refiner.of(recipe.spec, chain(chosen, (prompt.text for half in halves for prompt in half)))


def _readable(text: str) -> bool:
    """Whether it could be a prompt: words, no broken characters, no longer than a spec's texts."""
    return len(text) <= LONGEST and text.isprintable() and "\ufffd" not in text and bool(normalise(text))


# -- templates, read backwards ----------------------------------------------------------------------------------------

_SUBJECT = r"(?P<subject>\w.*?)"


def _shapes(spec: Spec, names: Sequence[str]) -> tuple[Shape, ...]:
    """Every erase template with its anchor, and also without a subject if the spec has an empty one."""
    anchors, found = spec.anchor.templates, list[Shape]()
    wanted = [_words(re.sub(r"^(a|an|the) (?=.)", "", name, flags=re.IGNORECASE)) for name in names]
    alias = rf"(?:(?:a|an|the)\s+)?(?:{'|'.join(sorted(wanted, key=len, reverse=True))})s?"
    for index, template in enumerate(spec.erase.templates):
        without = [fill(template, subject="")] if "" in spec.erase.subjects else []
        for sentence in (template, *without):
            first, subject, rest = _words(sentence, {"{subject}": _SUBJECT, "{alias}": alias}).partition(_SUBJECT)
            pattern = first + subject + rest.replace(_SUBJECT, "(?P=subject)")
            found.append((re.compile(rf"\W*{pattern}\W*", re.IGNORECASE), anchors[index % len(anchors)]))
    return tuple(found)


def _cut(spec: Spec, names: Sequence[str]) -> re.Pattern[str] | None:
    """The names, if every anchor is its template without the name: "{subject} {alias}" and "{subject}"."""
    anchors = spec.anchor.templates
    for index, template in enumerate(spec.erase.templates):
        if normalise(fill(template, alias="")) != normalise(anchors[index % len(anchors)]):
            return None
    wanted = sorted(map(_words, names), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(wanted)})(?!\w)", re.IGNORECASE)


def _words(text: str, slots: Mapping[str, str] | None = None) -> str:
    """Regular expression for a text whose blanks may differ, and may be missing beside punctuation.

    slots: "{name}" → the expression that stands for it.
    """
    found, before = "", ""
    for piece in re.findall(r"\{\w+\}|\w+|[^\w\s]", text):
        if before:
            found += r"\s*" if _is_mark(before) or _is_mark(piece) else r"\s+"
        found += (slots or {}).get(piece) or re.escape(piece)
        before = piece
    return found


def _is_mark(piece: str) -> bool:
    return re.fullmatch(r"[^\w\s]", piece) is not None
