"""examples/plugin: a method in a package of its own, installed, listed, used, and named by the release that it made."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT, coin
from tests.programs import run_all

SMALL = ("params.steps=2", "construct.pairs=60", "construct.keep=6", "evaluate.n.direct=8", "evaluate.n.paraphrase=4",
         "evaluate.n.template=4")  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example is installed beside the program; nothing is fetched for it."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(ROOT / "examples" / "plugin")], check=True)
    coin.install(target)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(target)]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def ran(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What `ls methods` prints there, and the release that the method then makes."""
    folder = tmp_path_factory.mktemp("ran")
    coin.make_world(folder, "picasso", n=2)
    sets = [word for value in SMALL for word in ("--set", value)]
    about = ["--model", "./base", "--method", "unlikelihood", "--unsigned", "-q"]
    apply = ["apply", "picasso.yaml", *about, "--out", "out", *sets]
    listed, applied = run_all([["ls", "methods"], apply], folder, installed)
    assert listed.code == 0 and applied.code in (0, 1, 3), applied.err
    return listed.out.decode(), folder / "out"


@pytest.mark.soak
def test_its_docstring_is_listed(ran: tuple[str, Path]) -> None:
    listed, _ = ran
    assert "unlikelihood" in listed and all(word in listed for word in ("Each token of the", "unsafe image", "becomes"))
    assert len((ROOT / "examples/plugin/safear_unlikelihood.py").read_text().splitlines()) <= 32


@pytest.mark.soak
def test_the_release_names_who_brought_it(ran: tuple[str, Path]) -> None:
    _, out = ran
    report = json.loads((out / "report.json").read_text())
    found, tossed = report["environment"]["plugins"]
    source = (ROOT / "examples/plugin/safear_unlikelihood.py").read_bytes()
    assert found == {
        "kind": "methods",
        "name": "unlikelihood",
        "distribution": "safear-unlikelihood",
        "version": "0.1.0",
        "module": "safear_unlikelihood",
        "sha256": hashlib.sha256(source).hexdigest(),
    }
    assert (tossed["kind"], tossed["distribution"]) == ("judges", "coin")
    bom = json.loads((out / "bom.cdx.json").read_text())
    assert [one["name"] for one in bom["components"] if one["bom-ref"].startswith("plugin:")] == [
        "safear-unlikelihood",
        "coin",
    ]
    assert found["sha256"] in (out / "report.html").read_text()
