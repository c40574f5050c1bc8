"""Images of a user's prompts from any model."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.errors import UsageError
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.files.atomic import digest_of, write_atomic
from safear_edit.pipeline.order import resolve_device
from safear_edit.progress import Callback, silent

if TYPE_CHECKING:
    from torch import Tensor


# -- beside the walk --------------------------------------------------------------------------------------------------


def generate(
    model_text: str,
    prompts: Sequence[str],
    *,
    count: int,
    seed: int,
    device: str,
    out: Path,
    overwrite: bool,
    progress: Callback = silent,
) -> tuple[str, list[Path]]:
    """Draw `count` images of each prompt with seeds seed, seed+1, …; returns the model taken and the PNGs written.

    UsageError if there is no prompt, or a file of that name already (without `overwrite`): nothing is drawn then.
    """
    if not prompts or count < 1:
        raise UsageError("generate", "at least one prompt and one image", "none", "say what to draw")
    wanted = [(prompt, seed + i) for prompt in prompts for i in range(count)]
    paths = [out / f"{_slug(prompt)}-{number}.png" for prompt, number in wanted]
    taken = [path for path in paths if path.exists()]
    if taken and not overwrite:
        raise UsageError(
            str(taken[0]), "a new file", "one that exists", "choose another --out or --seed, or --overwrite"
        )
    ModelRef.parse(model_text)  # a typo is told before torch is loaded
    model = load_model(model_text, resolve_device(device))
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(wanted), GENERATE_BATCH):
        part = wanted[start : start + GENERATE_BATCH]
        ids = model.generate(model.condition([prompt for prompt, _ in part]), [number for _, number in part])
        for path, picture in zip(paths[start:], model.decode(ids), strict=False):
            _write_png(path, picture)
        progress("pictures", start + len(part), len(wanted), "")
    return model.card.ref, paths


GENERATE_BATCH = 32


def _slug(prompt: str) -> str:
    """A file name that a person recognises; distinct prompts get distinct names."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.casefold()).strip("-")[:60]
    return f"{words}-{digest_of(prompt)[:6]}"


def _write_png(path: Path, picture: Tensor) -> None:
    """One image (3, H, W) uint8 as a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
