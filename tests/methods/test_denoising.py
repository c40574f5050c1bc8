"""Diffusion-DPO by hand, what the workbench of models that denoise hands to losses, and methods on one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safear_edit.construct.pairs import Keep, Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.editor.fine_tune import Draw, adapter_weights, borrowed, inject
from safear_edit.errors import UsageError
from safear_edit.families.diffusion import Diffusion
from safear_edit.methods.denoising import STEPS, DenoisingWorkbench, normal
from safear_edit.methods.vce import VCE, vsafe_dpo
from safear_edit.methods.workbench import PairTuning
from safear_edit.progress import silent
from safear_edit.registry import methods

SUBJECTS = ["a house", "a dog at night", "a fish", "an apple in the snow", "a cat", "a car"]
LITTLE = {"steps": 20, "batch": 4, "learning_rate": 0.003, "warmup": 2, "rank": 4, "alpha": 4, "keep_batch": 4}


@pytest.fixture(scope="module")
def model() -> Diffusion:
    return Diffusion.pico()


@pytest.fixture(scope="module")
def material(model: Diffusion) -> Material:
    unsafe, safe = [f"{s} by Picasso" for s in SUBJECTS], [f"a photo of {s}" for s in SUBJECTS]
    keep = [f"{s} by Monet" for s in SUBJECTS]
    ids = [
        model.generate(model.condition(prompts), range(i, i + 6)) for i, prompts in enumerate((unsafe, safe, keep), 100)
    ]
    pairs = Pairs(unsafe, safe, list(range(6)), ids[0], ids[1], PairStats(6, 6, {}))
    return Material("Picasso", pairs, Keep(keep, ids[2]))


def trained(model: Diffusion) -> None:
    for name, weight in adapter_weights(inject(model.net, model.editable("all"), PairTuning(), seed=0)).items():
        torch.nn.init.normal_(weight, std=0.05 if name.endswith("lora_B") else 1.0)


def test_normal_numbers_are_normal_and_finite() -> None:
    found = normal(torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    assert abs(found.mean()) < 0.03 and abs(found.std() - 1) < 0.03
    assert normal(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([-4.99, 0, 4.99], abs=0.02)


@pytest.mark.parametrize("drop", [0.0, 0.6])
def test_scores_are_the_terms_of_diffusion_dpo(model: Diffusion, material: Material, drop: float) -> None:
    """Equation 14 written out over whole latents: the mean over places is its mean squared error."""
    with borrowed(model.net, ()), torch.no_grad():
        bench = DenoisingWorkbench(model, material, PairTuning(batch=4, caption_drop=drop))
        errors = dict[tuple[str, bool], Tensor]()
        draw = next(
            one for one in (Draw(3, step) for step in range(99)) if 0 < bench._pairs(one)[1].sum() < 4 or not drop
        )
        rows, dropped = bench._pairs(draw)
        level = draw.uniform("pairs level", 4, 1)[:, 0]
        noise = normal(draw.uniform("pairs noise", 4, 128)).view(4, 16, 8)
        captions = model.dropped(model.condition([material.pairs.unsafe[i] for i in rows]), dropped)
        for policy in (False, True):
            if policy:
                trained(model)
            for which, ids in (("w", material.pairs.safe_ids), ("l", material.pairs.unsafe_ids)):
                found = model.noise_prediction(captions, ids[rows], noise, level)
                errors[which, policy] = (found - noise).square().mean((1, 2))
        scores = bench.scores(draw)
        inside = (errors["w", True] - errors["w", False]) - (errors["l", True] - errors["l", False])
        wanted = -torch.nn.functional.logsigmoid(-2.0 * STEPS * inside)
        kept = torch.ones(4, 16, dtype=torch.bool)
        found = vsafe_dpo(scores.winner_gain, scores.loser_gain, kept, 2.0, "seq")
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        assert scores.winner.shape == (4, 16) and torch.equal(scores.dropped, dropped)
        torch.testing.assert_close(bench.winner(draw, "unsafe"), scores.winner, rtol=1e-4, atol=1e-2)


def test_nothing_drifts_from_itself_and_an_adapter_drifts(model: Diffusion, material: Material) -> None:
    with borrowed(model.net, ()), torch.no_grad():
        bench = DenoisingWorkbench(model, material, PairTuning(keep_weight=1.0, keep_batch=4, caption_drop=0.5))
        inject(model.net, model.editable("all"), PairTuning(), seed=0)
        assert bench.drift(Draw(0, 0)) == 0
    with borrowed(model.net, ()), torch.no_grad():
        trained(model)
        assert bench.drift(Draw(0, 0)) > 0.1


def test_two_processes_share_the_noise_of_one(model: Diffusion, material: Material) -> None:
    bench = DenoisingWorkbench(model, material, PairTuning(batch=4))
    whole = bench.reference(Draw(1, 2), "unsafe", "safe")
    for part in range(2):
        mine = bench.reference(Draw(1, 2, part, 2), "unsafe", "safe")
        torch.testing.assert_close(mine, whole[part::2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, entry in methods().items() if getattr(entry.load(), "denoising", 0)])
def test_a_method_lowers_its_loss_and_leaves_the_model(name: str, model: Diffusion, material: Material) -> None:
    method = methods()[name].load()()
    before = {key: tensor.clone() for key, tensor in model.net.state_dict().items()}
    settings = {key: value for key, value in LITTLE.items() if key in method.Params.model_fields}
    edit, still = (
        method.fit(model, material, method.Params(**settings | change), seed=0, progress=silent)
        for change in ({}, {"learning_rate": 1e-9} if "learning_rate" in settings else {})
    )
    if edit.info.losses:  # of the same draws
        assert sum(edit.info.losses[-8:]) < sum(still.info.losses[-8:])
    else:
        assert edit.digest == still.digest
    assert all(torch.equal(before[key], tensor) for key, tensor in model.net.state_dict().items())
    condition = model.condition(material.pairs.unsafe[:1])
    plain = model.generate(condition, [1])
    with edit.apply(model.net):
        assert (model.generate(condition, [1]) - plain).abs().max() > 1e-3


def test_losses_that_read_likelihoods_are_refused(model: Diffusion, material: Material) -> None:
    for setting in ({"depth": 1.0}, {"adversarial": True}, {"keep_parts": 2}):
        with pytest.raises(UsageError, match="likelihoods of image tokens, got diffusion:pico, which denoises"):
            VCE().fit(model, material, VCE.Params(**setting), seed=0, progress=silent)  # type: ignore[arg-type]
