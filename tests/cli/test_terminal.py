"""cli/terminal.py: what is printed holds no CI command and can be shown; exit codes survive pipes and signals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from safear_edit.cli import main, terminal
from safear_edit.cli.options import print_json, print_table
from safear_edit.errors import EXIT_CODES
from tests import ROOT
from tests.gate.test_baseline import released
from tests.programs import Done, run_all
from tests.release.test_verify import Release

ODD = "é − 画 😀"


def program(words: list[str], **more: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-m", "safear_edit", *words]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["::error title=a::b", "  ::add-mask::a", "x\n::stop-commands::t", "\t::a", "x\r::b"])
def test_no_line_starts_a_workflow_command(text: str) -> None:
    lines = terminal.harmless(text).replace("\r", "\n").split("\n")
    assert not any(line.lstrip().startswith("::") for line in lines)
    assert terminal.harmless(text).replace(": :", "::") == text


def test_no_line_holds_an_older_command() -> None:
    assert terminal.harmless("a ##[error]b ##vso[x] ## [c]") == "a # #[error]b # #vso[x] ## [c]"
    assert terminal.harmless("a::b, std::vector, 12:30") == "a::b, std::vector, 12:30"
    document = terminal.harmless_json(json.dumps({"p": "##[error]x"}))
    assert json.loads(document) == {"p": "##[error]x"} and "##[" not in document


def test_a_page_of_markdown_shows_text_as_text() -> None:
    shown = terminal.markdown_text("![x](https://evil/a.png) [l](http://b) www.c.org <b> a|b @me `c`\n# d")
    assert not set("![]()<>|@`#\n") & set(shown.replace("&#", "")) and "://" not in shown and "www." not in shown
    import html

    assert html.unescape(shown) == "![x](https://evil/a.png) [l](http://b) www.c.org <b> a|b @me `c` # d"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_shows_what_it_can(encoding: str) -> None:
    raw = io.BytesIO()
    stream = terminal.Shown(io.TextIOWrapper(raw, encoding=encoding))
    print(ODD, "\udc80", file=stream)
    shown = raw.getvalue().decode(encoding)
    assert shown == {"ascii": "? - ? ? ?\n", "latin-1": "é - ? ? ?\n", "utf-8": f"{ODD} ?\n"}[encoding]


def test_json_stays_json_where_the_stream_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", terminal.Shown(io.TextIOWrapper(raw, encoding="ascii")))
    print_json({"name": ODD})
    assert json.loads(raw.getvalue()) == {"name": ODD}


def test_a_key_that_comes_line_by_line_is_hidden() -> None:
    raw = io.StringIO()
    stream = terminal.Shown(raw)
    for line in ("a", "-----BEGIN EC PRIVATE KEY-----", "MHcCAQEEIODmLine", "-----END EC PRIVATE KEY-----", "b"):
        print(line, file=stream)
    assert raw.getvalue() == "a\n[hidden]\nb\n"


def test_our_own_workflow_commands_reach_the_runner(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.shown_streams():
        terminal.say_to_runner("::error title=a::b")
        print("::error title=c::d", file=sys.stderr)
    assert capsys.readouterr().err == "::error title=a::b\n: :error title=c::d\n"


def test_prompts_that_are_commands_reach_no_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["validate", "::error title=pwn::x\n::add-mask::a"]) == 2
    out, err = capsys.readouterr()
    assert not any(line.lstrip().startswith("::") for line in (out + err).splitlines())


def test_tables_and_documents_of_hostile_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["::error title=pwn::hello", "::add-mask::a", "a ##[error]b"]
    with terminal.shown_streams():
        print_table(("prompt",), [(prompt,) for prompt in prompts])
        print_json(prompts)
    out = capsys.readouterr().out
    assert not any(line.lstrip().startswith("::") for line in out.splitlines()) and "##[" not in out
    assert "add-mask" in out and json.loads(out[out.rindex('[\n "::error') :]) == prompts


# -- every verb on every stream ---------------------------------------------------------------------------------------


MORE = [pytest.param(name, marks=pytest.mark.soak) for name in ("latin-1", "utf-8")]


def programs(folder: Path, commands: list[list[str]], new: bool = False, **more: str) -> list[Done]:
    return run_all(commands, folder, {**os.environ, "PYTHONPATH": str(ROOT), **more}, new=new)


@pytest.mark.parametrize("encoding", ["ascii", *MORE[:1]])
def test_a_stream_that_lacks_characters_changes_no_exit_code(tmp_path: Path, encoding: str) -> None:
    verbs = ["--help"], ["apply", "--help"], ["ls", "methods"], ["ls", "concepts", "--json"], ["power"], ["doctor"]
    for run in programs(tmp_path, [*verbs], PYTHONIOENCODING=encoding):
        assert run.code == 0, run.err
        assert run.out.decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", *MORE])
def test_verdicts_survive_a_stream_that_lacks_characters(tmp_path: Path, encoding: str) -> None:
    signed = Release(tmp_path, name="modèle 画")
    verify = ["verify", str(signed.folder), "--trust", str(signed.trust)]
    made = released(tmp_path / "画")
    accept = ["baseline", "accept", str(made), "--out", str(tmp_path / "é.txt"), "--reason", "erst − 画"]
    check = ["check", str(made), "--baseline", str(tmp_path / "é.txt")]
    (tmp_path / "é2.txt").write_text("x")
    refused = ["check", str(made), "--baseline", str(tmp_path / "é2.txt")]
    runs = programs(tmp_path, [verify, accept, check, refused], True, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    for run, code in zip(runs, (0, 0, 0, 2), strict=True):
        assert run.code == code, run.err
        assert run.out.decode(encoding) or code


def test_a_reader_that_goes_away_changes_no_exit_code(tmp_path: Path) -> None:
    for words, code in ((["power"], 0), (["validate", str(tmp_path / "no.yaml")], 2)):
        for unbuffered in ("1", ""):
            run = program(words, PYTHONUNBUFFERED=unbuffered)
            assert run.stdout is not None and run.stderr is not None
            run.stdout.close()
            run.stderr.close()
            assert run.wait() == code


@pytest.mark.parametrize("number", terminal.SIGNALS)
def test_a_signal_ends_with_a_word(number: signal.Signals, tmp_path: Path) -> None:
    code = "import time; from safear_edit.cli import main, terminal; terminal.be_a_program(); "
    code += "main.verbs.commands['ls'].callback = lambda **_: (print('ready', flush=True), time.sleep(60)); "
    code += "import sys; sys.exit(main.run(['ls', 'models']))"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None and run.stdout.readline() == b"ready\n"
    run.send_signal(number)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 128 + number and run.returncode in EXIT_CODES
    said = f"safear-edit: ended by {number.name}; nothing was published; run the same command again\n"
    assert err.decode() == said


def test_what_an_interrupted_verb_keeps() -> None:
    """`eval` and `generate` keep their batches (test_walk.py and test_generate.py interrupt them); `map` keeps none."""
    for verb in ("apply", "compare", "stack", "eval", "generate", "tune"):
        assert "continues" in terminal.what_is_kept(verb)
    assert "continues" not in terminal.what_is_kept("map") and "continues" not in terminal.what_is_kept(None)


def test_no_warning_of_a_library_reaches_a_person() -> None:
    code = "import warnings; from safear_edit.cli import terminal; terminal.be_a_program(); warnings.warn('boo')"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ.pop("PYTHONWARNINGS", None)
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == ""


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Unable to allocate 1.50 GiB for an array with shape (1,)", "1.50 GiB more were needed"),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes. Error "
         "code 12", "4.00 GiB more were needed"),
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 2 GiB of which 7.19 MiB is "
         "free.", "20.00 MiB more were needed, 7.19 MiB free on the device"),
        ("", "not enough memory"),
    ],
)  # fmt: skip
def test_out_of_memory_says_what_was_needed(
    said: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = RuntimeError if "CPUAllocator" in said else MemoryError
    monkeypatch.setattr(main.verbs, "main", lambda **_: (_ for _ in ()).throw(kind(said)))
    assert main.run(["ls"]) == 2
    err = capsys.readouterr().err
    assert shown in err and len(err.splitlines()) == 1


def test_a_traceback_holds_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "planted-secret-1")
    monkeypatch.setattr(main.verbs, "main", lambda **_: (_ for _ in ()).throw(RuntimeError("a planted-secret-1 b")))
    for debug in ("0", "1"):
        monkeypatch.setenv("SAFEAR_DEBUG", debug)
        assert main.run(["ls"]) == 5
        assert "planted-secret-1" not in capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert "planted-secret-1" not in log.read_text() and "[hidden]" in log.read_text()
