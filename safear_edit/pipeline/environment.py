"""Machine, versions and source commit of a run."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safear_edit.redact import clean_environment, redact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safear_edit.compiler.recipe import Recipe
    from safear_edit.families.base import ModelFamily
    from safear_edit.release.keys import SigningKey
    from safear_edit.report.evidence import SourceCommit


def version_of(package: str) -> str | None:
    """The installed version, None if the package is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment(
    model: ModelFamily, recipes: Sequence[Recipe], command: str, started: datetime, key: SigningKey | None
) -> dict[str, Any]:
    """Machine, versions, plug-ins, command and signer, for the report: what a second person needs to repeat the run."""
    import torch

    from safear_edit.compiler.plugins import plugins_of
    from safear_edit.release.keys import THROWAWAY
    from safear_edit.report.evidence import Machine, Signer
    from safear_edit.report.schema import EncoderFile

    encoder = model.encoder_origin()
    machine = Machine(
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        command=redact(command),
        platform=platform.platform(),
        python=sys.version.split()[0],
        device=str(model.device),
        threads=str(torch.get_num_threads()),
        deterministic="same recipe, same machine and versions: same weights; other machines differ in rounding",
        git=_git(),
        packages={name: version_of(name) or "not installed" for name in PACKAGES},
        plugins=plugins_of(model.card.family, recipes),
        text_encoder=EncoderFile(name=encoder[0], sha256=encoder[1]) if encoder else None,
        signer=Signer(key=key.hint, thrown_away=key.origin == THROWAWAY) if key else "none",
    )
    return machine.model_dump(mode="json")


PACKAGES = ("accelerate", "numpy", "open_clip_torch", "peft", "safear-edit", "safetensors", "tokenizers", "torch",
            "torchvision", "transformers")  # fmt: skip


def _git() -> SourceCommit | None:
    """Commit of the source checkout, None for an installed package."""
    from safear_edit.report.evidence import SourceCommit

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False).stdout

    return SourceCommit(commit=ask("rev-parse", "HEAD").strip(), dirty=bool(ask("status", "--porcelain").strip()))
