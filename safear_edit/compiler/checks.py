"""Why a spec can't be compiled although its fields are right: labels that no judge knows, gates that ask nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from safear_edit.errors import SpecError, UsageError
from safear_edit.files.strict import Document, FieldPath
from safear_edit.judges import base as judges
from safear_edit.spec.spec import SLICES, Images, Judge, Reader, Spec
from safear_edit.spec.text import Problem


def problems(spec: Spec, images: Images) -> Iterator[Problem]:
    """Everything of that kind, for a model that draws such images; UsageError for an unknown judge or option."""
    found = list(unread(spec, images))
    yield from found or _labels(spec)
    yield from _gates(spec)


def refuse(found: Iterable[Problem], document: Document) -> None:
    """SpecError about all of them at once, if there are any, at their fields in the document."""
    errors = [SpecError(document.where(at), expected, got, fix) for expected, got, fix, at in found]
    if len(errors) > 1:
        first = errors[0]
        more = SpecError(first.where, first.expected, first.got, f"{first.fix} ({len(errors) - 1} more)")
        more.others = tuple(errors[1:])
        raise more
    for error in errors:
        raise error


def fits(method: Any, provides: frozenset[str]) -> bool:
    """Whether a method's class can edit a family with these capabilities, as its decorator says."""
    return method.needs <= provides and ("denoising" not in provides or getattr(method, "denoising", False))


def readers(judge: Judge) -> list[tuple[Reader, FieldPath]]:
    """Who reads what, the concept's judge first, and where it stands."""
    return [(judge, ("judge",)), *([(judge.members, ("judge", "members"))] if judge.members else ())]


def clip_options(spec: Spec, images: Images, where: str) -> tuple[str, str | None]:
    """The CLIP (model, weights) that looks at a concept's images beside its judge: the judge's own where it is one,
    else the embedded minis'. UsageError for published weights without one; `where` says what wants it."""
    options = next((reader.options for reader, _ in readers(spec.judge) if reader.use == "clip"), {})
    if not options and images != "gallery":
        fix = "judge the concept by clip, with its options model and weights"
        raise UsageError(where, "a CLIP for this model's images", f"judge {spec.judge.use}", fix)
    return str(options.get("model", "gallery")), str(options["weights"]) if "weights" in options else None


def reader_class(reader: Reader) -> type[judges.Judge] | None:
    """The reader's class; None for a function of a third party's, which says what it takes when it is called."""
    kind = judges.judge_class(reader.use, reader.options)
    return kind if isinstance(kind, type) and issubclass(kind, judges.Judge) else None


def unread(spec: Spec, images: Images) -> Iterator[Problem]:
    """Judges that can't read what the model draws."""
    for reader, at in readers(spec.judge):
        kind = reader_class(reader)
        try:
            if kind:
                kind.check_images(images, reader.options)
        except UsageError as error:
            yield Problem(error.expected, f"{reader.use}, {error.got}", error.fix, (*at, "use"))


def _labels(spec: Spec) -> Iterator[Problem]:
    """Labels that their judge doesn't know, the concept's and those of preserved members, each label once; and the
    concept's own among the members', as it is where another judge reads published models' images by another label."""
    places: dict[str, FieldPath] = {}
    for index, group in enumerate(spec.preserve):
        for member, label in group.members.items():
            places.setdefault(label, ("preserve", index, "members", member))
    if at := places.pop(spec.judge.label, None):
        fix = "remove it, or look for another label: what is erased can't be preserved"
        yield Problem("labels other than the judge's", repr(spec.judge.label), fix, at)
    members = spec.judge.members or spec.judge
    asked = [(spec.judge, spec.judge.label, ("judge", "label")), *((members, *place) for place in places.items())]
    for reader, label, at in asked:
        kind = reader_class(reader)
        try:
            if kind:
                kind.check(label, reader.options)
        except UsageError as error:
            yield Problem(f"{error.expected}, for judge {reader.use}", error.got, error.fix, at)


def _gates(spec: Spec) -> Iterator[Problem]:
    """Gates that any result passes, or that none can be measured against."""
    gates = spec.gates.every()
    asked = [f"erasure_{name}" for name in SLICES]
    if not any(gates[name] for name in (*asked, "erasure_floor")):
        fix = "say what share must be erased; 0.97 is usual for direct prompts"
        yield Problem(
            "an erasure gate above 0", "0 for each: a model that was never edited would pass", fix, ("gates",)
        )
    for name in ("preserve_upper", "erasure_floor"):
        low = 0 if name == "preserve_upper" else -1
        if not low < gates[name] < 1:
            between = "a share between 0 and 1" if low == 0 else "a share below 1"
            fix = "no number of images can show more"
            yield Problem(between, f"{gates[name]:g}", fix, ("gates", name))
