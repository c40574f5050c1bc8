"""Speed claims, measured: `python -m safear_edit.benchmark sampling` races LlamaGen.generate against plain loops.

All contestants run alternately in one process on one thread, with the same weights, captions and random numbers. Their
tokens are compared before any time is reported, and speeds are ratios of medians. Two correct float32 paths differ by
some 5e-5 in a guided logit, so a draw that falls that close to the border of two tokens may go either way, and the rest
of that picture with it; such pictures are counted, with the distance of the deciding draw, and a larger distance fails.
The plain loops are written from parity.md section 1 and share nothing with the fast path but the network's modules:

    published   what the published code does: every caption position, pads included, in a cache padded to a multiple of
                8 and attended in full under a boolean mask, keys and values copied at each step, unfused attention
    uncopied    the same, but with neither the copies nor the unfused attention
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.families.base import Condition, Sampling
from safear_edit.families.llamagen import GPT, LlamaGen, rotate
from safear_edit.registry import load_model
from safear_edit.sampling import guided, inverse_cdf, probabilities, uniforms

SUBJECTS = ("a house", "a cat", "a dog by a tree", "a church on a hill", "two fish", "a red horse in the snow")
STYLES = ("Picasso", "Claude Monet", "Andy Warhol", "Vincent van Gogh", "Seurat")

ROUNDING = 2e-4
"""Largest distance of a draw from a border that rounding may explain: the tolerance of guided logits, parity.md 5."""


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
    """Of each picture that parted: how far the deciding draw was from the border of the two tokens."""
    seconds: dict[str, float]
    per_second: dict[str, float]
    times_faster_than: dict[str, float]


@torch.no_grad()
def distances(
    model: LlamaGen, condition: Condition, seeds: Sequence[int], sampling: Sampling, ours: Tensor, other: Tensor
) -> list[float]:
    """For each picture whose tokens differ: |draw - border| at its first difference, in cumulative probability.

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
    prompts = [f"{SUBJECTS[i % len(SUBJECTS)]} in the style of {STYLES[i % len(STYLES)]}" for i in range(batch)]
    condition, seeds = model.condition(prompts), range(batch)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: model.generate(condition, seeds, used),
        "published": lambda: plain_sample(model, condition, seeds, used),
        "uncopied": lambda: plain_sample(model, condition, seeds, used, lean=True),
    }
    ids = {name: run() for name, run in runs.items()}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            spent[name].append(time.process_time() - start)
    seconds = {name: statistics.median(times) for name, times in spent.items()}
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if every contestant drew the same tokens but for draws that rounding decides, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=["sampling"])
    parser.add_argument("--model", default="llamagen", help="a LlamaGen model reference (default: its mini)")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 16], help="images drawn together")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of sentences")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = load_model(options.model)
    if not isinstance(model, LlamaGen):
        parser.error(f"{options.model} is no LlamaGen model")
    races = [race(model, batch, options.repeats) for batch in options.batch]
    if options.json:
        print(json.dumps([asdict(r) for r in races], indent=1))
    else:
        for r in races:
            print(f"{r.batch} images, {r.tokens} tokens: {r.per_second['ours']:.0f} tokens/s on one core")
            for name, times in r.times_faster_than.items():
                same = f"{r.identical[name]} of {r.tokens} tokens identical"
                print(f"  {times:.2f} x the {name} loop ({r.per_second[name]:.0f} tokens/s, {same})")
                if r.parted[name]:
                    far = f"deciding draws at most {max(r.parted[name]):.1e} from a border"
                    print(f"    {len(r.parted[name])} of {r.batch} pictures parted, {far}")
    return 0 if all(d <= ROUNDING for r in races for found in r.parted.values() for d in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
