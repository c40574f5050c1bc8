"""UCE's closed form against its equation, and where it moves the keys and values of captions."""

from __future__ import annotations

import torch

from safear_edit.compiler.cost import Speed, training_seconds
from safear_edit.families.diffusion import Diffusion
from safear_edit.methods.uce import UCE, captions, closed_form, nearest
from safear_edit.progress import silent
from tests.methods.test_denoising import material, model

__all__ = ["material", "model"]  # fixtures


def test_the_closed_form_is_the_minimum_of_its_equation() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight, old, new, kept = (torch.randn(n, 5, dtype=torch.float64) for n in (3, 7, 7, 9))
    found = closed_form(weight, old, new, kept, 2.0, 0.3).requires_grad_(True)
    cost = (
        ((found @ old.T - weight @ new.T) ** 2).sum() / 7
        + 2.0 * ((found @ kept.T - weight @ kept.T) ** 2).sum() / 9
        + 0.3 * ((found - weight) ** 2).sum()
    )
    (gradient,) = torch.autograd.grad(cost, found)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    torch.testing.assert_close(closed_form(weight, old, old, kept, 1.0, 0.1), weight)


def test_a_name_takes_the_keys_of_what_stands_in_its_place(model: Diffusion, material) -> None:  # type: ignore[no-untyped-def]
    edit = UCE().fit(model, material, UCE.Params(ridge=0.01), seed=0, progress=silent)
    assert edit.weights == sorted(f"{name}.weight" for name in model.editable("keys_values"))
    unsafe, safe = material.pairs.unsafe[0], material.pairs.safe[0]
    states = captions(model, [unsafe, safe])
    layer = model.net.get_submodule(model.editable("keys_values")[0])
    wanted = nearest(states(unsafe), states(safe)).float()

    def far() -> tuple[float, torch.Tensor]:
        with torch.no_grad():
            return float((layer(states(unsafe).float()) - goal).square().mean()), layer(states(safe).float())

    with torch.no_grad():
        goal = layer(wanted)
    (before, plain), _ = far(), None
    with edit.apply(model.net):
        after, kept = far()
    assert after < 0.5 * before
    assert (kept - plain).square().mean() < 0.2 * before


def test_nearest_by_direction() -> None:
    among = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    found = nearest(torch.tensor([[0.2, 0.1], [0.0, 5.0]]), among)
    torch.testing.assert_close(found, among)


def test_no_time_of_the_model_is_foretold_for_it(model: Diffusion) -> None:
    params = UCE.Params()
    work = UCE().work(params, model.card, 9)
    assert training_seconds(model, work, params, 9, Speed(1.0, 1.0)) == 0
