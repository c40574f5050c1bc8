"""The README tells the truth: its commands exist, the fast ones run, its files and links are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from safear_edit.cli import main
from safear_edit.studies.tables import FOLDER, Table, shown
from tests import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split(" > ")[0] for block in BLOCKS for line in block.splitlines() if line.strip()]
FAST = ("ls", "schema", "validate", "init")


def _ours() -> list[list[str]]:
    inline = re.findall(r"`safear-edit ([^`\n]+)`", README)
    lines = [c.removeprefix("safear-edit ") for c in COMMANDS if c.startswith("safear-edit ")]
    return [shlex.split(line) for line in (*lines, *inline)]


@pytest.mark.parametrize("words", _ours(), ids=" ".join)
def test_every_command_exists_with_its_options(words: list[str]) -> None:
    verb = main.verbs.commands[words[0]]
    if isinstance(verb, click.Group):
        verb = verb.commands[words[1]]
    known = {option for parameter in verb.params for option in parameter.opts}
    assert {word for word in words[1:] if word.startswith("--")} <= known


@pytest.mark.parametrize("words", [w for w in _ours() if w[0] in FAST], ids=" ".join)
def test_the_fast_ones_run(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("concepts", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    if words[:1] == ["validate"] and not Path(words[1]).exists():
        assert main.run(["init", Path(words[1]).stem]) == 0
    assert main.run(words) == 0


def test_every_verb_is_in_the_readme() -> None:
    for name in main.verbs.commands:
        assert re.search(rf"safear-edit {name}\b|`{name}[ `]", README), name


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 160


def test_its_spec_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(block.splitlines()) <= 15
    (tmp_path / "hokusai.yaml").write_text(block)
    assert main.run(["validate", str(tmp_path / "hokusai.yaml")]) == 0


def test_its_results_are_those_of_the_tables() -> None:
    """Every line of the README's table stands, figure by figure, in examples/results/apply.jsonl."""
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in README.splitlines() if ":mini | `" in line
    ]
    keys = re.search(r"^\| (model \| method .*) \|$", README, re.MULTILINE)
    assert keys and len(lines) >= 4
    rows = [row.cells for row in Table.read(ROOT / FOLDER / "apply.jsonl").rows]
    for line in lines:
        said = dict(zip(keys[1].split(" | "), line, strict=True))
        assert said in [{key: shown(row.get(key)) for key in said} for row in rows]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(COMMANDS), re.MULTILINE) + re.findall(r"`make (\w+)`", README)
    assert {"demo", "test", "docs"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_and_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"(?:concepts|recipes|examples|safear_edit)/[\w/]+\.\w+", README):
        assert (ROOT / name).exists(), name


def test_the_folder_tree_is_complete() -> None:
    """Every folder of the package is in the README's list, and nothing that is not there."""
    tree = README.split("## Folders", 1)[1].split("\n## ", 1)[0]
    listed = set(re.findall(r"^ +safear_edit/([\w/]+)/ ", tree, re.MULTILINE))
    folders = {
        path.parent.relative_to(ROOT / "safear_edit").as_posix() for path in (ROOT / "safear_edit").rglob("__init__.py")
    }
    assert listed == folders - {"."}


def test_exit_codes_are_those_of_the_code() -> None:
    from safear_edit import errors
    from safear_edit.cli import terminal

    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    classes = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.SafearError)}
    signals = {128 + number for number in terminal.SIGNALS}
    assert table == classes | signals | {0, terminal.INTERNAL, terminal.INTERRUPTED, terminal.UNUSABLE}
    assert table == set(errors.EXIT_CODES)


def test_verbs_have_help_with_an_example() -> None:
    for name, verb in main.verbs.commands.items():
        with click.Context(verb, info_name=name) as context:
            assert f"safear-edit {name}" in verb.get_help(context)
