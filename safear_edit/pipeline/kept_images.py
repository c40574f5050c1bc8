"""Where the base model's images of an evaluation stay between runs, where all that they are made of ships with us."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit import registry
from safear_edit.compiler.judging import judged_for
from safear_edit.families.load import shipped
from safear_edit.families.reference import ModelRef
from safear_edit.files.atomic import digest_of, sha256_file
from safear_edit.files.cache import recent
from safear_edit.pipeline.environment import PACKAGES, version_of
from safear_edit.spec.spec import load_spec

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import Recipe
    from safear_edit.families.base import ModelFamily

DAYS = 30
"""Images that no run asked for are kept this long; those of a whole evaluation take some 3 MB."""


def kept_images(recipe: Recipe, model: ModelFamily, ref: str) -> Path | None:
    """A folder of the user's cache for what the base model draws of this recipe; None unless `ref` names an embedded
    mini and the spec is a built-in one, word by word: other prompts are their user's own.

    Every run of such a concept begins with the same images, whatever its method. The folder's name is a digest of all
    that decides their bits: the model, this package's sources, its libraries, the machine and its threads. Which
    prompts, seeds, judges and sampling each batch there is of, it says itself (judges/draw.py).
    """
    import torch

    from safear_edit.judges.draw import drawn_by

    if model.card.variant != "mini":
        return None
    named = ModelRef.parse(ref)
    if named.path is not None or not shipped(named) or not _builtin(recipe, model):
        return None
    machine = platform.platform(), torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())
    return recent("base-images", digest_of(recipe.spec.name, *drawn_by(model), program(), *machine), DAYS)


def _builtin(recipe: Recipe, model: ModelFamily) -> bool:
    if recipe.spec.name not in registry.builtin_names("concepts"):
        return False
    own = load_spec(registry.find_builtin("concepts", recipe.spec.name))
    return recipe.spec == judged_for(own, model.card.images)


@cache
def program() -> str:
    """A digest of code and libraries as this process began with them: by others the same prompt and seed may give
    another image, so what one call drew of a model is no counterpart of what the next one draws of its edit."""
    sources = [sha256_file(path) for path in sorted(registry.PACKAGE.rglob("*.py"))]
    versions = [f"{name} {version_of(name)}" for name in PACKAGES]
    return digest_of(*sources, *versions, platform.python_version())
