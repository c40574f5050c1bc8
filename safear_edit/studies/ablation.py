"""What each ingredient of VCE adds: `safear-edit compare` with one ingredient taken away at a time.

`python -m safear_edit.studies ablation concepts/picasso.yaml --model llamagen --folder runs/ablation` prints the table
of pipeline/compared.py and leaves all that `compare` leaves in the folder; a killed run continues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safear_edit.pipeline import compared
from safear_edit.pipeline.compare import compare
from safear_edit.progress import Progress, mode_for
from safear_edit.studies.arguments import positive

VARIANTS = (
    "vce",
    "vce:average=token",
    "vce:token_drop=0.0",
    "vce:caption_drop=0.0",
    "vce:anchor_weight=0.0",
    "vce:keep_weight=0.0",
    "dpo",
    "sft",
)
"""VCE whole; its loss averaged per token; without token drop, caption drop, anchor, keep term; and without all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table; 2 if a variant failed."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies ablation", description=__doc__)
    parser.add_argument("specs", metavar="SPEC", nargs="+", help="a file or a built-in concept's name")
    parser.add_argument("--model", default="llamagen")
    parser.add_argument("--folder", type=Path, required=True, help="as `safear-edit compare --out`")
    parser.add_argument("--seeds", type=positive, default=3, help="seeds 0 … N-1")
    options = parser.parse_args(arguments)
    with Progress(mode_for(sys.stderr, quiet=False)) as progress:
        found = compare(options.specs, options.model, VARIANTS, options.folder, seeds=options.seeds, progress=progress)
    print(compared.table(compared.summaries(found.ran)))
    for name, why in found.failed:
        print(f"{name} failed: {why}", file=sys.stderr)
    return 2 if found.failed else 0
