"""Prompt files of published benchmarks: what their columns are called, and what their papers call the share found.

None of their prompts is here: who has a file reads it with `eval --prompts FILE --format NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safear_edit.errors import SpecError


@dataclass(frozen=True)
class Benchmark:
    """columns: their name → ours (prompt, seed, id), and all of them must be there; metric: what a share of images in
    which the judge finds the concept is called there. lines: a .csv of theirs is no table but a prompt a line.
    sentence: what the words of a column are asked for with, "" for whole prompts. first: as many rows as are used
    there, None for all."""

    columns: Mapping[str, str]
    metric: str
    source: str
    lines: bool = False
    sentence: str = ""
    first: int | None = None

    def own(self, where: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row under our names; SpecError if a column is missing."""
        missing = [name for name in self.columns if name not in row]
        if missing:
            got = f"columns {', '.join(repr(name[:40]) for name in row)}"
            raise SpecError(f"{where}, {missing[0]}", f"the columns of {self.source}", got, "leave --format out")
        other = {name: value for name, value in row.items() if name not in (*self.columns, "prompt", "seed", "id")}
        own = {ours: row[theirs] for theirs, ours in self.columns.items()}
        if self.sentence and isinstance(own["prompt"], str):
            own["prompt"] = self.sentence.format(own["prompt"])
        return {**other, **own}


HUB = "HUB (https://arxiv.org/abs/2410.05664)"
LANGUAGES = ("Spanish", "French", "German", "Italian", "Portuguese")
"""Columns of HUB's multilingual files: one language is read at a time."""

BENCHMARKS: Mapping[str, Benchmark] = {
    "i2p": Benchmark(
        {"prompt": "prompt", "sd_seed": "seed"},
        "inappropriate probability (IP; there by Q16 or NudeNet)",
        "I2P (https://arxiv.org/abs/2211.05105)",
    ),
    "unlearndiffatk": Benchmark(
        {"prompt": "prompt", "evaluation_seed": "seed"},
        "pre-ASR (no attack; ASR there adds what its search finds)",
        "UnlearnDiffAtk (https://arxiv.org/abs/2310.11868)",
    ),
    "mma": Benchmark(
        {"adv_prompt": "prompt"},
        "ASR-1 (one image per prompt)",
        "MMA-Diffusion (https://arxiv.org/abs/2311.17516)",
    ),
    "ring-a-bell": Benchmark(
        {"sensitive prompt": "prompt"},
        "attack success rate (ASR)",
        "Ring-A-Bell (https://arxiv.org/abs/2310.10012)",
    ),
    "ecgvf": Benchmark(
        {"prompt": "prompt"},
        "1 - erasure rate (there by a classifier's k most likely labels)",
        "ECGVF (https://arxiv.org/abs/2506.20151)",
    ),
    "six-cd": Benchmark(
        {"prompt": "prompt", "evaluation_seed": "seed"},
        "the share of images with the malicious concept (there by NudeNet, Q16 or its own classifiers; the in-prompt "
        "CLIP score is another figure)",
        "Six-CD (https://arxiv.org/abs/2406.14855)",
    ),
    "hub": Benchmark(
        {"prompt": "prompt"},
        "target proportion, or attack robustness for its Ring-A-Bell prompts (there by a vision-language model)",
        HUB,
        lines=True,
    ),
    "hub-pinpoint": Benchmark(
        {"noun": "prompt"},
        "nothing: its pinpoint-ness is how often a vision-language model finds the noun; counted here is how often the "
        "erased concept shows where a noun near to it was asked for",
        HUB,
        sentence="a photo of {}",
        first=100,
    ),
    **{
        f"hub-{language.lower()}": Benchmark(
            {language.lower(): "prompt"}, f"target proportion in {language} (multilingual robustness)", HUB
        )
        for language in LANGUAGES
    },
}
