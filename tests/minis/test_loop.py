"""The training loop of the minis: a killed run ends as an undisturbed one, and what it was cut off in is done again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from safear_edit.errors import UsageError
from safear_edit.families.tokenizers.vq import VQModel
from safear_edit.gallery.world import World
from safear_edit.minis import train_vq
from safear_edit.minis.loop import Average, Report, finished, run

TOTAL = 6


class KilledError(Exception):
    """Stands for SIGKILL."""


def trained(folder: Path, total: int = TOTAL, *, killed_at: int = -1, killed_in_export: bool = False) -> nn.Linear:
    """A line fitted to numbers that depend on the step alone; exports its average at every second step."""
    torch.manual_seed(0)
    line = nn.Linear(3, 1)
    average = Average(line, 0.9)
    optimizer = torch.optim.AdamW(line.parameters(), 0.1)

    def step(i: int) -> Report:
        if i == killed_at:
            raise KilledError
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(i))
        loss = (line(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return {"loss": float(loss.detach())}

    def export(done: int) -> None:
        if done == total and killed_in_export:
            raise KilledError
        (folder / "exported").write_text(str(done))

    run(folder, line, [optimizer], step, total, warmup=2, average=average, save_every=2, on_save=export)
    line.load_state_dict(average.state)
    return line


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(KilledError):
        trained(tmp_path / "killed", killed_at=3)
    again = trained(tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_an_export_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        trained(tmp_path, killed_in_export=True)
    assert (tmp_path / "exported").read_text() == "4"
    trained(tmp_path)
    assert (tmp_path / "exported").read_text() == str(TOTAL)


def test_a_folder_of_another_asset_or_of_more_steps_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(UsageError, match="at most 4 steps, got 6"):
        trained(tmp_path, 4)
    other = nn.Linear(4, 1)
    with pytest.raises(UsageError, match="of this asset"):
        run(tmp_path, other, [torch.optim.AdamW(other.parameters())], lambda i: {}, TOTAL)


def test_only_a_finished_training_is_taken_as_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a finished training, got none"):
        finished(tmp_path, nn.Linear(3, 1))
    with pytest.raises(KilledError):
        trained(tmp_path, killed_at=5)
    with pytest.raises(UsageError, match=f"got step 4 of {TOTAL}"):
        finished(tmp_path, nn.Linear(3, 1))
    whole, read = trained(tmp_path), nn.Linear(3, 1)
    finished(tmp_path, read)
    assert torch.equal(read.weight, whole.weight) and not read.training


def test_dead_codes_move_by_the_step_alone() -> None:
    """Not by what this process drew before, which a continued run didn't."""
    codes = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model = VQModel(train_vq.CONFIG)
        image = World().tensor(World().sample(train_vq.batch_source(49), 2))
        torch.manual_seed(seed)
        train_vq._restart_dead_codes(model, image, torch.zeros(train_vq.CONFIG.codebook_size), 49)
        codes.append(model.quantize.embedding.weight.detach().clone())
    assert torch.equal(*codes)
