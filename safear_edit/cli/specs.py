"""The verbs about what can be named: `init`, `validate` and `schema`; main.py attaches VERBS."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from safear_edit.cli.options import (
    FOLDER,
    NEW,
    ByMethod,
    ForProgram,
    Replacing,
    option,
    print_json,
    refuse_beside_recipe,
    refuse_existing_file,
    taking,
)
from safear_edit.errors import UsageError

if TYPE_CHECKING:
    from safear_edit.spec.draft import Words
    from safear_edit.spec.spec import Spec


@dataclass(frozen=True)
class InitOptions(Replacing):
    described: str | None = option("--from", metavar="TEXT", help="Propose names, paraphrases and label for this.")
    assistant: Path | None = option(
        "--assistant", type=FOLDER, help="A local instruction model that proposes names of what no built-in concept is."
    )
    yes: bool = option("--yes", "-y", is_flag=True, help="Take every proposal; without, a terminal is asked.")
    kind: str | None = option(
        "--kind", type=click.Choice(["style", "object", "category"]), help="Default: style, or what --from is near to."
    )
    out: Path | None = option("--out", "-o", type=NEW, help="The file to write (default: NAME.yaml).")


@click.command()
@click.argument("name", required=False)
@taking(InitOptions)
def init(name: str | None, given: InitOptions) -> int:
    """Write a spec with a comment on every field, to be filled in; with --from its words are proposed.

    \b
    safear-edit init hokusai
    safear-edit init --from "the woodblock prints of Hokusai"
    """
    from safear_edit.files.atomic import write_atomic
    from safear_edit.spec.draft import draft_words, filled, left_as_drafted
    from safear_edit.spec.spec import load_spec

    if given.described is None and (name is None or given.assistant or given.yes):
        got = "no name" if name is None else "--assistant or --yes"
        raise UsageError("init", 'a NAME, or --from "TEXT"', got, "give --from with what is to be erased")
    if given.described is None:
        words = draft_words(name or "", given.kind or "style")
    else:
        words = _proposed(given.described, name, given)
    target = given.out or Path(f"{words.name}.yaml")
    text = filled(words)
    refuse_existing_file(target, overwrite=given.overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, text)
    left = ", ".join(left_as_drafted(load_spec(target)))
    print(f"{target}: write {left}, check the names, then: safear-edit validate {shlex.quote(str(target))}")
    return 0


def _proposed(text: str, name: str | None, given: InitOptions) -> Words:
    """Words proposed for a description; whoever sits at a terminal says yes or no to each."""
    from safear_edit.pipeline import suggest

    assistant = suggest.local_assistant(given.assistant) if given.assistant else None
    found = suggest.propose(text, name=name or "", kind=given.kind or "", assistant=assistant)
    for line in found.lines():
        print(f"note: {line}", file=sys.stderr)
    if given.yes:
        return found.words
    if not sys.stdin.isatty():
        print("note: no terminal to ask in: every name that was proposed is taken", file=sys.stderr)
        return found.words
    return suggest.confirmed(found, lambda question: click.confirm(question, default=True, err=True)).words


@dataclass(frozen=True)
class ValidateOptions(ByMethod, ForProgram):
    model: str | None = option(
        "--model",
        help="family[:variant] that a spec is checked for (default: llamagen, or llamagen:xl-256 for a concept that "
        "only published models draw); given, it is loaded to count the captions that it cuts.",
    )
    resolved: bool = option("--resolved", is_flag=True, help="Print the full form: what a spec extends, written out.")


@click.command()
@click.argument("sources", metavar="SPEC|RECIPE...", nargs=-1, required=True)
@taking(ValidateOptions)
def validate(sources: tuple[str, ...], given: ValidateOptions) -> int:
    """Check specs or recipes, and whether their criteria can be decided; without --model none is loaded.

    \b
    safear-edit validate concepts/picasso.yaml
    """
    from safear_edit.pipeline.check import check
    from safear_edit.pipeline.order import source_path

    refuse_beside_recipe(sources, "method")
    if given.resolved and len(sources) > 1:
        raise UsageError("--resolved", "one spec", str(len(sources)), "print one after another")
    named = given.model is not None
    fit = click.get_current_context().get_parameter_source("method") is ParameterSource.COMMANDLINE
    about = (given.model, given.method)
    checked = {source: check(source_path(source), *about, captions=named, fit=fit) for source in sources}
    if given.resolved:
        for found in checked.values():
            print(_full_form(found.spec, given.as_json), end="")
    elif given.as_json:
        print_json({source: found.spec.name for source, found in checked.items()})
    else:
        for source, found in checked.items():
            print(f"{source}: {found.spec.name} is valid for {found.model}")
            for line in (*(one.sentence() for one in found.criteria), *found.warnings):
                print(f"  {line}")
    return 0


def _full_form(spec: Spec, as_json: bool) -> str:
    """A spec as recipes hold it, in strict YAML (no anchors) or JSON."""
    import yaml

    data = spec.model_dump(mode="json")
    if as_json:
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


@click.command()
@click.argument("what", type=click.Choice(["spec", "recipe", "report"]))
def schema(what: str) -> int:
    """Print a JSON Schema, for editors and other programs.

    \b
    safear-edit schema spec > spec.schema.json
    """
    if what == "spec":
        from safear_edit.spec.spec import spec_schema as made
    elif what == "recipe":
        from safear_edit.compiler.recipe import recipe_schema as made
    else:
        from safear_edit.report.schema import report_schema as made
    print_json(made())
    return 0


VERBS: tuple[click.Command, ...] = (init, validate, schema)
