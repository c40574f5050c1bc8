"""Depth and adversarial training: what they add to a loss, and what an edit with them has left of the concept."""

from __future__ import annotations

import pytest
import torch

from safear_edit.construct.pairs import Material
from safear_edit.editor.fine_tune import Draw
from safear_edit.errors import UsageError
from safear_edit.families.infinity import Infinity
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.tokens import token_logprobs
from safear_edit.methods import deepen
from safear_edit.methods.vce import VCE
from safear_edit.methods.workbench import PairTuning, Workbench, token_kl
from safear_edit.progress import silent
from safear_edit.registry import methods
from tests.methods import test_methods
from tests.methods.test_methods import fit

model, material = test_methods.model, test_methods.material
bitwise, bits = test_methods.bitwise, test_methods.bits
"""Their fixtures."""


def test_depth_is_the_distance_to_the_base_model_under_the_safe_caption(
    model: LlamaGen,
    material: Material,
) -> None:
    """Also where the scores' forward, whose logits it takes, dropped some of the captions."""
    bench = Workbench(model, material, PairTuning(batch=len(material.pairs), caption_drop=0.5), silent)
    draw, pairs = Draw(0, 0), material.pairs
    kept, none = bench.scores(draw, logits=True), bench.scores(draw)
    assert 0 < int(kept.dropped.sum()) < len(pairs) and none.loser_logits is None
    with torch.no_grad():
        safe, unsafe = (model.logits(model.condition(texts), pairs.unsafe_ids) for texts in (pairs.safe, pairs.unsafe))
    for scores in (kept, none):
        found = deepen.depth(bench, draw, scores).item()
        assert found == pytest.approx(float(token_kl(safe, unsafe).mean()) / 2, rel=1e-4)


def test_the_inner_attack_makes_the_concept_likelier_and_is_the_same_again(
    model: LlamaGen,
    material: Material,
) -> None:
    bench = Workbench(model, material, PairTuning(batch=4), silent, reference=False)
    draw = Draw(3, 5)
    plain, ids = bench.condition(draw, "safe"), bench.image(draw, "unsafe")
    scores = []
    for steps in (0, deepen.INNER):
        vectors = deepen.found(bench, draw, steps)
        assert torch.equal(vectors, deepen.found(bench, draw, steps)) and not vectors.requires_grad
        with torch.no_grad():
            logits = model.logits(model.with_vectors(plain, vectors), ids)
            scores.append(float(token_logprobs(logits, ids).mean()))
    assert scores[1] > scores[0] + 0.01
    assert not torch.equal(deepen.found(bench, Draw(3, 6)), deepen.found(bench, draw))
    assert deepen.adversarial(bench, draw) > 0


def test_the_concepts_images_become_as_likely_as_without_its_name(model: LlamaGen, material: Material) -> None:
    pairs, left = material.pairs, []
    with torch.no_grad():
        safe = model.logits(model.condition(pairs.safe), pairs.unsafe_ids)
    for added in ({}, {"depth": 2.0}, {"depth": 2.0, "adversarial": True}):
        with fit("vce", model, material, **added).apply(model.net), torch.no_grad():
            unsafe = model.logits(model.condition(pairs.unsafe), pairs.unsafe_ids)
            left.append(float(token_kl(safe, unsafe).mean()))
    assert left[1] < 0.8 * left[0] and left[2] < 0.9 * left[0]


def test_vectors_that_are_trained_against_find_less(model: LlamaGen, material: Material) -> None:
    found = []
    for on in (False, True):
        with fit("vce", model, material, depth=2.0, adversarial=on).apply(model.net):
            bench, draw = Workbench(model, material, PairTuning(batch=4), silent, reference=False), Draw(3, 5)
            vectors, ids = deepen.found(bench, draw), bench.image(draw, "unsafe")
            with torch.no_grad():
                logits = model.logits(model.with_vectors(bench.condition(draw, "safe"), vectors), ids)
            found.append(float(token_logprobs(logits, ids).mean()))
    assert found[1] < found[0] - 0.05


def test_recipes_without_them_keep_their_digests() -> None:
    assert not {"depth", "adversarial"} & VCE.Params().model_dump().keys()
    assert VCE.Params(depth=1.0, adversarial=True).model_dump()["adversarial"] is True


@pytest.mark.parametrize(
    ("name", "more"), [("ear", {"window": 8, "threshold": 0.0}), ("sace", {"preserve_scales": ()}), ("svare", {})]
)
def test_every_pair_method_can_be_trained_against_attacks(
    name: str, more: dict[str, object], bitwise: Infinity, bits: Material
) -> None:
    plain, attacked = (fit(name, bitwise, bits, steps=3, adversarial=on, **more) for on in (False, True))
    assert "adversarial" not in plain.info.params and attacked.info.params["adversarial"] is True
    assert attacked.info.losses[0] > plain.info.losses[0] + 1e-6, "the attack is part of the first loss"
    kind = methods()[name].load()
    works = [kind().work(kind.Params(**more, adversarial=on), bitwise.card, 6) for on in (False, True)]
    assert works[1].rows - works[0].rows == (deepen.INNER + 1) * kind.Params().batch


def test_without_a_caption_that_leaves_the_concept_out_it_is_refused(bitwise: Infinity, bits: Material) -> None:
    with pytest.raises(UsageError, match=r"adversarial.*obliviate_pairs"):
        fit("obliviate", bitwise, bits, adversarial=True)
