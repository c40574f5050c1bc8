"""What `safear_edit` exports: complete, sorted, lazy, documented; and the example that uses it runs."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import safear_edit
from safear_edit.files.strict import parse_value
from safear_edit.pipeline import api
from tests import ROOT


def test_every_public_name_is_there_sorted_and_documented() -> None:
    assert safear_edit.__all__ == sorted(safear_edit.__all__)
    assert set(safear_edit.__all__) == set(safear_edit._HOME) <= set(dir(safear_edit))
    for name in safear_edit.__all__:
        value = getattr(safear_edit, name)
        assert value.__name__ == name and value.__doc__, name


def test_type_checkers_see_what_is_loaded() -> None:
    """The imports for type checkers name the same things, from the same modules, as the table for the interpreter."""
    tree = ast.parse((ROOT / "safear_edit" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for node in block.body if isinstance(node, ast.ImportFrom))
    told = {alias.name: f"{node.module}".removeprefix("safear_edit.") for node in imports for alias in node.names}
    assert told == safear_edit._HOME
    assert (ROOT / "safear_edit" / "py.typed").exists()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = safear_edit.nothing


def test_overrides_are_said_as_the_command_line_says_them() -> None:
    given = {"params.steps": 60, "params.adversarial": True, "construct.captioner": None, "params.average": "token"}
    order = api._order("picasso", "llamagen", "vce", 0, {**given, "x.y": (0, 1), "x.z": ["😀"]}, "cpu")
    values = [parse_value(text.partition("=")[2], "") for text in order.overrides]
    assert values == [*given.values(), [0, 1], ["😀"]]


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, safear_edit; print(len([m for m in sys.modules if m.startswith(('torch', 'pydantic', 'numpy'))]))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"


def test_no_name_is_hidden_by_a_folder_of_the_package() -> None:
    """Importing a folder sets an attribute of its name on the package, over what the package exports."""
    folders = {path.parent.name for path in (ROOT / "safear_edit").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "safear_edit").glob("*.py")}
    assert not (folders | modules) & set(safear_edit.__all__)


@pytest.mark.soak
def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = ROOT / "examples" / "api.py"
    assert len(program.read_text().splitlines()) <= 32
    runpy.run_path(str(program))["main"](tmp_path)
    told = capsys.readouterr().out
    assert "Picasso: 12 pairs" in told and "(signed)" in told and "finds it in" in told
    assert (tmp_path / "safe" / "report.html").exists()
