"""A published model's whole path at full size, with random weights: what it takes in memory and time.

`python -m safear_edit.studies rehearse llamagen:xl-256 --out FOLDER` makes files of the published layout in FOLDER,
which must lie outside the repository, and goes through them as `apply` would: load, let the text encoder go, draw two
images, take two steps of VCE, save the edit, export the edited model, load that, draw the same image, and take two
steps of every other method that fits. Each stage is a row of examples/results/rehearse.jsonl: CPU minutes of one thread
(the machine may be shared), the most memory that the stage held, and what compiler/cost.py predicts. Training takes one
pair and one preserved image a step; with --memory it takes one step of the recipe's own batch, which saves memory as
`apply --memory` has it do; --one-part takes the first of the parts that the batch is then cut into, which holds as much
memory as all of them. --load-only ends after the load and one image read under its caption, for a model whose training
or whose export beside its files is too much for the machine; --training-only trains on random tokens and neither draws
nor exports.

Nothing is said about quality: the weights are random. Disk: twice the model and its text encoder, once with
--load-only and --training-only.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from safear_edit import registry
from safear_edit.compiler.compile import method_params
from safear_edit.compiler.cost import (
    FIXED_BYTES,
    Plain,
    Speed,
    Work,
    declared,
    drawing_bytes,
    drawing_seconds,
    speed_of,
    stage_bytes,
    training_seconds,
    within,
)
from safear_edit.compiler.questions import CAPABILITY, training_questions
from safear_edit.compiler.recipe import load_base_recipe
from safear_edit.construct.pairs import Keep, Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.editor.edit import Edit
from safear_edit.errors import SafearError, UsageError
from safear_edit.families.folder import WEIGHTS
from safear_edit.families.infinity import Infinity, InfinityConfig, Transformer
from safear_edit.families.janus import SPECIAL, Janus, Vocabulary, build, read_config
from safear_edit.families.language import byte_tokenizer
from safear_edit.families.llamagen import GPT, PUBLISHED
from safear_edit.families.load import load_model
from safear_edit.families.tokenizers.bsq import BSQ, BSQConfig
from safear_edit.families.tokenizers.schedules import Schedule
from safear_edit.families.tokenizers.vq import VQConfig, VQModel
from safear_edit.files.memory import give_back
from safear_edit.files.weights import unfilled, write_pickle, write_weights
from safear_edit.judges.base import Judge, Judgement
from safear_edit.progress import silent
from safear_edit.spec.spec import load_spec
from safear_edit.studies.arguments import positive
from safear_edit.studies.rows import Row, made

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily

ROWS = Path("examples/results/rehearse.jsonl")
PROMPTS, CONCEPT = ("a house in the style of Picasso", "a house"), "Picasso"
SMALL = {"steps": 2, "batch": 1, "keep_batch": 1, "warmup": 1, "rollouts": 1}
"""What a rehearsal changes in a method's published numbers: two steps of one pair and one preserved image."""
WHOLE = {"steps": 1, "warmup": 0}
"""What it changes with a memory budget: one step of the recipe's own batch."""
SMALL_CB = {"rounds": 1, "probe": 1, "fewest": 1, "epochs": 1, "judge": "pinned"}
SHARD = 2**31
"""Bytes of a file of a model that is published in several."""
WHOLE_FILE, SHARDED = WEIGHTS
SMALL_SCHEDULE = Schedule.published(1.0, "0.06M")
"""What a next-scale model draws in a rehearsal, 256 x 256 pixels: 521 tokens instead of 10,521. --sides takes less."""


# -- files of the published layout ------------------------------------------------------------------------------------


def random_state(make: Callable[[], nn.Module], dtype: torch.dtype) -> dict[str, Tensor]:
    """A state dict of the network that `make` gives, as `random_tensors` fills it."""
    return dict(random_tensors(make, dtype))


def random_tensors(make: Callable[[], nn.Module], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of that network by name: matrices normal with deviation 0.02, norms one, biases zero.

    Matrices are cut from one row of 16 million random numbers, each from a place of its own: new ones would take longer
    than the rehearsal.
    """
    numbers = torch.empty(2**24, dtype=dtype).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    for place, (name, own) in enumerate(unfilled(make).state_dict().items()):
        if not own.is_floating_point():
            yield name, own
        elif own.dim() > 1:
            turned = numbers.roll(place * 7919)
            yield name, turned.repeat(-(-own.numel() // len(turned)))[: own.numel()].reshape(own.shape).clone()
        else:
            yield name, torch.full(own.shape, float(name.endswith("weight")), dtype=dtype)


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """model-1.safetensors and so on with at most SHARD bytes each (or one tensor), and the index that names them.

    No more than one of them is held at a time, however large the model.
    """
    places, shard = dict[str, str](), dict[str, Tensor]()

    def leave() -> None:
        name = f"model-{len(set(places.values())) + 1}.safetensors"
        write_weights(folder / name, shard, {"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(one.nbytes for one in shard.values()) + tensor.nbytes > SHARD:
            leave()
        shard[name] = tensor
    leave()
    (folder / SHARDED).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def text_files(folder: Path) -> None:
    """flan-t5-xl's encoder, 1.2 billion parameters in float32, with a tokenizer that knows single bytes."""
    from transformers import T5Config, T5EncoderModel

    folder.mkdir()
    sizes = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "vocab_size": 32128}
    config = T5Config.from_dict({**sizes, "feed_forward_proj": "gated-gelu"})
    config.save_pretrained(folder)
    state = random_state(lambda: T5EncoderModel(config), torch.float32)
    state.pop("encoder.embed_tokens.weight", None)
    write_weights(folder / WHOLE_FILE, state, {"format": "pt"})
    for name, content in byte_tokenizer(["<pad>", "</s>"], {"pad": "<pad>", "eos": "</s>"}).items():
        (folder / name).write_bytes(content)


def llamagen_files(folder: Path, variant: str) -> None:
    """The two .pt files in float32, and the text encoder."""
    from safear_edit.families.llamagen import PUBLISHED_VQ, LlamaGen

    file = LlamaGen.variants[variant].files[0]
    write_pickle(folder / file, {"model": random_state(lambda: GPT(PUBLISHED[variant]), torch.float32)})
    write_pickle(folder / PUBLISHED_VQ, {"model": random_state(lambda: VQModel(VQConfig()), torch.float32)})
    text_files(folder / "flan-t5-xl")


INFINITY = {
    "125m": (InfinityConfig(12, 768, 8, 4, 3072, 16, pool_heads=12), BSQConfig(16), "infinity_vae_d16.pth"),
    "2b": (InfinityConfig(), BSQConfig(32), "infinity_vae_d32reg.pth"),
}
"""Sizes of the published transformers (infinity_layer12 and infinity_2b of the release)."""


def infinity_files(folder: Path, variant: str) -> None:
    """The transformer's and the tokenizer's .pth in float32, and the text encoder."""
    config, tokenizer, name = INFINITY[variant]
    net = folder / Infinity.variants[variant].files[0]
    write_pickle(net, random_state(lambda: Transformer(config), torch.float32))  # and gone: 8.8 GB of a 2B
    write_pickle(folder / name, {"vae": random_state(lambda: BSQ(tokenizer), torch.float32)})
    text_files(folder / "flan-t5-xl")


JANUS = {
    "pro-1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16},
    "pro-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30, "num_attention_heads": 32},
}
"""Sizes of the published language models (language_config of their config.json)."""


def janus_layout(variant: str) -> tuple[Any, dict[str, bytes]]:
    """transformers' configuration of a published size, and the tokenizer's files."""
    text = {**JANUS[variant], "model_type": "llama", "vocab_size": 102400, "max_position_embeddings": 16384}
    width, files = text["hidden_size"], byte_tokenizer(SPECIAL.values(), SPECIAL)
    tower = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16}
    vision = {**tower, "image_size": 384, "projection_dim": width, "depth": 2, "num_image_tokens": 576}
    drawn = {"num_embeddings": 16384, "embed_dim": 8, "projection_dim": width, "image_token_embed_dim": width}
    token = Vocabulary.read(files, "rehearse").image
    parts = {"text_config": text, "vision_config": vision, "vq_config": {**drawn, "num_hidden_layers": 2}}
    return read_config({**parts, "image_token_id": token, "tie_word_embeddings": False}, token, "rehearse"), files


def janus_files(folder: Path, variant: str) -> None:
    """transformers' layout in bfloat16, in one file or several as published."""
    config, files = janus_layout(variant)
    tensors = random_tensors(lambda: build(config, torch.bfloat16), torch.bfloat16)
    if SHARDED in Janus.variants[variant].files:
        write_shards(folder, tensors)
    else:
        write_weights(folder / WHOLE_FILE, dict(tensors), {"format": "pt"})
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    for name, content in files.items():
        (folder / name).write_bytes(content)


MAKERS: Mapping[str, Callable[[Path, str], None]] = {
    "llamagen:xl-256": llamagen_files,
    "infinity:125m": infinity_files,
    "infinity:2b": infinity_files,
    "janus:pro-1b": janus_files,
    "janus:pro-7b": janus_files,
}


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Stages:
    """The rows so far, each written as soon as its stage is done; `about` stands in all of them."""

    about: Row
    path: Path | None
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, **more: object) -> Iterator[Row]:
        """Measure what the block does; what it puts into the row that it is given stands there too."""
        give_back("cuda" if torch.cuda.is_available() else "cpu")  # what earlier stages let go of isn't this one's
        reset_peak()
        row, start = dict[str, Any](), time.process_time()
        yield row
        minutes = round((time.process_time() - start) / 60, 2)
        measured = {"minutes": minutes, "GiB": round(peak_bytes() / 2**30, 2)}
        self.rows.append({**self.about, "stage": name, **measured, **more, **row})
        print(json.dumps(self.rows[-1]), flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")


def reset_peak() -> None:
    """Forget the peak so far: of the GPU's memory if there is one, else of this process (Linux alone can)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory held since `reset_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# -- the rehearsal ----------------------------------------------------------------------------------------------------


class Everywhere(Judge):
    """Finds the concept in every image: what random weights draw shows nothing."""

    def __init__(self) -> None:
        self.id, self.digest, self.threshold = "everywhere", "0" * 64, 0.5

    def look(self, images: Tensor) -> list[Judgement]:
        """Present, always."""
        return [Judgement(True, 1.0, "") for _ in images]


def rehearse(
    source: str,
    stages: Stages,
    work: Path,
    dtype: str,
    methods: Sequence[str],
    budget: int | None = None,
    schedule: Schedule = SMALL_SCHEDULE,
) -> None:
    """All stages for the model in `source`; `work` is an empty folder for the edit, the captions and the export.

    budget: bytes that training may take, in one step of each recipe's own batch. schedule: what a next-scale model
    draws, if that is less than its own.
    """
    model = loaded(source, stages, dtype, schedule)
    with stages.stage("captions encoded, encoder gone"):
        model.keep_captions((*PROMPTS, CONCEPT), work / "captions.safetensors", "rehearsal")
    speed = speed_of(model, time.process_time)
    with stages.stage("two images") as row, torch.no_grad():
        row.update(predicted(drawing_seconds(model, 2, speed), resident(model) + drawing_bytes(model, 2)))
        ids = model.generate(model.condition(PROMPTS), (0, 1)).cpu()
        model.decode(ids)
    edit = stepped(methods[0], model, ids, speed, stages, budget)
    edit.save(work / "edit")
    (work / "model").mkdir()
    with stages.stage("merged and exported"), Edit.load(work / "edit").apply(model.net):
        before = model.generate(model.condition(PROMPTS[:1]), (5,)).cpu()
        model.export(work / "model")
        if (text := Path(source) / "flan-t5-xl").is_dir():
            (work / "model" / "flan-t5-xl").symlink_to(text)
    del model
    with stages.stage("the export loaded, one image") as row:
        again = load_model(str(work / "model"))
        again.keep_captions((*PROMPTS, CONCEPT), work / "captions.safetensors", "rehearsal")
        row["same image"] = bool(torch.equal(again.generate(again.condition(PROMPTS[:1]), (5,)).cpu(), before))
    trained(methods[1:], again, ids, speed, stages, budget)


def trained(
    methods: Sequence[str],
    model: ModelFamily,
    ids: Tensor,
    speed: Speed,
    stages: Stages,
    budget: int | None,
    one_part: bool = False,
) -> None:
    """The steps of method after method."""
    for name in methods:
        try:
            stepped(name, model, ids, speed, stages, budget, one_part)
        except SafearError as error:  # a method that this model's size doesn't fit; the others go on
            print(f"{name}: {error}", file=sys.stderr)


def loaded(source: str, stages: Stages, dtype: str, schedule: Schedule) -> ModelFamily:
    """The model in `source`, as a stage; a next-scale one draws at most `schedule`."""
    with stages.stage("load") as row:
        model = load_model(source, dtype=dtype)
        if isinstance(model, Infinity) and model.schedule.total > schedule.total:
            model = model.at(schedule)
        row["predicted GiB"] = round(resident(model) / 2**30, 2)
    return model


def read_one(model: ModelFamily, stages: Stages) -> None:
    """One image of random tokens is read under its caption, as the base model reads a pair's before training."""
    seconds = training_seconds(model, Work(steps=0, rows=0, read=1), Plain(), 1, speed_of(model, time.process_time))
    with stages.stage("one image read") as row, torch.no_grad():
        row.update(predicted(seconds, resident(model)))
        logits = model.logits(model.condition(PROMPTS[:1]), random_ids(model, 1).to(model.device))
        row["finite"] = bool(logits.isfinite().all())


def random_ids(model: ModelFamily, count: int) -> Tensor:
    """Tokens of images that nothing drew."""
    return torch.randint(model.card.choices, (count, *model.token_shape), generator=torch.Generator().manual_seed(0))


def resident(model: ModelFamily) -> int:
    """Bytes that the process holds with a loaded model."""
    return model.weight_bytes + (FIXED_BYTES if model.device.type == "cpu" else 0)


def predicted(seconds: float, size: int) -> Row:
    """Columns beside what is measured."""
    return {"predicted minutes": round(seconds / 60, 2), "predicted GiB": round(size / 2**30, 2)}


def numbers(name: str, model: ModelFamily, budget: int | None) -> BaseModel:
    """Those of the method's recipe for this model, with what a rehearsal changes."""
    method = registry.lookup("methods", name).load()()
    small: Mapping[str, object] = SMALL if budget is None else WHOLE
    small = {**small, **(SMALL_CB if name == "safe_cb" else {})}
    recipe = load_base_recipe(name).for_model(model.card).params
    known = type(method).Params.model_fields
    params = method_params(name, recipe | {key: value for key, value in small.items() if key in known}, "rehearse")
    if budget is None:
        return params
    return within(
        model, params, lambda one: declared(method, one, model.card, 2), method.trainable(params, model), budget
    )


def first_part(params: BaseModel) -> tuple[BaseModel, int]:
    """The numbers of the first of the parts that a batch is cut into, and how many parts those are."""
    if (parts := getattr(params, "accumulate", 1)) == 1:
        return params, 1
    cut = {name: getattr(params, name) // parts for name in ("batch", "keep_batch") if hasattr(params, name)}
    return params.model_copy(update={**cut, "accumulate": 1}), parts


def stepped(
    name: str,
    model: ModelFamily,
    ids: Tensor,
    speed: Speed,
    stages: Stages,
    budget: int | None = None,
    one_part: bool = False,
) -> Edit:
    """The steps of a method (`numbers`) on pairs of the two images `ids`."""
    method, whole = registry.lookup("methods", name).load()(), numbers(name, model, budget)
    params, parts = first_part(whole) if one_part else (whole, 1)
    unsafe, safe = ([prompt] * 2 for prompt in PROMPTS)
    pairs = Pairs(unsafe, safe, [0, 1], ids[[0, 0]], ids[[1, 1]], PairStats(2, 2, {}))
    spec = load_spec(registry.find_builtin("concepts", "picasso"))
    asked = training_questions(spec) if CAPABILITY in model.provides else None
    material = Material("picasso", pairs, Keep(list(PROMPTS), ids), Everywhere(), asked, CONCEPT)
    work, trainable = declared(method, params, model.card, 2), method.trainable(params, model)
    seconds = training_seconds(model, work, params, 2, speed)
    seconds += drawing_seconds(model, work.drawn, speed) if work.drawn else 0.0
    told = "two steps" if budget is None else f"one step of its recipe in {budget / 2**30:g} GiB"
    told = f"{name}, the first of {parts} parts of {told}" if one_part else f"{name}, {told}"
    with stages.stage(told, **saved(whole, budget)) as row:
        row.update(predicted(seconds, stage_bytes(model, params, work, trainable)["training"]))
        found: Edit = method.fit(model, material, params, seed=0, progress=silent)
    return found


def saved(params: BaseModel, budget: int | None) -> Row:
    """The recipe's batch, and how memory was saved in it; nothing to say without a budget."""
    if budget is None:
        return {}
    names = {
        "batch": "pairs",
        "keep_batch": "preserved",
        "recompute": "layers again",
        "accumulate": "parts",
        "keep_parts": "parts of the preserved",
    }
    return {word: getattr(params, key) for key, word in names.items() if hasattr(params, key)}


def fitting(model: str) -> list[str]:
    """Methods that the model's family can be edited by, VCE first."""
    provides = registry.lookup("families", model.partition(":")[0]).load().provides
    names = [name for name, entry in registry.methods().items() if entry.load().needs <= provides]
    return sorted(names, key=lambda name: name != "vce")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files unless they are there, rehearse, append rows; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies rehearse", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", choices=sorted(MAKERS))
    parser.add_argument("--out", type=Path, required=True, help="a folder outside the repository")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--methods", nargs="+", help="default: every method that fits")
    parser.add_argument("--memory", type=float, metavar="GIB", help="one step of the recipe's own batch within it")
    parser.add_argument(
        "--sides", type=positive, nargs="+", help="of a next-scale model's scales, 1 2 4 8 for instance"
    )
    parser.add_argument("--one-part", action="store_true", help="with --memory: of that step the first part")
    parser.add_argument("--load-only", action="store_true", help="load, read one image and stop")
    parser.add_argument("--training-only", action="store_true", help="load and train; draw and export nothing")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--commit", help="in which the rows are recorded")
    parser.add_argument("--files", action="store_true", help="make the files and stop")
    chosen = parser.parse_args(arguments)
    if chosen.one_part and not (chosen.memory and chosen.training_only):
        raise UsageError("--one-part", "--memory and --training-only beside it", "not both", "add them or leave it out")
    out = chosen.out.resolve()
    if out.is_relative_to(registry.PACKAGE.parent):
        raise UsageError("--out", "a folder outside the repository", str(out), "give one on a disk with room")
    folder = out / chosen.model.replace(":", "-")
    if chosen.files:
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a rehearsal that was killed meanwhile
        partial.mkdir(parents=True)
        MAKERS[chosen.model](partial, chosen.model.partition(":")[2])
        partial.rename(folder)
        return 0
    if not folder.is_dir():  # in a process of its own, whose memory isn't counted
        own = [sys.executable, "-m", "safear_edit.studies", "rehearse", chosen.model, "--out", str(out), "--files"]
        if code := subprocess.run(own).returncode:
            return code if code > 0 else 128 - code
    schedule = Schedule.square(*chosen.sides) if chosen.sides else SMALL_SCHEDULE
    about = {"model": chosen.model, "dtype": chosen.dtype}
    stages = Stages(made(_command(chosen), chosen.commit) | about, chosen.rows)
    if chosen.load_only:
        read_one(loaded(str(folder), stages, chosen.dtype, schedule), stages)
        return 0
    work = out / f"{folder.name}-work"
    shutil.rmtree(work, ignore_errors=True)  # of an earlier rehearsal
    work.mkdir()
    budget, methods = chosen.memory and round(chosen.memory * 2**30), chosen.methods or fitting(chosen.model)
    if chosen.training_only:
        model = loaded(str(folder), stages, chosen.dtype, schedule)
        model.keep_captions((*PROMPTS, CONCEPT), work / "captions.safetensors", "rehearsal")
        speed = speed_of(model, time.process_time)
        trained(methods, model, random_ids(model, 2), speed, stages, budget, chosen.one_part)
        return 0
    rehearse(str(folder), stages, work, chosen.dtype, methods, budget, schedule)
    return 0


def _command(chosen: argparse.Namespace) -> str:
    """As it is to be given again."""
    words = ["python -m safear_edit.studies rehearse", chosen.model, "--dtype", chosen.dtype]
    words += ["--methods", *chosen.methods] if chosen.methods else []
    words += [f"--memory {chosen.memory:g}"] if chosen.memory else []
    flags = {"--one-part": chosen.one_part, "--load-only": chosen.load_only, "--training-only": chosen.training_only}
    words += [flag for flag, given in flags.items() if given]
    words += ["--sides", *map(str, chosen.sides)] if chosen.sides else []
    return " ".join(words)
