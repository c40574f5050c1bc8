"""The verb `approve`: a person takes responsibility for a verified release, in a signed claim of their own."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safear_edit.cli.options import FOLDER, ForProgram, option, print_json, taking
from safear_edit.errors import TrustError, UsageError, printable

if TYPE_CHECKING:
    from safear_edit.release.keys import SigningKey
    from safear_edit.release.verify import Verification


@dataclass(frozen=True)
class ApproveOptions(ForProgram):
    name: str = option("--name", required=True, help="Who approves.")
    role: str = option("--role", required=True, help="As what: the office or board that answers for the decision.")
    note: str = option("--note", default="", help="Conditions, or why; stands in the claim.")
    trust: Path | None = option(
        "--trust", type=FOLDER, help="Folder of the *.pub files to verify against (default: the key that approves)."
    )
    key: str | None = option("--key", help="Private key: PEM file or KMS URI (default: SAFEAR_SIGNING_KEY).")


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@taking(ApproveOptions)
def approve(folder: Path, given: ApproveOptions) -> int:
    """Sign that a person approves exactly these files; the release is verified first, and none of its files changes.

    \b
    safear-edit approve safe-llamagen --name "Ada Example" --role "content safety board" --key keys/safear.key
    """
    from safear_edit.release.approve import approve as sign_approval
    from safear_edit.release.keys import find_signer

    signer = find_signer(given.key, os.environ)
    if signer is None:
        raise UsageError("--key", "the approver's private key", "none", "make one with `safear-edit keygen FOLDER`")
    verified = _verified(folder, given.trust, signer)
    made = sign_approval(folder, verified, signer, name=given.name, role=given.role, note=given.note)
    if given.as_json:
        print_json({**asdict(made), "result": verified.result, "warnings": list(verified.warnings)})
        return 0
    for warning in verified.warnings:
        print(printable(f"warning: {warning}"))
    print(f"{folder}: approved by {made.name}, {made.role}, {made.when}, key {made.key[:16]}")
    print(f"the public half of that key belongs in the trust folder of everyone who runs `safear-edit verify {folder}`")
    return 0


def _verified(folder: Path, trust: Path | None, signer: SigningKey) -> Verification:
    """What the release's own signature says; TrustError if it is of no key in `trust`, or not of `signer` without."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from safear_edit.release.verify import UnknownKeyError, verify_folder

    if trust is not None:
        return verify_folder(folder, trust)
    with tempfile.TemporaryDirectory() as alone:
        pem = signer.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (Path(alone) / "approver.pub").write_bytes(pem)
        try:
            return verify_folder(folder, Path(alone))
        except UnknownKeyError as error:
            fix = "if another key signed the release, name the folder of its *.pub file with --trust"
            raise TrustError(error.where, "a signature of the key that approves", error.got, fix) from error


VERBS: tuple[click.Command, ...] = (approve,)
"""What main.py adds to its group."""
