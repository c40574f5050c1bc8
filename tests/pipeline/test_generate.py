"""Images of a user's prompts: what an interrupted command drew is kept, what it didn't draw isn't overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safear_edit.cli import main
from safear_edit.errors import UsageError
from safear_edit.families.llamagen import LlamaGen
from safear_edit.pipeline import generate as pipeline

PROMPTS = ("a house", "\u5bb6")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LlamaGen:
    made = LlamaGen.pico()
    monkeypatch.setattr(pipeline, "load_model", lambda *given: made)
    monkeypatch.setattr(pipeline, "BATCH", 3)
    return made


def draw(out: Path, prompts: tuple[str, ...] = PROMPTS, count: int = 4, **more: Any) -> list[Path]:
    settings = {"seed": 7, "device": "cpu", "overwrite": False} | more
    return pipeline.generate("llamagen", prompts, count=count, out=out, **settings)[1]


def test_an_interrupted_command_continues(model: LlamaGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {path.name: path.read_bytes() for path in draw(tmp_path / "whole")}
    assert len(whole) == 8

    def stop(stage: str, done: int, total: int, info: str = "") -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "cut", progress=stop)
    drawn, generate = list[int](), model.generate
    monkeypatch.setattr(model, "generate", lambda c, seeds, *a: drawn.extend(seeds) or generate(c, seeds, *a))
    assert {path.name: path.read_bytes() for path in draw(tmp_path / "cut")} == whole
    assert drawn == [9, 10], "six of eight were there"
    assert len(draw(tmp_path / "cut", count=5)) == 10 and drawn == [9, 10, 11, 11], "more of the same goes on as well"


def test_files_of_anything_else_are_refused_or_replaced(model: LlamaGen, tmp_path: Path) -> None:
    (first, *_) = draw(tmp_path, count=1)
    kept = first.read_bytes()
    model.sampling = type(model.sampling)(3.0)
    with pytest.raises(UsageError, match="one that exists and that this command didn't write"):
        draw(tmp_path, count=1)
    assert first.read_bytes() == kept
    draw(tmp_path, count=1, overwrite=True)
    assert first.read_bytes() != kept
    for foreign in (b"notes", b""):
        first.write_bytes(foreign)
        with pytest.raises(UsageError, match="a new file"):
            draw(tmp_path, count=1)
        assert first.read_bytes() == foreign
    Image.new("RGB", (4, 4)).save(first)
    with pytest.raises(UsageError, match="a new file"):
        draw(tmp_path, count=1)


def test_no_file_name_looks_like_an_option(model: LlamaGen, tmp_path: Path) -> None:
    names = [path.name for path in draw(tmp_path, ("\u5bb6", "--rf", "!"), count=1)]
    assert len(set(names)) == 3 and not any(name.startswith("-") for name in names)


def test_a_caption_that_is_not_read_to_its_end_is_named(model: LlamaGen, tmp_path: Path) -> None:
    said: list[str] = []
    long = "a house with " + "a lot of light and " * 12 + "by Picasso"
    draw(tmp_path, ("a house", long), count=1, say=said.append)
    assert len(said) == 1 and said[0].startswith("warning: only 32 of ") and said[0].endswith(long)


def test_models_side_by_side(model: LlamaGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"count": 2, "seed": 7, "device": "cpu", "out": tmp_path / "out", "overwrite": False}
    drawn, sheet = pipeline.side_by_side(["llamagen", "llamagen:mini"], ["a house"], **settings)
    assert [name for name, _ in drawn] == ["llamagen", "llamagen:mini"]
    assert [[path.parent.name for path in paths] for _, paths in drawn] == [["1-llamagen"] * 2, ["2-llamagen-mini"] * 2]
    first, second = ([path.read_bytes() for path in paths] for _, paths in drawn)
    assert first == second, "the same model and seeds"
    tile = model.card.image_size
    with Image.open(sheet) as page:
        assert page.height > 2 * tile and page.width > 2 * tile
    assert pipeline.side_by_side(["llamagen", "llamagen:mini"], ["a house"], **settings)[1] == sheet, "the same again"
    before = sheet.read_bytes()
    for models, prompt in ((["llamagen", "llamagen:mini"], "a dog"), (["llamagen"], "a house")):
        with pytest.raises(UsageError, match=r"side-by-side\.png: expected a new file"):
            pipeline.side_by_side(models, [prompt], **settings)
    assert sheet.read_bytes() == before and len([*(tmp_path / "out").rglob("*.png")]) == 5


def test_images_by_another_text_encoder_are_others(
    model: LlamaGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path, count=1)
    monkeypatch.setattr(model.text, "origin", lambda: ("t5", "f" * 64))
    with pytest.raises(UsageError, match="one that exists and that this command didn't write"):
        draw(tmp_path, count=1)


def test_a_prompt_of_other_bytes_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a prompt in UTF-8, got 'a \\udcff dog'; write it in UTF-8"):
        draw(tmp_path, (b"a \xff dog".decode(errors="surrogateescape"),))


def test_the_last_word_is_the_prompt(model: LlamaGen, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end = ["--out", str(tmp_path / "out"), "--device", "cpu", "-q"]
    assert main.run(["generate", "llamagen", "llamagen:mini", "a house", "--n", "1", *end]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("side-by-side.png")
    assert main.run(["generate", "a house", *end]) == 2
    assert "name the model" in capsys.readouterr().err
    assert main.run(["generate", "llamagn", "a house", *end]) == 2
    assert "did you mean 'llamagen'" in capsys.readouterr().err
