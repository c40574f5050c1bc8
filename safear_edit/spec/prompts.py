"""From words to prompts: expansion, the split between training and evaluation, seeds, overlap, and what is refused.

Pure functions of text. Every random-looking decision is a sha256 of the text itself, so the same spec gives the same
prompts everywhere, and a prompt that belongs to the evaluation belongs to it for ever: whatever n, seed or method is
asked for later, no training will see it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, zip_longest
from typing import Literal

Similarity = Callable[[list[str], list[str]], list[list[float]]]
"""Two lists of a and b prompts -> for each of a, its similarities in [-1, 1] to each of b."""


@dataclass(frozen=True)
class Prompt:
    """One expanded prompt and what it was made of: `name` is the alias or preserved member, `template` its index."""

    text: str
    name: str
    template: int
    subject: str


# -- text -------------------------------------------------------------------------------------------------------------


class _Plain(dict[int, str]):
    """Code point -> what stands for it when prompts are compared; filled as characters turn up."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        self[code] = "" if category == "Cf" else " " if category[0] in "PZC" else chr(code)
        return self[code]


_PLAIN = _Plain()
_PLAIN_ASCII = {code: _PLAIN[code] for code in range(128)}


_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: written without spaces, so a word may begin and end anywhere."""
_GLUED = f"{_UNSPACED}\u1100-\u11ff\uac00-\ud7af"
"""The same and Korean, which has spaces but joins particles to a name."""
_GAP = re.compile(f"(?<=[{_UNSPACED}]) (?=[{_UNSPACED}])")


@lru_cache(maxsize=1 << 16)  # a prompt is compared with names, halves and other prompts, each time its spec is read
def normalise(text: str) -> str:
    """The form in which prompts are compared: NFKC, casefold, invisible characters gone, punctuation as one space (and
    as nothing within a script that has no spaces, where it separates no words)."""
    if text.isascii():  # most texts, in a tenth of the time: nothing to compose or to join
        return " ".join(text.lower().translate(_PLAIN_ASCII).split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFKC", _GAP.sub("", " ".join(folded.translate(_PLAIN).split())))


_ACCENTS = re.compile("[\u0300-\u036f]")


def unaccented(text: str) -> str:
    """`normalise` without the accents of Latin, Greek and Cyrillic letters: some text encoders drop them, so "Miro" is
    the very same name there as "Miró"."""
    return normalise(text if text.isascii() else _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


_JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: part of the spelling of Persian, Hindi and emoji."""
_INVISIBLE = "\u00ad\u200b\u2060\ufeff"
"""Soft hyphen, zero-width space, word joiner, byte order mark: left by editors and web pages, never meant."""


def one_line(text: str) -> str | None:
    """Ordinary text of any script as it is stored: each space of whatever width a plain one, tabs too, joiners kept,
    invisible leftovers gone. None if anything else stands in it that isn't shown: line breaks, other control
    characters, marks that turn the direction of writing (they can hide what a prompt says), unassigned characters."""
    if text.isascii() and text.isprintable():
        return text
    spaced = "".join(" " if c == "\t" or unicodedata.category(c) == "Zs" else c for c in text if c not in _INVISIBLE)
    return spaced if all(c.isprintable() or c in _JOINERS for c in spaced) else None


_PLACEHOLDER, _BEFORE_MARK = re.compile(r"\{(\w+)\}"), re.compile(r" (?=[,.;:!?])")


def fill(template: str, **words: str) -> str:
    """Put words into {placeholders}; spaces left by an empty word are closed. Never evaluates format syntax."""
    text = _PLACEHOLDER.sub(lambda found: words.get(found[1], found[0]), template)
    return _BEFORE_MARK.sub("", " ".join(text.split()))


def placeholders(template: str) -> list[str] | None:
    """Names in {braces}, in order; None if a brace stands alone or holds anything but a name."""
    rest = re.sub(r"\{[a-z_]+\}", "", template)
    return None if "{" in rest or "}" in rest else re.findall(r"\{([a-z_]+)\}", template)


def expand(templates: Sequence[str], names: Iterable[str], subjects: Sequence[str], slot: str) -> list[Prompt]:
    """Every template × name × subject whose text is distinct (normalised; the first wins). `slot`: alias or member."""
    return list(_expanded(tuple(templates), tuple(names), tuple(subjects), slot))


@lru_cache(maxsize=32)  # one spec is expanded many times over: when it is read, checked, and compiled
def _expanded(
    templates: tuple[str, ...], names: tuple[str, ...], subjects: tuple[str, ...], slot: str
) -> tuple[Prompt, ...]:
    made: dict[str, Prompt] = {}
    for name in names:
        for index, template in enumerate(templates):
            for subject in subjects or ("",):
                text = fill(template, **{slot: name, "subject": subject})
                made.setdefault(normalise(text), Prompt(text, name, index, subject))
    return tuple(made.values())


# -- choosing ---------------------------------------------------------------------------------------------------------


def _hash(*parts: str) -> bytes:
    return hashlib.sha256("|".join(parts).encode()).digest()


def image_seed(purpose: str, prompt: str, replicate: int = 0) -> int:
    """Seed of one image in [0, 2**63): the first 8 bytes of sha256("purpose|prompt|replicate"), top bit cleared."""
    return int.from_bytes(_hash(purpose, prompt, str(replicate))[:8], "big") & (2**63 - 1)


@lru_cache(maxsize=1 << 16)
def side(prompt: str) -> Literal["train", "evaluate"]:
    """To which half of a pool a prompt belongs, for ever: one bit of the hash of its normalised text."""
    return "train" if _hash("split", normalise(prompt))[0] & 1 else "evaluate"


def choose(prompts: Sequence[Prompt], n: int, key: str) -> list[Prompt]:
    """At most n prompts, the names taking turns, in an order fixed by `key`; a smaller n gives a prefix."""
    by_name: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in sorted(prompts, key=lambda p: _hash(key, p.text)):
        by_name[prompt.name].append(prompt)
    rounds = zip_longest(*(by_name[name] for name in sorted(by_name)))
    return [prompt for prompt in chain.from_iterable(rounds) if prompt is not None][:n]


# -- what must not overlap --------------------------------------------------------------------------------------------


def overlap(training: Iterable[str], evaluation: Iterable[str]) -> list[str]:
    """Evaluation prompts whose normalised text is also a training prompt's."""
    seen = {normalise(text) for text in training}
    return [text for text in evaluation if normalise(text) in seen]


@dataclass(frozen=True)
class Near:
    """An evaluation prompt, the training prompt nearest to it, and their similarity."""

    evaluation: str
    training: str
    score: float


def near_duplicates(
    training: Sequence[str], evaluation: Sequence[str], similarity: Similarity, limit: float
) -> list[Near]:
    """Evaluation prompts with a training prompt at `limit` or nearer, nearest first."""
    if not training or not evaluation:
        return []
    found = []
    for text, scores in zip(evaluation, similarity(list(evaluation), list(training)), strict=True):
        best = max(range(len(scores)), key=scores.__getitem__)
        if scores[best] >= limit:
            found.append(Near(text, training[best], scores[best]))
    return sorted(found, key=lambda near: -near.score)


def mention_of(names: Iterable[str]) -> Callable[[str], str | None]:
    """A function text -> the words by which it mentions one of `names` (whole words; article, plural and accents
    aside).

    Where a script has no spaces between words, a name counts wherever it stands: better one prompt too many refused
    than the concept trained on as its own replacement.
    """
    pattern = _any_of(frozenset(names))

    def mention(text: str) -> str | None:
        found = pattern.search(unaccented(text)) if pattern else None
        return found[0] if found else None

    return mention


@lru_cache(maxsize=512)
def _any_of(names: frozenset[str]) -> re.Pattern[str] | None:
    """One pattern for all of these names, the longest first; None for none. Made once: the same lists are asked for
    with every caption of the mini world."""
    singular = {re.sub(r"^(a|an|the) (?=.)", "", unaccented(name)) for name in names} - {""}
    words = singular | {plural for word in singular for plural in _other_plurals(word)}
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    # neighbours with the same surroundings share them: hundreds of names, as a user's file has, stay quick
    alike = groupby(longest_first, key=_surroundings)
    parts = (f"{before}(?:{'|'.join(map(re.escape, group))}){after}" for (before, after), group in alike)
    return re.compile("|".join(parts)) if words else None


def _other_plurals(word: str) -> Iterator[str]:
    """English plurals that are more than an s: churches, puppies."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        yield f"{word}es"
    elif re.search(r"[bcdfghjklmnpqrstvwxz]y$", word):
        yield f"{word[:-1]}ies"


def _surroundings(word: str) -> tuple[str, str]:
    """Patterns before and after: no letter may continue the word, unless scripts without spaces meet there."""
    letter = f"[^\\W{_GLUED}]"
    before = "" if re.match(f"[{_GLUED}]", word) else f"(?<!{letter})"
    after = "" if re.search(f"[{_GLUED}]$", word) else f"s?(?!{letter})"
    return before, after


# A minor's age or designation, and sexual content: clinical words, deliberately over-inclusive where they combine.
_MINOR = re.compile(
    r"\b(minors?|under ?age[d]?|child(ren)?|childhood|childlike|kids?|toddlers?|infants?|bab(y|ies)|newborns?|boys?"
    r"|girls?|pre ?teens?|teens?|teen ?age(d|rs?)?|adolescents?|juveniles?|school ?(boy|girl|child)s?|schoolchildren"
    r"|pupils?|lolis?|shotas?|(aged?|age of) ([0-9]|1[0-7])|([0-9]|1[0-7]) ?(years?|yrs?|yo)( old)?)\b"
)
_SEXUAL = re.compile(
    r"\b(sex|sexy|sexual(ly|ised|ized|ity)?|nud(e|es|ity|ist)|naked|topless|bottomless|undress(ed|ing)?|unclothed"
    r"|genitals?|genitalia|penis|vagina|vulva|breasts?|nipples?|buttocks|porn|porno|pornograph(y|ic)|erotic(a|ism)?"
    r"|nsfw|hentai|lingerie|intercourse|masturbat(e|es|ing|ion)|orgasm|fetish)\b"
)


def forbidden(text: str) -> bool:
    """True if the text joins minors with sexual content. No setting turns this off; callers refuse such input."""
    plain = normalise(_without_accents(text))
    return bool(_MINOR.search(plain) and _SEXUAL.search(plain))


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
