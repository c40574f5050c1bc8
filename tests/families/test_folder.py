"""Folders that hold other weights than they say, or more: one line each, before memory is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from safear_edit import registry
from safear_edit.errors import SafearError, TrustError, UsageError
from safear_edit.families.base import ModelFamily
from safear_edit.families.folder import layers_in, weight_file
from safear_edit.families.janus import Janus
from safear_edit.families.load import load_model

MANY = 10**8


@pytest.mark.parametrize("name", registry.families())
def test_a_number_of_layers_that_the_weights_dont_have(name: str, tmp_path: Path) -> None:
    """10⁸ layers reached 11 GB before the weights were looked at."""
    kind: type[ModelFamily] = registry.lookup("families", name).load()
    kind.pico().export(tmp_path)
    assert load_model(str(tmp_path)).card.family == name
    changed = 0
    for file in sorted(tmp_path.rglob("*.json")):
        if file.name in ("safear.json", "config.json"):
            text = file.read_text()
            for key in layer_keys(json.loads(text)):
                file.write_text(json.dumps(with_value(json.loads(text), key, MANY)))
                with pytest.raises(SafearError) as caught:
                    load_model(str(tmp_path))
                assert "\n" not in str(caught.value) and caught.value.exit_code == 2
                changed += 1
            file.write_text(text)
    assert changed, "a configuration that names its layers"


LAYERS = ("num_hidden_layers", "n_layer", "depth", "layers", "num_res_blocks")


def layer_keys(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = []
    for key, value in data.items() if isinstance(data, dict) else ():
        if key in LAYERS and type(value) is int:
            found.append((*at, key))
        found += layer_keys(value, (*at, key))
    return found


def with_value(data: Any, key: tuple[Any, ...], value: int | str) -> Any:
    inner = data
    for part in key[:-1]:
        inner = inner[part]
    inner[key[-1]] = value
    return data


def test_widths_that_the_weights_dont_have(tmp_path: Path) -> None:
    registry.lookup("families", "llamagen").load().pico().export(tmp_path)
    settings = json.loads((tmp_path / "safear.json").read_text())
    for part, key, value in (("gpt", "dim", 64 * 10**5), ("gpt", "vocab_size", MANY), ("vq", "z_channels", 32 * 10**6)):
        wrong = {**settings, part: {**settings[part], key: value}}
        if key == "vocab_size":
            wrong["vq"] = {**settings["vq"], "codebook_size": value}
        (tmp_path / "safear.json").write_text(json.dumps(wrong))
        with pytest.raises(UsageError, match=r"safetensors: expected \d+ tensors that fit the model, got .*misfit"):
            load_model(str(tmp_path))
    (tmp_path / "safear.json").write_text(json.dumps({**settings, "gpt": {**settings["gpt"], "block_size": 10**12}}))
    with pytest.raises(UsageError, match="image tokens up to"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(("family", "name", "key", "value"), [
    ("llamagen", "safear.json", ("vq", "ch"), 32 * 10**9),
    ("llamagen", "safear.json", ("vq", "z_channels"), 2**70),
    ("llamagen", "safear.json", ("gpt", "multiple_of"), MANY),
    ("janus", "config.json", ("text_config", "hidden_act"), "::error title=a::b"),
])  # fmt: skip
def test_what_no_network_can_have_is_one_line(tmp_path: Path, family: str, name: str, key: Any, value: Any) -> None:
    registry.lookup("families", family).load().pico().export(tmp_path)
    settings = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(with_value(settings, key, value)))
    with pytest.raises(UsageError, match="expected") as caught:
        load_model(str(tmp_path))
    assert str(caught.value).isprintable()


def test_layers_are_counted_in_every_part() -> None:
    assert layers_in({"text": {"num_hidden_layers": 3}, "towers": [{"depth": 7}], "name": "x"}) == 7
    assert layers_in({"vq": {"num_res_blocks": 2, "ch_mult": [1, 1, 2, 2]}}) == 8
    assert layers_in({"name": "depth"}) == 0


# -- strays -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A Janus whose weights are a pickle, with a backup of other weights beside it."""
    model = Janus.pico()
    model.export(tmp_path, "transformers")
    weights = {name: tensor for name, tensor in model.net.state_dict().items() if name != "image_table"}
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    torch.save({name: torch.zeros_like(t) for name, t in weights.items()}, tmp_path / "pytorch_model_before.bin")
    return tmp_path


def test_a_stray_weight_file_is_named_and_not_merged(pickled: Path) -> None:
    with pytest.raises(UsageError, match=r"no weights beside pytorch_model\.bin, got pytorch_model_before\.bin; move"):
        load_model(str(pickled))
    (pickled / "pytorch_model_before.bin").unlink()
    own = Janus.pico().net.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in load_model(str(pickled)).net.state_dict().items())


def test_shards_of_a_pickle_are_those_of_its_index(pickled: Path) -> None:
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    names, places = sorted(weights), dict[str, str]()
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, pickled / shard)
        places |= dict.fromkeys(part, shard)
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    (pickled / "pytorch_model.bin").unlink()
    with pytest.raises(UsageError, match="no weights beside"):
        load_model(str(pickled))
    (pickled / "pytorch_model_before.bin").unlink()
    model = load_model(str(pickled))
    assert sorted(model.card.files) == sorted(set(places.values()))
    assert all(torch.equal(t, weights[n]) for n, t in model.net.state_dict().items() if n in weights)


@pytest.mark.parametrize("index", [{}, {"weight_map": 3}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../x.bin"}}])
def test_an_index_of_pickles_that_is_none_is_one_line(pickled: Path, index: dict[str, Any]) -> None:
    for path in pickled.glob("*.bin"):
        path.unlink()
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(TrustError, match=r"a 'weight_map' of tensor names to files|shards named"):
        load_model(str(pickled))


def test_safetensors_win_over_pickles(pickled: Path) -> None:
    Janus.pico().export(pickled, "transformers")
    assert weight_file(pickled) == pickled / "model.safetensors"
    shutil.copy(pickled / "model.safetensors", pickled / "edited.safetensors")
    assert weight_file(pickled).name == "edited.safetensors"
