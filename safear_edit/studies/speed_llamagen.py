"""Speed claims, measured.

`python -m safear_edit.studies speed_llamagen sampling` races LlamaGen.generate against plain loops, and
`… ear` EAR's training against the published loop structure.

All contestants run alternately in one process on one thread, with the same weights, captions and random numbers. Their
tokens are compared before any time is reported, and speeds are ratios of medians. Two correct float32 paths differ by
some 5e-5 in a guided logit, so a draw that falls that close to the border of two tokens may go either way, and the rest
of that image with it; such images are counted, with the distance of the deciding draw, and a larger distance fails.
The plain loops follow https://github.com/FoundationVision/LlamaGen/tree/ce98ec4 and share nothing with the fast path
but the network's modules:

    published   what the published code does: every caption position, pads included, in a cache padded to a multiple of
                8 and attended in full under a boolean mask, keys and values copied at each step, unfused attention
    uncopied    the same, but with neither the copies nor the unfused attention

EAR's published loop runs the model once for each token and each of four states, with neither cache nor teacher forcing.
It is raced as it was meant, with the whole prefix recomputed each time (the published code feeds a single token, so
its loss is another one: `ear_loss` has both readings). Losses, gradients and updates are compared first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings, adapter_off, adapter_weights, borrowed, inject
from safear_edit.families.base import Condition, Sampling
from safear_edit.families.llamagen import GPT, LlamaGen, rotate
from safear_edit.families.load import load_model
from safear_edit.families.sampling import guided, inverse_cdf, probabilities, uniforms
from safear_edit.methods.base import fit_pairs
from safear_edit.methods.ear import EAR, ear_loss, masked
from safear_edit.methods.workbench import Workbench
from safear_edit.progress import silent
from safear_edit.studies.arguments import positive
from safear_edit.studies.contest import alternately, material_of, prompts, relative

ROUNDING = 2e-4
"""Largest distance of a draw from a border that rounding may explain: the tolerance of guided logits."""


class PlainLoop:
    """The published way through a LlamaGen transformer, caption and image as one sequence of T + N positions.

    features (R, T, C) left-padded to the full caption length T; mask (R, T) bool. `lean` leaves out the copies of the
    cache and takes the fused attention.
    """

    def __init__(self, net: GPT, features: Tensor, mask: Tensor, *, lean: bool = False) -> None:
        self.net, self.lean, config = net, lean, net.config
        self.features, self.captions = features, features.shape[1]
        total = self.captions + config.block_size
        length = -(-total // 8) * 8
        size = (len(features), config.n_head, length, config.head_dim)
        self.keys = [features.new_zeros(size) for _ in net.layers]
        self.values = [features.new_zeros(size) for _ in net.layers]
        visible = torch.ones(length, length, dtype=torch.bool).tril().repeat(len(features), 1, 1)
        visible[:, :, : self.captions] &= mask.cpu()[:, None]
        self.visible = (visible | torch.eye(length, dtype=torch.bool)).to(features.device)
        self.rope = torch.cat([net.rope.new_zeros(self.captions, *net.rope.shape[1:]), net.rope])

    def prefill(self) -> Tensor:
        """Logits of all caption positions, (R, T, V)."""
        return self._forward(self.net.cls_embedding.cap_proj(self.features), torch.arange(self.captions))

    def step(self, ids_RL: Tensor, first: int) -> Tensor:
        """Logits (R, L, V) of image tokens `ids`, the first of which is token number `first` of its image."""
        positions = torch.arange(self.captions + first, self.captions + first + ids_RL.shape[1])
        return self._forward(self.net.tok_embeddings(ids_RL), positions)

    def _forward(self, h: Tensor, positions: Tensor) -> Tensor:
        mask, rope = self.visible[:, positions].unsqueeze(1), self.rope[positions]
        for i, layer in enumerate(self.net.blocks):
            q, k, v = layer.qkv(h)
            self.keys[i][:, :, positions] = rotate(k, rope)
            self.values[i][:, :, positions] = v
            attended = self._attend(rotate(q, rope), self.keys[i], self.values[i], mask)
            h = layer.after(h, attended.transpose(1, 2).flatten(2))
        return self.net.output(self.net.norm(h)).float()

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        if self.lean:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        keys, values = keys.repeat_interleave(1, dim=1), values.repeat_interleave(1, dim=1)
        root = q.shape[-1] ** -0.25
        score = (q * root) @ (keys * root).transpose(-2, -1)
        return score.masked_fill(~mask, float("-inf")).softmax(-1) @ values


@torch.no_grad()
def plain_sample(
    model: LlamaGen, condition: Condition, seeds: Sequence[int], sampling: Sampling, *, lean: bool = False
) -> Tensor:
    """Tokens (B, N) by the plain loop, with the random numbers that `generate` takes for these seeds."""
    net, count = model.net, len(condition)
    missing = net.config.cls_token_num - condition.mask.shape[1]
    features = F.pad(condition.features[condition.index], (0, 0, missing, 0))
    mask = F.pad(condition.mask[condition.index], (missing, 0))
    if sampling.guidance > 1:
        features, mask = torch.cat([features, net.unconditional(mask)]), mask.repeat(2, 1)
    loop = PlainLoop(net, features, mask, lean=lean)
    choose = inverse_cdf(uniforms(seeds, net.config.block_size).to(features.device))
    logits, chosen = loop.prefill()[:, -1], []
    for position in range(net.config.block_size):
        if sampling.guidance > 1:
            logits = guided(logits[:count], logits[count:], sampling.guidance)
        ids = choose(probabilities(logits, sampling), position)
        chosen.append(ids)
        if position + 1 < net.config.block_size:
            logits = loop.step(ids.repeat(len(mask) // count).unsqueeze(1), position)[:, -1]
    return torch.stack(chosen, 1)


@dataclass(frozen=True)
class Race:
    """One batch size: tokens that agree with the plain loops, median seconds, and tokens per second on one core."""

    batch: int
    tokens: int
    identical: dict[str, int]
    parted: dict[str, list[float]]
    """Of each image that parted: how far the deciding draw was from the border of the two tokens."""
    seconds: dict[str, float]
    per_second: dict[str, float]
    times_faster_than: dict[str, float]


@torch.no_grad()
def distances(
    model: LlamaGen, condition: Condition, seeds: Sequence[int], sampling: Sampling, ours: Tensor, other: Tensor
) -> list[float]:
    """For each image whose tokens differ: |draw - border| at its first difference, in cumulative probability.

    The border is the nearest edge of the interval of our token, by teacher forcing on our tokens.
    """
    found = []
    for row in (ours != other).any(1).nonzero().flatten().tolist():
        position = int((ours[row] != other[row]).nonzero()[0])
        part, token = condition.rows(torch.tensor([row])), int(ours[row, position])
        logits = model.logits(part, ours[row : row + 1])[:, position]
        if sampling.guidance > 1:
            dropped = model.dropped(part, torch.ones(1, dtype=torch.bool))
            logits = guided(logits, model.logits(dropped, ours[row : row + 1])[:, position], sampling.guidance)
        edges = F.pad(probabilities(logits, sampling).double().cumsum(-1)[0], (1, 0))
        draw = float(uniforms([seeds[row]], ours.shape[1])[0, position])
        found.append(min(abs(draw - float(edges[token])), abs(draw - float(edges[token + 1]))))
    return found


def race(model: LlamaGen, batch: int, repeats: int, sampling: Sampling | None = None) -> Race:
    """Time `generate` and the plain loops alternately on `batch` images, after one round that compares the tokens."""
    used = sampling or model.sampling
    condition, seeds = model.condition(prompts(batch)), range(batch)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: model.generate(condition, seeds, used),
        "published": lambda: plain_sample(model, condition, seeds, used),
        "uncopied": lambda: plain_sample(model, condition, seeds, used, lean=True),
    }
    ids = {name: run() for name, run in runs.items()}
    _, seconds = alternately(runs, repeats)
    total = ids["ours"].numel()
    plain = [name for name in runs if name != "ours"]
    return Race(
        batch,
        total,
        {name: int((ids[name] == ids["ours"]).sum()) for name in plain},
        {name: distances(model, condition, seeds, used, ids["ours"], ids[name]) for name in plain},
        seconds,
        {name: total / s for name, s in seconds.items()},
        {name: seconds[name] / seconds["ours"] for name in plain},
    )


# -- EAR --------------------------------------------------------------------------------------------------------------

SAME = 1e-3
"""Largest relative distance of losses, gradients and updates that float32 rounding may explain here."""


def plain_ear_loss(bench: Workbench, draw: Draw, params: EAR.Params, tokens: int) -> tuple[Tensor, Readings]:
    """`ear_loss` by the published loop structure: token by token, four forwards each, the prefix run again each time.

    The three frozen states are those of the concept, the neutral and the target caption; the last two are the same
    caption, as in the published data. The trajectory is given, so drawing it is not part of the race.
    """
    windows = -(-tokens // params.window)
    same = replace(draw, step=draw.step // windows)
    start = (draw.step % windows) * params.window
    total = torch.zeros(())
    for end in range(start + 1, min(start + params.window, tokens) + 1):
        with adapter_off(bench.model.net):
            concept, neutral, target = (
                bench.hidden(same, caption, params.picture, end)[:, -1] for caption in ("unsafe", "safe", "safe")
            )
        found = bench.hidden(same, "unsafe", params.picture, end)[:, -1]
        goal = target - params.eta * (concept - neutral)
        total = total + (found - goal).square().mean(-1).mean()
    return masked(total, params.threshold)


@dataclass(frozen=True)
class EarRace:
    """Training on `images` of them one by one, by ours and by the plain loop."""

    images: int
    tokens: int
    window: int
    updates: int
    loss_distance: float
    gradient_distance: float
    update_distance: float
    """Largest relative distances: losses of single windows, their gradients, and all that the training changed."""
    seconds: dict[str, float]
    times_faster: float


def ear_distances(model: LlamaGen, material: Material, params: EAR.Params) -> tuple[float, float]:
    """Largest relative distance of the two loops' losses and gradients over the first image's windows.

    On an adapter away from its start, so that both of its factors have gradients.
    """
    bench = Workbench(model, material, params, silent, reference=False)
    losses, gradients = [0.0], [0.0]
    with borrowed(model.net, writes=()):
        weights = adapter_weights(inject(model.net, model.editable(params.part), params, 0))
        generator = torch.Generator().manual_seed(0)
        for name, weight in weights.items():
            if name.endswith("lora_B"):
                weight.data.normal_(std=0.02, generator=generator)
        for step in range(-(-model.card.tokens // params.window)):
            found = [loss(bench, Draw(0, step), params, model.card.tokens)[0] for loss in (ear_loss, plain_ear_loss)]
            grads = [torch.cat([g.flatten() for g in torch.autograd.grad(f, [*weights.values()])]) for f in found]
            losses.append(relative(*(f.detach() for f in found)))
            gradients.append(relative(*grads))
    return max(losses), max(gradients)


def ear_race(model: LlamaGen, images: int, window: int, repeats: int) -> EarRace:
    """Time both loops alternately on the same images, windows and updates (batch 1, as published)."""
    material, tokens = material_of(model, images), model.card.tokens
    updates = images * -(-tokens // window)
    numbers = {"window": window, "batch": 1, "steps": updates, "warmup": 0, "threshold": 0.0, "learning_rate": 1e-4}
    params = EAR.Params.model_validate(numbers)

    def plain() -> Edit:
        def loss(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
            return plain_ear_loss(bench, draw, params, tokens)

        return fit_pairs(
            "ear", model, material, params, loss, seed=0, progress=silent, checkpoint=None, reference=False
        )

    runs: dict[str, Callable[[], Edit]] = {
        "ours": lambda: EAR().fit(model, material, params, seed=0, progress=silent),
        "published": plain,
    }
    loss_distance, gradient_distance = ear_distances(model, material, params)
    edits, seconds = alternately(runs, repeats)
    changes = [torch.cat([edit.delta(name).flatten() for name in edit.weights]) for edit in edits.values()]
    faster = seconds["published"] / seconds["ours"]
    return EarRace(
        images, tokens, window, updates, loss_distance, gradient_distance, relative(*changes), seconds, faster
    )


# -- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if the contestants did the same, up to what rounding decides; 1 if not, and times mean nothing."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies speed_llamagen", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=["sampling", "ear"])
    parser.add_argument("--model", default="llamagen", help="a LlamaGen model reference (default: its mini)")
    parser.add_argument("--batch", type=positive, nargs="+", default=[64, 16], help="sampling: images drawn together")
    parser.add_argument("--images", type=positive, default=4, help="ear: images to train on")
    parser.add_argument("--window", type=positive, default=48, help="ear: tokens per update")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of sentences")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = load_model(options.model)
    if not isinstance(model, LlamaGen):
        parser.error(f"{options.model} is no LlamaGen model")
    if options.what == "ear":
        return _shown_ear(ear_race(model, options.images, options.window, options.repeats), options.json)
    return _shown([race(model, batch, options.repeats) for batch in options.batch], options.json)


def _shown(races: Sequence[Race], as_json: bool) -> int:
    if as_json:
        print(json.dumps([asdict(r) for r in races], indent=1))
    for r in () if as_json else races:
        print(f"{r.batch} images, {r.tokens} tokens: {r.per_second['ours']:.0f} tokens/s on one core")
        for name, times in r.times_faster_than.items():
            same = f"{r.identical[name]} of {r.tokens} tokens identical"
            print(f"  {times:.2f} x the {name} loop ({r.per_second[name]:.0f} tokens/s, {same})")
            if r.parted[name]:
                far = f"deciding draws at most {max(r.parted[name]):.1e} from a border"
                print(f"    {len(r.parted[name])} of {r.batch} images parted, {far}")
    return 0 if all(d <= ROUNDING for r in races for found in r.parted.values() for d in found) else 1


def _shown_ear(r: EarRace, as_json: bool) -> int:
    if as_json:
        print(json.dumps([asdict(r)], indent=1))
    else:
        print(f"EAR, {r.images} images of {r.tokens} tokens, windows of {r.window}: {r.updates} updates each")
        far = f"losses {r.loss_distance:.1e}, gradients {r.gradient_distance:.1e}, updates {r.update_distance:.1e}"
        print(f"  relative distances: {far}")
        times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in r.seconds.items())
        print(f"  {r.times_faster:.1f} x as fast as the published loop structure ({times}, on one core)")
    return 0 if max(r.loss_distance, r.gradient_distance, r.update_distance) <= SAME else 1
