"""Records are read strictly: one clear line with file, line and field for whatever is not what was written."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ConfigDict

from safear_edit.errors import SpecError, UsageError
from safear_edit.files.records import (
    MAX_LINE_BYTES,
    StrictRecord,
    parse,
    read_lines,
    read_record,
    read_records,
    to_lines,
)
from safear_edit.files.strict import Document


class Seen(StrictRecord):
    """A record of the tests."""

    prompt: str
    model: Literal["base", "edited"] = "base"
    score: float | None = None
    found: bool | None = None


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [Seen(prompt="a house"), Seen(prompt="ein Häuschen", model="edited", score=0.5, found=True)]
    (tmp_path / "a.jsonl").write_text(to_lines(rows) + "\n")
    assert [row for _, row in read_lines(Seen, tmp_path / "a.jsonl")] == rows
    assert [number for number, _ in read_lines(Seen, tmp_path / "a.jsonl")] == [1, 2]
    (tmp_path / "a.json").write_text(rows[1].model_dump_json())
    assert read_record(Seen, tmp_path / "a.json") == rows[1]
    (tmp_path / "a.json").write_text("[" + ",".join(row.model_dump_json() for row in rows) + "]")
    assert read_records(Seen, tmp_path / "a.json") == tuple(rows)


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "a house"}',
        ' {"prompt" : "a", "score"\t: -1.5e-7, "found": null}',
        '{"prompt": "say \\"a\\": b", "model": "edited"}',
        '{"prompt": "the key \': ", "score": 3}',
        '{"prompt": "a", "score": 1e50}',
        '{"prompt": "NaN"}',
        '{"prompt": "a", "tags": ["x"], "of": {"a": 1}}',
        '{"prompt": "a", "of": {"a": 1, "a": 2}}',
        '{"prompt": "a", "other": 1, "other": 1}',
        '{"prompt": "a", "other": 1e400}',
        '{"prompt": "a", "other": NaN}',
        '{"prompt": "a", "other": 1' + 45 * "0" + "}",
        '{"prompt": "a", "other": "\\udc00"}',
    ],
)
def test_a_line_is_read_as_a_document_is(tmp_path: Path, text: str) -> None:
    """Also where unknown keys are passed over: lines have a reader of their own for what is plainly in order."""

    class Some(Seen):
        model_config = ConfigDict(extra="ignore")

    def said(read: Callable[[], Some]) -> Some | str:
        try:
            return read()
        except SpecError as error:
            return f"{error.expected} {error.got}"

    path = tmp_path / "a"
    path.write_text(text)
    assert said(lambda: next(read_lines(Some, path))[1]) == said(lambda: read_record(Some, path))


SPLIT = {
    "two records in a line, none in the next": ['{"prompt": "a"}, {"prompt": "b"}', ""],
    "a record over two lines": ['{"prompt": "a",', '"score": 1}'],
    "two over two, torn elsewhere": ['{"prompt": "a"', '"score": 1}, {"prompt": "b"}'],
    "a list over two lines": ['{"prompt": "a", "tags": [1}', '{"a": 2}]}, {"prompt": "b"}'],
    "an object over two lines": ['{"prompt": "a", "of": {"x": 1}', '{"prompt": "b"}}'],
    "a text over two lines": ['{"prompt": "a}', '{b"}'],
    "a key twice, one missing": ['{"prompt": "a", "prompt": "b"}', "{}"],
    "a space that is none": ['\x0b{"prompt": "a"}', '{"prompt": "b"}'],
}


@pytest.mark.parametrize("name", SPLIT)
def test_lines_that_are_records_only_together_are_refused(tmp_path: Path, name: str) -> None:
    """Lines are read some hundreds at once."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(['{"prompt": "a house"}', *SPLIT[name]]) + "\n")
    with pytest.raises(SpecError, match=r"a\.jsonl:[23]"):
        list(read_lines(Seen, path))


def test_all_lines_are_read_however_many(tmp_path: Path) -> None:
    rows = [Seen(prompt=f"house {i}" + (' "' if i == 9000 else ""), score=i / 7) for i in range(10_000)]
    (tmp_path / "a.jsonl").write_text(to_lines(rows))
    assert list(read_lines(Seen, tmp_path / "a.jsonl")) == list(enumerate(rows, 1))


BAD = {
    "a key twice": ('{"prompt": "a house", "prompt": "a dog"}', "'prompt' twice"),
    "NaN": ('{"prompt": "a", "score": NaN}', "NaN"),
    "Infinity": ('{"prompt": "a", "score": -Infinity}', "Infinity"),
    "too large a number": ('{"prompt": "a", "score": 1e400}', "1e400"),
    "an integer too large": ('{"prompt": "a", "score": 1' + 400 * "0" + "}", "too long"),
    "a word for a number": ('{"prompt": "a", "score": "0.5"}', "score"),
    "a number for a word": ('{"prompt": 7}', "prompt"),
    "a number for a truth": ('{"prompt": "a", "found": 1}', "found"),
    "an unknown field": ('{"prompt": "a", "promt": "b"}', "promt"),
    "a field missing": ('{"score": 0.5}', "prompt"),
    "another model": ('{"prompt": "a", "model": "other"}', "model"),
    "a list": ("[1]", "a list"),
    "no JSON": ("{", "valid JSON"),
    "half a character": ('{"prompt": "\\ud800"}', "surrogate"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_record_is_one_line_with_its_place(tmp_path: Path, name: str) -> None:
    text, says = BAD[name]
    (tmp_path / "a.jsonl").write_text('{"prompt": "fine"}\n' + text + "\n")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SpecError) as caught:
        list(read_lines(Seen, tmp_path / "a.jsonl"))
    told = str(caught.value)
    assert "a.jsonl:2" in told and says in told and len(told.splitlines()) == 1, told
    with pytest.raises(SpecError, match=r"a\.json") as caught:
        read_record(Seen, tmp_path / "a.json")
    assert len(str(caught.value).splitlines()) == 1


def test_what_was_expected_is_said_in_the_words_of_who_writes_yaml() -> None:
    class Wanted(StrictRecord):
        names: tuple[str, ...] = ()
        sizes: dict[str, int] | None = None
        share: float = 0.0
        word: str = "x"

    said = {
        '{"names": "a"}': "names: expected a list, got 'a'; write [one, another]",
        '{"names": null}': "names: expected a list, got nothing; write [one, another]",
        '{"sizes": 3}': "sizes: expected keys and values, got 3; write one",
        '{"sizes": {"a": 1.5}}': "sizes.a: expected a whole number, got 1.5; write it",
        '{"share": "0.9"}': "share: expected a number, got '0.9'; write it without quotes",
        '{"word": 3}': "word: expected text, got 3; write words, in quotes",
    }
    for text, line in said.items():
        with pytest.raises(SpecError) as caught:
            parse(Wanted, Document("own.yaml", json.loads(text)))
        assert str(caught.value).startswith(f"own.yaml {line}")


def test_a_list_names_the_entry(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "a"}, {"prompt": 7}]')
    with pytest.raises(SpecError, match="entry 1 prompt"):
        read_records(Seen, path)
    path.write_text("{}")
    with pytest.raises(SpecError, match="a JSON list of objects"):
        read_records(Seen, path)


def test_missing_and_unreadable_files_are_one_line(tmp_path: Path) -> None:
    for read in (read_record, read_records, lambda kind, path: list(read_lines(kind, path))):
        with pytest.raises(SpecError, match="nowhere"):
            read(Seen, tmp_path / "nowhere")
        (tmp_path / "bytes").write_bytes(b"\xff\xfe")
        with pytest.raises(SpecError, match="UTF-8"):
            read(Seen, tmp_path / "bytes")


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="regular file"):
        list(read_lines(Seen, tmp_path / "pipe"))


def test_a_long_line_is_refused_before_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "a"}\n{"prompt": "')
        for _ in range(64):
            file.write(b"a" * MAX_LINE_BYTES)
    tracemalloc.start()
    with pytest.raises(SpecError, match=r"long\.jsonl:2: expected a line of at most"):
        list(read_lines(Seen, path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MAX_LINE_BYTES
