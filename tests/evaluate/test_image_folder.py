"""A user's folder of reference images: both conventions, and files that no decoder should see."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safear_edit.errors import SpecError
from safear_edit.evaluate.image_folder import folder_source
from safear_edit.files.images import MOST_PIXELS, read_image

CONCEPT: dict[str, Any] = {"file_name": "a.png", "text": "a cat by P.", "neutral": "a cat"}
OTHER = {"file_name": "b.jpg", "text": "a dog", "group": "plain"}


def folder(root: Path, rows: Sequence[Any], name: str = "metadata.jsonl") -> Path:
    Image.new("RGB", (30, 20), (200, 10, 10)).save(root / "a.png")
    Image.new("RGB", (20, 30), (10, 10, 200)).save(root / "b.jpg")
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_both_conventions_say_the_same(tmp_path: Path) -> None:
    more = {**CONCEPT, "paraphrase": "a cat like P.", "others": {"M": "a cat by M."}, "licence": "CC0"}
    found = folder_source(folder(tmp_path, [CONCEPT, more, OTHER]), 16)
    assert [dict(r.prompts) for r in found.references] == [
        {"direct": "a cat by P."}, {"direct": "a cat by P.", "paraphrase": "a cat like P."},
    ]  # fmt: skip
    assert found.references[1].others == {"M": "a cat by M."} and found.kept[0].prompt == "a dog"
    (tmp_path / "metadata.jsonl").unlink()
    rows = [
        {"file": "a.png", "prompts": {"direct": "a cat by P."}, "neutral": "a cat"},
        {"file": "a.png", "prompts": {"direct": "a cat by P.", "paraphrase": "a cat like P."}, "neutral": "a cat",
         "others": {"M": "a cat by M."}},
        {"file": "b.jpg", "prompt": "a dog", "group": "plain"},
    ]  # fmt: skip
    again = folder_source(folder(tmp_path, rows, "captions.jsonl"), 16)
    assert again.digest == found.digest and torch.equal(again.kept_images, found.kept_images)
    (tmp_path / "metadata.jsonl").touch()
    with pytest.raises(SpecError, match="got both; remove one"):
        folder_source(tmp_path, 16)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"file_name": "a.png", "text": "a cat"}, "a column `neutral` or `group`"),
        ({"text": "a cat", "neutral": "x"}, "file"),
        ({"file_name": "a.png", "neutral": "x"}, "direct"),
        ({**OTHER, "file_name": "../b.jpg"}, "inside the folder"),
        ([1], "a JSON object"),
    ],
)
def test_bad_rows_are_one_line_with_a_place(tmp_path: Path, row: object, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        folder_source(folder(tmp_path, [CONCEPT, row]), 16)
    assert "metadata.jsonl:2" in str(caught.value) and "\n" not in str(caught.value)


# -- files ------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, *more: bytes, size: tuple[int, int] = (1, 1)) -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + bytes(3))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body)


BOMB = zlib.compress(bytes(80 << 20))
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zTXt": (lambda path: png(path, chunk(b"zTXt", b"k\0\0" + BOMB)), "an image in PNG, JPEG or WebP"),
    "pixels": (lambda path: png(path, size=(MOST_PIXELS // 8192, 8193)), "at most"),
    "bomb for Pillow": (lambda path: png(path, size=(60_000, 60_000)), "decompression bomb"),
    "cut": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20)), "an image in PNG, JPEG or WebP"),
    "EPS": (
        lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF"),
        "an image in PNG",
    ),
    "TIFF": (lambda path: Image.new("RGB", (4, 4)).save(path, format="TIFF"), "an image in PNG, JPEG or WebP"),
    "FIFO": (os.mkfifo, "a folder, pipe or device"),
    "folder": (lambda path: path.mkdir(), "a folder, pipe or device"),
    "nothing": (lambda path: None, "No such file"),
    "text": (lambda path: path.write_text("hello"), "an image in PNG, JPEG or WebP"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_sound_image_is_one_line(tmp_path: Path, kind: str) -> None:
    make, says = FILES[kind]
    make(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SpecError, match=says) as caught:
            read_image(tmp_path / "x.png", "captions.jsonl:3")
    assert str(caught.value).startswith("captions.jsonl:3: ") and "\n" not in str(caught.value)


def test_an_image_is_read_as_a_viewer_shows_it(tmp_path: Path) -> None:
    """Pillow's own way to RGB: 16 bits of grey were white, what is transparent was black, a phone's photo lay down."""
    steps = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(steps).save(tmp_path / "grey.png")
    assert np.array_equal(np.array(read_image(tmp_path / "grey.png", "x"))[..., 0], np.arange(256).reshape(16, 16))
    logo = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    logo.putpixel((0, 0), (200, 0, 0, 255))
    logo.save(tmp_path / "logo.png")
    assert np.array(read_image(tmp_path / "logo.png", "x")).tolist() == [[[200, 0, 0], [255, 255, 255]]]
    photo = Image.new("RGB", (8, 16))
    note = photo.getexif()
    note[0x112] = 6
    photo.save(tmp_path / "photo.jpg", exif=note)
    assert read_image(tmp_path / "photo.jpg", "x").size == (16, 8)


def test_large_images_warn_nobody(tmp_path: Path) -> None:
    """A profile that unpacks to much, and a size at which Pillow itself would warn."""
    png(tmp_path / "x.png", chunk(b"iCCP", b"k\0\0" + BOMB))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert read_image(tmp_path / "x.png", "x").size == (1, 1)
        except SpecError as error:
            assert "\n" not in str(error)
