"""A run's arithmetic is found whole: in inference mode, through layers, forward and backward."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from safear_edit.studies.roofline import _Noted, alone

X, W = torch.ones(6, 4), torch.ones(5, 4)
ONE = 2 * 6 * 4 * 5


def flops(run: object) -> int:
    with _Noted() as noted:
        run()  # type: ignore[operator]
    return noted.flops


def test_a_layer_counts_two_flop_for_each_weight_and_row_also_where_it_arrives_whole() -> None:
    def unseen() -> None:
        with torch.inference_mode():
            F.linear(X, W)

    assert flops(lambda: F.linear(X, W)) == flops(unseen) == ONE


def test_what_the_backward_pass_multiplies_counts() -> None:
    x = X.clone().requires_grad_()
    assert flops(lambda: F.linear(x, W).sum().backward()) == 2 * ONE


def test_attention_counts_scores_and_mixtures() -> None:
    q, k = torch.ones(2, 3, 7, 8, requires_grad=True), torch.ones(2, 3, 9, 8)
    forward = 2 * (2 * 3) * 7 * 9 * (8 + 8)
    assert flops(lambda: F.scaled_dot_product_attention(q.detach(), k, k)) == forward
    assert flops(lambda: F.scaled_dot_product_attention(q, k, k).sum().backward()) == forward + forward * 5 // 2


def test_arithmetic_is_less_than_the_run_that_it_is_of() -> None:
    def run() -> object:
        y = X.repeat(400, 1)
        for _ in range(20):
            y = F.linear(torch.sort(y, 0).values.sin().cos().exp(), W)[:, :4]
        return y

    found = alone(run, 3)
    assert 0 < found.seconds < found.whole and found.flops == 20 * 400 * ONE
    assert found.share_of > 1 and "of the CPU's rate" in str(found)
