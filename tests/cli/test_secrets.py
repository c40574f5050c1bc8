"""Secrets planted wherever one can stand, every verb run: none is in what was printed, written or handed to a child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from safear_edit.cli import main
from safear_edit.files import weights
from safear_edit.release import keys
from safear_edit.release.verify import verify_folder
from tests import ROOT, coin
from tests.programs import Done, run_all

PASSWORD, TOKEN, PIN, USER = "correct-horse-9", "hf_PlantedTokenPlanted42", "pin-83517-pin", "planted:s3cret-in-uri"
PICASSO = str(ROOT / "concepts" / "picasso.yaml")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a locked key, a tiny model, a spec that a coin judges and a broken recipe."""
    return made_world(tmp_path)


def made_world(folder: Path) -> Path:
    coin.make_world(folder, "picasso", n=2)
    coin.install(folder / "site")
    keys.generate(folder / "keys", password=PASSWORD.encode())
    (folder / "r.json").write_text("{}")
    (folder / "safe").mkdir()
    (folder / "tmp").mkdir()
    return folder


def environment(world: Path, escaped: bool) -> dict[str, str]:
    pem = (world / "keys" / "safear.key").read_text()
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(world / "site")]),
        "TMPDIR": str(world / "tmp"),
        "SAFEAR_SIGNING_KEY": pem.replace("\n", "\\n") if escaped else pem,
        "SAFEAR_SIGNING_KEY_PASSWORD": PASSWORD,
        "HF_TOKEN": TOKEN,
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(world / "summary.md"),
        "SAFEAR_DEBUG": "1" if escaped else "0",
    }


def secrets(world: Path) -> list[str]:
    """What must be nowhere: each planted value, and every line of the key."""
    pem = (world / "keys" / "safear.key").read_text()
    return [PASSWORD, TOKEN, PIN, "s3cret-in-uri", *pem.splitlines()[1:-1]]


def entries(pem: str) -> dict[str, list[str]]:
    """A command line for every way in; text and pins stand where a path or a name should."""
    walk = ["apply", PICASSO, "--model", "llamagen", "--out", "out"]
    return {
        "the text as a path": [*walk, "--key", pem],
        "the text cut into words": [*walk, "--key", *pem.split()],
        "a pin": [*walk, "--key", f"hsm:1?label=x&pin={PIN}"],
        "pkcs11": [*walk, "--key", f"pkcs11:object=k;pin-value={PIN}"],
        "a model's address": ["apply", PICASSO, "--model", f"https://{USER}@hub/x", "--out", "out", "--unsigned"],
        "a token as a model": ["plan", PICASSO, "--model", TOKEN],
        "a token as a spec": ["validate", TOKEN],
        "a spec of key text": ["validate", pem],
        "an option that isn't there": ["ls", "models", f"--password={PASSWORD}"],
        "a set value": ["plan", PICASSO, "--model", "llamagen", "--set", f"construct.token={TOKEN}"],
        "check": ["check", f"safe-{TOKEN}", "--baseline", pem, "--junit", "gate.xml", "--json"],
        "verify": ["verify", "safe", "--trust", pem],
        "report": ["report", pem],
        "eval": ["eval", "safe", "--spec", pem, "--prompts", f"{PASSWORD}.txt"],
        "generate": ["generate", "--model", f"./{TOKEN}", pem],
        "export": ["export", pem, "--layout", "upstream", "--out", "x"],
        "stack": ["stack", "remove", pem, "picasso", "--out", "x", "--key", pem],
        "accept": ["baseline", "accept", pem, "--out", "b.txt", "--reason", pem],
        "doctor": ["doctor"],
        "keygen": ["keygen", "keys2"],
    }  # fmt: skip


def everything_written(world: Path) -> str:
    """All files that a command made, by name and content; not the key itself."""
    files = [p for p in world.rglob("*") if p.is_file() and world / "keys" not in p.parents and p.suffix != ".key"]
    return "\n".join(f"{path}\n{path.read_bytes().decode(errors='replace')}" for path in files)


CASES = [(entry, False) for entry in entries("")]
CASES += [(entry, True) for entry in ("check", "doctor", "generate", "stack")]
"""With SAFEAR_SIGNING_KEY as it is, and with its line ends escaped and SAFEAR_DEBUG set."""


SMALL = ("construct.pairs=60", "construct.keep=6", "params.steps=2", "params.save_every=1", "params.batch=4",
         "params.keep_batch=2", "evaluate.n.direct=8", "evaluate.n.paraphrase=4", "evaluate.n.template=4")  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], tuple[Done, Path]]:
    """Every case, those of one environment in one process and world: how it ended, and the world."""
    found: dict[tuple[str, bool], tuple[Done, Path]] = {}
    for escaped in (False, True):
        world = made_world(tmp_path_factory.mktemp("world"))
        asked = entries((world / "keys" / "safear.key").read_text())
        cases = [case for case in CASES if case[1] == escaped]
        done = run_all([asked[entry] for entry, _ in cases], world, environment(world, escaped))
        found |= {case: (one, world) for case, one in zip(cases, done, strict=True)}
    return found


@pytest.mark.parametrize(("entry", "escaped"), CASES)
def test_no_entry_point_lets_a_secret_out(
    ran: dict[tuple[str, bool], tuple[Done, Path]], entry: str, escaped: bool
) -> None:
    done, world = ran[entry, escaped]
    said = (done.out + done.err).decode() + everything_written(world)
    found = [secret for secret in secrets(world) if secret in said]
    assert not found and b"internal error" not in done.err, said[:2000]


@pytest.mark.soak
def test_a_whole_signed_walk_writes_none(world: Path) -> None:
    """The one command that uses the key and its password: weights, evidence, report, claims and what is printed."""
    sets = [word for value in SMALL for word in ("--set", value)]
    walk = ["apply", "picasso.yaml", "--model", "./base", "--out", "signed", *sets]
    (done,) = run_all([walk], world, environment(world, escaped=True))
    assert done.code == 1, done.err  # two steps erase nothing
    assert verify_folder(world / "signed", world / "keys").key == "safear"
    said = (done.out + done.err).decode() + everything_written(world)
    assert "FAIL" in said and not [secret for secret in secrets(world) if secret in said]


def test_a_fault_of_ours_writes_none_into_its_log(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(world, escaped=True).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(world / "tmp"))
    pem = (world / "keys" / "safear.key").read_text()

    def fail(what: str) -> None:
        raise RuntimeError(f"{pem} {PASSWORD} {TOKEN} pin={PIN} {what}")

    monkeypatch.setattr("safear_edit.cli.listing.listing", fail)
    for debug in ("1", "0"):
        monkeypatch.setenv("SAFEAR_DEBUG", debug)
        assert main.run(["ls", "models"]) == 5
    out, err = capsys.readouterr()
    said = out + err + everything_written(world)
    assert "RuntimeError" in said and not [secret for secret in secrets(world) if secret in said]


def test_the_reader_of_pickles_inherits_none(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name, value in environment(world, escaped=False).items():
        monkeypatch.setenv(name, value)
    seen: list[dict[str, str]] = []
    run = subprocess.run

    def spy(command: list[str], **more: object) -> subprocess.CompletedProcess[bytes]:
        assert not [secret for secret in secrets(world) if secret in " ".join(command)]
        seen.append(dict(more["env"]))  # type: ignore[call-overload]
        return run(command, **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "run", spy)
    torch.save({"a": torch.ones(2)}, world / "w.pt")
    assert weights.read_weights(world / "w.pt", allow_pickle=True)["a"].tolist() == [1.0, 1.0]
    (handed,) = seen
    assert not [secret for secret in secrets(world) if secret in "\n".join(handed.values())]
    assert not {"SAFEAR_SIGNING_KEY", "SAFEAR_SIGNING_KEY_PASSWORD", "HF_TOKEN"} & set(handed)


def test_the_command_in_the_report_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from safear_edit.cli.options import typed_command

    monkeypatch.setattr(sys, "argv", ["safear-edit", "apply", "x", "--key", f"hsm:1?pin={PIN}", "--model", TOKEN])
    assert typed_command() == "safear-edit apply x --key 'hsm:1?pin=[hidden]' --model [hidden]"
