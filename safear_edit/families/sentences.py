"""Sentence vectors, each computed once on a machine: `plan` and `init --from` compare the same prompts again and again.

They are kept in the user's cache by the digests of the encoder's weights and of the text. A file that is damaged, of
another encoder or gone costs time alone; so does a write that another process replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.families.text import MINILM_SHA256, MINILM_WIDTH, minilm
from safear_edit.files.atomic import digest_of
from safear_edit.files.cache import user_cache
from safear_edit.files.weights import write_weights
from safear_edit.spec.prompts import Similarity

ROWS = 64
"""Sentences that are encoded together."""
MOST = 50_000
"""Vectors that are kept (80 MB); beyond them those of the call at hand alone."""
DIGESTS, VECTORS = "digests", "vectors"
"""Tensors of the file: sha256 of each text (N, 32) uint8, and its vector (N, 384) float32."""


def similarity() -> Similarity:
    """Cosine of MiniLM sentence vectors, (a, b)."""
    known = Sentences.of_user()
    return lambda a, b: (known.vectors(a) @ known.vectors(b).T).tolist()


class Sentences:
    """Unit vectors of MiniLM by text, those of earlier calls in `folder` (None: nothing is kept)."""

    def __init__(self, folder: Path | None) -> None:
        self.file = folder and folder / f"minilm-{MINILM_SHA256[:16]}.safetensors"
        self._known = _read(self.file) if self.file else {}

    @classmethod
    def of_user(cls) -> Sentences:
        """Those in the user's cache."""
        return cls(user_cache("sentences"))

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(B, 384); rows of equal texts are equal."""
        names = {text: digest_of(text) for text in texts}
        if new := sorted((text for text, name in names.items() if name not in self._known), key=len):
            for start in range(0, len(new), ROWS):
                part = new[start : start + ROWS]
                self._known |= {names[text]: row for text, row in zip(part, minilm().vectors(part), strict=True)}
            self._save({names[text] for text in texts})
        return torch.stack([self._known[names[text]] for text in texts])

    def _save(self, used: set[str]) -> None:
        if self.file is None:
            return
        kept = self._known if len(self._known) <= MOST else {name: self._known[name] for name in used}
        digests = torch.frombuffer(bytearray.fromhex("".join(kept)), dtype=torch.uint8).reshape(-1, 32)
        with suppress(OSError, UsageError):  # a full disk, a cache that is read only
            write_weights(self.file, {DIGESTS: digests, VECTORS: torch.stack([*kept.values()])})


def _read(file: Path) -> dict[str, Tensor]:
    """What `_save` wrote, by digest of the text; nothing for a file that is anything else."""
    try:
        with safe_open(file, "pt") as found:
            digests, vectors = found.get_tensor(DIGESTS), found.get_tensor(VECTORS)
    except (OSError, SafetensorError):
        return {}
    rows = len(digests)
    if (digests.shape, vectors.shape) != ((rows, 32), (rows, MINILM_WIDTH)) or digests.dtype != torch.uint8:
        return {}
    if vectors.dtype != torch.float32 or not bool(((vectors.norm(dim=1) - 1).abs() < 1e-3).all()):
        return {}
    return {bytes(name).hex(): row for name, row in zip(digests.tolist(), vectors, strict=True)}
