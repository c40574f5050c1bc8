"""An export holds the released weights in the published layout, and adapters give them again on the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safear_edit import registry
from safear_edit.cli import main
from safear_edit.families.llamagen import LlamaGen
from tests.release.test_released import release


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("export") / "two")


def test_upstream_files_hold_the_merged_weights(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "up"
    assert main.run(["export", str(made), "--layout", "upstream", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"t2i_pico.pt", "vq_ds16_t2i.pt", "export.json"}
    found = torch.load(out / "t2i_pico.pt", weights_only=True)["model"]
    wanted = load_file(made / "gpt.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    about = json.loads((out / "export.json").read_text())
    assert about["edits"] == ["one", "two"] and set(about["files"]) == {"t2i_pico.pt", "vq_ds16_t2i.pt"}


def test_peft_puts_the_adapters_on_the_base(made: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    out = tmp_path / "adapters"
    assert main.run(["export", str(made), "--layout", "peft", "--out", str(out), "--json"]) == 0
    net = LlamaGen.pico(seed=0).net
    for folder in ("1-one", "2-two"):
        net = PeftModel.from_pretrained(net, str(out / folder)).merge_and_unload()
    wanted = load_file(made / "gpt.safetensors")
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name])


def test_bad_words(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    base.mkdir()
    LlamaGen.pico(seed=0).export(base)
    for words, says in (
        ([str(made), "--layout", "transformers"], "upstream"),
        ([str(base), "--layout", "upstream"], "released folder"),
        ([str(tmp_path / "nowhere"), "--layout", "upstream"], "nowhere"),
    ):
        assert main.run(["export", *words, "--out", str(tmp_path / "out")]) == 2
        line = capsys.readouterr().err
        assert says in line and len(line.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_every_family_with_layouts_is_known() -> None:
    from safear_edit.release.export import LAYOUTS

    assert set(LAYOUTS) <= set(registry.families())
