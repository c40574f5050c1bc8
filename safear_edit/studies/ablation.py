"""What each ingredient of VCE adds: the same pairs, one ingredient taken away at a time, several seeds; and rivals.

`python -m safear_edit.studies ablation concepts/picasso.yaml --model llamagen --folder runs/ablation` prints a Markdown
table; with `--methods sft svare svare_released`, it compares these methods instead, each with its own recipe's
numbers but for those named (`vce vce:refine=self`: template captions, and the model's own on pairs of their own,
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safear_edit import registry
from safear_edit.compiler.compile import compile_recipe, method_params
from safear_edit.compiler.questions import CAPABILITY as UNDERSTANDING
from safear_edit.compiler.questions import training_questions
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from safear_edit.construct.captions import refiner_of
from safear_edit.construct.pairs import Keep, Material, Pairs, build_keep, build_pairs
from safear_edit.editor.edit import Edit
from safear_edit.errors import UsageError
from safear_edit.evaluate.before_after import Pair
from safear_edit.evaluate.likelihood import Scores, audit, base_scores
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
from safear_edit.studies.rows import ROWS, read_rows, write_rows
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


Found = tuple[bool | None, ...]
"""What the judge says of one slice: present, absent or "cannot tell", prompt by prompt."""


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
    path = options.folder / ROWS
    rows = read_rows(path)
    done = {(row["variant"], row["seed"]) for row in rows}
    variants = {text: variant(text) for text in options.methods} if options.methods else VARIANTS
    model = load_model(options.model)
    for seed in options.seeds:
        missing = {name: wanted for name, wanted in variants.items() if (name, seed) not in done}
        if not missing:
            continue
        bench = Bench.of(model, options.spec, seed, missing, options.prompts, likelihood=options.likelihood)
        for name, (method, changes) in missing.items():
            rows.append(bench.row(name, method, changes, options.folder / f"{name}, seed {seed}"))
            write_rows(path, rows)
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows, list(variants)))


def variant(text: str) -> tuple[str, dict[str, Any]]:
    """A method and what is changed in its recipe, from NAME[:param=value,…]; values are read as YAML."""
    name, _, changes = text.partition(":")
    return name, yaml.safe_load(f"{{{changes.replace('=', ': ')}}}")


@dataclass(frozen=True)
class Bench:
    """What all variants of one seed share: pairs by who writes their safe captions, and the base model's figures."""

    model: ModelFamily
    spec: Path
    seed: int
    count: int
    recipe: Recipe
    judges: Mapping[str, Judge]
    pairs: Mapping[str, Pairs]
    keep: Keep
    exam: Exam | None
    pack: Pack | None
    found: Mapping[str, Found]
    known: Mapping[str, float]
    scores: Scores | None

    @classmethod
    def of(cls, model: ModelFamily, spec: Path, seed: int, missing: Variants, count: int, *, likelihood: bool) -> Bench:
        """Make the pairs and draw, ask and score the base model once."""
        recipe = compiled(model, spec, "vce", seed)
        judges = judges_of(recipe)
        judge = judges[recipe.spec.judge.label]
        ways = dict.fromkeys(changes.get(REFINE, "template") for _, changes in missing.values())
        pairs = {way: _pairs(model, compiled(model, spec, "vce", seed, way), judge) for way in ways}
        keep = build_keep(model, [(k.prompt, k.seed) for k in recipe.keep], progress=silent)
        kept = [group.name for group in recipe.spec.preserve if group.role != "plain"]
        asked = _exam(model, recipe)
        pack = tokenised(model, source_for(recipe.spec, model.card)) if likelihood else None
        found = {name: draw(model, judges, recipe, name, count) for name in (*ERASED, *kept)}
        scores = base_scores(model, pack) if pack else None
        return cls(
            model, spec, seed, count, recipe, judges, pairs, keep, asked, pack, found, _known(model, asked), scores
        )

    def row(self, name: str, method: str, changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """One variant: what its edit changes; what its search leaves lies in `folder`."""
        pairs = self.pairs[changes.get(REFINE, "template")]
        if method == SCALE_ERASURE:
            guarded = ScaleErasure.of(self.model, Words.of(self.recipe.spec), changes)
            return _row(name, self.seed, 0.0, pairs) | self._changes(guarded)
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        edit = self._edit(method, pairs, changes, folder / "edit.partial")
        minutes = (time.monotonic() - start) / 60
        edit.save(folder)
        with edit.apply(self.model.net):
            row = _row(name, self.seed, minutes, pairs) | self._changes(self.model)
            knows = _known(self.model, self.exam)
        return row | {part: knows[part] - self.known[part] for part in knows} | self._audited(edit)

    def _edit(self, method: str, pairs: Pairs, changes: Mapping[str, Any], checkpoint: Path) -> Edit:
        chosen = compiled(self.model, self.spec, method, self.seed).method  # of a base recipe, such as svare_released
        numbers = chosen.params | dict(changes)
        numbers.pop(REFINE, None)
        spec, judge = self.recipe.spec, self.judges[self.recipe.spec.judge.label]
        material = Material(spec.name, pairs, self.keep, judge, training_questions(spec), spec.erase.concept)
        params = method_params(chosen.name, numbers, "ablation")
        finder = registry.lookup("methods", chosen.name).load()()
        edit: Edit = finder.fit(self.model, material, params, seed=self.seed, progress=silent, checkpoint=checkpoint)
        return edit

    def _changes(self, model: ModelFamily) -> dict[str, float]:
        return changed(
            self.found, {name: draw(model, self.judges, self.recipe, name, self.count) for name in self.found}
        )

    def _audited(self, edit: Edit) -> dict[str, float]:
        """See AUDITED."""
        if self.pack is None:
            return {}
        found = audit(Pair.of_edit(self.model, edit), self.pack, before=self.scores)
        ratios = [part.cir.estimate for part in found.slices if part.cir is not None]
        moved = max(group.plain.mean for group in found.groups)
        return dict(zip(AUDITED, (min(ratios), max(ratios), moved), strict=True)) if ratios else {}


def _pairs(model: ModelFamily, recipe: Recipe, judge: Judge) -> Pairs:
    wanted = [(p.unsafe, p.safe, p.seed) for p in recipe.construct.pairs]
    return build_pairs(model, wanted, judge, progress=silent, refiner=refiner_of(recipe))


def _row(name: str, seed: int, minutes: float, pairs: Pairs) -> dict[str, Any]:
    about = {"variant": name, "seed": seed, "minutes": round(minutes, 2), "pairs": len(pairs)}
    if pairs.told is not None:
        about["refined"] = sum(not told.why for told in pairs.told)
    return about


def changed(base: Mapping[str, Found], edited: Mapping[str, Found]) -> dict[str, float]:
    """By slice what the edit changed (see `compared`), and UNREADABLE."""
    changes = {s: compared(base[s], edited[s], "erased" if s in ERASED else "kept") for s in base}
    drawn = [e for b, e in zip(base["direct"], edited["direct"], strict=True) if b]
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


def draw(model: ModelFamily, judges: Mapping[str, Judge], recipe: Recipe, name: str, count: int) -> Found:
    """Draw and judge the first `count` prompts of a slice; UsageError if the recipe has none."""
    requests = [request_of(prompt) for prompt in recipe.slice(name)[:count]]
    if not requests:
        raise UsageError(f"ablation, slice {name}", "prompts in the recipe", "none", f"name a group {name} in the spec")
    drawn = draw_and_judge(model, requests, judges, sampling_of(recipe))
    return tuple(image.judgement.present for image in drawn)


def compared(base: Found, edited: Found, kind: str) -> float:
    """Erased: share not found of those that the base drew. Kept: change of the share found (negative = lost)."""
    if kind == "erased":
        drawn = [e for b, e in zip(base, edited, strict=True) if b]
        return 1 - sum(e is True for e in drawn) / max(1, len(drawn))
    before, after = (sum(p is True for p in found) for found in (base, edited))
    return (after - before) / len(base)


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
