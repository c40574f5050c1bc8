"""Decoder swap: what is put back, and when there is nothing to."""

from __future__ import annotations

import torch

from safear_edit.attacks.decoder_swap import NOTHING, DecoderSwap, as_published
from safear_edit.evaluate.before_after import Pair
from tests.attacks.test_contract import concept, edit_of_the_table, pico, some_edit


def test_the_table_is_put_back_and_the_layers_stay_edited() -> None:
    model = pico("llamagen")
    table, layer = edit_of_the_table(model), some_edit(model)
    names = (model.table_name, layer.weights[0])
    base = [model.net.get_parameter(name).detach().clone() for name in names]
    with table.apply(model.net), layer.apply(model.net):
        edited = [model.net.get_parameter(name).detach().clone() for name in names]
        with as_published(model.net, model.editable("all")):
            now = [model.net.get_parameter(name).detach() for name in names]
            assert torch.equal(now[0], base[0]) and not torch.equal(base[0], edited[0])
            assert torch.equal(now[1], edited[1]) and not torch.equal(base[1], edited[1])
        assert torch.equal(model.net.get_parameter(names[0]), edited[0])
    assert torch.equal(model.net.get_parameter(names[0]), base[0])


def test_an_edit_of_layers_leaves_nothing_to_put_back() -> None:
    model = pico("llamagen")
    assert DecoderSwap().unfit(Pair.of_edit(model, some_edit(model)), concept(model)) == NOTHING
    assert DecoderSwap().unfit(Pair.of_edit(model, edit_of_the_table(model)), concept(model)) == ""
