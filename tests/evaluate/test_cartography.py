"""The map of a concept: evidence is a difference of log-probabilities, switching is causal, depth sums to one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from safear_edit.cli import main
from safear_edit.construct.pairs import Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.errors import UsageError
from safear_edit.evaluate import cartography
from safear_edit.evaluate.cartography import ConceptMap, Group, evidence, layer_modules, switching, token_groups
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.tokens import token_logprobs
from safear_edit.judges.base import Judge, Judgement
from safear_edit.progress import silent

UNSAFE, SAFE = ["a house by Picasso", "a dog by Picasso"], ["a photo of a house", "a photo of a dog"]


class Same(Judge):
    """Finds the concept in exactly the images that it was shown: present if nothing was changed."""

    def __init__(self, pictures: Tensor) -> None:
        self.id, self.digest, self.threshold, self.card = "same", "0" * 64, 0.5, None
        self._known = [picture.clone() for picture in pictures]

    def look(self, images: Tensor) -> list[Judgement]:
        found = [any(torch.equal(image, known) for known in self._known) for image in images]
        return [Judgement(hit, float(hit), "same pixels" if hit else "other pixels") for hit in found]


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico()


@pytest.fixture(scope="module")
def pairs(model: LlamaGen) -> Pairs:
    ids = [model.generate(model.condition(prompts), [5, 6]) for prompts in (UNSAFE, SAFE)]
    return Pairs(UNSAFE, SAFE, [5, 6], ids[0], ids[1], PairStats(2, 2, {}))


def test_evidence_is_the_gap_of_log_probabilities(
    model: LlamaGen, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        one, other = (
            token_logprobs(model.logits(model.condition(p), pairs.unsafe_ids), pairs.unsafe_ids) for p in (UNSAFE, SAFE)
        )
    torch.testing.assert_close(evidence(model, pairs, silent), one - other, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr("safear_edit.families.base.READ_BYTES", model.read_bytes(1))
    seen = list[int]()
    evidence(model, pairs, lambda stage, done, total, info: seen.append(done))
    assert seen == [1, 2], "few at a time, where logits are large"
    torch.testing.assert_close(evidence(model, pairs, silent), one - other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_gives_no_numbers_has_no_map(value: float, pairs: Pairs) -> None:
    broken = LlamaGen.pico()
    with torch.no_grad():
        broken.net.get_parameter(f"{broken.editable('all')[0]}.weight").fill_(value)
    with pytest.raises(UsageError, match=r"likelihoods: expected .*numbers"):
        evidence(broken, pairs, silent)


def test_switching_counts_from_neutral_to_whole(model: LlamaGen, pairs: Pairs) -> None:
    """Nothing of the unsafe image kept: the neutral ones are drawn; all kept: the unsafe ones themselves."""
    unsafe, safe = (Same(model.decode(ids)) for ids in (pairs.unsafe_ids, pairs.safe_ids))
    assert switching(model, pairs, unsafe, [4, 4, 4, 4], silent)[-1] == 2
    assert switching(model, pairs, safe, [4, 4, 4, 4], silent)[0] == 2
    assert switching(model, pairs, unsafe, [4, 4, 4, 4], silent)[0] == 0


def test_measure_leaves_the_model_alone_and_adds_up(model: LlamaGen, pairs: Pairs, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    asked = [p.requires_grad for p in model.net.parameters()]
    judge = Same(model.decode(pairs.unsafe_ids))
    found = cartography.locate(model, "picasso", pairs, judge, silent)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.net.state_dict().items())
    assert asked == [p.requires_grad for p in model.net.parameters()]
    total = evidence(model, pairs, silent).sum(1).mean().item()
    assert sum(group.evidence for group in found.groups) == pytest.approx(total, abs=1e-4)
    assert [group.tokens for group in found.groups] == [4, 4, 4, 4] and found.kind == "row"
    assert sum(share for _, share in found.depth) == pytest.approx(1) and len(found.depth) == 2
    cartography.save(found, tmp_path)
    written = json.loads((tmp_path / "map.json").read_text())
    assert written["locked_in"] == found.locked_in and written["advice"] == found.advice()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.soak
def test_the_verb_writes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the real mini, two pairs of the built-in concept."""
    out = tmp_path / "map"
    words = ["map", "picasso", "--model", "llamagen", "--out", str(out), "--pairs", "4", "--json"]
    assert main.run(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "map.json").read_text()) and 2 <= printed["pairs"] <= 4
    assert {path.name for path in out.iterdir()} == {".gitattributes", "map.json", "map.png", "recipe.json"}
    assert main.run(words) == 2 and "must not exist" not in capsys.readouterr().out
    recipe = str(out / "recipe.json")
    assert main.run(["map", recipe, "--seed", "3", "--out", str(tmp_path / "other")]) == 2
    assert "--seed: expected a spec to compile, got the finished recipe" in capsys.readouterr().err
    assert main.run(["map", recipe, "--pairs", "9000", "--out", str(tmp_path / "other")]) == 2
    assert "--pairs: expected at most 160, which the recipe has, got 9000" in capsys.readouterr().err


def test_locked_in_is_the_first_half_way_group() -> None:
    def groups(*hits: int) -> tuple[Group, ...]:
        return tuple(Group(f"row {i}", 4, 1.0, 0.1, h, 10) for i, h in enumerate(hits))

    def locked(*hits: int) -> int:
        return ConceptMap("m", "d", "c", "row", 10, 0, groups(*hits), ()).locked_in

    assert (locked(0, 3, 6, 10), locked(9, 9, 9, 10), locked(0, 0, 0, 10)) == (2, 0, 3)


def test_groups_and_layers_of_a_family(model: LlamaGen) -> None:
    assert token_groups(model) == [(f"row {i}", 4) for i in range(4)]
    oblong: Any = SimpleNamespace(card=replace(model.card, tokens=15, scales=(15,)))
    assert sum(count for _, count in token_groups(oblong)) == 15, "an image that has no square rows is one part"
    layers = layer_modules(model)
    assert len(layers) == 2 and all(name.startswith("layers.1.") for name in layers[1])
