"""Content clusters: evaluation prompts that ask for the same thing in other words are no independent evidence.

250 prompts of a style are about 60 objects in scenes, each worded several times. If the edit fails on one content, it
may fail on all of its wordings, and an interval over 250 prompts is then too narrow. A cluster is one content: the
subject of an erased concept's prompt, the label with the subject of a preserved group's. A prompt that the spec's
templates don't give is a cluster by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from safear_edit.compiler.recipe import Recipe
from safear_edit.spec.pools import Pools
from safear_edit.spec.prompts import Prompt, normalise


def contents(recipe: Recipe, found: Pools) -> Mapping[str, str]:
    """Prompt id → its content cluster, within its slice; `found`: the prompts of the recipe's spec."""
    pool: dict[str, list[Prompt]] = {
        "direct": found.direct,
        "paraphrase": found.paraphrase,
        "template": found.template,
        **found.preserve,
    }
    subjects = {name: {normalise(one.text): one.subject for one in several} for name, several in pool.items()}
    return {
        prompt.id: _content(subjects.get(prompt.slice, {}).get(normalise(prompt.prompt)), prompt.judge_label, prompt.id)
        for prompt in recipe.evaluate.prompts
    }


def ways(recipe: Recipe, found: Pools) -> Mapping[str, tuple[str, str]]:
    """Prompt id → by which name and in which sentence it asks for the concept; not for a prompt that the spec's
    templates don't give, nor for one of a preserved group. `found`: as for `contents`."""
    spec = recipe.spec
    pool = {"direct": found.direct, "paraphrase": found.paraphrase, "template": found.template}
    forms = dict.fromkeys(pool, spec.erase.templates) | {"template": spec.paraphrases.held_out_templates}
    asked = {
        (key, normalise(one.text)): (f"the name {one.name}", f"the sentence {forms[key][one.template]}")
        for key, several in pool.items()
        for one in several
    }
    keys = {prompt.id: (prompt.slice, normalise(prompt.prompt)) for prompt in recipe.evaluate.prompts}
    return {name: asked[key] for name, key in keys.items() if key in asked}


def _content(subject: str | None, label: str, prompt: str) -> str:
    return prompt if subject is None else f"{label}|{subject}"
