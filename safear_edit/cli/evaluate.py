"""The verbs that look at a model without editing it: `eval`, `generate` and `map`; main.py attaches VERBS."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safear_edit.cli.options import (
    FOLDER,
    NEW,
    SEED,
    SOURCE,
    Drawing,
    InDtype,
    OfModel,
    OnDevice,
    Replacing,
    Seeded,
    Shown,
    Trusting,
    Writing,
    checked_signatures,
    option,
    print_json,
    print_json_list,
    print_table,
    refuse_beside_recipe,
    say_signatures,
    shown_progress,
    taking,
)
from safear_edit.errors import UsageError
from safear_edit.spec.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from safear_edit.evaluate.likelihood_record import Audit
    from safear_edit.evaluate.own_prompts import Comparison
    from safear_edit.evaluate.quality import Quality
    from safear_edit.evaluate.stats import Interval
    from safear_edit.report.schema import Understood


TABLE = 1000
"""Prompts that are shown one by one to a person."""

# -- eval -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalOptions(OnDevice, Drawing, Trusting, Shown):
    seed: int | None = option("--seed", type=SEED, help="Root of every random number (default: 0).")
    spec: str = option(
        "--spec", type=SOURCE, required=True, help="Whose concept is judged: a file or a built-in concept's name."
    )
    prompts: Path | None = option(
        "--prompts", type=FOLDER, help="txt, or csv, tsv, json, jsonl, parquet with `prompt`; - is stdin."
    )
    layout: str | None = option(
        "--format",
        type=click.Choice(list(BENCHMARKS)),
        help="The benchmark whose columns FILE has.",
    )
    skip_bad: bool = option("--skip-bad-lines", is_flag=True, help="Leave out and count rows that can't be taken.")
    include_cut: bool = option("--include-cut", is_flag=True, help="Count captions that are longer than a model reads.")
    out: Path | None = option(
        "--out", "-o", type=NEW, help="With --prompts: write images, CSV and a page to this folder."
    )
    suite: str | None = option(
        "--suite", type=click.Choice(["likelihood", "understanding", "quality"]), help="Instead of prompts."
    )


@click.command("eval")
@click.argument("folders", metavar="DIR [OTHER]", nargs=-1, required=True)
@taking(EvalOptions)
def evaluate(folders: tuple[str, ...], given: EvalOptions) -> int:
    """Judge a released model and its base (or the model OTHER) on prompts of your own, same seeds for both.

    With --suite likelihood: how likely both find reference images of the concept and of what must stay; with
    --suite understanding: what both answer when asked about them (models that answer questions); with --suite quality:
    what CLIP sees of the images that both draw, of the concept's prompts and of what must stay.

    \b
    safear-edit eval safe-llamagen --spec concepts/picasso.yaml --prompts examples/prompts.txt --out judged
    safear-edit eval safe-llamagen --spec concepts/picasso.yaml --suite likelihood
    """
    from safear_edit.pipeline import eval as pipeline

    if len(folders) > 2:
        raise UsageError("eval", "one or two models", str(len(folders)), "compare two at a time")
    if (given.prompts is None) == (given.suite is None):
        got = "neither" if given.prompts is None else "both"
        raise UsageError("eval", "--prompts FILE or --suite", got, "give one of them")
    if given.out is not None and given.prompts is None:
        raise UsageError("--out", "--prompts FILE", f"--suite {given.suite}", "leave --out out")
    _refuse_unheard(given)
    spec, seed, how = given.spec, given.seed or 0, pipeline.Loading(given.device, given.dtype, given.memory)
    known = checked_signatures(folders, given.trust)
    with shown_progress(given) as progress:
        if given.prompts is not None:
            found = pipeline.compare_prompts(
                folders,
                spec=spec,
                prompts=given.prompts,
                seed=seed,
                how=how,
                include_cut=given.include_cut,
                skip_bad=given.skip_bad,
                layout=given.layout,
                out=given.out,
                progress=progress,
            )
        elif given.suite == "likelihood":
            names, audit = pipeline.compare_likelihoods(folders, spec=spec, seed=seed, how=how, progress=progress)
        elif given.suite == "quality":
            names, quality = pipeline.compare_quality(folders, spec=spec, how=how, progress=progress)
        else:
            names, answers = pipeline.compare_understanding(folders, spec=spec, how=how, progress=progress)
    say_signatures(known, given)
    if given.prompts is not None:
        return _show_judged(found, given.as_json)
    if given.suite == "likelihood":
        return _show_audit(names, audit, given.as_json)
    if given.suite == "quality":
        return _show_quality(names, quality, given.as_json)
    return _show_understood(names, answers, given.as_json)


def _refuse_unheard(given: EvalOptions) -> None:
    """UsageError for an option that the chosen suite wouldn't hear of."""
    if given.suite is None:
        return
    of_files = {"--format": given.layout, "--skip-bad-lines": given.skip_bad, "--include-cut": given.include_cut}
    for name, value in of_files.items():
        if value:
            raise UsageError(name, "--prompts FILE", f"--suite {given.suite}", f"leave {name} out")
    if given.seed is not None and given.suite != "likelihood":
        got = f"--suite {given.suite}, whose seeds are the spec's own"
        raise UsageError("--seed", "--prompts FILE or --suite likelihood", got, "leave --seed out")


def _show_quality(models: tuple[str, str], found: Quality, as_json: bool) -> int:
    """Print what CLIP sees; it informs and decides nothing, so the exit code is 0."""
    if as_json:
        print_json({"models": list(models), **found.as_json()})
        return 0
    print(f"{models[0]} → {models[1]}, CLIP {found.clip}, {found.n} prompts of each kind")
    kept, align, varied = found.object_kept, found.text_align, found.diversity
    instead = ", ".join(f"{name} {count}" for name, count in found.replaced_by)
    rows = [
        ("subject of the concept's prompts kept", f"{kept[0].k}/{kept[0].n}", f"{kept[1].k}/{kept[1].n}", instead),
        ("image and prompt, cosine", f"{align[0]:.3f}", f"{align[1]:.3f}", _span(found.text_change)),
        ("base and edited, 1 - cosine", _span(found.other_seed), _span(found.perceptual), "before: other seeds"),
        ("images of one prompt, 1 - cosine", _span(varied[0]), _span(varied[1]), ""),
        ("KID of CLIP's features, times 1000", _span(found.kid_floor), _span(found.kid), "before: other seeds"),
        ("CMMD, times 1000", _span(found.cmmd_floor), _span(found.cmmd), "before: other seeds"),
    ]
    print_table(("what", "before", "after", ""), rows)
    return 0


def _span(found: Interval) -> str:
    ends = f"{found.low:.4f}, {found.high:.4f}" if math.isfinite(found.high) else "one value, no interval"
    return f"{found.estimate:.4f} [{ends}]"


def _show_judged(found: Comparison, as_json: bool) -> int:
    if as_json:
        print_json_list(found.as_json(), "rows", found.json_rows())
    else:
        if len(found.prompts) <= TABLE:
            print_table(("prompt", "seed", *found.models), found.rows())
        else:
            print(f"{len(found.prompts)} prompts are too many for a table: --json prints what was found in each")
        print("\n".join(found.summary()))
    for line in (*(f"note: {note}" for note in found.notes), *(f"warning: {text}" for text in found.warnings())):
        print(line, file=sys.stderr)
    return 0


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


# -- generate ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GenerateOptions(Seeded, OnDevice, InDtype, Trusting, Replacing, Shown):
    model: str | None = option("--model", "-m", help="family[:variant] or a directory; then all words are prompts.")
    count: int = option(
        "--n", "-n", type=click.IntRange(1, 1000), default=1, show_default=True, help="Images per prompt."
    )
    out: Path = option("--out", "-o", type=NEW, default=Path("images"), show_default=True, help="Folder for the PNGs.")


@click.command()
@click.argument("words", metavar="PROMPT... | MODEL... PROMPT", nargs=-1, required=True)
@taking(GenerateOptions)
def generate(words: tuple[str, ...], given: GenerateOptions) -> int:
    """Draw images with seeds SEED, SEED+1, …: with --model PROMPT after PROMPT, else one PROMPT by MODEL after MODEL.

    Several models draw the same seeds, and side-by-side.png has them under each other.

    \b
    safear-edit generate --model safe-llamagen "a house on a beach, in the style of Pablo Picasso" --n 4
    safear-edit generate llamagen safe-llamagen "a house by Pablo Picasso" --n 6
    """
    if given.model is None:
        return _side_by_side(words, given)
    return _by_one(given.model, words, given)


def _side_by_side(words: Sequence[str], given: GenerateOptions) -> int:
    from safear_edit.pipeline.generate import side_by_side

    *models, prompt = words
    if not models:
        raise UsageError("generate", "--model MODEL, or MODEL... PROMPT", "a prompt alone", "name the model")
    known = checked_signatures(models, given.trust)
    with shown_progress(given) as progress:
        drawn, sheet = side_by_side(
            models,
            [prompt],
            count=given.count,
            seed=given.seed,
            device=given.device,
            dtype=given.dtype,
            out=given.out,
            overwrite=given.overwrite,
            progress=progress,
            say=progress.say,
        )
    say_signatures(known, given)
    if given.as_json:
        made = [{"model": name, "files": [str(path) for path in paths]} for name, paths in drawn]
        print_json({"sheet": str(sheet), "models": made})
    else:
        print("\n".join([*(str(path) for _, paths in drawn for path in paths), str(sheet)]))
    return 0


def _by_one(model: str, prompts: Sequence[str], given: GenerateOptions) -> int:
    from safear_edit.files.layout import looks_released
    from safear_edit.pipeline.generate import generate as draw

    known = checked_signatures([model], given.trust)
    with shown_progress(given) as progress:
        ref, paths = draw(
            model,
            prompts,
            count=given.count,
            seed=given.seed,
            device=given.device,
            dtype=given.dtype,
            out=given.out,
            overwrite=given.overwrite,
            progress=progress,
            say=progress.say,
        )
    say_signatures(known, given)
    if given.as_json:
        print_json({"model": ref, "files": [str(path) for path in paths]})
    else:
        edited = looks_released(Path(model))
        print(f"model {ref}" + (f", an edited model: {model}/report.html says what was erased" if edited else ""))
        print("\n".join(map(str, paths)))
    return 0


# -- map --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapOptions(OfModel, Seeded, OnDevice, Writing, Shown):
    pairs: int = option(
        "--pairs", type=click.IntRange(min=2), default=48, show_default=True, help="Contrastive pairs to draw."
    )


@click.command("map")
@click.argument("source", metavar="SPEC|RECIPE", type=SOURCE)
@taking(MapOptions)
def map_(source: str, given: MapOptions) -> int:
    """Measure where the model keeps a concept: at which scale or row it is locked in, and in which layers.

    \b
    safear-edit map concepts/picasso.yaml --model llamagen --out picasso-map
    """
    from safear_edit.files.rundir import refuse_existing
    from safear_edit.pipeline.map import map_concept
    from safear_edit.pipeline.order import Order

    refuse_existing(given.out, overwrite=given.overwrite)
    refuse_beside_recipe([source], "seed")
    order = Order(source, given.model, seed=given.seed, device=given.device)
    with shown_progress(given) as progress:
        found = map_concept(order, given.out, count=given.pairs, overwrite=given.overwrite, progress=progress)
    if given.as_json:
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
    print(f"{found.advice()}\n{given.out / 'map.png'}")
    return 0


VERBS: tuple[click.Command, ...] = (evaluate, generate, map_)
