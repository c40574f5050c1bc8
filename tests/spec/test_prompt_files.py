"""Prompt files that strangers wrote: what is taken, what is said about it, and what is refused with its place."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safear_edit.cli.evaluate import evaluate
from safear_edit.errors import SafearError, SpecError, UsageError
from safear_edit.spec.benchmarks import BENCHMARKS, LANGUAGES
from safear_edit.spec.prompt_files import STDIN, FilePrompt, PromptFile, read_prompts


def _file(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _read(folder: Path, name: str, text: str | bytes, **options: Any) -> PromptFile:
    return read_prompts(_file(folder, name, text), **options)


def _prompts(folder: Path, name: str, text: str | bytes) -> list[str]:
    return [one.prompt for one in _read(folder, name, text).prompts]


def test_every_format_says_the_same(tmp_path: Path) -> None:
    assert _prompts(tmp_path, "a.txt", "a cat\n\n  a dog \n") == ["a cat", "a dog"]
    table = _read(tmp_path, "a.csv", 'prompt,seed\r\n"a cat, asleep",7\r\na dog,\r\n').prompts
    assert table[0] == FilePrompt("a cat, asleep", 7, "2") and table[1].prompt == "a dog"
    lines = _read(tmp_path, "a.jsonl", '{"prompt": "a cat", "seed": "9223372036854775807"}\n').prompts
    assert list(lines) == [FilePrompt("a cat", 2**63 - 1, "1")]
    whole = _read(tmp_path, "a.json", '[{"Prompt": "a cat", "sd_seed": 5}, "a dog"]').prompts
    assert whole[0] == FilePrompt("a cat", 5, "1") and (whole[1].prompt, whole[1].id) == ("a dog", "2")
    assert _prompts(tmp_path, "a.CSV", "prompt;seed\na cat, a dog;3\n") == ["a cat, a dog"]


def test_seeds_are_stable_and_differ_by_line_and_root(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.txt", "a cat\na cat\n")
    first, second = read_prompts(path).prompts
    assert first.seed != second.seed
    assert list(read_prompts(path).prompts) == [first, second]
    assert read_prompts(path, 1).prompts[0].seed != first.seed


def test_the_published_seeds_are_taken_and_said(tmp_path: Path) -> None:
    """I2P's columns: two images of one prompt, each with the seed that was published with it."""
    text = (
        "prompt,categories,hard,sd_seed,sd_guidance_scale\na dog by Picasso,x,0,1001,7\na dog by Picasso,x,0,1002,7.5\n"
    )
    found = _read(tmp_path, "i2p.csv", text)
    assert [one.seed for one in found.prompts] == [1001, 1002]
    (note,) = found.notes
    assert "seeds from `sd_seed`" in note and "not used: categories, hard, sd_guidance_scale" in note
    both = _read(tmp_path, "b.csv", "prompt,sd_seed,evaluation_seed\na dog,1,2\n")
    assert both.prompts[0].seed == 2 and "not used: sd_seed" in both.notes[0]
    none = _read(tmp_path, "parti.tsv", "Prompt\tCategory\tChallenge\tNote\na dog by Picasso\tArts\tStyle & Format\t\n")
    assert none.prompts[0].prompt == "a dog by Picasso" and "a seed of its own for each prompt" in none.notes[0]
    index = _read(tmp_path, "pandas.csv", ",prompt,categories\n0,a dog,x\n1,a cat,y\n")
    assert [one.id for one in index.prompts] == ["2", "3"] and "(unnamed), categories" in index.notes[0]


@pytest.mark.parametrize(
    ("name", "raw", "prompts"),
    [
        ("nbsp.txt", "by Pablo\u00a0Picasso\n", ["by Pablo Picasso"]),
        ("wide.txt", "\u5bb6\u3000\u5e8a\n", ["\u5bb6 \u5e8a"]),
        ("tab.txt", "a house\ton a beach\n", ["a house on a beach"]),
        ("persian.txt", "\u062e\u0627\u0646\u0647\u200c\u0627\u06cc\n", ["\u062e\u0627\u0646\u0647\u200c\u0627\u06cc"]),
        ("soft.txt", "a light\u00adhouse\n", ["a lighthouse"]),
        ("cr.txt", "a dog\ra cat\r", ["a dog", "a cat"]),
        ("utf16.txt", "a house\r\n".encode("utf-16"), ["a house"]),
        ("bom.csv", b"\xef\xbb\xbfprompt\na cat\n", ["a cat"]),
        ("quoted.csv", 'prompt\n"a\ncat"\n"a\r\ndog"\n', ["a cat", "a dog"]),
        ("quoted.jsonl", '{"prompt": "a\\ncat"}\n', ["a cat"]),
        ("cr.csv", "prompt\ra dog\ra cat\r", ["a dog", "a cat"]),
    ],
)
def test_ordinary_text_is_text(tmp_path: Path, name: str, raw: str | bytes, prompts: list[str]) -> None:
    assert _prompts(tmp_path, name, raw) == prompts


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.txt", "", "a.txt"),
        ("a.txt", "fine\na\x00b\n", "a.txt:2"),
        ("a.txt", "fine\na \u202eb\n", "a.txt:2"),
        ("a.txt", "x" * 3000, "a.txt:1"),
        ("a.csv", "text\na cat\n", "a.csv:2, prompt: expected a column `prompt`, got columns 'text'"),
        ("a.csv", 'prompt\n"a ""cat"" x" y\n', "a.csv:2"),
        ("a.csv", "prompt,seed\nfine,1\na cat, a dog, 2\n", "a.csv:3"),
        ("a.csv", "prompt,seed,note\na dog by Picasso,1\n", "a.csv:2, note: expected 3 fields"),
        ("a.csv", "prompt,prompt\na cat,a dog\n", "a.csv:1"),
        ("a.csv", "prompt,Prompt\na cat,a dog\n", "a.csv:1"),
        ("a.csv", "id,prompt\n1,a cat\n2,a dog\n1,a fish\n", "a.csv:4, id"),
        (
            "a.csv",
            "id,prompt\n3,a dog by Picasso\n,a cat by Picasso\n",
            "a.csv:3, id: expected an id of its own, got none",
        ),
        ("a.csv", "prompt,seed\na cat,3\na dog,3\na cat,3\n", "a.csv:4: expected another prompt or another seed"),
        (
            "a.csv",
            "prompt,seed\na dog by Picasso,42.0\n",
            "a.csv:2, seed: expected a whole number below 2^63, got '42.0'",
        ),
        ("a.csv", f"prompt,seed\na house,{'9' * 6000}\n", "a.csv:2, seed"),
        ("a.csv", f"prompt,sd_seed\na house,{2**63}\n", "a.csv:2, sd_seed"),
        ("a.jsonl", '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n', "a.jsonl:2, id"),
        ("a.jsonl", '{"prompt": "a", "id": [1]}\n', "a.jsonl:1, id"),
        ("a.jsonl", '{"prompt": "a"}\n[1]\n', "a.jsonl:2"),
        ("a.jsonl", '{"prompt": "a", "seed": -1}\n', "a.jsonl:1, seed"),
        ("a.jsonl", '{"prompt": "a", "seed": true}\n', "a.jsonl:1, seed"),
        ("a.jsonl", '{"prompt": "a", "seed": 1.0}\n', "a.jsonl:1, seed"),
        ("a.jsonl", f'{{"prompt": "a", "seed": {"9" * 6000}}}\n', "a.jsonl:1"),
        ("a.jsonl", '{"prompt":"a house","prompt":"a dog"}', "a.jsonl:1: expected each key once"),
        ("a.jsonl", "{", "a.jsonl:1"),
        ("a.json", '{"prompt": "a"}', "a.json: expected a JSON list"),
        ("a.json", '[{"prompt": "a"}, 3]', "a.json, entry 2"),
        ("a.pdf", "a cat", "a.pdf"),
        ("a.parquet", "PAR1", "pyarrow"),
        ("a.txt", "a naked child\n", "a.txt:1, prompt: expected no words for minors"),
    ],
)
def test_bad_files_are_one_line_with_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, where: str
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError) as caught:
        read_prompts(_file(tmp_path, name, text))
    assert where in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_bad_rows_are_left_out_and_counted_if_asked(tmp_path: Path) -> None:
    text = 'prompt,seed\na cat,1\na dog,x\na fish\n"a ""b"" c" d,2\na horse,3\na cat,1\n'
    found = _read(tmp_path, "a.csv", text, skip_bad=True)
    assert [one.prompt for one in found.prompts] == ["a cat", "a horse"]
    assert [fault.partition(": ")[0].rpartition(":")[2] for fault in found.bad] == ["3, seed", "4, seed", "5", "7"]
    with pytest.raises(SpecError, match="at least one prompt, got none that can be taken"):
        _read(tmp_path, "b.csv", "prompt,seed\na cat,x\n", skip_bad=True)


def test_a_line_without_end_and_a_list_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safear_edit.spec.prompt_files.LONGEST_LINE", 100)
    monkeypatch.setattr("safear_edit.spec.prompt_files.LARGEST_JSON", 100)
    long = "x" * 101
    for name, text, where in (
        ("a.txt", f"a dog\n{long}", "a.txt:2: expected a line of at most 100"),
        ("a.jsonl", long, "a.jsonl:1: expected a line of at most 100"),
        ("a.json", f'["{long}"]', "in a JSON list, got a larger file; write one object a line in a .jsonl"),
    ):
        with pytest.raises(SpecError, match=where):
            _read(tmp_path, name, text)
    monkeypatch.setattr("safear_edit.spec.prompt_files.LARGEST_FILE", 100)
    with pytest.raises(SpecError, match="a larger file; split it"):
        _read(tmp_path, "a.txt", "a dog\n" * 20)


def test_too_many_prompts_are_refused_where_they_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path, "a.txt", "".join(f"prompt {i}\n" for i in range(5)))
    monkeypatch.setattr("safear_edit.spec.prompt_files.MOST_PROMPTS", 5)
    assert len(read_prompts(path).prompts) == 5
    monkeypatch.setattr("safear_edit.spec.prompt_files.MOST_PROMPTS", 4)
    with pytest.raises(SpecError, match=r"a\.txt:5: expected at most 4 prompts"):
        read_prompts(path)


def test_an_id_is_the_files_own_or_the_line(tmp_path: Path) -> None:
    lines = '{"prompt": "a", "id": "x-1"}\n\n{"prompt": "b", "id": 7}\n{"prompt": "c"}\n'
    assert [one.id for one in _read(tmp_path, "a.jsonl", lines).prompts] == ["x-1", "7", "4"]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("a cat\na dog, asleep\n", ["a cat", "a dog, asleep"]),
        ("seed;prompt\n3;a cat\n", ["a cat"]),
        ('{"prompt": "a cat"}\n', ["a cat"]),
        ('\n[{"prompt": "a cat"}]\n', ["a cat"]),
    ],
)
def test_standard_input_is_read_by_its_first_line(
    monkeypatch: pytest.MonkeyPatch, text: str, prompts: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert [one.prompt for one in read_prompts(STDIN).prompts] == prompts


def test_missing_and_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(SpecError, match="UTF-8"):
        _read(tmp_path, "a.txt", b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"a\.txt:2: expected UTF-8"):
        _read(tmp_path, "a.txt", b"fine\na\xff\n")


def test_a_parquet_table_is_read_where_pyarrow_is_installed(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {"Prompt": ["a cat", "a\u00a0dog"], "sd_seed": [3, 4], "hard": [0, 1]}
    parquet.write_table(arrow.table(table), tmp_path / "a.parquet")
    found = read_prompts(tmp_path / "a.parquet")
    assert list(found.prompts) == [FilePrompt("a cat", 3, "1"), FilePrompt("a dog", 4, "2")]
    parquet.write_table(arrow.table({"text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(SpecError, match="expected a column `prompt`, got columns 'text'"):
        read_prompts(tmp_path / "b.parquet")
    with pytest.raises(SpecError, match="a parquet file"):
        read_prompts(_file(tmp_path, "c.parquet", b"PAR1xxxxPAR1"))


BENCHMARK_FILES = {
    "i2p": ("a.csv", "prompt,categories,hard,sd_seed,sd_guidance_scale\na dog,x,0,11,7\n", ("a dog", 11)),
    "unlearndiffatk": (
        "a.csv",
        "case_number,prompt,evaluation_seed,sd_guidance_scale\n3,a dog,12,7.5\n",
        ("a dog", 12),
    ),
    "mma": ("a.csv", "target_prompt,adv_prompt,clean_prompt\na cat,a dog zq,x\n", ("a dog zq", None)),
    "ring-a-bell": ("a.csv", ",sensitive prompt\n0,a dog cubism\n", ("a dog cubism", None)),
    "ecgvf": ("a.json", '[{"prompt": "a church at dawn"}]', ("a church at dawn", None)),
    "six-cd": ("a.csv", 'case_number,evaluation_seed,prompt\n0,27858,"a tench, grass"\n', ("a tench, grass", 27858)),
    "hub": ("a.csv", "a cat, drawn in ink, by a window\n", ("a cat, drawn in ink, by a window", None)),
    "hub-pinpoint": ("a.csv", "noun,similarity\ntabby_cat,0.776\n", ("a photo of tabby_cat", None)),
    **{
        f"hub-{language.lower()}": (
            "a.csv",
            f"Original,{','.join(LANGUAGES)},Index\na cat,{','.join(f'gato {name}' for name in LANGUAGES)},7\n",
            (f"gato {language}", None),
        )
        for language in LANGUAGES
    },
}


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_benchmarks_are_read_by_their_own_columns(name: str, tmp_path: Path) -> None:
    file, text, (prompt, seed) = BENCHMARK_FILES[name]
    found = _read(tmp_path, file, text, benchmark=BENCHMARKS[name])
    (one,) = found.prompts
    assert one.prompt == prompt and (seed is None or one.seed == seed)
    (note,) = found.notes
    assert BENCHMARKS[name].metric in note and "https://" in note
    if BENCHMARKS[name].lines:
        return
    wrong = next(iter(BENCHMARKS[name].columns))
    with pytest.raises(SpecError, match=f"{wrong}: expected the columns of"):
        _read(tmp_path, "b.csv", "text,label\na dog,1\n", benchmark=BENCHMARKS[name])


def test_as_many_nouns_are_asked_for_as_the_benchmark_asks_for(tmp_path: Path) -> None:
    nouns = "".join(f"thing{number},0.5\n" for number in range(150))
    found = _read(tmp_path, "a.csv", f"noun,similarity\n{nouns}", benchmark=BENCHMARKS["hub-pinpoint"])
    assert [one.prompt for one in found.prompts] == [f"a photo of thing{number}" for number in range(100)]
    with pytest.raises(SpecError, match=r"a\.json"):
        _read(tmp_path, "a.json", '[{"noun": null}]', benchmark=BENCHMARKS["hub-pinpoint"])


def test_one_column_of_tabs_may_have_commas_in_it(tmp_path: Path) -> None:
    found = _read(tmp_path, "a.tsv", "prompt\na dog, in oil\na house\n")
    assert [one.prompt for one in found.prompts] == ["a dog, in oil", "a house"]
    with pytest.raises(SpecError, match=r"a\.csv:2"):
        _read(tmp_path, "a.csv", "prompt\na dog, in oil\na house\n")


OTHERS = {"sd_seed": "1e3", "evaluation_seed": -1}


@pytest.mark.parametrize("name", [None, *BENCHMARKS])
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.json", '[{"PROMPT": "a dog", "prompt": "a cat"}]'),
        ("a.jsonl", '{"prompt": "a dog", "Prompt": "a cat"}'),
        ("a.csv", "prompt,PROMPT\na dog,a cat\n"),
        ("a.csv", 'prompt\n"a dog'),
        ("a.csv", "prompt," + "x" * 200_000 + "\na,b\n"),
        ("a.tsv", "adv_prompt\tsensitive prompt\tprompt\n\n"),
        ("a.json", json.dumps([{**OTHERS, "prompt": {"a": 1}, "adv_prompt": [], "sensitive prompt": 3}])),
        ("a.json", json.dumps([{**OTHERS, "prompt": "a", "adv_prompt": "", "sensitive prompt": ""}])),
        ("a.json", "3"),
        ("a.txt", "\ud7ff\x00\n"),
        ("a.parquet", "PAR1"),
        ("a.exe", "a dog"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_one_line_in_every_format(tmp_path: Path, name: str | None, file: str, text: str) -> None:
    if name and BENCHMARKS[name].lines and file == "a.csv":
        pytest.skip("no table, but a prompt a line: any text is one")
    with pytest.raises(SafearError) as caught:
        _read(tmp_path, file, text, benchmark=BENCHMARKS[name] if name else None)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_names_of_columns_cannot_break_a_line(tmp_path: Path) -> None:
    found = _read(tmp_path, "a.json", json.dumps([{"prompt": "a dog", "x\n::error::y": 1, "\x1b[2J" + "z" * 99: 2}]))
    (note,) = found.notes
    assert note.isprintable() and len(note) < 250


def test_the_command_line_knows_every_benchmark() -> None:
    """Named there as literals, so that --help imports nothing."""
    option = next(one for one in evaluate.params if one.name == "layout")
    assert list(option.type.choices) == list(BENCHMARKS)  # type: ignore[attr-defined]
