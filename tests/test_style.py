"""The house rules that a machine can check: layers, imports, sizes, what the wheel carries, what must not be named."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import zipfile
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "safear_edit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 75
"""Lines of a function, docstring included: one screen of a large window."""

LIGHT = ("cli.main", "cli.options", "cli.listing", "files.layout", "progress", "errors",
         "registry", "files.strict", "files.rundir", "files.atomic", "spec.spec", "spec.prompts", "compiler.compile",
         "compiler.recipe", "evaluate.stats", "report.build", "release.keys", "release.signing", "release.claims",
         "release.verify", "gate.rules", "gate.baseline")  # fmt: skip
"""Modules that a person meets before any model is needed."""


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_a_file_says_what_it_is_for() -> None:
    assert not [str(path) for path in SOURCES if not ast.get_docstring(_parsed(path))]
    assert not [str(path) for path in SOURCES if re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text())]


def test_functions_fit_on_a_screen() -> None:
    functions = [(path, n) for path in SOURCES for n in ast.walk(_parsed(path)) if isinstance(n, ast.FunctionDef)]
    assert not [(str(path), f.name) for path, f in functions if (f.end_lineno or 0) - f.lineno >= LONGEST]


def test_layers() -> None:
    """The contracts in pyproject.toml: data flows forward, no cycles, and who must not know whom."""
    tool = str(Path(sys.executable).with_name("lint-imports"))
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_nothing_heavy_before_it_is_needed() -> None:
    modules = ", ".join(f"safear_edit.{name}" for name in LIGHT)
    code = (
        f"import {modules}, sys; print([m for m in ('torch', 'transformers', 'peft', 'open_clip') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_name_that_means_nothing() -> None:
    assert not {p.stem for p in SOURCES} & {"utils", "util", "core", "common", "helpers", "misc"}


@cache
def _prose(path: Path) -> str:
    """What a file says to its reader: docstrings and comments of a program, all of any other file."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    nodes = [n.value for n in ast.walk(_parsed(path)) if isinstance(n, ast.Expr)]
    alone = [n for n in nodes if isinstance(n, ast.Constant)]
    if not re.search(r"#.*\.(py|md)\b", text):  # taking a file apart takes long, and a comment is asked for these alone
        return "\n".join(str(n.value) for n in alone)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join([*(str(n.value) for n in alone), *(t.string for t in tokens if t.type == tokenize.COMMENT)])


TESTS = sorted((ROOT / "tests").rglob("*.py"))
OURS = [f"/{p.relative_to(ROOT)}" for p in (*SOURCES, *TESTS, *(ROOT / "examples").rglob("*.py"))]
SAYING = [*SOURCES, *TESTS, *(p for folder in ("recipes", "concepts") for p in sorted((ROOT / folder).glob("*.yaml")))]
UPSTREAM = {
    "autoregressive/models/generate.py", "chameleon/inference/vqgan.py", "dinosiglip_vit.py", "dynamic_resolution.py",
    "ear_train_*.py", "expand_vocabulary.py", "conversation.py", "image_generation.py", "image_tokenizer.py",
    "inference.py", "inference_i2t.py", "inference_mmu.py", "inference_t2i.py", "mamba2.py", "mamba_vlm.py",
    "models/omnimamba.py", "multimodal_understanding.py", "processing_emu3.py", "sample_t2i.py", "t5.py",
    "tokenizer.py", "tools/run_infinity.py", "vq_model.py", "TRAIN.md", "protocol.md", "test-result.md", "v1.0.md",
}  # fmt: skip
"""Files of published programs and specifications, which are cited beside their URL."""


def test_the_files_that_a_docstring_names_exist() -> None:
    named = {(name, path) for path in SAYING for name in re.findall(r"[\w/*-]+\.py\b", _prose(path))}
    known = [*OURS, *(f"/{name}" for name in UPSTREAM)]
    there = {
        name
        for name in {name for name, _ in named}
        if any(f"/{name}".endswith(file) or file.endswith(f"/{name}") for file in known)
    }
    assert not [(name, str(path)) for name, path in named if name not in there]


def test_no_document_is_cited_that_does_not_ship() -> None:
    """A source is a paper's section or equation, a URL, or said where it is needed."""
    named = {(name, path) for path in SAYING for name in re.findall(r"\b[\w.-]+\.md\b", _prose(path))}
    ships = {"README.md", *UPSTREAM, *(p.name for p in (PACKAGE / "report" / "templates").iterdir())}
    assert not [(name, str(path)) for name, path in named if name not in ships]


def test_no_package_registry_is_named() -> None:
    """Installs take the registry that the machine is set up with."""
    hosts = re.compile(
        "|".join((r"py" + r"pi\.org", r"python" + r"hosted", r"registry\.np" + r"mjs", r"--index" + "-url"))
    )
    tracked = [ROOT / n for n in ("README.md", "Makefile", "pyproject.toml", ".ci/run")]
    for path in [*SOURCES, *tracked, *sorted((ROOT / "tests").glob("*.py"))]:
        assert not hosts.search(path.read_text()), path.name


def test_the_wheel_carries_what_the_program_reads(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {str(p.relative_to(ROOT)) for p in data} <= names
    for folder in ("concepts", "recipes"):
        wanted = {f"safear_edit/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*.yaml")}
        assert wanted and wanted <= names
    assert "safear_edit/concepts/sets/gallery/style.yaml" in names
    assert any(n.endswith("licenses/safear_edit/gallery/objects/NOTICE") for n in names)
