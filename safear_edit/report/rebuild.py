"""A released folder's report, worked out again from the bytes of its files and held against the one that lies there.

Whoever changes a file and corrects its digest in report.json is found out by what else the report says: its id is the
digest of all inputs, the weights' digest that of all weight files, and its counts are those of the outcomes. Whoever
corrects all of that leaves a folder that agrees with itself; only a signature says whose it is.
"""

from __future__ import annotations

from pathlib import Path, PurePath

from safear_edit.errors import TrustError, UsageError
from safear_edit.files.atomic import sha256_file
from safear_edit.report.build import build_report, digest_of_files, digest_of_inputs, read_report
from safear_edit.report.evidence import RunFiles
from safear_edit.report.schema import Report

LOADED = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json"})
"""Of files that a model is made from; one that the report doesn't name could be loaded instead of one that it does."""
WEIGHTS = LOADED - {".json"}
FRESH = "get a fresh copy, or make the folder again with `safear-edit apply`"

Counts = dict[str, tuple[int, int]]


def rebuild(folder: Path) -> Report:
    """The report that the files of `folder` give.

    TrustError (exit 4) if report.json names other bytes, lacks a file of the model or of the evidence, or says other
    counts: then its figures belong to another model. SpecError for what is missing or can't be read, UsageError for a
    folder that is no release.
    """
    path, stated, promised = _stated(folder)
    for name in stated.reproduce.inputs:  # before `find`, to which a folder without them is a run that isn't finished
        _require_file(folder / name)
    run = RunFiles.find(folder, model=folder)
    needed = [file for files in run.concepts for file in (files.recipe, files.outcomes)]
    for file in (run.judges, *needed):
        _require_named(file, folder, promised)
    for name, digest in promised.items():
        _require_digest(folder / name, digest)
    now = build_report(run)
    for name in (*now.reproduce.inputs, *(sheet.file for sheet in now.images)):
        _require_named(folder / name, folder, promised)
    for part in now.subject.files:
        if PurePath(part.name).suffix.lower() in LOADED and not part.name.startswith("."):
            _require_named(folder / part.name, folder, promised)
    _require_own_digests(path, stated)
    _require(path, "counts", _counts(stated), _counts(now))
    subject = stated.subject.model_copy(update={"verify": now.subject.verify})  # not in reports from before it was kept
    return now.model_copy(update={"subject": subject})


def refuse_other_bytes(folder: Path) -> None:
    """TrustError unless every file that report.json names has the bytes that it names, and no other weights lie there.

    That holds for weights that no edit changes, too: whoever builds on a release takes them over as they are. Files
    are read once, block by block; nothing is built again. Errors as `rebuild`'s.
    """
    path, stated, promised = _stated(folder)
    _require_own_digests(path, stated)
    for name, digest in promised.items():
        _require_digest(folder / name, digest)
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in WEIGHTS and file.is_file():
            _require_named(file, folder, promised)


def _stated(folder: Path) -> tuple[Path, Report, dict[str, str]]:
    """report.json, what it says, and every file that it names with its sha256."""
    path = folder / "report.json"
    if not path.exists():
        raise UsageError(str(folder), "a released folder with report.json", "none", "give the folder of `apply`")
    stated = read_report(path)
    named = {file.name: file.sha256 for file in stated.subject.files}
    return path, stated, {**stated.reproduce.inputs, **named, **{one.file: one.sha256 for one in stated.images}}


def _require_own_digests(path: Path, stated: Report) -> None:
    _require(path, "report.id", stated.report.id, digest_of_inputs(stated.reproduce.inputs))
    _require(path, "subject.weights_digest", stated.subject.weights_digest, digest_of_files(stated.subject.files))


def _require_named(path: Path, folder: Path, promised: dict[str, str]) -> None:
    if path.relative_to(folder).as_posix() not in promised:
        raise TrustError(str(path), "a file that the report names", "one that it does not name", FRESH)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise TrustError(str(path), "a file that the report names", "no such file", "get a whole copy of the folder")


def _require_digest(path: Path, digest: str) -> None:
    _require_file(path)
    got = sha256_file(path)
    if got != digest:
        raise TrustError(str(path), f"the file of the report, {digest[:12]}…", f"{got[:12]}…", FRESH)


def _require(path: Path, what: str, stated: object, found: object) -> None:
    if stated != found:
        raise TrustError(f"{path}, {what}", "what follows from the folder's files", "something else", FRESH)


def _counts(report: Report) -> dict[str, Counts]:
    """By concept and slice, how many images were scored and how many of the edited model's show what was asked for."""
    found: dict[str, Counts] = {}
    for concept in report.concepts:
        asked = [(part.slice, part.scored, part.edited_found) for part in concept.erasure]
        kept = [(part.group, part.scored, part.edited_kept) for part in concept.preservation]
        found[concept.name] = {name: (scored, rate.k if rate else 0) for name, scored, rate in (*asked, *kept)}
    return found
