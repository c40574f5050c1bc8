"""P4D: its divergence is that of the two models, whatever is merged, and 0 where nothing was edited."""

from __future__ import annotations

import pytest
import torch

from safear_edit.attacks.p4d import divergence
from safear_edit.evaluate.before_after import Pair
from safear_edit.methods.workbench import token_kl
from tests.attacks.test_contract import concept, pico, some_edit


@pytest.mark.parametrize("family", ["llamagen", "infinity"])
def test_the_divergence_is_from_the_base_model_asked_for_the_concept(family: str) -> None:
    model = pico(family)
    aim, rows = concept(model).known, torch.tensor([3, 1])
    assert aim is not None
    asked = model.condition([aim.asked[i] for i in rows.tolist()])
    plain = model.condition([aim.captions[i] for i in rows.tolist()])
    with torch.no_grad():
        base = model.logits(asked, aim.ids[rows])
        assert float(divergence(model, model, aim)(asked, rows)) == pytest.approx(0, abs=1e-6)
        with Pair.of_edit(model, some_edit(model)).edited() as edited:
            weight = edited.net.get_parameter(some_edit(model).weights[0]).clone()
            moved = divergence(edited, model, aim)(plain, rows)
            wanted = token_kl(base, edited.logits(plain, aim.ids[rows])).mean()
            assert torch.allclose(moved, wanted, atol=1e-6) and float(moved) > 1e-4
            assert torch.equal(edited.net.get_parameter(some_edit(model).weights[0]), weight)
