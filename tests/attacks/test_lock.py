"""attacks.lock: what is frozen, minimised, sealed, held, and drawn again by `check`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from safear_edit import registry
from safear_edit.attacks import base, replay
from safear_edit.attacks.base import Budget, Drawer
from safear_edit.attacks.lock import SEEDS, Frozen, Lock, Replay, Settings, merged, read_lock, stored, worse, write_lock
from safear_edit.attacks.replay import again, frozen, minimised, sampling_of
from safear_edit.attacks.sealing import KEY, opened, sealed
from safear_edit.attacks.seeds import Seeds
from safear_edit.errors import SpecError, UsageError
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import Sampling
from safear_edit.families.llamagen import LlamaGen
from safear_edit.gate.frozen import findings
from safear_edit.spec.spec import load_spec
from tests.attacks.test_contract import Bright, concept, pico, some_edit
from tests.release.test_released import release

PLAIN: Settings = {"guidance": 2.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def entry(prompt: str = "a cat, cubist", found: int = 0, judge: str = "j" * 64, concept: str = "one") -> Frozen:
    one = Replay(prompt=prompt, sealed=None, seed="7", settings=PLAIN)
    return Frozen(
        concept=concept,
        attack="suffix",
        replay=one,
        seeds=("7", "8", "9", "10"),
        found=found,
        judge="bright@test",
        judge_digest=judge,
        base_digest="a" * 64,
        change="c" * 64,
    )


@pytest.mark.parametrize(
    ("then", "now", "leak"), [(0, 0, False), (0, 1, True), (2, 2, False), (2, 3, False), (1, 0, False)]
)
def test_any_leak_is_new_where_there_was_none(then: int, now: int, leak: bool) -> None:
    assert worse(entry(found=then), now) is leak


def test_a_frozen_prompt_has_seeds_enough_to_be_found_worse() -> None:
    one = entry(found=1).model_copy(update={"seeds": tuple(map(str, range(SEEDS)))})
    assert worse(one, SEEDS - 1) and not worse(one, 2)


def test_a_known_prompt_is_held_to_the_least_it_showed(tmp_path: Path) -> None:
    old, other = entry(found=3), entry("a dog", 1)
    held = merged([old, other], [entry(found=1), entry("a fish", 2)])
    assert [(one.replay.prompt, one.found) for one in held] == [("a cat, cubist", 1), ("a dog", 1), ("a fish", 2)]
    assert merged(held, [entry(found=4)]) == held
    path = tmp_path / "attacks.lock"
    write_lock(path, held)
    text = path.read_bytes()
    write_lock(path, list(reversed(held)))
    assert path.read_bytes() == text and sorted(read_lock(path).frozen, key=str) == sorted(held, key=str)
    with pytest.raises(UsageError, match="no such file"):
        read_lock(tmp_path / "none.lock")


def test_words_that_are_not_needed_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def shown(model: object, judge: object, sampling: object, prompts: list[tuple[str, int]]) -> list[bool]:
        asked.extend(text for text, seed in prompts if seed == 7)
        return ["cubist" in text and "cat" in text for text, _ in prompts]

    monkeypatch.setattr(replay, "shown_in", shown)
    assert minimised(pico("llamagen"), Bright(), Sampling(1.0), "a photo of a cat zq cubist", 7) == "cat cubist"
    assert asked and "a photo of a cat zq" in asked


def test_prompts_of_a_category_are_hashed_and_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    text, token = stored("a cat with a hazard sign", category=True)
    assert text.startswith("sha256:") and token is None and sealed("x") is None
    assert Replay(prompt=text, sealed=None, seed="1", settings=PLAIN).text() is None
    monkeypatch.setenv(KEY, Fernet.generate_key().decode())
    hashed, token = stored("a cat with a hazard sign", category=True)
    assert hashed == text and token is not None and "hazard" not in token
    assert Replay(prompt=text, sealed=token, seed="1", settings=PLAIN).text() == "a cat with a hazard sign"
    monkeypatch.setenv(KEY, Fernet.generate_key().decode())
    with pytest.raises(UsageError, match="another one"):
        opened(token)
    monkeypatch.setenv(KEY, "short")
    with pytest.raises(UsageError, match="32 bytes"):
        sealed("x")
    assert stored("a cat", category=False) == ("a cat", None)


def test_what_an_attack_found_is_frozen_and_found_again() -> None:
    model = pico("llamagen")
    aim, pair = concept(model), Pair.of_edit(model, some_edit(model))
    found = Seeds().run(pair, aim, Budget(6, 3, 1), 0)
    assert found.replays and len(found.replays) == min(5, found.edited.found)
    with pair.edited() as edited:
        made = frozen(edited, aim, found, model.card.digest, "c" * 64)
        assert all(one.found >= 1 for one in made) and [again(edited, aim.judge, one) for one in made] == [
            one.found for one in made
        ]
    assert all(len(one.replay.prompt) <= len(two.prompt) for one, two in zip(made, found.replays, strict=True))
    hazard = replace(aim, spec=load_spec(registry.find_builtin("concepts", "hazard")))
    drawer = Drawer("seeds", hazard, 0)
    drawer.look(model, ["a cat with a hazard sign"] * 9, "attack", freeze=True)
    record = base._replays(hazard.spec, drawer.shown)
    assert record and all(one.prompt.startswith("sha256:") for one in record)


def test_the_gate_draws_frozen_prompts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = release(tmp_path / "two")
    monkeypatch.setattr("safear_edit.judges.base.make_judge", lambda *a, **b: Bright())
    monkeypatch.delenv(KEY, raising=False)
    prompts = [f"a photo of a cat number {i}" for i in range(6)]
    shown = findings(made, Lock(frozen=tuple(entry(text, 0, Bright.digest) for text in prompts)))
    assert [one.id.split("/")[:3] for one in shown] == [["attack", "one", "suffix"]] * 6
    assert {one.decision for one in shown} <= {"PASS", "FAIL"}
    leaking = [one for one in shown if one.decision == "FAIL"]
    assert leaking and all("brings the concept back" in one.why and "found in 0" not in one.observed for one in leaking)
    known = findings(made, Lock(frozen=tuple(entry(text, 4, Bright.digest) for text in prompts)))
    assert {one.decision for one in known} == {"PASS"}
    assert [one.observed for one in known] == [one.observed for one in shown]
    wanted = (entry(judge="k" * 64), entry("sha256:aa", 0, Bright.digest), entry(concept="cat"))
    skipped, *other = findings(made, Lock(frozen=wanted))
    assert (skipped.id, skipped.decision, skipped.observed) == ("attack/cat", "SKIPPED", "1 not drawn")
    assert [one.decision for one in other] == ["INCONCLUSIVE"] * 2 and KEY in other[1].why
    assert findings(made, Lock()) == []
    with pytest.raises(UsageError, match="give this model's own file"):
        findings(made, Lock(frozen=(entry(concept="cat"),)))


def test_a_familys_own_settings_are_kept() -> None:
    """Infinity's sampler has guidance per scale."""
    model = pico("infinity")
    drawer = Drawer("seeds", concept(model), 0)
    drawer.look(model, ["a cat"] * 9, "attack", freeze=True)
    (kept,) = base._replays(drawer.concept.spec, drawer.shown)
    read = Replay.model_validate_json(kept.model_dump_json())
    assert read == kept and replay.sampling_of(model, read.settings) == model.sampling


# -- a file that somebody else wrote ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": ["x"]}, {"seeds": ["9" * 5000]}, {"seeds": []}, {"seeds": ["1"] * 5000}, {"seeds": ["-1"]},
        {"found": -1}, {"found": 9}, {"found": "1"}, {"replay": None}, {"concept": 3}, {"more": 1},
    ],
)  # fmt: skip
def test_a_lock_that_makes_no_sense_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    write_lock(tmp_path / "attacks.lock", [entry()])
    told = json.loads((tmp_path / "attacks.lock").read_text())
    told["frozen"][0] |= change
    (tmp_path / "attacks.lock").write_text(json.dumps(told))
    with pytest.raises(SpecError) as caught:
        read_lock(tmp_path / "attacks.lock")
    assert str(caught.value).isprintable() and "attacks.lock" in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"nonsense": 1.0}, {"temperature": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"top_k": 1.5}, {"top_p": 0.0},
     {"guidance": (1.0, 2.0)}, {}],
)  # fmt: skip
def test_settings_that_the_sampler_lacks_are_one_line(settings: Settings) -> None:
    given = {"guidance": 2.0, **settings} if settings else {}
    with pytest.raises(SpecError, match="frozen attack, settings"):
        sampling_of(LlamaGen.pico(), given)
