"""Where a model keeps a concept: at which scale (or row of tokens) it is locked in, and in which layers.

Four measurements on the same contrastive pairs (unsafe caption c*, neutral caption c, same seed), for every family (the
last for those with cross attention):

* evidence: log p(y_t | y_<t, c*) - log p(y_t | y_<t, c) of the model's own unsafe images, in nats, summed over the
  tokens of a group: what the caption's concept contributes there. Exact, without sampling.
* switching: the image is drawn under c* for its first k groups and under c after them; how often does the judge find
  the concept? The k from which it does is where the concept is locked in. Causal, where attention maps only say where
  the model looks.
* depth: the gradient of the evidence with respect to each layer's weights, times the weights' norm: how much a small
  relative change of that layer can change the evidence.
* saliency: how much attention every scale adds on the concept's words (ISSA, `saliency.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safear_edit.editor.fine_tune import borrowed
from safear_edit.editor.gradients import gradients
from safear_edit.errors import UsageError
from safear_edit.evaluate.likelihood import token_blocks
from safear_edit.evaluate.saliency import Saliency, saliency
from safear_edit.evaluate.stats import clopper_pearson
from safear_edit.families.sampling import refuse_nan
from safear_edit.families.tokens import token_logprobs
from safear_edit.files.atomic import write_atomic
from safear_edit.judges.draw import ImageRequest, draw_and_judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safear_edit.construct.pairs import Pairs
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge
    from safear_edit.progress import Callback


BATCH = 32
DEPTH_PAIRS = 16
"""Pairs whose gradient is taken for the depth profile; more change it little and cost a backward each."""
LOCKED = 0.5
"""The concept counts as locked in from the first k whose switched images show it half as often as whole ones."""


@dataclass(frozen=True)
class Group:
    """One scale, or one row of a raster: its tokens, the evidence in it, and what switching after it gives.

    evidence: mean nats per image, with its standard error; switched: images with the concept when this group and
    all before it were drawn under the unsafe caption, `of` images judged (refusals count as without).
    """

    name: str
    tokens: int
    evidence: float
    standard_error: float
    switched: int
    of: int


@dataclass(frozen=True)
class ConceptMap:
    """What `measure` found; `plain` is `switched` for images drawn under the neutral caption from the start."""

    model: str
    model_digest: str
    concept: str
    kind: str
    pairs: int
    plain: int
    groups: tuple[Group, ...]
    depth: tuple[tuple[str, float], ...]
    saliency: Saliency | None = None

    @property
    def locked_in(self) -> int:
        """Index of the first group after which a change of caption comes too late (`LOCKED`)."""
        needed = LOCKED * self.groups[-1].switched
        return next(i for i, group in enumerate(self.groups) if group.switched >= needed)

    def advice(self) -> str:
        """One sentence for a person and for the recipe."""
        group, first = self.groups[self.locked_in], self.groups[0]
        total = sum(g.evidence for g in self.groups)
        share = sum(g.evidence for g in self.groups[: self.locked_in + 1]) / total if total > 0 else 0.0
        start = f"the first {self.kind} alone locks it in {first.switched} times of {first.of}"
        return (
            f"{self.concept} is locked in at {group.name}: drawn with the concept up to there and without it after, "
            f"{group.switched} of {group.of} images still show it ({start}); {share:.0%} of its evidence lies there"
        )

    def to_json(self) -> str:
        """All numbers, and what follows from them."""
        about = {**asdict(self), "locked_in": self.locked_in, "advice": self.advice()}
        return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def locate(model: ModelFamily, concept: str, pairs: Pairs, judge: Judge, progress: Callback) -> ConceptMap:
    """Map one concept on one model from its contrastive pairs (n >= 1); the model is left as it was."""
    groups = token_groups(model)
    found = evidence(model, pairs, progress)
    per_group = torch.stack([part.sum(1) for part in found.split([count for _, count in groups], 1)], 1)
    error = per_group.std(0) / max(1, len(pairs)) ** 0.5 if len(pairs) > 1 else torch.zeros(len(groups))
    switched = switching(model, pairs, judge, [count for _, count in groups], progress)
    rows = zip(groups, per_group.mean(0).tolist(), error.tolist(), switched[1:], strict=True)
    return ConceptMap(
        model.card.ref,
        model.card.digest,
        concept,
        "scale" if len(model.card.scales) > 1 else "row",
        len(pairs),
        switched[0],
        tuple(Group(name, count, mean, se, hits, len(pairs)) for (name, count), mean, se, hits in rows),
        tuple(depth(model, pairs, progress).items()),
        saliency(model, pairs),
    )


def token_groups(model: ModelFamily) -> list[tuple[str, int]]:
    """(name, tokens) of each scale, or of each row of a raster model's square grid (`likelihood.token_blocks`)."""
    lengths = [block.stop - block.start for block in token_blocks(model.card)]
    if len(model.card.scales) < 2:
        return [(f"row {i}", count) for i, count in enumerate(lengths)]
    sides = [round(count**0.5) for count in lengths]
    square = all(side * side == count for side, count in zip(sides, lengths, strict=True))
    return [
        (f"scale {i} ({side}x{side})" if square else f"scale {i} ({count} tokens)", count)
        for i, (side, count) in enumerate(zip(sides, lengths, strict=True))
    ]


@torch.no_grad()
def evidence(model: ModelFamily, pairs: Pairs, progress: Callback) -> Tensor:
    """log p(y | c*) - log p(y | c) for each token of the unsafe images, (n, N) nats on the CPU.

    UsageError for a network that gives no numbers.
    """
    parts, size = [], model.read_together(BATCH)
    for start in range(0, len(pairs), size):
        end = min(start + size, len(pairs))
        parts.append(_gap(model, pairs, torch.arange(start, end)).cpu())
        refuse_nan(parts[-1], "likelihoods")
        progress("evidence", end, len(pairs), "")
    return torch.cat(parts)


def _gap(model: ModelFamily, pairs: Pairs, rows: Tensor) -> Tensor:
    ids = pairs.unsafe_ids[rows].to(model.device)
    with_concept = model.condition([pairs.unsafe[i] for i in rows])
    without = model.condition([pairs.safe[i] for i in rows])
    return token_logprobs(model.logits(with_concept, ids), ids) - token_logprobs(model.logits(without, ids), ids)


@torch.no_grad()
def switching(model: ModelFamily, pairs: Pairs, judge: Judge, groups: Sequence[int], progress: Callback) -> list[int]:
    """Images with the concept when the first k groups are the unsafe image's and the rest is drawn under the
    neutral caption with the same seed, for k = 0 … len(groups)."""
    requests = [ImageRequest(prompt, seed, "concept") for prompt, seed in zip(pairs.safe, pairs.seeds, strict=True)]
    hits = list[int]()
    for length in accumulate(groups, initial=0):
        drawn = draw_and_judge(model, requests, {"concept": judge}, None, prefix=pairs.unsafe_ids[:, :length])
        hits.append(sum(image.judgement.present is True for image in drawn))
        progress("switching", len(hits), len(groups) + 1, f"{hits[-1]} of {len(pairs)}")
    return hits


def depth(model: ModelFamily, pairs: Pairs, progress: Callback) -> dict[str, float]:
    """Per layer, || d evidence / d W || * || W || over its linear weights, as shares that sum to one."""
    layers, rows = layer_modules(model), torch.arange(min(DEPTH_PAIRS, len(pairs)))
    with borrowed(model.net, writes=()), torch.enable_grad():
        model.net.requires_grad_(False)
        weights = [
            [model.net.get_submodule(name).get_parameter("weight").requires_grad_(True) for name in names]
            for names in layers
        ]
        flat = [weight for layer in weights for weight in layer]
        slopes = iter(gradients(model.net, _gap(model, pairs, rows).sum(), flat))
        found = [sum(float(next(slopes).norm() * w.detach().float().norm()) for w in layer) for layer in weights]
    progress("depth", len(rows), len(rows), "")
    total = sum(found) or 1.0
    return {f"layer {i}": value / total for i, value in enumerate(found)}


def layer_modules(model: ModelFamily) -> list[list[str]]:
    """Names of the editable linear layers of each layer, first to last."""
    layers: list[list[str]] = []
    while True:
        try:
            layers.append(model.editable(f"layers[{len(layers)}:{len(layers) + 1}]"))
        except UsageError:
            return layers


def save(found: ConceptMap, folder: Path) -> None:
    """map.json, and map.png for a person."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "map.json", found.to_json())
    write_atomic(folder / "map.png", figure(found))


def figure(found: ConceptMap) -> bytes:
    """PNG: what was found as its title, a panel per measurement, below each how to read it and its largest part."""
    from io import BytesIO

    from matplotlib.figure import Figure

    panels = (_evidence_panel, _switching_panel, _depth_panel, *((_saliency_panel,) if found.saliency else ()))
    canvas = Figure(figsize=(4.2 * len(panels), 4.8), layout="constrained")
    for axis, panel in zip(canvas.subplots(1, len(panels)), panels, strict=True):
        title, note = panel(axis, found)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel(fill(" ".join(note.split()), 58), fontsize=8, loc="left", labelpad=8)
    said = f"{found.model}, {found.pairs} pairs. {found.advice()}."
    canvas.suptitle(fill(said, 54 * len(panels)), fontsize=10.5, x=0.01, ha="left")
    png = BytesIO()
    canvas.savefig(png, dpi=130)
    return png.getvalue()


def _named(axis: Axes, names: Sequence[str]) -> None:
    axis.set_xticks(range(len(names)), names, rotation=45, fontsize=8, ha="right", rotation_mode="anchor")


def _evidence_panel(axis: Axes, found: ConceptMap) -> tuple[str, str]:
    groups = found.groups
    axis.bar(range(len(groups)), [g.evidence for g in groups], yerr=[g.standard_error for g in groups], color="#4477aa")
    axis.axhline(0, color="#888888", linewidth=0.8)
    axis.set_ylabel("nats per image", fontsize=8)
    _named(axis, [group.name for group in groups])
    most = max(groups, key=lambda group: group.evidence)
    note = f"""How much more likely the concept's caption makes the model's own images of it than the neutral one, by
        {found.kind}; bars: a standard error. Most in {most.name}: {most.evidence / most.tokens:.1f} nats a token."""
    return "What the caption adds", note


def _switching_panel(axis: Axes, found: ConceptMap) -> tuple[str, str]:
    rates, places = [clopper_pearson(g.switched, g.of) for g in found.groups], range(len(found.groups))
    axis.fill_between(places, [r.low for r in rates], [r.high for r in rates], color="#ee6677", alpha=0.25)
    axis.plot(places, [r.estimate for r in rates], "o-", color="#ee6677")
    axis.axhline(found.plain / found.pairs, color="#888888", linestyle=":")
    axis.axvline(found.locked_in, color="#333333", linestyle="--", linewidth=1)
    axis.set_ylim(0, 1.02)
    axis.set_ylabel("images that show the concept", fontsize=8)
    _named(axis, [group.name for group in found.groups])
    note = f"""Drawn under the concept's caption up to this {found.kind} and under the neutral one after it; band: 95 %
        interval; dotted: the neutral caption alone; dashed: locked in, at half of what the whole caption gives."""
    return "From where on the concept stays", note


def _depth_panel(axis: Axes, found: ConceptMap) -> tuple[str, str]:
    shares, even = [share for _, share in found.depth], 1 / max(1, len(found.depth))
    axis.bar(range(len(shares)), shares, color="#228833")
    axis.axhline(even, color="#888888", linestyle=":")
    axis.set_ylabel("share", fontsize=8)
    _named(axis, [name for name, _ in found.depth])
    name, most = max(found.depth, key=lambda one: one[1], default=("none", 0.0))
    note = f"""How much a small relative change of a layer's weights can change that evidence (gradient times norm);
        dotted: an even share, {even:.0%}. Most in {name}: {most:.0%}."""
    return "Which layers can change it", note


def _saliency_panel(axis: Axes, found: ConceptMap) -> tuple[str, str]:
    assert found.saliency is not None
    for values, name in ((found.saliency.target, "concept's words"), (found.saliency.neutral, "other words")):
        axis.plot(range(len(values)), [value / (max(values) or 1) for value in values], "o-", label=name)
    axis.legend(fontsize=8)
    axis.set_ylabel("of the largest", fontsize=8)
    _named(axis, [group.name for group in found.groups])
    note = """Attention that each scale adds on words of the caption, in parts of each curve's largest value (ISSA). It
        says where the model looks, not what decides: that is the second panel's."""
    return "Where attention is added", note
