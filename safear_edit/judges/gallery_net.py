"""The gallery judge's network, apart from the judge: whoever asks only for its labels needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 40
"""Images are resized (area or bilinear) to this edge before they are read."""


def as_input(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 → (B, 3, 40, 40) float32 in [-1, 1]; shrinks by averaging, so no aliasing."""
    scaled = images.float() / 127.5 - 1
    if scaled.shape[-2:] == (SIDE, SIDE):
        return scaled
    return F.interpolate(scaled, (SIDE, SIDE), mode="bilinear", antialias=True)


class _Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) → same shape."""
        inner = F.relu(self.norms[0](self.first(h)))
        return F.relu(h + self.norms[1](self.second(inner)))


class JudgeNet(nn.Module):
    """CNN from (B, 3, 40, 40) in [-1, 1] to logits per head, in the order and sizes of `heads`."""

    def __init__(self, heads: Mapping[str, int], widths: tuple[int, int, int] = (32, 80, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, kernel in zip(widths, (4, 2, 2), strict=True):
            layers += [
                nn.Conv2d(before, width, kernel, stride=2, padding=kernel // 4, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                _Block(width),
            ]
            before = width
        self.trunk = nn.Sequential(*layers)
        self.squeeze = nn.Conv2d(before, 48, 1)
        self.hidden = nn.Linear(48 * (SIDE // 8) ** 2 + 2 * before, 160)
        self.heads = nn.ModuleDict({name: nn.Linear(160, size) for name, size in heads.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits (B, size) per head: what is where (flattened) beside what is there at all (pooled)."""
        h = self.trunk(image)
        pooled = torch.cat((self.squeeze(h).flatten(1), h.mean((2, 3)), h.amax((2, 3))), -1)
        features = F.relu(self.hidden(pooled))
        return {name: head(features) for name, head in self.heads.items()}
