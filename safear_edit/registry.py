"""What there is to choose from: families, methods, judges, attacks, and the concepts and recipes that come with them.

A folder is a promise that you may add a file: the built-in classes are found by reading (not importing) the files of
families/, methods/, judges/ and attacks/ for their decorators, so listing them costs no torch import and a new method
is one new file. Third parties register through the entry point groups `safear_edit.families`, `safear_edit.methods`,
`safear_edit.judges` and `safear_edit.attacks` (name = the name users type, value = "module:Class").
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from safear_edit.errors import UsageError

Kind = Literal["families", "methods", "judges", "attacks"]
KINDS: dict[Kind, str] = {"families": "family", "methods": "method", "judges": "judge", "attacks": "attack"}
"""Folder and entry point group -> name of the decorator, which is also the word used in messages."""

PACKAGE = Path(__file__).parent
Class = TypeVar("Class", bound=type[Any])


# -- decorators -------------------------------------------------------------------------------------------------------


def family(name: str) -> Callable[[Class], Class]:
    """Class decorator: this `ModelFamily` is what users call `name`."""
    return _marked(name=name)


def method(
    name: str, *, paper: str, needs: frozenset[str] = frozenset(), denoising: bool = False
) -> Callable[[Class], Class]:
    """Class decorator for an editing method; `needs` are the capabilities that a family must provide for it.

    denoising: it also edits models that denoise latents, which have no image tokens and no likelihoods of them.
    """
    return _marked(name=name, paper=paper, needs=needs, denoising=denoising)


def judge(name: str) -> Callable[[Class], Class]:
    """Class decorator: what a spec's `judge.use` names."""
    return _marked(name=name)


def attack(name: str, *, access: str) -> Callable[[Class], Class]:
    """Class decorator for an attack; `access` is what an attacker needs: black-box, grey-box or white-box."""
    return _marked(name=name, access=access)


def _marked(**facts: object) -> Callable[[Class], Class]:
    """The facts become class attributes: a class found by file or by entry point then carries them along."""

    def mark(cls: Class) -> Class:
        for key, value in facts.items():
            setattr(cls, key, value)
        return cls

    return mark


# -- looking up -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One thing that can be named; nothing is imported until `load`."""

    kind: Kind
    name: str
    module: str
    attribute: str
    summary: str
    source: str
    """"built in", or the distribution that brings it."""

    def load(self) -> Any:
        """The class; UsageError if a third party's module can't be imported (a fault in our own stays a fault)."""
        try:
            loaded = getattr(importlib.import_module(self.module), self.attribute)
        except (ImportError, AttributeError) as error:
            if self.source == "built in":
                raise
            where = f"{KINDS[self.kind]} {self.name!r} of {self.source}"
            raise UsageError(where, f"{self.module}:{self.attribute}", str(error), f"repair {self.source}") from error
        if not hasattr(loaded, "name"):
            loaded.name = self.name
        return loaded


def entries(kind: Kind) -> dict[str, Entry]:
    """Everything of one kind by name, sorted; UsageError when a third party takes a name that exists already."""
    found: dict[str, Entry] = {}
    for entry in (*_built_in(kind, PACKAGE / kind), *_third_party(kind)):
        if entry.name in found:
            got = f"another one in {entry.source}"
            raise UsageError(f"{KINDS[kind]} {entry.name!r}", "one provider", got, f"uninstall {entry.source}")
        found[entry.name] = entry
    return dict(sorted(found.items()))


def families() -> dict[str, Entry]:
    return entries("families")


def families_with(capability: str) -> str:
    """Names of the families that provide it, for a sentence; loads every family's module."""
    return ", ".join(name for name, entry in families().items() if capability in entry.load().provides)


def methods() -> dict[str, Entry]:
    return entries("methods")


def judges() -> dict[str, Entry]:
    return entries("judges")


def attacks() -> dict[str, Entry]:
    return entries("attacks")


def lookup(kind: Kind, name: str) -> Entry:
    """The entry called `name`; UsageError with the nearest name and the list otherwise."""
    known = entries(kind)
    if name not in known:
        raise unknown(KINDS[kind], name, known)
    return known[name]


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that isn't known: says the nearest one and all there are."""
    names = sorted(known)
    return UsageError(what, f"one of {', '.join(names) or '(none installed)'}", repr(name), suggestion(name, names))


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or where to look when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "take one of these"


def marks(entry: Entry) -> dict[str, Any]:
    """What the class's decorator says beside its name (paper, needs, access), read without importing it; a class that
    isn't decorated with literals is loaded."""
    path = source_file(entry.module)
    own = _class(path, entry.attribute) if path else None
    for call in own.decorator_list if own else ():
        match call:
            case ast.Call(func=ast.Name(id=found), keywords=named) if found == KINDS[entry.kind]:
                with suppress(ValueError):
                    return {word.arg: _literal(word.value) for word in named if word.arg}
    loaded = entry.load()
    return {name: getattr(loaded, name) for name in ("paper", "needs", "access") if hasattr(loaded, name)}


def _literal(node: ast.expr) -> Any:
    """A literal, or a frozenset of one; ValueError for anything else."""
    match node:
        case ast.Call(func=ast.Name(id="frozenset"), args=[inner]):
            return frozenset(ast.literal_eval(inner))
    return ast.literal_eval(node)


def assigned(entry: Entry, names: Collection[str]) -> dict[str, ast.expr]:
    """What the body of the entry's class assigns to these names, as syntax: read, and nothing of it is imported.

    Names that the class doesn't assign itself are missing; so are all of a class whose source can't be read.
    """
    path = source_file(entry.module)
    found: dict[str, ast.expr] = {}
    own = _class(path, entry.attribute) if path else None
    for node in own.body if own else ():
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in names:
                found[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if name in names:
                found[name] = value
    return found


def _class(path: Path, name: str) -> ast.ClassDef | None:
    return next((node for node in _parsed(path) if isinstance(node, ast.ClassDef) and node.name == name), None)


def _parsed(path: Path) -> list[ast.stmt]:
    """The statements of a file, parsed once as long as it doesn't change; none of a file that isn't Python."""
    try:
        return _parsed_once(path, path.stat().st_mtime_ns)
    except (OSError, SyntaxError, UnicodeDecodeError):
        return []


@lru_cache(maxsize=256)
def _parsed_once(path: Path, changed_ns: int) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


@cache
def _built_in(kind: Kind, folder: Path) -> tuple[Entry, ...]:
    """What the program's own files declare; they don't change while it runs, so each folder is read once."""
    marker, found = KINDS[kind], list[Entry]()
    for path in sorted(folder.glob("*.py")):
        if f"@{marker}(" not in path.read_text(encoding="utf-8"):
            continue
        for node in _parsed(path):
            if isinstance(node, ast.ClassDef) and (name := _marked_name(node, marker)):
                doc = (ast.get_docstring(node) or "").partition("\n")[0]
                found.append(Entry(kind, name, f"{__package__}.{kind}.{path.stem}", node.name, doc, "built in"))
    return tuple(found)


def _marked_name(node: ast.ClassDef, marker: str) -> str | None:
    """The first argument of the class's `@marker("name", …)`, if it has one."""
    for call in node.decorator_list:
        match call:
            case ast.Call(func=ast.Name(id=found), args=[ast.Constant(value=str(name)), *_]) if found == marker:
                return name
    return None


def _third_party(kind: Kind) -> Iterator[Entry]:
    return iter(_installed(kind, tuple(sys.path)))


@cache
def _installed(kind: Kind, path: tuple[str, ...]) -> list[Entry]:
    """What packages on `path`, where Python looks, offer; each package there is opened for that, so it is done once."""
    found = []
    for point in metadata.entry_points(group=f"safear_edit.{kind}"):
        source = point.dist.name if point.dist else "an unnamed distribution"
        doc = _docstring(point.module, point.attr)
        summary = f"{doc} (from {source})" if doc else f"from {source}"
        found.append(Entry(kind, point.name, point.module, point.attr, summary, source))
    return found


def source_file(module: str) -> Path | None:
    """Where a module's source lies, without importing any of it; None if it has none on this machine's path."""
    top, _, rest = module.partition(".")
    try:
        found = find_spec(top)
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None:
        return None
    path = Path(found.origin)
    for part in filter(None, rest.split(".")):
        folder = path.parent
        path = folder / f"{part}.py" if (folder / f"{part}.py").is_file() else folder / part / "__init__.py"
    return path if path.is_file() else None


def source_digest(modules: Iterable[str]) -> str:
    """sha256 over the sources of these modules and of all that each imports from its own package, directly or not."""
    found, left = dict[str, bytes](), list(modules)
    while left:
        module = left.pop()
        if module in found or (path := source_file(module)) is None:
            continue
        found[module], package = path.read_bytes(), module.rpartition(".")[0]
        for node in ast.walk(ast.Module([*_parsed(path)], [])):
            if isinstance(node, ast.ImportFrom) and node.module and package:
                named = (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
                left += [name for name in named if name.startswith(f"{package}.")]
    digest = hashlib.sha256()
    for module, source in sorted(found.items()):
        digest.update(f"{module} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def _docstring(module: str, attribute: str) -> str:
    """The first line of a class's docstring, read and not imported; "" where it can't be read."""
    path = source_file(module)
    found = _class(path, attribute) if path else None
    return (ast.get_docstring(found) or "").partition("\n")[0] if found else ""


# -- built-in concepts and recipes, and lists -------------------------------------------------------------------------


def builtin_folder(kind: Literal["concepts", "recipes"]) -> Path:
    """Where the package's own YAML lies: inside the installed package, or beside it in a source checkout."""
    inside, beside = PACKAGE / kind, PACKAGE.parent / kind
    return beside if not inside.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file() else inside


def builtin_names(kind: Literal["concepts", "recipes"]) -> list[str]:
    """The names of the built-in concepts or recipes, sorted."""
    return sorted(path.stem for path in builtin_folder(kind).glob("*.yaml"))


def find_builtin(kind: Literal["concepts", "recipes"], name: str) -> Path:
    """The file of a built-in concept or recipe by name (with or without .yaml); UsageError names what there is."""
    found = {path.stem: path for path in builtin_folder(kind).glob("*.yaml")}
    stem = name.removesuffix(".yaml")
    if stem not in found:
        raise unknown(kind.removesuffix("s"), name, found)
    return found[stem]
