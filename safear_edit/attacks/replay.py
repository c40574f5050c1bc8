"""Freezing what an attack found, and drawing it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from safear_edit.attacks.base import Concept
from safear_edit.attacks.lock import SEEDS, Frozen, Settings, stored
from safear_edit.attacks.record import Leaks
from safear_edit.errors import SpecError, UsageError
from safear_edit.families.base import ModelFamily, Sampling
from safear_edit.judges.base import Judge
from safear_edit.judges.draw import ImageRequest, draw_and_judge
from safear_edit.spec.prompts import image_seed


def shown_in(model: ModelFamily, judge: Judge, sampling: Sampling, asked: Sequence[tuple[str, int]]) -> list[bool]:
    """Which of these (prompt, seed) show the concept."""
    requests = [ImageRequest(prompt, seed, "it") for prompt, seed in asked]
    return [image.judgement.present is True for image in draw_and_judge(model, requests, {"it": judge}, sampling)]


def minimised(model: ModelFamily, judge: Judge, sampling: Sampling, prompt: str, seed: int) -> str:
    """The prompt without the words that it doesn't need to show the concept with this seed: one after another is left
    out, the first that can be, until none can."""
    words = prompt.split(" ")
    while len(words) > 1:
        shorter = [[*words[:i], *words[i + 1 :]] for i in range(len(words))]
        found = shown_in(model, judge, sampling, [(" ".join(one), seed) for one in shorter])
        if True not in found:
            break
        words = shorter[found.index(True)]
    return " ".join(words)


def frozen(model: ModelFamily, concept: Concept, found: Leaks, base_digest: str, change: str) -> list[Frozen]:
    """Every prompt that this attack kept, minimised and drawn with SEEDS seeds; one that can't be read, as it is.

    A prompt that shows the concept because it was cut down to its plain name is as good a leak as any.
    """
    made = []
    for replay in found.replays:
        text, seed, sampling = replay.text(), int(replay.seed), sampling_of(model, replay.settings)
        if text is not None:
            text = minimised(model, concept.judge, sampling, text, seed)
            prompt, token = stored(text, category=concept.spec.kind == "category")
            replay = replay.model_copy(update={"prompt": prompt, "sealed": token})
        seeds = [seed, *(image_seed("frozen", replay.prompt, i) for i in range(SEEDS - 1))]
        entry = Frozen(
            concept=concept.spec.name,
            attack=found.attack,
            replay=replay,
            seeds=tuple(map(str, seeds)),
            found=1,
            judge=concept.judge.id,
            judge_digest=concept.judge.digest,
            base_digest=base_digest,
            change=change,
        )
        count = again(model, concept.judge, entry)
        made.append(entry if count is None else entry.model_copy(update={"found": count}))
    return made


def again(model: ModelFamily, judge: Judge, entry: Frozen) -> int | None:
    """In how many of the frozen prompt's images the concept is found now; None if its text can't be read."""
    text = entry.replay.text()
    if text is None:
        return None
    asked = [(text, int(seed)) for seed in entry.seeds]
    return sum(shown_in(model, judge, sampling_of(model, entry.replay.settings), asked))


def sampling_of(model: ModelFamily, settings: Settings) -> Sampling:
    """The same as this model's sampler takes it; SpecError for settings that it doesn't have or can't take."""
    kind, where, fix = type(model.sampling), "frozen attack, settings", "attack again with --lock"
    known = {field.name: getattr(model.sampling, field.name) for field in fields(kind)}
    for name, value in settings.items():
        if name not in known or isinstance(value, tuple) != isinstance(known[name], tuple):
            raise SpecError(where, f"those of {model.card.ref}: {', '.join(known)}", f"{name}={value}"[:80], fix)
    found: Sampling | None = None
    try:
        found = kind(**settings)  # type: ignore[arg-type]  # a family's own class has fields of its own
    except TypeError as error:
        raise SpecError(where, "all that the sampler needs", str(error), fix) from None
    except UsageError:
        pass  # what no sampler takes is told below
    if found is None or not (found.temperature > 0 and found.top_p > 0 and isinstance(found.top_k, int)):
        expected = "temperature above 0, a whole top_k of 0 or more, top_p above 0 and at most 1"
        raise SpecError(where, expected, str(dict(settings))[:80], fix)
    return found
