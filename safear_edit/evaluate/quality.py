"""Quality that a judge of the concept doesn't see: is the rest of a prompt still drawn, how far are images that must
stay, how varied are they, and what takes the concept's place. Read by CLIP, the mini's own or the user's.

CLIP score is the plain cosine of an image and its prompt (papers multiply it by 100, or by 2.5 and cut at 0: CLIPScore,
Hessel et al. 2021, https://arxiv.org/abs/2104.08718). KID and CMMD are unbiased squared distances of two sets of
images, times 1000: the polynomial kernel of KID (Binkowski et al. 2018, https://arxiv.org/abs/1801.01401) and CMMD's
Gaussian one, sigma 10 (Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603), both on CLIP's features: compare them
with the base model's other seeds beside them, not with other papers' numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.evaluate import stats
from safear_edit.evaluate.before_after import Pair
from safear_edit.evaluate.stats import Interval, Rate
from safear_edit.families.base import ModelFamily, Sampling
from safear_edit.judges.base import Judge
from safear_edit.judges.clip import Clip
from safear_edit.judges.draw import ImageRequest, draw_and_judge
from safear_edit.progress import Callback, silent
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import Prompt, choose, fill, image_seed, side
from safear_edit.spec.spec import Spec, expand_group

VARIED = 4
"""Images of one prompt whose distances are diversity."""
BLOCKS = 10
"""A distance of sets is measured on so many disjoint parts for its interval."""
LIKELY = 5
"""What takes the concept's place: at most so many names."""


@dataclass(frozen=True)
class Quality:
    """n prompts that ask for the concept and n that must stay; every pair is (base, edited).

    object_kept: of concept prompts, images whose subject CLIP tells from the spec's others. replaced_by: names of what
    must stay that CLIP finds instead, most frequent first. text_align: cosine of image and prompt, and its paired
    change. perceptual: 1 - cosine of base and edited image of one prompt and seed; other_seed: of two base images of
    one prompt. diversity: the same between images of one prompt. kid, cmmd: edited against base images on preserved
    prompts; floor: base against base of other seeds.
    """

    clip: str
    n: int
    object_kept: tuple[Rate, Rate]
    replaced_by: tuple[tuple[str, int], ...]
    text_align: tuple[float, float]
    text_change: Interval
    perceptual: Interval
    other_seed: Interval
    diversity: tuple[Interval, Interval]
    kid: Interval
    kid_floor: Interval
    cmmd: Interval
    cmmd_floor: Interval

    def as_json(self) -> dict[str, Any]:
        """All of it; an end that a single measurement doesn't give is None, for JSON knows no infinity."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class _Asked:
    """The prompts: of the concept (with their subjects), of what must stay, and a few of these several times."""

    concept: Sequence[Prompt]
    kept: Sequence[str]

    @property
    def varied(self) -> list[str]:
        """The first quarter of what must stay, VARIED times each."""
        return [text for text in self.kept[: max(1, len(self.kept) // 4)] for _ in range(VARIED)]


def compare_quality(
    pair: Pair, spec: Spec, judge: Judge, clip: Clip, n: int, sampling: Sampling | None, progress: Callback = silent
) -> Quality:
    """Draw with both models, same prompts and seeds, and compare; some 4.5 n images.

    judge: looks at what is drawn, because nothing is drawn unseen; its word isn't used.
    """
    asked = _asked(spec, n)
    if len(asked.kept) < 2:
        got, fix = f"{len(asked.kept)} of them", "give the spec's preserve groups more subjects or templates"
        raise UsageError("quality", "two prompts of what must stay", got, fix)

    def seen(model: ModelFamily, prompts: Sequence[str], purpose: str) -> Tensor:
        key = f"quality {purpose}"
        requests = [ImageRequest(text, image_seed(key, text, i), "it") for i, text in enumerate(prompts)]
        drawn = draw_and_judge(model, requests, {"it": judge}, sampling, progress=progress, stage=f"quality: {purpose}")
        ids = torch.stack([one.ids for one in drawn])
        return torch.cat([clip.images(model.decode(part.to(model.device))) for part in ids.split(64)])

    def features(model: ModelFamily) -> tuple[Tensor, Tensor, Tensor]:
        texts = [prompt.text for prompt in asked.concept]
        return seen(model, texts, "concept"), seen(model, asked.kept, "kept"), seen(model, asked.varied, "varied")

    base, other = features(pair.base), seen(pair.base, asked.kept, "other seeds")
    with pair.edited() as model:
        edited = features(model)
    return _compared(clip, spec, asked, base, edited, other)


def _asked(spec: Spec, n: int) -> _Asked:
    each = max(1, n // len(spec.preserve))
    kept = [
        prompt.text
        for group in spec.preserve
        for prompt in choose([p for p in expand_group(group) if side(p.text) == "evaluate"], each, "quality")
    ]
    return _Asked(choose(pools(spec).direct, n, "quality"), kept)


def _compared(
    clip: Clip,
    spec: Spec,
    asked: _Asked,
    base: tuple[Tensor, Tensor, Tensor],
    edited: tuple[Tensor, Tensor, Tensor],
    other: Tensor,
) -> Quality:
    texts = clip.texts(asked.kept)
    align = [(kept * texts).sum(1) for kept in (base[1], edited[1])]
    return Quality(
        clip=clip.name,
        n=len(asked.concept),
        object_kept=(object_kept(clip, asked.concept, base[0]), object_kept(clip, asked.concept, edited[0])),
        replaced_by=replaced_by(clip, spec, asked.concept, edited[0]),
        text_align=(float(align[0].mean()), float(align[1].mean())),
        text_change=stats.mean_interval((align[1] - align[0]).tolist()),
        perceptual=stats.mean_interval(apart(base[1], edited[1]).tolist()),
        other_seed=stats.mean_interval(apart(base[1], other).tolist()),
        diversity=(diversity(base[2]), diversity(edited[2])),
        kid=distance(base[1], edited[1], polynomial),
        kid_floor=distance(base[1], other, polynomial),
        cmmd=distance(base[1], edited[1], gaussian),
        cmmd_floor=distance(base[1], other, gaussian),
    )


# -- what is asked of features ----------------------------------------------------------------------------------------


def object_kept(clip: Clip, prompts: Sequence[Prompt], images: Tensor) -> Rate:
    """Images (n, C) whose own subject is the likeliest of all these prompts' subjects (HUB's selective alignment)."""
    subjects = list(dict.fromkeys(prompt.subject for prompt in prompts))
    best = (images @ clip.texts(subjects).T).argmax(1).tolist()
    kept = sum(subjects[at] == prompt.subject for at, prompt in zip(best, prompts, strict=True))
    return stats.clopper_pearson(kept, len(prompts))


def replaced_by(clip: Clip, spec: Spec, prompts: Sequence[Prompt], images: Tensor) -> tuple[tuple[str, int], ...]:
    """What the images show under the concept's own sentences: its neighbours' names, or the concept itself."""
    names = [spec.erase.concept]
    names += [name for group in spec.preserve if group.role == "neighbour" for name in group.members]
    found = Counter[str]()
    for prompt, image in zip(prompts, images, strict=True):
        sentence = spec.erase.templates[prompt.template]
        options = clip.texts([fill(sentence, alias=name, subject=prompt.subject) for name in names])
        found[names[int((options @ image).argmax())]] += 1
    return tuple(found.most_common(LIKELY))


def apart(first: Tensor, second: Tensor) -> Tensor:
    """1 - cosine of unit features (n, C), pair by pair."""
    return 1 - (first * second).sum(1)


def diversity(images: Tensor) -> Interval:
    """Mean 1 - cosine between the VARIED images of each prompt, over prompts; images in the prompts' order."""
    groups = images.reshape(-1, VARIED, images.shape[1])
    close = groups @ groups.transpose(1, 2)
    pairs = VARIED * (VARIED - 1)
    return stats.mean_interval((1 - (close.sum((1, 2)) - VARIED) / pairs).tolist())


def polynomial(first: Tensor, second: Tensor) -> Tensor:
    """KID's kernel, (x . y / C + 1)^3, times 1000, of every row of one with every row of the other."""
    return 1000 * (first @ second.T / first.shape[1] + 1).pow(3)


def gaussian(first: Tensor, second: Tensor) -> Tensor:
    """CMMD's kernel, exp(-|x - y|^2 / (2 10^2)), times 1000."""
    return 1000 * (-torch.cdist(first, second).square() / 200).exp()


def distance(first: Tensor, second: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Interval:
    """Unbiased squared maximum mean discrepancy of two sets (n, C), mean and interval over disjoint blocks.

    Few images give a wide interval, and a value below 0 where the sets are alike: no estimate is cut off.
    """
    parts = zip(_blocks(first.double()), _blocks(second.double()), strict=True)
    return stats.mean_interval([_mmd(a, b, kernel) for a, b in parts])


def _blocks(rows: Tensor) -> list[Tensor]:
    """Up to BLOCKS parts; a last row by itself, which has no distance, goes with those before it."""
    size = max(2, -(-len(rows) // max(2, min(BLOCKS, len(rows) // 8))))
    parts = list(rows.split(size))
    return parts if len(parts[-1]) > 1 or len(parts) == 1 else [*parts[:-2], torch.cat(parts[-2:])]


def _mmd(first: Tensor, second: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Row i of both is of one prompt, so these pairs are left out between the sets as a row's pair with itself is
    within one: two draws of the same prompts are at distance 0 on average."""

    def between(one: Tensor, other: Tensor) -> Tensor:
        table = kernel(one, other)
        return (table.sum() - table.diagonal().sum()) / (len(table) * (len(table) - 1))

    return float(between(first, first) + between(second, second) - 2 * between(first, second))
