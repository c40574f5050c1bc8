"""What `ls` shows: families, methods, judges, attacks, concepts, recipes and models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safear_edit.families.load import shipped
from safear_edit.families.reference import ModelRef, Variant, published
from safear_edit.files.strict import read_yaml
from safear_edit.registry import KINDS, builtin_folder, entries, families, unknown

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Listed:
    """One row of `safear-edit ls`."""

    name: str
    summary: str
    source: str


def listing(what: str) -> list[Listed]:
    """Rows for `safear-edit ls WHAT`: models, concepts, recipes, families, methods, judges or attacks."""
    if what == "models":
        return list(_listed_models())
    if what in ("concepts", "recipes"):
        paths = sorted(builtin_folder("concepts" if what == "concepts" else "recipes").glob("*.yaml"))
        return [Listed(path.stem, _description(read_yaml(path).data), str(path)) for path in paths]
    for kind in KINDS:
        if what == kind:
            return [Listed(e.name, e.summary, e.source) for e in entries(kind).values()]
    raise unknown("ls", what, ["models", "concepts", "recipes", *KINDS])


def _listed_models() -> Iterator[Listed]:
    for name, entry in families().items():
        for variant, facts in (published(name).variants or {"mini": Variant(entry.summary)}).items():
            if not facts.files and not shipped(ModelRef(name, variant)):
                continue
            source = f"a folder with {' and '.join(facts.files)}" if facts.files else entry.source
            yield Listed(f"{name}:{variant}", facts.summary, source)


def _description(data: Any) -> str:
    text = data.get("description", "") if isinstance(data, Mapping) else ""
    return " ".join(str(text).split())
