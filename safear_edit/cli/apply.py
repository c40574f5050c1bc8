"""The verbs of the walk: `apply` and `plan`; main.py attaches VERBS."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from safear_edit.cli.options import (
    NEW,
    SOURCE,
    Compiling,
    Publishing,
    Replacing,
    Shown,
    Trusting,
    checked_signatures,
    option,
    print_json,
    print_result,
    refuse_beside_recipe,
    refuse_existing_file,
    run_options,
    say_signatures,
    taking,
)
from safear_edit.errors import UsageError
from safear_edit.redact import redact

if TYPE_CHECKING:
    from safear_edit.pipeline.order import Order
    from safear_edit.pipeline.plan import Plan


@dataclass(frozen=True)
class ApplyOptions(Compiling, Publishing, Trusting):
    joint: bool = option("--joint", is_flag=True, help="One edit for all concepts instead of one after another.")
    dry_run: bool = option("--dry-run", is_flag=True, help="Print the plan and stop.")
    throwaway_key: Path | None = option(
        "--throwaway-key",
        type=NEW,
        metavar="TRUST",
        help="Sign with a key that is then forgotten; its public half goes there.",
    )
    draft: bool = option("--draft", is_flag=True, help="Publish although a spec still has texts of `init` to replace.")


@click.command()
@click.argument("sources", metavar="SPEC|RECIPE...", nargs=-1, required=True, type=SOURCE)
@taking(ApplyOptions)
def apply(sources: tuple[str, ...], given: ApplyOptions) -> int:
    """Walk it all: compile, construct, edit, evaluate, report, release.

    Several concepts are edited one after another, each on the model with those before it; a model that was released
    keeps its own below (--trust verifies it first). Every concept is measured again after each, against the base
    model. With --joint the concepts get one edit together, which can only be removed as a whole. Several processes
    share the work, and under the launcher's --use_fsdp the frozen layers too, while an edit trains.

    \b
    safear-edit apply concepts/picasso.yaml --model llamagen --out safe-llamagen --key keys/safear.key
    safear-edit apply concepts/dog.yaml --model safe-llamagen --out safer-llamagen --key keys/safear.key
    accelerate launch --multi_gpu --num_processes 2 -m safear_edit apply …   (with GPUs, or on the CPU without any)
    """
    from safear_edit.pipeline import run
    from safear_edit.pipeline.plan import plan as planned

    orders = _orders(sources, given)
    if given.joint and len(orders) == 1:
        raise UsageError("--joint", "several concepts", "one", "leave --joint out")
    known = checked_signatures([given.model] if given.model else [], given.trust)
    if given.dry_run:
        return _show(planned(orders, joint=given.joint), given.as_json)
    with run_options(given, given.throwaway_key) as options:
        result = run.apply(orders, given.out, replace(options, draft=given.draft), joint=given.joint)
    say_signatures(known, given)
    return print_result(result, given.as_json)


@dataclass(frozen=True)
class PlanOptions(Compiling, Replacing, Shown):
    out: Path | None = option("--out", "-o", type=NEW, help="Write the recipe here (default: print the plan only).")


@click.command()
@click.argument("source", metavar="SPEC|RECIPE", type=SOURCE)
@taking(PlanOptions)
def plan(source: str, given: PlanOptions) -> int:
    """Print what `apply` would do, and write the frozen recipe with --out.

    \b
    safear-edit plan concepts/picasso.yaml --model llamagen --out picasso.recipe.json
    """
    from safear_edit.compiler.recipe import save_recipe
    from safear_edit.pipeline.plan import plan as planned

    orders = _orders([source], given)
    if given.out is not None:
        refuse_existing_file(given.out, overwrite=given.overwrite)
    plans = planned(orders)
    if given.out is not None:
        save_recipe(plans[0].recipe, given.out)
    _show(plans, given.as_json)
    if given.out is not None and not given.quiet:
        print(f"recipe written to {given.out}", file=sys.stderr)
    if not given.as_json:
        print(f"next: {_apply_command(source, given.out, plans[0].recipe.spec.name)}")
    return 0


BESIDE_RECIPE = {"model", "device", "pull"}
"""What a written recipe doesn't hold."""


def _apply_command(source: str, written: Path | None, name: str) -> str:
    """The command that does what was planned: of the recipe, if it was written, else with the options as typed."""
    context, kept = click.get_current_context(), BESIDE_RECIPE if written else {part.name for part in fields(Compiling)}
    typed = (_typed(part, context) for part in context.command.params if part.name in kept)
    words = ["safear-edit", "apply", str(written or source), *chain.from_iterable(typed)]
    return redact(shlex.join([*words, "--out", f"safe-{name}", "--throwaway-key", f"safe-{name}-trust"]))


def _typed(part: click.Parameter, context: click.Context) -> list[str]:
    """The words that gave an option its value; none where it has its default."""
    if part.name is None or context.get_parameter_source(part.name) is not ParameterSource.COMMANDLINE:
        return []
    flag, value = max(part.opts, key=len), context.params[part.name]
    if value is True:
        return [flag]
    return [word for one in (value if part.multiple else [value]) for word in (flag, str(one))]


def _orders(sources: Sequence[str], given: Compiling) -> list[Order]:
    from safear_edit.pipeline.order import Order

    refuse_beside_recipe(sources, "method", "seed", "memory", "captioner")
    about = (given.model, given.method, given.seed, given.overrides, given.device, given.found, given.dtype)
    return [Order(source, *about, given.memory) for source in sources]


def _show(plans: Sequence[Plan], as_json: bool) -> int:
    """Print plans, one line per fact; a program that asked for one gets it without a list around."""
    if as_json:
        print_json(plans[0].as_json() if len(plans) == 1 else [plan.as_json() for plan in plans])
        return 0
    for plan in plans:
        for name, value in plan.facts():
            print(f"{name:<22}{value}")
        for warning in plan.warnings:
            print(f"note: {warning}", file=sys.stderr)
    return 0


VERBS: tuple[click.Command, ...] = (apply, plan)
