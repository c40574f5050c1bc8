"""Export: a released model, of one edit or a stack, as the code that it came from loads it, or its edits for peft.

    upstream       the published repository's own files: LlamaGen's .pt, Infinity's .pth, DeepSeek's Janus folder
    transformers   a folder for from_pretrained, for families that transformers knows
    peft           one adapter folder per edit for PeftModel, to be put on the base model

export.json, written last, says what was exported, every file's sha256, and how to check it in that code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from safear_edit import registry
from safear_edit.editor.edit import PEFT_CONFIG, PEFT_TENSORS
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import UsageError
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.files import rundir
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.release.released import Released

ABOUT = "export.json"
PEFT = "peft"


@dataclass(frozen=True)
class Layout:
    """A family's own name for a layout (None: its only one), and how a person checks it in the code it is for."""

    name: str | None
    check: str


_TRANSFORMERS = (
    "transformers' AutoModel of this architecture, from_pretrained(this folder), loads without a missing key"
)
LAYOUTS: dict[str, dict[str, Layout]] = {
    "llamagen": {
        "upstream": Layout(
            "upstream",
            "in github.com/FoundationVision/LlamaGen: python autoregressive/sample/sample_t2i.py --gpt-ckpt t2i_*.pt "
            "--vq-ckpt vq_ds16_t2i.pt (its loader is strict: a wrong name stops it)",
        )
    },
    "infinity": {
        "upstream": Layout(
            "upstream",
            "in github.com/FoundationVision/Infinity: tools/run_infinity.py --model_path infinity_*.pth "
            "--vae_path infinity_vae_*.pth",
        )
    },
    "janus": {
        "upstream": Layout(
            "upstream",
            "in github.com/deepseek-ai/Janus: MultiModalityCausalLM.from_pretrained(this folder), then "
            "generation_inference.py",
        ),
        "transformers": Layout("hf", "transformers' JanusForConditionalGeneration.from_pretrained(this folder)"),
    },
    "omnimamba": {
        "upstream": Layout(
            "upstream",
            "in github.com/hustvl/OmniMamba: python scripts/inference_t2i.py --prompt TEXT, with OmniMamba-1.3b.pth in "
            "ckpts/ (its loader is not strict: a wrong name passes unseen)",
        )
    },
    "emu3": {"transformers": Layout(None, _TRANSFORMERS)},
    "chameleon": {"transformers": Layout(None, _TRANSFORMERS)},
    "liquid": {
        "transformers": Layout(
            None,
            "in github.com/FoundationVision/Liquid, evaluation/: python inference_t2i.py --model_path (this folder), "
            "with the release's chameleon/vqgan.ckpt, which no edit changes",
        )
    },
    "vila_u": {
        "upstream": Layout(
            None,
            "in github.com/mit-han-lab/vila-u: python inference.py --model_path (this folder) --prompt ... (an edit of "
            "the codebook is the tensor image_table of vision_tower/, which that code does not read: only this package "
            "honours it)",
        )
    },
}
"""Published layouts by family. A family that is not here (a plug-in) has the one its `export` writes."""


class _ManyLayouts(Protocol):
    """What a family's `export` takes where it has several layouts."""

    def export(self, directory: Path, layout: str) -> None: ...


@dataclass(frozen=True)
class Exported:
    """What was written: files with their sha256, from which release, and how to check them elsewhere."""

    layout: str
    family: str
    base: str
    stack: str
    edits: tuple[str, ...]
    files: Mapping[str, str]
    check: str

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        return asdict(self)


def export(folder: Path, layout: str, out: Path, *, overwrite: bool = False) -> Exported:
    """Write the release `folder` to `out` in a published layout, in one rename.

    UsageError for a folder that is no release, a layout that its family lacks, and edits that peft has no form for.
    """
    released = Released.read(folder)
    family = ModelRef.parse(str(folder.absolute())).family
    known = LAYOUTS.get(family, {})
    if layout != PEFT and layout not in known:
        raise registry.unknown(f"layout of {family}", layout, [*known, PEFT])
    with rundir.opened(out, overwrite=overwrite) as run:
        staged = rundir.stage(run, ())
        if layout == PEFT:
            _adapters(released.stack, staged)
            check = (
                "net = peft.PeftModel.from_pretrained(net, FOLDER).merge_and_unload() for each folder in order, where "
                "net is the base model's nn.Module, gives the released weights"
            )
        else:
            model = load_model(str(folder.absolute()))
            chosen = known[layout]
            if chosen.name is None:
                model.export(staged)
            else:
                cast("_ManyLayouts", model).export(staged, chosen.name)
            check = chosen.check
        found = sorted(path for path in staged.rglob("*") if path.is_file())
        files = {path.relative_to(staged).as_posix(): sha256_file(path) for path in found}
        made = Exported(layout, family, released.ref, released.stack.digest, released.stack.names, files, check)
        write_atomic(staged / ABOUT, json.dumps(made.as_json(), indent=1) + "\n")
        run.publish(staged, overwrite=overwrite)
    return made


def _adapters(stack: Stack, folder: Path) -> None:
    """One folder per edit, named after its concept, in the stack's order by number; the strength is in lora_alpha."""
    for layer in stack.layers:
        if layer.edit.kind != "lora":
            fix = "export the merged weights: --layout upstream or transformers"
            got = f"{layer.name}'s edit changes weights directly ({layer.edit.info.method})"
            raise UsageError(f"export --layout {PEFT}", "adapter edits", got, fix)
    for number, layer in enumerate(stack.layers, 1):
        _adapter(layer, folder / f"{number}-{layer.name}")


def _adapter(layer: Layer, folder: Path) -> None:
    layer.edit.save(folder)
    config = json.loads((folder / PEFT_CONFIG).read_text())
    config["lora_alpha"] = config["lora_alpha"] * layer.strength
    write_atomic(folder / PEFT_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in folder.iterdir():
        if path.name not in (PEFT_CONFIG, PEFT_TENSORS):
            path.unlink()
