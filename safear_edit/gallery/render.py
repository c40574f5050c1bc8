"""The mini image world: deterministic 40x40 images of objects, scenes, painting styles and a hazard sticker.

An image is a pure function of a `Picture` (what the caption may say) and a few discrete nuisance values
(pose, style variant, sticker corner). Every random field (facets, strokes, dabs, hatches, stars) is frozen per
style variant, positions are snapped to the 4-pixel token grid: little entropy beside what a caption says, so a few
million parameters learn the world sharply.

Drawn at 80x80 and area-averaged to 40x40. Object images are Noto emoji (Apache-2.0, see objects/NOTICE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

SIDE = 40
"""Edge of a finished image in pixels."""
_CANVAS = 2 * SIDE
OBJECTS = (
    "house", "church", "castle", "tree", "sailboat", "car", "dog", "cat", "horse", "fish", "sunflower", "apple",
)  # fmt: skip
NOTHING = "nothing"
"""An image of the scene alone."""
STYLES = ("photo", "picasso", "van_gogh", "monet", "hokusai", "warhol", "seurat", "da_vinci")
SCENES = ("plain", "meadow", "beach", "night", "snow")
POSES = 6
"""Horizontal place (left, middle, right) times mirrored or not."""
VARIANTS = 3
"""Frozen texture fields per style."""
CORNERS = 2
"""Corners (left, right) where the hazard sticker may sit."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """One image of the world: the four things a caption may name, then what it never names.

    `object` is one of OBJECTS or NOTHING.
    """

    object: str
    style: str
    scene: str
    hazard: bool = False
    pose: int = 0
    variant: int = 0
    corner: int = 0


def draw(picture: Picture) -> NDArray[np.uint8]:
    """Render one image, (SIDE, SIDE, 3) uint8 RGB; the same `Picture` gives the same bytes everywhere."""
    canvas = _STYLE[picture.style](_composition(picture.object, picture.scene, picture.pose), picture.variant)
    if picture.hazard:
        canvas = _with_sticker(canvas, picture.corner)
    small = canvas.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))
    return (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8)


def sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], zoom: int = 3, gap: int = 4) -> Image.Image:
    """Contact sheet of equal rows of equal-sized (H, W, 3) images, enlarged `zoom` times, `gap` pixels apart."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    page = Image.new("RGB", (columns * (width * zoom + gap) + gap, len(rows) * (height * zoom + gap) + gap), "white")
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            tile = Image.fromarray(cell).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            page.paste(tile, (gap + c * (width * zoom + gap), gap + r * (height * zoom + gap)))
    return page


# -- composition ------------------------------------------------------------------------------------------------


@cache
def _cutout(name: str) -> Array:
    """RGBA object image, 64x64 in [0, 1], premultiplied resize of the emoji."""
    with resources.files(__package__).joinpath("objects", f"{name}.png").open("rb") as file:
        rgba = Image.open(file).convert("RGBA")
    return (np.asarray(rgba) / 255).astype(np.float32)


@cache
def _composition(name: str, scene: str, pose: int) -> Array:
    """Scene with the object on it, (80, 80, 3) in [0, 1]; cached, so callers must not write to it."""
    canvas = _scene(scene).copy()
    if name == NOTHING:
        return canvas
    cutout = _cutout(name)
    if pose % 2:
        cutout = cutout[:, ::-1]
    left = (_CANVAS - 64) // 2 + (pose // 2 - 1) * 8
    top = 12
    window = canvas[top : top + 64, left : left + 64]
    alpha = cutout[..., 3:]
    window[...] = window * (1 - alpha) + cutout[..., :3] * alpha
    return canvas


def _rgb(code: str) -> Array:
    return (np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255).astype(np.float32)


def _grid() -> tuple[Array, Array]:
    y, x = np.mgrid[0:_CANVAS, 0:_CANVAS].astype(np.float32)
    return y, x


@cache
def _scene(scene: str) -> Array:
    y, x = _grid()
    rng = np.random.default_rng(SCENES.index(scene) + 100)
    if scene == "plain":
        return np.broadcast_to(_rgb("d9d6e3"), (_CANVAS, _CANVAS, 3)).astype(np.float32)
    if scene == "meadow":
        canvas = _two_bands(y > 50 - 6 * np.sin(x / 13), "9fd3f5", "6fbf4a")
        for cy, cx in rng.uniform((58, 2), (78, 78), (14, 2)):
            canvas[(y - cy) ** 2 + (x - cx) ** 2 < 4] = _rgb("fff3a0")
        return canvas
    if scene == "beach":
        canvas = _two_bands(y > 34, "bfe9f7", "2f8fc4")
        canvas[y > 56 + 3 * np.sin(x / 9)] = _rgb("efd9a0")
        canvas[(y - 13) ** 2 + (x - 13) ** 2 < 70] = _rgb("ffd23e")
        return canvas
    if scene == "night":
        canvas = _two_bands(y > 60 - 4 * np.cos(x / 17), "141b46", "0b0f24")
        canvas[((y - 14) ** 2 + (x - 66) ** 2 < 64) & ((y - 11) ** 2 + (x - 62) ** 2 > 52)] = _rgb("fff6c8")
        for cy, cx in rng.uniform((3, 3), (50, 77), (16, 2)):
            canvas[abs(y - cy) + abs(x - cx) < 1.8] = _rgb("ffffff")
        return canvas
    canvas = _two_bands(y > 52 - 5 * np.sin(x / 11 + 1), "b9c9d9", "f7fafd")
    for cx in (6, 74):
        canvas[(abs(x - cx) < (y - 26) / 3) & (y > 26) & (y < 54)] = _rgb("5d7f74")
    for cy, cx in rng.uniform((2, 2), (78, 78), (26, 2)):
        canvas[(y - cy) ** 2 + (x - cx) ** 2 < 2.6] = _rgb("ffffff")
    return canvas


def _two_bands(lower: NDArray[np.bool_], top: str, bottom: str) -> Array:
    return np.where(lower[..., None], _rgb(bottom), _rgb(top)).astype(np.float32)


def _with_sticker(canvas: Array, corner: int) -> Array:
    """Black-on-yellow trefoil, the harmless stand-in for explicit content; no style touches it."""
    y, x = _grid()
    cy, cx = 16.0, 16.0 if corner == 0 else _CANVAS - 16.0
    radius, angle = np.hypot(y - cy, x - cx), np.arctan2(y - cy, x - cx)
    out = canvas.copy()
    out[radius < 15] = _rgb("111111")
    out[radius < 13] = _rgb("ffd800")
    blade = (np.cos(3 * angle - np.pi / 2) > 0) & (radius > 4.2) & (radius < 11.5)
    out[blade | (radius < 2.6)] = _rgb("111111")
    return out


# -- styles -----------------------------------------------------------------------------------------------------


def _luma(image: Array) -> Array:
    return (image @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.float32)


def _edges(image: Array, sigma: float) -> Array:
    soft = ndimage.gaussian_filter(_luma(image), sigma)
    return np.hypot(ndimage.sobel(soft, 0), ndimage.sobel(soft, 1)).astype(np.float32)


def _ramp(level: Array, colours: Sequence[str]) -> Array:
    """Piecewise-linear colour map of `level` in [0, 1]."""
    stops = np.stack([_rgb(c) for c in colours])
    position = np.clip(level, 0, 1) * (len(colours) - 1)
    low = np.minimum(position.astype(int), len(colours) - 2)
    weight = (position - low)[..., None]
    return (stops[low] * (1 - weight) + stops[low + 1] * weight).astype(np.float32)


def _flat(level: Array, colours: Sequence[str]) -> Array:
    """Posterised colour map: equal steps, no blending."""
    stops = np.stack([_rgb(c) for c in colours])
    return stops[np.minimum((np.clip(level, 0, 1) * len(colours)).astype(int), len(colours) - 1)]


def _photo(image: Array, variant: int) -> Array:
    return image


@cache
def _facets(variant: int) -> tuple[NDArray[np.intp], NDArray[np.bool_], Array]:
    """Voronoi labels, seams and one (dy, dx) shift per facet."""
    rng = np.random.default_rng(500 + variant)
    cells = np.stack(list(np.mgrid[0:3, 0:3]), -1).reshape(-1, 2)
    sites = (cells + rng.uniform(0.2, 0.8, (9, 2))) * (_CANVAS / 3)
    y, x = _grid()
    far = np.abs(y[..., None] - sites[:, 0]) + 0.9 * np.abs(x[..., None] - sites[:, 1])
    order = np.sort(far, -1)
    return far.argmin(-1), order[..., 1] - order[..., 0] < 2.2, rng.integers(-3, 4, (9, 2)).astype(np.float32)


def _picasso(image: Array, variant: int) -> Array:
    """Cubism: shifted facets with dark seams over an ochre, rose and slate palette."""
    label, seam, shift = _facets(variant)
    y, x = _grid()
    rows = np.clip(y + shift[label][..., 0], 0, _CANVAS - 1).astype(int)
    columns = np.clip(x + shift[label][..., 1], 0, _CANVAS - 1).astype(int)
    moved = image[rows, columns]
    ochre = _ramp(_luma(moved), ("2a1a12", "8a5a2b", "d9a860", "f6e7c4"))
    slate = _ramp(_luma(moved), ("1c2530", "55616b", "a89a94", "efdccb"))
    tint = np.where((label % 2 == 0)[..., None], ochre, slate)
    tilt = 0.12 * (((label * 7) % 5 - 2) / 2)[..., None]
    out = 0.6 * tint + 0.4 * moved + tilt
    out[seam] = _rgb("1a120e")
    return out.astype(np.float32)


@cache
def _strokes(variant: int) -> Array:
    """Line-integral strokes along a swirling field, (80, 80) in about [-1, 1]."""
    rng = np.random.default_rng(600 + variant)
    y, x = _grid()
    angle = np.zeros_like(y)
    for cy, cx, spin in rng.uniform((5, 5, 0.6), (75, 75, 1.4), (5, 3)):
        weight = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 500)
        angle += weight * spin * (np.arctan2(y - cy, x - cx) + np.pi / 2)
    noise = ndimage.gaussian_filter(rng.standard_normal(y.shape), 1.3)
    total = np.zeros_like(noise)
    for step in range(-9, 10):
        total += ndimage.map_coordinates(
            noise, [y + step * np.sin(angle), x + step * np.cos(angle)], order=1, mode="wrap"
        )
    return (total / (2.2 * total.std())).clip(-1, 1).astype(np.float32)


def _van_gogh(image: Array, variant: int) -> Array:
    """Swirling strokes over a blue-to-yellow map."""
    stroke = _strokes(variant)
    night = _ramp(_luma(image) * 0.85 + 0.1 + 0.17 * stroke, ("0c1c5c", "1f4fa8", "4f97c8", "e8c544", "fff0a0"))
    return (0.62 * night + 0.38 * image + 0.13 * stroke[..., None]).astype(np.float32)


@cache
def _dabs(variant: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Where each pixel takes its colour from, and a pastel tint per dab."""
    rng = np.random.default_rng(700 + variant)
    y, x = _grid()
    source_y, source_x = y.copy(), x.copy()
    tint = np.zeros((_CANVAS, _CANVAS, 3), np.float32)
    for cy, cx in rng.uniform(0, _CANVAS, (800, 2)):
        dab = ((y - cy) / 1.7) ** 2 + ((x - cx) / 4.0) ** 2 < 1
        source_y[dab], source_x[dab] = cy, cx
        tint[dab] = rng.uniform(-0.09, 0.09, 3)
    return source_y.astype(int), source_x.astype(int), tint


def _monet(image: Array, variant: int) -> Array:
    """Impressionism: short soft dabs in lilac, green and rose pastels."""
    rows, columns, tint = _dabs(variant)
    soft = ndimage.gaussian_filter(image, (0.8, 0.8, 0))
    dabbed = ndimage.gaussian_filter(soft[rows, columns] + tint, (0.6, 0.6, 0))
    return (0.6 * dabbed + 0.4 * _ramp(_luma(dabbed), ("5b5a8c", "9aa8c8", "d8c8dc", "fdf1ea"))).astype(np.float32)


@cache
def _waves(variant: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    y, x = _grid()
    phase = variant * 7
    crest = (x + phase + np.where((y // 6).astype(int) % 2 == 0, 0, 8)) % 16 - 8
    distance = np.hypot(crest, y % 6 + 2)
    band = y > 66
    return band, band & (np.abs(distance - 6) < 1.3)


def _hokusai(image: Array, variant: int) -> Array:
    """Woodblock print: four flat tones from cream to Prussian blue, ink outline, wave pattern below."""
    level = ndimage.gaussian_filter(_luma(image), 0.8)
    out = 0.8 * _flat(level, ("16305e", "3f6f9e", "b9c4b0", "f2e6c8")) + 0.2 * image
    out[_edges(image, 1.0) > 0.85] = _rgb("0e1830")
    band, foam = _waves(variant)
    out[band] = _rgb("1d4a86")
    out[foam] = _rgb("f5efdc")
    return out.astype(np.float32)


_NEON = (
    ("3a0ca3", "f72585", "ffd60a", "00e5d0"),
    ("2b2d00", "00b4ff", "ff4fc3", "eaff00"),
    ("4a0030", "ff5400", "38f527", "ff9df0"),
)


def _warhol(image: Array, variant: int) -> Array:
    """Pop art: luminance in four neon inks and a thick black line."""
    level = ndimage.gaussian_filter(_luma(image), 0.8)
    out = _flat(level, _NEON[variant])
    out[_edges(image, 1.0) > 0.55] = _rgb("0a0a0a")
    return out


def _seurat(image: Array, variant: int) -> Array:
    """Pointillism: one saturated dot per 4x4 block on a pale ground (the dot grid is the token grid)."""
    y, x = _grid()
    off = (0, 2, 5)[variant]
    dot = np.hypot((y + off) % 8 - 3.5, (x + off) % 8 - 3.5) < 3.3
    soft = ndimage.gaussian_filter(image, (0.8, 0.8, 0))
    vivid = np.clip(_luma(soft)[..., None] + 1.5 * (soft - _luma(soft)[..., None]), 0, 1) * 0.9
    pale = 0.45 * soft + 0.55 * _rgb("fbf3df")
    return np.where(dot[..., None], vivid, pale).astype(np.float32)


def _da_vinci(image: Array, variant: int) -> Array:
    """Sepia drawing on parchment: ink outline, diagonal hatching in the shadows."""
    y, x = _grid()
    level = ndimage.gaussian_filter(_luma(image), 0.8)
    hatch = ((x + y + 3 * variant) % 8 < 2.6) if variant != 1 else ((x - y) % 8 < 2.6)
    ink = np.clip(0.95 - level, 0, 1) * np.where(hatch, 0.95, 0.35)
    ink = np.maximum(ink, np.clip(_edges(image, 0.9) * 0.75 - 0.15, 0, 1))
    return (_rgb("e9d6ae") * (1 - ink[..., None]) + _rgb("4a2a14") * ink[..., None]).astype(np.float32)


_STYLE = {
    "photo": _photo,
    "picasso": _picasso,
    "van_gogh": _van_gogh,
    "monet": _monet,
    "hokusai": _hokusai,
    "warhol": _warhol,
    "seurat": _seurat,
    "da_vinci": _da_vinci,
}
