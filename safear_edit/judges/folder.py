"""The reference-folder judge: which of a user's own folders of images lies nearest, in the space of a CLIP.

For what no word describes well (a client's logo, an unnamed artist's hand): a folder of images for every label. What
lies in them are references and no evidence; images that are judged must be others.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.files.images import read_image
from safear_edit.judges.base import (
    Judge,
    Judgement,
    checked_images,
    checked_threshold,
    file_digest,
    settings_digest,
)
from safear_edit.judges.clip import GALLERY, ClipJudge, load_clip
from safear_edit.registry import judge, suggestion
from safear_edit.spec.spec import Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TEMPERATURE = 0.07
"""Of the vote: a neighbour weighs exp(cosine / 0.07), as DINO's (https://arxiv.org/abs/2104.14294, section 4.1)."""
NEIGHBOURS = 20
"""References that vote, the best of DINO's range; all, where there are fewer."""


@judge("folder")
class FolderJudge(Judge):
    """Nearest reference images: the share of the vote that comes from the label's own subfolder.

    options: folder, with a subfolder of images for each label ("style=monet" finds `style=monet` or `monet`); model and
    weights as judge clip takes them.
    """

    images = ("gallery", "real")  # by its CLIP

    def __init__(
        self,
        label: str,
        *,
        threshold: float | None = None,
        folder: str = "",
        model: str = GALLERY,
        weights: str | None = None,
    ) -> None:
        own, every = _labelled(label, folder)
        self.threshold = checked_threshold("folder", 0.5 if threshold is None else threshold)
        self.clip = load_clip(model, weights)
        self.label = label
        self.id = f"folder[{self.clip.name}]:{label}@{self.threshold:g}"
        found = [(path, name == own) for name, paths in every.items() for path in paths]
        files = sorted((file_digest(path), mine) for path, mine in found)
        self.references = frozenset(digest for digest, _ in files)
        self.digest = settings_digest({"weights": self.clip.digest, "files": files, "threshold": self.threshold})
        digests = tuple(file_digest(path) for path, _ in found)
        self._features = _features(tuple(path for path, _ in found), digests, model, weights)
        self._own = torch.tensor([mine for _, mine in found])

    @classmethod
    def check(cls, label: str, options: Mapping[str, Any]) -> None:
        """UsageError unless the folder has images of the label and of something else."""
        _labelled(label, str(options.get("folder", "")))

    @classmethod
    def check_images(cls, images: Images, options: Mapping[str, Any]) -> None:
        """As its CLIP's."""
        ClipJudge.check_images(images, options)

    @classmethod
    def missing(cls, options: Mapping[str, Any]) -> str:
        """As its CLIP's."""
        return ClipJudge.missing(options)

    def look(self, images: Tensor) -> list[Judgement]:
        """The vote of the nearest references for (B, 3, H, W) uint8 RGB."""
        checked_images("folder", images)
        if not len(images):
            return []
        near, which = (self.clip.images(images) @ self._features.T).topk(min(NEIGHBOURS, len(self._features)))
        shares = ((near / TEMPERATURE).softmax(-1) * self._own[which]).sum(-1).clamp(0, 1)
        return [
            Judgement(share >= self.threshold, share, f"{share:.2f} of the vote, nearest {nearest:.2f}")
            for share, nearest in zip(shares.tolist(), near[:, 0].tolist(), strict=True)
        ]


def _labelled(label: str, folder: str) -> tuple[str, dict[str, list[Path]]]:
    """The label's subfolder, and the images of every subfolder; UsageError unless both it and another have some."""
    root = Path(folder)
    if not folder or not root.is_dir():
        raise UsageError("judge folder", "options.folder, a folder", repr(folder) if folder else "none", "give one")
    every = {part.name: images_below(part) for part in sorted(root.iterdir()) if part.is_dir()}
    every = {name: paths for name, paths in every.items() if paths}
    own = next((name for name in (label, label.partition("=")[2]) if name in every), None)
    if own is None:
        expected = f"a subfolder with images of it in {folder}"
        got, fix = ", ".join(every) or "none", suggestion(label.rpartition("=")[2], every)
        raise UsageError(f"judge folder, label {label!r}", expected, got, fix)
    if len(every) < 2:
        expected = f"a subfolder of {folder} with images of something else"
        raise UsageError(f"judge folder, label {label!r}", expected, "none", "add what it must be told from")
    return own, every


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and those below it, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def read_tensor(path: Path) -> Tensor:
    """One image (3, H, W) uint8 RGB; SpecError as `read_image`."""
    import numpy as np

    return torch.from_numpy(np.array(read_image(path, str(path)))).permute(2, 0, 1)


@lru_cache(maxsize=2)
def _features(paths: tuple[Path, ...], digests: tuple[str, ...], model: str, weights: str | None) -> Tensor:
    """Unit features (n, C) of the references, which every label of a folder shares; digests: theirs, by which a file
    that was replaced is another."""
    clip = load_clip(model, weights)
    return torch.cat([clip.images(read_tensor(path)[None]) for path in paths])
