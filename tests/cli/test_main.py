"""The command line with bad input: one line on stderr, the right exit code, nothing written. And it starts fast."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from safear_edit.__main__ import main as program
from safear_edit.cli import main, terminal
from safear_edit.errors import EXIT_CODES, GateError, InconclusiveError, SafearError, TrustError, UsageError
from tests import ROOT

PICASSO = str(ROOT / "concepts" / "picasso.yaml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, without keys in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("SAFEAR_SIGNING_KEY", "SAFEAR_SIGNING_KEY_PASSWORD", "SAFEAR_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], words: list[str], code: int = 2) -> str:
    """Run, expect this exit code and exactly one line on stderr and none on stdout; the line."""
    assert main.run(words) == code
    out, err = capsys.readouterr()
    err = err.removeprefix("\n")  # after ^C click ends the terminal's line first
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("safear-edit: "), err
    return err


BAD_SPECS: dict[str, Callable[[str], str]] = {
    "unknown key": lambda t: t + "\nerasse: 1\n",
    "duplicate key": lambda t: t + "\nname: again\n",
    "empty erase list": lambda t: _with_aliases(t, "[]"),
    "not YAML": lambda t: "{",
    "empty file": lambda t: "",
    "a python tag": lambda t: t + "\nsafety_note: !!python/object/apply:os.system ['touch pwned']\n",
}


def _with_aliases(text: str, value: str) -> str:
    import yaml

    data = yaml.safe_load(text)
    data["erase"]["aliases"] = yaml.safe_load(value)
    return yaml.safe_dump(data)


@pytest.mark.parametrize("name", BAD_SPECS)
@pytest.mark.parametrize("verb", [["validate"], ["plan", "--model", "llamagen"], ["apply", "--model", "llamagen"]])
def test_a_bad_spec(folder: Path, capsys: pytest.CaptureFixture[str], name: str, verb: list[str]) -> None:
    (folder / "bad.yaml").write_text(BAD_SPECS[name](Path(PICASSO).read_text()))
    more = ["--out", "out"] if verb[0] == "apply" else []
    line = refused(capsys, [verb[0], "bad.yaml", *verb[1:], *more])
    assert "bad.yaml" in line
    assert {p.name for p in folder.iterdir()} <= {"bad.yaml", ".out.run"} and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["apply", "nowhere.yaml", "--model", "llamagen", "--out", "out"], "nowhere.yaml"),
        (["apply", PICASSO, "--model", "llamagan", "--out", "out"], "did you mean 'llamagen'"),
        (["apply", PICASSO, "--model", "llamagen:minni", "--out", "out"], "did you mean 'mini'"),
        (["apply", PICASSO, "--model", "llamagen:xl-256", "--out", "out"], "t2i_XL_stage1_256.pt"),
        (["apply", PICASSO, "--model", "./nowhere", "--out", "out"], "nowhere"),
        (["apply", PICASSO, "--model", "llamagen", "--method", "vcee", "--out", "out"], "did you mean 'vce'"),
        (["apply", PICASSO, "--model", "llamagen", "--out", "out", "--key", "no.key"], "no.key"),
        (["apply", PICASSO, "--model", "llamagen", "--out", "out", "--key", "k", "--unsigned"], "--unsigned"),
        (["apply", PICASSO, "--out", "out"], "--model"),
        (["apply", PICASSO, "--model", "llamagen"], "--out"),
        (["plan", PICASSO, "--model", "llamagen", "--seed", "-1"], "--seed"),
        (["validate", "nowhere.yaml"], "nowhere.yaml"),
        (["validate"], "SPEC"),
        (["init", "Not A Name"], "Not A Name"),
        (["ls", "everything"], "everything"),
        (["schema", "nothing"], "nothing"),
        (["verify", "nowhere", "--trust", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["generate", "--model", "nope", "a cat"], "nope"),
        (["aply"], "aply"),
        (["apply"], "see `safear-edit apply --help`"),
        (["stack", "remove"], "see `safear-edit stack remove --help`"),
        (["plan", PICASSO, "--model", "llamagen", "--set", "steps=3"], "did you mean 'params.steps'"),
        (["report", "."], "give the folder of `apply`"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_bad_words(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert says in refused(capsys, words)
    left = [p for p in folder.rglob("*") if p.name not in (".out.run", "lock")]
    assert not left


def test_an_output_that_exists_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")
    words = ["apply", PICASSO, "--model", "llamagen", "--out", "out"]
    assert "--overwrite" in refused(capsys, words)
    assert "something else" in refused(capsys, [*words, "--overwrite"])
    assert (folder / "out" / "mine.txt").read_text() == "mine"
    (folder / "rembrandt.yaml").write_text("mine")
    assert "rembrandt.yaml" in refused(capsys, ["init", "rembrandt"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a", "b", "c", "d"), 2),
        (TrustError("a", "b", "c", "d"), 4),
        (GateError("a", "b", "c", "d"), 1),
        (InconclusiveError("a", "b", "c", "d"), 3),
        (SafearError("a", "b", "c\n\x1b[31m", "d"), 5),
        (OSError(28, "No space left on device", "out/x"), 2),
        (RuntimeError("I/O error: No space left on device"), 2),
        (MemoryError(), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_every_failure_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setitem(main.verbs.commands, "doctor", click.command("doctor")(fail))
    line = refused(capsys, ["doctor"], code)
    assert "\x1b" not in line
    assert "same command" in line or isinstance(error, SafearError | RuntimeError)


def test_a_fault_of_ours_says_where_its_traceback_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise ValueError("two\nlines")

    monkeypatch.setitem(main.verbs.commands, "doctor", click.command("doctor")(fail))
    monkeypatch.delenv("SAFEAR_DEBUG", raising=False)
    line = refused(capsys, ["doctor"], terminal.INTERNAL)
    log = Path(line.split()[-1])
    assert "ValueError: two lines" in line and "Traceback" in log.read_text()
    log.unlink()
    monkeypatch.setenv("SAFEAR_DEBUG", "1")
    assert main.run(["doctor"]) == terminal.INTERNAL
    assert "Traceback" in capsys.readouterr().err


def test_results_go_to_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ls", "models", "--json"]) == 0
    assert "llamagen:mini" in [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert main.run(["schema", "report"]) == 0
    assert json.loads(capsys.readouterr().out)["$schema"].startswith("https://json-schema.org/")
    assert main.run(["init", "hokusai"]) == 0 and main.run(["validate", "hokusai.yaml", "--json"]) == 0
    assert main.run([]) == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["stack", "judge", "baseline"])
def test_a_group_of_verbs_alone_says_which_there_are(capsys: pytest.CaptureFixture[str], group: str) -> None:
    assert main.run([group]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"Usage: safear-edit {group}") and "\nCommands:\n" in err


def test_a_draft_says_what_a_person_must_write_and_so_does_validate(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["init", "hokusai", "--out", "my own.yaml"]) == 0
    assert "write description, safety_note" in (said := capsys.readouterr().out)
    assert said.endswith("safear-edit validate 'my own.yaml'\n")
    left = "description, safety_note: still what `init` wrote there; `apply` refuses that without --draft"
    assert main.run(["validate", "my own.yaml"]) == 0
    assert left in capsys.readouterr().out


def test_keygen_then_what_verify_wants(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["keygen", "keys"]) == 0
    assert "PRIVATE" not in capsys.readouterr().out
    assert (folder / "keys/safear.key").stat().st_mode & 0o077 == 0
    assert "safear.key" in refused(capsys, ["keygen", "keys"])
    (folder / "model").mkdir()
    refused(capsys, ["verify", "model", "--trust", "keys"], 4)


def test_an_interrupt_before_the_verbs_are_imported_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting:
        """A finder during whose work somebody types Ctrl-C."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "safear_edit.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "safear_edit.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        program()
    told = capsys.readouterr()
    assert ended.value.code == terminal.INTERRUPTED and not told.out
    assert told.err == "safear-edit: interrupted; nothing was begun, run the same command again\n"


def test_help_starts_at_once() -> None:
    """Processor time, not wall-clock: other work on the machine must not fail it."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run(
            [sys.executable, "-m", "safear_edit", "--help"], capture_output=True, text=True, env=os.environ, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "apply" in out.stdout
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize(("option", "value"), [("--seed", "7"), ("--method", "nonsense")])
@pytest.mark.parametrize("verb", ["plan", "apply"])
def test_a_recipe_takes_no_option_that_it_would_ignore(
    folder: Path, capsys: pytest.CaptureFixture[str], verb: str, option: str, value: str
) -> None:
    (folder / "r.json").write_text("{}")
    line = refused(capsys, [verb, "r.json", option, value, *(["--out", "out"] if verb == "apply" else [])])
    assert option in line and "finished recipe" in line


@pytest.mark.parametrize("written", [[], ["--out", "my recipe.json"]])
def test_a_plan_ends_with_the_command_that_does_it(
    folder: Path, capsys: pytest.CaptureFixture[str], written: list[str]
) -> None:
    """That command plans the same recipe; what only says how a plan is shown or written isn't in it."""
    given = [
        "--model",
        "infinity",
        "--seed",
        "3",
        "--set",
        "params.steps=20",
        "--set",
        "construct.pairs=150",
        "--quiet",
    ]
    assert main.run(["plan", PICASSO, *given, *written]) == 0
    *facts, last = capsys.readouterr().out.splitlines()
    words = shlex.split(last)
    assert words[:3] == ["next:", "safear-edit", "apply"] and words[-4:-2] == ["--out", "safe-picasso"]
    assert ("--seed" not in words and words[3] == "my recipe.json") if written else "--quiet" not in words
    assert main.run([*words[2:], "--dry-run"]) == 0
    assert "member_drop 0.08, member_upper 0.12" in next(line for line in facts if line.startswith("gates "))
    assert not any("understanding_" in line for line in facts), "of a model that answers no questions"
    (recipe,) = (line for line in facts if line.startswith("recipe "))
    assert recipe in capsys.readouterr().out.splitlines()


def test_no_output_goes_into_a_signed_release(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "safe").mkdir()
    (folder / "safe" / "model.sig").write_text("{}")
    for words in (
        ["apply", PICASSO, "--model", "llamagen", "--out", "safe/out"],
        ["plan", PICASSO, "--model", "llamagen", "--out", "safe/r.json"],
        ["init", "hokusai", "--out", "safe/h.yaml"],
        ["report", "safe", "--out", "safe/report.html"],
        ["check", "safe", "--junit", "safe/gate.xml"],
        ["generate", "a", "--model", "llamagen", "--out", "safe/images"],
        ["keygen", "safe/keys"],
        ["baseline", "accept", "safe", "--out", "safe/b.txt", "--reason", "x"],
        ["export", "safe", "--layout", "upstream", "--out", "safe/x"],
    ):
        assert "inside the signed release" in refused(capsys, words), words
    assert [path.name for path in (folder / "safe").iterdir()] == ["model.sig"]


def test_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    told = capsys.readouterr().out.split("Exit codes:")[1].split()
    assert {str(code) for code in EXIT_CODES} <= set(told)


def test_lists_say_which_images_are_meant(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for what in ("judges", "concepts", "models"):
        assert main.run(["ls", what, "--json"]) == 0
        said |= {row["name"]: row["images"] for row in json.loads(capsys.readouterr().out)}
    assert (said["gallery"], said["clip"], said["nudity"]) == ("gallery", "gallery, real", "real")
    assert (said["picasso"], said["rembrandt"], said["violence"]) == ("gallery, real", "real", "real")
    assert (said["llamagen:mini"], said["llamagen:xl-256"]) == ("gallery", "real")


def test_help_reads_no_schema_and_no_model() -> None:
    """A third of a second of imports otherwise, whenever the shell completes a word."""
    program = (
        "import sys; from safear_edit.cli import main; main.run(['--help']); "
        "sys.exit(len({'pydantic', 'yaml', 'torch', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_a_source_that_is_not_there_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from safear_edit.cli import main
model, out = ["--model", "llamagen"], ["--out", "out"]
vce = ["--methods", "vce"]
for words in (["plan", "no.yaml", *model], ["apply", "picasso", "no.yaml", *model, *out],
              ["map", "no.yaml", *model, *out], ["compare", "no.yaml", *model, *vce, *out],
              ["tune", "no.yaml", *model, *out]):
    assert main.run(words) == 2
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = "safear-edit: no.yaml: expected a file, got nothing there; check the path"
    assert done.stderr.splitlines() == [line] * 5 and not list(tmp_path.iterdir())
