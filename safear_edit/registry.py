"""What there is to choose from: families, methods, judges, attacks, and the concepts and recipes that come with them.

A folder is a promise that you may add a file: the built-in classes are found by reading (not importing) the files of
families/, methods/, judges/ and attacks/ for their decorators, so listing them costs no torch import and a new method
is one new file. Third parties register through the entry point groups `safear_edit.families`, `safear_edit.methods`,
`safear_edit.judges` and `safear_edit.attacks` (name = the name users type, value = "module:Class").
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from safear_edit.errors import UsageError
from safear_edit.yaml_strict import read_json, read_yaml

if TYPE_CHECKING:
    import torch

    from safear_edit.families.base import ModelFamily

Kind = Literal["families", "methods", "judges", "attacks"]
KINDS: dict[Kind, str] = {"families": "family", "methods": "method", "judges": "judge", "attacks": "attack"}
"""Folder and entry point group -> name of the decorator, which is also the word used in messages."""

PACKAGE = Path(__file__).parent
Class = TypeVar("Class", bound=type[Any])


# -- decorators -------------------------------------------------------------------------------------------------------


def family(name: str) -> Callable[[Class], Class]:
    """Class decorator: this `ModelFamily` is what users call `name`."""
    return _marked(name=name)


def method(name: str, *, paper: str, needs: frozenset[str] = frozenset()) -> Callable[[Class], Class]:
    """Class decorator for an editing method; `needs` are the capabilities that a family must provide for it."""
    return _marked(name=name, paper=paper, needs=needs)


def judge(name: str) -> Callable[[Class], Class]:
    """Class decorator: what a spec's `judge.use` names."""
    return _marked(name=name)


def attack(name: str) -> Callable[[Class], Class]:
    """Class decorator for an attack."""
    return _marked(name=name)


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
    for entry in (*_built_in(kind), *_third_party(kind)):
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


def _built_in(kind: Kind) -> Iterator[Entry]:
    marker = KINDS[kind]
    for path in sorted((PACKAGE / kind).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"@{marker}(" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and (name := _marked_name(node, marker)):
                doc = (ast.get_docstring(node) or "").partition("\n")[0]
                yield Entry(kind, name, f"{__package__}.{kind}.{path.stem}", node.name, doc, "built in")


def _marked_name(node: ast.ClassDef, marker: str) -> str | None:
    """The first argument of the class's `@marker("name", …)`, if it has one."""
    for call in node.decorator_list:
        match call:
            case ast.Call(func=ast.Name(id=found), args=[ast.Constant(value=str(name)), *_]) if found == marker:
                return name
    return None


def _third_party(kind: Kind) -> Iterator[Entry]:
    for point in metadata.entry_points(group=f"safear_edit.{kind}"):
        source = point.dist.name if point.dist else "an unnamed distribution"
        yield Entry(kind, point.name, point.module, point.attr, f"from {source}", source)


# -- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A known set of weights of a family: `files` empty = shipped in this package."""

    summary: str
    files: tuple[str, ...] = ()


SHARDS = ("config.json", "tokenizer.json", "model.safetensors.index.json")
"""A large model in transformers' layout."""
VILA_U_FILES = ("config.json", "llm/config.json", "vision_tower/config.json", "mm_projector/config.json")
"""A folder of folders, each with its weights beside its config.json."""
VARIANTS: dict[str, dict[str, Variant]] = {
    "chameleon": {
        "7b": Variant("published 7B, 512 px: answers; was tuned not to draw", (*SHARDS, "vqgan.ckpt")),
        "anole-7b": Variant(
            "Anole 7B, 512 px: draws, answers (with vqgan.ckpt, unless the shards hold its decoder)", SHARDS
        ),
    },
    "emu3": {
        "gen": Variant("published 8B tuned to draw, 720 px", SHARDS),
        "chat": Variant("published 8B tuned to answer", SHARDS),
    },
    "infinity": {
        "mini": Variant("the mini world's Infinity, shipped with this package"),
        "125m": Variant(
            "published 125M, 256 px (with infinity_vae_d16.pth or _d32.pth, as its tokens have bits)",
            ("infinity_125M_256x256.pth",),
        ),
        "2b": Variant("published 2B, 1024 px", ("infinity_2b_reg.pth", "infinity_vae_d32reg.pth")),
        "8b": Variant(
            "published 8B, 1024 px",
            ("infinity_8b_weights/model.safetensors.index.json", "infinity_vae_d56_f8_14_patchify.pth"),
        ),
        "8b-512": Variant(
            "published 8B, 512 px",
            ("infinity_8b_512x512_weights/model.safetensors.index.json", "infinity_vae_d56_f8_14_patchify.pth"),
        ),
    },
    "janus": {
        "mini": Variant("the mini world's Janus, shipped with this package"),
        "pro-1b": Variant(
            "published 1B, 384 px: draws, answers", ("config.json", "tokenizer.json", "model.safetensors")
        ),
        "pro-7b": Variant("published 7B, 384 px: draws, answers", SHARDS),
    },
    "liquid": {
        "7b": Variant("published 7B, 512 px: draws, answers (vqgan.yaml if there is one)", (*SHARDS, "vqgan.ckpt"))
    },
    "omnimamba": {
        "1.3b": Variant(
            "published 1.3B, 256 px: draws, answers (the tokenizer is gpt-neox-20b's)",
            ("OmniMamba-1.3b.pth", "tokenizer.json"),
        )
    },
    "llamagen": {
        "mini": Variant("the mini world's LlamaGen, shipped with this package"),
        "xl-256": Variant("published 775M text-to-image, 256 px", ("t2i_XL_stage1_256.pt", "vq_ds16_t2i.pt")),
        "xl-512": Variant("published 775M text-to-image, 512 px", ("t2i_XL_stage2_512.pt", "vq_ds16_t2i.pt")),
    },
    "vila_u": {
        "7b-256": Variant("published 7B, 256 px, 4 codes per place: draws, answers", VILA_U_FILES),
        "7b-384": Variant("published 7B, 384 px, 16 codes per place: draws, answers", VILA_U_FILES),
    },
}
"""Variants with a name (parity.md section 1); families that aren't here take any variant and check it themselves."""


MODEL_TYPES = {
    "chameleon": "chameleon",
    "emu3": "emu3",
    "gemma": "liquid",
    "janus": "janus",
    "multi_modality": "janus",
    "vila_u_llama": "vila_u",
}
"""model_type in a published folder's config.json → family; such a folder's own name is the variant."""


def _model_type(folder: Path) -> str:
    file = folder / "config.json"
    data = read_json(file).data if file.is_file() else None
    kind = data.get("model_type") if isinstance(data, Mapping) else None
    return kind if isinstance(kind, str) else ""


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

        A directory is one that `export` wrote (it holds safear.json) or that holds a published variant's files.
        """
        path = Path(text).expanduser()
        if os.sep in text or text.startswith((".", "~")) or (path.is_dir() and text not in families()):
            return cls._directory(path, text)
        name, _, variant = text.partition(":")
        lookup("families", name)
        known = VARIANTS.get(name)
        if ":" in text and not variant:
            raise UsageError(
                f"model {text!r}", "family:variant", "nothing after the colon", f"{name} alone is its mini"
            )
        variant = variant or "mini"
        if known is not None and variant not in known:
            raise unknown(f"variant of {name}", variant, known)
        return cls(name, variant)

    @classmethod
    def _directory(cls, path: Path, text: str) -> ModelRef:
        if not path.is_dir():
            got = "a file" if path.exists() else "nothing there"
            raise UsageError(text, "a model directory", got, "give the folder that holds the weights")
        if (path / "safear.json").exists():
            return cls._exported(path)
        if (kind := _model_type(path)) in MODEL_TYPES:
            return cls(MODEL_TYPES[kind], path.resolve().name, path)
        layouts = [
            (name, variant)
            for name, variants in VARIANTS.items()
            if name not in MODEL_TYPES.values()
            for variant, facts in variants.items()
            if facts.files and all((path / file).is_file() for file in facts.files)
        ]
        if len(layouts) == 1:
            return cls(*layouts[0], path)
        if kind and not layouts:
            where, fix = f"{path / 'config.json'}: model_type", "see `safear-edit ls models` for what can be loaded"
            raise UsageError(where, f"one of {', '.join(MODEL_TYPES)}", repr(kind), fix)
        got = "files of several variants" if layouts else "neither"
        fix = (
            "keep one variant per folder" if layouts else "see `safear-edit ls models` for the files that belong in it"
        )
        raise UsageError(text, "safear.json or one published variant's files", got, fix)

    @classmethod
    def _exported(cls, path: Path) -> ModelRef:
        document = read_json(path / "safear.json")
        data = document.data
        for key in ("family", "variant"):
            if not isinstance(data, dict) or not isinstance(data.get(key), str) or not data[key]:
                raise UsageError(document.where((key,)), "a name", "none", "export the model again")
        lookup("families", data["family"])
        return cls(data["family"], data["variant"], path)


def load_model(text: str, device: str | torch.device = "cpu", **options: Any) -> ModelFamily:
    """Parse a model reference and load it (`options`, such as dtype, go to the family's `load`).

    UsageError for published weights, which this package can't fetch: it says which files to put where.
    """
    ref = ModelRef.parse(text)
    facts = VARIANTS.get(ref.family, {}).get(ref.variant)
    if facts and facts.files and ref.path is None:
        files = " and ".join(facts.files)
        fix = f"put {files} into one folder and give that folder instead of {ref}"
        raise UsageError(f"model {ref}", "its published weights on this machine", "only their name", fix)
    if ref.path is None and not shipped(ref):
        there = ", ".join(f"{name}:mini" for name in families() if shipped(ModelRef(name, "mini")))
        fix = f"give a folder of weights of that family, or take {there}"
        raise UsageError(f"model {ref}", "weights that ship with this package", "none yet", fix)
    model: ModelFamily = lookup("families", ref.family).load().load(ref, device=device, **options)
    return model


def shipped(ref: ModelRef) -> bool:
    """Whether the weights of a built-in variant are in this package (a family's code may come before its mini)."""
    source = lookup("families", ref.family).source
    return source != "built in" or (PACKAGE / "minis" / ref.family / "safear.json").is_file()


# -- built-in concepts and recipes, and lists -------------------------------------------------------------------------


def builtin_folder(kind: Literal["concepts", "recipes"]) -> Path:
    """Where the package's own YAML lies: inside the installed package, or beside it in a source checkout."""
    inside, beside = PACKAGE / kind, PACKAGE.parent / kind
    return beside if not inside.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file() else inside


def find_builtin(kind: Literal["concepts", "recipes"], name: str) -> Path:
    """The file of a built-in concept or recipe by name (with or without .yaml); UsageError names what there is."""
    found = {path.stem: path for path in builtin_folder(kind).glob("*.yaml")}
    stem = name.removesuffix(".yaml")
    if stem not in found:
        raise unknown(kind.removesuffix("s"), name, found)
    return found[stem]


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
        for variant, facts in VARIANTS.get(name, {"mini": Variant(entry.summary)}).items():
            if not facts.files and not shipped(ModelRef(name, variant)):
                continue
            source = f"a folder with {' and '.join(facts.files)}" if facts.files else entry.source
            yield Listed(f"{name}:{variant}", facts.summary, source)


def _description(data: Any) -> str:
    text = data.get("description", "") if isinstance(data, Mapping) else ""
    return " ".join(str(text).split())
