"""Numbers of a base recipe are traced to the paper, the released code, or nobody but us."""

from __future__ import annotations

from safear_edit.compiler.recipe import load_base_recipe
from safear_edit.compiler.sources import notes_of, reconstructed, source_of


def test_every_number_that_a_published_size_takes_has_its_source() -> None:
    base, notes = load_base_recipe("svare"), notes_of("svare")
    for ref, where in (("infinity:2b", "infinity:2b"), ("infinity:125m", ""), ("llamagen:xl-256", "")):
        pattern, comment = source_of("params", "part", base, ref, notes)
        assert pattern == where and comment.removeprefix("the ").startswith("paper")
    assert source_of("params", "steps", base, "infinity:mini", notes) == ("*:mini", notes["models.*:mini"])


def test_what_nobody_published_is_named() -> None:
    assert "steps" in reconstructed("vce", "llamagen:xl-256") and "caption_drop" not in reconstructed(
        "vce", "llamagen:xl-256"
    )
    assert not {"steps", "batch", "alpha_wrong"} & set(reconstructed("svare", "infinity:2b"))
    assert "learning_rate" in reconstructed("svare", "infinity:2b")
    assert not {"eta", "steps", "learning_rate", "rank"} & set(reconstructed("obliviate", "janus:pro-7b"))
    assert reconstructed("ear", "janus:pro-7b") and "part" not in reconstructed("ear", "janus:pro-7b")
