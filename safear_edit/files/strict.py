"""Strict YAML and JSON: the two text formats a person or another program hands us, read so that nothing is guessed.

YAML's ordinary readers keep the last of two equal keys, turn `no` into False, leave `1e-4` a string and expand alias
bombs. Here a document is plain data only: no anchors, aliases, merge keys or tags; keys are strings and unique; scalars
follow JSON's own grammar (so `no`, `012`, `1:30` are strings); everything is bounded in size and depth.
`Document.where` names file, line and field of any value, for one-line errors.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamStartEvent,
)

from safear_edit.errors import SpecError, UsageError

MAX_YAML_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20
"""A recipe of many thousand prompts stays far below this."""
MAX_DEPTH = 50
MAX_DIGITS = 40
"""Of a whole number; a longer one fits in no float, and nothing that is counted or drawn needs it."""

FieldPath = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,38})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_QUOTE = "put text that has a colon and a space in it into quotes"
_NOT_FINITE = re.compile(r"[-+]?\.(nan|inf)", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """One file read: plain `data` and the line (from 1) on which each field stands."""

    file: str
    data: Any
    lines: dict[FieldPath, int] = field(default_factory=dict)

    def line(self, path: Sequence[str | int]) -> int | None:
        """Line of the field, or of its nearest ancestor that stands in the file; None where lines are not kept."""
        found = (self.lines.get(tuple(path[:end])) for end in range(len(path), -1, -1))
        return next((line for line in found if line is not None), None)

    def where(self, path: Sequence[str | int] = ()) -> str:
        """`file:line field[2].name`, the start of every error about this field."""
        line = self.line(path)
        place = self.file if line is None else f"{self.file}:{line}"
        return f"{place} {dotted(path)}" if path else place


def dotted(path: Sequence[str | int]) -> str:
    """("preserve", 0, "n") -> "preserve[0].n"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def read_yaml(path: Path) -> Document:
    """Read one YAML file; SpecError with file and line for whatever is not strict YAML, UsageError without a file."""
    return parse_yaml(_text(path, MAX_YAML_BYTES), str(path))


def parse_yaml(text: str, name: str) -> Document:
    """The same for text that is already at hand; `name` stands for the file in errors."""
    if len(text) > MAX_YAML_BYTES:
        raise SpecError(name, f"at most {MAX_YAML_BYTES} bytes", f"{len(text)}", "split or shorten it")
    try:
        return _Builder(name, _events(text)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        fix = (
            _QUOTE
            if "mapping values are not allowed" in str(error.problem)
            else "correct the line (indent with spaces)"
        )
        raise SpecError(place, "valid YAML", str(error.problem), fix) from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", "unreadable text")
        raise SpecError(name, "valid YAML", str(reason), "remove control characters") from None


def _events(text: str) -> Iterator[Event]:
    """The text's events by libyaml, in a tenth of the time; by PyYAML where it isn't there or finds a fault.

    PyYAML words the fault, and may find none.
    """
    if yaml.__with_libyaml__:
        try:
            return iter([*yaml.parse(text, Loader=yaml.CSafeLoader)])
        except (yaml.YAMLError, UnicodeEncodeError):
            pass
    return yaml.parse(text, Loader=yaml.SafeLoader)


def parse_value(text: str, name: str) -> Any:
    """One value as it would stand after a colon: the right side of `--set key=value`; SpecError as for a file."""
    data = parse_yaml(f"value: {text}", name).data
    if len(data) > 1:
        raise SpecError(name, "one value", "more lines after it", "give each value in an option of its own")
    return data["value"]


def read_json(path: Path) -> Document:
    """Read one JSON file (no NaN, no overflowing numbers, no duplicate keys, bounded); SpecError or UsageError."""
    return parse_json(_text(path, MAX_JSON_BYTES), str(path))


def parse_json(text: str, name: str) -> Document:
    """The same for text at hand."""

    def refuse(constant: str) -> NoReturn:
        raise SpecError(name, "finite numbers", constant, "write a number or null")

    def finite(literal: str) -> float:
        number = float(literal)
        return number if math.isfinite(number) else refuse(literal)

    def bounded(literal: str) -> int:
        if len(literal) > MAX_DIGITS:
            raise SpecError(name, f"numbers of at most {MAX_DIGITS} digits", "a number too long", "make the file anew")
        return int(literal)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise SpecError(name, "each key once in an object", f"{twice!r} twice", "remove one of them")
        return data

    try:
        data = json.loads(text, parse_constant=refuse, parse_float=finite, parse_int=bounded, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{name}:{error.lineno}", "valid JSON", error.msg, "correct the file or make it again"
        ) from None
    except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
        kind = "nested too deeply" if isinstance(error, RecursionError) else "a number too long"
        raise SpecError(name, "plain JSON", kind, "make the file again") from None
    if "\\ud" in text.lower():  # an escaped half of a character pair can't be written or hashed again
        _refuse_surrogates(json.dumps(data, ensure_ascii=False), name)
    return Document(name, data)


def _refuse_surrogates(text: str, place: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise SpecError(place, "whole characters", "half of a surrogate pair", "write the character itself")


def _text(path: Path, limit: int) -> str:
    """The file's text; at most `limit` + 1 bytes are read, so a wrong file costs nothing."""
    try:
        regular(path)
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError:
        raise missing(path) from None
    except IsADirectoryError:
        raise UsageError(str(path), "a file", "a directory", "name a file inside it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UsageError(str(path), "a readable file", str(error), "check the path and its permissions") from None
    if len(raw) > limit:
        raise SpecError(str(path), f"at most {limit} bytes", "a larger file", "is this the right file?")
    return decoded(raw, path)


def missing(path: Path) -> UsageError:
    """What is said of a file that isn't there."""
    return UsageError(str(path), "a file", "nothing there", "check the path")


def regular(path: Path) -> None:
    """UsageError for a pipe, socket or device, which could keep a reader waiting for ever."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(str(path), "a regular file", "a pipe, socket or device", "copy it to a file first")


def decoded(raw: bytes, path: Path, first: int = 1) -> str:
    """UTF-8 text with or without a mark at its start; `first` is the number of its first line."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + first
        raise SpecError(f"{path}:{line}", "UTF-8 text", f"byte 0x{raw[error.start]:02x}", "save it as UTF-8") from None


class _Builder:
    """Turns the parser's events into data; working on events keeps depth and aliases in our hands."""

    def __init__(self, name: str, events: Iterator[Event]) -> None:
        self.name, self.events = name, events
        self.lines: dict[FieldPath, int] = {}

    def document(self) -> Document:
        first = self._next(StreamStartEvent, DocumentStartEvent)
        if not isinstance(first, ScalarEvent | CollectionStartEvent):
            raise SpecError(self.name, "a document", "an empty file", "see `safear-edit init`")
        data = self._value(first, ())
        if isinstance(self._next(), DocumentStartEvent):
            raise SpecError(self.name, "one document", "a second one after '---'", "keep one document per file")
        return Document(self.name, data, self.lines)

    def _next(self, *skip: type[Event]) -> Event:
        """The next event that is not a mere marker (end of document or of stream, and those in `skip`)."""
        event = next(self.events)
        while isinstance(event, (DocumentEndEvent, *skip)):
            event = next(self.events)
        return event

    def _value(self, event: Event, path: FieldPath) -> Any:
        self.lines.setdefault(path, _line(event))
        if isinstance(event, AliasEvent):
            self._refuse(event, path, "plain values", f"the alias *{event.anchor}", "write the value out")
        if getattr(event, "anchor", None):
            self._refuse(event, path, "plain values", f"the anchor &{event.anchor}", "remove it")  # type: ignore[attr-defined]
        if getattr(event, "tag", None):
            self._refuse(event, path, "plain values", f"the tag {event.tag}", "remove it")  # type: ignore[attr-defined]
        if isinstance(event, CollectionStartEvent) and len(path) >= MAX_DEPTH:
            self._refuse(event, path[:3], f"at most {MAX_DEPTH} levels", "more", "flatten the file")
        if isinstance(event, ScalarEvent):
            return self._scalar(event, path)
        return self._mapping(path) if isinstance(event, MappingStartEvent) else self._sequence(path)

    def _sequence(self, path: FieldPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), SequenceEndEvent):
            items.append(self._value(event, (*path, len(items))))
        return items

    def _mapping(self, path: FieldPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            key = self._key(event, path)
            here = (*path, key)
            if key in data:
                lines = f"{key!r} on lines {self.lines[here]} and {_line(event)}"
                self._refuse(event, path, "each key once", lines, "remove one of them")
            self.lines[here] = _line(event)
            data[key] = self._value(self._next(), here)
        return data

    def _key(self, event: Event, path: FieldPath) -> str:
        key = self._value(event, (*path, "")) if isinstance(event, ScalarEvent) else None
        self.lines.pop((*path, ""), None)
        if not isinstance(key, str):
            shown = event.value if isinstance(event, ScalarEvent) else "a list, mapping or alias"
            self._refuse(event, path, "a text key", str(shown), "put the key in quotes")
        if key == "<<":
            self._refuse(event, path, "plain keys", "the merge key <<", "write the keys out")
        return key

    def _scalar(self, event: ScalarEvent, path: FieldPath) -> Any:
        text: str = event.value
        if not event.implicit[0]:  # quoted or block text is text
            _refuse_surrogates(text, f"{self.name}:{_line(event)}")
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        if not _FLOAT.fullmatch(text) and not _NOT_FINITE.fullmatch(text):
            return text
        if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
            return number
        self._refuse(event, path, "a finite number", text, "write a number, or quote it to make it text")

    def _refuse(self, event: Event, path: FieldPath, expected: str, got: str, fix: str) -> NoReturn:
        field = dotted([part for part in path if part != ""])  # "" stands for a key that is being read
        place = f"{self.name}:{_line(event)}"
        raise SpecError(f"{place} {field}" if field else place, expected, got, fix)


def _line(event: Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0
