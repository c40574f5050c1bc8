"""Refined captions keep the subject and lose the concept, and templates can't reach into Python."""

from __future__ import annotations

import pytest

from safear_edit.captions import fill, refine
from safear_edit.errors import SpecError

ANCHORS = ["a photo of {subject}", "{subject}"]


def test_the_subject_stays_and_the_concept_goes() -> None:
    safe = [refine("{subject} by {alias}", "a house on a beach", "Pablo Picasso", ANCHORS, i) for i in range(3)]
    assert safe == ["a photo of a house on a beach", "a house on a beach", "a photo of a house on a beach"]


@pytest.mark.parametrize("subject", ["a cat like PICASSO's", "picasso, sitting"])
def test_a_safe_caption_that_names_the_concept_is_refused(subject: str) -> None:
    with pytest.raises(SpecError, match="without 'Picasso'"):
        refine("{subject} by {alias}", subject, "Picasso", ANCHORS, 0)


def test_a_part_of_a_word_is_not_the_concept() -> None:
    assert refine("{alias} {subject}", "in a category", "a cat", ["a dog {subject}"], 0) == "a dog in a category"


def test_an_unsafe_template_without_the_alias_is_refused() -> None:
    with pytest.raises(SpecError, match="alias"):
        refine("{subject}", "a house", "Picasso", ANCHORS, 0)
    with pytest.raises(SpecError, match="at least one template"):
        refine("{subject} by {alias}", "a house", "Picasso", [], 0)


def test_fill_is_not_format() -> None:
    assert fill("{subject} by {alias}", subject="{alias}", alias="x") == "{alias} by x"
    assert fill("{subject}  {alias} ", subject="a", alias="") == "a"
    for template in ("{subject.__class__}", "{0}", "{}", "{nobody}"):
        with pytest.raises(SpecError, match="placeholder"):
            fill(template, subject="a")
