"""Foreign code that takes part in a recipe is named with distribution, version and file digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from safear_edit.cli.listing import listing
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.plugins import plugins_of
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from tests.compiler.test_compile import SMALL, Card, Numbers, concept
from tests.test_registry import add_plugin

CODE = '''
"""A method that somebody else wrote."""


class Mine:
    """Moves every weight a little (a test)."""
'''


def small() -> Recipe:
    return compile_recipe(concept("picasso"), Card(), load_base_recipe("vce"), sampling=Numbers(), overrides=SMALL)


def test_nothing_foreign_nothing_named() -> None:
    assert plugins_of("llamagen", [small()]) == ()


def test_a_plugin_is_named_with_its_version_and_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_plugin(monkeypatch, tmp_path, "[safear_edit.families]\nmine = toy_plugin:Mine\n", CODE)
    (found,) = plugins_of("mine", [small(), small()])
    assert (found.kind, found.name, found.distribution, found.version) == ("families", "mine", "toy-plugin", "1.0")
    assert found.module == "toy_plugin"
    assert found.sha256 == hashlib.sha256((tmp_path / "toy_plugin.py").read_bytes()).hexdigest()


def test_a_listed_plugin_shows_its_docstring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_plugin(monkeypatch, tmp_path, "[safear_edit.methods]\nmine = toy_plugin:Mine\n", CODE)
    (row,) = (row for row in listing("methods") if row.name == "mine")
    assert row.summary == "Moves every weight a little (a test). (from toy-plugin)" and row.source == "toy-plugin"
