"""Two processes (gloo, on the CPU) walk together: they publish what one process publishes, also after a kill."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from safear_edit import registry
from safear_edit.cli import main
from safear_edit.evaluate import sampled
from tests import coin
from tests.pipeline.test_run import GPT, VERDICTS, apply
from tests.programs import two

BATCH = 8
CHILD = f"""
import json, os, sys
from safear_edit import registry
from safear_edit.cli import main
from safear_edit.evaluate import sampled
from tests import coin

class Coin(coin.Coin):
    looks = 0

    def look(self, images):
        Coin.looks += 1
        if Coin.looks == int(os.environ.get("DIES_AT_LOOK", 0)) and os.environ["RANK"] == "1":
            os.kill(os.getpid(), 9)
        return super().look(images)

coin.Coin = Coin
registry._third_party = coin.third_party
sampled.evaluate.__kwdefaults__["batch"] = {BATCH}
sys.exit(max(main.run(words) for words in json.loads(sys.argv[1])))
"""
SAME = ("outcomes.jsonl", "judges.json", "likelihood.json", "pairs/pairs.jsonl", "recipe.json", GPT)
"""Files of a release in which nothing is a time."""
CUT = ("--set", "params.accumulate=2")
"""A batch in as many parts as there are processes: their sum is then rounded alike."""


def both(*commands: list[str], dies: int = 0) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each of two processes that give the commands one after the other."""
    ended = two(CHILD, json.dumps(commands), DIES_AT_LOOK=str(dies))
    return [(code, out.decode(), err.decode()) for code, out, err in ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny `base`, a spec that a coin judges, prompts, and `one`, made of them by one process."""
    root = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_third_party", coin.third_party)
        patch.setitem(sampled.evaluate.__kwdefaults__, "batch", BATCH)
        patch.chdir(root)
        coin.make_world(root, "picasso", n=4)
        (root / "prompts.txt").write_text("".join(f"a house number {i}\n" for i in range(70)))
        assert main.run(command("one")) in VERDICTS
    return root


def command(out: str) -> list[str]:
    return apply(out, "picasso.yaml", "--model", "./base", "--unsigned", *CUT)


EVAL = ["eval", "one", "--spec", "picasso.yaml", "--prompts", "prompts.txt", "--device", "cpu", "--json"]


@pytest.mark.soak
def test_a_killed_process_ends_both_and_the_next_run_gives_what_one_process_gives(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (code, out, err), (killed, *_) = both(command("both"), dies=3)
    assert (code, out, killed) == (2, "", -signal.SIGKILL), err
    assert "process 0 of 2: expected all processes at work" in err and "Traceback" not in err, err
    assert not Path("both").exists()
    kept = json.loads(Path(".both.run/concepts/picasso/journal.json").read_text())
    assert "construct" in kept and "evaluate" not in kept, "the kill came while images were judged"
    (code, out, err), (other, *silence) = both(command("both"), EVAL)
    assert code == other and code in VERDICTS and silence == ["", ""], err
    assert not list(Path().glob(".*.run"))
    for name in SAME:
        assert (folder / "both" / name).read_bytes() == (folder / "one" / name).read_bytes(), name
    capsys.readouterr()
    monkeypatch.setattr(registry, "_third_party", coin.third_party)
    assert main.run(EVAL) == 0
    assert capsys.readouterr().out == out[out.index("{\n") :]


def test_verbs_that_one_process_must_do_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main.run(["keygen", "keys"]) == 2
    assert capsys.readouterr().err.startswith("safear-edit: keygen: expected one process, got 2")
