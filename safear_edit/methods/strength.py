"""How strong a found adapter is applied: a number, or the weakest of several that erases training prompts' images.

Training pulls as hard as its steps allow, and what a concept needs is often less (VCE) or more (SACE at scale 0) than
that. The line search draws training prompts under seeds that nothing else uses, never a prompt of the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.method_log import MethodLog
from safear_edit.errors import UsageError
from safear_edit.judges.draw import ImageRequest, draw_and_judge
from safear_edit.progress import Callback

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


Strength = Annotated[float, Field(gt=0)] | Literal["search"]
PROBE = 128
"""Training prompts that decide between strengths."""
ENOUGH = 0.02
"""A strength is enough if the judge misses the concept's absence in no larger share of the probe's images."""


def refuse_unjudged(method: str, strength: Strength, material: Material) -> None:
    """UsageError where a strength is to be searched and nobody can judge."""
    if strength == "search" and not all(part.judge for part in material.parts or (material,)):
        fix = "give the material a judge, or set params.strength to a number"
        raise UsageError(method, "somebody to judge images of training prompts", "nobody", fix)


@dataclass(frozen=True)
class Search:
    """Which of `strengths` (ascending) is taken, by trying at most `tries` of them."""

    strengths: tuple[float, ...]
    tries: int
    taken: Callable[[Sequence[float], Probe], float]


def upwards(*strengths: float) -> Search:
    """The weakest that is enough; if none is, the best."""
    return Search(strengths, len(strengths), _weakest)


def eased(*strengths: float) -> Search:
    """For an edit that is found too strong: one step beyond the weakest that is enough.

    Why one beyond: held-out names and forms ask for more than the prompts of training. The last is tried first, and
    taken if even that is not enough; else the weakest is found by bisection, as if more strength never erased less.
    """
    return Search(strengths, 1 + (len(strengths) - 1).bit_length(), _bisected)


def images_drawn(strength: Strength, search: Search, pairs: int) -> int:
    """What a search draws in the worst case."""
    return search.tries * min(PROBE, pairs) if strength == "search" else 0


def at_strength(
    model: ModelFamily,
    material: Material,
    found: Edit,
    strength: Strength,
    search: Search,
    *,
    seed: int,
    progress: Callback,
) -> Edit:
    """`found` at a strength: the number itself, or the one that the search takes.

    An image that the judge can't read does not count as erased. The edit's log says what was tried.
    """
    if strength != "search":
        return scaled(found, strength)
    probe = Probe(model, material, found, seed, progress, search.tries)
    return probe.taking(search.taken(search.strengths, probe))


def _weakest(strengths: Sequence[float], probe: Probe) -> float:
    for one in strengths:
        if probe.enough(one):
            return one
    return min(probe.shares, key=probe.shares.__getitem__)


def _bisected(strengths: Sequence[float], probe: Probe) -> float:
    last = len(strengths) - 1
    if not probe.enough(strengths[last]):
        return strengths[last]
    low, high = -1, last  # strengths[low] is not enough, strengths[high] is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if probe.enough(strengths[middle]) else (middle, high)
    return strengths[min(high + 1, last)]


@dataclass(frozen=True)
class Probe:
    """Images of training prompts at one strength after another, and what was left in them."""

    model: ModelFamily
    material: Material
    found: Edit
    seed: int
    progress: Callback
    most: int
    shares: dict[float, float] = field(default_factory=dict)

    def enough(self, strength: float) -> bool:
        """Whether the judge says of nearly all images that the concept is absent."""
        self.shares[strength] = left = _left(self.model, self.material, self.found, strength, self.seed)
        self.progress("strength", len(self.shares), self.most, f"{strength:g}: left in {left:.3f}")
        return left <= ENOUGH

    def taking(self, taken: float) -> Edit:
        """The edit at that strength, with what was tried as its log."""
        rows: list[tuple[float | str, ...]] = [(one, share, one == taken) for one, share in self.shares.items()]
        rows += [] if taken in self.shares else [(taken, "not drawn", True)]
        log = MethodLog(
            title="Strengths of the found adapter were tried on training prompts",
            columns=("strength", "found or unclear in", "taken"),
            rows=tuple(rows),
            caption=f"Shares of {min(PROBE, len(self.material.pairs))} images under seeds of their own; they are no "
            "evidence, and the section on erasure is.",
        )
        return replace(scaled(self.found, taken), log=log)


def scaled(found: Edit, strength: float) -> Edit:
    """The same factors at `strength` times their scale, which is alpha / rank."""
    assert found.info.alpha is not None
    return replace(found, info=found.info.model_copy(update={"alpha": found.info.alpha * strength}))


def _left(model: ModelFamily, material: Material, found: Edit, strength: float, seed: int) -> float:
    """Share of the probe's images about which the judge does not say that the concept is absent."""
    parts, requests = material.parts or (material,), list[ImageRequest]()
    each = PROBE // len(parts)  # of a joint edit every concept is asked for alike
    for part in parts:
        for prompt, number in zip(part.pairs.unsafe[:each], part.pairs.seeds[:each], strict=True):
            word = f"{found.info.method}|strength|{seed}|{number}"
            image = int.from_bytes(sha256(word.encode()).digest()[:8]) >> 1
            requests.append(ImageRequest(prompt, image, part.concept))
    judges = {part.concept: part.judge for part in parts if part.judge}
    with found.apply(model.net, strength):
        images = list(draw_and_judge(model, requests, judges, None))
    return sum(image.judgement.present is not False for image in images) / len(images)
