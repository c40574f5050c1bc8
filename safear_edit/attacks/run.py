"""Running attacks: those of a tier or suite on one concept, each once, with its budget, kept when it is finished."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from safear_edit import processes, registry
from safear_edit.attacks import base_seen
from safear_edit.attacks.base import SHOWN, Attack, Concept, Target
from safear_edit.attacks.brought import name_of, read_brought, write_brought
from safear_edit.attacks.record import Attacks, Finished, Leaks, NotRun, adjusted
from safear_edit.attacks.suites import SUITES, TIERS, Budget, Suite, gated
from safear_edit.editor.fine_tune import Tuning
from safear_edit.evaluate.before_after import Pair
from safear_edit.files.atomic import digest_of, json_digest, write_atomic
from safear_edit.files.cache import recent
from safear_edit.files.records import read_record
from safear_edit.judges.draw import draw_and_judge, other_encoder
from safear_edit.progress import Callback, silent

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@dataclass(frozen=True)
class AttackPlan:
    """Attacks of a tier or suite with their budgets, in order; upper: the gate of a suite."""

    tier: str
    attacks: tuple[tuple[Attack, Budget], ...]
    upper: float | None

    @property
    def reads_images(self) -> bool:
        """Whether any of them starts from images of the concept."""
        return any(made.reads_images for made, _ in self.attacks)

    @property
    def code(self) -> str:
        """What the attacks are, as source."""
        return digest_of(*(made.code() for made, _ in self.attacks))


def planned(tier: str, names: Sequence[str] = ()) -> AttackPlan:
    """What `tier` (quick, standard, full, or a suite) says to run; only `names`, if there are any. UsageError for an
    unknown one."""
    if tier not in TIERS and tier not in SUITES:
        raise registry.unknown("tier", tier, [*TIERS, *SUITES])
    suite = SUITES.get(tier)
    size = suite.size if suite else TIERS[tier]
    asked = suite or Suite(size)
    chosen = []
    for name in names or asked.attacks or [name for name in registry.attacks() if name not in asked.without]:
        kind = registry.lookup("attacks", name).load()
        made = kind(kind.Params.model_validate(dict(asked.params.get(name, {}))))
        chosen.append((made, Budget(size.images, size.draws, asked.steps.get(name, size.steps))))
    return AttackPlan(tier, tuple(chosen), asked.black_box_upper)


def attacked(
    pair: Pair,
    concept: Concept,
    ref: str,
    change: str,
    plan: AttackPlan,
    out: Path,
    *,
    seed: int,
    minutes: float | None = None,
    progress: Callback = silent,
) -> Attacks:
    """Every attack of the plan that fits, each kept in `out` when it is finished; the record of all of them.

    ref and change: what the base model is called, and the digest of its edits.
    """
    model, spec, start = pair.base, concept.spec, time.monotonic()
    about = [model.card.digest, json_digest(spec.model_dump(mode="json")), concept.judge.digest]
    behind = _behind(model, concept)
    found: list[Leaks] = []
    not_run: list[NotRun] = []
    out.mkdir(parents=True, exist_ok=True)
    for number, (made, budget) in enumerate(plan.attacks):
        progress("attacks", number, len(plan.attacks), made.name)
        settings = [json_digest(asdict(budget)), str(seed), _place(model), made.params.model_dump_json()]
        settings += [*_folder(made, concept), *other_encoder(model)]
        decides = [*about, made.name, made.code(), *settings]
        key, base = digest_of(change, *decides), digest_of(behind, *decides)
        why = made.unfit(pair, concept)
        spent = minutes is not None and time.monotonic() - start > 60 * minutes
        if why:
            not_run.append(NotRun(attack=made.name, why=why))
        elif spent and not _kept(out, made.name, key):
            left = NotRun(attack=made.name, why=f"the budget of {minutes:g} minutes was spent")
            not_run.append(left.model_copy(update={"undecided": gated(made.access, plan.upper)}))
        else:
            found.append(_once(made, pair, concept, budget, seed, out, key, base, progress))
    progress("attacks", len(plan.attacks), len(plan.attacks), "")
    return Attacks(
        model=ref,
        concept=spec.name,
        base_digest=model.card.digest,
        change=change,
        judge=concept.judge.id,
        judge_digest=concept.judge.digest,
        tier=plan.tier,
        seed=seed,
        black_box_upper=plan.upper,
        found=adjusted(found),
        not_run=tuple(not_run),
    )


def _place(model: ModelFamily) -> str:
    """The device, and a dtype that isn't float32 (records from before there was a choice keep their key)."""
    return f"{model.device}" + ("" if model.dtype == torch.float32 else f", {model.dtype}")


def _kept(out: Path, name: str, key: str) -> Leaks | None:
    """The record of this very attack, if it was finished before."""
    path = out / f"{name}.json"
    if not path.is_file():
        return None
    finished = read_record(Finished, path, "delete it, and attack again")
    return finished.leaks if finished.key == key else None


def _folder(made: Attack, concept: Concept) -> list[str]:
    """What a user's folder of reference images holds, for an attack that reads them: the spec has its name alone (what
    the mini world draws follows from the spec and the seed)."""
    if concept.spec.evaluate.references is None or not made.reads_images:
        return []
    return [json_digest([_aims(concept.known, concept.plain, concept.novel), concept.captions])]


def _behind(model: ModelFamily, concept: Concept) -> str:
    """What else decides what a base model shows: the attacker's images, and the source of all that draws, judges and
    trains. What it showed under another version is not read again."""
    parts = (type(model), type(concept.judge), draw_and_judge, Tuning)
    shown = _aims(concept.known, concept.plain)
    settings = [asdict(concept.sampling or model.sampling), shown, concept.captions]
    return digest_of(json_digest(settings), registry.source_digest(part.__module__ for part in parts))


def _aims(*aims: Target | None) -> list[list[str]]:
    """Images and texts of what an attacker has."""
    known = [aim for aim in aims if aim]
    images = [hashlib.sha256(aim.ids.contiguous().numpy().tobytes()).hexdigest() for aim in known]
    texts = [[*aim.captions, "", *aim.asked, "", *aim.scored] for aim in known]
    return [[image, *said] for image, said in zip(images, texts, strict=True)]


def _once(
    made: Attack,
    pair: Pair,
    concept: Concept,
    budget: Budget,
    seed: int,
    out: Path,
    key: str,
    base: str,
    progress: Callback,
) -> Leaks:
    """Run the attack, or read what it found before; base: by what digest is kept what the base model shows."""
    if kept := _kept(out, made.name, key):
        return kept
    store = out / "images" / key[:16]
    cache = recent("attacks", base, base_seen.DAYS) if processes.is_main() else None
    if cache:
        base_seen.recall(store, cache)
    leaks = made.run(pair, concept, budget, seed, store=store, progress=progress)
    write_atomic(out / f"{made.name}.json", Finished(key=key, leaks=leaks).model_dump_json(indent=1) + "\n")
    if processes.is_main():
        write_brought(out / name_of(made.name), read_brought(store / SHOWN, made.name))
        if cache:
            base_seen.keep(store, cache)
        shutil.rmtree(store, ignore_errors=True)
    return leaks
