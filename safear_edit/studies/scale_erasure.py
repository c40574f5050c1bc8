"""ScaleErasure, a rival that edits nothing: while an Infinity draws, bits that go with the concept are guided away.

`python -m safear_edit.studies scale_erasure SPEC --model infinity` measures it on the prompts that edits are measured
on, unscreened; it is never released: whoever holds the weights can leave it out.
Source: https://arxiv.org/abs/2606.29282 and https://github.com/coziiizz/ScaleErasure.
Where the two differ the paper is followed: the threshold on bits stays what it is from scale to scale (the code divides
it by the temperature again at each), and the window's first scale is given outright (the code lets two scales of its
own window pass).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from safear_edit.errors import UsageError
from safear_edit.evaluate.sampled import judges_of, request_of, sampling_of
from safear_edit.families.base import Condition, Sampling
from safear_edit.families.infinity import (
    ClassifierFree,
    CrossAttention,
    Infinity,
    TextPass,
    Transformer,
    per_scale,
    sample_bits,
)
from safear_edit.families.load import load_model
from safear_edit.families.sampling import guided
from safear_edit.judges.draw import draw_and_judge
from safear_edit.pipeline.order import source_path
from safear_edit.spec.spec import Spec, load_spec
from safear_edit.studies.arguments import positive

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


PAPER_FIRST, PAPER_LAST, PAPER_SCALES = 2, 8, 13
"""The paper's window: scales 3 to 8 of Infinity-2B's thirteen (from 0, the end left out)."""
PAPER_LAYERS, PAPER_DEPTH = range(1, 6), 32
"""The released code measures relevance in these of Infinity-2B's layers."""
BIT_THRESHOLD = 0.1
"""Paper: a bit is the concept's if its logit under the prompt is this close to that under the concept alone."""


@dataclass(frozen=True)
class Words:
    """What is said for the concept, in its place, and of things that have nothing to do with it."""

    unsafe: str
    safe: str
    unrelated: tuple[str, ...]

    @classmethod
    def of(cls, spec: Spec) -> Words:
        """From a spec: its concept, its first anchor without a subject, and the members that it preserves."""
        members = tuple(dict.fromkeys(member for group in spec.preserve for member in group.members))
        safe = " ".join(spec.anchor.templates[0].replace("{subject}", "").split())
        return cls(spec.erase.concept, safe, members)


@dataclass(frozen=True)
class Window:
    """Which scales (first to last, last left out), tokens and bits are guided.

    token_threshold: a token's share of relevance to the concept among all the words, from which it counts. The paper
    tunes it per concept (0.187 to 0.332); the default is an even share, as its 0.332 is among three words.
    layers: whose cross attention measures the relevance.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    first: int
    last: int
    token_threshold: float
    bit_threshold: float
    layers: tuple[int, ...]

    @classmethod
    def scaled(cls, scales: int, depth: int, words: int) -> Window:
        """The paper's numbers for a model with other numbers of scales and layers."""
        last = max(PAPER_FIRST + 1, round(scales * PAPER_LAST / PAPER_SCALES))
        layers = tuple(i for i in PAPER_LAYERS if i < max(2, round(depth * len(PAPER_LAYERS) / PAPER_DEPTH) + 1))
        return cls(PAPER_FIRST, last, 1 / words, BIT_THRESHOLD, layers)

    def changed(self, text: str, depth: int) -> Window:
        """With the numbers that a YAML text gives, for a model of so many layers; UsageError for anything else."""
        wanted = f"YAML with some of {', '.join(asdict(self))}, layers below {depth}"
        try:
            found = TypeAdapter(Window).validate_python(asdict(self) | yaml.safe_load(text))
        except (yaml.YAMLError, TypeError, ValidationError):
            found = None
        if found is None or not all(0 <= layer < depth for layer in found.layers) or not found.layers:
            raise UsageError("--window", wanted, text, "for instance '{first: 2, last: 4}'")
        return found


class ScaleErasure(Infinity):
    """An Infinity whose drawing is guided away from a concept; net, tokenizer and all the rest are the model's own."""

    def __init__(self, model: ModelFamily, words: Words, window: Window | str = "{}") -> None:
        """window: its numbers, or a YAML text of those that are to differ from the paper's."""
        if not isinstance(model, Infinity):
            raise UsageError("scale_erasure", "an Infinity", model.name, "choose another method for this family")
        super().__init__(model.net, model.bsq, model.schedule, model.text, model.card, model.sampling)
        scales, depth = len(model.schedule.grids), model.net.config.depth
        usual = Window.scaled(scales, depth, 1 + len(words.unrelated))
        self.window = window if isinstance(window, Window) else usual.changed(window, depth)
        self.said = model.condition([words.safe, words.unsafe])
        self.keys = _keys(model, [words.unsafe, *words.unrelated], self.window.layers)

    @property
    def hands(self) -> int:
        """One batch at a time: the hooks that collect queries are the network's, not a batch's."""
        return 1

    def _draw(self, condition: Condition, seeds: Sequence[int], sampling: Sampling, prefix: Tensor | None) -> Tensor:
        """As Infinity's, from the same numbers, with two more rows per image up to the window's end."""
        text = self.text_pass(_joined(condition.twice(), self.said, len(condition)))
        guide = Guided(ClassifierFree(*per_scale(sampling, len(self.schedule.grids))), self.window, self.keys, [])
        hooks = [self.net.layers[i].ca.register_forward_pre_hook(guide.record) for i in self.window.layers]
        try:
            choose = self.chooser(seeds)
            return sample_bits(
                self.net, self.schedule, text, len(condition), sampling, choose, prefix=prefix, guide=guide
            )
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class Guided:
    """The guide (see `sample_bits`): captions, dropped captions, the safe and the unsafe words, in this order.

    keys: per measuring layer the key (W, H, d) of every word, the concept's first. queries: what `look` collects while
    a scale runs.
    """

    plain: ClassifierFree
    window: Window
    keys: Sequence[Tensor]
    queries: list[Tensor]

    def kinds(self, scale: int) -> int:
        """All four to the window's end, then what guidance needs."""
        return 4 if scale < self.window.last else self.plain.kinds(scale)

    def record(self, attention: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook of the measuring layers' cross attention."""
        self.queries.append(cast("CrossAttention", attention).queries(inputs[0]))

    def logits(self, net: Transformer, scale: int, states_RLC: Tensor, text: TextPass) -> Tensor:
        """Equations 2 and 6: bits of the concept follow the safe words away from the unsafe ones, all others as ever.

        safe = u + s (l_safe - l_unsafe),  where relevance > threshold and |l - l_unsafe| < threshold of bits
        """
        queries = list(self.queries)
        self.queries.clear()
        if scale >= self.window.last:
            return self.plain.logits(net, scale, states_RLC, text)
        images = len(text) // 4
        each = (net.bit_logits(states_RLC, text) / self.plain.temperature[scale]).split(images)
        prompt, without, safe, unsafe = each
        strength = max(1.0, self.plain.guidance[scale])
        usual = guided(prompt, without, strength)
        if scale < self.window.first:
            return usual
        token = relevance([q[:images] for q in queries], self.keys) > self.window.token_threshold
        bit = (prompt - unsafe).abs() < self.window.bit_threshold
        return torch.where(token[..., None, None] & bit, without + strength * (safe - unsafe), usual)


def relevance(queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """Equation 4: every token's share of relevance to the first word (B, L), mean over heads and layers.

    queries: per layer (B, H, L, d); keys: per layer (W, H, d).
    """
    shares = []
    for q, k in zip(queries, keys, strict=True):
        scores = torch.einsum("bhld,whd->bhlw", q, k) * q.shape[-1] ** -0.5
        shares.append(scores.softmax(-1)[..., 0].mean(1))
    return torch.stack(shares).mean(0)


@torch.no_grad()
def _keys(model: Infinity, words: Sequence[str], layers: Sequence[int]) -> list[Tensor]:
    """Per layer one key (W, H, d) of each word: its tokens' embeddings, averaged, then projected."""
    condition, net = model.condition(words), model.net
    share = condition.mask / condition.mask.sum(1, keepdim=True)
    mean = (net.normed_captions(condition.features) * share.unsqueeze(-1)).sum(1, keepdim=True)[condition.index]
    projected = net.text_proj_for_ca(mean).to(net.narrow)
    return [net.layers[i].ca.keys_values(projected)[0][:, :, 0] for i in layers]


def _joined(plain: Condition, said: Condition, images: int) -> Condition:
    """The rows of `plain`, then `images` of each of `said`; captions stay left-padded."""
    longest = max(plain.mask.shape[1], said.mask.shape[1])
    features, masks = [], []
    for part in (plain, said):
        room = longest - part.mask.shape[1]
        features.append(F.pad(part.features, (0, 0, room, 0)))
        masks.append(F.pad(part.mask, (room, 0)))
    place = (said.index + len(plain.features)).repeat_interleave(images)
    dropped = torch.cat([plain.dropped, torch.zeros(len(place), dtype=torch.bool)])
    return Condition(torch.cat(features), torch.cat(masks), torch.cat([plain.index, place]), dropped)


# -- measured ---------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what the guidance changes per slice."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies scale_erasure", description=__doc__)
    parser.add_argument("spec", help="a file or a built-in concept's name")
    parser.add_argument("--model", default="infinity")
    parser.add_argument("--prompts", type=positive, default=60, help="per slice")
    parser.add_argument("--window", default="{}", help="YAML, for instance '{first: 2, last: 4}'")
    options = parser.parse_args(arguments)
    model, spec = load_model(options.model), load_spec(source_path(options.spec))
    guarded = ScaleErasure(model, Words.of(spec), options.window)
    recipe = compile_recipe(spec, model.card, load_base_recipe("vce"), sampling=model.sampling)
    for name in recipe.evaluate.n:
        before, after = (drawn(one, recipe, name, options.prompts) for one in (model, guarded))
        print(f"{name}: {told(before, after)}")
    return 0


def drawn(model: ModelFamily, recipe: Recipe, name: str, count: int) -> list[bool | None]:
    """What the judge says of the images for the first `count` prompts of a slice."""
    requests = [request_of(prompt) for prompt in recipe.slice(name)[:count]]
    return [one.judgement.present for one in draw_and_judge(model, requests, judges_of(recipe), sampling_of(recipe))]


def told(before: Sequence[bool | None], after: Sequence[bool | None]) -> str:
    """Counts of what is found, lost and gained."""
    pairs = [(b is True, a is True) for b, a in zip(before, after, strict=True)]
    found = f"found in {sum(b for b, _ in pairs)}, then in {sum(a for _, a in pairs)} of {len(pairs)}"
    return f"{found}; lost {pairs.count((True, False))}, gained {pairs.count((False, True))}"
