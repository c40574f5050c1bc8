"""The verbs that tell what there is: `ls`, `params` and `completion`; main.py attaches VERBS."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safear_edit.cli.options import ForProgram, option, print_json, print_table, taking
from safear_edit.registry import (
    KINDS,
    PACKAGE,
    Entry,
    assigned,
    builtin_folder,
    entries,
    families,
    marks,
    unknown,
)

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import BaseRecipe
    from safear_edit.families.reference import ModelRef, Variant


@dataclass(frozen=True)
class Listed:
    """One row of `safear-edit ls`; facts: further columns, by their heads."""

    name: str
    summary: str
    source: str
    facts: Mapping[str, str]

    @property
    def row(self) -> dict[str, str]:
        """Everything by the column's head."""
        return {"name": self.name, "what it is": self.summary, **self.facts, "where from": self.source}


def listing(what: str) -> list[Listed]:
    """Rows for `safear-edit ls WHAT`: models, concepts, recipes, families, methods, judges or attacks."""
    if what == "models":
        return list(_listed_models())
    if what == "concepts":
        return sorted((_listed_concept(path) for path in builtin_folder("concepts").glob("*.yaml")), key=_by_images)
    if what == "recipes":
        from safear_edit.files.strict import read_yaml

        paths = sorted(builtin_folder("recipes").glob("*.yaml"))
        return [Listed(path.stem, _description(read_yaml(path).data), str(path), {}) for path in paths]
    if what == "judges":
        return [Listed(e.name, e.summary, e.source, {"images": _read_by(e)}) for e in entries("judges").values()]
    for kind in KINDS:
        if what == kind:
            facts = _method_facts if kind == "methods" else lambda entry: dict[str, str]()
            return [Listed(e.name, e.summary, e.source, facts(e)) for e in entries(kind).values()]
    raise unknown("ls", what, ["models", "concepts", "recipes", *KINDS])


def _listed_concept(path: Path) -> Listed:
    """A built-in concept with the images that its judges read."""
    from safear_edit.files.strict import read_yaml
    from safear_edit.spec.extend import judge_of_set

    data = read_yaml(path).data
    judge = {**judge_of_set(str(data.get("extends"))), **data["judge"]}
    images = [kind for kind, there in (("gallery", judge.get("use") == "gallery"), ("real", "real" in judge)) if there]
    return Listed(path.stem, _description(data), str(path), {"images": ", ".join(images or ["real"])})


def _by_images(row: Listed) -> tuple[str, str]:
    return row.facts["images"], row.name


def _read_by(entry: Entry) -> str:
    """What a judge's class says; a third party's that says nothing reads whatever it is given."""
    said = assigned(entry, ("images",)).get("images")
    return ", ".join(ast.literal_eval(said)) if said is not None else "gallery, real"


def _description(data: Any) -> str:
    text = data.get("description", "") if isinstance(data, Mapping) else ""
    return " ".join(str(text).split())


# -- methods ----------------------------------------------------------------------------------------------------------


def _method_facts(entry: Entry) -> dict[str, str]:
    """Paper, what a family must have, what is edited, and what the search took where that was measured."""
    from safear_edit.compiler.recipe import load_base_recipe

    told, base = marks(entry), load_base_recipe(entry.name)
    part = base.params.get("part")
    own = assigned(entry, ("edits",)).get("edits")
    table = "the table of image tokens" if own is None else ast.literal_eval(own)
    edits = table if part is None else f"an adapter on linear layers: {part}"
    anything = "any family" if told.get("denoising") else "image tokens"
    needs = " and ".join(sorted(told.get("needs", ()))) or anything
    minutes = ", ".join(f"{model} {minutes:g}" for model, minutes in base.measured.items()) or "not measured"
    paper = told.get("paper", "").replace("https://arxiv.org/abs/", "arXiv:")
    return {"needs": needs, "edits": edits, "search, minutes": minutes, "paper": paper}


# -- models -----------------------------------------------------------------------------------------------------------


def _listed_models() -> Iterator[Listed]:
    from safear_edit.families.load import shipped
    from safear_edit.families.reference import ModelRef, Variant, published

    for name, entry in families().items():
        for variant, facts in (published(name).variants or {"mini": Variant(entry.summary)}).items():
            ref = ModelRef(name, variant)
            if facts.files or shipped(ref):
                source = f"a folder with {' and '.join(facts.files)}" if facts.files else entry.source
                yield Listed(str(ref), facts.summary, source, _model_facts(ref, facts))


def _model_facts(ref: ModelRef, facts: Variant) -> dict[str, str]:
    """What it draws, size and licence, and whether the weights are on this machine."""
    from safear_edit.families.fetch import pulled
    from safear_edit.families.reference import images_of

    inside = PACKAGE / "minis" / ref.family
    size = (
        sum(path.stat().st_size for path in inside.rglob("*.safetensors")) / 1e9 if not facts.files else facts.gigabytes
    )
    there = "yes" if not facts.files or pulled(ref) else f"pull {ref}" if facts.repository else "no"
    more = f" + {facts.text_encoder}" if facts.text_encoder else ""
    gigabytes = f"{size:.3f}" if 0 < size < 0.1 else f"{size:.1f}" if size else "not known"
    return {
        "images": images_of(ref.family, ref.variant),
        "weights, GB": gigabytes + more,
        "licence": facts.licence or "not stated",
        "here": there,
    }


@click.command("ls")
@click.argument("what", type=click.Choice(["models", "methods", "concepts", "recipes", "judges", "attacks"]))
@taking(ForProgram)
def list_(what: str, given: ForProgram) -> int:
    """List what can be named.

    A model needs its weights' size in memory at least, and as much again for every figure of training; `plan` predicts
    both for a model that is here.

    \b
    safear-edit ls methods
    """
    rows = [row.row for row in listing(what)]
    if given.as_json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    return 0


# -- params -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """One value that `--set` changes, as a model has it; source: the comment beside it in the method's recipe."""

    key: str
    default: str
    type: str
    meaning: str
    source: str


def numbers(method: str, model: str) -> list[Number]:
    """What `--set` takes for a method (or recipe) on a model; UsageError for an unknown one of either."""
    from safear_edit.compiler.compile import method_params
    from safear_edit.compiler.recipe import ConstructSizes, load_base_recipe
    from safear_edit.compiler.sources import notes_of
    from safear_edit.families.reference import ModelRef
    from safear_edit.pipeline.check import NominalCard

    base, ref = load_base_recipe(method), ModelRef.parse(model)
    own = base.for_model(NominalCard(str(ref), ref.family))
    params = method_params(own.method, own.params, f"recipe {method}")
    notes = notes_of(method)
    values = {name: getattr(params, name) for name in type(params).model_fields}
    found = _numbers("params", type(params).model_json_schema(), values, base, str(ref), notes)
    sizes = {name: getattr(own.construct, name) for name in ConstructSizes.model_fields}
    return [*found, *_numbers("construct", ConstructSizes.model_json_schema(), sizes, base, str(ref), notes)]


def _numbers(
    section: str,
    schema: dict[str, Any],
    values: Mapping[str, Any],
    base: BaseRecipe,
    ref: str,
    notes: Mapping[str, str],
) -> list[Number]:
    from safear_edit.compiler.sources import source_of

    found = []
    for name, value in values.items():
        facts = schema["properties"][name]
        source = ": ".join(word for word in source_of(section, name, base, ref, notes) if word)
        shown = "null" if value is None else list(value) if isinstance(value, tuple) else value
        found.append(Number(f"{section}.{name}", str(shown), type_words(facts), facts.get("description", ""), source))
    return found


def type_words(facts: Mapping[str, Any]) -> str:
    """A JSON Schema's property in words: "number, above 0", "one of seq, token", "list of whole numbers"."""
    if "anyOf" in facts:
        return " or ".join(dict.fromkeys(type_words(one) for one in facts["anyOf"]))
    if "enum" in facts or "const" in facts:
        choices = facts.get("enum", [facts.get("const")])
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
    names = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    kind = str(facts.get("type", "value"))
    if kind == "array":
        return f"list of {type_words(facts.get('items', {}))}s"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{words} {facts[key]:g}" for key, words in bounds.items() if key in facts]
    return ", ".join([names.get(kind, kind), " and ".join(limits)]).rstrip(", ")


@dataclass(frozen=True)
class ParamsOptions(ForProgram):
    model: str = option("--model", "-m", default="llamagen", show_default=True, help="Whose defaults are shown.")


@click.command()
@click.argument("method")
@taking(ParamsOptions)
def params(method: str, given: ParamsOptions) -> int:
    """List what --set takes for a method: key, default on a model, type, meaning, and where the number is from.

    Of a spec --set also takes evaluate.n.SLICE, gates.NAME, judge.threshold, understanding.concept and
    preserve.GROUP.n: `safear-edit validate SPEC --resolved` prints them.

    \b
    safear-edit params vce --model janus
    """
    rows = [vars(one) for one in numbers(method, given.model)]
    if given.as_json:
        print_json(rows)
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    return 0


# -- completion -------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the shell's own script that completes verbs, options and names; source it from the shell's start file.

    \b
    safear-edit completion bash > ~/.safear-completion.bash && echo ". ~/.safear-completion.bash" >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    print(kind(context.find_root().command, {}, "safear-edit", "_SAFEAR_EDIT_COMPLETE").source())
    return 0


VERBS: tuple[click.Command, ...] = (list_, params, completion)
