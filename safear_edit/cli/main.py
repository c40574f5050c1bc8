"""The command line: one verb each; a verb parses, calls one function, prints, and returns an exit code.

stdout carries results only (one JSON document with `--json`); progress and everything else goes to stderr. Expected
failures are one line and the exit code of their class (errors.py); whatever a verb needs is imported inside it, so
that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from click.core import ParameterSource

from safear_edit.cli import approve, attack, gate, stack, terminal
from safear_edit.cli.options import (
    FOLDER,
    NEW,
    print_json,
    print_result,
    print_table,
    refuse_beside_recipe,
    shared,
    shown_progress,
    signing_key,
    typed_command,
)
from safear_edit.errors import EXIT_CODES, SafearError, SpecError, UsageError

if TYPE_CHECKING:
    from safear_edit.evaluate.likelihood_record import Audit
    from safear_edit.pipeline.order import Order, Plan
    from safear_edit.report.schema import Understood
    from safear_edit.spec.spec import Spec


OFFLINE = "HF_HUB_OFFLINE"
QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    OFFLINE: "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Libraries read these when they are first imported: no bars and tables between ours; nothing but `pull` fetches."""


def main() -> NoReturn:
    """Console entry point."""
    terminal.be_a_program()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; every failure becomes one line on stderr and an exit code of errors.EXIT_CODES."""
    for name, value in QUIET_LIBRARIES.items():
        if list(arguments[:1]) != ["pull"] or name != OFFLINE:
            os.environ.setdefault(name, value)
    with terminal.shown_streams():
        return _run(list(arguments))


def _run(arguments: list[str]) -> int:
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if any(word.startswith("--suite") for word in arguments):  # nothing is drawn then, so eval keeps nothing
        verb = None
    try:
        code = verbs.main(args=arguments, prog_name="safear-edit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SafearError as error:
        code = terminal.fail(str(error), error.exit_code)
        for other in error.others if isinstance(error, SpecError) else ():
            terminal.fail(str(other), code)
        return code
    except click.ClickException as error:
        return terminal.fail(" ".join(error.format_message().split()), terminal.UNUSABLE)
    except (KeyboardInterrupt, click.Abort):
        return terminal.fail(f"interrupted; {terminal.what_is_kept(verb)}", terminal.INTERRUPTED)
    except terminal.Ended as error:
        return terminal.fail(f"ended by {error}; {terminal.what_is_kept(verb)}", 128 + error.number)
    except (MemoryError, OSError) as error:
        return terminal.fail(terminal.refused_by_machine(error), terminal.UNUSABLE)
    except Exception as error:
        return terminal.unexpected(error)


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib import metadata

        print(f"safear-edit {metadata.version('safear-edit')}")
        context.exit(0)


# -- verbs ------------------------------------------------------------------------------------------------------------


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExit codes:\n" + "\n".join(f"{code:>4}  {meaning}" for code, meaning in EXIT_CODES.items()),
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def verbs(context: click.Context) -> None:
    """Erase a named concept from an autoregressive image generator, measure what happened, sign the result.

    \b
    safear-edit plan  concepts/picasso.yaml --model llamagen
    safear-edit apply concepts/picasso.yaml --model llamagen --out safe-llamagen --key keys/safear.key
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@verbs.command()
@click.argument("sources", metavar="SPEC|RECIPE...", nargs=-1, required=True)
@click.option("--model", help="family[:variant] or a directory; a recipe names its own.")
@shared("out")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option(
    "--throwaway-key",
    type=NEW,
    metavar="TRUST",
    help="Sign with a key that is then forgotten; its public half goes there.",
)
@shared("joint", "method", "seed", "device", "set", "map", "key", "unsigned", "overwrite", "json", "quiet")
def apply(
    sources: tuple[str, ...],
    model: str | None,
    out: Path,
    dry_run: bool,
    joint: bool,
    method: str,
    seed: int,
    device: str,
    sets: tuple[str, ...],
    found: Path | None,
    throwaway_key: Path | None,
    key: str | None,
    unsigned: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Walk it all: compile, construct, edit, evaluate, report, release.

    Several concepts are edited one after another, each on the model with those before it; a model that was released
    keeps its own below. Every concept is measured again after each, against the base model. With --joint the
    concepts get one edit together, which can only be removed as a whole.

    \b
    safear-edit apply concepts/picasso.yaml --model llamagen --out safe-llamagen --key keys/safear.key
    safear-edit apply concepts/dog.yaml --model safe-llamagen --out safer-llamagen --key keys/safear.key
    """
    from safear_edit.files.rundir import refuse_existing
    from safear_edit.pipeline import order as pipeline_order
    from safear_edit.pipeline import steps

    refuse_beside_recipe(sources, "method", "seed")
    orders = [pipeline_order.Order(source, model, method, seed, sets, device, found) for source in sources]
    if joint and len(orders) == 1:
        raise UsageError("--joint", "several concepts", "one", "leave --joint out")
    if dry_run:
        _show_plans(orders, as_json, quiet, joint=joint)
        return 0
    refuse_existing(out, overwrite=overwrite)
    signer = signing_key(key, throwaway_key, unsigned, out)
    with shown_progress(as_json=as_json, quiet=quiet) as progress:
        if _stacks(orders):
            from safear_edit.pipeline.run import Terms, grow

            terms = Terms(signer, unsigned, overwrite, typed_command(), progress, progress.say)
            result = grow(orders, out, terms, joint=joint)
        else:
            result = steps.apply(
                orders[0],
                out,
                key=signer,
                unsigned=unsigned,
                overwrite=overwrite,
                command=typed_command(),
                progress=progress,
                say=progress.say,
            )
    return print_result(result, as_json)


@verbs.command()
@click.argument("source", metavar="SPEC|RECIPE")
@click.option("--model", help="family[:variant] or a directory; a recipe names its own.")
@click.option("--out", type=NEW, help="Write the recipe here (default: print the plan only).")
@shared("method", "seed", "device", "set", "map", "overwrite", "json", "quiet")
def plan(
    source: str,
    model: str | None,
    out: Path | None,
    method: str,
    seed: int,
    device: str,
    sets: tuple[str, ...],
    found: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Print what `apply` would do, and write the frozen recipe with --out.

    For a model that was released: also which of its edits the new one may conflict with, from a few images.

    \b
    safear-edit plan concepts/picasso.yaml --model llamagen --out picasso.recipe.json
    """
    from safear_edit.pipeline import order as pipeline_order

    refuse_beside_recipe([source], "method", "seed")
    if out is not None:
        _refuse_existing(out, overwrite)
    (planned,) = _show_plans([pipeline_order.Order(source, model, method, seed, sets, device, found)], as_json, quiet)
    if out is not None:
        from safear_edit.compiler.recipe import save_recipe

        save_recipe(planned.recipe, out)
    if out is not None and not quiet:
        print(f"recipe written to {out}", file=sys.stderr)
    return 0


@verbs.command("map")
@click.argument("source", metavar="SPEC|RECIPE")
@click.option("--model", help="family[:variant] or a directory; a recipe names its own.")
@shared("out")
@click.option("--pairs", type=click.IntRange(min=2), default=48, show_default=True, help="Contrastive pairs to draw.")
@shared("seed", "device", "overwrite", "json", "quiet")
def map_(
    source: str,
    model: str | None,
    out: Path,
    pairs: int,
    seed: int,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure where the model keeps a concept: at which scale or row it is locked in, and in which layers.

    \b
    safear-edit map concepts/picasso.yaml --model llamagen --out picasso-map
    """
    from safear_edit.files.rundir import refuse_existing
    from safear_edit.pipeline.map import map_concept
    from safear_edit.pipeline.order import Order

    refuse_existing(out, overwrite=overwrite)
    with shown_progress(as_json=as_json, quiet=quiet) as progress:
        order = Order(source, model, seed=seed, device=device)
        found = map_concept(order, out, count=pairs, overwrite=overwrite, progress=progress)
    if as_json:
        print(found.to_json(), end="")
        return 0
    rows = [
        [
            group.name,
            str(group.tokens),
            f"{group.evidence:.2f} ± {group.standard_error:.2f}",
            f"{group.switched} of {group.of}",
        ]
        for group in found.groups
    ]
    print_table(["drawn with the concept up to", "tokens", "evidence (nats)", "concept found"], rows)
    print_table(["layer", "share of sensitivity"], [[name, f"{share:.3f}"] for name, share in found.depth])
    print(f"{found.advice()}\n{out / 'map.png'}")
    return 0


@verbs.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(["style", "object", "category"]), default="style", show_default=True)
@click.option("--out", type=NEW, help="The file to write (default: NAME.yaml).")
@shared("overwrite")
def init(name: str, kind: str, out: Path | None, overwrite: bool) -> int:
    """Write a spec with a comment on every field, to be filled in.

    \b
    safear-edit init hokusai
    """
    from safear_edit.files.atomic import write_atomic
    from safear_edit.spec.draft import spec_template

    target = out or Path(f"{name}.yaml")
    text = spec_template(name, kind)
    _refuse_existing(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, text)
    print(f"{target}: edit it, then: safear-edit validate {target}")
    return 0


@verbs.command()
@click.argument("sources", metavar="SPEC|RECIPE...", nargs=-1, required=True)
@click.option(
    "--model",
    default="llamagen",
    show_default=True,
    help="family[:variant] that a spec is checked for; given, it is loaded to count the captions that it cuts.",
)
@click.option("--resolved", is_flag=True, help="Print the full form: what a spec extends, written out.")
@shared("method", "json")
def validate(sources: tuple[str, ...], model: str, resolved: bool, method: str, as_json: bool) -> int:
    """Check specs or recipes, and whether their criteria can be decided; without --model none is loaded.

    \b
    safear-edit validate concepts/picasso.yaml
    """
    from safear_edit.pipeline.check import check
    from safear_edit.pipeline.order import source_path

    named = click.get_current_context().get_parameter_source("model") is ParameterSource.COMMANDLINE
    checked = {source: check(source_path(source), model, method, captions=named) for source in sources}
    if resolved:
        for found in checked.values():
            print(_full_form(found.spec, as_json), end="")
    elif as_json:
        print_json({source: found.spec.name for source, found in checked.items()})
    else:
        for source, found in checked.items():
            print(f"{source}: {found.spec.name} is valid")
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


@verbs.command()
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


@verbs.command("ls")
@click.argument("what", type=click.Choice(["models", "methods", "concepts", "judges", "attacks"]))
@shared("json")
def list_(what: str, as_json: bool) -> int:
    """List what can be named.

    \b
    safear-edit ls methods
    """
    from dataclasses import asdict

    from safear_edit.cli.listing import listing

    rows = listing(what)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        print_table(("name", "what it is", "where from"), [(row.name, row.summary, row.source) for row in rows])
    return 0


@verbs.command()
@click.argument("model")
@shared("json", "quiet")
def pull(model: str, as_json: bool, quiet: bool) -> int:
    """Fetch a published model's files from its hub, or check those that were fetched.

    Only what the variant lists, resumed where it broke off, with HF_ENDPOINT, HF_HOME and HF_TOKEN as the hub's own
    tools read them. Then --model takes its name.

    \b
    safear-edit pull llamagen:xl-256
    """
    from safear_edit.families import fetch
    from safear_edit.families.reference import ModelRef

    with shown_progress(as_json=as_json, quiet=quiet) as progress:
        folder = fetch.pull(ModelRef.parse(model), progress=progress)
    if as_json:
        print_json({"model": model, "folder": str(folder)})
    else:
        print(folder)
    return 0


@verbs.command()
@shared("json")
def doctor(as_json: bool) -> int:
    """Look at the installation: versions, weights, extras, disk, memory, keys.

    \b
    safear-edit doctor
    """
    from dataclasses import asdict

    from safear_edit.cli.doctor import examine

    findings = examine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(("", "what", "found"), [(f.status, f.name, f.detail) for f in findings])
    return terminal.UNUSABLE if any(f.status == "fault" for f in findings) else 0


@verbs.command()
@click.argument("folder", type=NEW)
@click.option("--name", default="safear", show_default=True, help="File name of the pair.")
def keygen(folder: Path, name: str) -> int:
    """Make a signing key: FOLDER/NAME.key (private, mode 0600) and FOLDER/NAME.pub (to be shared and trusted).

    With SAFEAR_SIGNING_KEY_PASSWORD set, the private key is encrypted with it.

    \b
    safear-edit keygen keys
    """
    from safear_edit.release.keys import PASSWORD_VARIABLE, generate

    password = os.environ.get(PASSWORD_VARIABLE)
    pair = generate(folder, name, password.encode() if password else None)
    locked = "encrypted" if password else f"not encrypted (set {PASSWORD_VARIABLE} to encrypt it)"
    print(f"private: {pair.private}, {locked}; keep it secret")
    print(f"public:  {pair.public}, sha256 {pair.hint}; give it to those who verify")
    return 0


@verbs.command()
@click.argument("folder", type=FOLDER)
@click.option("--trust", type=FOLDER, required=True, help="Folder with the *.pub files that you trust.")
@click.option(
    "--ignore-foreign",
    is_flag=True,
    help="List and leave out what git, a hub's client or the system put there; follow a hub cache's links.",
)
@shared("json")
def verify(folder: Path, trust: Path, ignore_foreign: bool, as_json: bool) -> int:
    """Check a released folder: signature, contents, claims. Any change is refused with exit code 4.

    \b
    safear-edit verify safe-llamagen --trust keys
    """
    from dataclasses import asdict

    from safear_edit.release.approve import approvals
    from safear_edit.release.verify import verify_folder

    found = verify_folder(folder, trust, ignore_foreign=ignore_foreign)
    given = approvals(found)
    if as_json:
        facts = {"key": found.key, "key_sha256": found.hint, "root": found.root, "result": found.result}
        print_json({**facts, "files": dict(found.files), "warnings": list(found.warnings),
                    "ignored": list(found.ignored), "approvals": [asdict(one) for one in given]})  # fmt: skip
        return 0
    print(f"{folder}: {len(found.files)} files as signed by {found.key} (key {found.hint[:16]}), root {found.root}")
    print(f"{len(found.claims)} signed claims about these files; test result {found.result}")
    for one in given:
        print(f"approved by {one.name}, {one.role}, {one.when}, key {one.key}" + (f": {one.note}" if one.note else ""))
    if not given:
        print("not approved: nobody has signed for its use (`safear-edit approve`)")
    for name in found.ignored:
        print(f"ignored: {name}")
    for warning in found.warnings:
        print(f"warning: {warning}")
    return 0


@verbs.command("eval")
@click.argument("folders", metavar="DIR [OTHER]", nargs=-1, required=True)
@click.option("--spec", required=True, help="Whose concept is judged: a file or a built-in concept's name.")
@click.option("--prompts", type=FOLDER, help="txt, or csv, tsv, json, jsonl, parquet with `prompt`; - is stdin.")
@click.option("--skip-bad-lines", "skip_bad", is_flag=True, help="Leave out and count rows that can't be taken.")
@click.option("--include-cut", is_flag=True, help="Count captions that are longer than a model reads.")
@click.option("--suite", type=click.Choice(["likelihood", "understanding"]), help="Instead of prompts: nothing drawn.")
@shared("seed", "device", "json", "quiet")
def evaluate(
    folders: tuple[str, ...],
    spec: str,
    prompts: Path | None,
    skip_bad: bool,
    include_cut: bool,
    suite: str | None,
    seed: int,
    device: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Judge a released model and its base (or the model OTHER) on prompts of your own, same seeds for both.

    With --suite likelihood: how likely both find reference images of the concept and of what must stay; with
    --suite understanding: what both answer when asked about them (models that answer questions).

    \b
    safear-edit eval safe-llamagen --spec concepts/picasso.yaml --prompts examples/prompts.txt
    safear-edit eval safe-llamagen --spec concepts/picasso.yaml --suite likelihood
    """
    from safear_edit.pipeline.eval import compare, compare_likelihoods, compare_understanding

    if len(folders) > 2:
        raise UsageError("eval", "one or two models", str(len(folders)), "compare two at a time")
    if (prompts is None) == (suite is None):
        got = "neither" if prompts is None else "both"
        raise UsageError("eval", "--prompts FILE or --suite", got, "give one of them")
    with shown_progress(as_json=as_json, quiet=quiet) as progress:
        if suite == "understanding":
            models, seen = compare_understanding(folders, spec=spec, device=device, progress=progress)
        elif prompts is None:
            names, audit = compare_likelihoods(folders, spec=spec, seed=seed, device=device, progress=progress)
        else:
            found = compare(
                folders, spec=spec, prompts=prompts, seed=seed, device=device, include_cut=include_cut,
                skip_bad=skip_bad, progress=progress,
            )  # fmt: skip
    if suite == "understanding":
        return _show_understood(models, seen, as_json)
    if prompts is None:
        return _show_audit(names, audit, as_json)
    if as_json:
        print_json(found.as_json())
    else:
        print_table(("prompt", "seed", *found.models), found.rows())
        print("\n".join(found.summary()))
    for line in (*(f"note: {note}" for note in found.notes), *(f"warning: {text}" for text in found.warnings())):
        print(line, file=sys.stderr)
    return 0


def _show_understood(models: tuple[str, str], found: Understood, as_json: bool) -> int:
    """Print what both answered about images; exit code 0, the verdict is a run's."""
    if as_json:
        print_json({"models": list(models), **found.model_dump(mode="json")})
        return 0
    rows = [
        (
            part.slice,
            f"{part.base.k}/{part.n}",
            f"{part.edited.k}/{part.n}",
            f"{100 * part.change.drop:+.1f}",
            f"{100 * part.change.lower95:+.1f} to {100 * part.change.upper95:+.1f}",
            part.decision,
        )
        for part in found.slices
    ]
    print(f"{models[0]} → {models[1]}")
    print_table(("questions about", "right before", "right after", "fall, points", "95 % bounds", "result"), rows)
    return 0


@verbs.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=NEW, help="Write the page (.html) or the data (.json) here.")
@shared("trust", "overwrite", "json")
def report(folder: Path, out: Path | None, trust: Path | None, overwrite: bool, as_json: bool) -> int:
    """Build the report again from a released folder's files; no model is loaded and the folder stays as signed.

    Refused with exit code 4 if the files are not those of the report in the folder. Only --trust checks a signature.

    \b
    safear-edit report safe-llamagen --out report.html
    """
    from safear_edit.files.atomic import write_atomic
    from safear_edit.pipeline import steps
    from safear_edit.release.verify import signature_of

    if out is not None:
        _refuse_existing(out, overwrite)
    signature = signature_of(folder, trust)
    found, page = steps.rebuild_report(folder)
    if out is not None:
        write_atomic(out, found.to_json() if out.suffix == ".json" else page)
    signed = trust is not None
    result = steps.Result(folder, found, signed, unsigned_on_purpose=True, signature=f"signature {signature}")
    if as_json:
        print_json(result.as_json())
    else:
        print("\n".join(result.lines))
    return result.exit_code


@verbs.command()
@click.argument("prompts", nargs=-1, required=True)
@click.option("--n", "count", type=click.IntRange(1, 1000), default=1, show_default=True, help="Images per prompt.")
@click.option("--out", type=NEW, default=Path("pictures"), show_default=True, help="Folder for the PNGs.")
@shared("model", "seed", "device", "overwrite", "json", "quiet")
def generate(
    prompts: tuple[str, ...],
    count: int,
    out: Path,
    model: str,
    seed: int,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Draw images: PROMPT after PROMPT, with seeds SEED, SEED+1, …

    \b
    safear-edit generate --model safe-llamagen "a house on a beach, in the style of Pablo Picasso" --n 4
    """
    from safear_edit.pipeline import generate as pipeline_generate

    with shown_progress(as_json=as_json, quiet=quiet) as progress:
        ref, paths = pipeline_generate.generate(
            model, prompts, count=count, seed=seed, device=device, out=out, overwrite=overwrite, progress=progress,
            say=progress.say,
        )  # fmt: skip
    if as_json:
        print_json({"model": ref, "files": [str(path) for path in paths]})
    else:
        print(f"model {ref}")
        print("\n".join(map(str, paths)))
    return 0


for _verb in (*approve.VERBS, *attack.VERBS, *gate.VERBS, *stack.VERBS):
    verbs.add_command(_verb)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UsageError(str(path), "a new file", "one that exists", "choose another --out or pass --overwrite")


def _show_audit(models: tuple[str, str], audit: Audit, as_json: bool) -> int:
    """Print a likelihood audit; it informs and decides nothing, so the exit code is 0."""
    if as_json:
        print_json({"models": list(models), **json.loads(audit.to_json())})
        return 0
    print(f"{models[0]} → {models[1]}")
    print_table(("figure", "value", "95 % interval or bound", "not meaningful here, because"), audit.rows())
    for warning in (*audit.doubts, *audit.warnings):
        print(f"warning: {warning}")
    return 0


def _stacks(orders: Sequence[Order]) -> bool:
    """Whether there will be more than one edit: several concepts, or a model that was released with some."""
    from safear_edit.files.rundir import looks_released

    model = orders[0].model
    return len(orders) > 1 or (model is not None and looks_released(Path(model).expanduser()))


def _show_plans(orders: Sequence[Order], as_json: bool, quiet: bool, *, joint: bool = False) -> list[Plan]:
    """Print the plan of every order, one line per fact, and return them."""
    from safear_edit.pipeline import order as pipeline_order

    if _stacks(orders):
        from safear_edit.pipeline import run as pipeline_run

        with shown_progress(as_json=as_json, quiet=quiet) as progress:
            plans = pipeline_run.plan(orders, progress, joint=joint)
    else:
        plans = [pipeline_order.plan(orders[0])]
    if as_json:
        print_json(plans[0].as_json() if len(plans) == 1 else [plan.as_json() for plan in plans])
        return plans
    for plan in plans:
        for name, value in plan.facts():
            print(f"{name:<22}{value}")
        for warning in plan.warnings:
            print(f"note: {warning}", file=sys.stderr)
    return plans
