"""The search over options: the choice is made on some prompts, the figure is made on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from safear_edit.attacks.base import Budget, Drawer, Look
from safear_edit.attacks.merge import Merge, Merging
from safear_edit.attacks.search import Option, search
from safear_edit.attacks.spelling import Spelling
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import Sampling
from tests.attacks.test_contract import concept, pico, some_edit


def options() -> list[Option]:
    return [Option(name, lambda p, n=name: f"{n} {p.text}", lambda p, n=name: f"plain {n}") for name in "abc"]  # type: ignore[misc]


Batches = list[list[Look]]


def answered(monkeypatch: pytest.MonkeyPatch, present: Callable[[str, str], bool | None]) -> Batches:
    """What is drawn together from now on; `present` answers for purpose and prompt instead of a judge."""
    batches: Batches = []

    def looks(self: Drawer, model: object, looks: Sequence[Look], **more: object) -> list[list[bool | None]]:
        batches.append(list(looks))
        return [[present(look.purpose, text) for text in look.prompts] for look in looks]

    monkeypatch.setattr(Drawer, "looks", looks)
    return batches


@pytest.mark.parametrize("leaking", ["", "b"])
def test_the_best_option_is_measured_on_fresh_prompts(leaking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = answered(
        monkeypatch, lambda purpose, text: purpose.startswith("try") or (bool(leaking) and text.startswith(leaking))
    )
    model = pico("llamagen")
    pair, budget = Pair.of_edit(model, some_edit(model)), Budget(9, 1, 1)
    found = search(Spelling(), pair, concept(model), options(), budget, 0, None, lambda *a: None)
    asked = {look.purpose: list(look.prompts) for batch in batches for look in batch}
    best = leaking or "a"
    assert [[look.purpose for look in batch] for batch in batches] == [
        *(["try, a"], ["attack, a", "control, a"], [f"attack, fresh, {best}", "control, fresh, a"]),
        [f"base, fresh, {best}"],
    ], "options that differ in words are drawn together, and the control with the attack"
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
    batches = answered(
        monkeypatch, lambda purpose, text: None if purpose.startswith("try") and text.startswith("b") else True
    )
    model = pico("llamagen")
    pair = Pair.of_edit(model, some_edit(model))
    found = search(Spelling(), pair, concept(model), options(), Budget(9, 1, 1), 0, None, lambda *a: None)
    assert [part.name for part in found.left_out] == ["b"] and found.left_out[0].count.unreadable == 3
    assert [part.name for part in found.searched] == ["a", "c"]
    asked = [text for batch in batches[1:] for look in batch for text in look.prompts]
    assert {text[0] for text in asked} == {"a", "c", "p"} and "plain b" not in asked


def test_options_with_settings_of_their_own_are_drawn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets what was seen of its own prompts."""
    model = pico("llamagen")
    first, second = (Sampling(guidance) for guidance in (1.0, 2.0))
    own = [replace(option, sampling=s) for option, s in zip(options(), (first, second, first), strict=True)]
    batches = answered(monkeypatch, lambda purpose, text: purpose.startswith("try") or text.startswith("b"))
    pair = Pair.of_edit(model, some_edit(model))
    found = search(Spelling(), pair, concept(model), own, Budget(9, 1, 1), 0, None, lambda *a: None)
    tried = [[(look.purpose, len(look.prompts)) for look in batch] for batch in batches[2:4]]
    assert tried == [[("attack, a", 6), ("control, a", 6)], [("attack, b", 3), ("control, b", 3)]]
    assert [part.count.found for part in found.searched] == [0, 3, 0]


def test_what_changes_the_edit_alone_leaves_the_base_model_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """All its options are one model there, drawn in one batch."""
    model = pico("llamagen")
    batches = answered(monkeypatch, lambda purpose, text: purpose.startswith("try"))
    Merge(Merging(shares=(0.5,), directions=(1,))).run(
        Pair.of_edit(model, some_edit(model)), concept(model), Budget(4, 1, 1), 0
    )
    names = [[look.purpose for look in batch] for batch in batches]
    assert [one for one in names if one[0].startswith(("try", "base"))] == [
        ["try, 50% of the edit"],
        ["base, fresh, 50% of the edit"],
    ]
    assert len(names) == 2 + 2 * 2, "two options, each drawn apart on the edited model"


def test_looks_drawn_together_show_what_each_shows_alone(tmp_path: Path) -> None:
    """The same seeds, the same answers, and of an attack that was killed the stored ones."""
    model = pico("llamagen")
    texts = [f"a photo of {number} cats" for number in range(6)]
    drawer = Drawer("seeds", concept(model), 0, tmp_path)
    both = [Look(texts, "attack"), Look(texts[:4], "control", numbers=[3, 1, 2, 0])]
    seen = drawer.looks(model, both)
    alone = Drawer("seeds", concept(model), 0)
    assert seen == [alone.looks(model, [look])[0] for look in both] and seen[0] == alone.look(model, texts, "attack")
    assert seen == Drawer("seeds", concept(model), 0, tmp_path).looks(model, both) and drawer.images == 10
