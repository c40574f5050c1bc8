"""A judge that tosses a coin, and the tiny world that it judges: what tests of whole walks stand on.

No rate means anything there; order, files, weights and what is said do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import yaml
from torch import Tensor

from safear_edit import registry
from safear_edit.families.base import ModelFamily
from safear_edit.families.llamagen import LlamaGen
from safear_edit.judges.base import Judge, Judgement
from safear_edit.spec.spec import load_spec

ENTRY = registry.Entry("judges", "coin", __name__, "Coin", "tosses", "a test")


SUBJECTS = 8
"""Of a world with few prompts: each is expanded, halved and ordered in every walk, whatever is drawn of them."""


class Coin(Judge):
    """Heads or tails by the bytes of the image and the label."""

    def __init__(self, label: str, threshold: float | None = None) -> None:
        self.id, self.threshold = f"coin:{label}", 0.5
        self.digest, self.label = hashlib.sha256(label.encode()).hexdigest(), label

    def look(self, images: Tensor) -> list[Judgement]:
        seen = [hashlib.sha256(self.label.encode() + image.numpy().tobytes()).digest()[0] / 255 for image in images]
        return [Judgement(score > 0.5, score, "tossed") for score in seen]


def third_party(kind: registry.Kind) -> Iterator[registry.Entry]:
    """In the place of `registry._third_party`: the coin is installed, and nothing else."""
    return iter([ENTRY] if kind == "judges" else [])


def install(site: Path) -> None:
    """Make the coin a package of `site`, for programs that have it and this checkout on their PYTHONPATH."""
    about = site / "coin-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: coin\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[safear_edit.judges]\ncoin = {__name__}:Coin\n")


def make_world(root: Path, *concepts: str, model: type[ModelFamily] = LlamaGen, n: int | None = None) -> None:
    """Write the folder `base`, a random tiny model, and NAME.yaml for each built-in concept, which the coin judges.

    n: prompts of each preserved group, and a few subjects alone to make prompts of; None: as the concept has them.
    """
    (root / "base").mkdir()
    model.pico(seed=0).export(root / "base")
    for name in concepts:
        data = load_spec(registry.find_builtin("concepts", name)).model_dump(mode="json")
        data["judge"]["use"] = "coin"
        for group in data["preserve"] if n else ():
            group["n"], group["subjects"] = n, group["subjects"][:SUBJECTS]
        if n:
            data["erase"]["subjects"] = data["erase"]["subjects"][:SUBJECTS]
        (root / f"{name}.yaml").write_text(yaml.safe_dump(data))
