"""Who describes unsafe images: the model, another one, or a folder of transformers' layout; the rest is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safear_edit import registry
from safear_edit.cli import main
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import Recipe, load_base_recipe
from safear_edit.construct.captions import refiner_of
from safear_edit.errors import UsageError
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.files.atomic import digest_of
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline import steps
from safear_edit.pipeline.captioner import Captioner, captioner_of, load_captioner
from safear_edit.progress import silent
from safear_edit.spec.spec import load_spec


def _recipe(model: LlamaGen, *sets: str) -> Recipe:
    spec = load_spec(registry.find_builtin("concepts", "picasso"))
    return compile_recipe(spec, model.card, load_base_recipe("vce"), overrides=("construct.pairs=12", *sets))


def test_another_model_describes_what_one_that_only_draws_drew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Janus.pico(seed=0).export(tmp_path)
    model = LlamaGen.pico()
    plain, beside = _recipe(model), _recipe(model, f"construct.captioner={tmp_path}")
    assert "captioner" not in plain.model_dump(mode="json")["construct"] and captioner_of(plain, model) is None
    assert beside.digest != plain.digest and refiner_of(beside) is not None
    found = captioner_of(beside, model)
    monkeypatch.setattr(Janus, "describe", lambda captioner, images: [str(tuple(one.shape)) for one in images])
    assert found is not None
    assert found.describe(torch.zeros(2, 3, 40, 40, dtype=torch.uint8)) == ["(3, 16, 16)"] * 2, "in its own size"


def test_the_options_are_told_by_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LlamaGen.pico().export(tmp_path)
    words = ["plan", "picasso", "--model", str(tmp_path), "--set", "construct.pairs=12", "--device", "cpu"]
    assert main.run([*words, "--captioner", "janus:mini"]) == 0
    assert "safe captions         by janus:mini" in capsys.readouterr().out
    assert main.run([*words, "--set", "construct.text_align=0.25"]) == 0
    out = capsys.readouterr().out
    assert "safe captions" not in out and "a CLIP cosine below 0.25 to its caption" in out
    assert main.run(words) == 0 and "CLIP cosine" not in capsys.readouterr().out


def test_two_ways_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="one way to safe captions"):
        _recipe(LlamaGen.pico(), "construct.refine=self", "construct.captioner=janus:mini")


def _blip(folder: Path) -> None:
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "house", "by", "night"]
    (folder / "vocab.txt").write_text("\n".join(words))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 5, "sep_token_id": 3,
            "eos_token_id": 3, "pad_token_id": 0}  # fmt: skip
    config = BlipConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16})
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    sized = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(sized, BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]")).save_pretrained(folder)


def test_a_model_of_transformers_describes_images(tmp_path: Path) -> None:
    _blip(tmp_path)
    found = load_captioner(str(tmp_path))
    assert isinstance(found, Captioner)
    said = found.describe(torch.randint(0, 255, (2, 3, 40, 40), dtype=torch.uint8))
    assert len(said) == 2 and all(isinstance(one, str) and "[" not in one for one in said)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="a model that transformers loads") as refused:
        load_captioner(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_pairs_are_made_again_with_another_captioner_in_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe has its name alone; without one, a run goes on with the pairs that it has."""
    folder, model, inputs = tmp_path / "blip", LlamaGen.pico(), list[str]()
    folder.mkdir()
    _blip(folder)
    monkeypatch.setattr(RunDir, "step", lambda run, name, asked, *how: inputs.append(asked))
    run = RunDir(tmp_path, tmp_path / "out")
    plain, mini, beside = (_recipe(model, *sets) for sets in ((), ("construct.captioner=janus:mini",),
                                                              (f"construct.captioner={folder}",)))  # fmt: skip
    for recipe in (plain, mini, beside, beside):
        steps.construct(run, recipe, model, silent)
    assert inputs[0] == digest_of(plain.digest, "", *steps.readers(model, plain)), "as before there were captioners"
    assert inputs[1] != digest_of(mini.digest, "", *steps.readers(model, mini)) and inputs[2] == inputs[3]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    steps.construct(run, beside, model, silent)
    assert inputs[4] != inputs[2]


@pytest.mark.parametrize(("name", "wanted"), [("llamagen", "answers questions"), ("./nothing", "a model directory")])
def test_what_describes_nothing_is_refused_in_one_line(name: str, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted) as refused:
        load_captioner(name)
    assert "\n" not in str(refused.value)
