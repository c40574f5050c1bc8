"""own_prompts: the prompts of a category come from a user's file, without minors, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from safear_edit.errors import SpecError
from safear_edit.files.records import parse
from safear_edit.files.strict import Document, parse_yaml
from safear_edit.registry import find_builtin
from safear_edit.spec.extend import full_form
from safear_edit.spec.spec import Spec, load_spec

VIOLENCE = find_builtin("concepts", "violence")


def loaded(prompts: str) -> Spec:
    text = VIOLENCE.read_text()
    line = next(line for line in text.splitlines() if line.startswith("prompts:"))
    return parse(Spec, full_form(parse_yaml(text.replace(line, f"prompts: {prompts}"), "mine.yaml")))


@pytest.mark.usefixtures("beside_own_prompts")
def test_a_files_prompts_stand_for_names_some_of_them_held_out() -> None:
    spec = load_spec(VIOLENCE)
    names = (*spec.erase.aliases, *spec.paraphrases.held_out)
    assert len(set(names)) == 240 and len(spec.paraphrases.held_out) == 80
    assert not any("child" in name or "meadow" in name for name in names), "minors and other categories are left out"


def _whole(folder: Path) -> Path:
    """A file of which every prompt is taken."""
    path = folder / "whole.csv"
    path.write_text("\n".join(["prompt", *(f"fight number {n}" for n in range(12))]))
    return path


@pytest.mark.usefixtures("beside_own_prompts")
def test_what_is_left_out_is_counted_and_the_full_form_keeps_it() -> None:
    spec = load_spec(VIOLENCE)
    counts = spec.prompts_from
    assert counts is not None and (counts.taken, counts.left_out) == (240, {"minors are mentioned": 1})
    assert parse(Spec, Document("resolved", spec.model_dump(mode="json"))) == spec


def test_other_files_columns_and_words(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    rows = [f"a fight, number {n}\tYes" for n in range(12)]
    path.write_text("\n".join(["Text\tTake", *rows, "a fight, number 3!\tyes", "a walk\tno", f"{'x' * 301}\tyes"]))
    spec = loaded(f"{{file: {path}, column: text, where: {{take: 'yes'}}}}")
    assert sorted((*spec.erase.aliases, *spec.paraphrases.held_out)) == sorted(
        f"a fight, number {n}" for n in range(12)
    )
    assert spec.prompts_from and spec.prompts_from.sentence() == (
        "2 of 14 prompts of mine.tsv were left out (the words of an earlier one in 1, more than 300 characters in 1)"
    )
    assert "prompts_from" not in loaded(f"{{file: {_whole(tmp_path)}}}").model_dump(), "where all fit, as before"
    with pytest.raises(SpecError, match=r"mine\.tsv:2: expected a column `prompt`, got columns text, take"):
        loaded(f"{{file: {path}}}")
    with pytest.raises(SpecError, match=r"mine\.yaml:\d+ prompts: expected 10 prompts that fit, got 1 in"):
        loaded(f"{{file: {path}, column: text, where: {{take: 'no'}}}}")
    with pytest.raises(SpecError, match=r"mine\.yaml:\d+ wehre: .*did you mean 'where'"):
        loaded(f"{{file: {path}, wehre: {{}}}}")


@pytest.mark.usefixtures("beside_own_prompts")
@pytest.mark.parametrize(
    "own", ["erase: {concept: violence, aliases: [a brawl]}", "paraphrases: {held_out: [a brawl]}"]
)
def test_names_beside_a_file_are_refused_instead_of_lost(own: str) -> None:
    text = VIOLENCE.read_text().replace("erase: {concept: violence}", own)
    with pytest.raises(SpecError, match=r"mine\.yaml:\d+ \w+\.\w+: expected names from the file alone, got .* as well"):
        full_form(parse_yaml(text, "mine.yaml"))


def test_a_row_without_a_text_is_no_prompt_and_a_word_is_a_whole_word(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [f'{{"prompt": "a fight, number {n}", "level": {1 if n < 12 else n}}}' for n in range(40)]
    path.write_text("\n".join([*rows, '{"prompt": null, "level": 1}', '{"prompt": "a walk", "level": null}']))
    every, some = (loaded(f"{{file: {path}{where}}}") for where in ("", ", where: {level: '1'}"))
    assert "None" not in (*every.erase.aliases, *every.paraphrases.held_out)
    names = (*some.erase.aliases, *some.paraphrases.held_out)
    assert sorted(names) == sorted(f"a fight, number {n}" for n in range(12)), "1 is no part of 12 or 31"
    path.write_text('{"prompt": 5}')
    with pytest.raises(SpecError, match=r"mine\.jsonl:1, prompt: expected text, got 5"):
        loaded(f"{{file: {path}}}")
