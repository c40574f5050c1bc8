"""EAR's two readings: the windows of the paper by hand, and the published loop with its lost context by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from safear_edit.construct.pairs import Keep, Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, borrowed, inject
from safear_edit.errors import UsageError
from safear_edit.families.base import ModelFamily
from safear_edit.families.infinity import Infinity
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.methods.ear import EAR, Chains, blind, ear_loss, released_loss
from safear_edit.methods.workbench import Workbench
from safear_edit.progress import silent

SUBJECTS = ["a house", "a dog at night", "a fish", "an apple in the snow", "a cat", "a car"]
LITTLE = {"steps": 12, "batch": 2, "learning_rate": 0.02, "warmup": 2, "rank": 4, "alpha": 4, "window": 6}


def material_of(model: ModelFamily) -> Material:
    unsafe, safe = [f"{s} by Picasso" for s in SUBJECTS], [f"a photo of {s}" for s in SUBJECTS]
    ids = [model.generate(model.condition(prompts), range(i, i + 6)) for i, prompts in enumerate((unsafe, safe), 100)]
    return Material("Picasso", Pairs(unsafe, safe, list(range(6)), ids[0], ids[1], PairStats(6, 6, {})))


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico(seed=0)


@pytest.fixture(scope="module")
def material(model: LlamaGen) -> Material:
    return material_of(model)


def fit(model: ModelFamily, material: Material, **params: object) -> Edit:
    chosen = EAR.Params.model_validate({**LITTLE, **params})
    return EAR().fit(model, material, chosen, seed=1, progress=silent)


def test_the_paper_by_hand_window_by_window(model: LlamaGen, material: Material) -> None:
    params = EAR.Params(batch=2, window=6, threshold=0.0, eta=1.5)
    bench, pairs = Workbench(model, material, params, silent, reference=False), material.pairs
    rows = Draw(0, 2).rows("pairs", 6, 2)
    unsafe, safe = (model.condition([prompts[i] for i in rows]) for prompts in (pairs.unsafe, pairs.safe))
    with borrowed(model.net, writes=()):
        inject(model.net, model.editable("all"), params, 0)
        with torch.no_grad():
            concept, neutral = (model.hidden(condition, pairs.safe_ids[rows]) for condition in (unsafe, safe))
        gaps = (concept - neutral).square().mean(-1).mul((1 + 1.5) ** 2).mean(0)
        for step, (start, end) in enumerate(((0, 6), (6, 12), (12, 16)), 6):
            loss, _ = ear_loss(bench, Draw(0, step), params, 16)
            assert loss.item() == pytest.approx(gaps[start:end].sum().item(), rel=1e-3) and loss.requires_grad
        quiet, readings = ear_loss(bench, Draw(0, 6), EAR.Params(batch=2, window=6, threshold=1e6), 16)
        assert not quiet.requires_grad and readings == {"updated": 0.0}


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_no_update_below_the_threshold(mode: str, model: LlamaGen, material: Material) -> None:
    edit = fit(model, material, mode=mode, threshold=1e9)
    assert all(not tensor.any() for name, tensor in edit.tensors.items() if name.endswith("lora_B"))


def alone(model: ModelFamily, token: Tensor) -> Tensor:
    """Hidden state of one token that is fed without prompt or prefix, (D,)."""
    nobody = blind(model.condition(["whatever"]))
    return model.hidden(nobody, token.view(1, 1).expand(1, 2))[0, 1]


@pytest.mark.parametrize("family", [LlamaGen, Janus])
def test_after_its_first_token_the_published_loop_sees_one_token(family: type[ModelFamily]) -> None:
    model = family.pico(seed=0)
    chains = Chains(model, material_of(model), 0, silent)
    rows = torch.tensor([4, 1])
    with torch.no_grad():
        whole = chains.states("concept", rows, 0, 6)
        later = chains.states("concept", rows, 6, 12)
        every = torch.ones(2, dtype=torch.bool)
        caption = model.condition([f"{SUBJECTS[i]} by Picasso" for i in rows])
        first = [
            model.hidden(c, chains.ids["concept"][rows, :1])[:, 0] for c in (caption, model.dropped(caption, every))
        ]
        torch.testing.assert_close(whole[:, :, 0], torch.stack(first), atol=2e-5, rtol=1e-4)
        for row, pair in enumerate(rows.tolist()):
            for branch in (0, 1):
                by_hand = alone(model, chains.ids["concept"][pair, 2])
                torch.testing.assert_close(whole[branch, row, 3], by_hand, atol=2e-5, rtol=1e-4)
                by_hand = alone(model, chains.ids["concept"][pair, 5])
                torch.testing.assert_close(later[branch, row, 0], by_hand, atol=2e-5, rtol=1e-4)


def test_the_three_trajectories_part_and_are_drawn_again_alike(model: LlamaGen, material: Material) -> None:
    chains, again, other = (Chains(model, material, seed, silent).ids for seed in (0, 0, 1))
    assert all(torch.equal(chains[name], again[name]) for name in Chains.NAMES)
    assert not torch.equal(chains["neutral"], other["neutral"])
    assert not torch.equal(chains["neutral"], chains["target"]), "the same caption, but numbers of its own"


def test_released_loss_by_hand(model: LlamaGen, material: Material) -> None:
    """Whole windows only; a mean over the guided and the unguided row; three trajectories."""
    params = EAR.Params(mode="released", batch=2, window=6, threshold=0.0, eta=1.5)
    bench = Workbench(model, material, params, silent, reference=False)
    chains = Chains(model, material, 0, silent)
    with borrowed(model.net, writes=()):
        inject(model.net, model.editable("all"), params, 0)
        for step, start in ((4, 0), (5, 6)):
            rows = Draw(0, 2).rows("pairs", 6, 2)
            concept, neutral, target = (chains.states(n, rows, start, start + 6).detach() for n in Chains.NAMES)
            gap = concept - (target - 1.5 * (concept - neutral))
            loss, _ = released_loss(bench, Draw(0, step), params, chains)
            assert loss.item() == pytest.approx(gap.square().mean((0, 1, 3)).sum().item(), rel=1e-3)
            assert loss.requires_grad
    assert 16 // 6 == 2, "step 6 is the next image: the last four tokens are never trained on"


def test_both_modes_find_edits_of_their_own(model: LlamaGen, material: Material) -> None:
    edits = {mode: fit(model, material, mode=mode) for mode in ("paper", "released")}
    assert edits["paper"].digest != edits["released"].digest
    assert edits["released"].info.params["mode"] == "released" and len(edits["released"].info.losses) == 12
    assert any(t.any() for name, t in edits["released"].tensors.items() if name.endswith("lora_B"))


def test_released_needs_a_next_token_and_whole_windows(model: LlamaGen, material: Material) -> None:
    bitwise = Infinity.pico(seed=0)
    with pytest.raises(UsageError, match="paper for a next-scale model"):
        fit(bitwise, material_of(bitwise), mode="released")
    with pytest.raises(UsageError, match="at most 16 in mode released, got 17"):
        fit(model, material, mode="released", window=17)


def test_a_masked_window_updates_nothing_of_what_must_stay_either(model: LlamaGen, material: Material) -> None:
    keep = Keep([f"{s} by Monet" for s in SUBJECTS], material.pairs.safe_ids)
    edit = fit(model, replace(material, keep=keep), threshold=1e9, keep_weight=4.0, keep_batch=2)
    assert all(not tensor.any() for name, tensor in edit.tensors.items() if name.endswith("lora_B"))


def test_the_released_layers_are_the_first_ones(model: LlamaGen, material: Material) -> None:
    edit = fit(model, material, mode="released", part="attention", layers=1)
    assert edit.modules == ["layers.0.attention.wo", "layers.0.attention.wqkv"] != model.editable("attention")
    kind = EAR.Params.model_validate({**LITTLE, "part": "attention", "layers": 1})
    assert EAR().trainable(kind, model) == sum(tensor.numel() for tensor in edit.tensors.values())


@pytest.mark.parametrize("family", [Janus, Infinity])
def test_the_first_layers_are_found_under_each_familys_own_names(family: type[ModelFamily]) -> None:
    other = family.pico(seed=0)
    first = EAR().modules(other, EAR.Params(part="attention", layers=1))
    assert first == sorted(set(other.editable("attention")) & set(other.editable("layers[0:1]"))) != []
    assert EAR().modules(other, EAR.Params(part="attention", layers=99)) == other.editable("attention")


def test_the_released_first_step_reads_every_position_of_the_prompt() -> None:
    """By hand on a model that reads prompts token by token: a mean over the positions that both captions have."""
    unified = Janus.pico(seed=0)
    material = material_of(unified)
    params = EAR.Params(mode="released", batch=2, window=6, threshold=0.0, eta=1.5)
    bench, chains = Workbench(unified, material, params, silent, reference=False), Chains(unified, material, 0, silent)
    rows = Draw(0, 0).rows("pairs", 6, 2)
    with borrowed(unified.net, writes=()):
        inject(unified.net, unified.editable("all"), params, 0)
        loss, _ = released_loss(bench, Draw(0, 0), params, chains)
        unsafe, safe = (chains.prompt_states(name, rows) for name in ("concept", "neutral"))
        assert unsafe is not None and safe is not None and loss.requires_grad
        length = min(unsafe[1].shape[1], safe[1].shape[1])
        (concept, mask), (neutral, other) = ((states[:, :, -length:], m[:, -length:]) for states, m in (unsafe, safe))
        both = mask & other
        assert both.sum(1).min() > 1
        gap = concept - (neutral - 1.5 * (concept - neutral))
        first = [gap[:, i, both[i]].square().mean().item() for i in range(2)]
        concept, neutral, target = (chains.states(n, rows, 0, 6).detach() for n in Chains.NAMES)
        torch.testing.assert_close(unsafe[0][:, :, -1], chains.states("concept", rows, 0, 1)[:, :, 0])
        rest = (concept - (target - 1.5 * (concept - neutral)))[:, :, 1:].square().mean((0, 3)).sum(1)
        assert loss.item() == pytest.approx(sum(first) / 2 + rest.mean().item(), rel=1e-3)
