"""The gallery judge: style, object, scene and hazard of an image of the mini world, or "cannot tell".

A small CNN that learnt from renders only, with seeds, augmentation and architecture of its own, so that it shares
nothing with the generators it judges. Its object head learnt mostly from images without their true colours and must
read shape; a refusal head learnt from blurred, mixed and scrambled images. One pass serves every label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safear_edit.errors import TrustError, UsageError
from safear_edit.judges.base import (
    Judge,
    JudgeCard,
    Judgement,
    checked_images,
    checked_threshold,
    file_digest,
    settings_digest,
)
from safear_edit.registry import judge, suggestion

if TYPE_CHECKING:
    from torch import Tensor

    from safear_edit.judges.gallery_net import JudgeNet

FOLDER = Path(__file__).resolve().parent.parent / "minis" / "judge"


@dataclass(frozen=True)
class Reading:
    """Everything one pass says about a batch: probabilities (B, size) per head, and refusal (B,)."""

    heads: dict[str, Tensor]
    refusal: Tensor


class GalleryReader:
    """The trained network and its labels; `read` serves any number of `GalleryJudge`s with one pass."""

    def __init__(self, folder: Path = FOLDER) -> None:
        try:
            self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
            manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        except FileNotFoundError as error:
            raise UsageError(
                str(folder),
                "the judge's files",
                f"no {Path(error.filename).name}",
                "python -m safear_edit.minis judge",
            ) from error
        self.digest = file_digest(folder / "model.safetensors")
        if self.digest != manifest["files"]["model.safetensors"]:
            raise TrustError(
                str(folder / "model.safetensors"),
                f"sha256 {manifest['files']['model.safetensors'][:12]}…",
                f"sha256 {self.digest[:12]}…",
                "reinstall safear-edit",
            )
        self.labels: dict[str, list[str]] = self.config["labels"]
        self.refuse_at: float = self.config["refuse_at"]
        self.card: dict[str, dict[str, Any]] = manifest["card"]
        self._weights = folder / "model.safetensors"

    @cached_property
    def net(self) -> JudgeNet:
        """Frozen, float32; loaded when it is first asked."""
        from safetensors.torch import load_file

        from safear_edit.judges.gallery_net import JudgeNet

        net = JudgeNet({name: len(names) for name, names in self.labels.items()} | {"refuse": 1})
        weights = load_file(self._weights)
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return net.eval().requires_grad_(False)

    def read(self, images: Tensor, batch: int = 256) -> Reading:
        """Probabilities for images (B, 3, H, W) uint8 RGB of any size; computed on the CPU in float32."""
        import torch

        from safear_edit.judges.gallery_net import as_input

        checked_images("gallery", images)
        starts = range(0, max(1, len(images)), batch)
        with torch.no_grad():
            parts = [self.net(as_input(images[i : i + batch].cpu())) for i in starts]
        logits = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Reading({name: logits[name].softmax(-1) for name in self.labels}, logits["refuse"].sigmoid().squeeze(-1))


@lru_cache(maxsize=1)
def reader() -> GalleryReader:
    """The shipped reader of this process."""
    return GalleryReader()


@judge("gallery")
class GalleryJudge(Judge):
    """Whether an image shows `label`: "style=picasso", "object=house", "scene=beach", "hazard=yes"."""

    images = ("gallery",)

    def __init__(self, label: str, *, threshold: float | None = None, source: GalleryReader | None = None) -> None:
        self.reader = source or reader()
        self.head, self.value = _split(label, self.reader.labels)
        self.label = f"{self.head}={self.value}"
        self.threshold = checked_threshold("gallery", 0.5 if threshold is None else threshold)
        self.id = f"gallery:{self.label}@{self.threshold:g}"
        self.digest = settings_digest(
            {
                "weights": self.reader.digest,
                "label": self.label,
                "threshold": self.threshold,
                "refuse": self.reader.refuse_at,
            }
        )
        counts = self.reader.card.get(self.label)
        self.card = JudgeCard(**counts) if counts and self.threshold == 0.5 else None

    @classmethod
    def check_label(cls, label: str) -> None:
        """UsageError unless it is a value that one of the heads has."""
        _split(label, reader().labels)

    def look(self, images: Tensor) -> list[Judgement]:
        """One pass over `images` (B, 3, H, W) uint8."""
        return self.judgements(self.reader.read(images))

    def judgements(self, reading: Reading) -> list[Judgement]:
        """This label's judgements from a reading that other labels share."""
        names = self.reader.labels[self.head]
        column = names.index(self.value)
        answers = []
        for row, refusal in zip(reading.heads[self.head].tolist(), reading.refusal.tolist(), strict=True):
            score = row[column]
            if refusal >= self.reader.refuse_at:
                answers.append(Judgement(None, score, f"cannot tell (unreadable {refusal:.2f})"))
                continue
            best = max(range(len(row)), key=row.__getitem__)
            answers.append(Judgement(score >= self.threshold, score, f"{self.head} {names[best]} {row[best]:.2f}"))
        return answers


def _split(label: str, labels: Mapping[str, list[str]]) -> tuple[str, str]:
    head, _, value = label.partition("=")
    if head not in labels:
        fix = suggestion(head, labels)
        raise UsageError(
            f"judge gallery, label {label!r}", f"before '=' one of the heads: {', '.join(labels)}", repr(head), fix
        )
    if value not in labels[head]:
        expected, fix = f"one of {', '.join(labels[head])} after '{head}='", suggestion(value, labels[head])
        raise UsageError(f"judge gallery, label {label!r}", expected, repr(value), fix)
    return head, value
