"""All speed claims in one table: `python -m safear_edit.studies benchmark`.

Every line is a race in this process, on one thread unless it says so: the same weights, captions and random numbers,
ours against the plain way by turns. What both did is compared before any time is taken; a line whose contestants did
not do the same ends the command with 1, and its times mean nothing. Seconds are CPU seconds, so that other work on the
machine counts little. For drawing with Infinity and Janus and for training a bound stands beside them (roofline.py):
how many times as fast as the plain way ours would be if it did nothing but its matrix products.

    drawing    each mini against the published loop (LlamaGen, Infinity) or transformers' `generate` (Janus)
    hands      as many batches as the machine has cores, each drawn by a thread of its own (processes.py), against one
               after the other by threads that share every product; seconds of the clock, on all cores
    training   a step of each method that learns from pairs against its plain form (speed_training.py), and EAR against
               its published loop structure
    growth     how the cost of drawing and training grows with what there is more of: the slope of log seconds over log
               amount, 1 where twice as much takes twice as long
    half       a layer in bfloat16 on a CPU that lacks it (families/layers/half.py) against torch's own product,
               in a process that keeps no large blocks, as one that loads a large model
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.families.base import Condition, ModelFamily, Sampling
from safear_edit.families.infinity import Infinity
from safear_edit.families.janus import Janus
from safear_edit.families.layers.half import attention, emulated, linear
from safear_edit.families.llamagen import GPT, GPTConfig, LlamaGen
from safear_edit.families.load import load_model
from safear_edit.files.memory import keep_no_large_blocks
from safear_edit.processes import side_by_side
from safear_edit.studies import speed_infinity, speed_janus, speed_llamagen, speed_training
from safear_edit.studies.arguments import command, positive
from safear_edit.studies.contest import SAME_SHARE, alternately, material_of, prompts, relative
from safear_edit.studies.roofline import Alone
from safear_edit.studies.rows import Row, made, write_rows

MINIS = ("llamagen", "infinity", "janus")
SAME_GRADIENT = 1e-4
"""Largest relative distance of gradients in float64; logits are float32 all the same, and that is left."""
HALF_ROUNDING = 2**-8
"""Largest relative distance of results that bfloat16 holds."""
COMMAND = "python -m safear_edit.studies benchmark"


@dataclass(frozen=True)
class Line:
    """One race: what was compared, whether both did the same, and what each took."""

    what: str
    same: bool
    compared: str
    ours: str = ""
    plain: str = ""
    times: float | None = None
    memory: str = ""
    alone: Alone | None = None

    def row(self) -> Row:
        """The columns of the table; what has no value is null."""
        shown = {"both did the same": self.compared, "ours": self.ours, "plain": self.plain}
        faster = None if self.times is None else round(self.times, 2)
        more: Row = {"times as fast": faster, "memory beside the model": self.memory or None}
        if self.alone is not None and self.times is not None:
            bound = self.times * self.alone.share_of
            more |= {"our arithmetic alone": str(self.alone), "times as fast if all else were free": round(bound, 2)}
        return {"what": self.what, **shown, **more}


# -- drawing ----------------------------------------------------------------------------------------------------------


def drawing(model: object, batch: int, repeats: int) -> list[Line]:
    """One mini against the way that others draw with it."""
    match model:
        case LlamaGen():
            return _llamagen(model, batch, repeats)
        case Infinity():
            found = speed_infinity.race(model, batch, repeats, model.sampling)
            what, same = f"drawing, infinity:mini, {batch} at a time", found.identical / found.bits
            told = f"{found.identical} of {found.bits} bits"
            seconds = f"{found.seconds['ours']:.2f} s", f"{found.seconds['plain']:.2f} s, published loop"
            return [Line(what, same >= SAME_SHARE, told, *seconds, found.times_faster, alone=found.alone)]
        case Janus():
            other = speed_janus.race(model, batch, repeats)
            what, same = f"drawing, janus:mini, {batch} at a time, greedy", other.identical / other.tokens
            told = f"{other.identical} of {other.tokens} tokens"
            seconds = f"{other.seconds['ours']:.2f} s", f"{other.seconds['transformers']:.2f} s, transformers"
            return [Line(what, same >= SAME_SHARE, told, *seconds, other.times_faster, alone=other.alone)]
        case _:
            return []


def _llamagen(model: LlamaGen, batch: int, repeats: int) -> list[Line]:
    found = speed_llamagen.race(model, batch, repeats)
    lines = []
    for name, times in found.times_faster_than.items():
        told = f"{found.identical[name]} of {found.tokens} tokens"
        same = all(distance <= speed_llamagen.ROUNDING for distance in found.parted[name])
        seconds = f"{found.seconds['ours']:.2f} s", f"{found.seconds[name]:.2f} s, {name} loop"
        lines.append(Line(f"drawing, llamagen:mini, {batch} at a time", same, told, *seconds, times))
    return lines


def hands(model: ModelFamily, batch: int, repeats: int) -> list[Line]:
    """The same batches side by side and one after the other, by as many threads."""
    cores = os.cpu_count() or 1
    conditions = [model.condition([f"{text}, number {i}" for text in prompts(batch)]) for i in range(cores)]

    def draw(condition: Condition) -> Tensor:
        return model.generate(condition, range(batch))

    runs: dict[str, Callable[[], list[Tensor]]] = {
        "ours": partial(side_by_side, conditions, draw, cores),
        "plain": lambda: [draw(condition) for condition in conditions],
    }
    torch.set_num_threads(cores)
    try:
        found, seconds = alternately(runs, repeats, time.perf_counter)
    finally:
        torch.set_num_threads(1)
    ours, plain = (torch.cat(found[name]) for name in ("ours", "plain"))
    same, told = int((ours == plain).sum()), f"{batch} at a time, {cores} batches by {cores} threads"
    shown = f"{seconds['ours']:.2f} s", f"{seconds['plain']:.2f} s, threads that share products"
    times = seconds["plain"] / seconds["ours"]
    what = f"drawing, {model.name}:mini, {told}"
    return [Line(what, same >= SAME_SHARE * ours.numel(), f"{same} of {ours.numel()} numbers", *shown, times)]


# -- training ---------------------------------------------------------------------------------------------------------


def training(model: LlamaGen | Infinity | Janus, names: Sequence[str], repeats: int) -> Iterator[Line]:
    """A step of each method on one mini; of EAR, whose published loop is another one, the whole training."""
    material = speed_training.material_for(model)
    for name in names:
        found = speed_training.race(model, name, material, repeats)
        worst = max(found.loss_distance, found.gradient_distance)
        told = f"loss {found.loss_distance:.0e}, gradient {found.gradient_distance:.0e} apart"
        seconds = f"{found.seconds['ours']:.3f} s", f"{found.seconds['plain']:.3f} s"
        memory = f"{found.mib['ours']:.0f} against {found.mib['plain']:.0f} MiB"
        what = f"a step of {name}, {model.name}:mini"
        yield Line(what, worst <= SAME_GRADIENT, told, *seconds, found.times_faster, memory, found.alone)
    if isinstance(model, LlamaGen) and "ear" in names:
        ear = speed_llamagen.ear_race(model, 2, 48, max(1, repeats // 3))
        worst = max(ear.loss_distance, ear.gradient_distance, ear.update_distance)
        told = f"losses, gradients and updates {worst:.0e} apart"
        seconds = f"{ear.seconds['ours']:.2f} s", f"{ear.seconds['published']:.2f} s, published loop"
        yield Line("training by EAR, 2 images", worst <= speed_llamagen.SAME, told, *seconds, ear.times_faster)


# -- half precision ---------------------------------------------------------------------------------------------------


def half(repeats: int) -> Iterator[Line]:
    """One layer of a 1B model, forward, for a few rows and for many, and attention's gradient; nothing on a CPU that
    computes in bfloat16."""
    if not emulated(torch.bfloat16):
        return
    keep_no_large_blocks()
    weight = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)).bfloat16()
    for count in (4, 16, 64, 256, 1024):
        x = torch.randn(count, 2048, generator=torch.Generator().manual_seed(1)).bfloat16()
        runs = {"ours": partial(linear, x, weight), "plain": partial(F.linear, x, weight)}
        far = relative(runs["plain"]().float(), runs["ours"]().float())
        _, seconds = alternately(runs, 3 * repeats)
        shown = {name: f"{1000 * one:.1f} ms" for name, one in seconds.items()}
        what, told = f"a layer 2048 x 2048 in bfloat16, {count} rows", f"{far:.0e} apart"
        times = seconds["plain"] / seconds["ours"]
        yield Line(what, far <= HALF_ROUNDING, told, shown["ours"], f"{shown['plain']}, torch", times)
    for length in (64, 256, 576):
        yield _attention_gradient(length, repeats)


def _attention_gradient(length: int, repeats: int) -> Line:
    """Value and gradient of causal attention over one image of so many tokens."""
    numbers = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, 16, length, 128, generator=numbers).bfloat16().requires_grad_() for _ in range(3)]
    seen = torch.ones(length, length, dtype=torch.bool).tril()

    def gradients(attend: Callable[..., Tensor], given: Sequence[Tensor] = parts) -> Tensor:
        return torch.cat(torch.autograd.grad(attend(*given, seen).sum(), given)).float()

    exact = gradients(F.scaled_dot_product_attention, [part.detach().float().requires_grad_() for part in parts])
    torchs = partial(gradients, F.scaled_dot_product_attention)
    runs: dict[str, Callable[[], Tensor]] = {"ours": partial(gradients, attention), "plain": torchs}
    far, further = (relative(exact, runs[name]()) for name in ("ours", "plain"))
    _, seconds = alternately(runs, repeats)
    what = f"attention in bfloat16 and its gradient, 16 heads of 128, {length} tokens"
    shown = {name: f"{1000 * one:.0f} ms" for name, one in seconds.items()}
    told, times = f"{far:.0e} from float32's gradient, torch {further:.0e}", seconds["plain"] / seconds["ours"]
    return Line(what, far <= HALF_ROUNDING, told, shown["ours"], f"{shown['plain']}, torch", times)


# -- growth -----------------------------------------------------------------------------------------------------------


def growth(repeats: int) -> Iterator[Line]:
    """Random LlamaGen transformers and the mini, each with more and more of one thing."""
    mini = cast("LlamaGen", load_model("llamagen"))

    def draw(count: int) -> Callable[[], object]:
        return lambda: [mini.generate(mini.condition(prompts(64)), range(64)) for _ in range(count // 64)]

    def tokens(count: int) -> Callable[[], object]:
        return _drawing(GPTConfig(256, 4, 4, 1024, block_size=count, caption_dim=64, cls_token_num=16))

    def width(dim: int) -> Callable[[], object]:
        return _drawing(GPTConfig(dim, 4, 4, 1024, block_size=64, caption_dim=64, cls_token_num=16))

    def train(concepts: int) -> Callable[[], object]:
        material = material_of(mini, 8)

        def each() -> None:
            for _ in range(concepts):
                method, params = _vce(2)
                method.fit(mini, material, params, seed=0, progress=_unheard)

        return each

    for what, amounts, make in (
        ("drawing as prompts grow, 64 to 256", (64, 128, 256), draw),
        ("drawing as tokens of an image grow, 64 to 576", (64, 256, 576), tokens),
        ("drawing as the width grows, 128 to 512 (parameters with its square)", (128, 256, 512), width),
        ("VCE as concepts grow, 1 to 4, one edit each", (1, 2, 4), train),
    ):
        seconds = [_median(make(amount), repeats) for amount in amounts]
        shown = ", ".join(f"{s:.2f}" for s in seconds)
        told = f"slope {slope(amounts, seconds):.2f}"
        yield Line(what, True, "", f"{shown} s: {told}")


def slope(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """Of log seconds over log amount, least squares."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (amounts, seconds))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def _median(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def _drawing(config: GPTConfig) -> Callable[[], object]:
    """16 images by a random transformer, without its tokenizer and text encoder."""
    from safear_edit.families.llamagen import sample_ids
    from safear_edit.families.sampling import inverse_cdf, uniforms

    torch.manual_seed(0)
    net = GPT(config)
    with torch.no_grad():
        features = torch.randn(16, 8, config.caption_dim)
        mask = torch.ones(16, 8, dtype=torch.bool)
        text, without = net.text_pass(features, mask), net.text_pass(net.unconditional(mask), mask)
    draws = uniforms(range(16), config.block_size)
    return lambda: sample_ids(net, text, without, Sampling(4.0), inverse_cdf(draws))


def _vce(steps: int) -> tuple[Any, Any]:
    from safear_edit.methods.vce import VCE

    return VCE(), VCE.Params.model_validate({"steps": steps, "keep_weight": 0})


def _unheard(stage: str, done: int, total: int, info: str = "") -> None:
    """Nobody looks."""


# -- the command ------------------------------------------------------------------------------------------------------


PARTS = ("drawing", "hands", "training", "growth", "half")


def lines(
    models: Sequence[str],
    batches: Sequence[int],
    repeats: int,
    parts: Collection[str] = PARTS,
    methods: Collection[str] | None = None,
) -> Iterator[Line]:
    """Every race of these parts, one after the other; `methods`: those whose steps are raced, None for all that fit."""
    for name in models:
        model = load_model(name)
        for batch in batches if "drawing" in parts else ():
            yield from drawing(model, batch, repeats)
        for batch in batches if "hands" in parts else ():
            yield from hands(model, batch, repeats)
        if "training" in parts and isinstance(model, LlamaGen | Infinity | Janus):
            fitting = speed_training.methods_for(model)
            yield from training(model, [name for name in fitting if methods is None or name in methods], repeats)
    if "llamagen" in models and "growth" in parts:
        yield from growth(repeats)
    if "half" in parts:  # the last, for it changes what the process keeps of the system's memory
        yield from half(repeats)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and with --out write its rows; 1 if contestants of any line did not do the same."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", default=MINIS, choices=MINIS)
    parser.add_argument("--batch", type=positive, nargs="+", default=[64, 16], help="images drawn together")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--methods", nargs="+", help="whose training steps, default: every method that fits a model")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--out", type=Path, help="the rows, one JSON object a line, for examples/results")
    parser.add_argument("--commit", help="in which the rows are recorded")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    origin = made(command(parser, chosen, ("models", "batch", "parts", "methods", "repeats")), chosen.commit)
    rows: list[Row] = [HEAD]
    right = True
    for line in lines(chosen.models, chosen.batch, chosen.repeats, chosen.parts, chosen.methods):
        right &= line.same
        rows.append(line.row() | origin)
        print(json.dumps(line.row(), ensure_ascii=False), file=sys.stderr, flush=True)
        if chosen.out:
            write_rows(chosen.out, rows)
    print(_table(rows[1:]))
    return 0 if right else 1


MADE = ("command", "commit", "date")
HEAD: Row = {
    "title": "Speed against the plain way",
    "note": "One process, one thread, the same weights, captions and random numbers by turns; CPU seconds, medians. "
    "What both did is compared first. Memory: what waits for the backward pass, and the second model or what is kept "
    "of the first one's answers.",
}


def _table(rows: Sequence[Row]) -> str:
    """The rows as text, columns aligned."""
    columns = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in MADE]
    cells = [columns, *(["" if (cell := row.get(name)) is None else str(cell) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
