"""Secrets, kept out of every message, file and child process: the one place that knows what a secret looks like.

Three kinds are found in a text: what has the shape of one (a PEM private key, a pin or password in a URI, an access
token of a known form), the value of an environment variable that is named like one, and what stands on this process's
own command line as a key or pin. Values shorter than SHORTEST can't be told from ordinary words; nothing prints them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import quote

HIDDEN = "[hidden]"
SHORTEST = 6
"""Characters of the shortest value that is searched for: "test" as a password must not blank the word in a report."""

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PIN|PAT|CREDENTIALS)(?:_|$)", re.IGNORECASE
)
_NOT_SECRET_NAME = re.compile(r"PUBLIC|_ID$|_FILE$|_PATH$|_DIR$", re.IGNORECASE)
_END = r"-----END [A-Z0-9 ]*PRIVATE KEY-----"
_PEM = re.compile(rf"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:{_END}|\Z)", re.DOTALL)
_NAMED = re.compile(
    r"(?i)\b(pin(?:-value|-source)?|pass(?:word|wd|phrase)?|secret|(?:access[-_]?)?token|api[-_]?key)(=|%3D)"
    r"""(?!\[hidden\])[^\s&;,'"`)\]}|]+"""
)
_USER = re.compile(r"(?<=://)[^/\s@'\"]+:[^/\s@'\"]+(?=@)")
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,})"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/=]{16,}")


def redact(text: str, environ: Mapping[str, str] | None = None, typed: Sequence[str] | None = None) -> str:
    """`text` with HIDDEN in the place of every secret; environ, typed: this process's own unless given."""
    text = _PEM.sub(HIDDEN, text)
    text = _NAMED.sub(rf"\1\2{HIDDEN}", text)
    text = _USER.sub(HIDDEN, text)
    text = _TOKENS.sub(HIDDEN, text)
    for pattern in _values(os.environ if environ is None else environ, sys.argv if typed is None else typed):
        text = pattern.sub(HIDDEN, text)
    return text


def is_secret(name: str) -> bool:
    """Whether an environment variable is named like one that holds a secret (HF_TOKEN, SAFEAR_SIGNING_KEY, …)."""
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET_NAME.search(name)


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child process: without what is named like a secret or holds a private key."""
    given = os.environ if environ is None else environ
    return {name: value for name, value in given.items() if not is_secret(name) and not _PEM.search(value)}


def _values(environ: Mapping[str, str], typed: Sequence[str]) -> list[re.Pattern[str]]:
    """Patterns for the values that are known to be secret, longest first, as they may be spelled in a text."""
    found = {value.strip() for name, value in environ.items() if is_secret(name) or _PEM.search(value)}
    found |= _typed(typed)
    for value in tuple(found):
        if "-----BEGIN" in value:
            found |= set(_BASE64.findall(value.replace("\\n", "\n")))
    spelled = {spelling for value in found if len(value) >= SHORTEST for spelling in _spellings(value)}
    return [_exactly(value) for value in sorted(spelled, key=lambda value: (-len(value), value))]


def _typed(words: Sequence[str]) -> set[str]:
    """Secrets on a command line: keys as text, also where a shell has cut one into words; pins and passwords."""
    line = "\n".join(words)
    keys = [key for block in _PEM.findall(line) for key in (block, *_BASE64.findall(block))]
    pins = [match.group(0).split(match.group(2), 1)[1] for match in _NAMED.finditer(line)]
    cut = re.search(r"-----BEGIN\n(?:[A-Z0-9]+\n)*PRIVATE\nKEY-----\n(.*?)(?:-----END|\Z)", line, re.DOTALL)
    return {*keys, *pins, *(_BASE64.findall(cut.group(1)) if cut else ())}


def _spellings(value: str) -> set[str]:
    """A value as messages, JSON, shells and URIs write it."""
    escaped = json.dumps(value)[1:-1]
    return {value, escaped, json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1], shlex.quote(value),
            quote(value, safe=""), value.encode("unicode_escape").decode()}  # fmt: skip


def _exactly(value: str) -> re.Pattern[str]:
    """A short word or number only by itself: 123456 is no part of 9123456."""
    word = len(value) < 2 * SHORTEST and value.isalnum()
    return re.compile(rf"(?<![\w.]){re.escape(value)}(?![\w.])" if word else re.escape(value))
