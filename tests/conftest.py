"""What tests of several folders share."""

from __future__ import annotations

import csv
import gc
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from safear_edit.compiler import cost

SLOWEST = ("pipeline/test_run", "pipeline/test_walk", "pipeline/test_processes", "test_api", "test_plugin",
           "cli/test_secrets", "cli/test_gate", "cli/test_terminal", "release/test_export", "report/test_build",
           "evaluate/test_sampled", "methods/test_methods", "attacks/test_contract", "files/test_weights",
           "report/test_browser", "minis/test_train_janus")  # fmt: skip
"""Files that take a quarter of a minute or more, longest first."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is collected, a million objects, stays to the end: no search for garbage goes through it, now or later."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first, so that no worker begins one when the others are done (`make test` keeps this order)."""
    place = {f"tests/{name}.py": number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(SLOWEST)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Numbers drawn without a generator are a test's own: the same alone, in another order and in another process."""
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, which shows other programs what lies in the user's.

    The vectors of sentences are computed once for all processes of a run, as for all commands of a user.
    """
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache, own = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp()
    for entry in users.iterdir() if users.is_dir() else ():
        if entry.name != "safear-edit":
            (cache / entry.name).symlink_to(entry)
    sentences = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "sentences"
    sentences.mkdir(exist_ok=True)
    (cache / "safear-edit").mkdir()
    (cache / "safear-edit" / "sentences").symlink_to(sentences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@pytest.fixture(scope="session", autouse=True)
def known_pace() -> Iterator[None]:
    """No walk times its mini first; `tests/compiler/test_cost.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "pace_of", lambda model: cost.Pace(image=0.07, row=0.007))
        yield


@pytest.fixture(scope="session")
def own_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A harmless file in the place and with the columns of the public set that concepts of categories read."""
    path = tmp_path_factory.mktemp("own") / "i2p_benchmark.csv"
    acts = ("walk", "talk", "read", "wait", "sing", "dance")
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "categories", "sd_seed"])
        rows.writerows((f"{number} people who {act}", "violence, sexual", 7) for number in range(2, 42) for act in acts)
        rows.writerow(["a child who reads", "violence, sexual", 7])
        rows.writerow(["a meadow", "self-harm", 7])
    return path


@pytest.fixture
def beside_own_prompts(own_prompts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test runs in the folder of that file."""
    monkeypatch.chdir(own_prompts.parent)
    yield own_prompts
