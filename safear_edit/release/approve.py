"""A person's approval of a release: one more signed in-toto statement in claims.jsonl, about the very same files.

Neither `model.sig` nor any file that it covers changes, so a release can be approved after it was signed, by somebody
else's key, and approved again by another. The statement has a predicate type of its own (in-toto Statement v1 allows
any): a test result says what a program found, an approval says that a named person takes responsibility for using it.
Who verifies needs the approver's public key in the trust folder, like the signer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safear_edit.errors import TrustError, UsageError
from safear_edit.files.atomic import write_atomic
from safear_edit.files.rundir import changing
from safear_edit.release.claims import statement_about, timestamp
from safear_edit.release.keys import SigningKey
from safear_edit.release.signing import CLAIMS, sign_statement
from safear_edit.release.verify import Verification

APPROVAL_TYPE = "urn:safear-edit:attestation:approval:v1"
LONGEST = 500
"""Characters of a name, a role or a note: a page shows them whole."""


@dataclass(frozen=True)
class Approval:
    """Who approved the files, in which role, when (RFC 3339, UTC), and whose key signed that."""

    name: str
    role: str
    note: str
    when: str
    key: str


def approve(folder: Path, verified: Verification, key: SigningKey, *, name: str, role: str, note: str = "") -> Approval:
    """Append a signed approval of exactly the files in `verified` to `folder/claims.jsonl`, in one step.

    verified: what `verify_folder` found just before. A failed test result does not stop an approval, which is a
    person's decision; the result is repeated in the statement. UsageError for an empty or overlong name or role, and
    while another command works on the folder.
    """
    for what, text in (("--name", name), ("--role", role), ("--note", note)):
        if (not text.strip() and what != "--note") or len(text) > LONGEST or not text.isprintable():
            raise UsageError(
                what, f"1 to {LONGEST} printable characters", repr(text[:40]), "say who approves, and as what"
            )
    approval = Approval(name.strip(), role.strip(), note.strip(), timestamp(datetime.now(UTC)), key.hint)
    predicate = {
        "approver": {"name": approval.name, "role": approval.role},
        "note": approval.note,
        "approvedOn": approval.when,
        "testResult": verified.result,
    }
    line = sign_statement(statement_about(verified.files, APPROVAL_TYPE, predicate), key)
    path = folder / CLAIMS
    with changing(folder):  # two at once would both add to what was there before, and one would be lost
        write_atomic(path, path.read_text(encoding="utf-8").removesuffix("\n") + "\n" + line + "\n")
    return approval


def approvals(verified: Verification) -> tuple[Approval, ...]:
    """Every approval among the claims that verified, in the order in which they were given; a copied line once."""
    claims = (claim for claim in verified.claims if claim.type == APPROVAL_TYPE)
    return tuple(dict.fromkeys(_read(claim.predicate, claim.key) for claim in claims))


def _read(predicate: Mapping[str, Any], key: str) -> Approval:
    """TrustError for a signed statement that is no approval as `approve` writes it."""
    person = predicate.get("approver")
    texts = {
        "name": person.get("name") if isinstance(person, Mapping) else None,
        "role": person.get("role") if isinstance(person, Mapping) else None,
        "note": predicate.get("note"),
        "when": predicate.get("approvedOn"),
    }
    for field, text in texts.items():
        if not isinstance(text, str) or len(text) > LONGEST or not text.isprintable():
            expected = f"at most {LONGEST} printable characters"
            raise TrustError(f"approval, {field}", expected, ascii(text)[:40], "ask the approver to approve again")
    return Approval(**{field: str(text) for field, text in texts.items()}, key=key)
