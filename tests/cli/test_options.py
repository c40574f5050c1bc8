"""Options are the same words everywhere, and importing them loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from safear_edit.cli import main
from safear_edit.cli.options import (
    Shown,
    Writing,
    option,
    print_criteria,
    print_json,
    print_json_list,
    print_table,
    signing_key,
    taking,
)
from safear_edit.errors import UsageError
from safear_edit.evaluate.verdict import Verdict
from safear_edit.report.schema import Criterion


def test_an_option_of_one_name_means_the_same_in_every_verb() -> None:
    wanted = {"--json", "--quiet", "--overwrite", "--device", "--key", "--unsigned"}
    seen: dict[str, set[tuple[str | None, object]]] = {name: set() for name in wanted}
    verbs = [v for top in main.verbs.commands.values() for v in getattr(top, "commands", {"": top}).values()]
    for verb in verbs:
        for parameter in verb.params:
            for name in wanted & set(parameter.opts):
                assert isinstance(parameter, click.Option)
                seen[name].add((parameter.name, parameter.is_flag))
    assert all(len(kinds) == 1 for kinds in seen.values()), seen


def test_nothing_heavy_and_no_verb_is_imported() -> None:
    code = "import sys, safear_edit.cli.options as o; "
    code += "print([m for m in ('torch', 'safear_edit.cli.main') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_documents_and_tables_show_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "é"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": "é"} and "é" in out
    print_table(("a",), [("[bold]x[/bold]",)])
    assert "[bold]x[/bold]" in capsys.readouterr().out


@pytest.mark.parametrize("width", [24, 160])
def test_a_table_lets_no_cell_move_the_cursor(capsys: pytest.CaptureFixture[str], width: int) -> None:
    print_table(("file", "what it says of itself"), [("a\x1b[2Jb", "one\rtwo\nthree\x9b31m")], width=width)
    out = capsys.readouterr().out
    assert not set("\x1b\r\x9b") & {*out} and "a\\x1b[2Jb" in out and "one\\rtwo" in out and "three" in out


@pytest.mark.parametrize("width", [24, 40, 80, 160])
def test_a_table_cuts_nothing_at_any_width(capsys: pytest.CaptureFixture[str], width: int) -> None:
    files = "text_encoder/model.safetensors and vae/model.safetensors"
    print_table(
        ("name", "what", "licence", "files"), [("diffusion:sd-1.5", "1.5, 512 px", "OpenRAIL-M", files)], (), width
    )
    lines = capsys.readouterr().out.splitlines()
    shown = "".join("".join(lines).split())
    assert "…" not in shown and max(map(len, lines)) <= width
    if width == 160:
        assert lines[3].split() == ["diffusion:sd-1.5", "1.5,", "512", "px", "OpenRAIL-M", *files.split()]
    elif width < 80:
        whole = f"diffusion:sd-1.5 what: 1.5, 512 px licence: OpenRAIL-M files: {files}"
        assert shown == "".join(whole.split())


def test_one_way_to_sign() -> None:
    assert signing_key(None, None, True, Path("out")) is None
    with pytest.raises(UsageError, match="one of --key"):
        signing_key("key", None, True, Path("out"))
    options = {flag for parameter in main.verbs.commands["apply"].params for flag in parameter.opts}
    assert options >= {"--key", "--unsigned", "--joint"}


def test_a_verb_gets_its_own_options_and_the_inherited_ones_as_one_value() -> None:
    @dataclass(frozen=True)
    class Mine(Writing, Shown):
        often: int = option("--often", type=int, default=3)

    seen: list[Mine] = []

    @click.command()
    @click.argument("name")
    @taking(Mine)
    def verb(name: str, given: Mine) -> int:
        """A verb."""
        seen.append(given)
        return len(name)

    assert verb.main(["me", "--out", "there", "-q"], standalone_mode=False) == 2
    assert seen == [Mine(out=Path("there"), overwrite=False, as_json=False, quiet=True, often=3)]
    assert [parameter.name for parameter in verb.params] == ["name", "often", "out", "overwrite", "quiet", "as_json"]


def test_a_verdict_is_one_table_worst_first_and_no_word_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    def line(decision: Verdict, name: str) -> Criterion:
        told = {"claim": "", "needed": "a drop of at most 3 points", "why": ""}
        lost = "lost 11, gained 3 of 400: drop 2.0 points"
        return Criterion(id=f"preservation/picasso/{name}", concept="picasso", observed=lost, decision=decision, **told)

    print_criteria([line("PASS", "objects"), line("INCONCLUSIVE", "plain"), line("FAIL", "other-styles")])
    rows = [row for row in capsys.readouterr().out.splitlines() if "preservation" in row]
    assert [row.split()[0] for row in rows] == ["FAIL", "INCONCLUSIVE", "PASS"]
    assert len({row.index("preservation") for row in rows}) == len({row.index("a drop") for row in rows}) == 1
    print_criteria([line("FAIL", "other-styles"), line("PASS", "objects")], width=72)
    narrow = capsys.readouterr().out
    words = {word for row in narrow.splitlines() for word in row.split()}
    assert {"preservation/picasso/other-styles", "(needed:", "observed", "points"} <= words
    assert narrow.count("needed") == 1, "what was needed is told of what is not met"


@pytest.mark.parametrize("rows", [[1], [{"a": "::error::x ä", "b": [1, 2]}, {"a": "\n##[group]"}]])
def test_a_list_printed_row_by_row_is_the_document_printed_at_once(
    rows: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    print_json({"n": 1, "more": {"x": []}, "rows": rows})
    whole = capsys.readouterr().out
    print_json_list({"n": 1, "more": {"x": []}}, "rows", iter(rows))
    assert capsys.readouterr().out == whole
