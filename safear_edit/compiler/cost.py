"""Minutes and memory that a recipe will take, predicted before anything runs.

`predict` needs the counts alone, for two CPU cores and float32; a recipe records it, so its numbers stay. `forecast`
looks at a loaded model and the device it is on, stage by stage: a small model is timed itself, a large one follows from
the device's speed. `within` has a method save memory until its search fits into a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd, prod
from time import perf_counter
from typing import TYPE_CHECKING

from pydantic import BaseModel

from safear_edit.compiler.recipe import Card, Predicted
from safear_edit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from safear_edit.families.base import ModelFamily

# -- prediction -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What a run costs on two CPU cores in float32; a GPU is faster by far.

    Speeds: stage times of two runs of concepts/picasso.yaml on llamagen:mini (two shared cores of an AMD EPYC, 21
    November 2026: 33 images/s and 0.75 s/step in 3.9 minutes) scaled to the one that had the machine to itself (2.95
    minutes). `python -m safear_edit.studies machine_speed` measures them and the memory on the machine at hand.
    """

    startup_s: float = 20.0
    """Imports, loading, captions, report, signature."""
    sample_flops: float = 70e9
    """Flop/s of `image_flops` while an image is drawn, decoded and judged: 45 images/s."""
    train_flops: float = 135e9
    """Flop/s of `Work.training_flops`: 0.56 s for a VCE step of 16 rows of pairs and 12 preserved ones."""
    fixed_gib: float = 1.2
    """Python, torch, MiniLM and judge (0.99 GiB measured), and the libraries of report and signature."""
    saved_floats_per_width: float = 34.0
    """Floats kept for the backward pass per token, layer and unit of width."""


@dataclass(frozen=True)
class Work:
    """What a method declares that its search costs, in counts; a row is one image under one caption.

    steps: optimiser steps in all. rows: those that a step runs forward and backward, in whole images (a few scales of
    one are a part of it). taught: those that the base model runs forward at every step. widths: trained parameters of
    a layer, in units of the model's width. drawn: images that the search draws itself. read: rows of each pair that
    the base model reads once.
    """

    steps: int
    rows: float
    taught: float = 0
    widths: float = 0
    drawn: int = 0
    read: float = 4

    def training_flops(self, card: Card) -> float:
        """All steps: a row that trains costs three forwards, and one by the base model a fourth."""
        return self.steps * (3 * self.rows + self.taught) * forward_flops(card)


def declared(method: object, params: BaseModel, card: Card, pairs: int) -> Work:
    """What `method` says; one that says nothing counts as one pass over the pairs."""
    work = getattr(method, "work", None)
    found: Work = work(params, card, pairs) if work else Work(pairs, 2)
    return found


def forward_flops(card: Card) -> float:
    """One row through the model: 2 flop per parameter and position (the codes of one place share theirs)."""
    return 2.0 * card.parameters * card.tokens / getattr(card, "depth", 1)


def image_flops(card: Card) -> float:
    """One image with guidance: two rows through the model, as often as drawing takes."""
    return 2 * forward_flops(card) * getattr(card, "passes", 1)  # cards of third parties may not say


def predict(
    card: Card,
    work: Work,
    *,
    pairs: int,
    keep: int,
    candidates: int,
    n: Mapping[str, int],
    described: int = 0,
    costs: Costs | None = None,
) -> Predicted:
    """Minutes, peak memory and trainable parameters from counts alone.

    `work`: what the method declares; `candidates`: prompts that the base model is screened on; `described`: images
    that it describes, each read with a few words about it, which is taken for one row as long as the image. Drawn are
    both images of each pair, those to keep, the candidates, what the search draws, and what is scored twice; the base
    model also reads the pairs, with their captions and without. Depth and width follow from the parameters by
    parameters = 12 · depth · width² with width = 40 · depth (LlamaGen's own proportions, within a tenth). Tested to
    be within a factor of 2 of the runs that `Costs` names.
    """
    costs = costs or Costs()
    images = 2 * pairs + keep + candidates + work.drawn + 2 * sum(n.values())
    sampling_s = (images * image_flops(card) + described * forward_flops(card)) / costs.sample_flops
    training_s = (work.training_flops(card) + 4 * pairs * forward_flops(card)) / costs.train_flops
    depth = (card.parameters / (12 * 40**2)) ** (1 / 3)
    width = 40 * depth
    saved = work.rows * card.tokens * depth * width * costs.saved_floats_per_width
    memory = costs.fixed_gib + 4 * (2 * card.parameters + saved) / 2**30
    return Predicted(
        minutes=round((costs.startup_s + sampling_s + training_s) / 60, 1),
        memory_gib=round(memory, 1),
        trainable=round(work.widths * depth * width),
    )


LORA_WIDTHS = {"attention": 6, "ffn": 11, "all": 17}
"""Inputs + outputs of one layer's adapted matrices, in widths: qkv 1+3, out 1+1; ffn 3 × (1 + 8/3)."""


# -- memory of a loaded model ------------------------------------------------------------------------------------------

LARGE = 2**28
"""Bytes of weights from which on a model's memory is looked at unasked: minis have less, and their recipes must not
depend on what happens to be free."""
FIXED_BYTES = round(0.9 * 2**30)
"""Python, torch and this package's libraries on a CPU; on a GPU nothing of it counts."""
READ = 32
"""Images that are read together at most (REFERENCE_ROWS of methods/workbench.py, BATCH of evaluate/cartography.py)."""
TEXT_TOKENS = 32
"""Tokens of a caption, or of the prompt around an image, that a row has beside the image's."""
LOGIT_COPIES = 4
"""Logits, their softmax, and the gradients of both, in float32."""


def stage_bytes(model: ModelFamily, params: BaseModel, work: Work, trainable: int) -> dict[str, int]:
    """The most memory that each stage of a run holds: encoding captions, drawing with the edit merged, reading
    images for their likelihoods with it, training.

    An edit that is merged keeps the originals of what it changes, at most all of the weights. What the base model said
    of the pairs is kept up to the workbench's own bound, which is small beside these.
    """
    on_cpu = model.device.type == "cpu"
    weights = model.weight_bytes + FIXED_BYTES * on_cpu
    return {
        "captions": weights + model.text_bytes,
        "drawing": _drawing_stage(model, model.rows_per_batch),
        "reading": _drawing_stage(model, 0) + model.read_bytes(model.read_together(READ)),
        "training": weights + 16 * trainable + training_bytes(model, params, work),
    }


def drawing_bytes(model: ModelFamily, images: int) -> int:
    """Keys and values of images that are drawn together under guidance, or what their decoding takes."""
    decoding = round(model.decode_bytes * min(1.0, images / model.images_per_batch))
    return max(2 * min(images, model.rows_per_batch) * model.row_bytes, decoding)


def draw_within(model: ModelFamily, budget: int) -> None:
    """Have the model draw so few images together that it takes at most `budget` bytes beside an edit's originals.

    UsageError where one image is too many.
    """
    most = model.together
    sizes = [most >> power for power in range(most.bit_length())]
    needed = {count: _drawing_stage(model, count) for count in sizes}
    fits = [count for count in sizes if needed[count] <= budget]
    if not fits:
        least, fix = needed[1] / 2**30, "take --dtype bfloat16, or a larger device"
        raise UsageError("--memory", f"at least {least:.2f} GiB", f"{budget / 2**30:.2f} GiB", fix)
    model.together = fits[0]


class Plain(BaseModel):
    """Numbers of a step with none that saves memory."""


def learn_within(model: ModelFamily, budget: int) -> None:
    """Have attacks compute gradients on so few images together that a step takes at most `budget` bytes, or on one."""
    held = model.weight_bytes + FIXED_BYTES * (model.device.type == "cpu")
    model.learnt_together = max(1, (budget - held) // training_bytes(model, Plain(), Work(1, 1)))


def _drawing_stage(model: ModelFamily, images: int) -> int:
    """All that is held while so many images are drawn together, with an edit merged."""
    on_cpu = model.device.type == "cpu"
    return model.weight_bytes + (FIXED_BYTES + model.weight_bytes) * on_cpu + drawing_bytes(model, images)


def training_bytes(model: ModelFamily, params: BaseModel, work: Work) -> int:
    """What a step keeps for its backward pass, and its logits; adapters and their moments aside."""
    each = model.kept_bytes[str(model.dtype).removeprefix("torch.")]
    (layers, width, places), *others = model.stacks
    kept = layers * each
    if getattr(params, "recompute", False):
        kept = layers * 2 * model.dtype.itemsize + each
    states = (places + TEXT_TOKENS) * width * kept + sum(prod(sizes) for sizes in others) * each
    logits = LOGIT_COPIES * 4 * prod(model.token_shape) * model.card.choices
    return round(_rows_together(params, work) * (states + logits))


def _rows_together(params: BaseModel, work: Work) -> float:
    """Rows of which a step holds at a time what the backward pass needs."""
    held, parts = _preserved(params), getattr(params, "keep_parts", 1)
    others = work.rows - held
    beside = parts == 1 or getattr(params, "adversarial", False)  # what attacks the pairs is held beside either
    rows = others + held / parts if beside else max(others, held / parts)
    return rows / getattr(params, "accumulate", 1)


def _preserved(params: BaseModel) -> int:
    """Preserved images of a step whose distance from the base model is trained on."""
    return int(getattr(params, "keep_batch", 0)) if getattr(params, "keep_weight", 0) else 0


def within(
    model: ModelFamily, params: BaseModel, work: Callable[[BaseModel], Work], trainable: int, budget: int
) -> BaseModel:
    """`params`, with layers run again, then with a batch in parts, then with its preserved images in more of them,
    until training fits into `budget` bytes.

    The first changes no number of the edit, the others round otherwise, and what is decided part by part may differ
    (fine_tune.py). UsageError where neither is enough, or the
    method has neither.
    """
    tried = [params.model_copy(update=changes) for changes in _savings(model, params)]
    needed = [stage_bytes(model, one, work(one), trainable)["training"] for one in tried]
    for one, size in zip(tried, needed, strict=True):
        if size <= budget:
            return one
    fix = "take --dtype bfloat16, a smaller batch or part, or a larger device"
    raise UsageError("--memory", f"at least {min(needed) / 2**30:.2f} GiB", f"{budget / 2**30:.2f} GiB", fix)


def _savings(model: ModelFamily, params: BaseModel) -> list[dict[str, object]]:
    """Changes of a method's numbers that save memory, none first and the dearest last."""
    if "recompute" not in type(params).model_fields:
        return [{}]
    before = getattr(params, "accumulate", 1)
    again = [{"recompute": True, "accumulate": before}] if model.passes() else []
    parts = [{"recompute": bool(again), "accumulate": before * count} for count in _divisors(params) if count > 1]
    last = (parts or again or [{"accumulate": before}])[-1]
    return [{}, *again, *parts, *({**last, "keep_parts": count} for count in _more_parts(model, params, last))]


def _more_parts(model: ModelFamily, params: BaseModel, last: Mapping[str, object]) -> list[int]:
    """Parts of a part's preserved images, from two to single ones; none where all of them share a draw of noise."""
    if "keep_parts" not in type(params).model_fields or "denoising" in model.provides:
        return []
    each = _preserved(params) // int(str(last["accumulate"]))
    return [count for count in range(2 * getattr(params, "keep_parts", 1), each + 1) if each % count == 0]


def _divisors(params: BaseModel) -> list[int]:
    """Parts that a batch can be cut into: what divides the pairs and the preserved images of a step."""
    batch, keep = getattr(params, "batch", 1), getattr(params, "keep_batch", 0)
    held = keep if getattr(params, "keep_weight", 0) or getattr(params, "understanding_weight", 0) else 0
    whole = gcd(batch, held) // getattr(params, "accumulate", 1)
    return [parts for parts in range(1, whole + 1) if whole % parts == 0]


# -- minutes on a device ----------------------------------------------------------------------------------------------

EFFICIENCY = {"drawing": 0.45, "training": 1.0}
"""Share of the device's speed in a large matrix product, or of its bandwidth, that the transformer reaches, on one CPU.
Fitted to two images and to VCE in the rehearsal of llamagen:xl-256 (examples/results); that of infinity:125m is the
check. Decoding images reaches all of it. No GPU was measured."""


@dataclass(frozen=True)
class Speed:
    """A device: flop/s of a matrix product in the frozen weights' dtype, bytes/s of reading memory, and flop/s in
    float32, in which image tokenizers compute (0: as the first)."""

    flops: float
    bandwidth: float
    float32: float = 0.0


def speed_of(model: ModelFamily, clock: Callable[[], float] = perf_counter, rows: int = 512) -> Speed:
    """Measured on the model's device in its dtype, in about a second: the best of three of each."""
    import torch

    from safear_edit.families.layers.half import linear

    size = 2048
    large = torch.ones(2**26, device=model.device)
    copy = torch.empty_like(large)

    def seconds(run: Callable[[], object]) -> float:
        found = []
        for _ in range(3):
            start = clock()
            run()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            found.append(clock() - start)
        return min(found)

    def product(kind: torch.dtype) -> float:
        a = torch.ones(rows, size, device=model.device, dtype=kind)
        b = torch.ones(size, size, device=model.device, dtype=kind)
        return 2.0 * rows * size * size / seconds(lambda: linear(a, b))

    bandwidth = 2 * large.nbytes / seconds(lambda: copy.copy_(large))
    return Speed(product(model.dtype), bandwidth, product(torch.float32))


def drawing_seconds(model: ModelFamily, images: int, speed: Speed) -> float:
    """Images under guidance: every step reads the layers, and computes two rows per image of the batch; then they are
    decoded."""
    batch = min(images, model.rows_per_batch)
    card = model.card
    steps = card.passes if card.passes > 1 else len(card.scales) if len(card.scales) > 1 else card.tokens
    reading = steps * model.layer_parameters * model.dtype.itemsize / speed.bandwidth
    computing = batch * _in_layers(model) * image_flops(card) / speed.flops
    decoding = images * model.decode_flops * card.image_size**2 / (speed.float32 or speed.flops)
    return images / batch * (reading + computing) / EFFICIENCY["drawing"] + decoding


def training_seconds(model: ModelFamily, work: Work, params: BaseModel, pairs: int, speed: Speed) -> float:
    """All steps of a search, for which the base model reads the pairs once, as the method needs them; layers that run
    again cost a forward pass more. Each pass reads the layers as well, and widens them where the device has no
    arithmetic for their dtype: of a large model with few tokens a step that is most of it."""
    again = work.steps * work.rows if getattr(params, "recompute", False) else 0.0
    again += work.steps * _preserved(params) * (getattr(params, "keep_parts", 1) > 1)
    flops = work.training_flops(model.card) + (work.read * pairs + again) * forward_flops(model.card)
    reading = _passes(model, work, params, pairs) * model.layer_parameters * _bytes_read(model) / speed.bandwidth
    return _in_layers(model) * flops / speed.flops / EFFICIENCY["training"] + reading


def _passes(model: ModelFamily, work: Work, params: BaseModel, pairs: int) -> float:
    """How often a search reads all layers: forward and back for the pairs of each part of a step and for what is
    preserved, forward for what the base model says of that, and once for each batch of pairs that it reads before."""
    preserved = bool(_preserved(params))
    parts, kept = getattr(params, "accumulate", 1), getattr(params, "keep_parts", 1) * preserved
    step = parts * ((2 + getattr(params, "recompute", False)) * (1 + kept) + kept * bool(work.taught))
    return work.steps * step + work.read * max(1.0, pairs / model.rows_per_batch)


def _bytes_read(model: ModelFamily) -> float:
    """Of a number of a layer, each time: as it is kept; to widen it takes as long as to write it and read it again."""
    from safear_edit.families.layers.half import emulated

    kept = model.dtype.itemsize
    return kept + 8 if model.device.type == "cpu" and emulated(model.dtype) else kept


@dataclass(frozen=True)
class Pace:
    """Seconds that a small model takes on its device and by one thread: to draw an image under guidance, and to run one
    row forward without gradients, each among PROBED.

    What a run makes of them is fitted to concepts/picasso.yaml by VCE on llamagen:mini, infinity:mini and janus:mini
    (two cores with nothing else to do, 30 November 2026: 5.7, 5.5 and 7.1 minutes, threads sharing every product), and
    what drawing gains by a batch for each thread to llamagen:mini on a slower machine (7.9 minutes).
    """

    image: float
    row: float


PROBED = 8
"""Images that a probe draws together. A run's batches are larger, so it draws faster, which DRAWN makes up for."""
DRAWN = 0.19
"""Seconds that a run takes to draw an image, for each that the probe takes to draw one."""
JUDGED_ROWS = 1.14
"""What decoding and judging an image take, in rows."""
TRAINED = 0.52
"""Seconds of a row of a training step, counted in forward passes, for each of the probe's."""
REST_ROWS = 4200
"""What imports, likelihoods of the reference images, report, pages and signature take, in rows."""
THREADS = 2
"""Threads for which these hold."""
SHARED = {"drawing": 0.95, "rows": 0.85}
"""Part of the work that threads share: a second one drew 1.9 times as fast as one alone, with a batch of its own (a
script that isn't kept), and reads rows 1.7 and 1.8 times as fast, on llamagen:mini and infinity:mini."""


def pace_of(model: ModelFamily, clock: Callable[[], float] = perf_counter) -> Pace:
    """Measured on the model, in less than a second for a mini on an idle core.

    By one thread: several wait for each other wherever something else has one of the cores, and a probe so short would
    measure that alone, by up to thirty times.
    """
    import torch

    def seconds(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
        start = clock()
        made = run().cpu()
        return (clock() - start) / PROBED, made

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        condition = model.condition([f"number {number}" for number in range(PROBED)])
        image, ids = seconds(lambda: model.generate(condition, range(PROBED)))
        if "denoising" in model.provides:  # an image is so many passes of two rows
            return Pace(image, image / (2 * model.card.passes))
        with torch.no_grad():
            return Pace(image, seconds(lambda: model.logits(condition, ids))[0])
    finally:
        torch.set_num_threads(threads)


def paced_seconds(work: Work, images: int, pairs: int, pace: Pace, threads: int = THREADS) -> float:
    """A whole run of a small model that draws `images` in all; a row that trains costs three forwards."""
    trained = work.steps * (3 * work.rows + work.taught) + work.read * pairs
    rows = images * JUDGED_ROWS + trained * TRAINED + REST_ROWS
    drawing = images * DRAWN * pace.image * _beside_two(threads, "drawing")
    return drawing + rows * pace.row * _beside_two(threads, "rows")


def _beside_two(threads: int, what: str) -> float:
    """Time by so many threads beside that by THREADS (Amdahl's law)."""
    alone = 1 - SHARED[what]
    return (alone + SHARED[what] / threads) / (alone + SHARED[what] / THREADS)


def _in_layers(model: ModelFamily) -> float:
    """Share of the model's parameters that a token meets: its image tokenizer, towers and tables are others."""
    return model.layer_parameters / model.card.parameters


@dataclass(frozen=True)
class Forecast:
    """What a run takes on the device that its model is on: minutes, and the peak of memory by stage in bytes."""

    minutes: float
    stages: Mapping[str, int]
    device: str

    def __str__(self) -> str:
        stage = max(self.stages, key=lambda name: self.stages[name])
        peak = self.stages[stage] / 2**30
        minutes = f"{self.minutes:.0f}" if self.minutes >= 10 else f"{self.minutes:.1f}"
        return f"{minutes} minutes and {peak:.1f} GiB ({stage}) on {self.device}, as fast as it is now"


def forecast(
    model: ModelFamily, params: BaseModel, work: Work, trainable: int, images: int, pairs: int, speed: Speed | Pace
) -> Forecast:
    """Of a run that draws `images` in all and learns from `pairs`, by what `probed` found."""
    if isinstance(speed, Pace):
        seconds = paced_seconds(work, images, pairs, speed, _threads(model))
    else:
        seconds = drawing_seconds(model, images, speed) + training_seconds(model, work, params, pairs, speed)
    where = f"{model.device}, {str(model.dtype).removeprefix('torch.')}"
    return Forecast(seconds / 60, stage_bytes(model, params, work, trainable), where)


def _threads(model: ModelFamily) -> int:
    """Threads that share a run's work; another device than the CPU has its own ways, which its pace tells."""
    import torch

    return torch.get_num_threads() if model.device.type == "cpu" else THREADS


def probed(model: ModelFamily) -> Speed | Pace:
    """How fast the device at hand is: for a small model its own pace, for a large one the speed of large products."""
    return pace_of(model) if model.weight_bytes < LARGE else speed_of(model)
