"""Let atheris, which watches which lines an input reaches, search the readers of single files (extra `fuzz`).

    python -m safear_edit.studies fuzz_guided "prompts csv" --seconds 60 --corpus found
    python -m safear_edit.studies fuzz_guided baseline --release DIR --corpus found

Beside `fuzz`, which breaks one thing at a time: here bytes grow towards code that no input has reached yet. The process
ends with atheris's own exit code, 0 if nothing was found; what was read wrongly lies in the working directory as
`crash-*`. One target a call, for libFuzzer's state belongs to the process (https://github.com/google/atheris).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from safear_edit.errors import UsageError
from safear_edit.studies.arguments import positive
from safear_edit.studies.fuzz import MEMORY, SLOW, Target, file_targets, model_targets, release_targets

TARGETS = ("attacks.lock", "base recipe", "environment's key", "image jpg", "image png", "image webp", "images",
           "pairs", "prompts csv", "prompts json", "prompts jsonl", "prompts tsv", "prompts txt", "public key",
           "safetensors", "spec")  # fmt: skip
ON_MODELS = ("janus config.json", "janus tokenizer.json", "janus tokenizer_config.json")
ON_RELEASE = ("baseline", "claims", "model.sig", "outcomes.jsonl", "recipe.json", "report.json")
"""Readers of one file, by fuzz's names; a pickle's runs in another process, where nothing could be watched."""


def reading(target: Target, scratch: Path) -> Callable[[bytes], None]:
    """What is called with every input: it raises whatever the reader raises that it may not.

    Of a folder, one file is what the input says, and the others are the sample's.
    """
    place = scratch / target.sample.name
    if target.file:
        shutil.copytree(target.sample, place)

    def one(data: bytes) -> None:
        (place / target.file).write_bytes(data)
        target.read(place)

    return one


def main(arguments: Sequence[str] | None = None) -> int:
    """Search until the time is up; atheris ends the process. Exit code 2 without atheris."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies fuzz_guided", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, *ON_MODELS, *ON_RELEASE])
    parser.add_argument("--release", type=Path, help=f"a signed release, for {', '.join(ON_RELEASE)}")
    parser.add_argument("--seconds", type=positive, default=60)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of inputs that reach new code; it is kept")
    options = parser.parse_args(arguments)
    if options.target in ON_RELEASE and not (options.release and (options.release / "model.sig").is_file()):
        parser.error(f"{options.target} needs --release DIR, a signed release")
    try:
        import atheris
    except ImportError:
        parser.error("atheris isn't installed: pip install safear-edit[fuzz], on Linux")
    options.corpus.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="safear-guided-"))  # libFuzzer ends the process: nobody could remove it
    (folder / "samples").mkdir()
    with atheris.instrument_imports(include=["safear_edit"]):
        found = file_targets(folder / "samples")
        if options.target in ON_MODELS:
            found += model_targets(folder / "samples")
        if options.target in ON_RELEASE:
            found += release_targets(options.release, folder / "samples")
        target = next((one for one in found if one.name == options.target), None)
    if target is None:
        raise UsageError(str(options.release), f"a release that has {options.target}", "none", "give another one")
    sample = target.sample / target.file
    shutil.copyfile(sample, options.corpus / f"sample{sample.suffix}")
    limits = [f"-max_total_time={options.seconds}", f"-timeout={SLOW}", f"-rss_limit_mb={MEMORY >> 20}"]
    atheris.Setup([sys.argv[0], *limits, str(options.corpus)], reading(target, folder))
    atheris.Fuzz()
    return 0
