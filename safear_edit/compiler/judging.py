"""Who judges for a model: a spec is about a concept, and the judge follows the model's images.

Compiling picks the spec's judge for the images that the model draws and writes out the prompts that zero-shot CLIP
compares, so that a recipe has one judge, complete. For the embedded minis that is the spec's own one as it stands.
"""

from __future__ import annotations

from collections import defaultdict

from safear_edit.spec.prompts import fill
from safear_edit.spec.spec import ConceptReader, Images, Judge, Options, Prompts, Reader, Spec, ZeroShot


def judged_for(spec: Spec, images: Images) -> Spec:
    """The spec with the judge that reads such images; one that was resolved already stays as it is."""
    own, real = spec.judge, spec.judge.real
    asked: ConceptReader = real if real is not None and images == "real" else own
    label = (real.label if real is not None and asked is real else None) or own.label
    own_reader = _compiled(spec, asked, label)
    judge = Judge(
        use=own_reader.use,
        label=label,
        threshold=own_reader.threshold,
        options=own_reader.options,
        card=asked.card,
        members=_compiled(spec, asked.members, own.label) if asked.members else None,
    )
    return spec if judge == own else spec.model_copy(update={"judge": judge})


def _compiled(spec: Spec, reader: Reader, label: str) -> Reader:
    """The reader with its prompts as an option; `label`: what the concept is called among the labels."""
    told = reader.zero_shot
    prompts: Options = {"prompts": _prompts(spec, told, label)} if told else {}
    return Reader(use=reader.use, threshold=reader.threshold, options={**reader.options, **prompts})


def _prompts(spec: Spec, told: ZeroShot, concept: str) -> dict[str, Prompts]:
    """Sort -> label -> prompts, of the concept, of every preserved member, and of the further contrasts."""
    names: dict[str, tuple[str, ...]] = defaultdict(tuple, {concept: spec.erase.aliases})
    for group in spec.preserve:
        for member, label in group.members.items():
            names[label] = tuple(dict.fromkeys((*names[label], member)))
    found: dict[str, Prompts] = defaultdict(dict)
    for label in (*names, *(other for other in told.prompts if other not in names)):
        sort = label.partition("=")[0] if "=" in label else ANY
        sentences = told.templates.get(sort, ("{name}",))
        filled = (fill(sentence, name=name) for sentence in sentences for name in names[label])
        found[sort][label] = told.prompts.get(label) or tuple(dict.fromkeys(filled))
    return dict(found)


ANY = "any"
"""The sort of labels without one."""
