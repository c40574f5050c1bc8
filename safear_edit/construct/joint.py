"""The training material of a joint edit: that of several concepts, as a method takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from safear_edit.compiler.questions import TrainingQuestions
from safear_edit.construct.pairs import Keep, Material, Pairs
from safear_edit.construct.pairs_record import PairStats


def merged(name: str, several: Sequence[Material]) -> Material:
    """The material of several concepts as that of one; of one its own. What some share to be kept is kept once.

    Kept prompts and pairs were drawn by one model, each prompt from its own seed, so a shared one has one image.
    """
    if len(several) == 1:
        return several[0]
    pairs = [material.pairs for material in several]
    reasons = sum((Counter(part.stats.reasons) for part in pairs), Counter[str]())
    stats = PairStats(sum(p.stats.made for p in pairs), sum(p.stats.kept for p in pairs), dict(reasons))
    both = Pairs(
        [text for part in pairs for text in part.unsafe],
        [text for part in pairs for text in part.safe],
        [seed for part in pairs for seed in part.seeds],
        torch.cat([part.unsafe_ids for part in pairs]),
        torch.cat([part.safe_ids for part in pairs]),
        stats,
    )
    kept = {
        prompt: (ids, mark)
        for keep in (material.keep for material in several)
        if keep
        for prompt, ids, mark in zip(keep.prompts, keep.ids, keep.guards or (False,) * len(keep), strict=True)
    }
    images, marks = [ids for ids, _ in kept.values()], tuple(mark for _, mark in kept.values())
    asked = [material.questions for material in several if material.questions]
    about = tuple(dict.fromkeys(text for part in asked for text in part.concept))
    rest = tuple(dict.fromkeys(text for part in asked for text in part.others if text not in about))
    return Material(
        name,
        both,
        Keep([*kept], torch.stack(images), marks if any(marks) else None) if kept else None,
        questions=TrainingQuestions(about, rest, asked[0].erase) if asked else None,
        prompt=", ".join(material.prompt or material.concept for material in several),
        parts=tuple(several),
    )
