"""Published sizes on a GPU, with random weights: how fast they draw and train, and what memory that takes.

`python -m safear_edit.studies gpu` is one short script for a borrowed machine: nothing is downloaded or written but the
rows. Each model is made on the device, draws by `generate` and by the loop that its authors published (Janus: by
transformers' `generate`), and takes a few steps of VCE under the numbers of its recipe, in as many parts as the
device's memory asks for. From both follow the minutes of a whole `apply` of Picasso, without its judge, beside those
that `plan` foretells. What fails is a row that says so, and the rest goes on. `--tiny` takes picos instead, on any
device, which tests the script and measures nothing.

The roofline is the time in which a GPU that only read would have read what a step must: the linear layers of the
transformer, once for each token (each scale, for a next-scale model), at the speed at which this device copies. Keys,
values and heads are left out of it, so that no way of drawing can do better than 100 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from safear_edit import registry
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.cost import Speed, Work, declared, forecast, speed_of, within
from safear_edit.compiler.memory import free_bytes
from safear_edit.compiler.recipe import load_base_recipe
from safear_edit.construct.pairs import Keep
from safear_edit.families.base import Condition, ModelFamily
from safear_edit.families.infinity import Infinity, Transformer
from safear_edit.families.infinity import card_of as infinity_card
from safear_edit.families.janus import Janus, Settings, Source, Vocabulary, build, keep_table
from safear_edit.families.janus import card_of as janus_card
from safear_edit.families.llamagen import GPT, PUBLISHED, LlamaGen
from safear_edit.families.llamagen import card_of as llamagen_card
from safear_edit.families.tokenizers.bsq import BSQ
from safear_edit.families.tokenizers.schedules import Schedule
from safear_edit.families.tokenizers.vq import VQConfig, VQModel
from safear_edit.files.memory import give_back
from safear_edit.methods.vce import VCE
from safear_edit.pipeline.plan import images_drawn
from safear_edit.spec.spec import load_spec
from safear_edit.studies import speed_infinity, speed_llamagen
from safear_edit.studies.arguments import command, positive
from safear_edit.studies.contest import material_of, prompts
from safear_edit.studies.machine_speed import step_seconds
from safear_edit.studies.rehearse import INFINITY, janus_layout, peak_bytes, reset_peak
from safear_edit.studies.rows import Row, made, write_rows

if TYPE_CHECKING:
    from safear_edit.families.text import TextEncoder

COMMAND = "python -m safear_edit.studies gpu"
TOKENS = 24
"""Of a caption."""
FAILED = "failed"
"""The column of a row that holds no measurement."""


# -- models of published sizes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomText:
    """States of captions that no encoder made: the prompt's own random numbers, (B, TOKENS, width)."""

    width: int
    kind: str = "random"
    nbytes: int = 0

    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The same states for the same prompt."""
        seeds = [torch.Generator().manual_seed(sum(text.encode())) for text in prompts]
        states = torch.stack([torch.randn(TOKENS, self.width, generator=seed) for seed in seeds])
        return states, torch.ones(len(prompts), TOKENS, dtype=torch.bool)

    def pieces(self, prompt: str) -> list[str]:
        """None that mean anything."""
        return [""] * TOKENS

    def lengths(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """All are of one length."""
        return [(TOKENS, TOKENS)] * len(prompts)


def random_text(width: int) -> TextEncoder:
    """An encoder of which only drawing and training with captions is asked here."""
    return cast("TextEncoder", RandomText(width))


def random(net: Any) -> Any:
    """The network with normal matrices of deviation 0.02: with its own start it might say one token always."""
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    return net


def llamagen(device: torch.device, dtype: torch.dtype) -> LlamaGen:
    """LlamaGen XL, 256 px."""
    with torch.device(device):
        gpt, vq = random(GPT(PUBLISHED["xl-256"]).to(dtype)), VQModel(VQConfig())
    text = random_text(gpt.config.caption_dim)
    sampling = LlamaGen.pico().sampling
    return LlamaGen(gpt, vq, text, llamagen_card(gpt, vq, "xl-256", {}), sampling)


def infinity(device: torch.device, dtype: torch.dtype) -> Infinity:
    """Infinity 2B, 1024 px."""
    config, tokenizer, _ = INFINITY["2b"]
    with torch.device(device):
        net, bsq = random(Transformer(config).to(dtype)), BSQ(tokenizer)
    schedule = Schedule.published(1.0, "1M")
    card = infinity_card(net, bsq, schedule, "2b", {})
    return Infinity(net, bsq, schedule, random_text(config.caption_dim), card, Infinity.pico().sampling)


def janus(device: torch.device, dtype: torch.dtype) -> Janus:
    """Janus-Pro 1B, 384 px."""
    config, files = janus_layout("pro-1b")
    with torch.device(device):
        net = keep_table(random(build(config, dtype)))
    words = Vocabulary.read(files, "gpu")
    return Janus(net, words, Source("transformers", files), Settings(), janus_card(net, "pro-1b", "", {}))


FULL: Mapping[str, Callable[[torch.device, torch.dtype], ModelFamily]] = {
    "llamagen:xl-256": llamagen,
    "infinity:2b": infinity,
    "janus:pro-1b": janus,
}
TINY: Mapping[str, type[ModelFamily]] = {"llamagen:xl-256": LlamaGen, "infinity:2b": Infinity, "janus:pro-1b": Janus}


# -- drawing and training ---------------------------------------------------------------------------------------------


def published_loop(model: ModelFamily, condition: Condition, texts: Sequence[str]) -> Tensor:
    """The same images by the authors' loop."""
    match model:
        case LlamaGen():
            return speed_llamagen.plain_sample(model, condition, range(len(texts)), model.sampling)
        case Infinity():
            return speed_infinity.plain_sample(model, condition, range(len(texts)), model.sampling)
        case Janus():
            ids, mask = model.prompt_ids(texts)
            told = {"generation_mode": "image", "guidance_scale": max(2.0, model.sampling.guidance)}
            drawn: Tensor = model.net.generate(inputs=ids, attention_mask=mask.long(), do_sample=True, **told)
            return drawn
        case _:
            raise ValueError(model.name)


def wall(run: Callable[[], object], repeats: int) -> float:
    """Median seconds, the device waited for, after one run that pays for what happens once."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def roofline_seconds(model: ModelFamily, images: int, speed: Speed) -> float:
    """What reading alone takes for so many images (see the top of this file)."""
    layers = (model.net.get_submodule(name).get_parameter("weight").nbytes for name in model.editable("all"))
    steps = len(model.card.scales) if len(model.card.scales) > 1 else model.card.tokens
    return -(-images // model.rows_per_batch) * steps * sum(layers) / speed.bandwidth


@torch.no_grad()
def drawing(model: ModelFamily, images: int, speed: Speed, repeats: int) -> Row:
    """One batch size: images and tokens a second, against the published loop and the roofline, and the peak."""
    texts = prompts(images)
    condition = model.condition(texts)
    reset_peak()
    seconds = wall(partial(model.generate, condition, range(images)), repeats)
    decoding = wall(partial(model.decode, model.generate(condition, range(images))), 1)
    size = peak_bytes()
    plain = wall(partial(published_loop, model, condition, texts), 1)
    return {
        "what": f"drawing, {images} at a time",
        "images/s": round(images / seconds, 3),
        "tokens/s": round(images * model.card.tokens / seconds),
        "times the published loop": round(plain / seconds, 2),
        "share of the roofline": round(roofline_seconds(model, images, speed) / seconds, 3),
        "seconds to decode one": round(decoding / images, 4),
        "GiB": round(size / 2**30, 2),
    }


def training(model: ModelFamily, steps: int) -> Row:
    """VCE under the numbers of its recipe for this model, saving memory as `apply` does."""
    material, params = material_of(model, 8), recipe_of(model)
    material = type(material)(material.concept, material.pairs, Keep(material.pairs.safe, material.pairs.safe_ids))
    fitted = cast("VCE.Params", within(model, params, _work(model), _trainable(model), free_bytes(model.device)))
    reset_peak()
    seconds = step_seconds(model, material, fitted, steps, time.perf_counter)
    told = {"layers again": fitted.recompute, "parts": fitted.accumulate, "parts of the preserved": fitted.keep_parts}
    return {"what": "a step of VCE", "seconds": round(seconds, 3), "GiB": round(peak_bytes() / 2**30, 2), **told}


def recipe_of(model: ModelFamily) -> VCE.Params:
    """The numbers of VCE's recipe for this model."""
    return VCE.Params(**load_base_recipe("vce").for_model(model.card).params)


def _work(model: ModelFamily, pairs: int = 8) -> Callable[[BaseModel], Work]:
    return lambda params: declared(VCE(), params, model.card, pairs)


def _trainable(model: ModelFamily) -> int:
    return VCE().trainable(recipe_of(model), model)


def whole(model: ModelFamily, drawn: Row, trained: Row) -> Row:
    """A run of `apply` on Picasso at these rates: every image drawn and decoded, every step taken, nothing judged."""
    spec = load_spec(registry.find_builtin("concepts", "picasso"))
    recipe = compile_recipe(spec, model.card, load_base_recipe("vce"))
    params, pairs = recipe_of(model), len(recipe.construct.pairs)
    work = _work(model, pairs)(params)
    images = images_drawn(recipe) + work.drawn
    seconds = images * (1 / drawn["images/s"] + drawn["seconds to decode one"]) + work.steps * trained["seconds"]
    found = forecast(model, params, work, _trainable(model), images, pairs, speed_of(model))
    return {
        "what": f"apply: {images} images, {work.steps} steps",
        "minutes": round(seconds / 60, 2),
        "predicted minutes": round(found.minutes, 2),
    }


def measured(name: str, tiny: bool, dtype: torch.dtype, batches: Sequence[int], repeats: int) -> Iterator[Row]:
    """All rows of one model; one that failed says why."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = TINY[name].pico() if tiny else FULL[name](device, dtype)
    speed = speed_of(model)
    about: Row = {"model": name, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    about |= {"dtype": str(model.dtype).removeprefix("torch."), "GB/s": round(speed.bandwidth / 1e9)}

    def tried(what: str, run: Callable[[], Row]) -> Row:
        try:
            return about | run()
        except Exception as error:  # the machine is lent for minutes: what else can be measured is
            give_back(device)
            return about | {"what": what, FAILED: f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}

    rows = [tried(f"drawing, {n} at a time", partial(drawing, model, n, speed, repeats)) for n in batches]
    yield from rows
    trained = tried("a step of VCE", partial(training, model, 2))
    yield trained
    drawn = [row for row in rows if FAILED not in row]
    if drawn and FAILED not in trained:
        yield tried("apply", partial(whole, model, max(drawn, key=lambda row: float(row["images/s"])), trained))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows as they come, write them with --out; 1 if any failed, 2 without a GPU, unless --tiny."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", default=list(FULL), choices=list(FULL))
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=positive, default=2)
    parser.add_argument("--tiny", action="store_true", help="picos, on any device")
    parser.add_argument("--out", type=Path, help="the rows, one JSON object a line, for examples/results")
    parser.add_argument("--commit", help="in which the rows are recorded")
    chosen = parser.parse_args(arguments)
    if not (chosen.tiny or torch.cuda.is_available()):
        print(f"{COMMAND}: expected a GPU, got none; --tiny tries the script without one", file=sys.stderr)
        return 2
    origin = made(command(parser, chosen, ("models", "batch", "dtype", "repeats", "tiny")), chosen.commit)
    rows = list[Row]()
    for name in chosen.models:
        for row in measured(name, chosen.tiny, getattr(torch, chosen.dtype), chosen.batch, chosen.repeats):
            rows.append(row | origin)
            print(json.dumps(row), flush=True)
            if chosen.out:
                write_rows(chosen.out, rows)
    return int(any(FAILED in row for row in rows))
