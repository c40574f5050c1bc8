"""A spec proposed from a description: `init --from "the woodblock prints of Hokusai"`.

The description is compared, by MiniLM's sentence vectors, with the names of every built-in concept. One that is near is
what is meant: its names, paraphrases and label are proposed, which the mini world knows. Otherwise the words are made
of the description alone, or asked of a local instruction model. A person looks at all of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from safear_edit import registry
from safear_edit.errors import UsageError
from safear_edit.files.strict import read_yaml
from safear_edit.spec.draft import Words, draft_words
from safear_edit.spec.prompts import normalise
from safear_edit.spec.spec import Spec, load_spec

KNOWN = 0.6
"""Similarity from which a built-in concept is meant. Of 19 descriptions tried, the 14 of built-in concepts had 0.63 and
more with their own, and the others 0.53 and less with any."""
NEIGHBOURS = 3
QUESTION = """List {count} {what} of: {text}
One per line, no numbers, no explanations, at most six words each."""


@dataclass(frozen=True)
class Proposal:
    """words: of the spec; known: the built-in concept that is meant, "" for none, with its similarity; neighbours:
    built-in concepts of the kind that are nearest, first to be confused with it; asked: an assistant made words."""

    words: Words
    known: str
    nearness: float
    neighbours: tuple[tuple[str, float], ...]
    asked: bool = False

    def lines(self) -> list[str]:
        """What a person must know of how the words were found."""
        if self.known:
            lines = [
                f"taken for the built-in concept {self.known} (similarity {self.nearness:.2f}): its words and label"
            ]
        else:
            by = "an assistant's" if self.asked else "made of the description alone"
            lines = [
                f"no built-in concept is near ({self.nearness:.2f} at most): the words are {by}; check every one, and "
                f"that the judge knows {self.words.label}"
            ]
        near = ", ".join(f"{name} {value:.2f}" for name, value in self.neighbours)
        return [*lines, f"nearest of what must stay, watch it in the report: {near}"] if near else lines


Assistant = Callable[[str], str]
"""An instruction's answer."""


def propose(text: str, *, name: str = "", kind: str = "", assistant: Assistant | None = None) -> Proposal:
    """Words for a spec of what `text` describes. UsageError for an empty description."""
    if not normalise(text):
        raise UsageError("init --from", "a description in words", repr(text), 'for instance "the prints of Hokusai"')
    near = _by_nearness(text, _builtin())
    fitting = [(value, spec) for value, spec in near if kind in ("", spec.kind)]
    best, spec = fitting[0] if fitting else (0.0, near[0][1])
    if best >= KNOWN:
        words, known, asked = _words_of(spec, text), spec.name, False
    else:
        words, known, asked = draft_words(name or _name(text), kind or "style"), "", assistant is not None
        words = replace(words, description=text)
        if assistant:
            words = _asked(words, text, assistant)
    if name:
        words = replace(words, name=name)
    others = [(one.name, value) for value, one in near if one.name != known and one.kind == words.kind]
    return Proposal(words, known, best, tuple(others[:NEIGHBOURS]), asked)


def _builtin() -> list[Spec]:
    """The concepts of the mini world: the others extend other sets than drafts do, and some need a user's file."""
    paths = [registry.find_builtin("concepts", name) for name in registry.builtin_names("concepts")]
    return [load_spec(path) for path in paths if str(read_yaml(path).data["extends"]).startswith("gallery/")]


def _by_nearness(text: str, specs: Sequence[Spec]) -> list[tuple[float, Spec]]:
    """Similarity of the text to the likest name of each, the nearest first; all names are encoded together."""
    from safear_edit.families.sentences import similarity

    names = [
        [spec.erase.concept, *spec.erase.aliases, *spec.paraphrases.train, *spec.paraphrases.held_out] for spec in specs
    ]
    alike = iter(similarity()([text], [name for several in names for name in several])[0])
    found = [(max(islice(alike, len(several))), spec) for several, spec in zip(names, specs, strict=True)]
    return sorted(found, key=lambda pair: -pair[0])


def _words_of(spec: Spec, text: str) -> Words:
    return Words(
        name=spec.name,
        kind=spec.kind,
        concept=spec.erase.concept,
        aliases=tuple(spec.erase.aliases),
        train=tuple(spec.paraphrases.train),
        held_out=tuple(spec.paraphrases.held_out),
        label=spec.judge.label,
        description=text,
        instead=_instead(spec.name),
    )


def _instead(name: str) -> str:
    """What the file of a built-in concept has drawn in its place, "" where its set says that."""
    data: Any = read_yaml(registry.find_builtin("concepts", name)).data
    return str(data.get("anchor", {}).get("alias", ""))


def _name(text: str) -> str:
    """A spec's name from a description: its last words of weight, such as hokusai of "the prints of Hokusai"."""
    short = {"the", "a", "an", "of", "and", "in", "by", "with", "style", "manner"}
    words = [word for word in re.findall(r"[a-z0-9]+", normalise(text)) if word not in short]
    return "_".join(words[-2:])[:40] or "concept"


# -- an assistant -----------------------------------------------------------------------------------------------------


def _asked(words: Words, text: str, assistant: Assistant) -> Words:
    """With an assistant's names: every third is held out for the evaluation, so that no set is a rest of the others."""
    named = _listed(assistant(QUESTION.format(count=15, what="other names and descriptions", text=text)), words)
    if len(named) < 6:
        return words
    held_out, seen = named[::3], [one for i, one in enumerate(named) if i % 3]
    return replace(words, aliases=(words.concept, *seen[:-1]), train=tuple(seen[-1:]), held_out=tuple(held_out))


def _listed(answer: str, words: Words) -> list[str]:
    """The lines of an answer as names: bullets and numbers gone, each once, no sentence."""
    found = dict[str, str]()
    for line in answer.splitlines():
        name = re.sub(r"^\s*(?:[-*•]|\d+[.)])?\s*", "", line).strip(" \t\"'.,;:")
        if name and len(name.split()) <= 8 and all(c.isprintable() and c not in "{}[]<>" for c in name):
            found.setdefault(normalise(name), name)
    return [name for key, name in found.items() if key and key != normalise(words.concept)]


def local_assistant(folder: Path) -> Assistant:
    """A local instruction model through transformers: safetensors only, no code of its own, greedy.

    UsageError for a folder that transformers can't load so.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        got = " ".join(str(error).split())[:120]
        raise UsageError(f"--assistant {folder}", "a model that transformers loads", got, "give its folder") from None

    def answer(question: str) -> str:
        turns = [{"role": "user", "content": question}]
        how: dict[str, Any] = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        told: Any = tokenizer.apply_chat_template(turns, **how)
        ids = model.generate(**told, max_new_tokens=256, do_sample=False)
        return str(tokenizer.decode(ids[0, told["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer


# -- a person's word --------------------------------------------------------------------------------------------------


def confirmed(proposal: Proposal, ask: Callable[[str], bool]) -> Proposal:
    """Without the names to which a person says no; `ask` gets one question at a time."""
    words = proposal.words

    def kept(what: str, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if ask(f"{what}: {name}"))

    left = replace(
        words,
        aliases=kept("a name of it", words.aliases),
        train=kept("another name, for training", words.train),
        held_out=kept("a name that only the evaluation uses", words.held_out),
    )
    return replace(proposal, words=left)
