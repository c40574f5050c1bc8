"""The search over options: the choice is made on some prompts, the figure is made on others."""

from __future__ import annotations

import pytest

from safear_edit.attacks.base import Budget, Drawer
from safear_edit.attacks.search import Option, search
from safear_edit.attacks.spelling import Spelling
from safear_edit.evaluate.before_after import Pair
from tests.attacks.test_contract import concept, pico, some_edit


def options() -> list[Option]:
    return [Option(name, lambda p, n=name: f"{n} {p.text}", lambda p, n=name: f"plain {n}") for name in "abc"]  # type: ignore[misc]


@pytest.mark.parametrize("leaking", ["", "b"])
def test_the_best_option_is_measured_on_fresh_prompts(leaking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[str]] = {}

    def look(self: Drawer, model: object, prompts: list[str], purpose: str, **more: object) -> list[bool | None]:
        asked[purpose] = list(prompts)
        return [purpose.startswith("try") or (bool(leaking) and text.startswith(leaking)) for text in prompts]

    monkeypatch.setattr(Drawer, "look", look)
    model = pico("llamagen")
    pair, budget = Pair.of_edit(model, some_edit(model)), Budget(9, 1, 1)
    found = search(Spelling(), pair, concept(model), options(), budget, 0, None, lambda *a: None)
    fresh = [key for key in asked if key.startswith("attack, fresh")]
    tried_on_base = [key for key in asked if key.startswith("try")]
    assert tried_on_base == [f"try, {n}" for n in "abc"]
    assert fresh == ([f"attack, fresh, {leaking}"] if leaking else [f"attack, fresh, {n}" for n in "abc"])
    assert found.edited.n == found.base.n == found.control.n == 9  # type: ignore[union-attr]
    assert found.edited.found == (9 if leaking else 0) and found.control.found == 0  # type: ignore[union-attr]
    tried = {text[2:] for name in "abc" for text in asked[f"attack, {name}"]}
    used = {text[2:] for key in fresh for text in asked[key]}
    assert len(tried) == 3 and len(used) == 9 and not tried & used
    assert [part.count.found for part in found.searched] == ([0, 3, 0] if leaking else [0, 0, 0])


def test_what_the_base_model_does_not_follow_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Option b leaves the base model nothing to read: it is not searched, whatever the edited model shows under it."""
    purposes: list[str] = []

    def look(self: Drawer, model: object, prompts: list[str], purpose: str, **more: object) -> list[bool | None]:
        purposes.append(purpose)
        return [None if purpose.startswith("try") and text.startswith("b") else True for text in prompts]

    monkeypatch.setattr(Drawer, "look", look)
    model = pico("llamagen")
    pair = Pair.of_edit(model, some_edit(model))
    found = search(Spelling(), pair, concept(model), options(), Budget(9, 1, 1), 0, None, lambda *a: None)
    assert [part.name for part in found.left_out] == ["b"] and found.left_out[0].count.unreadable == 3
    assert [part.name for part in found.searched] == ["a", "c"]
    assert not any(purpose.endswith(" b") for purpose in purposes if not purpose.startswith("try"))
