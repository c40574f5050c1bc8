"""What every attack promises (attacks/base.py), on every family's tiny random model: a new attack is held to it by
being found."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from safear_edit import registry
from safear_edit.attacks.base import Attack, Budget, Concept, Target
from safear_edit.attacks.record import Leaks
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import ModelFamily
from safear_edit.files.records import read_record
from safear_edit.judges.base import Judge, Judgement
from safear_edit.registry import attacks, families
from safear_edit.spec.spec import Spec, load_spec

SMALL = Budget(images=3, draws=2, steps=2)
CAPTIONS = tuple(f"a photo of {thing}" for thing in ("a cat", "a dog", "a house", "two fish", "a tree"))
DRAWN_TWICE = ("infinity", "janus", "llamagen")
"""One family of each kind: scales, unified, raster."""
TRIED = (*DRAWN_TWICE, "diffusion", "vila_u")
"""Those, and one that denoises and one that draws in depth: every time. The others, unified ones, when it soaks."""
LIKE_ANOTHER = {"benign": "relearn", "p4d": "suffix"}
"""What these do to a model is done by the other, which is tried on every family."""
LITTLE: dict[str, dict[str, object]] = {
    "another": {"images": 2},
    "benign": {"ways": [{"weights": "lora", "images": 4, "benign": True}], "learning": {"batch": 2}},
    "p4d": {"candidates": 4, "batch": 2},
    "prune": {"shares": [0.2]},
    "merge": {"shares": [0.5], "directions": [1]},
    "relearn": {"ways": [{"weights": "lora", "images": 8}, {"weights": "full", "images": 8, "benign": True}]},
    "ring_a_bell": {"population": 8, "elite": 3, "captions": 2},
    "sampler": {"guidance": [2.0], "temperature": [0.7], "top_k": [1], "top_p": [0.5]},
    "soft_prompt": {"curves": [2]},
    "suffix": {"candidates": 4, "batch": 2},
}
"""Settings that try less of the same: every option is a search of its own."""
PICO: dict[str, ModelFamily] = {}


class Bright(Judge):
    """Sees what it looks for in every image whose upper half is brighter than its lower one."""

    id, digest, threshold = "bright@test", "b" * 64, 0.5

    def look(self, images: torch.Tensor) -> list[Judgement]:
        upper, lower = (half.float().mean((1, 2, 3)) for half in images.chunk(2, 2))
        return [Judgement(bool(found), float(found), "") for found in upper > lower]


def picasso() -> Spec:
    """With two of its held-out names and sentences: each is an option of an attack, and takes its time."""
    spec = load_spec(registry.find_builtin("concepts", "picasso"))
    other = spec.paraphrases
    less = {"held_out": other.held_out[:2], "held_out_templates": other.held_out_templates[:2]}
    fewer = other.model_copy(update=less)
    return spec.model_copy(update={"paraphrases": fewer})


def pico(family: str) -> ModelFamily:
    if family not in PICO:
        PICO[family] = families()[family].load().pico()
    return PICO[family]


@cache
def concept(model: ModelFamily) -> Concept:
    """The attacker's images are the model's own; every attack on a model is handed the same."""
    ids = model.generate(model.condition([f"{text} by Picasso" for text in CAPTIONS]), range(len(CAPTIONS)))
    asked = tuple(f"{text} by Picasso" for text in CAPTIONS)
    known, novel = (Target(CAPTIONS, rows, Bright(), asked, asked) for rows in (ids, ids.flip(0)))
    return Concept(picasso(), Bright(), None, known, novel, CAPTIONS, plain=known)


def some_edit(model: ModelFamily) -> Edit:
    """An edit that nobody trained, of the first two linear layers."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name in model.editable("all")[:2]:
        out, width = model.net.get_parameter(f"{name}.weight").shape
        tensors[f"{name}.lora_A"] = torch.randn(2, width, generator=generator)
        tensors[f"{name}.lora_B"] = 0.01 * torch.randn(out, 2, generator=generator)
    about = {"method": "vce", "params": {}, "concept": "P.", "base_digest": model.card.digest, "rank": 2}
    return Edit("lora", tensors, EditInfo(**about, alpha=2.0, seed=5, steps=1, losses=(0.7,), minutes=0.1))


def edit_of_the_table(model: ModelFamily) -> Edit:
    """An edit that nobody trained, of the table that feeds image tokens back; of a layer where there is none."""
    if not model.table_name:
        return some_edit(model)
    noise = torch.randn(model.image_table().shape, generator=torch.Generator().manual_seed(5))
    about = {"method": "safe_cb", "params": {}, "concept": "P.", "base_digest": model.card.digest, "rank": None}
    info = EditInfo(**about, alpha=None, seed=5, steps=1, losses=(0.7,), minutes=0.1)
    return Edit("delta", {model.table_name: noise}, info)


def without_seconds(found: Leaks) -> Leaks:
    return found.model_copy(update={"cost": found.cost.model_copy(update={"seconds": 0.0, "reused": 0})})


@pytest.mark.parametrize("name", list(attacks()))
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in TRIED else pytest.mark.soak) for name in families()]
)
def test_an_attack_runs_again_the_same_and_changes_nothing(family: str, name: str, tmp_path: Path) -> None:
    if name in LIKE_ANOTHER and family not in DRAWN_TWICE:
        pytest.skip(f"as {LIKE_ANOTHER[name]}")
    model = pico(family)
    kind = attacks()[name].load()
    attack: Attack = kind(kind.Params(**LITTLE.get(name, {})))
    aim = concept(model)
    pair = Pair.of_edit(model, edit_of_the_table(model) if name == "decoder_swap" else some_edit(model))
    if why := attack.unfit(pair, aim):
        pytest.skip(why)
    before = {key: tensor.clone() for key, tensor in model.net.state_dict().items()}
    first = attack.run(pair, aim, SMALL, 0, store=tmp_path / "store")
    store = None if family in DRAWN_TWICE else tmp_path / "store"  # elsewhere what was stored is read, for time's sake
    again = attack.run(pair, aim, SMALL, 0, store=store)
    assert without_seconds(first) == without_seconds(again)
    state = model.net.state_dict()
    assert state.keys() == before.keys() and all(torch.equal(before[key], state[key]) for key in before)
    assert all(parameter.grad is None for parameter in model.net.parameters())
    assert 1 <= first.edited.n <= SMALL.images and first.base.n == first.edited.n
    assert first.control is not None and first.control.n == first.edited.n and first.control_is
    assert first.cost.images > 0 and first.interpretable == (not first.why)
    path = tmp_path / "record.json"
    path.write_text(first.model_dump_json())
    assert read_record(Leaks, path) == first
