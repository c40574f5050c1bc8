"""Safe-CB's linear algebra on planted directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safear_edit.errors import UsageError
from safear_edit.methods.codebook import HarmfulSpace, Usage, energy_figure, harmful_space, protecting

N, WIDTH, PAIRS = 12, 20, 40


def planted(*directions: int, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs whose difference lies along some unit vectors, by a different amount at each position."""
    generator = torch.Generator().manual_seed(seed)
    safe = torch.randn(PAIRS, N, WIDTH, generator=generator)
    gap = torch.zeros(N, WIDTH)
    for i, direction in enumerate(directions):
        gap[:, direction] = (3 - i) * torch.randn(N, generator=generator)
    return safe + gap + noise * torch.randn(PAIRS, N, WIDTH, generator=generator), safe


def test_finds_planted_directions_and_captures_all() -> None:
    space = harmful_space(*planted(3, 7), directions=2)
    projector = space.basis @ space.basis.T
    expected = torch.zeros(WIDTH, WIDTH)
    expected[3, 3] = expected[7, 7] = 1
    torch.testing.assert_close(projector, expected, atol=1e-4, rtol=0)
    assert space.captured == pytest.approx(1, abs=1e-6)
    assert space.null.shape == (WIDTH, WIDTH - 2)


def test_pooled_is_deaf_to_layout_and_position_is_not() -> None:
    """The same difference at shuffled positions: its mean over positions stays, its mean over pairs blurs."""
    unsafe, safe = planted(3)
    gap = unsafe - safe + 1.0 * torch.eye(WIDTH)[5]
    shuffled = torch.stack(
        [row[torch.randperm(N, generator=torch.Generator().manual_seed(i))] for i, row in enumerate(gap)]
    )
    pooled = harmful_space(safe + shuffled, safe, 1, "pooled").basis[:, 0].abs()
    assert pooled[5] > 0.5 * pooled.max()
    by_position = harmful_space(safe + shuffled, safe, 1).strengths[0]
    assert by_position < harmful_space(safe + gap, safe, 1).strengths[0]


def test_projection_removes_the_space_and_nothing_else() -> None:
    space, table = harmful_space(*planted(3, 7, noise=0.1), directions=2), torch.randn(50, WIDTH)
    cleaned = space.without(table)
    assert space.energy(cleaned).max() < 1e-10 < space.energy(table).min()
    torch.testing.assert_close(space.without(cleaned), cleaned)
    torch.testing.assert_close(cleaned @ space.null, table @ space.null, atol=1e-5, rtol=1e-5)
    half = space.without(table, 0.5)
    torch.testing.assert_close(half, (table + cleaned) / 2)
    assert space.without(table.half()).dtype == torch.float16


def test_harmless_changes_stay_out_of_the_space() -> None:
    for noise in (0.0, 0.5):
        space = harmful_space(*planted(3, 7, noise=noise), directions=2)
        change = space.harmless(torch.randn(50, WIDTH))
        assert (change @ space.basis).abs().max() < 1e-4 and change.abs().max() > 0.1
        torch.testing.assert_close(space.harmless(change), change, atol=1e-4, rtol=1e-4)


def test_a_protected_space_is_a_projector_also_when_rounds_overlap() -> None:
    one, two = harmful_space(*planted(3, 7), directions=2), harmful_space(*planted(7, 9, seed=1), directions=2)
    both = protecting(two, [one])
    assert both.basis.shape == (WIDTH, 3)
    torch.testing.assert_close(both.basis.T @ both.basis, torch.eye(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(both.null.T @ both.basis, torch.zeros(both.null.shape[1], 3), atol=1e-4, rtol=0)
    assert both.null.shape[1] == WIDTH - 3


@pytest.mark.parametrize("directions", [0, 13, WIDTH])
def test_impossible_requests(directions: int) -> None:
    with pytest.raises(UsageError, match="1 to 12"):
        harmful_space(*planted(3), directions=directions)
    with pytest.raises(UsageError, match="two tensors"):
        harmful_space(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), 1)


def test_energy_is_a_share() -> None:
    space = HarmfulSpace(torch.eye(4)[:, :1], torch.eye(4)[:, 1:], torch.tensor([1.0]))
    torch.testing.assert_close(space.energy(torch.tensor([[3.0, 4, 0, 0], [0, 1, 0, 0]])), torch.tensor([0.36, 0.0]))


def test_where_a_repair_may_write() -> None:
    """12 positions in 20 dimensions: 8 directions are free of differences, half are weak, 18 lie outside the basis."""
    unsafe, safe = planted(3, 7, noise=0.1)
    sizes = {n: harmful_space(unsafe, safe, 2, null=n).null.shape[1] for n in ("exact", "weakest_half", "complement")}
    assert sizes == {"exact": WIDTH - N, "weakest_half": WIDTH // 2, "complement": WIDTH - 2}
    for name in sizes:
        space = harmful_space(unsafe, safe, 2, null=name)  # type: ignore[arg-type]
        torch.testing.assert_close(space.null.T @ space.basis, torch.zeros(sizes[name], 2), atol=1e-5, rtol=0)
    everything = harmful_space(unsafe, safe, 2, null="complement")
    change = torch.randn(5, WIDTH)
    torch.testing.assert_close(everything.harmless(change), everything.without(change), atol=1e-5, rtol=1e-5)


def test_later_rounds_protect_what_earlier_ones_took_out() -> None:
    one = harmful_space(*planted(3, 7), directions=2, null="complement")
    two = harmful_space(*planted(7, 9, seed=1), directions=2, null="complement")
    both, table = protecting(two, [one]), torch.randn(50, WIDTH)
    assert both.basis.shape == (WIDTH, 3) and both.null.shape == (WIDTH, WIDTH - 3)
    repaired = both.without(table) + both.harmless(torch.randn(50, WIDTH))
    assert one.energy(repaired).max() < 1e-6 and two.energy(repaired).max() < 1e-6
    assert one.energy(two.without(table) + two.harmless(table)).max() > 0.01, "without it, direction 3 comes back"
    assert protecting(one, []) is one


def test_the_picture_of_the_energy_is_a_png_of_its_own_data() -> None:
    states = [torch.rand(30), torch.zeros(30)]
    first = energy_figure(states, ["untouched", "round 1"])
    assert first.startswith(b"\x89PNG") and first == energy_figure(states, ["untouched", "round 1"])
    assert first != energy_figure([states[0], states[0]], ["untouched", "round 1"])


# -- in the metric of what must stay ----------------------------------------------------------------------------------


def used(*wide: int, seed: int = 3) -> Tensor:
    """Rows about 2 that images use, ten times as wide along some dimensions."""
    rows = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(seed))
    rows[:, list(wide)] *= 10
    return rows + 2


def test_a_direction_that_nobody_uses_is_preferred() -> None:
    """The same difference along two dimensions, of which what must stay uses one."""
    gap = torch.zeros(N, WIDTH)
    gap[:, [3, 7]] = torch.randn(N, 1, generator=torch.Generator().manual_seed(1)).expand(-1, 2)
    unsafe, safe = planted(3)[1] + gap, planted(3)[1]
    plain, space = (harmful_space(unsafe, safe, 1, usage=usage) for usage in (None, Usage.of(used(3))))
    assert plain.basis[3].abs() == pytest.approx(float(plain.basis[7].abs()), rel=1e-3)
    assert space.basis[7].abs() > 0.95 > 0.1 > space.basis[3].abs()


def test_an_oblique_projection_erases_and_moves_what_is_used_least() -> None:
    rows = used(0, 1)
    rows[:, 3] += rows[:, 0]  # what is read is correlated with what must stay
    space = harmful_space(*planted(3), directions=1, usage=Usage.of(rows))
    cleaned = space.without(rows)
    torch.testing.assert_close(space.basis.T @ space.along, torch.eye(1), atol=1e-4, rtol=0)
    assert space.along[3].abs() > 0.99 * space.along.norm(), "the difference itself goes"
    assert space.energy(cleaned).max() < 1e-9 < space.energy(rows).mean()
    centred = rows - space.centre
    orthogonal = centred @ space.basis @ space.basis.T
    weight = torch.linalg.inv(space.usage.covariance)  # type: ignore[union-attr]

    def cost(change: Tensor) -> float:
        return float((change @ weight * change).sum())

    assert cost(cleaned - rows) < cost(orthogonal), "in units of what must stay"
    repaired = cleaned + space.harmless(torch.randn(400, WIDTH))
    assert space.energy(repaired).max() < 1e-9, "a repair can't bring back what was read"


def test_a_usage_of_few_rows_can_be_inverted() -> None:
    whitening = Usage.of(torch.randn(3, WIDTH)).whitening
    assert bool(torch.isfinite(whitening).all())
    usage = Usage.of(used(4))
    torch.testing.assert_close(
        usage.whitening @ usage.covariance @ usage.whitening, torch.eye(WIDTH), atol=1e-3, rtol=0
    )
