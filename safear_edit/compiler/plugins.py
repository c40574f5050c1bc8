"""Which foreign code takes part in a recipe: distribution, version and file digest of every plug-in that it names.

A family, method or judge may come from another distribution by entry point (registry.py). Such code decides what a
release is worth as much as ours does, so the release names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Literal

from pydantic import BaseModel, ConfigDict

from safear_edit.compiler.recipe import Recipe
from safear_edit.files.atomic import sha256_file
from safear_edit.registry import Entry, Kind, lookup, source_file


class Plugin(BaseModel):
    """One family, method or judge that another distribution brings.

    sha256: of the module's own file, "" where it has none that can be read (a compiled module, for instance).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["families", "methods", "judges", "attacks"]
    name: str
    distribution: str
    version: str
    module: str
    sha256: str


def plugins_of(family: str, recipes: Iterable[Recipe]) -> tuple[Plugin, ...]:
    """Every plug-in among a model's family and what these recipes name, each once, in the order of the recipes."""
    used = ((kind, name) for recipe in recipes for kind, name in _used(recipe))
    named: dict[tuple[Kind, str], None] = dict.fromkeys([("families", family), *used])
    entries = (lookup(kind, name) for kind, name in named)
    return tuple(_plugin(entry) for entry in entries if entry.source != "built in")


def _used(recipe: Recipe) -> Iterator[tuple[Kind, str]]:
    yield "methods", recipe.method.name
    yield "judges", recipe.spec.judge.use
    if recipe.spec.judge.members:
        yield "judges", recipe.spec.judge.members.use


def _plugin(entry: Entry) -> Plugin:
    try:
        version = metadata.version(entry.source)
    except metadata.PackageNotFoundError:
        version = "unknown"
    file = source_file(entry.module)
    return Plugin(
        kind=entry.kind,
        name=entry.name,
        distribution=entry.source,
        version=version,
        module=entry.module,
        sha256=sha256_file(file) if file else "",
    )
