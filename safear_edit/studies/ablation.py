"""What each ingredient of VCE adds: the same pairs, one ingredient taken away at a time, several seeds; and rivals.

`python -m safear_edit.studies ablation concepts/picasso.yaml --model llamagen --folder runs/ablation` prints
a Markdown table;
with `--methods sft svare svare:mode=released`, it compares these methods instead, each with its own recipe's numbers
but for those named (`vce vce:refine=self`: template captions, and the model's own on pairs of their own,
construct/captions.py). Each (variant, seed) is one line of `rows.jsonl`; a finished one is not repeated, so a killed
run continues. What its search leaves, such as Safe-CB's rounds, lies in a folder of its name. Erasure counts prompts on
which the base drew the concept with the very seed that is scored (no screening: this table compares methods with each
other and its rates are not the audit's). `unreadable` is how many of these the judge cannot read after the edit, which
counts as erased too; with `--likelihood` the audit of evaluate/likelihood.py is made as well, for edits that images
can't tell apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from safear_edit import registry
from safear_edit.compiler.compile import compile_recipe, method_params
from safear_edit.compiler.questions import CAPABILITY as UNDERSTANDING
from safear_edit.compiler.questions import taught
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from safear_edit.construct.captions import refiner_of
from safear_edit.construct.pairs import Material, Pairs, build_keep, build_pairs
from safear_edit.editor.edit import Edit
from safear_edit.errors import UsageError
from safear_edit.evaluate.before_after import Pair
from safear_edit.evaluate.likelihood import audit
from safear_edit.evaluate.references import Pack, source_for, tokenised, why_none
from safear_edit.evaluate.sampled import judges_of, request_of, sampling_of
from safear_edit.evaluate.understanding import Exam, answers, exam
from safear_edit.evaluate.understanding import source_for as exam_source
from safear_edit.families.base import ModelFamily
from safear_edit.families.load import load_model
from safear_edit.judges.base import Judge
from safear_edit.judges.draw import draw_and_judge
from safear_edit.progress import silent
from safear_edit.spec.spec import CONCEPT, load_spec
from safear_edit.studies.scale_erasure import ScaleErasure, Words

ERASED = ("direct", "paraphrase")
"""Slices whose figure is what is not found; of preserved groups, all but the plain ones, it is the change."""
SCALE_ERASURE = "scale_erasure"
"""No method: it finds no edit, and guides the drawing instead; its numbers are those of its Window."""
REFINE = "refine"
"""Not a number of a method: who writes the safe captions of the pairs that it learns from."""
KNOWN = ("concept known", "others known")
"""Of a model that answers questions: the change of right answers about the concept, and about all that is preserved."""
UNREADABLE = "unreadable"
AUDITED = ("CIR, least", "CIR, most", "KL of what stays")
"""Likelihoods: CIR of the slices' lowest and highest, and the largest mean KL of a group, nats per token."""
ABOUT = ("variant", "seed", "minutes", "pairs", "refined")
"""Keys of a row that are no slices."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "VCE": ("vce", {}),
    "loss averaged per token": ("vce", {"average": "token"}),
    "no token drop": ("vce", {"token_drop": 0.0}),
    "no caption drop": ("vce", {"caption_drop": 0.0}),
    "no anchor": ("vce", {"anchor_weight": 0.0}),
    "no keep term": ("vce", {"keep_weight": 0.0}),
    "plain DPO": ("dpo", {}),
    "SFT": ("sft", {}),
}
Variants = Mapping[str, tuple[str, dict[str, Any]]]
"""Name → method, and what is changed in its recipe."""


@dataclass(frozen=True)
class Looked:
    """Judgements of one slice: True, False or None per prompt."""

    present: tuple[bool | None, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies ablation", description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--model", default="llamagen")
    parser.add_argument("--folder", type=Path, required=True, help="where rows.jsonl lives")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=100, help="per slice")
    parser.add_argument("--methods", nargs="+", help="compare these: NAME[:param=value,…]")
    parser.add_argument("--likelihood", action="store_true", help="audit likelihoods too")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    variants = {text: variant(text) for text in options.methods} if options.methods else VARIANTS
    model = load_model(options.model)
    for seed in options.seeds:
        missing = {name: wanted for name, wanted in variants.items() if (name, seed) not in done}
        for row in _seed(model, options.spec, seed, missing, options.prompts, options.folder, options.likelihood):
            rows.append(row)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    print(table(rows, list(variants)))


def variant(text: str) -> tuple[str, dict[str, Any]]:
    """A method and what is changed in its recipe, from NAME[:param=value,…]; values are read as YAML."""
    name, _, changes = text.partition(":")
    return name, yaml.safe_load(f"{{{changes.replace('=', ': ')}}}")


def _seed(
    model: ModelFamily, spec: Path, seed: int, missing: Variants, count: int, folder: Path, likelihood: bool
) -> Any:
    """Rows of one seed: pairs and the base's images are made once and shared by the variants that learn from them."""
    if not missing:
        return
    recipe = compiled(model, spec, "vce", seed)
    judges = judges_of(recipe)
    judge = judges[recipe.spec.judge.label]
    ways = dict.fromkeys(changes.get(REFINE, "template") for _, changes in missing.values())
    made = {way: _pairs(model, compiled(model, spec, "vce", seed, way), judge) for way in ways}
    keep = build_keep(model, [(k.prompt, k.seed) for k in recipe.keep], progress=silent)
    kept = [group.name for group in recipe.spec.preserve if group.role != "plain"]
    asked = _exam(model, recipe)
    pack = tokenised(model, source_for(recipe.spec, model.card)) if likelihood else None
    base = _looked(model, judges, recipe, (*ERASED, *kept), count)
    knew = _known(model, asked)
    for name, (method, changes) in missing.items():
        pairs = made[changes.get(REFINE, "template")]
        if method == SCALE_ERASURE:
            words = Words.of(recipe.spec)
            guarded = ScaleErasure(model, words, replace(ScaleErasure(model, words).window, **changes))
            yield _row(name, seed, 0.0, pairs) | _changes(base, _looked(guarded, judges, recipe, base, count))
            continue
        numbers = compiled(model, spec, method, seed).method.params | changes
        numbers.pop(REFINE, None)
        params = method_params(method, numbers, "ablation")
        found = folder / f"{name}, seed {seed}"
        found.mkdir(exist_ok=True)
        start = time.monotonic()
        edit: Edit = (
            registry.lookup("methods", method)
            .load()()
            .fit(
                model,
                Material(recipe.spec.name, pairs, keep, judge, taught(recipe.spec)),
                params,
                seed=seed,
                progress=silent,
                checkpoint=found / "edit.partial",
            )
        )
        minutes = (time.monotonic() - start) / 60
        applied = edit.apply(model.net)
        row = _row(name, seed, minutes, pairs) | _changes(base, _looked(model, judges, recipe, base, count))
        knows = _known(model, asked)
        applied.undo()
        yield row | {slice: knows[slice] - knew[slice] for slice in knows} | _audited(model, edit, pack)


def _pairs(model: ModelFamily, recipe: Recipe, judge: Judge) -> Pairs:
    wanted = [(p.unsafe, p.safe, p.seed) for p in recipe.construct.pairs]
    return build_pairs(model, wanted, judge, progress=silent, refiner=refiner_of(recipe))


def _looked(
    model: ModelFamily, judges: Mapping[str, Judge], recipe: Recipe, slices: Iterable[str], count: int
) -> dict[str, Looked]:
    return {name: look(model, judges, recipe, name, count) for name in slices}


def _row(name: str, seed: int, minutes: float, pairs: Pairs) -> dict[str, Any]:
    about = {"variant": name, "seed": seed, "minutes": round(minutes, 2), "pairs": len(pairs)}
    if pairs.told is not None:
        about["refined"] = sum(not told.why for told in pairs.told)
    return about


def _changes(base: Mapping[str, Looked], edited: Mapping[str, Looked]) -> dict[str, float]:
    changes = {s: compared(base[s], edited[s], "erased" if s in ERASED else "kept") for s in base}
    drawn = [e for b, e in zip(base["direct"].present, edited["direct"].present, strict=True) if b]
    return changes | {UNREADABLE: sum(e is None for e in drawn) / max(1, len(drawn))}


def _exam(model: ModelFamily, recipe: Recipe) -> Exam | None:
    """What a model that answers questions is asked; None for any other, or where there are no reference images."""
    if UNDERSTANDING not in model.provides or why_none(recipe.spec, model.card):
        return None
    return exam(recipe.spec, exam_source(recipe.spec, model.card))


def _known(model: ModelFamily, asked: Exam | None) -> dict[str, float]:
    """Shares of right answers, see KNOWN."""
    given = answers(model, "edited", asked) if asked else []
    parts = [[a.right for a in given if (a.slice == CONCEPT) == own] for own in (True, False)]
    return {name: statistics.mean(part) for name, part in zip(KNOWN, parts, strict=True) if part}


def _audited(model: ModelFamily, edit: Edit, pack: Pack | None) -> dict[str, float]:
    """See AUDITED."""
    if pack is None:
        return {}
    found = audit(Pair.of_edit(model, edit), pack)
    ratios = [part.cir.estimate for part in found.slices if part.cir is not None]
    moved = max(group.plain.mean for group in found.groups)
    return dict(zip(AUDITED, (min(ratios), max(ratios), moved), strict=True)) if ratios else {}


def compiled(model: ModelFamily, spec: Path, method: str, seed: int, refine: str = "template") -> Recipe:
    """The method's recipe for the spec at its own defaults, but for who writes the safe captions."""
    return compile_recipe(
        load_spec(spec),
        model.card,
        load_base_recipe(method),
        seed=seed,
        overrides=[f"construct.{REFINE}={refine}"],
        sampling=model.sampling,
        model_ref=model.card.ref,
    )


def look(model: ModelFamily, judges: Mapping[str, Judge], recipe: Recipe, name: str, count: int) -> Looked:
    """Draw and judge the first `count` prompts of a slice; UsageError if the recipe has none."""
    requests = [request_of(prompt) for prompt in recipe.slice(name)[:count]]
    if not requests:
        raise UsageError(f"ablation, slice {name}", "prompts in the recipe", "none", f"name a group {name} in the spec")
    drawn = draw_and_judge(model, requests, judges, sampling_of(recipe))
    return Looked(tuple(image.judgement.present for image in drawn))


def compared(base: Looked, edited: Looked, kind: str) -> float:
    """Erased: share not found of those that the base drew. Kept: change of the share found (negative = lost)."""
    if kind == "erased":
        drawn = [e for b, e in zip(base.present, edited.present, strict=True) if b]
        return 1 - sum(e is True for e in drawn) / max(1, len(drawn))
    before, after = (sum(p is True for p in looked.present) for looked in (base, edited))
    return (after - before) / len(base.present)


def table(rows: Sequence[dict[str, Any]], names: Sequence[str] = tuple(VARIANTS)) -> str:
    """Markdown: mean over the seeds with the spread (lowest to highest) where there are several."""
    slices = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ABOUT]
    head = ["variant", "seeds", *slices, "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in names:
        mine = [row for row in rows if row["variant"] == name]
        if mine:
            cells = [_cell(s, [row[s] for row in mine if s in row]) for s in slices]
            minutes = statistics.mean(row["minutes"] for row in mine)
            lines.append("| " + " | ".join([name, str(len(mine)), *cells, f"{minutes:.1f}"]) + " |")
    return "\n".join(lines)


def _cell(key: str, values: Sequence[float]) -> str:
    """The mean, with the ends where there are several: in per cent, changes signed; likelihoods as they are."""
    if not values:
        return ""
    factor, shape = (1, ".3g") if key in AUDITED else (100, ".1f")
    sign = "" if key in (*ERASED, UNREADABLE, *AUDITED) else "+"
    shown = f"{factor * statistics.mean(values):{sign}{shape}}"
    ends = [f"{factor * end:{shape}}" for end in (min(values), max(values))]
    return shown if len(values) == 1 else f"{shown} ({ends[0]} to {ends[1]})"
