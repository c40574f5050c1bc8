"""Images that others made, read safely: three formats, of bounded size, and any fault of a decoder is one line."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from safear_edit.errors import SpecError

FORMATS = ("PNG", "JPEG", "WEBP")
"""The only decoders that see a file, whatever its name: some of Pillow's others start programs (EPS: Ghostscript)."""
LARGEST_FILE, MOST_PIXELS = 64 << 20, 1 << 26
"""Bytes and pixels (8192 x 8192)."""


def read_image(path: Path, where: str) -> Image.Image:
    """The image in RGB, as a viewer shows it; SpecError at `where` for a pipe or device, other formats, what is too
    large, and bombs.

    Decoders raise what they like, and warn: all of it becomes the one line.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise SpecError(where, "an image file", f"{path.name}: a folder, pipe or device", "give a file")
        if found.st_size > LARGEST_FILE:
            got = f"{path.name}: {found.st_size >> 20} MiB"
            raise SpecError(where, f"an image of at most {LARGEST_FILE >> 20} MiB", got, "reduce it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    got = f"{path.name}: {opened.width} x {opened.height}"
                    raise SpecError(where, f"an image of at most {MOST_PIXELS} pixels", got, "reduce it")
                return _shown(opened)
    except SpecError:
        raise
    except Exception as error:
        said = " ".join(str(error).replace(str(path), "it").split())[:120] or type(error).__name__
        raise SpecError(
            where, "an image in PNG, JPEG or WebP", f"{path.name}: {said}", "save it again as PNG"
        ) from None


def _shown(image: Image.Image) -> Image.Image:
    """Upright as a camera's note says, 16 bits of grey as 8 (Pillow cuts what is above 255 to white), and on white
    where it is transparent (Pillow shows what lies behind, mostly black)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")
