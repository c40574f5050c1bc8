"""The loop gives the net back as it was, continues to the same weights, and says what went wrong."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.editor.fine_tune import (
    Draw,
    Readings,
    Share,
    Tuned,
    Tuning,
    adapter_off,
    borrowed,
    fine_tune,
    identity_of,
    inject,
    schedule,
)
from safear_edit.errors import UsageError
from safear_edit.progress import silent

ROWS = 24
TUNING = Tuning(rank=2, alpha=2, steps=12, batch=4, learning_rate=0.05, warmup=2, save_every=5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(F.gelu(self.first(x))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net().train()
    model.second.bias.requires_grad_(False)
    return model


def objective(net: nn.Module, fail_at: int = -1, value: float = float("nan")):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 5, generator=generator)
    y = x @ torch.randn(5, 3, generator=generator)

    def loss(draw: Draw) -> tuple[Tensor, Readings]:
        if draw.step == fail_at:
            if value == value:
                raise KeyboardInterrupt
            return net(x).sum() * value, {}
        rows = draw.rows("rows", ROWS, 4)
        noise = 0.1 * draw.uniform("noise", 4, 5)
        error = F.mse_loss(net(x[rows] + noise), y[rows])
        return error, {"error": float(error.detach())}

    return loss


def run(
    net: nn.Module, tuning: Tuning = TUNING, checkpoint: Path | None = None, identity: str = "a", **fail: float
) -> Tuned:
    chosen = objective(net, **fail)  # type: ignore[arg-type]
    names = ["first", "second"]
    return fine_tune(net, names, chosen, tuning, seed=3, identity=identity, progress=silent, checkpoint=checkpoint)


def everything(net: nn.Module) -> tuple[object, ...]:
    """All that a borrower must not change: objects by identity, numbers by value."""
    objects = [(name, id(module), module.training) for name, module in net.named_modules()]
    tensors = [(name, id(t), t.requires_grad) for name, t in (*net.named_parameters(), *net.named_buffers())]
    numbers = [(name, t.dtype, tuple(t.flatten().tolist())) for name, t in net.state_dict().items()]
    return objects, tensors, numbers, sorted(vars(net)), [p.grad for p in net.parameters()]


def equal(a: Tuned, b: Tuned) -> bool:
    return a.losses == b.losses and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


# -- borrowed ---------------------------------------------------------------------------------------------------------


def test_borrowed_restores_everything_after_an_error(net: Net) -> None:
    before = everything(net)
    with pytest.raises(RuntimeError, match="boom"), borrowed(net):
        inject(net, ["first"], TUNING, 0)
        net.second = nn.Linear(6, 3)
        net.norm.running_mean.add_(1)
        net.first.base_layer.weight.data.mul_(2)
        net.first.base_layer.bias.grad = torch.ones(6)
        net.register_forward_hook(lambda *_: None)
        net.eval().half()
        raise RuntimeError("boom")
    assert everything(net) == before
    assert not net._forward_hooks


def test_borrowed_copies_what_may_be_written(net: Net) -> None:
    before = everything(net)
    with borrowed(net, writes=["second.weight"]), torch.no_grad():
        net.second.weight.zero_()
    assert everything(net) == before


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_inject_takes_exactly_the_named_layers_and_starts_at_zero(net: Net) -> None:
    net.eval()
    x = torch.randn(2, 5)
    plain = net(x)
    with borrowed(net):
        layers = inject(net, ["second"], TUNING, 0)
        assert list(layers) == ["second"] and type(net.first) is nn.Linear
        assert torch.equal(net(x), plain)
        assert [n for n, p in net.named_parameters() if p.requires_grad] == [
            "second.lora_A.default.weight",
            "second.lora_B.default.weight",
        ]
        layers["second"].lora_B["default"].weight.data.fill_(1.0)
        assert not torch.allclose(net(x), plain)
        with adapter_off(net):
            off = net(x)
        assert torch.equal(off, plain) and not off.requires_grad
        assert net(x).requires_grad


@pytest.mark.parametrize("modules", [[], ["norm"], ["first", "third"]])
def test_inject_refuses_what_is_not_linear(net: Net, modules: list[str]) -> None:
    with pytest.raises(UsageError, match="linear layers"), borrowed(net):
        inject(net, modules, TUNING, 0)


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_the_net_alone(net: Net) -> None:
    before = everything(net)
    tuned = run(net, Tuning(**{**TUNING.model_dump(), "steps": 40}))
    assert everything(net) == before
    assert sum(tuned.losses[-6:]) < 0.7 * sum(tuned.losses[:6])
    assert set(tuned.tensors) == {"first.lora_A", "first.lora_B", "second.lora_A", "second.lora_B"}


def test_the_adapter_is_the_edit(net: Net) -> None:
    """The tuned factors, merged by Edit.apply, compute what the adapter computed in training."""
    x = torch.randn(4, 5)
    tuned = run(net)
    net.eval()
    info = EditInfo(
        method="m", params={}, concept="c", base_digest="b", rank=2, alpha=2.0, seed=3, steps=12,
        losses=tuned.losses, minutes=0.0,
    )  # fmt: skip
    with Edit("lora", tuned.tensors, info).apply(net):
        merged = net(x)
    with borrowed(net):
        for name, layer in inject(net, ["first", "second"], TUNING, 9).items():
            layer.lora_A["default"].weight.data.copy_(tuned.tensors[f"{name}.lora_A"])
            layer.lora_B["default"].weight.data.copy_(tuned.tensors[f"{name}.lora_B"])
        torch.testing.assert_close(net(x), merged)


def test_same_seed_same_weights_other_seed_others(net: Net) -> None:
    torch.manual_seed(5)
    first = run(net)
    torch.manual_seed(6)
    assert equal(first, run(net))
    other = fine_tune(net, ["first", "second"], objective(net), TUNING, seed=4, identity="a", progress=silent)
    assert not equal(first, other)


def test_a_killed_run_continues_to_the_same_weights(net: Net, tmp_path: Path) -> None:
    before, whole, path = everything(net), run(net), tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(net, checkpoint=path, fail_at=8, value=0.0)
    assert everything(net) == before
    seen: list[int] = []
    chosen = objective(net)

    def watched(draw: Draw) -> tuple[Tensor, Readings]:
        seen.append(draw.step)
        return chosen(draw)

    names = ["first", "second"]
    again = fine_tune(net, names, watched, TUNING, seed=3, identity="a", progress=silent, checkpoint=path)
    assert seen == list(range(5, 12)), "continued from the checkpoint of step 5"
    assert equal(whole, again)
    assert equal(whole, run(net, checkpoint=path)), "a finished checkpoint is the result"


def test_a_run_killed_before_its_first_update_continues(net: Net, tmp_path: Path) -> None:
    """All steps so far were masked, so the optimiser keeps nothing yet."""
    path, chosen = tmp_path / "checkpoint", objective(net)

    def found(killed_at: int, checkpoint: Path | None) -> Tuned:
        def late(draw: Draw) -> tuple[Tensor, Readings]:
            if draw.step == killed_at:
                raise KeyboardInterrupt
            loss, info = chosen(draw)
            return (loss.detach() if draw.step < 7 else loss), info

        names = ["first", "second"]
        return fine_tune(net, names, late, TUNING, seed=3, identity="a", progress=silent, checkpoint=checkpoint)

    with pytest.raises(KeyboardInterrupt):
        found(6, path)
    assert equal(found(-1, None), found(-1, path))


@pytest.mark.parametrize("damage", ["identity", "truncated", "garbage"])
def test_a_checkpoint_of_no_use_is_not_used(net: Net, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint"
    run(net, checkpoint=path, identity="b" if damage == "identity" else "a")
    if damage != "identity":
        path.write_bytes(path.read_bytes()[:-9] if damage == "truncated" else b"\x80\x04junk")
    assert equal(run(net), run(net, checkpoint=path))


def test_accumulation_changes_memory_and_not_the_result(net: Net) -> None:
    net.eval()
    in_two = run(net, Tuning(**{**TUNING.model_dump(), "accumulate": 2}))
    whole = run(net)
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(in_two.tensors[name], tensor, atol=1e-4, rtol=1e-3)
    with pytest.raises(UsageError, match="multiple of 3"):
        run(net, Tuning(**{**TUNING.model_dump(), "accumulate": 3}))


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(net: Net) -> None:
    before = everything(net)
    with pytest.raises(UsageError, match=r"step 3: expected a finite loss, got nan; lower learning_rate \(it"):
        run(net, fail_at=2)
    assert everything(net) == before


def test_anothers_loss_that_is_not_finite_stops_this_one_too(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same words; who ended alone would leave the others waiting."""
    asked = list[float]()

    def gather(self: Accelerator, mine: Tensor) -> Tensor:
        asked.append(float(mine))
        return torch.cat([mine, torch.full_like(mine, float("inf") if len(asked) == 3 else 1.0)])

    monkeypatch.setattr(Accelerator, "gather", gather)
    with pytest.raises(UsageError, match=r"step 3: expected a finite loss, got inf; lower learning_rate \(it"):
        run(net)
    assert len(asked) == 3 and asked[2] < float("inf")


def test_a_launchers_mixed_precision_is_not_taken(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate config` may ask for it; what the model computes in is said by --dtype."""
    plain = run(net)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    try:
        assert run(net).losses == plain.losses
        assert AcceleratorState().mixed_precision == "no"
    finally:
        AcceleratorState._reset_state()


@pytest.mark.parametrize("factor", [1.0, 1e-5])
def test_a_small_loss_is_learnt_through_float16_weights(factor: float) -> None:
    """Adam doesn't mind the size of a loss, float16 does."""
    torch.manual_seed(0)
    narrow = Net().half()

    def loss(draw: Draw) -> tuple[Tensor, Readings]:
        x = torch.ones(4, 5, dtype=torch.float16)
        return narrow(x).float().square().mean() * factor, {}

    found = fine_tune(narrow, ["first"], loss, TUNING, seed=0, identity="", progress=silent)
    assert found.losses[-1] < 0.9 * found.losses[0]


def test_progress_counts_every_step(net: Net) -> None:
    calls: list[tuple[str, int, int, str]] = []
    names = ["first"]
    fine_tune(
        net, names, objective(net), TUNING, seed=0, identity="", progress=lambda *call: calls.append(call), stage="edit"
    )
    assert [call[:3] for call in calls] == [("edit", i + 1, 12) for i in range(12)]
    assert calls[0][3].startswith("loss ") and "error" in calls[0][3]


# -- what is random ---------------------------------------------------------------------------------------------------


def test_draw_passes_through_the_pool_evenly() -> None:
    seen = torch.cat([Draw(0, step).rows("pairs", 10, 4) for step in range(5)])
    assert Counter(seen.tolist()) == dict.fromkeys(range(10), 2)
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert Counter(Draw(0, 0).rows("keep", 3, 7).tolist()).most_common(1)[0][1] == 3


def test_draw_is_the_same_however_it_is_divided() -> None:
    for name in ("a", "b"):
        whole = Draw(7, 2).rows(name, 50, 8), Draw(7, 2).uniform(name, 8, 3)
        parts = [(Draw(7, 2, i, 4).rows(name, 50, 8), Draw(7, 2, i, 4).uniform(name, 8, 3)) for i in range(4)]
        for which in (0, 1):
            joined = torch.stack([part[which] for part in parts], 1).flatten(0, 1)
            assert torch.equal(joined, whole[which])
    assert not torch.equal(Draw(7, 2).rows("a", 50, 8), Draw(7, 2).rows("b", 50, 8))


def test_schedule() -> None:
    factors = [schedule(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0 == max(factors)
    assert all(a > b for a, b in pairwise(factors[10:])) and 0 < factors[-1] < 0.01


def test_identity_depends_on_every_part() -> None:
    parts = [("a", torch.zeros(2)), ("a", torch.zeros(1, 2)), ("a", torch.ones(2)), ("b", torch.zeros(2))]
    assert len({identity_of(*part) for part in parts}) == 4


@pytest.mark.parametrize(
    ("batch", "accumulate", "shares"),
    [
        (8, 1, [([0], 2), ([1], 2)]),  # cut for the processes
        (8, 4, [([0, 1], 4), ([2, 3], 4)]),  # the recipe's parts, dealt out: none is smaller than asked
        (9, 3, [([0, 1, 2], 3)] * 2),  # can't be divided: each computes everything
    ],
)
def test_processes_share_a_batch_in_equal_parts(
    batch: int, accumulate: int, shares: list[tuple[list[int], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = Tuning(batch=batch, accumulate=accumulate)
    assert Share.of(tuning) == Share(range(accumulate), accumulate, alone=batch % accumulate > 0)
    for rank, (mine, parts) in enumerate(shares):
        for name, value in {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        found = Share.of(tuning)
        assert (list(found.mine), found.parts, found.alone) == (mine, parts, batch == 9)
