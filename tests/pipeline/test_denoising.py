"""The whole walk on a tiny model that denoises: a release without likelihoods, which says so, is verified and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safear_edit import registry
from safear_edit.cli import main
from safear_edit.families.diffusion import Diffusion
from safear_edit.families.load import load_model
from safear_edit.release.released import Released
from tests import coin
from tests.pipeline.test_run import SETS, VERDICTS

FEWER = {**SETS, "construct.pairs": 40, "evaluate.n.direct": 4}


def test_a_release_of_a_model_that_denoises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_third_party", coin.third_party)
    monkeypatch.delenv("SAFEAR_SIGNING_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    coin.make_world(tmp_path, "picasso", model=Diffusion, n=2)
    assert main.run(["keygen", "keys"]) == 0
    sets = [word for key, value in FEWER.items() for word in ("--set", f"{key}={value}")]
    words = ["apply", "picasso.yaml", "--model", "./base", "--out", "out", "--key", "keys/safear.key", "-q", *sets]
    capsys.readouterr()
    assert main.run(words) in VERDICTS, capsys.readouterr().err
    assert main.run(["verify", "out", "--trust", "keys"]) in VERDICTS
    likelihood = json.loads(Path("out/likelihood.json").read_text())
    assert "denoises latents and gives no likelihoods" in json.dumps(likelihood)
    edited, base = load_model("out"), load_model("base")
    assert isinstance(edited, Diffusion) and edited.card.passes == base.card.passes == 2
    condition = base.condition(["a dog by Picasso"])
    assert (edited.generate(condition, [1]) - base.generate(condition, [1])).abs().max() > 1e-4
    found, own = Released.read(Path("out")).base().net.state_dict(), base.net.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())
