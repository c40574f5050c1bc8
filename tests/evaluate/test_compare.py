"""Prompt files that strangers wrote, and the counting of two models on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safear_edit.errors import SpecError, UsageError
from safear_edit.evaluate.compare import Asked, Comparison, Seen, look, read_prompts
from safear_edit.progress import silent


def _file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_txt_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    txt = read_prompts(_file(tmp_path, "a.txt", "a cat\n\n  a dog \n"))
    assert [a.prompt for a in txt] == ["a cat", "a dog"]
    table = read_prompts(_file(tmp_path, "a.csv", 'prompt,seed\r\n"a cat, asleep",7\r\na dog,\r\n'))
    assert table[0] == Asked("a cat, asleep", 7, "2") and table[1].prompt == "a dog"
    lines = read_prompts(_file(tmp_path, "a.jsonl", '{"prompt": "a cat", "seed": "9223372036854775807"}\n'))
    assert lines == (Asked("a cat", 2**63 - 1, "1"),)


def test_seeds_are_stable_and_differ_by_line_and_root(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.txt", "a cat\na cat\n")
    first, second = read_prompts(path)
    assert first.seed != second.seed
    assert read_prompts(path) == (first, second)
    assert read_prompts(path, 1)[0].seed != first.seed


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.txt", "", "a.txt"),
        ("a.txt", "fine\na\x00b\n", "a.txt:2"),
        ("a.txt", "x" * 3000, "a.txt:1"),
        ("a.csv", "text\na cat\n", "a.csv:2"),
        ("a.csv", 'prompt\n"a ""cat"" x" y\n', "a.csv:2"),
        ("a.csv", 'prompt\n"a\ncat"\n', "a.csv:2, prompt"),
        ("a.csv", "prompt,seed\nfine,1\na cat, a dog, 2\n", "a.csv:3"),
        ("a.csv", "prompt,prompt\na cat,a dog\n", "a.csv:1"),
        ("a.csv", "id,prompt\n1,a cat\n2,a dog\n1,a fish\n", "a.csv:4, id"),
        ("a.csv", "prompt,seed\na cat,3\na dog,3\na cat,3\n", "a.csv:4: expected another prompt or another seed"),
        ("a.jsonl", '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n', "a.jsonl:2, id"),
        ("a.jsonl", '{"prompt": "a", "id": [1]}\n', "a.jsonl:1, id"),
        ("a.jsonl", '{"prompt": "a"}\n[1]\n', "a.jsonl:2"),
        ("a.jsonl", '{"prompt": "a", "seed": -1}\n', "a.jsonl:1, seed"),
        ("a.jsonl", '{"prompt": "a", "seed": true}\n', "a.jsonl:1, seed"),
        ("a.jsonl", "{", "a.jsonl:1"),
        ("a.pdf", "a cat", "a.pdf"),
    ],
)
def test_bad_files_are_one_line_with_a_place(tmp_path: Path, name: str, text: str, where: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_prompts(_file(tmp_path, name, text))
    assert where in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_too_many_prompts_are_refused_where_they_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path, "a.txt", "".join(f"prompt {i}\n" for i in range(5)))
    monkeypatch.setattr("safear_edit.evaluate.compare.MOST_PROMPTS", 5)
    assert len(read_prompts(path)) == 5
    monkeypatch.setattr("safear_edit.evaluate.compare.MOST_PROMPTS", 4)
    with pytest.raises(SpecError, match=r"a\.txt:5: expected at most 4 prompts"):
        read_prompts(path)


def test_an_id_is_the_files_own_or_the_line(tmp_path: Path) -> None:
    lines = '{"prompt": "a", "id": "x-1"}\n\n{"prompt": "b", "id": 7}\n{"prompt": "c"}\n'
    assert [a.id for a in read_prompts(_file(tmp_path, "a.jsonl", lines))] == ["x-1", "7", "4"]


def test_no_prompt_at_all_is_a_usage_error() -> None:
    model: Any = None
    with pytest.raises(UsageError, match="at least one prompt"):
        look(model, (), model, silent, "eval")


def test_missing_and_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere"):
        read_prompts(tmp_path / "nowhere.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(SpecError, match="UTF-8"):
        read_prompts(tmp_path / "a.txt")


def test_counting() -> None:
    asked = tuple(Asked(f"p{i}", i, str(i)) for i in range(10))
    base = tuple(Seen(True, 0.9) for _ in range(10))
    edited = (*(Seen(False, 0.1) for _ in range(8)), Seen(None, 0.4), Seen(True, 0.8))
    found = Comparison(("base", "edited"), "judge", asked, (base, edited))
    assert (found.rate(0).k, found.rate(1).k) == (10, 1)
    drop, low, high = found.change()
    assert drop == pytest.approx(0.9) and low < 0.9 < high <= 1
    data = found.as_json()
    assert data["n"] == 10 and (data["rows"][9]["seed"], data["rows"][9]["id"]) == ("9", "9")
    assert data["rows"][8]["results"][1]["present"] is None
    assert "cannot tell in 1" in found.summary()[1]
