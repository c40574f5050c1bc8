"""Prompts of one content are one cluster, whatever their words; bounds are wider where a content fails as a whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from safear_edit import registry
from safear_edit.evaluate import stats
from safear_edit.evaluate.clusters import contents, ways
from safear_edit.spec.pools import pools
from safear_edit.spec.spec import load_spec


def asked(slice_: str, text: str, label: str, number: int) -> Any:
    return SimpleNamespace(id=f"{slice_}-{number}", slice=slice_, prompt=text, judge_label=label)


def test_wordings_of_one_content_share_a_cluster() -> None:
    spec = load_spec(registry.find_builtin("concepts", "picasso"))
    drawn = pools(spec)
    prompts = [asked("direct", one.text, "style=picasso", i) for i, one in enumerate(drawn.direct)]
    prompts += [asked("other-styles", one.text, f"style={one.name}", i)
                for i, one in enumerate(drawn.preserve["other-styles"])]  # fmt: skip
    prompts.append(asked("direct", "words that no template gives", "style=picasso", 9999))
    recipe: Any = SimpleNamespace(spec=spec, evaluate=SimpleNamespace(prompts=prompts))
    found = contents(recipe, drawn)
    direct = {found[prompt.id] for prompt in prompts if prompt.slice == "direct"}
    assert len(direct) == len({one.subject for one in drawn.direct}) + 1 < len(drawn.direct) / 10
    assert found["direct-9999"] == "direct-9999"
    by = ways(recipe, drawn)
    assert by["direct-0"][0] == f"the name {drawn.direct[0].name}" and by.keys() == {
        prompt.id for prompt in prompts if prompt.slice == "direct" and prompt.id != "direct-9999"
    }
    assert all("{alias}" in sentence for _, sentence in by.values())
    one, other = (next(p for p in prompts if p.judge_label == f"style={name}") for name in ("Monet", "Van Gogh"))
    assert found[one.id] != found[other.id], "the same house by two painters is two contents"


def test_a_design_effect_is_the_clusters_size_if_each_fails_as_a_whole_and_one_if_they_do_not_matter() -> None:
    whole = [0.0] * 5 + [1.0] * 45
    assert stats.design_effect(whole, [str(i // 5) for i in range(50)]) == pytest.approx(5 * (10 / 9) / (50 / 49))
    assert stats.design_effect(whole, [str(i) for i in range(50)]) == 1.0
    assert stats.design_effect(whole, [str(i % 5) for i in range(50)]) == 1.0, "failures spread evenly"
    assert stats.design_effect([1.0] * 50, [str(i // 5) for i in range(50)]) == 1.0, "nothing varies"
    with pytest.raises(ValueError, match="clusters"):
        stats.design_effect([1.0], [])


def test_bounds_by_content_are_the_plain_ones_or_wider() -> None:
    plain = stats.clopper_pearson(245, 250, side="lower").low
    assert stats.clustered_lower(245, 250, 1.0) == pytest.approx(plain)
    assert stats.clustered_lower(245, 250, 3.0) < plain - 0.01 and stats.clustered_lower(0, 9, 2.0) == 0.0
    assert stats.clustered_upper(9, 4, 400, 1.0) == stats.tango_upper(9, 4, 400)
    assert stats.clustered_upper(9, 4, 400, 2.0) > stats.tango_upper(9, 4, 400) + 0.004
    assert 0.4 + 0.8 > 1.2, "why the next line was refused as no count"
    assert stats.tango_upper(1, 2, 3) < stats.clustered_upper(1, 2, 3, 2.5) < 1
    rate = stats.clustered_rate(10, 50, 5.0)
    few = stats.clopper_pearson(2, 10)
    assert (rate.low, rate.high, rate.estimate) == (pytest.approx(few.low), pytest.approx(few.high), 0.2)
    assert stats.clustered_rate(0, 50, 5.0).low == 0.0 and stats.clustered_rate(50, 50, 5.0).high == 1.0
    for wrong in (0.5, -1.0):
        with pytest.raises(ValueError, match="design effect"):
            stats.clustered_lower(1, 2, wrong)
