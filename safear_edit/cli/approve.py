"""The verb `approve`: a person takes responsibility for a verified release, in a signed claim of their own."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safear_edit.cli.options import FOLDER, print_json, shared
from safear_edit.errors import UsageError

if TYPE_CHECKING:
    from safear_edit.release.keys import SigningKey
    from safear_edit.release.verify import Verification


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--name", required=True, help="Who approves.")
@click.option("--role", required=True, help="As what: the office or board that answers for the decision.")
@click.option("--note", default="", help="Conditions, or why; stands in the claim.")
@click.option(
    "--trust", type=FOLDER, help="Folder of the *.pub files to verify against (default: the key that approves)."
)
@shared("key", "json")
def approve(folder: Path, name: str, role: str, note: str, trust: Path | None, key: str | None, as_json: bool) -> int:
    """Sign that a person approves exactly these files; the release is verified first, and none of its files changes.

    \b
    safear-edit approve safe-llamagen --name "Ada Example" --role "content safety board" --key keys/safear.key
    """
    from safear_edit.release.approve import approve as sign_approval
    from safear_edit.release.keys import find_signer

    signer = find_signer(key, os.environ)
    if signer is None:
        raise UsageError("--key", "the approver's private key", "none", "make one with `safear-edit keygen FOLDER`")
    verified = _verified(folder, trust, signer)
    given = sign_approval(folder, verified, signer, name=name, role=role, note=note)
    if as_json:
        print_json({**asdict(given), "result": verified.result, "warnings": list(verified.warnings)})
        return 0
    for warning in verified.warnings:
        print(f"warning: {warning}")
    print(f"{folder}: approved by {given.name}, {given.role}, {given.when}, key {given.key[:16]}")
    print(f"the public half of that key belongs in the trust folder of everyone who runs `safear-edit verify {folder}`")
    return 0


def _verified(folder: Path, trust: Path | None, signer: SigningKey) -> Verification:
    """What the release's own signature says; TrustError if it is of no key in `trust`, or not of `signer` without."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from safear_edit.release.verify import verify_folder

    if trust is not None:
        return verify_folder(folder, trust)
    with tempfile.TemporaryDirectory() as alone:
        pem = signer.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (Path(alone) / "approver.pub").write_bytes(pem)
        return verify_folder(folder, Path(alone))


VERBS: tuple[click.Command, ...] = (approve,)
"""What main.py adds to its group."""
