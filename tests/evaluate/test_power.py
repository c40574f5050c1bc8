"""power: what can be met at its n, with which chance, and which n would do; against counts made another way."""

from __future__ import annotations

import numpy as np
import pytest

from safear_edit.evaluate import stats
from safear_edit.evaluate.power import ERASED, FLIPS, criteria, problems
from safear_edit.registry import builtin_names, find_builtin
from safear_edit.spec.spec import Gates, Spec, load_spec

PICASSO = load_spec(find_builtin("concepts", "picasso"))


def at(n: int, **gates: float) -> Spec:
    groups = tuple(group.model_copy(update={"n": n}) for group in PICASSO.preserve)
    sizes = PICASSO.evaluate.model_copy(update={"n": PICASSO.evaluate.n.model_copy(update={"template": n})})
    return PICASSO.model_copy(update={"preserve": groups, "evaluate": sizes, "gates": Gates(**gates)})


@pytest.mark.usefixtures("beside_own_prompts")
@pytest.mark.parametrize("name", builtin_names("concepts"))
def test_every_built_in_concept_can_be_decided(name: str) -> None:
    assert all(one.met and one.power > 0.9 for one in criteria(load_spec(find_builtin("concepts", name))))


def test_forty_can_not_bound_a_drop_by_five_points() -> None:
    found = {one.slice: one for one in criteria(at(40))}
    group = found["objects"]
    assert not group.met and group.power == 0 and "bound the drop by 6.3%" in group.why
    assert (group.least, stats.tango_upper(0, 0, 52) < 0.05 <= stats.tango_upper(0, 0, 51)) == (52, True)
    (first, *_), said = list(problems(list(found.values()))), group.sentence()
    assert first.at == ("preserve", 0, "n") and first.expected == "at least 52 prompts" and "can't be met" in said
    assert f"set it to {group.enough}" in first.fix


def test_the_smallest_numbers_are_enough_and_smaller_ones_are_not() -> None:
    (group,) = (one for one in criteria(at(80)) if one.slice == "objects")
    assert group.met and group.power < stats.POWER and group.enough is not None
    assert f"{group.enough} prompts: 80%" in group.sentence()
    (wide,) = (one for one in criteria(at(group.enough)) if one.slice == "objects")
    (less,) = (one for one in criteria(at(group.enough - 10)) if one.slice == "objects")
    assert less.power < stats.POWER <= wide.power


def test_power_is_what_drawing_it_gives() -> None:
    rng, n = np.random.default_rng(0), 100
    found = {one.slice: one for one in criteria(at(n))}
    hits = rng.binomial(n, ERASED, 20_000)
    lower = {k: stats.clopper_pearson(int(k), n, side="lower").low for k in set(hits.tolist())}
    share = np.mean([k / n >= 0.93 and lower[k] >= 0.90 for k in hits.tolist()])
    assert found["template"].power == pytest.approx(share, abs=0.01)
    flips = rng.multinomial(n, [FLIPS / 2, FLIPS / 2, 1 - FLIPS], 4_000)[:, :2].tolist()
    kept = [(lost - up) / n <= 0.03 and stats.tango_upper(lost, up, n) < 0.05 for lost, up in flips]
    assert found["objects"].power == pytest.approx(np.mean(kept), abs=0.025)


def test_a_gate_that_no_number_can_show() -> None:
    direct = next(iter(criteria(at(100, erasure_floor=1.0))))
    assert not direct.met and direct.least is None and "lower the gate" in str(direct.problem())


def test_a_gate_that_lets_a_member_go_is_planned_for() -> None:
    """A loss of all of it: with the images that flip anyway that was more than there is."""
    found = {one.slice: one for one in criteria(at(400, member_upper=0.99))}
    member = found["other-styles, each of 6 members"]
    assert member.met and "a loss of 99 points is found in" in member.finds


def test_twenty_prompts_can_not_show_ninety_per_cent() -> None:
    found = {one.slice: one for one in criteria(at(20))}
    assert not found["template"].met and found["template"].least == 29


def test_members_are_planned_for() -> None:
    """400 prompts of six styles are 66 each, and objects 40 each: what a loss of 12 points would look like is said."""
    found = {one.slice: one for one in criteria(PICASSO)}
    styles = found["other-styles, each of 6 members"]
    assert (
        styles.met
        and styles.power > 0.99
        and "with 66 prompts each, a loss of 12 points is found in 8" in styles.sentence()
    )
    assert "other-styles, each of 6 members" not in {one.slice for one in criteria(at(400)) if not one.met}
    few = {one.slice: one for one in criteria(PICASSO, {"other-styles": 48, "objects": 108})}
    assert not few["other-styles, each of 6 members"].met and few["objects, each of 12 members"].met
    assert "at least 54 prompts" in str(few["other-styles, each of 6 members"].problem())
    assert not any(name.startswith("plain, each") for name in found)  # one member is its group
