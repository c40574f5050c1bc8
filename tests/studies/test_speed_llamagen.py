"""The plain loop is the published one (recorded logits of every position), and draws what `generate` draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tests
from safear_edit.families.base import Sampling
from safear_edit.families.llamagen import GPT, GPTConfig, LlamaGen
from safear_edit.methods.ear import EAR
from safear_edit.studies.contest import material_of
from safear_edit.studies.speed_llamagen import SAME, PlainLoop, ear_distances, ear_race, main, race

GOLDENS = tests.GOLDENS / "llamagen"


@pytest.mark.parametrize("lean", [False, True])
def test_the_plain_loop_gives_the_recorded_logits_of_caption_and_image(lean: bool) -> None:
    net = GPT(GPTConfig(dim=64, n_layer=2, n_head=4, vocab_size=128, caption_dim=32, cls_token_num=8, block_size=16))
    net.load_state_dict(load_file(GOLDENS / "gpt_t2i_cls8.weights.safetensors"))
    recorded = load_file(GOLDENS / "gpt_t2i_cls8.teacher.safetensors")
    with torch.no_grad():
        loop = PlainLoop(net, recorded["caption"], recorded["caption_mask"].bool(), lean=lean)
        assert torch.equal(loop.visible, recorded["kv_causal_mask_after"].bool())
        logits = torch.cat([loop.prefill(), loop.step(recorded["ids"][:, :-1], 0)], 1)
    torch.testing.assert_close(logits, recorded["eval_logits_full"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("sampling", [Sampling(2.0), Sampling(1.0, 0.8, 20, 0.9)])
def test_all_contestants_draw_the_same_tokens(sampling: Sampling) -> None:
    result = race(LlamaGen.pico(), batch=5, repeats=1, sampling=sampling)
    assert result.tokens == 5 * 16 and min(result.identical.values()) >= 4 * 16, "rounding may part one image"


def test_the_command_reports_and_fails_on_another_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    LlamaGen.pico().export(tmp_path)
    threads = torch.get_num_threads()
    arguments = ["sampling", "--model", str(tmp_path), "--batch", "2", "--repeats", "1", "--json"]
    try:
        assert main(arguments) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert set(row["identical"]) == {"published", "uncopied"} and row["per_second"]["ours"] > 0
        assert min(row["identical"].values()) >= 16, "rounding may part one image"
        wrong = torch.zeros(2, 16, dtype=torch.int64)
        monkeypatch.setattr(LlamaGen, "generate", lambda *_: wrong)
        assert main(arguments) == 1
    finally:
        torch.set_num_threads(threads)


def test_both_ear_loops_make_the_same_updates() -> None:
    """Window by window, also the shorter last one; how fast they are is for the benchmark to say."""
    result = ear_race(LlamaGen.pico(), images=2, window=6, repeats=1)
    assert result.updates == 6 and result.tokens == 16
    assert max(result.loss_distance, result.gradient_distance, result.update_distance) < SAME


def test_a_loop_with_another_target_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safear_edit.methods.ear.turned_away", lambda without, concept, eta: without)
    model = LlamaGen.pico()
    params = EAR.Params(window=6, batch=1, threshold=0.0)
    assert max(ear_distances(model, material_of(model, 2), params)) > SAME
