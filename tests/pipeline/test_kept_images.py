"""Which runs share what the base model drew: those of a built-in spec on an embedded mini, by one code and machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from safear_edit import registry
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from safear_edit.families.base import ModelFamily
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.load import load_model
from safear_edit.pipeline import kept_images as own
from safear_edit.pipeline.kept_images import DAYS, kept_images
from safear_edit.spec.spec import load_spec


@pytest.fixture(scope="module")
def model() -> ModelFamily:
    return load_model("llamagen")


def recipe_for(model: ModelFamily, *overrides: str, method: str = "vce") -> Recipe:
    spec = load_spec(registry.find_builtin("concepts", "picasso"))
    return compile_recipe(spec, model.card, load_base_recipe(method), overrides=overrides)


def test_only_built_in_specs_on_a_mini_by_its_name_are_kept(
    model: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = recipe_for(model, "construct.pairs=16")
    kept = kept_images(recipe, model, "llamagen:mini")
    assert kept is not None and kept.parent == tmp_path / "safear-edit" / "base-images"
    assert kept_images(recipe_for(model, method="sft"), model, "llamagen:mini") == kept, "whatever is edited how"
    assert kept_images(recipe_for(model, "evaluate.n.direct=6"), model, "llamagen:mini") is None
    (folder := tmp_path / "folder").mkdir()
    LlamaGen.pico().export(folder)
    assert kept_images(recipe, model, str(folder)) is None
    assert kept_images(recipe, LlamaGen.pico(), "llamagen:pico") is None, "a name that a stack has, and --model has not"


def test_other_code_threads_or_versions_have_a_folder_of_their_own_and_old_ones_go(
    model: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = recipe_for(model)
    first = kept_images(recipe, model, "llamagen:mini")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        threads = kept_images(recipe, model, "llamagen:mini")
    with monkeypatch.context() as patch:
        patch.setattr(own, "version_of", lambda package: "0")
        own.program.cache_clear()
        versions = kept_images(recipe, model, "llamagen:mini")
    with monkeypatch.context() as patch:
        patch.setattr(own, "sha256_file", lambda path: "0" * 64)
        own.program.cache_clear()
        code = kept_images(recipe, model, "llamagen:mini")
    own.program.cache_clear()
    assert first is not None and threads is not None and len({first, threads, versions, code}) == 4
    long_ago = time.time() - (DAYS + 1) * 86400
    os.utime(first, (long_ago, long_ago))
    os.utime(threads, (long_ago, long_ago))
    assert kept_images(recipe, model, "llamagen:mini") == first and first.is_dir() and not threads.exists()


def test_a_cache_that_cannot_be_made_keeps_nothing(
    model: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kept_images(recipe_for(model), model, "llamagen:mini") is None
