"""A method's numbers side by side on training prompts: what a recipe's defaults are chosen by.

    python -m safear_edit.studies choices concepts/picasso.yaml --model llamagen --folder runs/choices \\
        --methods safe_cb safe_cb:rounds=1,directions=4

The spec's last two training names are left out of the pairs and stand for held-out ones. Scored are prompts of the
training half that no pair and no preserved image was made of, under seeds of this purpose, where the base model draws
what is asked for under the same seed. No prompt of the evaluation is drawn or scored. Material is made once per set of
pairs; each variant is one line of FOLDER/rows.jsonl, and a finished one is not searched again. Minutes are those since
the last start.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safear_edit import registry
from safear_edit.compiler.recipe import Recipe
from safear_edit.errors import UsageError
from safear_edit.evaluate.cartography import evidence
from safear_edit.evaluate.sampled import judges_of, sampling_of
from safear_edit.files.atomic import json_digest
from safear_edit.files.rundir import RunDir
from safear_edit.judges.base import judge_for
from safear_edit.judges.draw import ImageRequest, JudgedImage, draw_and_judge, drawn_by, store_for
from safear_edit.methods.workbench import token_kl
from safear_edit.pipeline.compare import Variant, variant
from safear_edit.pipeline.order import Order, SpecWithDefaults, compile_for, params_of, read_source
from safear_edit.pipeline.state import load_state
from safear_edit.pipeline.steps import material_of, pairs_of
from safear_edit.progress import Callback, Progress, mode_for, silent
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import Prompt, choose, expand, image_seed, mention_of, normalise, side
from safear_edit.studies.arguments import command, positive
from safear_edit.studies.rows import ROWS, Row, made, read_rows, write_rows

if TYPE_CHECKING:
    from safear_edit.construct.pairs import Material
    from safear_edit.families.base import ModelFamily
    from safear_edit.spec.spec import Spec

LEFT_OUT = 2
"""Training names that the pairs don't use."""
UNDRAWN = tuple(f"evaluate.n.{name}=20" for name in ("direct", "paraphrase", "template"))
"""The recipe's evaluation is not drawn here; with fewer names its slices could be too small for the spec's numbers."""
READ = 32
"""Pairs, and images of what must stay, whose likelihood is read."""
OBJECT = "object="
"""How a judge's label of an object begins."""
NAMED, OTHERS = "by name", "names left out of the pairs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Search what is missing and print every row."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies choices", description=__doc__)
    parser.add_argument("spec", metavar="SPEC", help="a file or a built-in concept's name")
    parser.add_argument("--model", default="llamagen")
    parser.add_argument("--methods", nargs="+", required=True, metavar="NAME[:key=value,…]", help="as for `compare`")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prompts", type=positive, default=48, help="per slice and preserved group (48)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="in which the rows are recorded")
    chosen = parser.parse_args(arguments)
    told = command(parser, chosen, ("model", "methods", "folder", "prompts", "seed"), [chosen.spec])
    origin = made(told, chosen.commit)
    with Progress(mode_for(sys.stderr, quiet=False)) as progress:
        order = Order(chosen.spec, chosen.model, seed=chosen.seed)
        for row in choices(order, chosen.methods, chosen.folder, chosen.prompts, progress, origin):
            print(json.dumps({name: value for name, value in row.items() if name != "key"}, ensure_ascii=False))
    return 0


def choices(
    order: Order, methods: Sequence[str], folder: Path, prompts: int, progress: Callback, origin: Row
) -> list[dict[str, Any]]:
    """A row per variant in the order of `methods`, new ones with their `origin`.

    UsageError for a finished recipe, or a method there isn't.
    """
    variants = [variant(text) for text in dict.fromkeys(methods)]
    state = load_state(order.model or "llamagen", order.device)
    path, rows = folder / ROWS, []
    done = {row["key"]: row for row in read_rows(path)}
    for one in variants:
        recipe, left_out = compiled(state.model, state.ref, order, one)
        asked = scored(recipe, left_out, prompts)
        key = json_digest([recipe.digest, [[group, r.prompt, r.seed] for group, part in asked.items() for r in part]])
        if key not in done:
            done[key] = {"key": key} | _row(state.model, recipe, one, asked, folder, progress) | origin
            write_rows(path, list(done.values()))
        rows.append(done[key])
    return rows


# -- what is asked for ------------------------------------------------------------------------------------------------


def compiled(model: ModelFamily, ref: str, order: Order, one: Variant) -> tuple[Recipe, list[Prompt]]:
    """The variant's recipe for the spec without its last training names, and their prompts of the training half."""
    order = replace(order, method=one.method, overrides=(*UNDRAWN, *order.overrides, *one.overrides))
    source = read_source(order)
    if not isinstance(source, SpecWithDefaults):
        raise UsageError("choices", "a spec", "a finished recipe", "give the spec that it was compiled from")
    spec, left_out = without_names(source.spec)
    return compile_for(model, ref, order, replace(source, spec=spec)), left_out


def without_names(spec: Spec) -> tuple[Spec, list[Prompt]]:
    """The spec without its last LEFT_OUT aliases, and the prompts of the training half that they make."""
    names, rest = spec.erase.aliases[-LEFT_OUT:], spec.erase.aliases[:-LEFT_OUT]
    if not rest:
        raise UsageError("choices", f"more than {LEFT_OUT} names", str(len(names)), "add aliases to the spec")
    asked = expand(spec.erase.templates, names, spec.erase.subjects, "alias")
    erase = spec.erase.model_copy(update={"aliases": rest})
    return spec.model_copy(update={"erase": erase}), [prompt for prompt in asked if side(prompt.text) == "train"]


def scored(recipe: Recipe, left_out: Sequence[Prompt], count: int) -> dict[str, list[ImageRequest]]:
    """Slice or preserved group → what is drawn for it: training prompts that the edit isn't trained on."""
    spec, used = recipe.spec, {*map(normalise, recipe.training_prompts)}
    drawn, label = pools(spec), recipe.spec.judge.label

    def requests(prompts: Sequence[Prompt], labels: Mapping[str, str]) -> list[ImageRequest]:
        free = choose([one for one in prompts if normalise(one.text) not in used], count, "choices")
        return [ImageRequest(p.text, image_seed("choices", p.text), labels.get(p.name, label)) for p in free]

    asked = {NAMED: requests(drawn.train, {}), OTHERS: requests(left_out, {})}
    return asked | {
        group.name: requests(drawn.keep[group.name], group.members)
        for group in spec.preserve
        if group.name in drawn.keep
    }


# -- one variant ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """The same requests by both models, where the base model drew what was asked for."""

    base: list[JudgedImage]
    edited: list[JudgedImage]

    @property
    def both(self) -> list[tuple[JudgedImage, JudgedImage]]:
        """Base and edited image."""
        return list(zip(self.base, self.edited, strict=True))


def _row(
    model: ModelFamily,
    recipe: Recipe,
    one: Variant,
    asked: Mapping[str, list[ImageRequest]],
    folder: Path,
    progress: Callback,
) -> dict[str, Any]:
    material = _material(model, recipe, folder, progress)
    start = time.monotonic()
    method = registry.lookup("methods", recipe.method.name).load()()
    checkpoint = folder / f"{recipe.digest[:16]}.partial.safetensors"
    how: dict[str, Any] = {"seed": recipe.seed, "progress": progress, "checkpoint": checkpoint}
    edit = method.fit(model, material, params_of(recipe), **how)
    minutes = (time.monotonic() - start) / 60
    draw = partial(draw_and_judge, model, judges=judges_of(recipe), sampling=sampling_of(recipe), progress=progress)
    store = store_for(folder / "base" / recipe.spec.name, *drawn_by(model))
    base = {name: list(draw(part, store=store / name, stage=f"base, {name}")) for name, part in asked.items()}
    before = _said(model, material, base)
    with edit.apply(model.net):
        seen = {name: Seen(base[name], list(draw(part, stage=name))) for name, part in asked.items()}
        after = _said(model, material, base)
    row: dict[str, Any] = {"model": recipe.model.ref, "concept": recipe.spec.name, "method": one.name}
    row |= {"pairs": len(material.pairs), "content kept": _content_kept(model, recipe, material)}
    for name in (NAMED, OTHERS):
        row |= _erased(name, seen.pop(name))
    worst = Counter[str]()
    for name, part in seen.items():
        row[name] = _lost(part)
        worst += _lost_by_member(part)
    row["worst member"] = ", ".join(f"{label} -{lost}" for label, lost in worst.most_common(1))
    row |= {"CIR": round(after[0] / before[0], 3), "KL of what stays": round(_drift(before[1], after[1]), 3)}
    return row | {"seed": recipe.seed, "minutes": round(minutes, 2)}


@torch.no_grad()
def _said(model: ModelFamily, material: Material, base: Mapping[str, list[JudgedImage]]) -> tuple[float, Tensor]:
    """What the concept's words tell about the first pairs' unsafe images, nats per token, and the logits of some of the
    base model's images of what must stay."""
    kept = [image for name, images in base.items() if name not in (NAMED, OTHERS) for image in images[:: len(base)]]
    shown = kept[:READ]
    logits = model.logits(
        model.condition([one.request.prompt for one in shown]), torch.stack([one.ids for one in shown])
    )
    return float(evidence(model, material.pairs.first(READ), silent).mean()), logits


def _drift(before: Tensor, after: Tensor) -> float:
    """Mean KL in nats per token."""
    return float(token_kl(before, after).mean())


def _material(model: ModelFamily, recipe: Recipe, folder: Path, progress: Callback) -> Material:
    """Pairs and preserved images of the recipe, made once for all that construct the same."""
    from safear_edit.construct.pairs import build_keep

    kept = [(keep.prompt, keep.seed) for keep in recipe.keep]
    wanted = [(pair.unsafe, pair.safe, pair.seed) for pair in recipe.construct.pairs]
    how = {name: value for name, value in recipe.construct if name != "pairs"}
    part = folder / "pairs" / json_digest([model.card.digest, how, wanted, kept])[:16]
    if not (part / "pairs/done").exists():
        pairs_of(recipe, model, progress).save(part / "pairs")
        if kept:
            build_keep(model, kept, guards=[False] * len(kept), progress=progress).save(part / "pairs")
        (part / "pairs/done").touch()
    return material_of(RunDir(part, part), recipe, model)


@torch.no_grad()
def _content_kept(model: ModelFamily, recipe: Recipe, material: Material) -> dict[str, int] | None:
    """Of the pairs' safe images those that show the preserved object that the unsafe caption names; None for none."""
    spec, pairs = recipe.spec, material.pairs
    labels = {name: label for group in spec.preserve for name, label in group.members.items() if OBJECT in label}
    named = [next((name for name in labels if mention_of([name])(text)), None) for text in pairs.unsafe]
    found = list[bool]()
    for name, label in labels.items():
        rows = [i for i, one in enumerate(named) if one == name]
        if rows:
            seen = judge_for(spec.judge, label).look(model.decode(pairs.safe_ids[rows].to(model.device)))
            found += [one.present is True for one in seen]
    return {"k": sum(found), "n": len(found)} if found else None


def _drawn(part: Seen) -> list[bool | None]:
    """What the judge says of the edited model's images where the base model drew what was asked for."""
    return [after.judgement.present for before, after in part.both if before.judgement.present is True]


def _erased(name: str, part: Seen) -> dict[str, dict[str, int]]:
    after = _drawn(part)
    missing, unreadable = sum(one is not True for one in after), sum(one is None for one in after)
    return {
        name: {"k": missing, "n": len(after)},
        "unreadable" if name == NAMED else "unreadable of these": {"k": unreadable, "n": len(after)},
    }


def _lost(part: Seen) -> str:
    """Images lost and gained of all that were asked for."""
    flips = Counter((b.judgement.present is True, a.judgement.present is True) for b, a in part.both)
    return f"-{flips[True, False]} +{flips[False, True]} of {len(part.both)}"


def _lost_by_member(part: Seen) -> Counter[str]:
    """Label → images lost less gained."""
    found = Counter[str]()
    for before, after in part.both:
        found[before.request.label] += (before.judgement.present is True) - (after.judgement.present is True)
    return found
