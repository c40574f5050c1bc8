"""Prompt files that strangers wrote: text, tables and JSON, read strictly, with what was found in them said.

    .txt            one prompt a line
    .csv .tsv       a header with a column `prompt`; comma, semicolon or tab, whichever the header has
    .json .jsonl    objects with the same names, or in a .json list plain texts
    .parquet        the same columns, where pyarrow is installed
    -               standard input, by its first line any of the text formats

A file is read row by row, and what was taken waits in a temporary file: 100,000 prompts take no more memory than ten
(a .json list alone is read at once, and may be smaller only).

A seed is read from the first of SEED_COLUMNS that is there, so that I2P's images (`sd_seed`), say, are drawn again
with the seeds that were published with them; a prompt without one gets its own from text, line and root seed.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from safear_edit.errors import SpecError, UsageError
from safear_edit.files.sequences import Spool
from safear_edit.files.strict import parse_json, regular
from safear_edit.spec.benchmarks import Benchmark
from safear_edit.spec.prompts import forbidden, image_seed, one_line

LARGEST_FILE, LARGEST_JSON = 256 << 20, 16 << 20
"""Bytes of a prompt file, and of a .json list, which is in memory as a whole."""
LONGEST_LINE, LONGEST_PROMPT, MOST_PROMPTS = 1 << 20, 2000, 100_000
"""Characters of a line and of one prompt, and prompts that are taken at most."""
LONGEST_NAME = 40
"""Characters of a column's name that are shown."""
SEED_COLUMNS = ("seed", "evaluation_seed", "sd_seed")
"""In the order in which they are looked for: ours, that of unlearning benchmarks, that of I2P."""
STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class FilePrompt:
    """One prompt of the file with the seed of its image; `id` is the file's own, or the line."""

    prompt: str
    seed: int
    id: str


@dataclass(frozen=True)
class PromptFile:
    """What was read; notes: which columns were taken and which not, one line each; bad: a line per skipped row."""

    prompts: Sequence[FilePrompt]
    notes: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()


def _to_line(one: FilePrompt) -> str:
    return json.dumps([one.prompt, one.seed, one.id])


def _from_line(line: str) -> FilePrompt:
    return FilePrompt(*json.loads(line))


Rows = Iterator[tuple[str, int, "dict[str, Any] | SpecError"]]
"""Where it stands, its number, and the row by column names in lower case or what is wrong with it."""


def read_prompts(
    path: Path, seed: int = 0, *, skip_bad: bool = False, benchmark: Benchmark | None = None
) -> PromptFile:
    """Every prompt of the file; SpecError with line and column for the first row that can't be taken.

    skip_bad: such rows are left out and counted instead. An id that is there twice is one of them, and so is an image
    that would be counted twice (same prompt, same seed). A file that can't be read at all is always an error.
    benchmark: whose columns these are; none: ours.
    """
    columns: dict[str, None] = {}
    checked = _Checked(seed)
    bad: list[str] = []

    def taken() -> Iterator[FilePrompt]:
        for where, number, row in islice(_rows(path, benchmark), benchmark.first if benchmark else None):
            try:
                if isinstance(row, SpecError):
                    raise row
                columns.update(dict.fromkeys(row))
                yield checked.taken(where, number, benchmark.own(where, row) if benchmark else row)
            except SpecError as error:
                if not skip_bad:
                    raise
                bad.append(str(error))

    prompts = Spool(taken(), _to_line, _from_line)
    if not prompts:
        got = f"none that can be taken ({bad[0]})" if bad else "none"
        raise SpecError(str(path), "at least one prompt", got, "write one per line")
    notes = _taken(benchmark) if benchmark else _notes(list(columns))
    return PromptFile(prompts, tuple(notes), tuple(bad))


def column_of(path: Path, column: str, where: Mapping[str, str]) -> Iterator[str]:
    """The texts in one column of the rows in which each column of `where` holds its whole word; names and words in any
    case. A row without a text (null) is passed over.

    SpecError for a file that can't be read, a row that can't, a prompt that is no text, or a file without one of the
    columns.
    """
    held = {name: re.escape(word.casefold()) for name, word in where.items()}
    wanted = {name.casefold(): re.compile(rf"(?<!\w){word}(?!\w)") for name, word in held.items()}
    names = (column.casefold(), *wanted)
    for place, _, row in _from_parquet(path, names) if path.suffix.lower() == ".parquet" else _rows(path):
        if isinstance(row, SpecError):
            raise row
        if lacking := [name for name in names if name not in row]:
            raise SpecError(place, f"a column `{lacking[0]}`", f"columns {', '.join(row)}", "name another column")
        if (text := row[names[0]]) is None:
            continue
        if not isinstance(text, str):
            raise SpecError(f"{place}, {names[0]}", "text", repr(text)[:40], "name the column that holds the prompts")
        if all(row[name] is not None and word.search(str(row[name]).casefold()) for name, word in wanted.items()):
            yield text


def _taken(benchmark: Benchmark) -> Iterator[str]:
    """What a benchmark's file says, and what its paper calls the figure."""
    columns = ", ".join(f"{ours} from `{theirs}`" for theirs, ours in benchmark.columns.items())
    yield f"{benchmark.source}: {columns}; the share found is called there {benchmark.metric}"


def _notes(columns: list[str]) -> Iterator[str]:
    """Which columns say what; nothing to say about a file without any but the prompts."""
    if columns == ["prompt"]:
        return
    found = seed_column(columns)
    taken = [name for name in ("prompt", found, "id") if name in columns]
    left = [_shown(name) for name in columns if name not in taken]
    seeds = f"seeds from `{found}`" if found else "a seed of its own for each prompt, because no column has one"
    yield f"prompts from the column `prompt`, {seeds}" + (f"; not used: {', '.join(left)}" if left else "")


def _shown(name: str) -> str:
    """A column's name for a person: in one line, and not all of a long one."""
    plain = name if name.isprintable() else ascii(name)
    return (plain if len(plain) <= LONGEST_NAME else f"{plain[:LONGEST_NAME]}…") or "(unnamed)"


def seed_column(columns: Mapping[str, object] | list[str]) -> str | None:
    """The first of SEED_COLUMNS that is there."""
    return next((name for name in SEED_COLUMNS if name in columns), None)


# -- one row ----------------------------------------------------------------------------------------------------------


class _Checked:
    """What must not come twice, and not too often."""

    def __init__(self, root: int) -> None:
        self.root = root
        self._ids: dict[str, str] = {}
        self._images: set[tuple[str, int]] = set()

    def taken(self, where: str, number: int, row: Mapping[str, Any]) -> FilePrompt:
        """The prompt of one row; SpecError with its place and column if it can't be taken."""
        if len(self._ids) == MOST_PROMPTS:
            raise SpecError(where, f"at most {MOST_PROMPTS} prompts", "one more", "split the file")
        prompt = _prompt(where, row)
        given = _seed(where, row)
        seed = image_seed("eval", f"{number}|{prompt}", self.root) if given is None else given
        name = self._id(where, number, row)
        if (prompt, seed) in self._images:
            fix = "remove the line: it is the same image"
            raise SpecError(where, "another prompt or another seed", "both again", fix)
        self._ids[name] = where
        self._images.add((prompt, seed))
        return FilePrompt(prompt, seed, name)

    def _id(self, where: str, number: int, row: Mapping[str, Any]) -> str:
        named = row.get("id")
        if isinstance(named, bool) or not isinstance(named, str | int | None) or not str(named or "").isprintable():
            raise SpecError(f"{where}, id", "text or a whole number", repr(named)[:40], "correct or remove it")
        own = named in (None, "")
        name = str(number if own else named)
        if name in self._ids:
            got = f"none, and its number {name} is the id of" if own else f"{name[:40]!r} again, as in"
            fix = "fill the field in" if own else "rename or remove one of them"
            raise SpecError(f"{where}, id", "an id of its own", f"{got} {self._ids[name]}", fix)
        return name


def _prompt(where: str, row: Mapping[str, Any]) -> str:
    if "prompt" not in row:
        got = f"columns {', '.join(repr(name[:40]) for name in row)}" if row else "no columns"
        raise SpecError(f"{where}, prompt", "a column `prompt`", got, "rename the column that holds the prompts")
    given = row["prompt"]
    if not isinstance(given, str) or not given.strip():
        raise SpecError(f"{where}, prompt", "text", repr(given)[:40], "fill it in")
    plain = one_line(" ".join(given.splitlines()))  # a line break in a quoted field separates words
    if plain is None or len(plain) > LONGEST_PROMPT or not plain.strip():
        got = "characters that are not shown" if plain is None else f"{len(plain)} characters"
        fix = "shorten or clean it, or leave such lines out (--skip-bad-lines)"
        raise SpecError(f"{where}, prompt", f"at most {LONGEST_PROMPT} printable characters", got, fix)
    if forbidden(plain):
        fix = "this combination is never processed, not even to test it"
        raise SpecError(f"{where}, prompt", "no words for minors together with sexual content", "both", fix)
    return plain.strip()


def _seed(where: str, row: Mapping[str, Any]) -> int | None:
    name = seed_column(row)
    given = row[name] if name else None
    if given is None or given == "":
        return None
    text = "" if isinstance(given, bool) else str(given).strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) < 2**63):
        raise SpecError(f"{where}, {name}", "a whole number below 2^63", repr(given)[:40], "correct or remove it")
    return int(text)


# -- formats ----------------------------------------------------------------------------------------------------------


def _rows(path: Path, benchmark: Benchmark | None = None) -> Rows:
    """The rows of a file by its suffix."""
    if path.suffix.lower() == ".parquet":
        yield from _from_parquet(path, tuple(benchmark.columns) if benchmark else ("prompt", "id", *SEED_COLUMNS))
        return
    where = "standard input" if path == STDIN else str(path)
    with _opened(path) as file:
        suffix = _guessed(file, where) if path == STDIN else path.suffix.lower()
        if suffix == ".json":
            yield from _from_json(_whole(file, where), where)
        elif suffix in READERS:
            lines = suffix == ".csv" and benchmark is not None and benchmark.lines
            yield from (_from_txt if lines else READERS[suffix])(_lines(file, where), where)
        else:
            expected = f"{', '.join(READERS)}, .json, .parquet or - for standard input"
            raise SpecError(where, expected, repr(suffix), "rename or convert it")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, or a copy of standard input, of bearable size."""
    try:
        regular(path)
        with tempfile.TemporaryFile() if path == STDIN else path.open("rb") as file:
            if path == STDIN:
                shutil.copyfileobj(io.BytesIO(sys.stdin.buffer.read(LARGEST_FILE + 1)), file)
            if file.seek(0, io.SEEK_END) > LARGEST_FILE:
                raise SpecError(str(path), f"at most {LARGEST_FILE >> 20} MiB", "a larger file", "split it")
            yield file
    except OSError as error:
        raise SpecError(str(path), "a prompt file", error.strerror or "an error", "check the path") from None


def _lines(file: IO[bytes], where: str) -> Iterator[str]:
    """Lines with their ends, whatever these are (\\n, \\r\\n or \\r), in UTF-8 or what Excel and Windows write (UTF-16
    with its mark). SpecError with the line for other bytes, or a line without end."""
    file.seek(0)
    wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    file.seek(0)
    text, number = io.TextIOWrapper(file, "utf-16" if wide else "utf-8-sig", newline=""), 0
    try:
        while line := text.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                got = "a longer one"
                raise SpecError(f"{where}:{number}", f"a line of at most {LONGEST_LINE} characters", got, "break it")
            yield line
    except UnicodeDecodeError as error:
        if wide:
            raise SpecError(where, "text in UTF-8 or UTF-16", "half a character", "save it as UTF-8") from None
        number += error.object[: error.start].count(b"\n") + 1
        got = f"byte 0x{error.object[error.start]:02x}"
        raise SpecError(f"{where}:{number}", "UTF-8 text", got, "save it as UTF-8") from None
    finally:
        with suppress(ValueError):  # the file may be closed by now
            text.detach()


def _whole(file: IO[bytes], where: str) -> str:
    """All of a .json file."""
    if file.seek(0, io.SEEK_END) > LARGEST_JSON:
        fix = "write one object a line in a .jsonl"
        raise SpecError(where, f"at most {LARGEST_JSON >> 20} MiB in a JSON list", "a larger file", fix)
    return "".join(_lines(file, where))


def _guessed(file: IO[bytes], where: str) -> str:
    """The format of text without a file name, by its first line."""
    first = next((line.strip() for line in _lines(file, where) if line.strip()), "")
    if first.startswith(("[", "{")):
        return ".json" if first.startswith("[") else ".jsonl"
    return ".csv" if "prompt" in (name.strip(' "').casefold() for name in first.split(_separator(first))) else ".txt"


def _separator(header: str, usual: str = ",") -> str:
    """The one of tab, semicolon and comma that the header has most of; the usual one where it has none."""
    return max(",;\t", key=lambda mark: (header.count(mark), mark == usual))


def _numbered(lines: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Lines that aren't blank, without their ends, with their numbers."""
    return ((number, line.rstrip("\r\n")) for number, line in enumerate(lines, 1) if line.strip())


def _from_txt(lines: Iterator[str], where: str) -> Rows:
    for number, line in _numbered(lines):
        yield f"{where}:{number}", number, {"prompt": line.strip()}


def _from_tsv(lines: Iterator[str], where: str) -> Rows:
    """As _from_csv; a single column may have commas in it."""
    return _from_csv(lines, where, "\t")


def _from_csv(lines: Iterator[str], where: str, usual: str = ",") -> Rows:
    """Rows by the header's names, each with the line of the file on which it starts (the header is line 1)."""
    before = list[str]()
    for line in lines:
        before.append(line)
        if line.strip():
            break
    columns: list[str] = []
    separator = _separator(before[-1] if before else "", usual)
    rows = csv.reader(chain(before, lines), delimiter=separator, strict=True)
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"{where}:{number}", number, SpecError(f"{where}:{number}", "csv", str(error), "quote the field")
            continue
        if not row:
            continue
        if not columns:
            columns = _header(f"{where}:{number}", row)
        elif len(row) != len(columns):
            yield f"{where}:{number}", number, _uneven(f"{where}:{number}", row, columns)
        else:
            yield f"{where}:{number}", number, dict(zip(columns, row, strict=True))


def _header(where: str, row: list[str]) -> list[str]:
    """Names in lower case; two columns without one are allowed, since nobody asks for them."""
    names = [name.strip().casefold() for name in row]
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        raise SpecError(where, "columns with names of their own", "one twice", "rename one of them")
    return names


def _uneven(where: str, row: list[str], columns: list[str]) -> SpecError:
    if len(row) < len(columns):
        where, fix = f"{where}, {columns[len(row)]}", "leave no field out; an empty one is two separators"
    else:
        fix = "quote a prompt that holds a separator"
    return SpecError(where, f"{len(columns)} fields as in the header", str(len(row)), fix)


def _from_jsonl(lines: Iterator[str], where: str) -> Rows:
    for number, line in _numbered(lines):
        place = f"{where}:{number}"
        try:
            row = _object(place, parse_json(line, place).data)
        except SpecError as error:
            yield place, number, error
            continue
        yield place, number, row


READERS: Mapping[str, Callable[[Iterator[str], str], Rows]] = {
    ".txt": _from_txt,
    ".csv": _from_csv,
    ".tsv": _from_tsv,
    ".jsonl": _from_jsonl,
}
"""Readers of formats that are read line by line, by suffix."""


def _from_json(text: str, where: str) -> Rows:
    data = parse_json(text, where).data
    if not isinstance(data, list):
        fix = 'write [{"prompt": …}, …], or one object a line in a .jsonl'
        raise SpecError(where, "a JSON list", type(data).__name__, fix)
    for number, row in enumerate(data, 1):
        place = f"{where}, entry {number}"
        yield place, number, {"prompt": row} if isinstance(row, str) else _object(place, row)


def _object(where: str, row: Any) -> dict[str, Any] | SpecError:
    """The names of a JSON object in lower case."""
    if not isinstance(row, dict):
        return SpecError(where, "a JSON object", type(row).__name__, 'write {"prompt": …}')
    found = {name.casefold(): value for name, value in row.items()}
    if len(found) < len(row):
        got = "two that differ in upper and lower case"
        return SpecError(where, "names of their own", got, "remove one of them")
    return found


def _from_parquet(path: Path, asked: tuple[str, ...]) -> Rows:
    """Rows with the columns that are asked for, a batch at a time."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        fix = "pip install pyarrow, or save the table as .csv"
        raise UsageError(str(path), "the package pyarrow for parquet", "nothing installed", fix) from None
    try:
        regular(path)
        file = parquet.ParquetFile(path)
        names = {name: name.strip().casefold() for name in file.schema_arrow.names}
        _header(str(path), list(names))
        if asked[0] not in names.values():
            got = f"columns {', '.join(repr(name[:40]) for name in names)}"
            raise SpecError(str(path), f"a column `{asked[0]}`", got, "rename the column that holds the prompts")
        wanted = [name for name, plain in names.items() if plain in asked]
        batches = (batch.to_pylist() for batch in file.iter_batches(columns=wanted))
        for number, row in enumerate(chain.from_iterable(batches), 1):
            yield f"{path}, row {number}", number, {names[name]: value for name, value in row.items()}
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise SpecError(str(path), "a parquet file", str(error).partition("\n")[0][:80], "write it again") from None
