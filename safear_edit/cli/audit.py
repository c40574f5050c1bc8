"""The verbs for whoever checks a release: `report`, `verify` and `keygen`; main.py attaches VERBS."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safear_edit.cli.options import (
    FOLDER,
    NEW,
    ForProgram,
    Replacing,
    Trusting,
    option,
    print_json,
    print_result,
    refuse_existing_file,
    taking,
)
from safear_edit.errors import printable

if TYPE_CHECKING:
    from safear_edit.release.approve import Approval
    from safear_edit.release.verify import Verification


@dataclass(frozen=True)
class ReportOptions(Trusting, Replacing, ForProgram):
    out: Path | None = option("--out", "-o", type=NEW, help="Write the page (.html) or the data (.json) here.")


@click.command()
@click.argument("folder", type=FOLDER)
@taking(ReportOptions)
def report(folder: Path, given: ReportOptions) -> int:
    """Build the report again from a released folder's files; no model is loaded and the folder stays as signed.

    Refused with exit code 4 if the files are not those of the report in the folder. Only --trust checks a signature.

    \b
    safear-edit report safe-llamagen --out report.html
    """
    from safear_edit.files.atomic import write_atomic
    from safear_edit.pipeline.publish import rebuild_report

    if given.out is not None:
        refuse_existing_file(given.out, overwrite=given.overwrite)
    result, page = rebuild_report(folder, given.trust)
    if given.out is not None:
        write_atomic(given.out, result.report.to_json() if given.out.suffix == ".json" else page)
    return print_result(result, given.as_json)


@dataclass(frozen=True)
class VerifyOptions(ForProgram):
    trust: Path = option("--trust", type=FOLDER, required=True, help="Folder with the *.pub files that you trust.")
    ignore_foreign: bool = option(
        "--ignore-foreign",
        is_flag=True,
        help="List and leave out what git, a hub's client or the system put there; follow a hub cache's links.",
    )


@click.command()
@click.argument("folder", type=FOLDER)
@taking(VerifyOptions)
def verify(folder: Path, given: VerifyOptions) -> int:
    """Check a released folder: signature, contents, claims. Any change is refused with exit code 4.

    \b
    safear-edit verify safe-llamagen --trust keys
    """
    from safear_edit.release.approve import approvals
    from safear_edit.release.verify import verify_folder

    found = verify_folder(folder, given.trust, ignore_foreign=given.ignore_foreign)
    approved = approvals(found)
    if given.as_json:
        facts = {"key": found.key, "key_sha256": found.hint, "root": found.root, "result": found.result}
        names = {"warnings": list(found.warnings), "ignored": list(found.ignored)}
        people = {"approvals": [asdict(one) for one in approved]}
        print_json({**facts, "files": dict(found.files), **names, **people})
        return 0
    for line in _told(folder, found, approved):
        print(printable(line))
    return 0


def _told(folder: Path, found: Verification, approved: Sequence[Approval]) -> Iterator[str]:
    """What verified, a line each; names of files, keys and tests are whoever's who made the folder."""
    yield f"{folder}: {len(found.files)} files as signed by {found.key} (key {found.hint[:16]}), root {found.root}"
    yield f"{len(found.claims)} signed claims about these files; test result {found.result}"
    for one in approved:
        own = ", the key that signed the release" if one.key == found.key else ""
        note = f": {one.note}" if one.note else ""
        yield f"approved by {one.name}, {one.role}, {one.when}, key {one.key}{own}{note}"
    if not approved:
        yield "not approved: nobody has signed for its use (`safear-edit approve`)"
    yield from (f"ignored: {name}" for name in found.ignored)
    yield from (f"warning: {warning}" for warning in found.warnings)


@click.command()
@click.argument("folder", type=NEW)
@click.option("--name", default="safear", show_default=True, help="File name of the pair.")
def keygen(folder: Path, name: str) -> int:
    """Make a signing key: FOLDER/NAME.key (private, mode 0600) and FOLDER/NAME.pub (to be shared and trusted).

    With SAFEAR_SIGNING_KEY_PASSWORD set, the private key is encrypted with it.

    \b
    safear-edit keygen keys
    """
    from safear_edit.release.keys import PASSWORD_VARIABLE, generate

    password = os.environ.get(PASSWORD_VARIABLE)
    pair = generate(folder, name, password.encode() if password else None)
    locked = "encrypted" if password else f"not encrypted (set {PASSWORD_VARIABLE} to encrypt it)"
    print(f"private: {pair.private}, {locked}; keep it secret")
    print(f"public:  {pair.public}, sha256 {pair.hint}; give it to those who verify")
    return 0


VERBS: tuple[click.Command, ...] = (report, verify, keygen)
