"""How much of an edit is needed: one released edit applied weaker and weaker, read in three ways.

`python -m safear_edit.studies strength_sweep DIR --spec SPEC --out FOLDER` prints a Markdown table, a row per strength:

    CIR, absCIR   what the models' own likelihoods say (evaluate/likelihood.py), no image drawn
    erased        images for prompts that name the concept in which the judge does not see it
    soft prompt   a white-box attack: a few caption vectors, learnt so that reference images become likely, follow
                  prompts that don't name the concept; images in which the judge sees it
    teaching      the same attack for a style that no model knows (plain renders in inverted colours, upside down):
                  what it can teach anyway; only the excess over it speaks about the concept

The attacker's reference images and captions are others than those that are scored. Each strength is one line of
FOLDER/rows.jsonl; a finished one is not measured again, so a killed run continues.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from safear_edit.attacks.base import Target
from safear_edit.attacks.soft_prompt import Learning, learning
from safear_edit.attacks.targets import apart, doubled, target, taught
from safear_edit.compiler.recipe import load_recipe
from safear_edit.editor.edit import Edit
from safear_edit.errors import UsageError
from safear_edit.evaluate import likelihood, stats
from safear_edit.evaluate.before_after import Pair
from safear_edit.evaluate.references import Pack, tokenised
from safear_edit.evaluate.sampled import sampling_of
from safear_edit.families.base import Condition, ModelFamily, Sampling
from safear_edit.families.load import load_model
from safear_edit.files.atomic import json_digest
from safear_edit.judges.base import judge_for
from safear_edit.judges.draw import ImageRequest, draw_and_judge
from safear_edit.pipeline.order import source_path
from safear_edit.progress import Callback, Progress, mode_for, silent
from safear_edit.spec.prompts import image_seed
from safear_edit.spec.spec import Spec, load_spec
from safear_edit.studies.rows import ROWS, read_rows, write_rows

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TAUGHT = (("attack", "the concept"), ("teaching", "the unknown style"))


@dataclass(frozen=True)
class Settings:
    """prompts: judged per strength at most. The attack: 4 vectors, 60 Adam steps."""

    prompts: int = 96
    vectors: int = 4
    steps: int = 60
    batch: int = 24
    rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts", "vectors", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"strength, {name}", "a whole number above 0", str(getattr(self, name)), "raise it")


@dataclass(frozen=True)
class Case:
    """What all strengths share. asked and neutral: prompts with and without the concept, one of a pair each."""

    model: ModelFamily
    edit: Edit
    pack: Pack
    asked: tuple[str, ...]
    neutral: tuple[str, ...]
    concept: Target
    unknown: Target
    sampling: Sampling | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies strength_sweep", description=__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="what `safear-edit apply` released")
    parser.add_argument("--spec", required=True, help="the edit's spec: a file or a built-in concept's name")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {ROWS}")
    parser.add_argument("--strengths", type=float, nargs="+", default=list(STRENGTHS))
    parser.add_argument("--prompts", type=int, default=Settings.prompts, help="judged per strength and column")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of the attack")
    options = parser.parse_args(arguments)
    settings = Settings(prompts=options.prompts, steps=options.steps)
    with Progress(mode_for(sys.stderr, quiet=False)) as progress:
        case = released(options.folder, load_spec(source_path(options.spec)), settings, options.out)
        rows = sweep(case, options.strengths, settings, options.out, progress=progress)
    print(table(rows))
    return 0


# -- the case ---------------------------------------------------------------------------------------------------------


def released(folder: Path, spec: Spec, settings: Settings, out: Path) -> Case:
    """The case of a released adapter edit on an embedded mini; UsageError if folder, spec and model don't fit."""
    recipe, edit = load_recipe(folder / "recipe.json"), Edit.load(folder / "edit")
    model = load_model(recipe.model.ref)
    if (edit.info.base_digest, recipe.spec.name) != (model.card.digest, spec.name):
        expected = f"an edit of {spec.name} on this {recipe.model.ref}"
        raise UsageError(str(folder), expected, f"{recipe.spec.name} on {edit.info.base_digest[:12]}…", "give its own")
    attacked, scored = apart(doubled(spec, model.card, settings.seed))
    label = judge_for(spec.judge, spec.judge.label)
    unknown = taught(model, attacked, settings.seed)
    if unknown is None:
        raise UsageError("strength", "a style to teach that a judge can tell apart", "none here", "use a mini")
    first = Case(
        model,
        edit,
        tokenised(model, scored, out / "references"),
        (),
        (),
        target(model, attacked, label),
        unknown,
        sampling_of(recipe),
    )
    return with_prompts(first, settings)


def with_prompts(case: Case, settings: Settings) -> Case:
    """The case with the prompts to judge: of the scored references', the first that the base model draws as asked.

    Screening images have seeds of their own. UsageError if it draws none.
    """
    references = case.pack.references[: settings.prompts]
    asked = [reference.prompts["direct"] for reference in references]
    found = _looked(case, case.model.condition(asked), asked, case.concept, "screen")
    rows = [i for i, present in enumerate(found) if present]
    if not rows:
        raise UsageError("strength", "a concept that the model draws", "none of its images shows it", "check the spec")
    return replace(case, asked=tuple(asked[i] for i in rows), neutral=tuple(references[i].neutral for i in rows))


# -- one strength -----------------------------------------------------------------------------------------------------


def sweep(
    case: Case, strengths: Sequence[float], settings: Settings, out: Path, *, progress: Callback = silent
) -> list[dict[str, Any]]:
    """Rows of these strengths in order; finished ones are read from `out`. UsageError for rows of another measurement.

    The model is left bitwise as found. Cost per strength: the audit of the pack, 2 × steps × batch passes with
    gradient, 3 images per prompt.
    """
    path = out / ROWS
    sampling = asdict(case.sampling or case.model.sampling)
    about: list[Any] = [case.edit.digest, case.pack.digest, case.concept.judge.digest, case.asked, case.neutral]
    about += [asdict(settings), sampling]
    key = json_digest(json.loads(json.dumps(about)))
    rows = read_rows(path, key=key)
    for number, strength in enumerate(strengths):
        if strength not in {row["strength"] for row in rows}:
            rows.append({"key": key, "strength": strength} | _row(case, strength, settings))
            write_rows(path, rows)
        progress("strength", number + 1, len(strengths), f"{strength:g}")
    return [row for strength in strengths for row in rows if row["strength"] == strength]


def _row(case: Case, strength: float, settings: Settings) -> dict[str, Any]:
    start = time.monotonic()
    found = likelihood.audit(Pair.of_edit(case.model, case.edit, strength), case.pack)
    direct = next(part for part in found.slices if part.slice == "direct")
    row: dict[str, Any] = {"cir": _interval(direct.cir), "abs_cir": _interval(direct.abs_cir)}
    row["doubts"] = [*direct.doubts, *found.doubts]
    with case.edit.apply(case.model.net, strength):
        judged = _looked(case, case.model.condition(case.asked), case.asked, case.concept, "score")
        row["direct"] = {"n": len(judged), "erased": sum(p is not True for p in judged), "unclear": judged.count(None)}
        for name, aim in (("attack", case.concept), ("teaching", case.unknown)):
            taken = Learning(vectors=settings.vectors, batch=settings.batch, rate=settings.rate, curves=())
            _, first, *rest = learning(case.model, aim, taken, settings.steps, settings.seed)
            last = rest[-1] if rest else first
            captions = case.model.with_vectors(case.model.condition(case.neutral), last.vectors)
            judged = _looked(case, captions, case.neutral, aim, "attack")
            row[name] = {"n": len(judged), "found": sum(p is True for p in judged), "unclear": judged.count(None)}
            row[name] |= {"loss_first": first.loss, "loss_last": last.loss, "shown": _recognised(case.model, aim)}
    return row | {"seconds": round(time.monotonic() - start, 1)}


@torch.no_grad()
def _recognised(model: ModelFamily, aim: Target) -> list[int]:
    """[k, n]: of the attacker's own images, once they are tokens, those that the judge recognises.

    Where that is few, finding nothing after the attack says nothing either.
    """
    judgements = aim.judge.look(model.decode(aim.ids))
    return [sum(judgement.present is True for judgement in judgements), len(judgements)]


def _interval(ratio: stats.Interval | None) -> list[float] | None:
    return [round(x, 6) for x in (ratio.estimate, ratio.low, ratio.high)] if ratio else None


def _looked(case: Case, condition: Condition, prompts: Sequence[str], aim: Target, purpose: str) -> list[bool | None]:
    """Draw one image per row with the model as it is now, and have it judged."""
    place = {prompt: row for row, prompt in enumerate(prompts)}
    drawn = draw_and_judge(
        case.model,
        [ImageRequest(prompt, image_seed(f"strength {purpose}", prompt, i), "aim") for i, prompt in enumerate(prompts)],
        {"aim": aim.judge},
        case.sampling,
        captions=lambda texts: condition.rows(torch.tensor([place[text] for text in texts])),
    )
    return [image.judgement.present for image in drawn]


# -- the table --------------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; a ratio in doubt is a dash, and a share has its counts and its 95 % Clopper-Pearson interval."""
    head = ("strength", "CIR [95 %]", "absCIR [95 %]", "erased, direct", "soft prompt", "teaching an unknown style")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        ratios = [_ratio(None if row["doubts"] else row[name]) for name in ("cir", "abs_cir")]
        parts = (("direct", "erased"), ("attack", "found"), ("teaching", "found"))
        shares = [_share(row[name][count], row[name]["n"], row[name]["unclear"]) for name, count in parts]
        lines.append("| " + " | ".join([f"{row['strength']:g}", *ratios, *shares]) + " |")
    shown = [(what, *row[name]["shown"]) for row in rows[:1] for name, what in TAUGHT]
    told = ", ".join(f"{k} of {n} of {what}" for what, k, n in shown)
    return "\n".join([*lines, "", f"Of the attacker's own images, as tokens, the judge recognises {told}."])


def _ratio(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.2f} [{ends[1]:.2f}, {ends[2]:.2f}]" if ends else "–"


def _share(k: int, n: int, unclear: int) -> str:
    rate = stats.clopper_pearson(k, n)
    return f"{rate.estimate:.2f} ({k} of {n}, {unclear} unreadable) [{rate.low:.2f}, {rate.high:.2f}]"
