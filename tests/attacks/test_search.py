"""The search over options: the choice is made on some prompts, the figure is made on others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safear_edit.attacks.base import Budget, Drawer
from safear_edit.attacks.search import Option, search
from safear_edit.attacks.spelling import Spelling
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import Sampling
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
    assert list(asked) == [
        *("try, a", "attack, a", f"attack, fresh, {leaking or 'a'}"),
        *("control, a", "control, fresh, a", f"base, fresh, {leaking or 'a'}"),
    ], "options that differ in words are drawn together"
    tried, used = asked["attack, a"], asked[f"attack, fresh, {leaking or 'a'}"]
    assert [text[0] for text in tried] == [*"aaabbbccc"]
    assert {text[0] for text in used} == ({leaking} if leaking else {*"abc"})
    assert found.edited.n == found.base.n == found.control.n == 9  # type: ignore[union-attr]
    assert found.edited.found == (9 if leaking else 0) and found.control.found == 0  # type: ignore[union-attr]
    few, fresh = {text[2:] for text in tried}, {text[2:] for text in used}
    assert len(few) == 3 and len(fresh) == 9 and not few & fresh
    assert [part.count.found for part in found.searched] == ([0, 3, 0] if leaking else [0, 0, 0])


def test_what_the_base_model_does_not_follow_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Option b leaves the base model nothing to read: it is not searched, whatever the edited model shows under it."""
    asked: list[str] = []

    def look(self: Drawer, model: object, prompts: list[str], purpose: str, **more: object) -> list[bool | None]:
        asked.extend(text for text in prompts if not purpose.startswith("try"))
        return [None if purpose.startswith("try") and text.startswith("b") else True for text in prompts]

    monkeypatch.setattr(Drawer, "look", look)
    model = pico("llamagen")
    pair = Pair.of_edit(model, some_edit(model))
    found = search(Spelling(), pair, concept(model), options(), Budget(9, 1, 1), 0, None, lambda *a: None)
    assert [part.name for part in found.left_out] == ["b"] and found.left_out[0].count.unreadable == 3
    assert [part.name for part in found.searched] == ["a", "c"]
    assert {text[0] for text in asked} == {"a", "c", "p"} and "plain b" not in asked


def test_options_with_settings_of_their_own_are_drawn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets what was seen of its own prompts."""
    model, looks = pico("llamagen"), list[tuple[float, int]]()
    first, second = (Sampling(guidance) for guidance in (1.0, 2.0))
    own = [replace(option, sampling=s) for option, s in zip(options(), (first, first, second), strict=True)]

    def look(self: Drawer, model: object, prompts: list[str], purpose: str, **more: object) -> list[bool | None]:
        if purpose.startswith("attack, ") and "fresh" not in purpose:
            looks.append((more["sampling"].guidance, len(prompts)))  # type: ignore[attr-defined]
        return [purpose.startswith("try") or text.startswith("b") for text in prompts]

    monkeypatch.setattr(Drawer, "look", look)
    pair = Pair.of_edit(model, some_edit(model))
    found = search(Spelling(), pair, concept(model), own, Budget(9, 1, 1), 0, None, lambda *a: None)
    assert looks == [(1.0, 6), (2.0, 3)] and [part.count.found for part in found.searched] == [0, 3, 0]
