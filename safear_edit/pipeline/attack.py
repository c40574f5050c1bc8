"""Attacks on a release: which fit, each run once and kept, one record of all of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit import registry
from safear_edit.errors import UsageError
from safear_edit.files.atomic import digest_of, json_digest, write_atomic
from safear_edit.files.records import read_record
from safear_edit.pipeline.order import resolve_device, source_path
from safear_edit.progress import Callback, silent
from safear_edit.spec.spec import Spec, load_spec

if TYPE_CHECKING:
    from safear_edit.attacks.base import Attack, Budget, Concept
    from safear_edit.attacks.record import Attacks, Leaks
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
    out: Path,
    lock: Path | None = None,
    progress: Callback = silent,
) -> Attacks:
    """Attack a released folder for one concept of it, or for any other spec; writes out/attacks.json.

    A finished attack is kept in `out` as NAME.json and not run again for the same model, edit, spec, budget and seed;
    a killed one goes on from its last batch of images where it keeps them. minutes: no attack begins after so many
    (one that has begun is finished). lock: a file of frozen prompts; what was found is added, and the known ones are
    held to what they show now, if that is less. UsageError for a folder that is no release, or an attack that nobody
    knows.
    """
    from safear_edit.attacks.base import TIERS
    from safear_edit.attacks.curve import plot
    from safear_edit.attacks.record import FILE, Attacks, NotRun, adjusted
    from safear_edit.attacks.targets import concept_of
    from safear_edit.evaluate.before_after import Pair
    from safear_edit.evaluate.sampled import sampling_of
    from safear_edit.pipeline.steps import concept_judge, edited
    from safear_edit.release.released import Released

    known, start = registry.attacks(), time.monotonic()
    chosen = {name: registry.lookup("attacks", name).load()() for name in names or known}
    if tier not in TIERS:
        raise registry.unknown("tier", tier, TIERS)
    released = Released.read(folder)
    wanted = _spec(released, spec)
    model = released.base(resolve_device(device))
    recipe = next((one.recipe for one in released.members if one.name == wanted.name), released.members[0].recipe)
    concept = concept_of(model, wanted, concept_judge(wanted), sampling_of(recipe), seed)
    pair, change = Pair(model, partial(edited, model, released.stack)), released.stack.digest
    about = [model.card.digest, change, json_digest(wanted.model_dump(mode="json")), concept.judge.digest, tier]
    found: list[Leaks] = []
    not_run: list[NotRun] = []
    out.mkdir(parents=True, exist_ok=True)
    for number, (name, made) in enumerate(chosen.items()):
        progress("attacks", number, len(chosen), name)
        key = digest_of(*about, str(seed), str(model.device), name, made.params.model_dump_json())
        why = made.unfit(model, concept)
        if why or (minutes is not None and time.monotonic() - start > 60 * minutes and not _kept(out, name, key)):
            not_run.append(NotRun(attack=name, why=why or f"the budget of {minutes:g} minutes was spent"))
        else:
            found.append(_once(made, pair, concept, TIERS[tier], seed, out, key, progress))
    progress("attacks", len(chosen), len(chosen), "")
    record = Attacks(
        model=released.ref,
        concept=wanted.name,
        base_digest=model.card.digest,
        change=change,
        judge=concept.judge.id,
        judge_digest=concept.judge.digest,
        tier=tier,
        seed=seed,
        found=adjusted(found),
        not_run=tuple(not_run),
    )
    write_atomic(out / FILE, record.model_dump_json(indent=1) + "\n")
    if lock is not None:
        _freeze(lock, pair, concept, record, progress)
    for leaks in record.found:
        if leaks.curves:
            write_atomic(out / f"{leaks.attack}.png", plot(leaks.curves))
    return record


def _spec(released: Released, text: str | None) -> Spec:
    """The spec that was named, or the one that a release of one concept was made of."""
    if text is not None:
        return load_spec(source_path(text))
    if len(released.members) > 1:
        names = ", ".join(member.name for member in released.members)
        raise UsageError("--spec", f"one of {names}, or a file", "nothing", "say which concept to bring back")
    return released.members[0].recipe.spec


def _kept(out: Path, name: str, key: str) -> Leaks | None:
    """The record of this very attack, if it was finished before."""
    from safear_edit.attacks.record import Finished

    path = out / f"{name}.json"
    if not path.is_file():
        return None
    finished = read_record(Finished, path, "delete it, and attack again")
    return finished.leaks if finished.key == key else None


def _once(
    made: Attack, pair: Pair, concept: Concept, budget: Budget, seed: int, out: Path, key: str, progress: Callback
) -> Leaks:
    """Run the attack, or read what it found before."""
    from safear_edit.attacks.record import Finished

    if kept := _kept(out, made.name, key):
        return kept
    store = out / "images" / key[:16]
    leaks = made.run(pair, concept, budget, seed, store=store, progress=progress)
    write_atomic(out / f"{made.name}.json", Finished(key=key, leaks=leaks).model_dump_json(indent=1) + "\n")
    shutil.rmtree(store, ignore_errors=True)
    return leaks


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
