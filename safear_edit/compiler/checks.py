"""Why a spec can't be compiled although its fields are right: labels that no judge knows, gates that ask nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from safear_edit.errors import SpecError, UsageError
from safear_edit.files.strict import Document, FieldPath
from safear_edit.judges.base import Judge, judge_class
from safear_edit.spec.spec import SLICES, Spec
from safear_edit.spec.text import Problem


def problems(spec: Spec) -> Iterator[Problem]:
    """Everything of that kind; UsageError for an unknown judge or option."""
    yield from _labels(spec)
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


def _labels(spec: Spec) -> Iterator[Problem]:
    """Labels that the judge doesn't know, the concept's and those of preserved members, each label once."""
    kind = judge_class(spec.judge.use, spec.judge.options)
    if not (isinstance(kind, type) and issubclass(kind, Judge)):
        return  # a function of a third party's: it says what it takes when it is called
    places: dict[str, FieldPath] = {spec.judge.label: ("judge", "label")}
    for index, group in enumerate(spec.preserve):
        for member, label in group.members.items():
            places.setdefault(label, ("preserve", index, "members", member))
    for label, at in places.items():
        try:
            kind.check_label(label)
        except UsageError as error:
            yield Problem(f"{error.expected}, for judge {spec.judge.use}", error.got, error.fix, at)


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
