"""The rehearsal goes through every stage, on a pico in place of a published size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from safear_edit.compiler.cost import declared, stage_bytes
from safear_edit.errors import UsageError
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import GPT, GPTConfig, LlamaGen
from safear_edit.methods.vce import VCE
from safear_edit.studies import rehearse
from tests import ROOT


def pico_files(folder: Path, variant: str) -> None:
    LlamaGen.pico().export(folder)


@pytest.mark.soak
def test_every_stage_is_a_row_and_the_export_draws_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(rehearse.MAKERS, "llamagen:xl-256", pico_files)  # type: ignore[arg-type]
    rows, words = tmp_path / "rows.jsonl", ["llamagen:xl-256", "--out", str(tmp_path), "--methods", "vce", "ear"]
    for left in ("llamagen-xl-256.partial", "llamagen-xl-256-work/edit"):  # by rehearsals that were killed
        (tmp_path / left).mkdir(parents=True)
    assert rehearse.main([*words, "--files"]) == 0
    assert rehearse.main([*words, "--rows", str(rows), "--dtype", "bfloat16"]) == 0
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    stages = ["load", "captions encoded, encoder gone", "two images", "vce, two steps", "merged and exported"]
    assert [row["stage"] for row in found] == [*stages, "the export loaded, one image", "ear, two steps"]
    assert found[0]["command"].endswith("rehearse llamagen:xl-256 --dtype bfloat16 --methods vce ear")
    assert found[-2]["same image"] is True and all(row["GiB"] > 0.1 and row["date"] for row in found)


@pytest.mark.soak
def test_a_model_in_several_files_is_written_one_by_one_loaded_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (files := tmp_path / "pico").mkdir()
    Janus.pico().export(files)
    config, held = AutoConfig.from_pretrained(files), list[int]()
    monkeypatch.setattr(rehearse, "janus_layout", lambda variant: (config, Janus.pico().source.files))
    monkeypatch.setattr(rehearse, "SHARD", 1 << 16)
    write = rehearse.write_weights
    monkeypatch.setattr(
        rehearse,
        "write_weights",
        lambda path, shard, note: (held.append(sum(one.nbytes for one in shard.values())), write(path, shard, note)),
    )
    rows, words = tmp_path / "rows.jsonl", ["janus:pro-7b", "--out", str(tmp_path)]
    assert rehearse.main([*words, "--files"]) == 0
    assert len(held) > 2 and max(held) <= 1 << 16
    assert rehearse.main([*words, "--rows", str(rows), "--dtype", "bfloat16", "--load-only"]) == 0
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["stage"] for row in found] == ["load", "one image read"] and found[1]["finite"] is True
    assert found[0]["command"].endswith("--dtype bfloat16 --load-only") and found[0]["predicted GiB"] > 0.8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["janus-pro-7b", "pico", "rows.jsonl"]


def test_a_folder_in_the_repository_is_refused() -> None:
    with pytest.raises(UsageError, match="outside the repository"):
        rehearse.main(["llamagen:xl-256", "--out", str(ROOT / "examples")])


def test_random_files_have_the_layout_and_no_tensor_without_numbers() -> None:
    sizes = GPTConfig(64, 2, 4, 64, 32, 8, 16)
    state = rehearse.random_state(lambda: GPT(sizes), torch.float32)
    assert {name: one.shape for name, one in state.items()} == {n: t.shape for n, t in GPT(sizes).state_dict().items()}
    assert all(one.isfinite().all() and one.any() for one in state.values())


def test_with_a_budget_a_step_has_the_recipes_batch_and_saves_what_it_must() -> None:
    model = LlamaGen.pico()
    roomy = rehearse.numbers("vce", model, 1 << 40)
    assert rehearse.saved(roomy, 1 << 40) == {
        "pairs": 8,
        "preserved": 12,
        "layers again": False,
        "parts": 1,
        "parts of the preserved": 1,
    }
    card = model.card
    work = declared(VCE(), roomy, card, 2)
    needed = stage_bytes(model, roomy, work, VCE().trainable(roomy, model))["training"]
    tight = rehearse.saved(rehearse.numbers("vce", model, needed - 1), needed)
    assert tight["layers again"] is True and tight["pairs"] == 8
    assert rehearse.numbers("vce", model, None).batch == 1 and not rehearse.saved(roomy, None)  # type: ignore[attr-defined]


def test_the_first_part_of_a_batch_is_a_batch_of_its_own() -> None:
    model = LlamaGen.pico()
    whole = rehearse.numbers("vce", model, 1 << 40)
    part, parts = rehearse.first_part(whole.model_copy(update={"accumulate": 4, "recompute": True}))
    said = rehearse.saved(part, 1 << 40)
    assert parts == 4 and (said["pairs"], said["preserved"], said["parts"]) == (2, 3, 1) and said["layers again"]
    assert rehearse.first_part(whole) == (whole, 1)


def test_training_alone_neither_draws_nor_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rehearse.MAKERS, "llamagen:xl-256", pico_files)  # type: ignore[arg-type]
    rows, words = tmp_path / "rows.jsonl", ["llamagen:xl-256", "--out", str(tmp_path), "--methods", "sft"]
    assert rehearse.main([*words, "--files"]) == 0
    only = ["--rows", str(rows), "--memory", "64", "--training-only", "--one-part"]
    assert rehearse.main([*words, *only]) == 0
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["stage"] for row in found] == ["load", "sft, the first of 1 parts of one step of its recipe in 64 GiB"]
    assert found[0]["command"].endswith("--methods sft --memory 64 --one-part --training-only")
    with pytest.raises(UsageError, match="--memory and --training-only beside it"):
        rehearse.main([*words, "--one-part"])
