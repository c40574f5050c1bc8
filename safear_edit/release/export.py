"""Export: a released model, of one edit or a stack, as the code that it came from loads it, or its edits for peft.

    upstream       the published repository's own files: LlamaGen's .pt, Infinity's .pth, DeepSeek's Janus folder
    transformers   a folder for from_pretrained, for families that transformers knows
    peft           one adapter folder per edit for PeftModel, to be put on the base model

export.json, written last, says what was exported, every file's sha256, and how to check it in that code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safear_edit import registry
from safear_edit.editor.edit import PEFT_CONFIG, PEFT_TENSORS
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import UsageError
from safear_edit.families.reference import published
from safear_edit.files import rundir
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.names import OWN_WEIGHTS
from safear_edit.release.released import Released

ABOUT = "export.json"
PEFT = "peft"


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
    """Write the release `folder`, or a run of `compare`, to `out` in a published layout, in one rename.

    UsageError for a folder that is no release, a layout that its family lacks, an edit that the layout has no place for
    (the code that it is for would draw as the unedited model), and edits that peft has no form for.
    """
    released = Released.read(folder)
    family = released.family
    known = published(family).layouts
    if layout != PEFT and layout not in known:
        raise registry.unknown(f"layout of {family}", layout, [*known, PEFT])
    with rundir.opened(out, overwrite=overwrite) as run:
        staged = rundir.stage(run, ())
        if layout == PEFT:
            _adapters(released.stack, staged, _instead(folder, known))
            check = (
                "net = peft.PeftModel.from_pretrained(net, FOLDER).merge_and_unload() for each folder in order, where "
                "net is the base model's nn.Module, gives the released weights"
            )
        else:
            with released.edited() as model:
                model.export(staged, layout)
            check = model.check_of(layout)
        found = sorted(path for path in staged.rglob("*") if path.is_file())
        files = {path.relative_to(staged).as_posix(): sha256_file(path) for path in found}
        made = Exported(layout, family, released.ref, released.stack.digest, released.stack.names, files, check)
        write_atomic(staged / ABOUT, json.dumps(made.as_json(), indent=1) + "\n")
        run.publish(staged, overwrite=overwrite)
    return made


def _instead(folder: Path, layouts: Iterable[str]) -> str:
    """What to do with a release whose edits aren't adapters: a layout of merged weights, if one can show them."""
    if any(folder.rglob(OWN_WEIGHTS)):
        return "no layout has a place for this edit: load the release itself, with safear-edit"
    return f"export the merged weights: --layout {' or '.join(layouts)}"


def _adapters(stack: Stack, folder: Path, instead: str) -> None:
    """One folder per edit, named after its concept, in the stack's order by number; the strength is in lora_alpha."""
    for layer in stack.layers:
        if layer.edit.kind != "lora":
            got = f"{layer.name}'s edit changes weights directly ({layer.edit.info.method})"
            raise UsageError(f"export --layout {PEFT}", "adapter edits", got, instead)
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
