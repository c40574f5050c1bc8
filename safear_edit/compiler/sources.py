"""Where each number of a base recipe is from: the comment beside it in recipes/<name>.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping

from safear_edit.compiler.recipe import BaseRecipe, load_base_recipe
from safear_edit.registry import builtin_names, find_builtin

OURS = ("ours", "not in the paper", "the method's default")
"""How a comment begins that names no paper and no released code."""
_KEY = re.compile(r'^(?P<indent> *)(?:"(?P<quoted>[^"]+)"|(?P<plain>\w+)):(?P<rest>.*)$')


def comments(text: str) -> dict[str, str]:
    """The comment beside each key of a recipe, by "section.key"; a comment goes on in lines that hold nothing else."""
    found, section, last = dict[str, str](), "", ""
    for line in text.splitlines():
        if match := _KEY.match(line):
            key = match["quoted"] or match["plain"]
            if not match["indent"]:
                section, last = key, ""
                continue
            last = f"{section}.{key}" if len(match["indent"]) == 2 else ""
            if last and " #" in match["rest"]:
                found[last] = match["rest"].partition(" #")[2].strip()
        elif last in found and line.lstrip().startswith("#"):
            found[last] += f" {line.strip(' #')}"
    return found


def notes_of(recipe: str) -> dict[str, str]:
    """The comments of a built-in recipe; none of another."""
    if recipe not in builtin_names("recipes"):
        return {}
    return comments(find_builtin("recipes", recipe).read_text(encoding="utf-8"))


def source_of(section: str, name: str, base: BaseRecipe, ref: str, notes: Mapping[str, str]) -> tuple[str, str]:
    """(which entry of `models` gives the model `ref` this number, "" for none; the comment that stands there)."""
    found = "", notes.get(f"{section}.{name}", OURS[-1])
    for pattern, instead in base.models.items():
        if name in getattr(instead, section) and base.applies(pattern, ref):
            found = pattern, notes.get(f"models.{pattern}", "")
    return found


def reconstructed(recipe: str, ref: str) -> tuple[str, ...]:
    """Numbers of a built-in recipe that no paper and no released code gives: they are this project's choice."""
    base, notes = load_base_recipe(recipe), notes_of(recipe)
    return tuple(name for name in base.params if source_of("params", name, base, ref, notes)[1].startswith(OURS))
