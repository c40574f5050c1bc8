"""Drawing tokens: streams per image, the inverse CDF, filters, guidance."""

from __future__ import annotations

import pytest
import torch

from safear_edit.errors import UsageError
from safear_edit.families.base import Sampling
from safear_edit.families.diffusion import DenoisingSampling
from safear_edit.families.infinity import Infinity, ScaleSampling
from safear_edit.families.sampling import filtered, guided, inverse_cdf, multinomial, probabilities, uniforms


def test_a_stream_belongs_to_its_seed() -> None:
    together = uniforms([3, 2**63 - 1, 3], 50)
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])
    assert torch.equal(together[1], uniforms([2**63 - 1], 50)[0])
    assert torch.equal(together[:, :20], uniforms([3, 2**63 - 1, 3], 20))  # a longer image begins as a shorter one
    assert uniforms([], 50).shape == (0, 50)
    assert float(together.min()) >= 0 and float(together.max()) < 1


def test_the_inverse_cdf_takes_the_token_whose_interval_holds_the_draw() -> None:
    p = torch.tensor([[0.25, 0.0, 0.25, 0.5]]).expand(6, 4)
    draws = torch.tensor([[0.0], [0.2499], [0.25], [0.4999], [0.5], [0.9999999]], dtype=torch.float64)
    assert inverse_cdf(draws)(p, 0).tolist() == [0, 0, 2, 2, 3, 3]


def test_a_token_without_probability_is_never_drawn() -> None:
    p = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(1000, 5)
    ids = inverse_cdf(torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1, None])(p, 0)
    assert set(ids.tolist()) == {1, 3}
    assert abs((ids == 1).float().mean().item() - 0.3) < 0.002


def test_drawing_follows_the_probabilities() -> None:
    p = torch.tensor([[0.1, 0.2, 0.7]]).expand(4000, 3)
    shares = torch.bincount(inverse_cdf(uniforms(range(4000), 1))(p, 0), minlength=3) / 4000
    torch.testing.assert_close(shares, p[0], rtol=0, atol=0.03)


def test_multinomial_replays_a_generator() -> None:
    p = torch.rand(5, 9).softmax(-1)
    expected = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(4)).squeeze(1)
    assert torch.equal(multinomial(torch.Generator().manual_seed(4))(p, 0), expected)


def kept(logits: list[float], top_k: int, top_p: float) -> list[int]:
    return filtered(torch.tensor([logits]), top_k, top_p)[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (2, 1.0, [0, 1, 2]),  # 1 and 2 tie for the second place
        (1, 1.0, [0]),
        (99, 1.0, [0, 1, 2, 3]),
        (0, 0.0, [0]),  # the best one always stays
        (0, 0.5, [0, 1]),  # the one that crosses top-p stays
    ],
)
def test_filters(top_k: int, top_p: float, expected: list[int]) -> None:
    assert kept(torch.tensor([0.4, 0.25, 0.25, 0.1]).log().tolist(), top_k, top_p) == expected


def test_top_p_counts_the_survivors_of_top_k_only() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert kept(logits, 0, 0.6) == [0, 1]
    assert kept(logits, 2, 0.55) == [0]  # 0.4 of 0.7 is 0.57: alone it passes 0.55


def test_temperature_and_guidance() -> None:
    c, u = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 1.0]])
    assert guided(c, u, 1.0).tolist() == c.tolist()
    assert guided(c, u, 3.0).tolist() == [[-1.0, 7.0]]
    cold = probabilities(c, Sampling(1.0, temperature=0.0))
    assert cold.tolist() == [[0.0, 1.0]] and cold.isfinite().all()
    torch.testing.assert_close(probabilities(c, Sampling(1.0, temperature=2.0)), (c / 2).softmax(-1))


@pytest.mark.parametrize(
    "numbers", [{"temperature": -1.0}, {"top_p": -0.1}, {"top_p": 1.1}, {"top_k": -5}, {"guidance": float("nan")}]
)
def test_numbers_that_leave_no_token_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"sampling: expected a finite guidance, .*; correct the number"):
        Sampling(**{"guidance": 2.0, **numbers})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="sampling: expected"):
        ScaleSampling(2.0, temperatures=(1.0, -1.0))
    with pytest.raises(UsageError, match="steps: expected 1 or more, got 0"):
        DenoisingSampling(2.0, steps=0)


def test_a_temperature_of_0_is_the_likeliest_choice_of_bits_as_well() -> None:
    model = Infinity.pico()
    condition = model.condition(["a dog", "a house"])
    cold = model.generate(condition, [1, 2], Sampling(2.0, temperature=0.0))
    assert torch.equal(cold, model.generate(condition, [1, 2], Sampling(2.0, top_k=1)))


def test_turning_guidance_and_temperature_turns_every_scales() -> None:
    usual = ScaleSampling(2.0, 0.5, guidances=(4.0, 2.0, 1.0), temperatures=(0.5, 0.4, 0.3))
    assert usual.guided(1.5) == ScaleSampling(3.0, 0.5, guidances=(6.0, 3.0, 1.0), temperatures=(0.5, 0.4, 0.3))
    assert usual.warmed(1.3) == ScaleSampling(2.0, 1.3, guidances=(4.0, 2.0, 1.0))
    assert Sampling(2.0).guided(0.5) == Sampling(1.0) and Sampling(2.0).warmed(0.7) == Sampling(2.0, 0.7)
