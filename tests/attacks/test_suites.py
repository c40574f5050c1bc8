"""Suites: every one names attacks there are, with settings that they take, and budgets that can show their gate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safear_edit import registry
from safear_edit.attacks import suites, targets
from safear_edit.attacks.record import FILE, Attacks
from safear_edit.attacks.relearn import Relearn
from safear_edit.attacks.run import planned
from safear_edit.attacks.sampler import Sampler, points
from safear_edit.attacks.suites import SUITES, Budget, Suite
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import UsageError
from safear_edit.evaluate.stats import clopper_pearson
from safear_edit.families.base import Sampling
from safear_edit.files import rundir
from safear_edit.files.records import read_record
from safear_edit.pipeline import steps
from tests.attacks.test_contract import Bright, concept, picasso, pico, some_edit


@pytest.mark.parametrize("name", list(SUITES))
def test_a_suite_can_show_what_it_gates(name: str) -> None:
    plan, known = planned(name), registry.attacks()
    assert {made.name for made, _ in plan.attacks} <= set(known) and plan.upper == SUITES[name].black_box_upper
    if plan.upper is not None:
        assert len(plan.attacks) == len(known) - len(SUITES[name].without)
        assert clopper_pearson(0, SUITES[name].size.images, side="upper").high <= plan.upper


def test_budgets_and_settings_are_the_suites() -> None:
    relearn, budget = next((made, budget) for made, budget in planned("ci").attacks if made.name == "relearn")
    assert isinstance(relearn, Relearn) and budget == Budget(48, 4, 20)
    assert [way.name for way in relearn.params.ways] == ["LoRA, 8 images", "all weights, 8 images"]
    left = {made.name for made, _ in planned("audit").attacks} - {made.name for made, _ in planned("ci").attacks}
    assert left == {"benign", "p4d"} and [made.name for made, _ in planned("ci", ["p4d"]).attacks] == ["p4d"]
    sampler = next(made for made, _ in planned("ci").attacks if made.name == "sampler")
    assert isinstance(sampler, Sampler) and len(points(Sampling(3.0), sampler.params)) == 6
    assert [made.name for made, _ in planned("quick", ["seeds"]).attacks] == ["seeds"]
    with pytest.raises(UsageError, match="audit"):
        planned("audt")


def test_the_walk_runs_the_specs_suite_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suites.SUITES, "smoke", Suite(Budget(2, 2, 1), ("seeds",)))  # type: ignore[index]
    model, spec = pico("llamagen"), picasso()
    asked: list[str] = []

    def made(model: Any, spec: Any, judge: Any, sampling: Any, seed: int, *, images: bool) -> Any:
        asked.append(spec.name)
        assert not images, "best of several seeds starts from none"
        return concept(model)

    monkeypatch.setattr(targets, "concept_of", made)
    change = Stack((Layer("picasso", some_edit(model)),))
    with rundir.opened(tmp_path / "out") as run:
        for suite in (None, "smoke", "smoke"):
            own = spec.model_copy(update={"evaluate": spec.evaluate.model_copy(update={"attacks": suite})})
            scored = SimpleNamespace(prompts=())
            recipe: Any = SimpleNamespace(digest=f"{suite}", spec=own, seed=0, sampling=None, evaluate=scored)
            monkeypatch.setattr("safear_edit.evaluate.sampled.sampling_of", lambda recipe: None)
            assert steps.attacks(run, recipe, model, change, lambda *_: None) == ""
            assert ("attacks" in steps.measuring(recipe, model)) == (suite is not None)
        found = read_record(Attacks, run / FILE)
    assert asked == ["picasso"] and found.tier == "smoke" and [one.attack for one in found.found] == ["seeds"]
    assert found.found[0].edited.n == 2 and found.judge == Bright.id


def test_a_spec_without_a_suite_keeps_its_digest() -> None:
    assert "attacks" not in picasso().evaluate.model_dump()
