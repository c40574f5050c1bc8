"""Infinity's speed claims, measured against a plain loop (`python -m safear_edit.studies speed_infinity`).

As `speed_llamagen.py`: both in one process on one thread with the same weights, captions and random numbers, bits
compared before any time is reported, speeds as ratios of medians. The plain loop does what the published code does
(https://github.com/FoundationVision/Infinity/tree/4c27bbb): every scale projects every image's caption anew, in all
blocks, for the guided and the unguided row; the cache grows by concatenation; both rows run through all scales, whether
a scale is guided or not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.families.base import Condition, Sampling
from safear_edit.families.infinity import Infinity, bit_chances, inverse_cdf_bits, per_scale, rope_table
from safear_edit.families.load import load_model
from safear_edit.families.sampling import guided, uniforms
from safear_edit.families.tokenizers.bsq import CodeSum, cell_bits
from safear_edit.studies.arguments import positive
from safear_edit.studies.contest import SAME_SHARE, alternately, prompts
from safear_edit.studies.roofline import Alone, alone


@torch.no_grad()
def plain_sample(model: Infinity, condition: Condition, seeds: Sequence[int], sampling: Sampling) -> Tensor:
    """Bits (B, N, D) by the plain loop, with the random numbers that `generate` takes for these seeds."""
    net, schedule, images = model.net, model.schedule, len(condition)
    guidance, temperature = per_scale(sampling, len(schedule.grids))
    features, mask = condition.features[condition.index], condition.mask[condition.index]
    features, mask = torch.cat([features, net.unconditional(mask)]), mask.repeat(2, 1)
    draws = uniforms(seeds, schedule.total * net.config.bits).view(images, -1, net.config.bits)
    choose = inverse_cdf_bits(draws.to(features.device))
    codes, chosen = CodeSum(schedule, images, cell_bits(net.config.bits, schedule), features.device), []
    cache: list[tuple[Tensor, Tensor] | None] = [None] * len(net.layers)
    for scale, (start, end) in enumerate(schedule.spans):
        text = net.text_pass(features, mask)
        x = net.first_token(text) if scale == 0 else net.embed(codes.inputs(scale), scale).repeat(2, 1, 1)
        rope = rope_table(schedule, net.config.head_dim)[start:end].to(x.device)
        for layer, block in enumerate(net.layers):

            def attend(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                if (before := cache[layer]) is not None:
                    k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
                cache[layer] = (k, v)
                return F.scaled_dot_product_attention(q, k, v, scale=1.0)

            x = block(x, text, layer, rope, attend)
        logits = net.bit_logits(x, text) / temperature[scale]
        c, u = logits[:images], logits[images:]
        bits = choose(bit_chances(guided(c, u, guidance[scale]) if guidance[scale] > 1 else c, sampling), start)
        chosen.append(bits)
        codes.add_tokens(scale, bits)
    return torch.cat(chosen, 1)


@dataclass(frozen=True)
class Race:
    """One batch size and sampling: bits that agree with the plain loop's, median seconds, images per second."""

    batch: int
    guidances: tuple[float, ...]
    bits: int
    identical: int
    seconds: dict[str, float]
    images_per_second: float
    times_faster: float
    alone: Alone


def race(model: Infinity, batch: int, repeats: int, sampling: Sampling) -> Race:
    """Time `generate` and the plain loop alternately on `batch` images, after one round that compares the bits."""
    condition, seeds = model.condition(prompts(batch)), range(batch)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: model.generate(condition, seeds, sampling),
        "plain": lambda: plain_sample(model, condition, seeds, sampling),
    }
    ours, plain = (run() for run in runs.values())
    _, seconds = alternately(runs, repeats)
    guidance, _ = per_scale(sampling, len(model.schedule.grids))
    same = int((ours == plain).sum())
    each, ratio = batch / seconds["ours"], seconds["plain"] / seconds["ours"]
    return Race(batch, guidance, ours.numel(), same, seconds, each, ratio, alone(runs["ours"], repeats))


def main(arguments: Sequence[str] | None = None) -> int:
    """Race on the model's own sampling and print a line for each batch size; 1 if the bits differ, and times mean
    nothing."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies speed_infinity", description=__doc__)
    parser.add_argument("--model", default="infinity")
    parser.add_argument("--batch", type=positive, nargs="+", default=[64, 16])
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = load_model(options.model)
    if not isinstance(model, Infinity):
        parser.error(f"--model must be of the Infinity family, not {model.name}")
    same = True
    for batch in options.batch:
        found = race(model, batch, options.repeats, model.sampling)
        same &= found.identical >= SAME_SHARE * found.bits
        if options.json:
            print(json.dumps(asdict(found)))
            continue
        print(
            f"{batch} images, guidance {found.guidances}: {found.images_per_second:.1f} images/s on one core, "
            f"{found.times_faster:.2f} x the plain loop ({found.identical} of {found.bits} bits identical)"
        )
    return 0 if same else 1
