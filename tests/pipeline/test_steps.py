"""The parts of the walk that need no trained model: where a source lies, what a verdict ends with, what is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from safear_edit import registry
from safear_edit.compiler.recipe import load_base_recipe
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import adapter_weights, borrowed, inject
from safear_edit.errors import UsageError
from safear_edit.families.base import ModelCard, ModelFamily
from safear_edit.families.infinity import Infinity
from safear_edit.families.llamagen import LlamaGen
from safear_edit.pipeline import steps
from safear_edit.pipeline.environment import PACKAGES
from safear_edit.pipeline.generate import _slug, generate
from safear_edit.pipeline.order import resolve_device, source_path
from safear_edit.pipeline.publish import Result
from safear_edit.progress import silent
from safear_edit.spec.spec import Judge as Asked
from safear_edit.studies.contest import material_of


def _result(status: str, *, signed: bool = False, on_purpose: bool = False) -> Result:
    criterion: Any = SimpleNamespace(decision=status, id="erasure/x/direct", observed="9 of 10", needed="9 of 10")
    verdict = SimpleNamespace(status=status, criteria=(criterion,), summary="Not detected in 9 of 10.")
    report: Any = SimpleNamespace(verdict=verdict)
    return Result(Path("safe"), report, signed, on_purpose)


@pytest.mark.parametrize(
    ("status", "signed", "on_purpose", "code"),
    [
        ("PASS", True, False, 0),
        ("PASS", False, True, 0),
        ("PASS", False, False, 2),
        ("FAIL", True, False, 1),
        ("FAIL", False, False, 1),
        ("INCONCLUSIVE", True, False, 3),
    ],
)
def test_exit_codes(status: str, signed: bool, on_purpose: bool, code: int) -> None:
    assert _result(status, signed=signed, on_purpose=on_purpose).exit_code == code


def test_advice_is_given_only_where_a_signature_is_missed() -> None:
    assert "keygen" in _result("PASS").advice and "--unsigned" in _result("PASS").advice
    assert not _result("PASS", signed=True).advice and not _result("FAIL", on_purpose=True).advice


def test_a_source_is_a_path_or_a_built_in_concept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_path("picasso").name == "picasso.yaml" and source_path("picasso").is_file()
    assert source_path("mine.yaml") == Path("mine.yaml")
    (tmp_path / "picasso").mkdir()
    assert source_path("picasso").is_file(), "a folder of that name, an output perhaps, is no spec"
    with pytest.raises(UsageError, match="picasso"):
        source_path("piccasso")


def test_a_device_that_is_not_there() -> None:
    assert resolve_device("auto") in ("cpu", "cuda")
    for name in ("cuda:63", "toaster"):
        with pytest.raises(UsageError, match="take auto or cpu"):
            resolve_device(name)


def test_nothing_to_draw_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    for prompts, count in (((), 1), (("a cat",), 0)):
        with pytest.raises(UsageError, match="at least one prompt"):
            generate("llamagen", prompts, count=count, seed=0, device="cpu", out=tmp_path / "new", overwrite=False)
    assert not (tmp_path / "new").exists()


def test_a_picture_that_was_deleted_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluate step answers for its sheets as for its rows."""
    from safear_edit.evaluate import sampled as evaluation
    from safear_edit.files import rundir

    calls: list[Path] = []

    def drawn(model: Any, edit: Any, recipe: Any, folder: Path, **more: Any) -> None:
        calls.append(folder)
        (folder / "images").mkdir(exist_ok=True)
        for name in ("outcomes.jsonl", "judges.json", *(f"images/{s}" for s in SHEETS)):
            (folder / name).write_text(name)

    monkeypatch.setattr(evaluation, "evaluate", drawn)
    readers = ["a detector"]
    monkeypatch.setattr(steps, "readers", lambda model, recipe: tuple(readers))
    recipe: Any = SimpleNamespace(digest="0" * 64)
    model: Any = SimpleNamespace(card=ModelCard("f", "v", 40, 100, 512, (100,), 1, "MIT"))
    with rundir.opened(tmp_path / "out") as run:
        run.step("edit", "", ["edit.txt"], lambda: (run / "edit.txt").write_text("x") and None)
        for lost in ("", "images/slice-direct.png", "images/before_after.json"):
            if lost:
                (run / lost).unlink()
            steps.evaluate(run, recipe, model, recipe, lambda *_: None)
            steps.evaluate(run, recipe, model, recipe, lambda *_: None)
            assert not lost or (run / lost).exists()
        readers[0] = "another"
        steps.evaluate(run, recipe, model, recipe, lambda *_: None)
        assert set(run.files("evaluate")) >= {f"images/{name}" for name in SHEETS}
    assert len(calls) == 4


def test_what_reads_captions_and_images_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on with another text encoder, or with more images in its judge's folder, is another run."""
    model, pictures = LlamaGen.pico(), tmp_path / "pictures"
    for name in ("style=picasso", "style=monet"):
        (pictures / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(pictures / name / "a.png")
    asked = Asked(use="folder", label="style=picasso", options={"folder": str(pictures)})
    recipe: Any = SimpleNamespace(
        spec=SimpleNamespace(judge=asked),
        evaluate=SimpleNamespace(prompts=[SimpleNamespace(judge_label="style=monet")]),
    )
    before = steps.readers(model, recipe)
    assert steps.readers(model, recipe) == before and len(before) == 3
    monkeypatch.setattr(model.text, "origin", lambda: ("minilm", "another"))
    assert [a == b for a, b in zip(before, steps.readers(model, recipe), strict=True)] == [False, True, True]
    Image.new("RGB", (40, 40), "green").save(pictures / "style=monet/b.png")
    assert not set(before) & set(steps.readers(model, recipe))


SHEETS = (
    "before_after.png",
    "before_after.json",
    "slice-direct.png",
    "slice-direct.json",
    "scored.jsonl",
    "scored-000.webp",
)


def test_a_search_knows_its_captions_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refined caption, or Obliviate's own prompt, brought an encoder of 2.4 GB back, which then stayed."""
    model, told = LlamaGen.pico(), list[object]()
    material = material_of(model, 2)
    monkeypatch.setattr(model, "keep_captions", lambda *given: told.append(given))
    method = SimpleNamespace(name="vce", params={"steps": 1, "batch": 1, "keep_weight": 0})
    recipe: Any = SimpleNamespace(method=method, seed=0, digest="d" * 64)
    run: Any = tmp_path
    steps.search(run, material, [recipe, SimpleNamespace(digest="e" * 64)], model, silent)
    asked = [*dict.fromkeys([*material.pairs.unsafe, *material.pairs.safe, "Picasso"])]
    assert told == [(asked, tmp_path / "captions.safetensors", "d" * 64)]
    assert Edit.load(tmp_path / "edit").recipes == ("d" * 64, "e" * 64), "a joint edit names each of its recipes"


def test_picture_names_are_safe_and_distinct() -> None:
    names = {_slug(prompt) for prompt in ("a cat", "a cat!", "../../etc/passwd", "", "x" * 500)}
    assert len(names) == 5
    assert all("/" not in name and len(name) <= 67 for name in names)


def test_every_package_of_the_environment_is_installed() -> None:
    from safear_edit.pipeline.environment import version_of

    assert [name for name in PACKAGES if name != "safear-edit" and version_of(name) is None] == []


@pytest.mark.parametrize(("family", "method"), [(LlamaGen, "vce"), (Infinity, "sace"), (Infinity, "svare")])
def test_what_is_announced_to_be_trained_is_what_is_trained(family: type[ModelFamily], method: str) -> None:
    model = family.pico()
    kind = registry.lookup("methods", method).load()
    params = kind.Params(**load_base_recipe(method).params)
    announced = kind().trainable(params, model)
    with borrowed(model.net, writes=()):
        weights = adapter_weights(inject(model.net, model.editable(params.part), params, 0))
        assert announced == sum(weight.numel() for weight in weights.values()) > 0


def test_a_method_on_the_codebook_trains_the_codebook() -> None:
    model = LlamaGen.pico()
    kind = registry.lookup("methods", "safe_cb").load()
    assert kind().trainable(kind.Params(), model) == model.image_table().numel() > 0
