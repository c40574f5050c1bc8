"""Which grids a next-scale model draws, coarse to fine: the published schedules of Infinity, or one of your own.

Numbers: infinity/utils/dynamic_resolution.py of https://github.com/FoundationVision/Infinity/tree/4c27bbb.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from pydantic import ConfigDict, with_config

from safear_edit.errors import UsageError

Grid = tuple[int, int]
"""Rows and columns."""

SIZES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""Published image sizes in pixels, and how many scales of the full schedule each draws."""

_UPRIGHT = {
    1.0: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.25: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.5: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.75: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.0: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.5: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.0: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}


def _full(line: str, lying: bool) -> tuple[Grid, ...]:
    pairs = [(int(h), int(w)) for h, w in (word.split("x") for word in line.split())]
    return tuple((w, h) if lying else (h, w) for h, w in pairs)


FULL: dict[float, tuple[Grid, ...]] = {
    **{ratio: _full(line, False) for ratio, line in _UPRIGHT.items()},
    **{int(1000 / ratio) / 1000: _full(line, True) for ratio, line in _UPRIGHT.items() if ratio > 1},
}
"""Height / width → the thirteen grids of the 1M size."""


LONGEST = 256
"""Side of a grid; published: 111. No tensor of a checkpoint says it, so this bounds the memory that it takes."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Schedule:
    """The grids of one image, and how its tokens relate to the tokenizer's cells.

    grids: of the transformer, coarse to fine, (1, 1) first, none larger than the last. rope: the grid that all
    positions are normalised to; the published models take the ratio's 1M grid, whatever size is drawn. patchify: a
    token holds the bits of 2 x 2 cells of the tokenizer, whose grids are then twice as fine (the 8B models).
    """

    grids: tuple[Grid, ...]
    rope: Grid
    patchify: bool = False

    def __post_init__(self) -> None:
        rising = bool(self.grids) and all(0 < g[i] <= self.grids[-1][i] for g in self.grids for i in (0, 1))
        if not rising or self.grids[0] != (1, 1) or min(self.rope) < 1 or max(*self.grids[-1], *self.rope) > LONGEST:
            expected = f"grids from (1, 1) up to the finest, all of positive sides up to {LONGEST}"
            raise UsageError("the scale schedule", expected, str(self), "take the schedule of a trained model")

    @classmethod
    def published(cls, ratio: float = 1.0, size: str = "1M", patchify: bool = False) -> Schedule:
        """The schedule of the published ratio (height / width) nearest to `ratio`; UsageError for an unknown size."""
        if size not in SIZES:
            raise UsageError("image size", f"one of {', '.join(SIZES)}", repr(size), "take one of these")
        full = FULL[min(FULL, key=lambda known: abs(known - ratio))]
        return cls(full[: SIZES[size]], full[-1], patchify)

    @classmethod
    def square(cls, *sides: int, rope: int = 64) -> Schedule:
        """Square grids of these sides, with positions on the published square 1M grid unless told otherwise."""
        return cls(tuple((side, side) for side in sides), (rope, rope))

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens per scale."""
        return tuple(h * w for h, w in self.grids)

    @property
    def total(self) -> int:
        """Tokens of an image."""
        return sum(self.tokens)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(first, one past the last) token of each scale."""
        ends = [sum(self.tokens[: i + 1]) for i in range(len(self.grids))]
        return tuple(zip([0, *ends[:-1]], ends, strict=True))

    @property
    def cells(self) -> tuple[Grid, ...]:
        """The tokenizer's grid at each scale."""
        factor = 2 if self.patchify else 1
        return tuple((factor * h, factor * w) for h, w in self.grids)

    def token_weights(self) -> list[float]:
        """Weight of every token in the training loss, sum 1: a scale of area a weighs sqrt(a_last / a) per token.

        The shipped trainings use it (reweight_loss_by_scale in scripts/train.sh): coarse tokens are few and decide
        much.
        """
        weights = [sqrt(self.tokens[-1] / count) for count in self.tokens for _ in range(count)]
        return [weight / sum(weights) for weight in weights]
