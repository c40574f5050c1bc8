"""A model reference: which weights a name or a folder means, and what a family's file says about its published ones."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from safear_edit.errors import UsageError
from safear_edit.files.strict import read_json
from safear_edit.registry import Entry, assigned, families, lookup, unknown
from safear_edit.spec.spec import Images

LONGEST_NAME = 128
"""Characters of a variant; files of an export and headings of a report have it."""

# -- what a family's file says ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A known set of weights of a family.

    files: what a folder of these weights must hold, weights first; empty: they ship in this package. more: files that
    are read if they are there. repository: on huggingface.co; "": none is known, or it holds another layout. revision:
    the commit there; "": none is pinned. elsewhere: file → repository, for files that are published apart. also: other
    repositories of the same weights, whose names users type. gigabytes: of `files`, 0 where nobody has said.
    text_encoder: repository of the encoder whose folder lies beside the weights. images: what it draws, which decides
    the judges that can read it.
    """

    summary: str
    files: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    repository: str = ""
    revision: str = ""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    gigabytes: float = 0.0
    licence: str = ""
    text_encoder: str = ""
    images: Images = "real"


@dataclass(frozen=True)
class Published:
    """What a family's class assigns in its body, readable without importing it (the import would cost torch).

    variants: empty: the family takes any variant and checks it itself. model_types: values of model_type in config.json
    (of _class_name in a pipeline's model_index.json) by which a published folder is known; such a folder's own name is
    the variant. layouts: name of each layout that
    `export` writes besides the package's own → how a person checks such a folder in the code that it is for.
    """

    variants: Mapping[str, Variant] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    layouts: Mapping[str, str] = field(default_factory=dict)


def published(family: str) -> Published:
    """What the family called `family` says; UsageError if there is none of that name."""
    return _of(lookup("families", family))


def images_of(family: str, variant: str) -> Images:
    """What the variant draws. One that the family doesn't list: the mini world if it is an embedded mini or a test's
    pico, else what published models draw (a folder that is known by its model_type is called as the user likes)."""
    listed = published(family).variants.get(variant)
    return listed.images if listed else "gallery" if variant in ("mini", "pico") else "real"


def all_published() -> dict[str, Published]:
    """The same of every family, by name."""
    return {name: _of(entry) for name, entry in families().items()}


def _of(entry: Entry) -> Published:
    """From the class's source; from the class itself where a third party computes these values."""
    try:
        found = {name: _value(node) for name, node in assigned(entry, tuple(Published.__dataclass_fields__)).items()}
    except ValueError:
        own = entry.load()
        found = {name: getattr(own, name) for name in Published.__dataclass_fields__ if hasattr(own, name)}
    return Published(**found)


def _value(node: ast.expr) -> Any:
    """A literal in which `Variant(…)` may stand; ValueError for anything else."""
    match node:
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {ast.literal_eval(key): _value(value) for key, value in zip(keys, values, strict=True) if key}
        case ast.Call(func=ast.Name(id="Variant"), args=args, keywords=named):
            return Variant(*map(_value, args), **{word.arg: _value(word.value) for word in named if word.arg})
    return ast.literal_eval(node)


# -- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelRef:
    """Which weights: a family's variant, or a directory that holds them."""

    family: str
    variant: str
    path: Path | None = None

    def __str__(self) -> str:
        return str(self.path) if self.path else f"{self.family}:{self.variant}"

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """`llamagen` (its mini), `llamagen:xl-256`, or a directory; UsageError says what is known and what is missing.

        A directory is one that `export` wrote (it holds safear.json) or that holds a published variant's files. A word
        that is both a family and a model's directory here, and the name of a hub's repository, are refused: the message
        says what to write instead.
        """
        path = Path(text).expanduser()
        if text in families():
            _refuse_both(path, text)
        elif os.sep in text or text.startswith((".", "~")) or path.is_dir():
            return cls._directory(path, text)
        name, _, variant = text.partition(":")
        known = published(name).variants
        if ":" in text and not variant:
            raise UsageError(
                f"model {text!r}", "family:variant", "nothing after the colon", f"{name} alone is its mini"
            )
        variant = variant or "mini"
        if known and variant not in known:
            raise unknown(f"variant of {name}", variant, known)
        return cls(name, variant)

    @classmethod
    def _directory(cls, path: Path, text: str) -> ModelRef:
        if not path.is_dir():
            _refuse_repository(text)
            got = "a file" if path.exists() else "nothing there"
            raise UsageError(text, "a model directory", got, "give the folder that holds the weights")
        if (path / "safear.json").exists():
            return cls._exported(path)
        known = all_published()
        kinds = {kind: name for name, facts in known.items() for kind in facts.model_types}
        if (kind := _model_type(path)) in kinds:
            return cls(kinds[kind], path.resolve().name, path)
        found = [
            (name, variant)
            for name, facts in known.items()
            if not facts.model_types
            for variant, one in facts.variants.items()
            if one.files and all((path / file).is_file() for file in one.files)
        ]
        if len(found) == 1:
            return cls(*found[0], path)
        if kind and not found:
            stated = "config.json: model_type" if (path / "config.json").is_file() else "model_index.json: _class_name"
            where, fix = str(path / stated), "see `safear-edit ls models` for what can be loaded"
            raise UsageError(where, f"one of {', '.join(sorted(kinds))}", repr(kind), fix)
        got = "files of several variants" if found else "neither"
        fix = "keep one variant per folder" if found else "see `safear-edit ls models` for the files that belong in it"
        raise UsageError(text, "safear.json or one published variant's files", got, fix)

    @classmethod
    def _exported(cls, path: Path) -> ModelRef:
        document = read_json(path / "safear.json")
        data = document.data
        for key in ("family", "variant"):
            name = data.get(key) if isinstance(data, dict) else None
            if not isinstance(name, str) or not name:
                raise UsageError(document.where((key,)), "a name", "none", "export the model again")
            if not name.isprintable() or PurePath(name).name != name or len(name) > LONGEST_NAME:
                raise UsageError(document.where((key,)), "a name", repr(name[:80]), "export the model again")
        lookup("families", data["family"])
        return cls(data["family"], data["variant"], path)


def _model_type(folder: Path) -> str:
    """What config.json calls a model, or what model_index.json calls a pipeline of diffusers; "" without either."""
    for name, key in (("config.json", "model_type"), ("model_index.json", "_class_name")):
        data = read_json(folder / name).data if (folder / name).is_file() else None
        kind = data.get(key) if isinstance(data, Mapping) else None
        if isinstance(kind, str):
            return kind
    return ""


def _refuse_both(path: Path, text: str) -> None:
    """UsageError where a family's name is a directory with a model as well: either may be meant."""
    if any((path / name).is_file() for name in ("safear.json", "config.json")):
        got = "a family's name and a folder here that holds a model"
        raise UsageError(f"model {text!r}", "one meaning", got, f"write {text}:mini or .{os.sep}{text}")


def _refuse_repository(text: str) -> None:
    """UsageError for the name of a hub's repository that holds a known variant: says that variant's name here."""
    for name, facts in all_published().items():
        for variant, one in facts.variants.items():
            if text.lower() in (other.lower() for other in (one.repository, *one.also)):
                expected, fix = "family:variant or a folder", f"write {name}:{variant}, or the folder that you have"
                raise UsageError(f"model {text!r}", expected, "the name of a hub's repository", fix)
