"""prompts: expansion, the split that keeps training and evaluation apart, seeds, overlap, and the block list."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safear_edit.files.records import parse
from safear_edit.files.strict import parse_yaml
from safear_edit.spec.draft import draft_words, filled
from safear_edit.spec.extend import full_form
from safear_edit.spec.pools import pools
from safear_edit.spec.prompts import (
    choose,
    expand,
    fill,
    forbidden,
    image_seed,
    mention_of,
    near_duplicates,
    normalise,
    one_line,
    overlap,
    placeholders,
    side,
)
from safear_edit.spec.spec import Spec

words = st.lists(st.text("abcdefgh ", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=5, unique=True)


def draft(kind: str = "style") -> Spec:
    return parse(Spec, full_form(parse_yaml(filled(draft_words("rembrandt", kind)), "draft")))


def test_normalise() -> None:
    assert normalise("  A Houſe, by\u00a0VAN-GOGH!\u200b ") == "a house by van gogh"
    assert normalise("Ｐｉｃａｓｓｏ") == "picasso"


@given(st.text(max_size=40))
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_fill_closes_gaps_and_never_evaluates() -> None:
    assert fill("a photo of {subject} , {alias} style", subject="", alias="X") == "a photo of, X style"
    assert fill("{alias.__class__} {alias}", alias="X") == "{alias.__class__} X"
    assert fill("{subject} by {alias}", subject="{alias}", alias="X") == "{alias} by X"


def test_placeholders() -> None:
    assert placeholders("{subject} by {alias}") == ["subject", "alias"]
    assert placeholders("{subject} by {alias") is None
    assert placeholders("{alias!r}") is None


@settings(max_examples=40, deadline=None)
@given(words, words)
def test_expansion_is_distinct_and_complete(names: list[str], subjects: list[str]) -> None:
    templates = ["{subject} by {alias}", "{alias}: {subject}"]
    made = expand(templates, names, subjects, "alias")
    texts = [normalise(prompt.text) for prompt in made]
    assert len(set(texts)) == len(texts)
    every = {normalise(fill(t, alias=n, subject=s)) for t in templates for n in names for s in subjects}
    assert set(texts) == every


@settings(max_examples=40, deadline=None)
@given(words, words, st.integers(0, 60), st.text(max_size=5))
def test_choice_is_a_stable_prefix_with_names_taking_turns(
    names: list[str], subjects: list[str], n: int, key: str
) -> None:
    pool = expand(["{alias} and {subject}", "{subject} near {alias}"], names, subjects, "alias")
    chosen = choose(pool, n, key)
    assert chosen == choose(list(reversed(pool)), n, key)
    assert chosen == choose(pool, n + 7, key)[:n]
    assert len(set(chosen)) == len(chosen) == min(n, len(pool))
    counts = {name: sum(p.name == name for p in chosen) for name in names}
    sizes = {name: sum(p.name == name for p in pool) for name in names}
    short = [counts[name] for name in names if counts[name] < sizes[name]]
    assert not short or max(counts.values()) - min(short) <= 1


def test_seed_rule() -> None:
    raw = hashlib.sha256(b"score|a house|2").digest()
    assert image_seed("score", "a house", 2) == int.from_bytes(raw[:8], "big") & (2**63 - 1)
    assert image_seed("score", "a house") != image_seed("screen", "a house")


@pytest.mark.parametrize("kind", ["style", "object", "category"])
def test_pools_never_meet(kind: str) -> None:
    drawn = pools(draft(kind))
    training = [p.text for p in (*drawn.train, *(p for group in drawn.keep.values() for p in group))]
    evaluation = [drawn.direct, drawn.paraphrase, drawn.template, *drawn.preserve.values()]
    assert all(evaluation)
    assert not overlap(training, [p.text for pool in evaluation for p in pool])
    assert "plain" not in drawn.keep and "plain" in drawn.preserve


def test_the_side_follows_the_normalised_text_and_is_even() -> None:
    assert side("A house, by Monet!") == side("a house by monet")
    train = sum(side(f"prompt {i}") == "train" for i in range(2000))
    assert 900 < train < 1100


def test_direct_uses_no_paraphrase_and_paraphrase_no_alias() -> None:
    spec = draft()
    drawn = pools(spec)
    assert {p.name for p in drawn.direct} == set(spec.erase.aliases)
    assert {p.name for p in drawn.paraphrase} == set(spec.paraphrases.held_out)
    assert {p.name for p in drawn.train} == {*spec.erase.aliases, *spec.paraphrases.train}


def test_overlap_ignores_case_and_punctuation() -> None:
    assert overlap(["A house; by Monet"], ["a house by monet.", "a car by Monet"]) == ["a house by monet."]


def test_near_duplicates_reports_the_nearest_first() -> None:
    def similarity(a: list[str], b: list[str]) -> list[list[float]]:
        return [[0.1, 0.99], [0.5, 0.2], [1.0, 0.3]][: len(a)]

    found = near_duplicates(["t0", "t1"], ["e0", "e1", "e2"], similarity, 0.98)
    assert [(n.evaluation, n.training) for n in found] == [("e2", "t0"), ("e0", "t1")]
    assert near_duplicates([], ["e"], similarity, 0.5) == []


def test_mentions_are_whole_words() -> None:
    mention = mention_of(["a dog", "Van Gogh", "man's best friend"])
    assert mention("two dogs in the snow") == "dogs"
    assert mention("a house by van-gogh") == "van gogh"
    assert mention("Man's best friend") == "man s best friend"
    assert mention("a hot-doggery") is None
    assert mention("dogma") is None
    assert mention_of([])("anything") is None
    accented = mention_of(["Miró", "Νίκος"])
    assert [accented(text) for text in ("by Miro", "by MIRO\u0301", "Νικος")] == ["miro", "miro", "νικοσ"]
    plural = mention_of(["a church", "a puppy", "the bay"])
    assert [plural(text) for text in ("two churches", "Puppies!", "bays")] == ["churches", "puppies", "bays"]
    assert [plural(text) for text in ("a churchyard", "bayes")] == [None, None]


@pytest.mark.parametrize(
    "text",
    ["a nude child", "Nude  CHILDREN", "teenage girl, topless", "a 12-year-old, naked", "nüde chíld", "aged 9, erotic"],
)
def test_block_list(text: str) -> None:
    assert forbidden(text)


@pytest.mark.parametrize("text", ["a nude woman", "a child in a meadow", "a naked 45-year-old", "a sextant and a kid"])
def test_block_list_needs_both(text: str) -> None:
    assert not forbidden(text)


@pytest.mark.parametrize(
    ("text", "names", "found"),
    [
        ("北斎風の家", ["北斎"], "北斎"),
        ("葛飾 北斎の波", ["葛飾北斎"], "葛飾北斎"),
        ("Hokusai風の家", ["Hokusai"], "hokusai"),
        ("ピカソの絵", ["ピカソ"], "ピカソ"),
        ("毕加索风格的房子", ["毕加索"], "毕加索"),
        ("피카소의 집", ["피카소"], "피카소"),
        ("บ้านแบบปิกัสโซ", ["ปิกัสโซ"], "ปิกัสโซ"),
        ("Hokusai's house", ["Hokusai"], "hokusai"),
        ("a house by Hokusaist", ["Hokusai"], None),
        ("家と海", ["北斎"], None),
    ],
)
def test_a_name_is_found_in_every_script(text: str, names: list[str], found: str | None) -> None:
    """Where a script has no spaces between words, a name needs none around it."""
    assert mention_of(names)(text) == found


def test_spaces_within_a_script_without_spaces_make_no_other_prompt() -> None:
    assert overlap(["葛飾 北斎、波"], ["葛飾北斎波"]) == ["葛飾北斎波"]
    assert normalise("か\u0020\u3099") == normalise(normalise("か\u0020\u3099"))
    assert normalise("피카소 집") == "피카소 집"


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("the\u00a0artist\u3000Hokusai\tat work", "the artist Hokusai at work"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\ufeffhou\u00adse\u200b", "house"),
        ("a\nb", None),
        ("a\u001b[0m", None),
        ("a\u202eb", None),
        ("a\u2028b", None),
    ],
)
def test_ordinary_text_of_any_script_is_kept_and_control_characters_are_not(text: str, stored: str | None) -> None:
    assert one_line(text) == stored
