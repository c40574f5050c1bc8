"""Short specs: `extends: gallery/style` and the few lines that are one's own become the full form.

A set (concepts/sets/<name>.yaml) is a spec with parts left out: what most concepts of a kind share. Mappings are merged
key by key, anything else that a spec states replaces the set's; another judge takes nothing of the set's, but for one
that reads real images: it leaves preserved members to the set's. Three things have a form of their own:

    anchor: {alias: a cat}                  erase.templates with this in {alias}'s place; empty: nothing there
    preserve: {add: …, drop: …, n: …}       single changes to the set's groups (`Changes`)
    preserve: [{extends: gallery/preserve/styles, n: 80}, …]    a group of one's own that starts from a shared one

Nothing of a set names the concept: members with the judge's label, and members, subjects and templates that name it,
leave by themselves. Only the full form is checked, compiled, hashed and released.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from safear_edit.errors import SpecError
from safear_edit.files.records import parse
from safear_edit.files.strict import Document, FieldPath, read_yaml
from safear_edit.registry import builtin_folder, suggestion
from safear_edit.spec.own_prompts import with_prompts
from safear_edit.spec.prompts import fill, mention_of, placeholders
from safear_edit.spec.text import NAME_PATTERN, Count, Part, Text

SET_NAME = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*")

Data = dict[str, Any]
IMAGES = "images_per_prompt"


class NewGroup(Part):
    """A group that a spec adds; what it leaves out, the set's first group has."""

    members: Annotated[dict[Text, Text], Field(min_length=1)]
    role: Literal["neighbour", "object", "style", "plain"] = "neighbour"
    templates: tuple[Text, ...] | None = None
    subjects: list[str] | list[list[str]] | None = None
    n: Count | None = None
    train: bool | None = None
    questions: tuple[Text, ...] | None = None


def _form(value: Any) -> str:
    """Whether an added group is written out or is members alone."""
    return "group" if isinstance(value, Mapping) and isinstance(value.get("members"), Mapping) else "members"


Added = Annotated[
    Annotated[NewGroup, Tag("group")] | Annotated[dict[Text, Text], Field(min_length=1), Tag("members")],
    Discriminator(_form),
]
GroupName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Changes(Part):
    """What a spec changes about the groups of its set."""

    add: dict[GroupName, Added] = Field(
        default={},
        description="Group -> members (words: label), or a whole group. A name that the set has gains the members, and "
        "what else a whole group says; a new one has the templates, subjects and n of the set's first group.",
    )
    drop: tuple[Text, ...] = Field(default=(), description="Names of groups, or words or labels of members.")
    n: Count | dict[GroupName, Count] = Field(default={}, description="Prompts to score: for every group, or by group.")
    images_per_prompt: dict[Text, Count] = Field(
        default={}, description="Label -> images of each of its prompts, in every group that has the label."
    )


class _Changing(Part):
    """A document of changes alone, so that what is wrong in them is told by its place in the file."""

    preserve: Changes


# -- sets -------------------------------------------------------------------------------------------------------------


def set_names() -> list[str]:
    """The shared sets by name, those of single groups too."""
    folder = _folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def judge_of_set(name: str) -> Data:
    """What the set of that name says of the judge; nothing of one that there is not."""
    return _mapping(_read_set(name, name).get("judge")) if name in set_names() else {}


def _folder() -> Path:
    return builtin_folder("concepts") / "sets"


def _read_set(name: Any, where: str) -> Data:
    """The set's own data; SpecError at `where` for a name that there is not."""
    known = set_names()
    if not isinstance(name, str) or not SET_NAME.fullmatch(name) or name not in known:
        raise SpecError(where, f"one of {', '.join(known)}", repr(name), suggestion(str(name), known))
    data: Data = read_yaml(_folder() / f"{name}.yaml").data
    return data


# -- the full form ----------------------------------------------------------------------------------------------------


def full_form(document: Document) -> Document:
    """The document with everything that it extends written out, its own fields still on their lines.

    One that extends nothing stays as it is. SpecError for unknown sets and for changes to what a set doesn't have.
    """
    data = document.data
    if not isinstance(data, dict) or not ("extends" in data or _extending(data.get("preserve"))):
        written = isinstance(data, dict) and "prompts" in data
        return replace(document, data=with_prompts(data, document)) if written else document
    own = {key: value for key, value in data.items() if key != "extends"}
    shared = _read_set(data["extends"], document.where(("extends",))) if "extends" in data else {}
    _refuse_other_kind(shared, own, document)
    shared = {**shared, "judge": _kept_of_judge(_mapping(shared.get("judge")), _mapping(own.get("judge")))}
    without_concept = _without_concept(_merged(shared, own))
    merged = _merged({**shared, "erase": without_concept(_mapping(shared.get("erase")))}, own)
    _write_out_anchor(merged, document)
    groups = _Groups(document, without_concept)
    merged["preserve"] = groups.written_out(shared.get("preserve", []), own.get("preserve"))
    return Document(document.file, with_prompts(merged, document), {**document.lines, **groups.lines})


def _extending(groups: Any) -> bool:
    return isinstance(groups, list) and any(isinstance(group, dict) and "extends" in group for group in groups)


def _refuse_other_kind(shared: Data, own: Data, document: Document) -> None:
    if "kind" in shared and own.get("kind", shared["kind"]) != shared["kind"]:
        expected = f"{shared['kind']}, as {document.data['extends']} has it"
        raise SpecError(document.where(("kind",)), expected, repr(own["kind"]), "extend the set for that kind")


def _kept_of_judge(shared: Data, own: Data) -> Data:
    """What a set's judge leaves to a spec's own: another detector has no use for its threshold, options and prompts.

    Who reads members stays. One that reads real images instead of the set's looks for the concept alone, and the set's
    becomes who reads members. A card brings its own thresholds.
    """
    shared = {key: value for key, value in shared.items() if key != "threshold" or "card" not in own}
    if "use" in own and own["use"] != shared.get("use"):
        return {"members": shared["members"]} if "members" in shared else {}
    theirs, mine = _mapping(shared.get("real")), _mapping(own.get("real"))
    if theirs and "use" in mine and mine["use"] != theirs.get("use"):
        return {**shared, "real": {"members": theirs}}
    return shared


def _mapping(value: Any) -> Data:
    return value if isinstance(value, dict) else {}


def _merged(shared: Data, own: Data) -> Data:
    """`own` over `shared`, mapping by mapping."""
    found = dict(shared)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(shared.get(key), dict)
        found[key] = _merged(shared[key], value) if both else value
    return found


def _write_out_anchor(merged: Data, document: Document) -> None:
    """`anchor: {alias: WORDS}` becomes the counterpart of each of erase.templates.

    Of the two ways to say it the spec's own counts, not its set's; SpecError for both at once.
    """
    own, anchor = _mapping(document.data.get("anchor")), _mapping(merged.get("anchor"))
    if "alias" in own and "templates" in own:
        fix = "leave one of them out"
        raise SpecError(document.where(("anchor", "templates")), "alias or templates", "both", fix)
    templates = _mapping(merged.get("erase")).get("templates")
    if isinstance(word := anchor.get("alias"), str) and isinstance(templates, list):
        rest = {key: value for key, value in anchor.items() if key != "alias"}
        filled = [fill(str(text), alias=word) for text in templates]
        merged["anchor"] = {**rest, "templates": rest["templates"] if "templates" in own else filled}


def _without_concept(spec: Data) -> Callable[[Data], Data]:
    """A function that takes everything out of a shared group, or a shared `erase`, that is or names the concept."""
    label = _mapping(spec.get("judge")).get("label")
    mention = mention_of(_names(spec))

    def free(words: list[Any]) -> list[Any]:
        flat = [word for word in words if isinstance(word, list) or not mention(word)]
        return [free(word) if isinstance(word, list) else word for word in flat]

    def without(shared: Data) -> Data:
        lists: Data = {key: free(shared[key]) for key in ("subjects", "templates") if key in shared}
        members = _mapping(shared.get("members")).items()
        others = {member: own for member, own in members if own != label and not mention(member)}
        return _with_members({**shared, **lists}, others) if members else {**shared, **lists}

    return without


def _names(spec: Data) -> Iterator[str]:
    """Every name of the concept that is text without braces; the check of the full form refuses what else is there."""
    erase, other = _mapping(spec.get("erase")), _mapping(spec.get("paraphrases"))
    for value in (erase.get("concept"), erase.get("aliases"), other.get("train"), other.get("held_out")):
        words = value if isinstance(value, list) else [value]
        yield from (word for word in words if isinstance(word, str) and placeholders(word) == [])


# -- preserve groups --------------------------------------------------------------------------------------------------


class _Groups:
    """The preserve groups of one document, written out; `lines` says where those that it adds stand."""

    def __init__(self, document: Document, without_concept: Callable[[Data], Data]) -> None:
        self.document, self.without_concept = document, without_concept
        self.lines: dict[FieldPath, int] = {}

    def written_out(self, shared: Sequence[Data], own: Any) -> Any:
        """What stands under `preserve` in full: the set's groups, changed; or the document's own list."""
        if isinstance(own, list):
            return [self._group(group, ("preserve", index)) for index, group in enumerate(own)]
        base = [self._group(group, ()) for group in shared]
        if not isinstance(own, dict):
            return _filled(base) if own is None else own
        changes = parse(_Changing, replace(self.document, data={"preserve": own})).preserve
        found = self._sized(self._added(self._left(_filled(base), changes.drop), changes.add), changes.n)
        return self._drawn_more(found, changes.images_per_prompt)

    def _group(self, group: Any, at: FieldPath) -> Any:
        """A group, with what it extends under it; what the concept is called never stands in a shared one."""
        if not isinstance(group, dict) or "extends" not in group:
            return group
        own = {key: value for key, value in group.items() if key != "extends"}
        shared = self.without_concept(_read_set(group["extends"], self.document.where((*at, "extends"))))
        found = {**shared, **own}
        members = own.get("members")
        return _with_members(found, members) if isinstance(members, dict) and IMAGES not in own else found

    def _left(self, groups: list[Data], drop: Sequence[str]) -> list[Data]:
        """Without the groups of these names, and without members of these words or labels."""
        for index, word in enumerate(drop):
            known = {name for group in groups for item in group["members"].items() for name in (group["name"], *item)}
            if word not in known:
                place = self.document.where(("preserve", "drop", index))
                raise SpecError(place, "a group, member or label of the set", repr(word), suggestion(word, known))
            groups = _filled([_without(word, group) for group in groups if group["name"] != word])
        return groups

    def _added(self, groups: list[Data], add: Mapping[str, NewGroup | dict[str, str]]) -> list[Data]:
        """With more members in groups that there are, and with new groups."""
        found = {group["name"]: group for group in groups}
        like: Data = {key: groups[0][key] for key in ("templates", "subjects", "n") if groups and key in groups[0]}
        for name, added in add.items():
            own = _stated(added)
            if name in found:
                found[name] = {**found[name], **own, "members": found[name]["members"] | own["members"]}
            else:
                found[name] = {"name": name, "role": "neighbour", **like, **own}
            self._place(name, list(found).index(name), isinstance(added, NewGroup))
        return list(found.values())

    def _place(self, name: str, index: int, whole: bool) -> None:
        for path, line in self.document.lines.items():
            if path[:3] == ("preserve", "add", name):
                self.lines["preserve", index, *(() if whole or len(path) == 3 else ("members",)), *path[3:]] = line

    def _sized(self, groups: list[Data], n: int | Mapping[str, int]) -> list[Data]:
        """With other numbers of prompts."""
        names = [group["name"] for group in groups]
        sizes = n if isinstance(n, Mapping) else dict.fromkeys(names, n)
        for name in sizes:
            if name not in names:
                place = self.document.where(("preserve", "n", name))
                raise SpecError(place, f"one of {', '.join(names)}", repr(name), suggestion(name, names))
        return [{**group, "n": sizes[group["name"]]} if group["name"] in sizes else group for group in groups]

    def _drawn_more(self, groups: list[Data], images: Mapping[str, int]) -> list[Data]:
        """With more images of each prompt of some labels."""
        known = {label for group in groups for label in group["members"].values()}
        if unknown := [label for label in images if label not in known]:
            place = self.document.where(("preserve", IMAGES, unknown[0]))
            raise SpecError(place, "a label of the set", repr(unknown[0]), suggestion(unknown[0], known))
        own = [{label: k for label, k in images.items() if label in group["members"].values()} for group in groups]
        return [
            {**group, IMAGES: {**group.get(IMAGES, {}), **some}} if some else group
            for group, some in zip(groups, own, strict=True)
        ]


def _stated(added: NewGroup | dict[str, str]) -> Data:
    """What an added group says of itself."""
    if isinstance(added, NewGroup):
        return added.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return {"members": added}


def _without(word: str, group: Data) -> Data:
    return _with_members(group, {m: label for m, label in group["members"].items() if word not in (m, label)})


def _with_members(group: Data, members: Mapping[str, Any]) -> Data:
    """A group with these of its members alone, and nothing said of labels that are gone."""
    if IMAGES not in group:
        return {**group, "members": members}
    numbers = {label: count for label, count in _mapping(group[IMAGES]).items() if label in members.values()}
    return {**group, "members": members, IMAGES: numbers}


def _filled(groups: Sequence[Data]) -> list[Data]:
    return [group for group in groups if group["members"]]
