"""Change one thing in a signed release and see which reader refuses it.

    python -m safear_edit.studies tamper safe-llamagen --trust keys --rows tampering.jsonl

Every file of the release (of sheets of slices one) × every change below × every reader. A reader refuses by exit code 2
or 4; any other accepts what it was given, and 5 is a fault. Readers with --trust must refuse whatever a signature
covers. Those without are tried on changed bytes alone: they can't know of files that they don't read, nor of a folder
that somebody changed consistently. File modes aren't signed: `verify` warns of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safear_edit.errors import UsageError
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.rundir import GIT_ATTRIBUTES
from safear_edit.release.signing import CLAIMS
from safear_edit.studies.arguments import command
from safear_edit.studies.rows import Row, made

Change = Callable[[Path], None]

READERS: dict[str, tuple[str, ...]] = {
    "verify --trust": ("verify", "DIR", "--trust", "KEYS"),
    "check": ("check", "DIR", "--baseline", "BASELINE"),
    "check --trust": ("check", "DIR", "--baseline", "BASELINE", "--trust", "KEYS"),
    "report": ("report", "DIR"),
    "report --trust": ("report", "DIR", "--trust", "KEYS"),
}
BYTES = ("byte changed", "byte changed, digests corrected")
"""What readers without --trust are tried on."""
REFUSED = (2, 4)
TEXTS = (".json", ".jsonl", ".yaml", ".md", ".html", ".txt")


@dataclass(frozen=True)
class Tried:
    """One change to one file: how each reader ended, and whether `verify` warned."""

    change: str
    file: str
    codes: dict[str, int]
    warned: bool


# -- what is changed --------------------------------------------------------------------------------------------------


def _own(path: Path) -> bytes:
    """The content of a file, which is no longer a hard link to the release's own."""
    data, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    path.unlink()
    path.write_bytes(data)
    path.chmod(mode)
    return data


def change_byte(path: Path) -> None:
    """One byte in the middle: of a text a letter or digit, so that it can still be read; else any."""
    data = bytearray(_own(path))
    middle = len(data) // 2
    places = range(middle, len(data)) if path.suffix in TEXTS else range(middle, middle + 1)
    at = next((i for i in places if path.suffix not in TEXTS or (chr(data[i]).isalnum() and data[i] < 128)), middle)
    data[at] = data[at] ^ 1 if data[at] not in b"9z" else data[at] - 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    """The second half lost."""
    data = _own(path)
    path.write_bytes(data[: len(data) // 2])


def remove(path: Path) -> None:
    """The file gone."""
    path.unlink()


def rename(path: Path) -> None:
    """The same bytes under another name."""
    path.rename(path.with_name(f"new-{path.name}"))


def add(path: Path) -> None:
    """A copy beside it."""
    shutil.copyfile(path, path.with_name(f"copy-{path.name}"))


def correct(path: Path) -> None:
    """One byte changed, and the new digest put wherever the old one stood in a text of the release."""
    before = sha256_file(path)
    change_byte(path)
    after, folder = sha256_file(path), _release(path)
    for other in sorted(folder.rglob("*")):
        if other.suffix in TEXTS and other != path and before.encode() in other.read_bytes():
            other.write_bytes(_own(other).replace(before.encode(), after.encode()))


def _release(path: Path) -> Path:
    return next(folder for folder in path.parents if (folder / "report.json").exists() or (folder / CLAIMS).exists())


def mode(bits: int) -> Change:
    """The file with these mode bits as well."""

    def change(path: Path) -> None:
        _own(path)
        path.chmod(stat.S_IMODE(path.stat().st_mode) | bits)

    return change


CHANGES: dict[str, Change] = {
    "byte changed": change_byte,
    "cut in half": cut,
    "removed": remove,
    "renamed": rename,
    "copy added": add,
    "byte changed, digests corrected": correct,
    "setuid": mode(stat.S_ISUID),
    "writable by everyone": mode(stat.S_IWOTH),
}
MODES = ("setuid", "writable by everyone")
HARMLESS = (("removed", GIT_ATTRIBUTES), ("claims reordered", CLAIMS))
"""Let through on purpose: that file keeps git from changing bytes and says nothing; the order of claims neither."""
WARNINGS = ("warning: setuid", "warning: writable by everyone")


def claim_changes(path: Path) -> Iterator[tuple[str, Change]]:
    """Changes to each line of claims.jsonl, and to their order."""

    def rewriting(make: Callable[[list[bytes]], list[bytes]]) -> Change:
        return lambda path: _write_lines(path, make(_own(path).splitlines()))

    for number in range(len(path.read_bytes().splitlines())):
        yield "claim edited", rewriting(lambda lines, n=number: [*lines[:n], _edited(lines[n]), *lines[n + 1 :]])  # type: ignore[misc]
        yield "claim removed", rewriting(lambda lines, n=number: [*lines[:n], *lines[n + 1 :]])  # type: ignore[misc]
        yield "claim doubled", rewriting(lambda lines, n=number: [*lines, lines[n]])  # type: ignore[misc]
    yield "claims reordered", rewriting(lambda lines: lines[::-1])


def _edited(line: bytes) -> bytes:
    """What the claim says with one character exchanged; its signature as it was."""
    envelope = json.loads(line)
    payload = envelope["dsseEnvelope"]["payload"]
    middle = len(payload) // 2
    other = "B" if payload[middle] == "A" else "A"
    envelope["dsseEnvelope"]["payload"] = payload[:middle] + other + payload[middle + 1 :]
    return json.dumps(envelope).encode()


def _write_lines(path: Path, lines: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))


# -- who notices ------------------------------------------------------------------------------------------------------


def ended(words: Sequence[str]) -> tuple[int, str]:
    """Exit code of one command of the CLI, and what it said."""
    from safear_edit.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return main.run(list(words)), said.getvalue()


def _concerns(reader: str, change: str) -> bool:
    """Modes concern `verify` alone, and all but changed bytes those readers that are told whom to trust."""
    return reader.startswith("verify") if change in MODES else "--trust" in reader or change in BYTES


def tried(
    release: Path,
    file: str,
    name: str,
    change: Change,
    places: dict[str, str],
    scratch: Path,
    readers: Mapping[str, Sequence[str]] = READERS,
) -> Tried:
    """Every reader's exit code for a copy of the release in which `change` was made to `file`."""
    copy = scratch / release.name
    shutil.copytree(release, copy, copy_function=os.link)
    change(copy / file)
    codes, warned = dict[str, int](), False
    for reader, words in readers.items():
        if not _concerns(reader, name):
            continue
        code, said = ended([{**places, "DIR": str(copy)}.get(word, word) for word in words])
        codes[reader] = code
        warned = warned or any(word in said for word in WARNINGS)
    shutil.rmtree(copy)
    return Tried(name, file, codes, warned)


def files_of(release: Path) -> list[str]:
    """Every file of the release, relative to it; of the sheets of its slices one image and what stands beside it."""
    found = sorted(path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file())
    one_of = {re.sub(r"/slice-[^/]*\.", "/slice.", name): name for name in reversed(found)}
    return sorted(one_of.values())


def matrix(
    release: Path, places: dict[str, str], scratch: Path, readers: Mapping[str, Sequence[str]] = READERS
) -> Iterator[Tried]:
    """Every change to every file. UsageError unless every reader accepts the release as it is."""
    for reader, words in readers.items():
        code, said = ended([{**places, "DIR": str(release)}.get(word, word) for word in words])
        if code in REFUSED or code == 5:
            raise UsageError(str(release), f"a release that `{reader}` accepts", said.strip()[-200:], "sign it first")
    for file in files_of(release):
        for name, change in CHANGES.items():
            yield tried(release, file, name, change, places, scratch, readers)
    for name, change in claim_changes(release / CLAIMS):
        yield tried(release, CLAIMS, name, change, places, scratch, readers)


def table(found: Sequence[Tried]) -> list[Row]:
    """A row per change: of how many each reader refused how many, and which files were let through, with and without
    --trust."""
    rows = []
    for change in dict.fromkeys(one.change for one in found):
        those = [one for one in found if one.change == change]
        row: Row = {"change": change}
        for reader in those[0].codes:
            row[reader] = {"k": sum(one.codes[reader] in REFUSED for one in those), "n": len(those)}
        for name, trusted in (("let through with --trust", True), ("without --trust", False)):
            row[name] = ", ".join(sorted({one.file for one in those for reader, code in one.codes.items()
                                          if ("--trust" in reader) is trusted and code not in REFUSED}))  # fmt: skip
        if change in MODES:
            row["let through with --trust"] = f"all: modes aren't signed; warned of {sum(o.warned for o in those)}"
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all, print the table's rows; 1 if a reader failed, or one with --trust let content through."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies tamper", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("release", type=Path, help="a signed release; it stays as it is")
    parser.add_argument("--trust", type=Path, required=True, help="folder with the public key that it is signed by")
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=list(READERS), help="all by default")
    parser.add_argument("--rows", type=Path, help="write the table's rows here as JSON lines")
    parser.add_argument("--commit", help="in which the rows are recorded")
    options = parser.parse_args(arguments)
    origin = made(command(parser, options, ("trust", "readers"), [options.release]), options.commit)
    with tempfile.TemporaryDirectory(prefix=".tamper-", dir=options.release.resolve().parent) as name:
        scratch = Path(name)
        baseline = scratch / "baseline.txt"
        ended(["baseline", "accept", str(options.release), "--out", str(baseline), "--reason", "tampering", "--suite",
               "smoke", "--despite", "tampering"])  # fmt: skip
        places = {"KEYS": str(options.trust), "BASELINE": str(baseline)}
        readers = {name: READERS[name] for name in options.readers}
        found = list(matrix(options.release, places, scratch, readers))
    rows = [row | origin for row in table(found)]
    if options.rows is not None:
        write_atomic(options.rows, "".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        print(json.dumps(row))
    failed = [one for one in found if 5 in one.codes.values()]
    for one in failed:
        print(f"fault: {one.change} of {one.file}: {one.codes}")
    through = [one for one in found if one.change not in MODES and (one.change, one.file) not in HARMLESS
               and any("--trust" in reader and code not in REFUSED for reader, code in one.codes.items())]  # fmt: skip
    print(f"{len(found)} changes, {sum(len(one.codes) for one in found)} readings, {len(failed)} faults")
    return 1 if failed or through else 0
