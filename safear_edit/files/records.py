"""Records: what one step writes and another reads, as JSON documents and JSON lines, checked by one pydantic class.

Everything is strict: duplicate keys, NaN and Infinity, numbers too large for a float, wrong types and lines of absurd
length are one SpecError with file, line and field. Text files that a person writes take the same way (`parse`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from safear_edit.errors import SpecError, UsageError
from safear_edit.files.strict import Document, FieldPath, decoded, parse_json, read_json, regular
from safear_edit.registry import suggestion

Model = TypeVar("Model")
"""A pydantic model, or a dataclass that pydantic checks field by field."""

Line = TypeVar("Line", bound=BaseModel)

MAX_LINE_BYTES = 1 << 20
"""One record of a JSON-lines file; the longest that this program writes, a judged image, stays below 4 KiB."""
TOGETHER = 1 << 16
"""Bytes of lines that are read at once."""
AGAIN = "finish the run again"
"""The way out for a file that a run left behind."""
LIST = ("a list", "write [one, another]")
MAPPING = ("keys and values", "write one `key: value` a line below it")
WHOLE = ("a whole number", "write it without quotes or decimals")
PLAIN: dict[str, tuple[str, str]] = {
    "list_type": LIST,
    "tuple_type": LIST,
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "dataclass_type": MAPPING,
    "string_type": ("text", "write words, in quotes where they look like a number"),
    "int_type": WHOLE,
    "int_from_float": WHOLE,
    "float_type": ("a number", "write it without quotes"),
    "bool_type": ("true or false", "write one of them, without quotes"),
    "string_pattern_mismatch": ("text like {pattern}", "correct it"),
    "string_too_short": ("at least {min_length} character", "write something, or take the line out"),
    "string_too_long": ("at most {max_length} characters", "shorten it"),
}
"""What pydantic calls these complaints -> what a person who writes YAML should read: what was expected, the way out."""


class StrictRecord(BaseModel):
    """Base of what is written and read back: frozen, unknown fields refused, numbers finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_record(
    kind: type[Model], path: Path, fix: str = AGAIN, *, upgrade: Callable[[Any], Any] | None = None
) -> Model:
    """One JSON document; SpecError if it is missing or isn't one of these records.

    upgrade: what makes a record of an older version one of today's, before it is checked.
    """
    document = _document(path)
    return parse(kind, replace(document, data=upgrade(document.data)) if upgrade else document, fix)


def read_records(kind: type[Model], path: Path, fix: str = AGAIN) -> tuple[Model, ...]:
    """A JSON list of records."""
    document = _document(path)
    if not isinstance(document.data, list):
        raise SpecError(document.file, "a JSON list of objects", type(document.data).__name__, fix)
    rows = enumerate(document.data)
    return tuple(parse(kind, Document(f"{document.file}, entry {number}", row), fix) for number, row in rows)


def read_lines(kind: type[Line], path: Path, fix: str = AGAIN) -> Iterator[tuple[int, Line]]:
    """Records of a JSON-lines file with their line numbers, from 1; empty lines are passed over."""
    for lines in _groups(path, fix):
        numbers = [number for number, _ in lines]
        found: Iterable[Line] | None = _in_order(kind, [raw for _, raw in lines])
        yield from zip(numbers, found or (_strictly(kind, path, *line, fix) for line in lines), strict=True)


def _strictly(kind: type[Line], path: Path, number: int, raw: bytes, fix: str) -> Line:
    where = f"{path}:{number}"
    return parse(kind, Document(where, parse_json(decoded(raw, path, number), where).data), fix)


_KEY = re.compile(rb'"\s*:')
_ODD = (b"\\", b"[", b"NaN", b"Infinity", b"\xef\xbb\xbf")
"""Half a character, perhaps; a list, whose numbers are not looked for; no number; a mark."""
_LARGE = re.compile(rb":\s*-?(?:\d{39}|\d[\d.]*[eE][+-]?\d{3})")
"""A number that may have too many digits or fit in no float."""


def _in_order(kind: Any, lines: Sequence[bytes]) -> list[Line] | None:
    """Lines of plain values with nothing wrong, read together in a fraction of the time; None: the strict one decides.

    No text goes on in another line and each begins and ends with a brace: as many records as lines are one a line. And
    as many keys as there are places where one could end: then none is there twice.
    """
    text = b",\n".join(lines)
    if any(odd in text for odd in _ODD) or _LARGE.search(text):
        return None
    if not all(raw.startswith(b"{") and raw.endswith(b"}") for raw in lines):
        return None
    try:
        found: list[Line] = _adapter(list[kind]).validate_json(b"[" + text + b"]", strict=True)
    except ValidationError:
        return None
    keys = sum(len(row.model_fields_set) for row in found)
    return found if len(found) == len(lines) and keys == len(_KEY.findall(text)) else None


def to_lines(rows: Sequence[BaseModel]) -> str:
    """What `read_lines` reads."""
    return "".join(row.model_dump_json() + "\n" for row in rows)


def _document(path: Path) -> Document:
    try:
        return read_json(path)
    except SpecError:
        raise
    except UsageError as error:  # a run's file that isn't there: the run, not the command, is at fault
        raise SpecError(error.where, error.expected, error.got, error.fix) from None


def _groups(path: Path, fix: str) -> Iterator[list[tuple[int, bytes]]]:
    """Lines with their numbers, without spaces around them, some hundreds at once.

    Little more than a record's greatest length is ever held.
    """
    group: list[tuple[int, bytes]] = []
    held = 0
    for number, raw in _lines(path, fix):
        group.append((number, raw))
        held += len(raw)
        if held > TOGETHER:
            yield group
            group, held = [], 0
    if group:
        yield group


def _lines(path: Path, fix: str) -> Iterator[tuple[int, bytes]]:
    try:
        regular(path)
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise SpecError(
                        f"{path}:{number}", f"a line of at most {MAX_LINE_BYTES} bytes", "a longer one", fix
                    )
                if raw.strip():
                    yield number, raw.strip(b" \t\r\n")
    except OSError as error:
        raise SpecError(str(path), "a readable file", error.strerror or "an error", fix) from error


def parse(model: type[Model], document: Document, fix: str = "") -> Model:
    """Validate a document strictly (text is not a number, 1.5 is not an integer) or raise the SpecError about it.

    fix: the way out where the file is a program's and not a person's to correct.
    """
    if not isinstance(document.data, dict):
        got = "nothing" if document.data is None else f"a {type(document.data).__name__}"
        raise SpecError(document.file, "keys and values", got, fix or "see `safear-edit schema` for them")
    kind: Any = model
    try:
        found: Model = _adapter(kind).validate_json(json.dumps(document.data), strict=True)
        return found
    except ValidationError as error:
        explained = explain(error, document, model)
        if fix:
            raise SpecError(explained.where, explained.expected, explained.got, fix) from None
        raise explained from None


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def explain(error: ValidationError, document: Document, model: type[Any]) -> SpecError:
    """The most useful of pydantic's complaints as one line: unknown keys first (they explain missing ones).

    `others` has a line for each of the rest.
    """
    problems = [part for problem in error.errors(include_url=False) for part in _parts(problem)]
    by_use = sorted(problems, key=lambda p: (p["type"] != "extra_forbidden", document.line(p["loc"]) or 0))
    first, *others = ((document.where(_field(problem)), *_reason(problem, model)) for problem in by_use)
    where, expected, got, fix = first
    more = f" ({len(others)} more)" if others else ""
    explained = SpecError(where, expected, got, fix + more)
    explained.others = tuple(SpecError(*other) for other in others)
    return explained


def _parts(problem: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """One of pydantic's error dicts, and one more for each further problem that a check across fields found."""
    yield problem
    for other in problem.get("ctx", {}).get("also", ()):
        yield {**problem, "ctx": other}


def _field(problem: Mapping[str, Any]) -> FieldPath:
    at = problem.get("ctx", {}).get("at", ())
    return tuple(part for part in (*problem["loc"], *at) if part != "[key]")


def _reason(problem: Mapping[str, Any], model: type[Any]) -> tuple[str, str, str]:
    """(expected, got, fix) for one of pydantic's error dicts."""
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    if kind == "refused":
        return context["expected"], context["got"], context["fix"]
    if kind == "extra_forbidden":
        known = known_keys(model, problem["loc"][:-1])
        key = str(problem["loc"][-1])
        return f"one of {', '.join(known)}", f"the unknown key {key!r}", suggestion(key, known)
    if kind == "missing":
        return "this field", "nothing", "add it"
    if kind == "too_short":
        return f"at least {context['min_length']} entry", f"{context['actual_length']}", "add one"
    if kind in PLAIN:
        expected, fix = PLAIN[kind]
        return expected.format(**context), _shown(value), fix
    message = str(problem["msg"])
    for prefix in ("Input should be ", "String should ", "Value should be "):
        message = message.removeprefix(prefix)
    return message[:1].lower() + message[1:], _shown(value), "correct it"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def known_keys(model: type[Any], path: Sequence[str | int]) -> list[str]:
    """The keys that a mapping at `path` may have, read from the model's own JSON Schema."""
    kind: Any = model
    schema = _adapter(kind).json_schema()

    def resolved(node: Any) -> dict[str, Any]:
        while isinstance(node, dict) and "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        return node if isinstance(node, dict) else {}

    node = resolved(schema)
    for part in path:
        inner = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
        node = resolved(inner if inner is not None else node.get("additionalProperties"))
    return sorted(node.get("properties", {}))
