"""Attacks on a release: which fit, each run once and kept, one record of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.errors import UsageError
from safear_edit.files.atomic import write_atomic
from safear_edit.pipeline.order import resolve_device, spec_for
from safear_edit.progress import Callback, silent
from safear_edit.spec.spec import Images, Spec

PAGE, IMAGES = "attacks.html", "attacks-images.html"

if TYPE_CHECKING:
    from safear_edit.attacks.base import Concept
    from safear_edit.attacks.record import Attacks
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.release.released import Released


def attack(
    folder: Path,
    *,
    spec: str | None,
    names: Sequence[str],
    tier: str,
    minutes: float | None,
    seed: int,
    device: str,
    dtype: str = "auto",
    memory: int | None = None,
    out: Path,
    lock: Path | None = None,
    progress: Callback = silent,
) -> Attacks:
    """Attack a released folder for one concept of it, or for any other spec; writes attacks.json, PAGE, and IMAGES of
    what was brought back.

    A finished attack is kept in `out` as NAME.json and not run again for the same model, edit, spec, budget and seed;
    a killed one goes on from its last batch of images where it keeps them. minutes: no attack begins after so many
    (one that has begun is finished). dtype: of the frozen weights, "auto" for the release's own; memory: bytes that
    drawing and gradients may take (learning all weights anew takes more). lock: a file of frozen prompts; what was
    found is added, and the known ones are held to what they show now, if that is less. UsageError for a folder that is
    no release, or an attack that nobody knows.
    """
    from safear_edit.attacks.record import FILE
    from safear_edit.attacks.run import attacked, planned
    from safear_edit.attacks.targets import concept_of
    from safear_edit.compiler.cost import draw_within, learn_within
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.sampled import sampling_of
    from safear_edit.pipeline.steps import concept_judge, edited
    from safear_edit.release.released import Released

    plan = planned(tier, names)
    released = Released.read(folder)
    model = released.base(resolve_device(device), dtype)
    if memory is not None:
        draw_within(model, memory)
        learn_within(model, memory)
    wanted = _spec(released, spec, model.card.images)
    recipe = next((one.recipe for one in released.members if one.name == wanted.name), released.members[0].recipe)
    pair, change = Pair(model, partial(edited, model, released.stack)), released.stack.digest
    judge, sampling = concept_judge(wanted), sampling_of(recipe)
    concept = concept_of(model, wanted, judge, sampling, seed, images=plan.reads_images)
    record = attacked(pair, concept, released.ref, change, plan, out, seed=seed, minutes=minutes, progress=progress)
    write_atomic(out / FILE, record.model_dump_json(indent=1) + "\n")
    _pages(out, record)
    if lock is not None:
        _freeze(lock, pair, concept, record, progress)
    return record


def _pages(out: Path, record: Attacks) -> None:
    """PAGE, IMAGES where something was brought back, and a plot for each attack that learns."""
    from safear_edit.attacks.brought import name_of, read_brought
    from safear_edit.report.charts import durability_image
    from safear_edit.report.html import attacks_page, attacks_sheet

    brought = [read_brought(out / name_of(leaks.attack), leaks.attack) for leaks in record.found]
    if any(one.images for one in brought):
        write_atomic(out / IMAGES, attacks_sheet(record, brought, PAGE))
    else:
        (out / IMAGES).unlink(missing_ok=True)
    write_atomic(out / PAGE, attacks_page(record, IMAGES if (out / IMAGES).exists() else ""))
    for leaks in record.found:
        if leaks.curves:
            write_atomic(out / f"{leaks.attack}.png", durability_image(leaks.curves))


def _spec(released: Released, text: str | None, images: Images) -> Spec:
    """The spec that was named, or the one that a release of one concept was made of."""
    if text is not None:
        return spec_for(text, images)
    if len(released.members) > 1:
        names = ", ".join(member.name for member in released.members)
        raise UsageError("--spec", f"one of {names}, or a file", "nothing", "say which concept to bring back")
    return released.members[0].recipe.spec


def _freeze(path: Path, pair: Pair, concept: Concept, record: Attacks, progress: Callback) -> None:
    """Try the known prompts on this model, add the new ones, write the file."""
    from safear_edit.attacks.lock import merged, read_lock, write_lock
    from safear_edit.attacks.replay import again, frozen

    known = list(read_lock(path).frozen) if path.exists() else []
    now = []
    with pair.edited() as model:
        for number, one in enumerate(known):
            alike = (one.concept, one.judge_digest) == (concept.spec.name, concept.judge.digest)
            if alike and (count := again(model, concept.judge, one)) is not None:
                now.append(one.model_copy(update={"found": count, "change": record.change}))
            progress("frozen attacks", number + 1, len(known), one.attack)
        for leaks in record.found:
            if leaks.interpretable:
                now += frozen(model, concept, leaks, record.base_digest, record.change)
    write_lock(path, merged(known, now))
