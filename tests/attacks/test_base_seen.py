"""What the base model shows is drawn once for all edits: read again only where nothing that decides it has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safear_edit.attacks.base import Attack, Budget, Concept
from safear_edit.attacks.record import Leaks
from safear_edit.attacks.run import AttackPlan, attacked
from safear_edit.attacks.seeds import Seeds
from safear_edit.attacks.soft_prompt import Learning, SoftPrompt
from safear_edit.evaluate.before_after import Pair
from safear_edit.files.cache import user_cache
from tests.attacks.test_contract import concept, pico, some_edit, without_seconds

PLAN = AttackPlan("quick", ((Seeds(), Budget(3, 2, 2)), (SoftPrompt(Learning(curves=())), Budget(3, 2, 2))), None)


@pytest.fixture(autouse=True)
def own_cache_of_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(out: Path, strength: float = 1.0, *, seed: int = 0, aim: Concept | None = None) -> tuple[Leaks, ...]:
    model = pico("llamagen")
    pair = Pair.of_edit(model, some_edit(model), strength)
    return attacked(pair, aim or concept(model), "pico", f"strength {strength}", PLAN, out, seed=seed).found


def reused(found: tuple[Leaks, ...]) -> list[int]:
    return [leaks.cost.reused for leaks in found]


def test_another_edit_of_the_same_base_does_not_draw_it_again(tmp_path: Path) -> None:
    first, again, other = run(tmp_path / "one"), run(tmp_path / "two"), run(tmp_path / "three", 0.5)
    assert reused(first) == [0, 0] and all(count >= 3 for count in reused(again))
    assert [*map(without_seconds, again)] == [*map(without_seconds, first)], "counted as if it was drawn now"
    assert [leaks.base for leaks in other] == [leaks.base for leaks in first] and reused(other) == reused(again)
    assert not list((tmp_path / "one").glob("images/*")), "kept in the user's cache alone"


def test_nothing_is_read_that_was_shown_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other seeds, other images to learn from, another version of what draws; a damaged file costs time alone."""
    first = run(tmp_path / "one")
    model = pico("llamagen")
    aim = concept(model)
    assert aim.known is not None
    others = replace(aim, known=replace(aim.known, ids=aim.known.ids.flip(0)))
    assert reused(run(tmp_path / "two", seed=1)) == [0, 0]
    assert reused(run(tmp_path / "three", aim=others)) == [0, 0]
    cache = user_cache("attacks")
    assert cache is not None
    for path in cache.rglob("*.json"):
        path.write_text("{")
    damaged = run(tmp_path / "four")
    assert reused(damaged) == [0, 0] and [*map(without_seconds, damaged)] == [*map(without_seconds, first)]
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "encoder_origin", lambda self: ("another text encoder", "f" * 64))
        assert reused(run(tmp_path / "five")) == [0, 0]
    assert all(reused(run(tmp_path / "five"))), "attacked again: it was another encoder that read the captions"
    monkeypatch.setattr("safear_edit.registry.source_digest", lambda modules: "another version")
    assert reused(run(tmp_path / "six")) == [0, 0]


def test_a_finished_attack_is_kept_for_the_same_folder_of_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spec names the folder; what lies in it may have changed since."""
    aim, ran = concept(pico("llamagen")), list[str]()
    own = aim.spec.evaluate.model_copy(update={"references": "folder"})
    aim = replace(aim, spec=aim.spec.model_copy(update={"evaluate": own}))
    assert aim.known is not None
    others = replace(aim, known=replace(aim.known, ids=aim.known.ids.flip(0)))

    def count(kind: type[Attack]) -> None:
        done = kind.run

        def counted(self: Attack, *given: Any, **more: Any) -> Leaks:
            ran.append(self.name)
            return done(self, *given, **more)

        monkeypatch.setattr(kind, "run", counted)

    count(Seeds)
    count(SoftPrompt)
    for given in (aim, aim, others):
        run(tmp_path / "one", aim=given)
    assert ran == ["seeds", "soft_prompt", "soft_prompt"], "seeds reads no image"
