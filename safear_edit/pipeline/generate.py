"""Images of a user's prompts from any model; what an interrupted command has drawn, the same command keeps."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.errors import UsageError
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.files.atomic import digest_of, json_digest, write_atomic
from safear_edit.files.layout import looks_released, without_weights
from safear_edit.pipeline.order import resolve_device
from safear_edit.progress import Callback, silent, under

if TYPE_CHECKING:
    from torch import Tensor

    from safear_edit.construct.sheets import Strip
    from safear_edit.families.base import ModelFamily


BATCH = 32
"""Images drawn together, and lost at most when the command is interrupted."""
SHEET = "side-by-side.png"
MARK = "safear-edit"
"""The PNG text that says what an image is of: a digest of model, sampling, device, prompt and seed."""


@dataclass(frozen=True)
class Wanted:
    """One image and the file that it is written to."""

    prompt: str
    seed: int
    path: Path


def generate(
    model_text: str,
    prompts: Sequence[str],
    *,
    count: int,
    seed: int,
    device: str,
    out: Path,
    overwrite: bool,
    dtype: str = "auto",
    progress: Callback = silent,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[str, list[Path]]:
    """Draw `count` images of each prompt with seeds seed, seed+1, …; returns the model taken and the PNGs written.

    A file that this very model drew for this prompt and seed is kept, so an interrupted command continues. `say` is
    told of captions that the model doesn't read to their end. A run of `compare`, which leaves its weights out, draws
    by its edits on the base model of its card.
    UsageError if there is no prompt, or another file of that name already (without `overwrite`): nothing is drawn then.
    """
    if not prompts or count < 1:
        raise UsageError("generate", "at least one prompt and one image", "none", "say what to draw")
    for prompt in prompts:
        if any("\ud800" <= character <= "\udfff" for character in prompt):  # how other bytes on a command line come in
            raise UsageError("generate", "a prompt in UTF-8", ascii(prompt)[:80], "write it in UTF-8")
    wanted = [
        Wanted(prompt, seed + i, out / f"{_slug(prompt)}-{seed + i}.png") for prompt in prompts for i in range(count)
    ]
    marks = {one.path: _mark(one.path) for one in wanted if one.path.exists()}
    if not overwrite:
        _refuse([path for path, mark in marks.items() if mark is None])
    ModelRef.parse(model_text)  # a typo is told before torch is loaded
    with _opened(model_text, resolve_device(device), dtype) as (model, edits):
        drawn_by = _drawer(model, edits)
        if not overwrite:
            _refuse([one.path for one in wanted if one.path in marks and marks[one.path] != _digest(drawn_by, one)])
        for line in cut_captions(model, prompts):
            say(f"warning: {line}")
        missing = [one for one in wanted if marks.get(one.path) != _digest(drawn_by, one)]
        out.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            ids = model.generate(model.condition([one.prompt for one in part]), [one.seed for one in part])
            for one, image in zip(part, model.decode(ids), strict=True):
                _write_png(one.path, image, _digest(drawn_by, one))
            progress("images", len(wanted) - len(missing) + start + len(part), len(wanted), "")
        return model.card.ref, [one.path for one in wanted]


@contextmanager
def _opened(text: str, device: str, dtype: str) -> Iterator[tuple[ModelFamily, list[str]]]:
    """The model, and the digests of edits that its card doesn't know of."""
    folder = Path(text)
    if not (looks_released(folder) and without_weights(folder)):
        yield load_model(text, device, dtype), []
        return
    from safear_edit.release.released import Released

    released = Released.read(folder)
    with released.edited(device, dtype) as model:
        yield model, [f"{layer.edit.digest} {layer.strength}" for layer in released.stack.layers]


def side_by_side(
    models: Sequence[str],
    prompts: Sequence[str],
    *,
    count: int,
    seed: int,
    device: str,
    out: Path,
    overwrite: bool,
    dtype: str = "auto",
    progress: Callback = silent,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[tuple[str, list[Path]]], Path]:
    """The same images by several models, each in a folder of its own, and a sheet with the models under each other.

    As `generate`, model after model: one is in memory at a time. Returns what each gave, and the sheet.
    UsageError, before anything is drawn, for a sheet of other images (without `overwrite`).
    """
    import numpy as np
    from PIL import Image

    from safear_edit.construct.sheets import tile, write_sheet

    names = [f"{number}-{_short(text)}" for number, text in enumerate(models, 1)]
    for text in models:
        ModelRef.parse(text)
    sheet, what = out / SHEET, f"every image of {', '.join(models)}; seeds from {seed}, {count} a prompt"
    about = {"caption": "; ".join(prompts), "selection": what}
    if not overwrite and sheet.exists() and not _is_of(sheet, about):
        _refuse([sheet])
    drawn = [
        generate(
            text,
            prompts,
            count=count,
            seed=seed,
            device=device,
            out=out / name,
            overwrite=overwrite,
            dtype=dtype,
            progress=under(progress, name),
            say=say,
        )
        for text, name in zip(models, names, strict=True)
    ]
    strips: list[Strip] = []
    for row, prompt in enumerate(prompts):
        for text, (_, paths) in zip(models, drawn, strict=True):
            images = [np.asarray(Image.open(path)) for path in paths[row * count : (row + 1) * count]]
            strips.append((f"{text}: {prompt}", [[tile(image, hidden=False) for image in images]]))
    write_sheet(sheet, strips, hidden=False, about=about)
    return [(text, paths) for text, (_, paths) in zip(models, drawn, strict=True)], sheet


def _is_of(sheet: Path, about: Mapping[str, str]) -> bool:
    """Whether what lies beside the sheet says that it has these images."""
    from safear_edit.construct.sheets import SheetNote

    try:
        note = SheetNote.model_validate_json(sheet.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return False
    return (note.caption, note.selection) == (about["caption"], about["selection"])


def _short(text: str) -> str:
    """A folder name that a person recognises."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", Path(text).name)[:40].strip("-.") or "model"


def _refuse(taken: Sequence[Path]) -> None:
    if taken:
        fix = "choose another --out or --seed, or --overwrite"
        raise UsageError(str(taken[0]), "a new file", "one that exists and that this command didn't write", fix)


def cut_captions(model: ModelFamily, prompts: Sequence[str]) -> list[str]:
    """A warning for every prompt that the model doesn't read to its end."""
    lengths = zip(prompts, model.caption_lengths(prompts), strict=True)
    return [f"only {read} of {n} tokens are read of: {prompt}" for prompt, (n, read) in lengths if read < n]


def _slug(prompt: str) -> str:
    """A file name that a person recognises and no option parser mistakes; distinct prompts get distinct names."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.casefold()).strip("-")[:60]
    return f"{words or 'image'}-{digest_of(prompt)[:6]}"


# -- what a file says of itself ---------------------------------------------------------------------------------------


def _drawer(model: ModelFamily, edits: Sequence[str]) -> str:
    from safear_edit.judges.draw import other_encoder

    half = [] if str(model.dtype) == "torch.float32" else [str(model.dtype)]
    drawn = [model.card.digest, asdict(model.sampling), str(model.device), *half, *other_encoder(model)]
    return json_digest([*drawn, *edits])


def _digest(drawn_by: str, one: Wanted) -> str:
    return digest_of(drawn_by, one.prompt, str(one.seed))


def _mark(path: Path) -> str | None:
    """What an image says that it is of; None for any other file."""
    from PIL import Image

    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = image.info.get(MARK)
    except (OSError, ValueError, SyntaxError):
        return None
    return found if isinstance(found, str) else None


def _write_png(path: Path, image: Tensor, mark: str) -> None:
    """One image (3, H, W) uint8 as a PNG."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    buffer, about = io.BytesIO(), PngInfo()
    about.add_text(MARK, mark)
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG", pnginfo=about)
    write_atomic(path, buffer.getvalue())
